"""A PEFT LoRA adapter: which tensors of a checkpoint it changes, and by what.

An adapter has a pair of matrices for each tensor it changes: ``scale * B @ A`` is to be added, with
A [rank, inputs] and B [outputs, rank]. For experts, whose tensor has a dimension more, PEFT keeps
all experts' matrices in one pair: A [experts * rank, ...] with the experts outermost, B
[..., rank * experts] with them innermost. Tinker and Unsloth have a pair for each expert.

Nothing may be lost silently. A tensor of the adapter that matches no tensor of the checkpoint, a
kind of LoRA that adds something else, and a layer that the adapter should change and does not, are
errors.

Source: https://github.com/huggingface/peft, ``tuners/lora``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptoss.converter.lora import base_check
from gptoss.converter.lora.deltas import Adapter
from gptoss.converter.lora.targets import WRAPPED, find_deltas
from gptoss.errors import CheckpointError, UnsupportedModelError, quoted
from gptoss.formats.bounded_json import read_json
from gptoss.formats.byte_source import FileSource
from gptoss.formats.checkpoint import Checkpoint
from gptoss.formats.hparams import HParams
from gptoss.formats.other_tools import standard_name, without_prefix
from gptoss.formats.safetensors import FLOATS, TensorInfo, read_header
from gptoss.formats.tensor_map import parameters

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CONFIG_LIMIT = 2**22
HEADER_LIMIT = 2**23
"""Bytes of the weights' header; a pair for each expert of the 120b takes 4.3 million."""

_PART = re.compile(r"(?P<module>.+)\.lora_(?P<matrix>[AB])(?:\.default)?\.weight")

_OTHER_KINDS = ("use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out",
                "layer_replication", "trainable_token_indices", "kasa_config",
                "velora_config", "arrow_config", "alora_invocation_tokens")  # fmt: skip
"""Settings that, when set, make an adapter more than a product to be added."""
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of ``init_lora_weights`` with which the base itself is changed before training."""


def open_adapter(folder: Path, checkpoint: Checkpoint) -> Adapter:
    """Read a PEFT adapter's config and headers, and find which tensors of the checkpoint it
    changes.

    Raises ``CheckpointError`` when it is damaged, does not fit the checkpoint, or has a tensor that
    matches none of it; ``UnsupportedModelError`` when it is another kind of adapter.
    """
    config_path, path = folder / CONFIG, folder / WEIGHTS
    if not config_path.exists():
        raise CheckpointError(
            f"{config_path}: missing; the folder of a PEFT adapter has it, beside {WEIGHTS}"
        )
    config = read_json(config_path, CheckpointError, limit=CONFIG_LIMIT)
    _check_kind(config, config_path)
    if not path.exists():
        raise CheckpointError(f"{path}: missing; an adapter's weights must be in safetensors")
    hparams = checkpoint.hparams
    base_check.check_name(config, hparams, config_path)
    tensors = read_header(FileSource(path, CheckpointError), HEADER_LIMIT)
    pairs, replaced = _sort(tensors, hparams)
    deltas = find_deltas(pairs, config, hparams, config_path)
    base_check.check_complete(config, hparams, path, deltas, replaced)
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


def _sort(
    tensors: Mapping[str, TensorInfo], hparams: HParams
) -> tuple[dict[str, tuple[TensorInfo, TensorInfo]], dict[str, TensorInfo]]:
    """Sort an adapter file's tensors into A, B pairs by module and whole tensors, which replace the
    checkpoint's, by name.
    """
    halves: dict[str, dict[str, TensorInfo]] = {}
    replaced: dict[str, TensorInfo] = {}
    known = parameters(hparams)
    for full, info in without_prefix(tensors).items():
        where = f"{info.file}: tensor {quoted(info.name)}"
        if info.dtype not in FLOATS:
            raise CheckpointError(f"{where} is {info.dtype}; expected one of {', '.join(FLOATS)}")
        if part := _PART.fullmatch(full):
            module = standard_name(part["module"] + ".weight").removesuffix(".weight")
            if halves.setdefault(module, {}).setdefault(part["matrix"], info) is not info:
                raise CheckpointError(
                    f"{where}: duplicate lora_{part['matrix']} for {quoted(module)}"
                )
            continue
        name = standard_name(full.replace(WRAPPED, ""))
        if name not in known:
            raise CheckpointError(f"{where} matches no gpt-oss tensor")
        if info.shape != known[name].shape:
            raise CheckpointError(
                f"{where} has shape {info.shape}, the base's {known[name].shape}: the adapter is "
                "for another base"
            )
        if name in replaced:
            raise CheckpointError(f"{where}: duplicate tensor {quoted(name)}")
        replaced[name] = info
    return {module: _pair(module, half) for module, half in halves.items()}, replaced


def _pair(module: str, half: Mapping[str, TensorInfo]) -> tuple[TensorInfo, TensorInfo]:
    if len(half) != 2:
        [(matrix, info)] = half.items()
        missing = "B" if matrix == "A" else "A"
        raise CheckpointError(
            f"{info.file}: {quoted(module)} has lora_{matrix} but no lora_{missing}"
        )
    return half["A"], half["B"]
