"""llama.cpp on our GGUF against transformers on the checkpoint it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss.converter.convert import convert
from support import peers
from support.checkpoints import random_checkpoint

pytestmark = pytest.mark.oracle

N_TOKENS = 320
"""More than twice the sliding window of 128."""
MAX_MEAN_KL = 5e-4

SHAPES: dict[str, dict[str, Any]] = {
    "small": {"hidden": 128, "layers": 4, "experts": 4, "vocab": 1000},
    "oblong": {"hidden": 192, "intermediate": 96, "layers": 3, "experts": 6, "heads": 4,
               "kv_heads": 2, "vocab": 600, "rope_schema": "rope_scaling", "shards": 2},
    "full vocabulary": {"hidden": 64, "layers": 2, "experts": 4, "vocab": 201088},
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_logits_agree(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    full = {"tokenizer_folder": peers.tokenizer()} if shape["vocab"] > 2000 else {}
    checkpoint = random_checkpoint(tmp_path / "checkpoint", seed=7, **shape, **full)
    gguf = tmp_path / "model.gguf"
    convert(checkpoint, gguf, dense="bf16")
    ids = np.random.default_rng(1).integers(0, shape["vocab"], N_TOKENS).tolist()

    expected = log_softmax(transformers_logits(checkpoint, ids))
    ours = log_softmax(llama_logits(gguf, ids))
    kl = (np.exp(expected) * (expected - ours)).sum(axis=1)
    same_top = (expected.argmax(axis=1) == ours.argmax(axis=1)).mean()
    print(f"{name}: mean KL {kl.mean():.2e}, largest {kl.max():.2e}, same top {same_top:.1%}")
    assert kl.mean() <= MAX_MEAN_KL
    # The agreement says something only of a model whose predictions differ from one another.
    assert (np.exp(expected) * (expected - np.roll(expected, 1, axis=0))).sum(axis=1).mean() > 0.1


def transformers_logits(checkpoint: Path, ids: list[int]) -> NDArray[np.float64]:
    """Logits (tokens, vocabulary) in float32, the MXFP4 experts dequantized by transformers."""
    import torch
    from transformers import GptOssForCausalLM

    model = GptOssForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).float()
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    return np.asarray(logits.numpy(), dtype=np.float64)


def llama_logits(gguf: Path, ids: list[int]) -> NDArray[np.float64]:
    """Logits (tokens, vocabulary) of llama-cpp-python's own class, not of our engine."""
    from llama_cpp import Llama

    model = Llama(str(gguf), n_ctx=512, n_batch=512, logits_all=True, verbose=False)
    model.eval(ids)
    logits = np.array(model.scores[: len(ids)], dtype=np.float64)
    model.close()
    return logits


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithms of the probabilities, along the last axis."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
