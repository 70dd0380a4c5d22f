"""A PEFT LoRA adapter: which tensors of a checkpoint it changes, and by what.

An adapter has a pair of matrices for each tensor it changes: ``scale * B @ A`` is to be added, with
A [rank, inputs] and B [outputs, rank]. For experts, whose tensor has a dimension more, PEFT keeps
all experts' matrices in one pair: A [experts * rank, ...] with the experts outermost, B
[..., rank * experts] with them innermost.

Nothing may be lost silently. A tensor of the adapter that no tensor of the checkpoint takes up, a
kind of LoRA that adds something else, and a layer that the adapter should change by its own config
and does not, are errors.

Source: https://github.com/huggingface/peft, ``tuners/lora``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptoss.errors import CheckpointError, UnsupportedModelError, quoted
from gptoss.formats.byte_source import FileSource, read_json
from gptoss.formats.checkpoint import FLOATS, Checkpoint
from gptoss.formats.hparams import HParams
from gptoss.formats.safetensors import TensorInfo, read_header
from gptoss.formats.tensor_map import HfTensor, TensorRole, tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CONFIG_LIMIT = 2**22
PREFIX = "base_model.model."

_PART = re.compile(r"(?P<module>.+)\.lora_(?P<matrix>[AB])\.weight")
_WRAPPED = ".base_layer"
"""In names, where one experts module has two adapted tensors: the inner one's."""

_OTHER_KINDS = ("use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out",
                "layer_replication", "trainable_token_indices", "kasa_config",
                "velora_config", "arrow_config", "alora_invocation_tokens")  # fmt: skip
"""Settings that, when set, make of an adapter something else than a product to be added."""
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of ``init_lora_weights`` with which the base itself is changed before training."""
_PUBLISHED = {"gpt-oss-20b": (24, 32), "gpt-oss-120b": (36, 128)}
"""Layers and experts; all else is alike, so that an adapter of attention alone would fit both."""
_SWAPS_BY_SHAPE = (0, 19)
"""From this version on PEFT has sometimes taken experts' inputs for outputs, and their outputs."""


@dataclass(frozen=True, slots=True)
class Delta:
    """``scale * B @ A``, to be added to a matrix, or in each of ``experts`` when that is not 0.

    ``swapped``, of experts: A's width is the tensor's last dimension, not the one before.
    """

    a: TensorInfo
    b: TensorInfo
    rank: int
    scale: float
    experts: int = 0
    swapped: bool = False


@dataclass(frozen=True, slots=True)
class Adapter:
    """``deltas`` and ``replaced`` by the names of the checkpoint's tensors."""

    folder: Path
    deltas: Mapping[str, Delta]
    replaced: Mapping[str, TensorInfo]


def open_adapter(folder: Path, checkpoint: Checkpoint) -> Adapter:
    """Read an adapter's config and headers, and find what of the checkpoint it changes.

    Raises ``CheckpointError`` when it is damaged, does not fit the checkpoint or would not be taken
    up whole; ``UnsupportedModelError`` when it is another kind of adapter.
    """
    if not (folder / CONFIG).exists():
        raise CheckpointError(
            f"{folder / CONFIG}: missing; the folder of a PEFT adapter has it, beside {WEIGHTS}"
        )
    config = read_json(folder / CONFIG, CheckpointError, limit=CONFIG_LIMIT)
    _check_kind(config, folder / CONFIG)
    path = folder / WEIGHTS
    if not path.exists():
        raise CheckpointError(f"{path}: missing; an adapter's weights must be in safetensors")
    _check_name(config, checkpoint.hparams, folder / CONFIG)
    pairs, replaced = _sorted(read_header(FileSource(path, CheckpointError)), checkpoint.hparams)
    found = _Found(config, path, checkpoint.hparams)
    deltas = dict(found.delta(module, a, b) for module, (a, b) in pairs.items())
    if len(deltas) != len(pairs):
        raise CheckpointError(f"{path}: changes a tensor twice")
    deltas = dict(_with_sides(deltas, config, path))
    _check_complete(config, checkpoint.hparams, path, {*deltas, *replaced})
    return Adapter(folder, deltas, replaced)


def _check_kind(config: Mapping[str, Any], where: Path) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedModelError(f"{where}: peft_type is {quoted(kind)}; only 'LORA' is known")
    for name in _OTHER_KINDS:
        if config.get(name):
            raise UnsupportedModelError(
                f"{where}: {name} is set, which is more than plain LoRA; merge it with PEFT"
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASE):
        raise UnsupportedModelError(
            f"{where}: init_lora_weights is {quoted(start)}: the adapter belongs to a base that "
            "PEFT changed before training; merge it with PEFT"
        )


def _check_name(config: Mapping[str, Any], hparams: HParams, where: Path) -> None:
    """Raise ``CheckpointError`` when the adapter names a published model, and the base is another."""
    name = str(config.get("base_model_name_or_path")).replace("\\", "/").rpartition("/")[2]
    shape = _PUBLISHED.get(name.lower().removesuffix("-bf16"))
    if shape not in (None, (hparams.num_hidden_layers, hparams.num_local_experts)):
        raise CheckpointError(
            f"{where}: the adapter is for {name}; the base has {hparams.num_hidden_layers} layers "
            f"of {hparams.num_local_experts} experts"
        )


def _sorted(
    found: Mapping[str, TensorInfo], hparams: HParams
) -> tuple[dict[str, tuple[TensorInfo, TensorInfo]], dict[str, TensorInfo]]:
    """Pairs A, B by module, and whole tensors, which replace the checkpoint's, by their name."""
    halves: dict[str, dict[str, TensorInfo]] = {}
    replaced: dict[str, TensorInfo] = {}
    known = parameters(hparams)
    for full, info in found.items():
        where = f"{info.file}: tensor {quoted(full)}"
        if info.dtype not in FLOATS:
            raise CheckpointError(f"{where} is {info.dtype}, no float")
        name = full.removeprefix(PREFIX)
        part = _PART.fullmatch(name)
        if part:
            halves.setdefault(part["module"], {})[part["matrix"]] = info
            continue
        name = name.replace(_WRAPPED, "")
        if name not in known:
            raise CheckpointError(f"{where} would be lost: no tensor of gpt-oss takes it up")
        elif info.shape != known[name].shape:
            raise CheckpointError(
                f"{where} has shape {info.shape}, the base's {known[name].shape}: the adapter is "
                "for another base"
            )
        else:
            replaced[name] = info
    pairs = {}
    for module, half in halves.items():
        if len(half) != 2:
            (matrix,) = half
            raise CheckpointError(
                f"{half[matrix].file}: {quoted(module)} has lora_{matrix} without its partner"
            )
        pairs[module] = (half["A"], half["B"])
    return pairs, replaced


def parameters(hparams: HParams) -> dict[str, HfTensor]:
    """What transformers calls a model's parameters, experts in floats, by name."""
    found: dict[str, HfTensor] = {}
    for named in tensors(hparams):
        for tensor in (named.floats,) if named.floats else named.sources:
            found[tensor.name] = tensor
    return found


class _Found:
    """What an adapter's pairs mean, by its config and their shapes."""

    def __init__(self, config: Mapping[str, Any], path: Path, hparams: HParams) -> None:
        self._config = config
        self._path = path
        self._parameters = parameters(hparams)

    def delta(self, module: str, a: TensorInfo, b: TensorInfo) -> tuple[str, Delta]:
        """The tensor that a pair changes, and how."""
        while module.endswith(_WRAPPED):
            module = module.removesuffix(_WRAPPED)
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
            raise CheckpointError(
                f"{self._path}: lora_A {a.shape} and lora_B {b.shape} of {quoted(module)} make no "
                "product"
            )
        if module.endswith(".mlp.experts"):
            return self._experts(module, a, b)
        name = module + ".weight"
        target = self._parameters.get(name)
        if target is None or len(target.shape) != 2:
            raise CheckpointError(
                f"{self._path}: the adapter of {quoted(module)} would be lost: no matrix of "
                "gpt-oss takes it up, or the base has fewer layers than the adapter's"
            )
        if target.shape != (b.shape[0], a.shape[1]):
            raise self._other_base(module, a, b, target)
        return name, Delta(a, b, a.shape[0], self._scale(module, a.shape[0]))

    def _experts(self, module: str, a: TensorInfo, b: TensorInfo) -> tuple[str, Delta]:
        """Which of an experts module's tensors: their names do not say it, their shapes do."""
        for part in ("gate_up_proj", "down_proj"):
            name = f"{module}.{part}"
            target = self._parameters.get(name)
            if target is None:
                raise CheckpointError(
                    f"{self._path}: the adapter of {quoted(module)} would be lost: the base has "
                    "fewer layers than the adapter's"
                )
            n_experts, first, second = target.shape
            if {first, second} != {a.shape[1], b.shape[0]}:
                continue
            if a.shape[0] % n_experts:
                break
            rank = a.shape[0] // n_experts
            swapped = (a.shape[1], b.shape[0]) != (first, second)
            return name, Delta(a, b, rank, self._scale(name, rank), n_experts, swapped)
        raise self._other_base(module, a, b, self._parameters[f"{module}.down_proj"])

    def _other_base(
        self, module: str, a: TensorInfo, b: TensorInfo, target: HfTensor
    ) -> CheckpointError:
        return CheckpointError(
            f"{self._path}: lora_A {a.shape} and lora_B {b.shape} of {quoted(module)} do not fit "
            f"{target.shape}: the adapter is for another base"
        )

    def _scale(self, key: str, rank: int) -> float:
        """alpha / rank; the config may give a module an alpha of its own."""
        alpha = self._config.get("lora_alpha")
        patterns = self._config.get("alpha_pattern") or {}
        if not isinstance(patterns, dict):
            raise CheckpointError(f"{self._path.with_name(CONFIG)}: alpha_pattern is no object")
        for pattern, value in patterns.items():
            if _matches(pattern, key, self._path.with_name(CONFIG)):
                alpha = value
                break
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1e6:
            raise CheckpointError(
                f"{self._path.with_name(CONFIG)}: lora_alpha is {quoted(alpha)}, a positive "
                "number is expected"
            )
        return float(alpha) / (math.sqrt(rank) if self._config.get("use_rslora") else rank)


def _matches(pattern: str, key: str, where: Path) -> bool:
    """Whether a pattern is a module's name, or the end of one.

    PEFT takes it as a regular expression. One that is more than a name is refused: it comes from a
    file, and to run it could take for ever.
    """
    if not re.fullmatch(r"[\w.]{1,200}", pattern):
        raise UnsupportedModelError(f"{where}: the pattern {quoted(pattern)} is more than a name")
    return key == pattern or key.endswith("." + pattern)


def _with_sides(
    deltas: Mapping[str, Delta], config: Mapping[str, Any], path: Path
) -> Iterator[tuple[str, Delta]]:
    """Settle what shapes leave open: of a square tensor, which side A belongs to.

    The adapter's other experts tensor tells, for PEFT treats both alike. Alone, its version may.
    """
    experts = {name: delta for name, delta in deltas.items() if delta.experts}
    telling = {d.swapped for d in experts.values() if d.a.shape[1] != d.b.shape[0]}
    for name, delta in deltas.items():
        if not delta.experts or delta.a.shape[1] != delta.b.shape[0]:
            yield name, delta
        elif len(telling) == 1:
            yield name, Delta(delta.a, delta.b, delta.rank, delta.scale, delta.experts, *telling)
        elif _version(config) < _SWAPS_BY_SHAPE:
            yield name, delta
        else:
            raise UnsupportedModelError(
                f"{path}: {name!r} is square, and no other tensor tells which side lora_A belongs "
                "to; merge it with PEFT"
            )


def _version(config: Mapping[str, Any]) -> tuple[int, ...]:
    """PEFT's version; those before 0.18 did not note theirs."""
    found = re.match(r"(\d{1,5})\.(\d{1,5})", str(config.get("peft_version") or "0.17"))
    return tuple(map(int, found.groups())) if found else _SWAPS_BY_SHAPE


def _check_complete(
    config: Mapping[str, Any], hparams: HParams, path: Path, changed: set[str]
) -> None:
    """Raise ``CheckpointError`` when something is unchanged that PEFT would have changed by name.

    That shows an adapter of a shallower model: to one of 36 layers it fits in all that it has.
    """
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
                f"{path}: has nothing for {key!r}, which its config targets: the adapter is for "
                "another base"
            )


def _targeted(targets: Any, key: str) -> bool:
    """PEFT's rule for lists of names; a regular expression from a file is not run."""
    return isinstance(targets, list) and any(
        isinstance(target, str) and (key == target or key.endswith("." + target))
        for target in targets
    )
