"""The tokenizer, made from the model's own vocabulary.

Built from the GGUF's (or a checkpoint's) token list as a ``tiktoken.Encoding``: byte-level BPE
with o200k's split pattern. Text is always encoded as text: control tokens (``<|start|>``, …) are
available only as ids looked up by name, so no string from a user, a tool or a file can become one.
llama.cpp's own tokenizer does not guarantee that.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf.constants import TokenType
from numpy.typing import NDArray

from gptoss.errors import GgufError, UnsupportedModelError
from gptoss.formats.gguf_strings import StringArray
from gptoss.formats.harmony_tokens import REQUIRED
from gptoss.formats.o200k import BYTE_LEVEL, O200K_PATTERN, PRE_TOKENIZER

if TYPE_CHECKING:
    import tiktoken

    from gptoss.formats.gguf import GgufFile

MAX_SPACE = 2**16
"""The most consecutive blanks encoded together. At a million, tiktoken's split pattern overflows
the stack and crashes the process. Splitting a longer run does not change the decoded text."""


_PAUSE_EVERY = 1000
"""Tokens that tiktoken reads in about a millisecond."""


class _Pause:
    """The bytes of a token, which let other threads go on while tiktoken reads them.

    It reads 201,088 tokens without giving way, and then makes its tables: 165 ms. With pauses the
    reading stops nobody, the tables still do: 100 ms.
    """

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def __len__(self) -> int:
        return len(self._raw)

    def __getitem__(self, i: int) -> int:
        return self._raw[i]

    def __iter__(self) -> Iterator[int]:
        time.sleep(0)
        return iter(self._raw)


class Tokenizer:
    """Text to token ids and back. Immutable; safe to share between threads.

    ``control`` maps a control token's text to its id; ``encode`` yields none of those, but only ids
    of ``text_ids``.
    """

    def __init__(
        self, token_bytes: Sequence[bytes], control: Mapping[str, int], text_ids: Sequence[int]
    ) -> None:
        """``token_bytes[id]`` are the bytes of the id; a control token's are its text.

        ``text_ids`` are the ids that text may be encoded to, their order the order of merges.
        Raises UnsupportedModelError when one of harmony's control tokens is missing.
        """
        missing = [text for text in REQUIRED if text not in control]
        if missing:
            raise UnsupportedModelError(
                f"the vocabulary has no {', '.join(missing)}: this is not a gpt-oss tokenizer"
            )
        self._bytes = token_bytes
        self.text_ids = text_ids
        self.control = control
        self.n_vocab = len(token_bytes)

    @classmethod
    def from_vocabulary(cls, tokens: Sequence[str], types: Sequence[int]) -> Tokenizer:
        """Build a tokenizer from the GGUF's ``tokenizer.ggml.tokens`` and ``.token_type``
        (byte-level spelling).
        """
        if len(tokens) != len(types):
            raise UnsupportedModelError(f"{len(tokens)} tokens but {len(types)} token types")
        normal, special = int(TokenType.NORMAL), int(TokenType.CONTROL)
        texts = [token for token, kind in zip(tokens, types, strict=True) if kind == normal]
        spelled = iter(_spelled(texts))
        token_bytes = [
            next(spelled) if kind == normal else token.encode()
            for token, kind in zip(tokens, types, strict=True)
        ]
        control = {
            token: i
            for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind == special
        }
        text_ids = [i for i, kind in enumerate(types) if kind == normal]
        return cls(token_bytes, control, text_ids)

    @classmethod
    def from_gguf(cls, gguf: GgufFile) -> Tokenizer:
        """Build a tokenizer from the vocabulary of an opened GGUF.

        Raises UnsupportedModelError for another kind of tokenizer, GgufError for a corrupt one.
        """
        model = gguf.metadata.get("tokenizer.ggml.model")
        pre = gguf.metadata.get("tokenizer.ggml.pre")
        if (model, pre) != ("gpt2", PRE_TOKENIZER):
            raise UnsupportedModelError(
                f"{gguf.path}: tokenizer {model!r} with pre-tokenizer {pre!r}; "
                f"gpt-oss uses 'gpt2' with {PRE_TOKENIZER!r}"
            )
        tokens = gguf.metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, StringArray):
            raise GgufError(
                f"{gguf.path}: tokenizer.ggml.tokens is not an array of strings; convert it again"
            )
        types = gguf.metadata.get("tokenizer.ggml.token_type")
        if not isinstance(types, tuple):
            raise GgufError(
                f"{gguf.path}: has no array tokenizer.ggml.token_type; convert it again"
            )
        tokenizer = cls.from_vocabulary(tokens, types)
        tokenizer._check_text_tokens(str(gguf.path))
        return tokenizer

    def _check_text_tokens(self, where: str) -> None:
        """Check the vocabulary: every byte must be a token, and no two tokens the same, or tiktoken
        would panic later.
        """
        spelled = {self._bytes[i] for i in self.text_ids}
        missing = [byte for byte in range(256) if bytes([byte]) not in spelled]
        if missing:
            raise GgufError(f"{where}: no token for the byte {missing[0]:#04x}; convert it again")
        if len(spelled) != len(self.text_ids):
            raise GgufError(f"{where}: two tokens have the same text; convert it again")

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        import tiktoken  # part of the extra "run": the commands' help works without it

        ranks: dict[Any, int] = {
            self._bytes[i] if n % _PAUSE_EVERY else _Pause(self._bytes[i]): i
            for n, i in enumerate(self.text_ids)
        }
        options: dict[str, Any] = {"pat_str": O200K_PATTERN, "special_tokens": {}}
        try:
            return tiktoken.Encoding("gptoss", mergeable_ranks=ranks, **options)
        except TypeError:  # a version that takes nothing but bytes
            ranks = {self._bytes[i]: i for i in self.text_ids}
            return tiktoken.Encoding("gptoss", mergeable_ranks=ranks, **options)

    def prepare(self) -> None:
        """Build now what the first text to encode would wait for: 0.2 s for 201,088 tokens."""
        _ = self._encoding

    @property
    def all_bytes(self) -> Sequence[bytes]:
        """Return the bytes of every token, by its id."""
        return self._bytes

    def encode(self, text: str) -> list[int]:
        """Encode text to token ids, as plain text whatever it contains; lone surrogates become
        U+FFFD.
        """
        if len(text) < MAX_SPACE:
            return self._encoding.encode_ordinary(text)
        ids: list[int] = []
        for piece in _cut_among_blanks(text):
            ids += self._encoding.encode_ordinary(piece)
        return ids

    @cached_property
    def text_id_set(self) -> frozenset[int]:
        """Return the ids that text may be encoded to, as a set."""
        return frozenset(self.text_ids)

    @cached_property
    def longest(self) -> int:
        """Return the number of bytes of the longest text token, which bounds from below how many
        tokens a text encodes to.
        """
        return max(len(self._bytes[i]) for i in self.text_ids)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token id; possibly part of a character. IndexError outside the
        vocabulary.
        """
        if not 0 <= token < self.n_vocab:
            raise IndexError(f"token id {token} is outside the vocabulary of {self.n_vocab}")
        return self._bytes[token]

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode token ids to text; control tokens as their names, incomplete
        characters as U+FFFD.
        """
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")


def _spelled(tokens: Sequence[str]) -> list[bytes]:
    """Return the bytes that each byte-level text spells; a character that spells none becomes "?".

    All in one array: a translation of each text takes ten times as long.
    """
    joined = "".join(tokens).encode("utf-32-le", "surrogatepass")
    codes = np.minimum(np.frombuffer(joined, "<u4"), len(_BYTES) - 1)
    raw, ends = _BYTES[codes].tobytes(), accumulate(map(len, tokens), initial=0)
    return [raw[start:end] for start, end in pairwise(ends)]


def _byte_table() -> NDArray[np.uint8]:
    """Return the byte that each code point spells; the last one is that of all beyond."""
    table = np.full(max(BYTE_LEVEL) + 2, ord("?"), np.uint8)
    table[:256] = range(256)
    for code, byte in BYTE_LEVEL.items():
        table[code] = byte
    return table


_BYTES = _byte_table()


def _cut_among_blanks(text: str) -> Iterator[str]:
    """Cut ``text`` into pieces to encode, none of which holds more than ``MAX_SPACE`` blanks in a
    row.
    """
    begin = 0
    for blanks in re.finditer(r"\s+", text):
        for end in range(blanks.start() + MAX_SPACE, blanks.end(), MAX_SPACE):
            yield text[begin:end]
            begin = end
    yield text[begin:]
