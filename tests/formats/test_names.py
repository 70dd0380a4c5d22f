"""The table of names against the published models' counts and a few rows written out."""

from __future__ import annotations

import math

import pytest

from gptoss.formats.tensor_map import Rows, TensorRole, hf_tensors, tensors
from support.checkpoints import GPT_OSS_20B


def test_the_20b_model_has_the_published_size() -> None:
    """459 tensors in the GGUF; 13,761,264,768 bytes of weights in the checkpoint."""
    named = list(tensors(GPT_OSS_20B))
    assert len(named) == len({tensor.gguf for tensor in named}) == 459
    sizes = {"U8": 1, "BF16": 2}
    total = sum(math.prod(t.shape) * sizes[t.dtype] for t in hf_tensors(GPT_OSS_20B).values())
    assert total == 13_761_264_768


@pytest.mark.parametrize(
    ("gguf", "ggml_shape", "sources"),
    [
        (
            "token_embd.weight",
            (2880, 201088),
            [("model.embed_tokens.weight", "BF16", (201088, 2880))],
        ),
        ("output.weight", (2880, 201088), [("lm_head.weight", "BF16", (201088, 2880))]),
        ("blk.23.attn_sinks.weight", (64,), [("model.layers.23.self_attn.sinks", "BF16", (64,))]),
        (
            "blk.3.attn_output.weight",
            (4096, 2880),
            [("model.layers.3.self_attn.o_proj.weight", "BF16", (2880, 4096))],
        ),
        (
            "blk.0.ffn_up_exps.weight",
            (2880, 2880, 32),
            [
                ("model.layers.0.mlp.experts.gate_up_proj_blocks", "U8", (32, 5760, 90, 16)),
                ("model.layers.0.mlp.experts.gate_up_proj_scales", "U8", (32, 5760, 90)),
            ],
        ),
        (
            "blk.0.ffn_gate_exps.bias",
            (2880, 32),
            [("model.layers.0.mlp.experts.gate_up_proj_bias", "BF16", (32, 5760))],
        ),
        (
            "blk.7.ffn_down_exps.weight",
            (2880, 2880, 32),
            [
                ("model.layers.7.mlp.experts.down_proj_blocks", "U8", (32, 2880, 90, 16)),
                ("model.layers.7.mlp.experts.down_proj_scales", "U8", (32, 2880, 90)),
            ],
        ),
    ],
)  # fmt: skip
def test_rows(
    gguf: str, ggml_shape: tuple[int, ...], sources: list[tuple[str, str, tuple[int, ...]]]
) -> None:
    tensor = {tensor.gguf: tensor for tensor in tensors(GPT_OSS_20B)}[gguf]
    assert tensor.ggml_shape == ggml_shape
    assert [(s.name, s.dtype, s.shape) for s in tensor.sources] == sources


def test_gate_takes_even_rows_and_up_odd_ones() -> None:
    found = {tensor.gguf: tensor for tensor in tensors(GPT_OSS_20B)}
    for i in (0, 23):
        for part in ("weight", "bias"):
            assert found[f"blk.{i}.ffn_gate_exps.{part}"].rows is Rows.EVEN
            assert found[f"blk.{i}.ffn_up_exps.{part}"].rows is Rows.ODD
    halves = [tensor for tensor in found.values() if tensor.rows is not Rows.ALL]
    assert len(halves) == 4 * 24


def test_norms_biases_sinks_and_router_are_exact() -> None:
    exact = {t.gguf for t in tensors(GPT_OSS_20B) if t.role is TensorRole.EXACT}
    assert all(
        ("norm" in t.gguf or t.gguf.endswith(".bias") or "sinks" in t.gguf or "gate_inp" in t.gguf)
        == (t.gguf in exact)
        for t in tensors(GPT_OSS_20B)
    )
