"""Arrays of strings in a GGUF's metadata: kept as bytes, and decoded on first access.

Reading the hyperparameters does not decode 201,088 tokens and 446,189 merges.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from gptoss.errors import GgufError

LENGTH_BYTES = 8
"""Bytes of the length before each string."""


class StringArray(Sequence[str]):
    """An array of strings, all decoded on first access to any of them.

    ``len()`` and ``has_nul()`` need no decoding. Raises ``GgufError`` on first access if a string
    is not UTF-8.
    """

    def __init__(self, raw: bytes, sizes: Sequence[int], where: str) -> None:
        """``raw`` are the strings as they are stored, each after its length in 8 bytes; ``sizes``
        are those lengths.
        """
        self._raw = raw
        self._sizes = np.array(sizes, "<u8")
        self._where = where
        self._strings: list[str] | None = None

    def __len__(self) -> int:
        return len(self._sizes)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self._decoded()[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decoded())

    def __repr__(self) -> str:
        return f"<{len(self)} strings>"

    def has_nul(self) -> bool:
        """Report whether a string has a NUL; raise ``GgufError`` if one is not UTF-8.

        Nothing is decoded string by string: half a million merges take milliseconds.
        """
        if self._strings is not None:
            return any("\0" in it for it in self._strings)
        texts = self._texts()
        return bool(len(texts)) and not texts.all()

    def _texts(self) -> NDArray[np.uint8]:
        """Return the bytes of all strings, one after the other; raise ``GgufError`` if one is not
        UTF-8.

        It is when all together are, and none begins within a character.
        """
        stored = np.frombuffer(self._raw, np.uint8)
        is_text = np.ones(len(stored), np.bool_)
        starts = self._starts()
        for i in range(1, LENGTH_BYTES + 1):
            is_text[starts - i] = False
        texts = stored[is_text]
        try:
            texts.tobytes().decode()
            firsts = stored[starts[self._sizes > 0]]
            if not np.any(firsts & 0xC0 == 0x80):
                return texts
        except UnicodeDecodeError:
            pass
        self._decoded()  # raises, and tells which one
        raise GgufError(f"{self._where}: not UTF-8")

    def _starts(self) -> NDArray[np.int64]:
        """Return where in ``_raw`` each string begins."""
        sizes = self._sizes.astype(np.int64)
        return np.cumsum(sizes + LENGTH_BYTES) - sizes

    def _decoded(self) -> list[str]:
        if self._strings is None:
            raw, strings = self._raw, list[str]()
            try:
                for start, size in zip(self._starts().tolist(), self._sizes.tolist(), strict=True):
                    strings.append(raw[start : start + size].decode())
            except UnicodeDecodeError as reason:
                raise GgufError(f"{self._where}[{len(strings)}]: not UTF-8") from reason
            self._strings, self._raw = strings, b""
        return self._strings
