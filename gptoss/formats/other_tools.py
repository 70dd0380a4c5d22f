"""Map the tensor names that other tools write to Hugging Face's.

- A wrapper's prefix: PEFT's ``base_model.model.``, DataParallel's ``module.``, torch.compile's
  ``_orig_mod.``. It is removed if every tensor has it.
- transformers 5.0 to 5.4 add a suffix twice when saving MXFP4 experts:
  ``gate_up_proj_blocks_blocks`` and ``gate_up_proj_blocks_scales``.
- Unsloth wraps the router: ``mlp.router.linear.weight``.

Two kinds of checkpoint are detected only to report what they are: those saved with an unmerged
adapter, and those made for MLX. For experts stored as one tensor each, see ``expert_stack``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from gptoss.errors import CheckpointError, UnsupportedModelError, quoted
from gptoss.formats.safetensors import TensorInfo

PREFIXES = ("base_model.model.", "module.", "_orig_mod.")
"""Prefixes that wrappers add to every name."""

_UNMERGED = re.compile(
    r"\.(base_layer|lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|modules_to_save"
    r"|original_module)\."
)
_MLX = re.compile(
    r"model\.(layers\.\d+\.mlp\.experts\.(gate|up|down)_proj\.(weight|scales|bias|biases)"
    r"|(layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.router)|embed_tokens)\.(scales|biases))"
    r"|lm_head\.(scales|biases)"
)
_DOUBLED = re.compile(r"(.*\.(?:gate_up|down)_proj)_(?:blocks|scales)(_(?:blocks|scales|bias))")
_WRAPPED_ROUTER = re.compile(r"(.*\.mlp\.router)\.linear(\.(?:weight|bias))")


def standard_names(tensors: Mapping[str, TensorInfo], folder: Path) -> dict[str, TensorInfo]:
    """Rename a checkpoint's tensors that other tools named differently to Hugging Face's names.

    Raises ``CheckpointError`` if an adapter was not merged or two tensors would have the same name,
    ``UnsupportedModelError`` for a checkpoint made for MLX.
    """
    found: dict[str, TensorInfo] = {}
    for name, info in without_prefix(tensors).items():
        _check_known_form(name, info, folder)
        name = standard_name(name)
        if name in found:
            raise CheckpointError(
                f"{info.file}: {quoted(info.name)} and {quoted(found[name].name)} are both "
                f"{quoted(name)}; remove one of them"
            )
        found[name] = info
    return found


def without_prefix(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Strip the prefixes of other tools' wrappers that all tensor names of a checkpoint share."""
    found = dict(tensors)
    while found:
        prefix = next((it for it in PREFIXES if all(name.startswith(it) for name in found)), None)
        if prefix is None:
            break
        found = {name.removeprefix(prefix): info for name, info in found.items()}
    return found


def standard_name(name: str) -> str:
    """Convert one tensor name as spelled by another tool to Hugging Face's spelling."""
    for pattern in (_DOUBLED, _WRAPPED_ROUTER):
        found = pattern.fullmatch(name)
        if found:
            return "".join(found.groups())
    return name


def _check_known_form(name: str, info: TensorInfo, folder: Path) -> None:
    if _UNMERGED.search(name):
        raise CheckpointError(
            f"{info.file}: holds {quoted(info.name)}: the model was saved with an adapter that was "
            "not merged; merge it (PEFT: model.merge_and_unload()) and save again, or convert the "
            "base with --lora ADAPTER"
        )
    if _MLX.fullmatch(name):
        raise UnsupportedModelError(
            f"{folder}: is an MLX checkpoint ({quoted(info.name)}); convert the Hugging Face "
            "checkpoint that it was made from"
        )
