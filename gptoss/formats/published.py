"""Settings that gpt-oss-20b and gpt-oss-120b share, and that tensor shapes do not show.

Source: their published ``config.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptoss.formats.hparams import GGUF_KEYS

HPARAMS: Mapping[str, int | float] = {
    "max_position_embeddings": 131072,
    "num_experts_per_tok": 4,
    "rms_norm_eps": 1e-5,
    "rope_theta": 150000.0,
    "sliding_window": 128,
    "yarn_beta_fast": 32.0,
    "yarn_beta_slow": 1.0,
    "yarn_factor": 32.0,
    "yarn_original_context": 4096,
}
"""Values by field of ``HParams``."""

ROPE_SCALING: Mapping[str, Any] = {
    "rope_type": "yarn",
    "factor": HPARAMS["yarn_factor"],
    "original_max_position_embeddings": HPARAMS["yarn_original_context"],
    "beta_fast": HPARAMS["yarn_beta_fast"],
    "beta_slow": HPARAMS["yarn_beta_slow"],
    "truncate": False,
}
"""``rope_scaling`` of a ``config.json``."""

ROPE_KEYS: Mapping[str, str | int | float] = {
    GGUF_KEYS["rope_theta"]: HPARAMS["rope_theta"],
    "gpt-oss.rope.scaling.type": "yarn",
    GGUF_KEYS["yarn_factor"]: HPARAMS["yarn_factor"],
    GGUF_KEYS["yarn_original_context"]: HPARAMS["yarn_original_context"],
}
"""Keys of a GGUF whose absence makes llama.cpp compute other positions."""
