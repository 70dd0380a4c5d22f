"""Which tensor a pair of an adapter changes, and how: found from names, shapes and the config."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gptoss.converter.lora.deltas import AnyDelta, Delta, ExpertPair, ExpertPairs
from gptoss.errors import CheckpointError, UnsupportedModelError, quoted
from gptoss.formats.expert_modules import ExpertModule, parse_expert_module
from gptoss.formats.hparams import HParams
from gptoss.formats.safetensors import TensorInfo
from gptoss.formats.tensor_map import HfTensor, Rows, parameters

WRAPPED = ".base_layer"
"""In names, where one experts module has two adapted tensors: the inner one's."""

_SWAPS_BY_SHAPE = (0, 19)
"""From this version on PEFT has sometimes taken experts' inputs for outputs, and their outputs."""

Pairs = Mapping[str, tuple[TensorInfo, TensorInfo]]
"""A and B by the module that they belong to."""


def find_deltas(
    pairs: Pairs, config: Mapping[str, Any], hparams: HParams, config_path: Path
) -> dict[str, AnyDelta]:
    """Find which checkpoint tensor each A, B pair of an adapter targets, from names, shapes and the
    config; returns the deltas by tensor name.

    Raises ``CheckpointError`` when a pair fits no tensor, or two change the same one;
    ``UnsupportedModelError`` when its target cannot be determined.
    """
    finder = _Finder(config, config_path, parameters(hparams))
    found: dict[str, AnyDelta] = {}
    experts: dict[str, dict[int, dict[Rows, ExpertPair]]] = {}
    for module, (a, b) in pairs.items():
        finder.check_product(module, a, b)
        expert = parse_expert_module(module)
        if expert is None:
            name, delta = finder.delta(module, a, b)
            if name in found:
                raise CheckpointError(f"{a.file}: has two deltas for {name!r}")
            found[name] = delta
            continue
        rows = experts.setdefault(expert.parameter, {}).setdefault(expert.expert, {})
        if rows and (expert.rows in rows or Rows.ALL in (*rows, expert.rows)):
            raise CheckpointError(f"{a.file}: has two deltas for an expert of {expert.parameter!r}")
        rows[expert.rows] = finder.expert_pair(module, expert, a, b)
    for name, by_expert in experts.items():
        if name in found:
            raise CheckpointError(f"{config_path.parent}: has two deltas for {name!r}")
        found[name] = ExpertPairs(by_expert)
    return dict(_with_sides(found, config, config_path))


class _Finder:
    """What pairs mean, by the config and their shapes."""

    def __init__(
        self, config: Mapping[str, Any], path: Path, known: Mapping[str, HfTensor]
    ) -> None:
        self._config = config
        self._path = path
        self._parameters = known

    def check_product(self, module: str, a: TensorInfo, b: TensorInfo) -> None:
        """Raise ``CheckpointError`` unless the shapes of an adapter pair allow B @ A."""
        if len(a.shape) == len(b.shape) == 3:
            raise UnsupportedModelError(
                f"{a.file}: {quoted(module)} stores all experts in one 3-D tensor, as in "
                "Tinker's own format; export the adapter to PEFT's format first "
                "(tinker_cookbook.weights.build_lora_adapter)"
            )
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
            raise CheckpointError(
                f"{a.file}: lora_A {a.shape} and lora_B {b.shape} of {quoted(module)} do not make "
                "a product"
            )

    def delta(self, module: str, a: TensorInfo, b: TensorInfo) -> tuple[str, Delta]:
        """Find the checkpoint tensor that an adapter pair targets, by its module's name, and how
        the pair changes it.
        """
        while module.endswith(WRAPPED):
            module = module.removesuffix(WRAPPED)
        if module.endswith(".mlp.experts"):
            return self._experts(module, a, b)
        name = module + ".weight"
        target = self._parameters.get(name)
        if target is None or len(target.shape) != 2:
            raise CheckpointError(
                f"{a.file}: the adapter of {quoted(module)} matches no gpt-oss matrix, "
                "or the base has fewer layers than the adapter's"
            )
        if target.shape != (b.shape[0], a.shape[1]):
            raise _other_base(module, a, b, target.shape)
        return name, Delta(a, b, a.shape[0], self._scale(module, a.shape[0]))

    def expert_pair(
        self, module: str, expert: ExpertModule, a: TensorInfo, b: TensorInfo
    ) -> ExpertPair:
        """Find the target of a single expert's A, B pair: that expert's rows of the checkpoint's
        stacked tensor.
        """
        target = self._parameters.get(expert.parameter)
        if target is None or expert.expert >= target.shape[0]:
            raise CheckpointError(
                f"{a.file}: the adapter of {quoted(module)} matches no tensor: the base has fewer "
                "layers or experts than the adapter's"
            )
        _, inputs, outputs = target.shape
        if expert.rows is not Rows.ALL:
            outputs //= 2
        if (b.shape[0], a.shape[1]) != (outputs, inputs):
            raise _other_base(module, a, b, (outputs, inputs))
        return ExpertPair(a, b, a.shape[0], self._scale(module, a.shape[0]))

    def _experts(self, module: str, a: TensorInfo, b: TensorInfo) -> tuple[str, Delta]:
        """Find which tensor of an experts module a pair targets, gate_up_proj or down_proj: shapes
        show it, names do not.
        """
        for part in ("gate_up_proj", "down_proj"):
            name = f"{module}.{part}"
            target = self._parameters.get(name)
            if target is None:
                raise CheckpointError(
                    f"{a.file}: the adapter of {quoted(module)} matches no tensor: the base has "
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
        raise _other_base(module, a, b, self._parameters[f"{module}.down_proj"].shape)

    def _scale(self, key: str, rank: int) -> float:
        """Compute a pair's scale, alpha / rank; the config may give a target module an alpha of its
        own.
        """
        alpha = self._config.get("lora_alpha")
        patterns = self._config.get("alpha_pattern") or {}
        if not isinstance(patterns, dict):
            raise CheckpointError(f"{self._path}: alpha_pattern is not an object")
        for pattern, value in patterns.items():
            if _matches(pattern, key, self._path):
                alpha = value
                break
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1e6:
            raise CheckpointError(
                f"{self._path}: lora_alpha is {quoted(alpha)}; expected a positive number"
            )
        return float(alpha) / (math.sqrt(rank) if self._config.get("use_rslora") else rank)


def _other_base(
    module: str, a: TensorInfo, b: TensorInfo, shape: tuple[int, ...]
) -> CheckpointError:
    return CheckpointError(
        f"{a.file}: lora_A {a.shape} and lora_B {b.shape} of {quoted(module)} do not fit "
        f"{shape}: the adapter is for another base"
    )


def _matches(pattern: str, key: str, where: Path) -> bool:
    """Check whether an adapter config's pattern is the name of a target module, or the end of one.

    PEFT takes it as a regular expression. One that is more than a name is refused: it comes from a
    file, and matching it could take unlimited time.
    """
    if not re.fullmatch(r"[\w.]{1,200}", pattern):
        raise UnsupportedModelError(
            f"{where}: the pattern {quoted(pattern)} is a regular expression; only plain module "
            "names are supported"
        )
    return key == pattern or key.endswith("." + pattern)


def _with_sides(
    deltas: Mapping[str, AnyDelta], config: Mapping[str, Any], config_path: Path
) -> Iterator[tuple[str, AnyDelta]]:
    """Decide what the shapes of a pair's target leave open: of a square tensor, which side A
    belongs to.

    The adapter's other experts tensor shows it, for PEFT treats both alike. Alone, its version may.
    """
    packed = [it for it in deltas.values() if isinstance(it, Delta) and it.experts]
    shown = {it.swapped for it in packed if it.a.shape[1] != it.b.shape[0]}
    for name, delta in deltas.items():
        if (
            delta not in packed
            or not isinstance(delta, Delta)
            or delta.a.shape[1] != delta.b.shape[0]
        ):
            yield name, delta
        elif len(shown) == 1:
            yield name, replace(delta, swapped=next(iter(shown)))
        elif _version(config) < _SWAPS_BY_SHAPE:
            yield name, delta
        else:
            raise UnsupportedModelError(
                f"{config_path}: {name!r} is square, and no other tensor shows which side lora_A "
                "belongs to; merge it with PEFT"
            )


def _version(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Read PEFT's version from the adapter's config; releases before 0.18 did not note theirs."""
    found = re.match(r"(\d{1,5})\.(\d{1,5})", str(config.get("peft_version") or "0.17"))
    return tuple(map(int, found.groups())) if found else _SWAPS_BY_SHAPE
