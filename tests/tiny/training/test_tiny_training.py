"""The training code's model against transformers', its quantization against this project's."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from gptoss.quant import mxfp4
from gptoss.quant.mxfp4.encoder import encode
from support import peers
from tiny.training.score import CHECKPOINT

pytestmark = pytest.mark.oracle


def _batch(ids: Any) -> Any:
    import torch

    from tiny.training.model import Batch

    rows, length = ids.shape
    places = torch.arange(rows * length)
    position = torch.arange(length).expand(rows, length)
    return Batch(ids, position, torch.zeros_like(ids), places, torch.zeros_like(places))


def test_logits_are_transformers() -> None:
    """Random weights of some size everywhere, more tokens than the window, float32."""
    import torch
    from transformers import GptOssConfig, GptOssForCausalLM

    from tiny.training import checkpoint
    from tiny.training.model import EXPERTS, Shape, forward, init_params

    shape = Shape(
        vocab=500, hidden=160, intermediate=64, layers=4, heads=4, kv_heads=2, experts=6,
        experts_used=3,
    )  # fmt: skip
    rng = torch.Generator().manual_seed(5)
    params = init_params(shape, seed=3)
    for name, weight in params.items():
        if name.endswith(("bias", "sinks")):
            params[name] = torch.randn(weight.shape, generator=rng) / 2
    keys = checkpoint.config(shape, {"<|return|>": 2, "<|endoftext|>": 1})
    del keys["quantization_config"]
    reference = GptOssForCausalLM(GptOssConfig(**keys)).float().eval()
    theirs = {
        n: w.transpose(1, 2).contiguous() if n.endswith(EXPERTS) else w for n, w in params.items()
    }
    reference.load_state_dict(theirs)
    ids = torch.randint(0, shape.vocab, (2, 300), generator=rng)
    with torch.no_grad():
        ours = forward(params, shape, _batch(ids)).view(2, 300, -1)
        expected = reference(ids).logits
    assert (ours - expected).abs().max() < 1e-4 * expected.abs().max()


def test_branches_of_a_row_do_not_see_each_other() -> None:
    """A branch behind the prefix has the logits that it has alone."""
    import torch

    from tiny.training.model import Shape, forward, init_params
    from tiny.training.rows import Row, batch_of

    shape = Shape(
        vocab=300, hidden=128, intermediate=64, layers=4, heads=2, kv_heads=1, experts=4,
        experts_used=2,
    )  # fmt: skip
    params = init_params(shape, seed=1)
    rng = np.random.default_rng(0)
    prefix, one, two = (rng.integers(0, 300, n).tolist() for n in (150, 40, 30))

    def logits(*branches: list[int]) -> Any:
        row = Row(prefix, list(range(150)), [0] * 150, [False] * 150)
        for number, ids in enumerate(branches, 1):
            row.ids = row.ids + ids
            row.position = row.position + list(range(150, 150 + len(ids)))
            row.branch = row.branch + [number] * len(ids)
            row.learned = row.learned + [number == len(branches)] * len(ids)
        with torch.no_grad():
            return forward(params, shape, batch_of([row], 256))

    # The id before a branch's first one is the row's, not the prefix's: compare from the second.
    assert torch.allclose(logits(one, two)[1:], logits(two)[1:], atol=1e-5)


def test_fake_quantization_is_the_encoder_s() -> None:
    import torch

    from tiny.training.model import mxfp4_values

    rng = np.random.default_rng(0)
    weight = (rng.normal(size=(64, 32)) * np.exp2(rng.integers(-20, 20, (64, 1)))).astype("f4")
    weight[0] = 0
    encoded = encode(weight)
    decoded = mxfp4.decode(mxfp4.codes_from_hf(encoded.blocks), encoded.scales)
    assert np.array_equal(mxfp4_values(torch.from_numpy(weight)).numpy(), decoded[:, 0])


def test_tokenizer_is_cut_from_the_real_one() -> None:
    from tiny.training.vocabulary import cut_down

    bundled = json.loads((CHECKPOINT / "tokenizer.json").read_text("utf-8"))
    assert cut_down(peers.tokenizer() / "tokenizer.json", len(bundled["model"]["vocab"])) == bundled
