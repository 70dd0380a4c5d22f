"""Checkpoints as other tools save them, made from one as transformers has it.

Each is written from the tool's own code, name by name, and shares nothing with the tables of the
code under test.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from support import forms, safetensors_files
from support.safetensors_files import Contents

Layout = Callable[[Contents], Contents]


def write(source: Path, out: Path, layout: Layout) -> Path:
    """``out`` becomes the checkpoint ``source`` (in one file) in another tool's layout."""
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.safetensors*"))
    safetensors_files.save(out / "model.safetensors", layout(forms.contents(source)))
    return out


def doubled(tensors: Contents) -> Contents:
    """As transformers 5.4 saves experts in MXFP4."""
    return {
        re.sub(r"_proj_(blocks|scales)$", r"_proj_blocks_\1", name): entry
        for name, entry in tensors.items()
    }


def prefixed(prefix: str) -> Layout:
    """As a wrapper of the model names its tensors."""
    return lambda tensors: {prefix + name: entry for name, entry in tensors.items()}


def unsloth(tensors: Contents) -> Contents:
    """As Unsloth's GptOssExpertsBnb4bit holds them: a Linear for each expert, router.linear."""
    return _per_expert(
        tensors, {"gate_up_proj": ["gate_up_projs.{e}"], "down_proj": ["down_projs.{e}"]}
    )


def linear_experts(tensors: Contents) -> Contents:
    """As models whose experts were made Linear modules: gate, up and down of each."""
    names = {"gate_up_proj": ["{e}.gate_proj", "{e}.up_proj"], "down_proj": ["{e}.down_proj"]}
    return _per_expert(tensors, names, router="router")


def _per_expert(
    tensors: Contents, names: dict[str, list[str]], router: str = "router.linear"
) -> Contents:
    """Experts cut apart: a Linear's weight is [outputs, inputs], gate and up take every second."""
    new: Contents = {}
    for name, (dtype, shape, raw) in tensors.items():
        found = re.fullmatch(r"(.*\.experts\.)(gate_up_proj|down_proj)(_bias)?", name)
        if not found:
            new[name.replace(".mlp.router.", f".mlp.{router}.")] = (dtype, shape, raw)
            continue
        unit = {"BF16": "<u2", "F16": "<u2", "F32": "<u4"}[dtype]
        values = np.frombuffer(raw, unit).reshape(shape)
        for e, expert in enumerate(values):
            whole = expert if found[3] else expert.T
            parts = names[found[2]]
            for k, part in enumerate(parts):
                own = np.ascontiguousarray(whole[k :: len(parts)])
                kind = "bias" if found[3] else "weight"
                new[f"{found[1]}{part.format(e=e)}.{kind}"] = (dtype, [*own.shape], own.tobytes())
    return new
