"""Figures that tools made, as the page gets them: PNG files, checked before the browser sees them.

A tool's output is untrusted. The header says that it is a PNG, and of what size; a file that is no
PNG, or would take much memory when it is decoded, is left out.
"""

from __future__ import annotations

import struct

from starlette.responses import Response

MAX_FIGURE_BYTES = 4 << 20

MAX_FIGURE_PIXELS = 1 << 25
"""128 MiB when the browser has decoded it."""

MAX_FIGURES = 32
"""Figures of one reply that are shown."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">I4sII")
"""Of the first chunk: its length, its type, the picture's width and height."""

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "private, no-store",
}


def is_showable(data: bytes) -> bool:
    """Report whether a tool's figure is a PNG, by its header, and small enough for the page."""
    if not data.startswith(_SIGNATURE) or len(data) > MAX_FIGURE_BYTES:
        return False
    if len(data) < len(_SIGNATURE) + _HEADER.size:
        return False
    length, kind, width, height = _HEADER.unpack_from(data, len(_SIGNATURE))
    return (length, kind) == (13, b"IHDR") and 0 < width * height <= MAX_FIGURE_PIXELS


def figure_response(data: bytes) -> Response:
    """Send a figure to the page."""
    return Response(data, media_type="image/png", headers=_HEADERS)
