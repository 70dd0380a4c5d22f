"""Checks a LoRA adapter in a GGUF before llama.cpp reads it, which ends the process at keys of a
wrong type.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from gguf.constants import GGMLQuantizationType

from gptoss.errors import GgufError, OptionError, quoted
from gptoss.formats.gguf import GgufFile, GgufTensor
from gptoss.formats.hparams import ARCHITECTURE
from gptoss.runtime.engine.settings import Lora
from gptoss.runtime.models.sizes import EMBEDDING

_TYPES = {
    GGMLQuantizationType.F32,
    GGMLQuantizationType.F16,
    GGMLQuantizationType.BF16,
    GGMLQuantizationType.Q8_0,
}
_EXPECTED = {
    "general.type": "adapter",
    "general.architecture": ARCHITECTURE,
    "adapter.type": "lora",
}
_ALORA = "adapter.alora.invocation_tokens"


def check_lora(lora: Lora, model: Mapping[str, GgufTensor]) -> None:
    """Check that an adapter fits the tensors of ``model``: its keys, names, types and shapes.

    Raises GgufError for the file, OptionError for the scale.
    """
    if not math.isfinite(lora.scale):
        raise OptionError(f"{lora.path}: the scale is {lora.scale}; it must be a finite number")
    file = GgufFile.open(lora.path)
    for key, expected in _EXPECTED.items():
        if file.metadata.get(key) != expected:
            found = quoted(file.metadata.get(key))
            raise GgufError(f"{lora.path}: {key} is {found}; a LoRA adapter has {expected!r}")
    alpha = file.metadata.get("adapter.lora.alpha")
    if not isinstance(alpha, float) or not math.isfinite(alpha):
        raise GgufError(f"{lora.path}: adapter.lora.alpha is {quoted(alpha)}; expected a number")
    if _ALORA in file.metadata:
        raise GgufError(f"{lora.path}: needs invocation tokens (aLoRA), which are not supported")
    stems = {name.removesuffix(".lora_a").removesuffix(".lora_b") for name in file.tensors}
    if not stems:
        raise GgufError(f"{lora.path}: has no tensors")
    for stem in sorted(stems):
        _check_pair(file, stem, model)


def _check_pair(file: GgufFile, stem: str, model: Mapping[str, GgufTensor]) -> None:
    """Check the two matrices of one adapted tensor; shapes are in ggml's order."""
    where = f"{file.path}: {stem}"
    a, b = file.tensors.get(f"{stem}.lora_a"), file.tensors.get(f"{stem}.lora_b")
    adapted = model.get(stem)
    if a is None or b is None:
        raise GgufError(f"{where}: needs both {stem}.lora_a and {stem}.lora_b")
    if adapted is None or len(adapted.shape) < 2 or stem == EMBEDDING:
        raise GgufError(f"{where}: the model has no such matrix; the adapter is of another model")
    if not {a.type, b.type} <= _TYPES:
        raise GgufError(f"{where}: its type is not one of F32, F16, BF16, Q8_0")
    columns, rows, *experts = adapted.shape
    rank = a.shape[1] if len(a.shape) > 1 else 0
    wanted = (columns, rank, *experts), (rank, rows, *experts)
    if rank < 1 or (tuple(a.shape), tuple(b.shape)) != wanted:
        raise GgufError(
            f"{where}: has matrices of {a.shape} and {b.shape}; the model's is {adapted.shape}"
        )
