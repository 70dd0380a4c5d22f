"""Converts what an MCP tool returned to text for the model, and figures for the person."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from typing import Any

from gptoss.runtime.tools.groups import Figure, GroupResult

MAX_FIGURE_BYTES = 16 << 20
MAX_FIGURES = 16

_PNG = b"\x89PNG\r\n\x1a\n"


def group_result(result: Any) -> GroupResult:
    """Convert an MCP ``CallToolResult``. Text is kept; for other content the model reads what it
    is; PNG images are figures.
    """
    texts: list[str] = []
    figures: list[Figure] = []
    for block in result.content:
        figure = _figure(block) if len(figures) < MAX_FIGURES else None
        if figure is not None:
            figures.append(figure)
        texts += _texts(block)
    if not texts and result.structured_content is not None:
        texts.append(json.dumps(result.structured_content, ensure_ascii=False))
    text = "\n".join(texts)
    if result.is_error and not text.startswith("error:"):
        text = f"error: {text or 'the tool failed without a message'}"
    return GroupResult(text, bool(result.is_error), tuple(figures))


def _texts(block: Any) -> Iterator[str]:
    match block.type:
        case "text":
            yield block.text
        case "image" | "audio":
            yield f"[{block.mime_type}, {len(block.data) * 3 // 4:,} bytes]"
        case "resource_link":
            yield f"[resource {block.uri}]"
        case "resource":
            text = getattr(block.resource, "text", None)
            yield f"[resource {block.resource.uri}]" if text is None else text


def _figure(block: Any) -> Figure | None:
    if block.type != "image" or len(block.data) > MAX_FIGURE_BYTES * 4 // 3:
        return None
    try:
        data = base64.b64decode(block.data, validate=True)
    except (binascii.Error, ValueError):
        return None
    return Figure(data) if data.startswith(_PNG) else None
