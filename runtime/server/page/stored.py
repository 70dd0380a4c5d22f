"""A reply's messages in the store, with what the page shows beside them (see ``beside``), and back
as its parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptoss.runtime.chat.events import ToolFinished
from gptoss.runtime.harmony.messages import Message, Role, tool_name
from gptoss.runtime.server.beside import ABOUT, figure_name, n_figures_of, shown_page
from gptoss.runtime.server.page.calls import call_html, shown_text
from gptoss.runtime.server.page.figures import MAX_FIGURES, is_showable
from gptoss.runtime.server.page.markdown import render
from gptoss.runtime.server.page.parts import Event, kind_of
from gptoss.runtime.store.conversations import Entry
from gptoss.runtime.tools.browser.citations import CitedText, cursor_of
from gptoss.text import printable_lines


@dataclass(frozen=True, slots=True)
class Finished:
    """A call that has ended; ``url`` is that of the page which the browser has shown by it."""

    event: ToolFinished
    url: str | None = None


def entries_of(
    messages: Iterable[Message], finished: Iterable[Finished]
) -> tuple[list[Entry], dict[str, dict[str, bytes]]]:
    """Make the entries of a reply's messages, and what the page attaches to them by their ids."""
    left = list(finished)
    n_figures = 0
    entries: list[Entry] = []
    attached: dict[str, dict[str, bytes]] = {}
    for message in messages:
        entry = Entry(message)
        entries.append(entry)
        call = next((it for it in left if _answers(message, it.event)), None)
        if call is None:
            continue
        left.remove(call)
        figures = [it.png for it in call.event.figures if is_showable(it.png)]
        figures = figures[: MAX_FIGURES - n_figures]
        n_figures += len(figures)
        about: dict[str, Any] = {
            "error": call.event.error,
            "seconds": round(call.event.seconds, 1),
            "figures": len(figures),
        }
        cursor = cursor_of(call.event.name, message.text)
        if cursor is not None and call.url is not None:
            about["page"] = [cursor, call.url]
        attached[entry.id] = {ABOUT: json.dumps(about).encode()} | {
            figure_name(i): png for i, png in enumerate(figures)
        }
    return entries, attached


def sources_of(abouts: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """Return the addresses of the pages that the browser has shown in a conversation, by cursor."""
    return dict(page for it in abouts if (page := shown_page(it)) is not None)


def stored_parts(
    conversation: str, entries: Sequence[Entry], abouts: Sequence[Mapping[str, Any]]
) -> list[Event]:
    """Return a stored conversation as the page's parts: ``kind``, ``html`` or ``text``, ``entry``
    (its place in the conversation), and for calls ``name`` and ``result``, an object as the event
    of this name has it.
    """
    parts: list[Event] = []
    sources: dict[int, str] = {}
    for place, (entry, about) in enumerate(zip(entries, abouts, strict=True)):
        message = entry.message
        if message.role == Role.USER:
            parts.append({"entry": place, "kind": "user", "text": message.text})
        elif message.role == Role.TOOL:
            page = shown_page(about)
            sources |= {} if page is None else dict([page])
            figures = f"/page/conversations/{conversation}/figures/{entry.id}/"
            _add_result(parts, message, about, figures)
        elif message.role == Role.ASSISTANT:
            parts.append({"entry": place} | _said(message, sources))
    return parts


def _said(message: Message, sources: dict[int, str]) -> Event:
    """Return the part of a message of the model."""
    kind = kind_of(message.channel, message.recipient)
    if kind in ("answer", "preamble"):
        cited = CitedText(sources.get, lambda: bool(sources))
        text = cited.push(message.text) + cited.finish()
        return {"kind": kind, "html": render(text), "source": text}
    if kind == "reasoning":
        return {"kind": kind, "text": printable_lines(message.text)}
    name = tool_name(message.recipient)
    return {
        "kind": kind,
        "name": name,
        "text": shown_text(message.text),
        "html": call_html(name, message.text),
        "result": None,
    }


def _add_result(
    parts: list[Event], message: Message, about: Mapping[str, Any], figures: str
) -> None:
    """Add a tool's result to the call that it answers."""
    name, call = tool_name(message.name), None
    for part in reversed(parts):
        if part["kind"] == "user":
            break
        if part.get("name") == name and part["result"] is None:
            call = part  # the first of several: results are in the order of the calls
    if call is None:
        return
    call["result"] = {
        "text": shown_text(message.text),
        "error": about.get("error") is True,
        "seconds": about.get("seconds"),
        "figures": [f"{figures}{i}" for i in range(min(n_figures_of(about), MAX_FIGURES))],
    }


def _answers(message: Message, event: ToolFinished) -> bool:
    return (
        message.role == Role.TOOL
        and tool_name(message.name) == event.name
        and message.text == event.result
    )
