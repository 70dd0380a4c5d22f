"""The tokenizer on a vocabulary of bytes; the full one is tested with the oracles."""

from __future__ import annotations

import pytest

from gptoss.files.errors import UnsupportedModel
from gptoss.runtime.tokenizer import Tokenizer
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
    with pytest.raises(UnsupportedModel, match=r"<\|channel\|>"):
        Tokenizer.from_vocabulary(["a", "<|end|>"], [NORMAL, CONTROL_TYPE])


def test_ids_outside_the_vocabulary() -> None:
    tokenizer = byte_tokenizer()
    for token in (-1, tokenizer.n_vocab):
        with pytest.raises(IndexError, match="outside the vocabulary"):
            tokenizer.token_bytes(token)
