"""LoRA adapters as PEFT saves them, and what a checkpoint is with one merged.

Written from PEFT's own formulas, one matrix product at a time, in doubles.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support import forms, safetensors_files
from support.safetensors_files import Contents

PREFIX = "base_model.model."
EXPERTS = ("gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Lora:
    """An adapter to write: ``targets`` are names of parameters as transformers has them."""

    targets: tuple[str, ...]
    rank: int = 4
    alpha: float = 8.0
    config: Mapping[str, Any] = field(default_factory=dict)
    swapped: bool = False
    dtype: str = "F32"
    seed: int = 0


def shapes_of(base: Path) -> dict[str, list[int]]:
    """The shapes of a checkpoint's parameters as transformers has them; experts inputs first."""
    shapes = {}
    for name, (_, shape, _) in forms.contents(base).items():
        shapes[name] = shape
        if name.endswith("_blocks"):
            experts, outputs, n_blocks, _ = shape
            shapes[name.removesuffix("_blocks")] = [experts, n_blocks * 32, outputs]
    return shapes


def write(folder: Path, base: Path, lora: Lora) -> Contents:
    """Write an adapter of the checkpoint ``base``; returns its tensors."""
    shapes = shapes_of(base)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(lora.seed)
    tensors: Contents = {}
    for target in lora.targets:
        *experts, first, second = shapes[target]
        inputs, outputs = (first, second) if experts else (second, first)
        if experts and lora.swapped:
            inputs, outputs = outputs, inputs
        n = experts[0] if experts else 1
        a = rng.standard_normal((n * lora.rank, inputs)) / np.sqrt(inputs)
        b = rng.standard_normal((outputs, n * lora.rank)) * 0.1
        for matrix, values in (("A", a), ("B", b)):
            name = f"{PREFIX}{_module(target, lora.targets)}.lora_{matrix}.weight"
            tensors[name] = forms.tensor(values, lora.dtype)
    config = {
        "peft_type": "LORA",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "bias": "none",
        "base_model_name_or_path": "somewhere/gpt-oss",
        "target_modules": [],
        "peft_version": "0.18.0",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | dict(lora.config)))
    safetensors_files.save(folder / "adapter_model.safetensors", tensors)
    return tensors


def _module(target: str, targets: tuple[str, ...]) -> str:
    """The wrapped module; of two tensors of one module gate_up_proj is wrapped first."""
    module, _, part = target.rpartition(".")
    if part not in EXPERTS:
        return module
    inner = part == "gate_up_proj" and f"{module}.down_proj" in targets
    return f"{module}.base_layer" if inner else module


def delta(tensors: Contents, target: str, lora: Lora, experts: int) -> NDArray[np.float64]:
    """What is to be added to ``target``, in the shape transformers has."""
    name = PREFIX + _module(target, lora.targets)
    a, b = (
        forms.numbers(tensors[f"{name}.lora_{matrix}.weight"]).astype(np.float64) for matrix in "AB"
    )
    scale = lora.alpha / lora.rank
    if lora.config.get("use_rslora"):
        scale = lora.alpha / np.sqrt(lora.rank)
    if not target.endswith(EXPERTS):
        return scale * (b @ a)
    a = a.reshape(experts, lora.rank, -1)
    b = b.reshape(-1, lora.rank, experts)
    order = "ore,eri->eoi" if lora.swapped else "ore,eri->eio"
    product: NDArray[np.float64] = np.einsum(order, b, a)
    return scale * product


def merge(folder: Path, adapter: Contents, lora: Lora, experts: int) -> None:
    """Add the adapter to a checkpoint in one file of F32."""
    path = folder / "model.safetensors"
    tensors = safetensors_files.load(path)
    for target in lora.targets:
        whole = forms.numbers(tensors[target]) + delta(adapter, target, lora, experts)
        tensors[target] = forms.tensor(whole, "F32")
    safetensors_files.save(path, tensors)
