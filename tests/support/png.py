"""A PNG's pixels, for tests that look at screenshots: 8 bits a channel, not interlaced.

Source: the PNG specification (W3C), sections 9 and 11.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_CHANNELS = {2: 3, 6: 4}
"""By colour type: RGB, and RGB with alpha."""


def pixels(path: Path) -> NDArray[np.uint8]:
    """Red, green and blue ``uint8[height, width, 3]``."""
    raw = path.read_bytes()
    assert raw.startswith(b"\x89PNG\r\n\x1a\n")
    at, data, header = 8, b"", b""
    while at < len(raw):
        length, kind = struct.unpack_from(">I4s", raw, at)
        body = raw[at + 8 : at + 8 + length]
        header = body if kind == b"IHDR" else header
        data += body if kind == b"IDAT" else b""
        at += 12 + length
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", header)
    assert (depth, interlace) == (8, 0)
    n = _CHANNELS[colour]
    lines = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, 1 + width * n)
    out = np.zeros((height + 1, width + 1, n), np.int64)  # with a black row above, column before
    for y, line in enumerate(lines, 1):
        _unfilter(int(line[0]), line[1:].reshape(width, n).astype(np.int64), out[y - 1], out[y])
    return out[1:, 1:, :3].astype(np.uint8)


def _unfilter(
    kind: int, line: NDArray[np.int64], above: NDArray[np.int64], out: NDArray[np.int64]
) -> None:
    if kind == 0:
        out[1:] = line
    elif kind == 1:
        out[1:] = line.cumsum(axis=0) & 255
    elif kind == 2:
        out[1:] = (line + above[1:]) & 255
    else:
        for x in range(len(line)):
            left, up, corner = out[x], above[x + 1], above[x]
            guess = (left + up) // 2 if kind == 3 else _paeth(left, up, corner)
            out[x + 1] = (line[x] + guess) & 255


def _paeth(
    left: NDArray[np.int64], up: NDArray[np.int64], corner: NDArray[np.int64]
) -> NDArray[np.int64]:
    to_left, to_up, to_corner = (abs(left + up - corner - it) for it in (left, up, corner))
    nearest: NDArray[np.int64] = np.where(
        (to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, corner)
    )
    return nearest
