"""What cannot be repaired, and tokens without a text of their own, some of which can."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from gptoss.converter.repair.repair import Repair, repair
from gptoss.errors import GgufError, GptossError, OutputError, UnsupportedModelError
from gptoss.formats.gguf import GgufFile
from support import ggufs, llama_child
from support.ggufs import Model
from support.repairs import ROPE, with_key, without

STRING, U32, F32 = GGUFValueType.STRING, GGUFValueType.UINT32, GGUFValueType.FLOAT32


def drop(name: str) -> Callable[[Model], None]:
    return lambda model: model.tensors.pop(name) and None


def add_tensor(model: Model) -> None:
    model.tensors["rope_freqs.weight"] = model.tensors["output_norm.weight"]


def typed(name: str, kind: GGMLQuantizationType) -> Callable[[Model], None]:
    """Give a tensor zeros of another type."""

    def damage(model: Model) -> None:
        _, shape, _ = model.tensors[name]
        n_values, n_bytes = GGML_QUANT_SIZES[kind]
        raw = np.zeros(math.prod(shape) // n_values * n_bytes, np.uint8)
        model.tensors[name] = (kind, shape, raw)

    return damage


def another_vocabulary(model: Model) -> None:
    *kinds, tokens = model.keys["tokenizer.ggml.tokens"]
    tokens = [token.replace("<|", "<") for token in tokens]
    model.keys["tokenizer.ggml.tokens"] = (kinds[0], kinds[1], tokens)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            with_key("general.architecture", STRING, "llama"),
            UnsupportedModelError,
            "is 'llama'; only",
        ),
        (
            with_key("tokenizer.ggml.model", STRING, "llama"),
            UnsupportedModelError,
            "model is 'llama'",
        ),
        (another_vocabulary, UnsupportedModelError, "lacks harmony's control tokens"),
        (without("tokenizer.ggml.merges"), GgufError, "merges; give the checkpoint as --base"),
        (without("tokenizer.ggml.tokens"), GgufError, "tokens; give the checkpoint as --base"),
        (
            drop("blk.1.attn_q.weight"),
            GgufError,
            "no tensor blk.1.attn_q.weight, nor one by another",
        ),
        (drop("token_embd.weight"), GgufError, "show its hidden_size are missing"),
        (add_tensor, GgufError, "gpt-oss has no tensor 'rope_freqs.weight'"),
        (
            typed("output_norm.weight", GGMLQuantizationType.I8),
            UnsupportedModelError,
            "'output_norm.weight' is I8; llama.cpp cannot compute it in that type; convert the",
        ),
        (
            typed("output.weight", GGMLQuantizationType.F64),
            UnsupportedModelError,
            "'output.weight' is F64; llama.cpp cannot compute it in that type",
        ),
        (with_key("gpt-oss.block_count", U32, 3), GgufError, "no tensor blk.2"),
        (with_key("gpt-oss.block_count", STRING, "2"), GgufError, "expected a whole number"),
        (with_key(ROPE + "freq_base", F32, float("nan")), GgufError, "expected 10 to"),
    ],
)
def test_what_cannot_be_repaired(
    repaired: Callable[..., Repair],
    good: Path,
    damage: Callable[[Model], None],
    error: type[GptossError],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        repaired(damage)
    assert not good.with_name("repaired.gguf").exists()


def test_the_source_is_never_overwritten(good: Path) -> None:
    ggufs.edited(good, without("tokenizer.ggml.pre"))
    before = good.read_bytes()
    with pytest.raises(OutputError, match="is the file to be repaired"):
        repair(good, good)
    assert good.read_bytes() == before


# --- tokens ------------------------------------------------------------------------------------


def with_tokens(**texts: str) -> Callable[[Model], None]:
    """Give tokens other texts: ``t300="x"``."""

    def damage(model: Model) -> None:
        *kinds, tokens = model.keys["tokenizer.ggml.tokens"]
        new = list(tokens)
        for i, text in texts.items():
            new[int(i[1:])] = text
        model.keys["tokenizer.ggml.tokens"] = (kinds[0], kinds[1], new)

    return damage


def test_unused_tokens_get_texts_of_their_own(repaired: Callable[..., Repair]) -> None:
    """llama.cpp ends the process on texts that are empty, have a NUL, or occur twice."""
    damage = with_tokens(t300="", t301="<|call|>", t302="[PAD303]", t304="a\0", t305="[PAD306-0]")
    done = repaired(damage)
    tokens = list(GgufFile.open(done.out).metadata["tokenizer.ggml.tokens"])
    named = ["[PAD300]", "[PAD301]", "[PAD302]", "[PAD303]", "[PAD304]", "[PAD306-0]", "[PAD306]"]
    assert tokens[300:307] == named
    assert ["tokens" in change for change in done.changes] == [True]
    [outcome] = llama_child.run_files([done.out], n_prompt=4)
    assert outcome.logits is not None


@pytest.mark.parametrize(
    "damage", [with_tokens(t5="A"), with_tokens(t7=""), with_tokens(t258="<|channel|>")]
)
def test_used_tokens_of_one_text_are_refused(
    repaired: Callable[..., Repair], damage: Callable[[Model], None]
) -> None:
    with pytest.raises(GgufError, match=r"tokenizer\.ggml\.tokens\[\d+\] is .*, expected a"):
        repaired(damage)
