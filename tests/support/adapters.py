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


# --- experts adapted one by one ---------------------------------------------------------------

FORMS = {
    "unsloth": {"gate_up_projs.{e}": ("gate_up_proj", 0, 1), "down_projs.{e}": ("down_proj", 0, 1)},
    "tinker": {
        "{e}.gate_proj": ("gate_up_proj", 0, 2),
        "{e}.up_proj": ("gate_up_proj", 1, 2),
        "{e}.down_proj": ("down_proj", 0, 1),
    },
}
"""Modules of an expert by tool: of which parameter, and of its outputs from which on which n-th."""


def write_per_expert(
    folder: Path, base: Path, form: str, layers: tuple[int, ...], lora: Lora, experts: int
) -> Contents:
    """Write an adapter with modules of their own for each expert; returns its tensors."""
    shapes = shapes_of(base)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(lora.seed)
    tensors: Contents = {}
    for layer in layers:
        for e in range(experts):
            for name, (part, _, every) in FORMS[form].items():
                prefix = f"model.layers.{layer}.mlp.experts."
                _, inputs, outputs = shapes[prefix + part]
                a = rng.standard_normal((lora.rank, inputs)) / np.sqrt(inputs)
                b = rng.standard_normal((outputs // every, lora.rank)) * 0.1
                module = PREFIX + prefix + name.format(e=e)
                tensors[f"{module}.lora_A.weight"] = forms.tensor(a, lora.dtype)
                tensors[f"{module}.lora_B.weight"] = forms.tensor(b, lora.dtype)
    config = {
        "peft_type": "LORA",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "base_model_name_or_path": "somewhere/gpt-oss",
        "target_modules": sorted({name.rpartition(".")[2] for name in FORMS[form]}),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | dict(lora.config)))
    safetensors_files.save(folder / "adapter_model.safetensors", tensors)
    return tensors


def stacked(
    tensors: Contents, form: str, layers: tuple[int, ...], lora: Lora, experts: int
) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """The same adapter as PEFT has it for a parameter of all experts: A and B by parameter.

    Gate and up become one pair: their ranks side by side, B with zeros in the other's rows.
    """
    found: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
    for layer in layers:
        prefix = f"model.layers.{layer}.mlp.experts."
        for part in EXPERTS:
            names = [(n, it[1:]) for n, it in FORMS[form].items() if it[0] == part]
            all_a, all_b = [], []
            for e in range(experts):
                modules = [(PREFIX + prefix + n.format(e=e), it) for n, it in names]
                pairs = [
                    [forms.numbers(tensors[f"{m}.lora_{x}.weight"]) for x in "AB"]
                    for m, _ in modules
                ]
                rank = lora.rank * len(pairs)
                b = np.zeros((len(pairs[0][1]) * len(pairs), rank), np.float32)
                for k, ((_, own), (_, (first, every))) in enumerate(
                    zip(pairs, modules, strict=True)
                ):
                    b[first::every, k * lora.rank : (k + 1) * lora.rank] = own
                all_a.append(np.concatenate([a for a, _ in pairs]))
                all_b.append(b)
            whole = np.stack(all_b, axis=-1)  # [outputs, rank, experts]
            found[prefix + part] = np.concatenate(all_a), whole.reshape(len(whole), -1)
    return found
