"""llama.cpp on our GGUF against transformers on the checkpoint it was made from.

Random routers are often nearly undecided between the last expert chosen and the first one left
out, and then any rounding turns the choice: transformers in BF16 differs from itself in float32
by a mean KL of 0.002 to 0.05 on such checkpoints. So the mean is taken where every expert is
used, over all tokens; and where experts are chosen, over the tokens at which the reference chose
clearly in every layer, with the median over all tokens beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss.converter.convert import convert
from support import peers
from support.checkpoints import random_checkpoint

pytestmark = pytest.mark.oracle

N_TOKENS = 640
"""Five times the sliding window of 128."""
MAX_MEAN_KL = 5e-4
CLEAR = 0.05
"""Least distance of router logits, whose spread is about 1, for a choice to count as clear."""


@dataclass(frozen=True)
class Shape:
    """A random checkpoint's shape; with ``top_k`` below ``experts`` there is a choice to make."""

    hidden: int
    layers: int
    experts: int
    top_k: int
    vocab: int
    more: dict[str, Any]


SHAPES = {
    "all experts": Shape(128, 4, 4, 4, 1000, {"heads": 4, "kv_heads": 2}),
    "all experts, oblong": Shape(192, 3, 6, 6, 600, {"intermediate": 96, "shards": 2}),
    "2 of 6, old rope keys": Shape(192, 3, 6, 2, 600, {"rope_schema": "rope_scaling"}),
    "4 of 8": Shape(128, 4, 8, 4, 1000, {}),
    "full vocabulary": Shape(64, 2, 4, 4, 201088, {}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_logits_agree(name: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    checkpoint = random_checkpoint(
        tmp_path / "checkpoint",
        hidden=shape.hidden,
        layers=shape.layers,
        experts=shape.experts,
        top_k=shape.top_k,
        vocab=shape.vocab,
        tokenizer_folder=peers.tokenizer() if shape.vocab == 201088 else None,
        seed=8,
        **shape.more,
    )
    gguf = tmp_path / "model.gguf"
    convert(checkpoint, gguf, dense="bf16")
    ids = np.random.default_rng(1).integers(0, shape.vocab, N_TOKENS).tolist()

    reference, margin = transformers_logits(checkpoint, ids, shape.top_k)
    expected = log_softmax(reference)
    ours = log_softmax(llama_logits(gguf, ids))
    kl = (np.exp(expected) * (expected - ours)).sum(axis=1)
    clear = margin >= CLEAR
    same_top = (expected.argmax(axis=1) == ours.argmax(axis=1)).mean()
    print(
        f"{name}: mean KL {kl[clear].mean():.2e} over {clear.sum()} clearly routed tokens, "
        f"median {np.median(kl):.2e}, mean {kl.mean():.2e} over all {N_TOKENS}, "
        f"same top token {same_top:.1%}"
    )
    assert clear.sum() >= 256
    assert kl[clear].mean() <= MAX_MEAN_KL
    assert np.median(kl) <= MAX_MEAN_KL
    # The agreement says something only of a model whose predictions differ from one another.
    other = np.roll(expected, 1, axis=0)
    assert (np.exp(expected) * (expected - other)).sum(axis=1).mean() > 1000 * MAX_MEAN_KL


def transformers_logits(
    checkpoint: Path, ids: list[int], top_k: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logits (tokens, vocabulary) in float32 with the experts dequantized, and for each token
    the router's least margin between chosen and left-out experts (infinite if none is left)."""
    import torch
    from transformers import GptOssForCausalLM

    model = GptOssForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).float()
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_router_logits=True)
    margins = [np.full(len(ids), np.inf)]
    for router in out.router_logits:
        scores = np.sort(router.numpy(), axis=1)
        if top_k < scores.shape[1]:
            margins.append(scores[:, -top_k] - scores[:, -top_k - 1])
    return np.asarray(out.logits[0].numpy(), np.float64), np.min(margins, axis=0)


def llama_logits(gguf: Path, ids: list[int]) -> NDArray[np.float64]:
    """Logits (tokens, vocabulary) of llama-cpp-python's own class, not of our engine."""
    from llama_cpp import Llama

    model = Llama(str(gguf), n_ctx=N_TOKENS, n_batch=N_TOKENS, logits_all=True, verbose=False)
    model.eval(ids)
    logits = np.array(model.scores[: len(ids)], dtype=np.float64)
    model.close()
    return logits


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithms of the probabilities, along the last axis."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
