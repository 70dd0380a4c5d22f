"""The smallest gpt-oss vocabulary, one token a byte, and a spelling for token sequences.

In ``spell`` a control token's text stands for its id, so that a turn can be written as it looks:
``spell("<|channel|>final<|message|>4<|return|>")``.
"""

from __future__ import annotations

import re
from functools import cache

from gptoss.runtime.harmony.tokenizer import Tokenizer

CONTROL = (
    "<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>",
    "<|end|>", "<|message|>", "<|call|>", "<|endofprompt|>",
)  # fmt: skip
_CONTROL = re.compile("(" + "|".join(map(re.escape, CONTROL)) + ")")


@cache
def byte_tokenizer() -> Tokenizer:
    """Ids 0 to 255 are the bytes, then come the control tokens."""
    control = {text: 256 + i for i, text in enumerate(CONTROL)}
    token_bytes = [bytes([i]) for i in range(256)] + [text.encode() for text in CONTROL]
    return Tokenizer(token_bytes, control, range(256))


def spell(text: str, tokenizer: Tokenizer | None = None) -> list[int]:
    """Ids of ``text``, control tokens by their spelling; in the byte tokenizer unless given."""
    tokenizer = tokenizer or byte_tokenizer()
    ids: list[int] = []
    for piece in _CONTROL.split(text):
        control = tokenizer.control.get(piece)
        ids += tokenizer.encode(piece) if control is None else [control]
    return ids


def spelled(ids: list[int]) -> str:
    """The other way round, of the byte tokenizer's ids."""
    return byte_tokenizer().decode(ids)


def byte_token(tokenizer: Tokenizer, byte: int) -> int:
    """The id that stands for this one byte: every byte-level vocabulary has it."""
    return next(i for i in range(tokenizer.n_vocab) if tokenizer.token_bytes(i) == bytes([byte]))
