"""The text of an item of the Responses API: a string, or parts that this model can read."""

from __future__ import annotations

from gptoss.runtime.server.chat_completions.messages import PICTURE_NOTE
from gptoss.runtime.server.fields import Fields

_TEXT_PARTS = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "summary_text": "text",
    "reasoning_text": "text",
    "refusal": "refusal",
}
_PICTURES = ("input_image", "image_url", "computer_screenshot")


def text_of(fields: Fields, name: str, *, pictures: bool = False) -> str:
    """Return the text of an item's field: a string, or text parts joined; notes for ``pictures``
    where they are allowed.
    """
    value = fields.data.get(name)
    if value is None and name in ("content", "summary"):
        return ""
    if isinstance(value, str):
        return value
    texts = []
    for i, part in enumerate(fields.sequence(name) or []):
        at = Fields({"part": part}, f"{fields.path}.{name}[{i}]")
        inner = Fields(at.mapping("part") or {}, at.path)
        kind = inner.text("type", 128)
        if pictures and kind in _PICTURES:
            texts.append(PICTURE_NOTE)
        elif kind in _TEXT_PARTS:
            texts.append(inner.text(_TEXT_PARTS[kind], 50_000_000) or "")
        else:
            raise inner.error("type", f"{str(kind)[:80]!r}: this model reads text only")
    return "".join(texts)
