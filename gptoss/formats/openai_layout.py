"""OpenAI's own layout (``original/`` in the published repositories), mapped to Hugging Face's.

It holds the same values under other names, with q, k and v in one tensor. No value has to move:
each Hugging Face tensor is a byte range in a file of this layout, so code that reads checkpoints
needs no special case. The config has other keys.

Source: https://github.com/openai/gpt-oss, ``gpt_oss/torch``.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptoss.errors import CheckpointError, quoted
from gptoss.formats.hparams import HParams
from gptoss.formats.safetensors import TensorInfo
from gptoss.formats.tensor_map import OPENAI, HfTensor, hf_tensors

_CONFIG = {
    "num_hidden_layers": "num_hidden_layers",
    "num_experts": "num_local_experts",
    "experts_per_token": "num_experts_per_tok",
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "swiglu_limit": "swiglu_limit",
    "head_dim": "head_dim",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "sliding_window": "sliding_window",
    "rope_theta": "rope_theta",
}
_ROPE = {
    "rope_scaling_factor": "factor",
    "initial_context_length": "original_max_position_embeddings",
    "rope_ntk_alpha": "beta_slow",
    "rope_ntk_beta": "beta_fast",
}
"""Hugging Face's names of this layout's keys."""

RMS_NORM_EPS = 1e-5
"""A constant in OpenAI's code; its config has no key for it."""


def is_config(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json is in OpenAI's original layout; Hugging Face's always has a
    model_type.
    """
    return "model_type" not in config and "num_experts" in config


def is_layout(names: Container[str]) -> bool:
    """Return whether tensor names are those of OpenAI's original layout."""
    return "embedding.weight" in names


def hf_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Convert a config of OpenAI's original layout to Hugging Face's keys. Raises
    ``CheckpointError`` for a missing or bad key.

    The context length is YaRN's extended one: initial_context_length times the factor.
    """
    for key in (*_CONFIG, *_ROPE):
        if key not in config:
            raise CheckpointError(f"{where}: {key} is missing; OpenAI's layout has it")
    initial, factor = config["initial_context_length"], config["rope_scaling_factor"]
    for key in ("initial_context_length", "rope_scaling_factor"):
        if type(config[key]) not in (int, float) or not 0 < config[key] < 2**31:
            raise CheckpointError(
                f"{where}: {key} is {str(config[key])[:60]}; expected a positive number"
            )
    rope = {ours: config[key] for key, ours in _ROPE.items()}
    return {
        "model_type": "gpt_oss",
        **{ours: config[key] for key, ours in _CONFIG.items()},
        "max_position_embeddings": int(initial * factor),
        "rms_norm_eps": RMS_NORM_EPS,
        "rope_scaling": {"rope_type": "yarn", **rope},
    }


def hf_view(
    tensors: Mapping[str, TensorInfo], hparams: HParams, folder: Path
) -> dict[str, TensorInfo]:
    """View the tensors of OpenAI's original layout by Hugging Face name, each with the location of
    its bytes.

    The ``name`` of a part also gives its rows: ``block.0.attn.qkv.weight[4096:4608]``. Raises
    ``CheckpointError`` when a tensor is missing or unknown, or has another shape.
    """
    expected = openai_tensors(hparams)
    unknown = tensors.keys() - {tensor.name for tensor in expected}
    if unknown:
        name = min(unknown)
        raise CheckpointError(
            f"{tensors[name].file}: unknown tensor {quoted(name)}; a gpt-oss model of "
            f"{hparams.num_hidden_layers} layers does not have it in OpenAI's layout"
        )
    view: dict[str, TensorInfo] = {}
    for tensor in expected:
        found = tensors.get(tensor.name)
        if found is None:
            raise CheckpointError(f"{folder}: missing tensor {tensor.name!r}")
        if found.shape != tensor.shape:
            raise CheckpointError(
                f"{found.file}: tensor {tensor.name!r} has shape {found.shape}; config.json "
                f"implies {tensor.shape}"
            )
        view |= dict(_parts(found, tensor))
    return view


def _parts(found: TensorInfo, tensor: OpenAiTensor) -> Iterator[tuple[str, TensorInfo]]:
    if len(tensor.parts) == 1:
        yield tensor.parts[0].name, found
        return
    row, first = found.nbytes // found.shape[0], 0
    for part in tensor.parts:
        n = part.shape[0]
        yield (
            part.name,
            replace(
                found,
                name=f"{found.name}[{first}:{first + n}]",
                shape=part.shape,
                offset=found.offset + first * row,
                nbytes=n * row,
            ),
        )
        first += n


# --- the layout's tensors -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenAiTensor:
    """A tensor of OpenAI's layout, and Hugging Face's tensors that make up its rows, in order."""

    name: str
    parts: tuple[HfTensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the whole shape of a tensor in OpenAI's layout, over the Hugging Face tensors it
        consists of.
        """
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])


def openai_tensors(hparams: HParams) -> list[OpenAiTensor]:
    """List every tensor that a checkpoint in OpenAI's layout holds, with the Hugging Face tensors
    that make up its rows.
    """
    known = hf_tensors(hparams)
    parts: dict[str, list[HfTensor]] = {}
    for hf, openai in OPENAI.items():
        for i in range(hparams.num_hidden_layers if "{i}" in hf else 1):
            part = known[hf.replace("{i}", str(i))]
            parts.setdefault(openai.replace("{i}", str(i)), []).append(part)
    return [OpenAiTensor(name, tuple(found)) for name, found in parts.items()]
