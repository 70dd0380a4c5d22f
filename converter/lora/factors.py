"""The two factors of each expert's delta, however the adapter stores them.

An expert's delta is ``scale * left @ right`` with left [outputs, rank] and right [rank, inputs], in
float32. PEFT keeps all experts in one pair of matrices; other tools have a pair for each expert, or
one for its gate and one for its up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Protocol

import numpy as np

from gptoss.converter.lora.deltas import Delta, ExpertPair, ExpertPairs
from gptoss.converter.transforms.base import Bytes, Floats
from gptoss.converter.transforms.floats import STORED, widen
from gptoss.formats.safetensors import TensorInfo
from gptoss.formats.tensor_map import Rows


class Reader:
    """Reads parts of tensors; each thread keeps the last matrix of each kind."""

    def __init__(self) -> None:
        self._local = threading.local()

    def read(self, info: TensorInfo, start: int, n: int) -> Bytes:
        """Read ``n`` bytes of an adapter's or its base's tensor, from byte ``start`` of it on, for
        the factors of a delta.
        """
        out = np.empty(n, np.uint8)
        info.file.read_into(info.offset + start, out)
        return out

    def rows(self, info: TensorInfo, start: int, stop: int) -> Floats:
        """Read rows of an adapter's or its base's tensor as float32; the first dimensions count as
        one.
        """
        size = info.shape[-1] * STORED[info.dtype].itemsize
        raw = self.read(info, start * size, (stop - start) * size)
        return widen(raw.view(STORED[info.dtype]), info.dtype).reshape(stop - start, -1)

    def remembered(self, slot: str, key: Hashable, make: Callable[[], Floats]) -> Floats:
        """Return the factor that ``make`` reads, called again only when ``key`` is not the last one
        of this thread and slot.
        """
        last: tuple[Hashable, Floats] | None = getattr(self._local, slot, None)
        if last is None or last[0] != key:
            last = (key, make())
            setattr(self._local, slot, last)
        return last[1]


class Factors(Protocol):
    """``parts`` are the adapter's tensors, ``form`` all else that the product depends on."""

    @property
    def parts(self) -> tuple[TensorInfo, ...]: ...
    @property
    def form(self) -> str: ...
    def adapted(self, expert: int) -> bool:
        """Check whether the adapter changes an expert at all; only then it has factors A and B."""
        ...

    def left(self, expert: int) -> Floats:
        """Return the left factor of an expert's delta, float32 [outputs, rank]."""
        ...

    def right(self, expert: int) -> Floats:
        """Return the right factor of an expert's delta, float32 [rank, inputs]."""
        ...

    def scale(self, _expert: int, /) -> Floats:
        """Return the factor by which each row of ``left @ right`` is multiplied, float32 [outputs]
        or [1].
        """
        ...


class StackedFactors:
    """All experts in one pair, as PEFT has them."""

    def __init__(self, delta: Delta, reader: Reader) -> None:
        self._delta = delta
        self._reader = reader
        self.parts = (delta.a, delta.b)
        self.form = (
            f"rank {delta.rank}, scale {delta.scale!r}, {delta.experts} experts, {delta.swapped}"
        )

    def adapted(self, expert: int) -> bool:
        """Check whether a stacked adapter pair has factors for an expert: PEFT adapts all experts
        of a tensor.
        """
        return 0 <= expert < self._delta.experts

    def left(self, expert: int) -> Floats:
        """Return the left factor of an expert in a stacked pair: its B, or A's transpose where PEFT
        took inputs for outputs.
        """
        return self._a(expert).T if self._delta.swapped else self._b(expert)

    def right(self, expert: int) -> Floats:
        """Return the right factor of an expert in a stacked pair: its A, or B's transpose where
        PEFT took inputs for outputs.
        """
        return self._b(expert).T if self._delta.swapped else self._a(expert)

    def scale(self, _expert: int, /) -> Floats:
        """Return the stacked pair's one scale, float32 [1], for all rows of the product of its
        factors.
        """
        return np.array([self._delta.scale], np.float32)

    def _a(self, expert: int) -> Floats:
        info, rank = self._delta.a, self._delta.rank
        start = expert * rank
        return self._reader.remembered(
            "a", (info.name, expert), lambda: self._reader.rows(info, start, start + rank)
        )

    def _b(self, expert: int) -> Floats:
        """Read an expert's factor B from a stacked pair, where each rank has all experts side by
        side.
        """
        info = self._delta.b
        return self._reader.remembered("b", (info.name, expert), lambda: self._gathered(expert))

    def _gathered(self, expert: int) -> Floats:
        info, step = self._delta.b, 256
        found = np.empty((info.shape[0], self._delta.rank), np.float32)
        for start in range(0, len(found), step):
            stop = min(start + step, len(found))
            rows = self._reader.rows(info, start, stop)
            found[start:stop] = rows.reshape(stop - start, -1, self._delta.experts)[:, :, expert]
        return found


class PairedFactors:
    """A pair for each expert, or one for its gate and one for its up.

    Two pairs become one: their ranks side by side, with zeros in the rows that a pair leaves alone.
    """

    def __init__(self, name: str, delta: ExpertPairs, outputs: int, reader: Reader) -> None:
        self._name = name
        self._pairs = delta.pairs
        self._outputs = outputs
        self._reader = reader
        found = list(_in_order(delta.pairs))
        self.parts = tuple(info for _, _, pair in found for info in (pair.a, pair.b))
        self.form = "; ".join(
            f"expert {e}, {rows.value} rows, rank {pair.rank}, scale {pair.scale!r}"
            for e, rows, pair in found
        )

    def adapted(self, expert: int) -> bool:
        """Check whether the adapter has a pair of factors for this expert of its own."""
        return expert in self._pairs

    def left(self, expert: int) -> Floats:
        """Return the left factor of an expert with a pair of its own, or two: B of each pair in its
        own rows and ranks.
        """
        return self._reader.remembered("b", (self._name, expert), lambda: self._left(expert))

    def right(self, expert: int) -> Floats:
        """Return the right factor of an expert with a pair of its own, or two: A of each pair, one
        below the other.
        """
        return self._reader.remembered("a", (self._name, expert), lambda: self._right(expert))

    def scale(self, expert: int, /) -> Floats:
        """Return each pair's scale in the rows of the product that its factors change, float32
        [outputs].
        """
        found = np.ones(self._outputs, np.float32)
        for rows, pair in self._pairs[expert].items():
            found[rows.indices] = pair.scale
        return found

    def _left(self, expert: int) -> Floats:
        pairs = self._pairs[expert]
        found = np.zeros((self._outputs, sum(pair.rank for pair in pairs.values())), np.float32)
        at = 0
        for rows, pair in pairs.items():
            found[rows.indices, at : at + pair.rank] = self._reader.rows(pair.b, 0, pair.b.shape[0])
            at += pair.rank
        return found

    def _right(self, expert: int) -> Floats:
        pairs = self._pairs[expert].values()
        return np.concatenate([self._reader.rows(pair.a, 0, pair.rank) for pair in pairs])


def _in_order(
    pairs: Mapping[int, Mapping[Rows, ExpertPair]],
) -> Iterator[tuple[int, Rows, ExpertPair]]:
    for expert in sorted(pairs):
        for rows, pair in pairs[expert].items():
            yield expert, rows, pair
