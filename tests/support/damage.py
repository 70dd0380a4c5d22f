"""Ways in which a file goes wrong, drawn at random: flipped bits, lying numbers, cuts, splices."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

U64 = struct.Struct("<Q").pack
NUMBERS = (0, 1, 7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**48, 2**60, 2**63 - 1, 2**63, 2**64 - 1)
"""Counts, lengths and offsets at which arithmetic on them goes wrong."""


def damaged(raw: bytes, other: bytes, head: int, rng: random.Random) -> bytes:
    """``raw`` with one to four kinds of damage, most of it in its first ``head`` bytes.

    ``other`` is a file of the same kind, of which pieces may come to stand in this one.
    """
    found = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        where = min(len(found), head if rng.random() < 0.9 else len(found))
        if where:
            rng.choice(_DAMAGE)(found, rng.randrange(where), other, rng)
    return bytes(found)


def _flip(raw: bytearray, at: int, other: bytes, rng: random.Random) -> None:  # noqa: ARG001
    raw[at] ^= 1 << rng.randrange(8)


def _byte(raw: bytearray, at: int, other: bytes, rng: random.Random) -> None:  # noqa: ARG001
    raw[at] = rng.choice((0, 9, 0x0A, 0x1B, 0x22, 0x2C, 0x39, 0x5B, 0x5D, 0x7B, 0x7D, 0x80, 0xFF))


def _number(raw: bytearray, at: int, other: bytes, rng: random.Random) -> None:  # noqa: ARG001
    number = rng.choice((*NUMBERS, len(raw), len(raw) - at, len(raw) - at + 1, rng.randrange(256)))
    size = rng.choice((4, 8))
    raw[at : at + size] = U64(number)[:size]


def _digits(raw: bytearray, at: int, other: bytes, rng: random.Random) -> None:  # noqa: ARG001
    raw[at : at + rng.randrange(3)] = str(rng.choice(NUMBERS)).encode()


def _cut(raw: bytearray, at: int, other: bytes, rng: random.Random) -> None:  # noqa: ARG001
    del raw[at : at + rng.choice((1, 8, 100, len(raw)))]


def _repeat(raw: bytearray, at: int, other: bytes, rng: random.Random) -> None:  # noqa: ARG001
    raw[at:at] = raw[at : at + rng.choice((1, 8, 64))] * rng.choice((1, 2, 1000))


def _splice(raw: bytearray, at: int, other: bytes, rng: random.Random) -> None:
    start = rng.randrange(len(other))
    raw[at : at + rng.choice((0, 8, 64))] = other[start : start + rng.choice((8, 64, 4096))]


_DAMAGE: tuple[Callable[[bytearray, int, bytes, random.Random], None], ...] = (
    _flip, _byte, _number, _digits, _cut, _repeat, _splice,
)  # fmt: skip
