"""Files of Ollama and of other tools: names, layouts and types that llama.cpp does not read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import quants
from gguf.constants import GGMLQuantizationType, GGUFValueType

from gptoss.converter.repair.repair import Repair
from gptoss.errors import GgufError
from gptoss.formats.gguf import GgufFile
from gptoss.quant.verify.verifier import verify
from support import ggufs, ollama
from support.ggufs import Model
from support.repairs import same

F32 = GGUFValueType.FLOAT32


@pytest.mark.parametrize("qkv", [False, True])
def test_a_file_of_ollamas(
    repaired: Callable[..., Repair], checkpoint: Path, good: Path, qkv: bool
) -> None:
    """Every tensor becomes what llama.cpp's converter would have written, to the bit."""

    def damage(model: Model) -> None:
        ollama.keys(model)
        ollama.tensors(model, checkpoint)
        if qkv:
            ollama.stack_qkv(model)

    done = repaired(damage)
    found = ggufs.load(done.out)
    del found.keys["tokenizer.ggml.eos_token_ids"]  # its own, and of no harm
    for name in ("fast", "slow"):  # llama.cpp has these by itself
        found.set(f"gpt-oss.rope.scaling.yarn_beta_{name}", F32, {"fast": 32.0, "slow": 1.0}[name])
    *kinds, tokens = found.keys["tokenizer.ggml.tokens"]
    names = {f"[PAD{n}]": f"[PAD{272 + n}]" for n in range(48)}
    found.keys["tokenizer.ggml.tokens"] = (kinds[0], kinds[1], [names.get(t, t) for t in tokens])
    assert same(ggufs.save(good.with_name("found.gguf"), found), good)
    assert verify(checkpoint, good).proven
    told = "\n".join(done.changes)
    for part in (
        "general.architecture: gptoss → gpt-oss", "gptoss.* → gpt-oss.*",
        "expert_feed_forward_length: 160", "scaling.type: yarn", "eos_token_id: 257 → 260",
        "4 tensors: ffn_gate_up_exps.weight split into gate and up",
        "tensors: Ollama's MXFP4 reordered as ggml has it", "tensors: BF16 widened to F32",
        "2 tensors: attn_sinks renamed to attn_sinks.weight",
    ):  # fmt: skip
        assert part in told
    assert ("attn_qkv.weight split into q, k and v" in told) == qkv


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_small_tensors_in_other_types(
    repaired: Callable[..., Repair], good: Path, kind: str
) -> None:
    """llama.cpp ends the process on them; widened they are values that the type had kept."""
    names = ["output_norm.weight", "blk.1.attn_q.bias", "blk.0.ffn_down_exps.bias"]
    other = GGMLQuantizationType[kind]
    kept = {}

    def damage(model: Model) -> None:
        for name in names:
            _, shape, raw = model.tensors[name]
            values = raw.view("<f4").reshape(shape)
            stored = quants.quantize(values, other)
            kept[name] = quants.dequantize(stored, other).astype(np.float32).reshape(shape)
            model.tensors[name] = (other, shape, stored.reshape(-1).view(np.uint8))

    done = repaired(damage)
    note = "; the rounding to Q8_0 stays" if kind == "Q8_0" else ""
    assert done.changes == (f"3 tensors: {kind} widened to F32{note}",)
    found = ggufs.values_of(done.out)
    for name in names:
        assert np.array_equal(found[name], kept[name])
    unchanged = ggufs.tensors_of(done.out).items() - ggufs.tensors_of(good).items()
    assert {name for name, _ in unchanged} <= set(names)


def test_ollamas_blocks_are_refused_by_whoever_would_misread_them(
    good: Path, checkpoint: Path
) -> None:
    ggufs.edited(good, lambda model: ollama.tensors(model, checkpoint))
    with pytest.raises(
        GgufError, match="unknown type 4, which is Ollama's MXFP4; convert it: gptoss-convert"
    ):
        GgufFile.open(good)
