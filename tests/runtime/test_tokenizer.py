"""The tokenizer on a vocabulary of bytes; the full one is tested with the oracles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss.errors import GgufError, UnsupportedModelError
from gptoss.formats.gguf import GgufFile
from gptoss.formats.gguf_strings import StringArray
from gptoss.formats.o200k import BYTE_LEVEL
from gptoss.runtime.harmony.tokenizer import MAX_SPACE, Tokenizer, _spelled
from support.tokens import CONTROL, byte_tokenizer

NORMAL, CONTROL_TYPE, UNUSED = 1, 3, 5


def test_text_comes_back_whatever_it_holds() -> None:
    tokenizer = byte_tokenizer()
    for text in ("", "hello", "naïve 🙂\x00", "".join(CONTROL), "a\ufeffb"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not set(ids) & set(tokenizer.control.values())


def test_lone_surrogates_become_replacement_characters() -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


@pytest.mark.parametrize("blank", [" ", "\t", "\u3000", " \t\n"])
def test_blanks_without_end_are_encoded(blank: str) -> None:
    """A page of a million blanks: the split pattern by itself would end the process."""
    tokenizer = byte_tokenizer()
    text = f"a{blank * (1_200_000 // len(blank))}b"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_fewer_blanks_are_encoded_as_ever() -> None:
    tokenizer = byte_tokenizer()
    text = ("a" + " " * (MAX_SPACE - 1)) * 3
    assert tokenizer.encode(text) == tokenizer._encoding.encode_ordinary(text)


def test_byte_level_spelling_and_types() -> None:
    letters = [chr(c) for c in range(0x21, 0x7F)]
    tokens = [*letters, "Ġ", "hi", "Ċ", *CONTROL, "[PAD]"]
    types = [NORMAL] * (len(letters) + 3) + [CONTROL_TYPE] * len(CONTROL) + [UNUSED]
    tokenizer = Tokenizer.from_vocabulary(tokens, types)
    assert tokenizer.decode([len(letters), len(letters) + 1, len(letters) + 2]) == " hi\n"
    assert tokenizer.encode("hi") == [len(letters) + 1]
    assert tokenizer.control["<|return|>"] == tokens.index("<|return|>")
    assert tokenizer.token_bytes(len(tokens) - 1) == b"[PAD]"
    assert "[PAD]" not in tokenizer.control


def test_a_vocabulary_without_harmony_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"<\|channel\|>"):
        Tokenizer.from_vocabulary(["a", "<|end|>"], [NORMAL, CONTROL_TYPE])


BYTES = list(map(chr, BYTE_LEVEL))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (BYTES[1:], "no token for the byte 0x21"),
        ([*BYTES, "ü"], "two tokens have the same text"),
        ([*BYTES, "日", "語", "?"], "two tokens have the same text"),
        (np.arange(266), "tokens is not an array of strings"),
        (None, "tokens is not an array of strings"),
    ],
)
def test_a_gguf_that_no_text_can_be_encoded_with(tokens: Any, message: str) -> None:
    """tiktoken would panic on these, at the first text."""
    types = [NORMAL] * (0 if tokens is None else len(tokens)) + [CONTROL_TYPE] * len(CONTROL)
    if isinstance(tokens, list):
        texts = [token.encode() for token in (*tokens, *CONTROL)]
        raw = b"".join(len(text).to_bytes(8, "little") + text for text in texts)
        tokens = StringArray(raw, [*map(len, texts)], "model.gguf")
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-4o",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": tuple(types),
    }
    with pytest.raises(GgufError, match=message):
        Tokenizer.from_gguf(GgufFile(Path("model.gguf"), 3, metadata, {}, {}))


def test_ids_outside_the_vocabulary() -> None:
    tokenizer = byte_tokenizer()
    for token in (-1, tokenizer.n_vocab):
        with pytest.raises(IndexError, match="outside the vocabulary"):
            tokenizer.token_bytes(token)


@given(st.lists(st.text(st.characters(codec=None), max_size=5), max_size=8))
def test_byte_level_spelling_is_the_translation_of_each_character(texts: list[str]) -> None:
    texts.append("Ġü\u0143\u0144😀")
    expected = [it.translate(BYTE_LEVEL).encode("latin-1", "replace") for it in texts]
    assert _spelled(texts) == expected
