"""Whether an adapter was made for a base of this size.

An adapter of attention alone fits every gpt-oss that has at least its layers: gpt-oss-20b and
gpt-oss-120b differ in the number of layers and experts, and in nothing else. Two things show that
it belongs to another base: the name that its config gives the base, and layers it leaves unchanged
though its config does not choose layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gptoss.converter.lora.deltas import AnyDelta, ExpertPairs
from gptoss.errors import CheckpointError, quoted
from gptoss.formats.hparams import HParams
from gptoss.formats.tensor_map import TensorRole, parameters, tensors

PUBLISHED = {"20b": (24, 32), "120b": (36, 128)}
"""Layers and experts of the published sizes."""

_SIZE = re.compile(r"(?<![0-9a-z.])(?:20|120)b(?![0-9a-z])")
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_NOT_A_NUMBER = re.compile(r"\\d|\{[\d,]*\}|\[0-9\]")
"""Parts of a regular expression that hold digits and do not choose a layer."""


def check_name(config: Mapping[str, Any], hparams: HParams, where: Path) -> None:
    """Raise ``CheckpointError`` when an adapter's config names a published size (20b, 120b) as its
    base, and this base has another.

    The size is found in any form of the name: ``unsloth/gpt-oss-20b-bnb-4bit``, a folder's path.
    """
    name = str(config.get("base_model_name_or_path"))
    size = size_in_name(name)
    if size and PUBLISHED[size] != (hparams.num_hidden_layers, hparams.num_local_experts):
        raise CheckpointError(
            f"{where}: the adapter is for {quoted(name)}, a {size} model; the base has "
            f"{hparams.num_hidden_layers} layers of {hparams.num_local_experts} experts; if it is "
            "the right one, correct base_model_name_or_path"
        )


def size_in_name(name: str) -> str | None:
    """Find the published size (20b, 120b) in the name or path of an adapter's base model; None when
    it has none, or both.
    """
    for part in reversed(re.split(r"[/\\]", name.lower())):
        sizes = set(_SIZE.findall(part.replace("_", "-")))
        if sizes:
            return sizes.pop() if len(sizes) == 1 else None
    return None


def check_complete(
    config: Mapping[str, Any],
    hparams: HParams,
    path: Path,
    deltas: Mapping[str, AnyDelta],
    replaced: Iterable[str],
) -> None:
    """Raise ``CheckpointError`` when an adapter leaves something of this base unchanged that PEFT
    would have changed.

    That shows an adapter of a shallower model: to one of 36 layers it fits in all that it has.
    """
    _check_listed(config, hparams, path, {*deltas, *replaced})
    _check_layers_alike(config, hparams, path, deltas)


def _check_listed(
    config: Mapping[str, Any], hparams: HParams, path: Path, changed: set[str]
) -> None:
    """Check that an adapter changes every tensor of this base that its config lists by name."""
    if config.get("layers_to_transform") is not None or config.get("exclude_modules"):
        return
    modules, whole = config.get("target_modules"), config.get("target_parameters")
    linear = [
        source.name.removesuffix(".weight")
        for named in tensors(hparams)
        for source in named.sources
        if named.role is TensorRole.MATRIX and named.gguf != "token_embd.weight"
    ]
    expected = [(key + ".weight", key) for key in linear if _targeted(modules, key)]
    expected += [(key, key) for key in parameters(hparams) if _targeted(whole, key)]
    for name, key in expected:
        if name not in changed:
            raise CheckpointError(
                f"{path}: has no weights for {key!r}, although its config targets it: the "
                "adapter is for another base"
            )


def _targeted(targets: Any, key: str) -> bool:
    """Check whether an adapter's config demands a change of this module of the base, by PEFT's rule
    for lists of names.

    A regular expression from a file is not run.
    """
    return isinstance(targets, list) and any(
        isinstance(target, str) and (key == target or key.endswith("." + target))
        for target in targets
    )


def _check_layers_alike(
    config: Mapping[str, Any], hparams: HParams, path: Path, deltas: Mapping[str, AnyDelta]
) -> None:
    """Check that an adapter has the same modules in every layer of this base, unless its config
    chooses layers.
    """
    for key, whole in (("target_modules", False), ("target_parameters", True)):
        if not config.get(key) or _chooses(config[key]) or _chooses(config.get("exclude_modules")):
            continue
        layers = _layers(config, hparams)
        by_layer: dict[int, set[str]] = {i: set() for i in layers}
        for name in _modules(deltas, parameters_of_peft=whole):
            if found := _LAYER.fullmatch(name):
                by_layer.setdefault(int(found[1]), set()).add(found[2])
        every = set().union(*by_layer.values())
        for i, modules in by_layer.items():
            if modules != every:
                missing = quoted(f"model.layers.{i}.{min(every - modules)}")
                raise CheckpointError(
                    f"{path}: has no weights for {missing}, although other layers have them: the "
                    "adapter is for another base, or incomplete"
                )
        _check_experts_alike(hparams, path, deltas)


def _check_experts_alike(hparams: HParams, path: Path, deltas: Mapping[str, AnyDelta]) -> None:
    for name, delta in deltas.items():
        if not isinstance(delta, ExpertPairs):
            continue
        every = set().union(*delta.pairs.values())
        for e in range(hparams.num_local_experts):
            if set(delta.pairs.get(e, ())) != every:
                raise CheckpointError(
                    f"{path}: expert {e} of {name!r} lacks an adapter that other experts have: the "
                    "adapter is for another base, or incomplete"
                )


def _modules(deltas: Mapping[str, AnyDelta], *, parameters_of_peft: bool) -> Iterator[str]:
    """List what an adapter changes as modules, or as parameters, to check it against this base;
    PEFT keeps two lists.
    """
    for name, delta in deltas.items():
        as_parameter = not isinstance(delta, ExpertPairs) and delta.experts > 0
        if as_parameter is parameters_of_peft:
            yield name


def _layers(config: Mapping[str, Any], hparams: HParams) -> list[int]:
    """List the layers of this base that the adapter should change: those that its config lists, or
    all.
    """
    chosen = config.get("layers_to_transform")
    listed = chosen if isinstance(chosen, list) else [chosen]
    everything = range(hparams.num_hidden_layers)
    return [i for i in everything if chosen is None or i in listed]


def _chooses(targets: Any) -> bool:
    """Check whether an adapter's config may choose some layers or experts, so that it need not
    change all of this base's.

    The expression comes from a file and is not run: a number in it is enough.
    """
    found = targets if isinstance(targets, list) else [targets]
    return any(
        re.search(r"\d", _NOT_A_NUMBER.sub("", it)) is not None
        for it in found
        if isinstance(it, str)
    )
