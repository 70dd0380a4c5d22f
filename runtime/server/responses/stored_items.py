"""A conversation of the store as the API's items; pure.

What came by the API has its item. What the page or the terminal has said is kept as messages: there
a call and its result are two entries, which are paired by the tool's name and their order. A
function's call and output are two items with one ``call_id``. A call of ``python``, ``browser`` or
an MCP server is one item that has the result, as ``/v1/responses`` gives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gptoss.runtime.harmony.messages import FUNCTIONS, Message, Role, tool_name
from gptoss.runtime.server.beside import About, shown_page
from gptoss.runtime.server.responses.listing import listed_item
from gptoss.runtime.server.responses.server_items import (
    RESULT,
    Include,
    annotations_of,
    finish,
    item_of_call,
    pages_in,
)
from gptoss.runtime.server.responses.server_tools import ServerKind
from gptoss.runtime.server.responses.tools import Called
from gptoss.runtime.store.conversations import Entry
from gptoss.runtime.tools.builtin import BROWSER, PYTHON
from gptoss.runtime.tools.toolbox import Outcome


@dataclass(frozen=True, slots=True)
class StoredItem:
    """An entry as the API lists it; ``item`` is None for one that is not listed: a block of
    instructions or tools without text, or the result of a call that ran here. ``call`` is then the
    id of that call.
    """

    entry: Entry
    item: dict[str, Any] | None
    call: str | None = None


def stored_items(
    entries: Sequence[Entry], container: str, abouts: Mapping[str, About] | None = None
) -> list[StoredItem]:
    """Return a conversation's entries as items, in their order.

    ``container`` is the session of ``python``, ``abouts`` what is known beside results (see
    ``server.beside``) by the ids of their entries. Figures are left out.
    """
    reader = _Reader(entries, container, abouts or {}, _paired(entries))
    return [reader.read(place) for place in range(len(entries))]


def _paired(entries: Sequence[Entry]) -> dict[int, int]:
    """Return the place of each call's result by the place of the call, and the other way round,
    for what has no item: results are in the order of the calls.
    """
    pairs: dict[int, int] = {}
    waiting: list[tuple[str, int]] = []
    for place, entry in enumerate(entries):
        message = entry.message
        if message.role == Role.USER:
            waiting.clear()
        elif entry.item is None and message.role == Role.ASSISTANT and message.recipient:
            waiting.append((tool_name(message.recipient), place))
        elif entry.item is None and message.role == Role.TOOL:
            found = next((it for it in waiting if it[0] == tool_name(message.name)), None)
            if found is not None:
                waiting.remove(found)
                pairs |= {found[1]: place, place: found[1]}
    return pairs


@dataclass(slots=True)
class _Reader:
    """Reads entry by entry. ``pages`` are those that the conversation has shown so far."""

    entries: Sequence[Entry]
    container: str
    abouts: Mapping[str, About]
    pairs: Mapping[int, int]
    pages: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Title and URL by cursor."""

    def read(self, place: int) -> StoredItem:
        """Return the item of the entry at a place."""
        entry, message = self.entries[place], self.entries[place].message
        self._note_page(entry)
        if entry.item is not None:
            if entry.item.get("type") == RESULT:
                return StoredItem(entry, None, str(entry.item.get("call_id")))
            return StoredItem(entry, {**entry.item, "id": entry.id})
        partner = self.entries[self.pairs[place]] if place in self.pairs else None
        if message.role == Role.TOOL and _runs_here(message.name):
            return StoredItem(entry, None, None if partner is None else partner.id)
        item = self._item(entry, partner)
        return StoredItem(entry, None if item is None else listed_item({**item, "id": entry.id}))

    def _item(self, entry: Entry, partner: Entry | None) -> dict[str, Any] | None:
        message, text = entry.message, entry.message.text
        if message.role == Role.TOOL:
            call = entry.id if partner is None else partner.id
            return {"type": "function_call_output", "call_id": call, "output": text}
        if message.role != Role.ASSISTANT:
            return {"role": message.role.value, "content": text} if text else None
        if message.recipient is not None and _runs_here(message.recipient):
            return self._server_call(message, partner)
        if message.recipient is not None:
            name = tool_name(message.recipient)
            return {
                "type": "function_call", "call_id": entry.id, "name": name, "arguments": text,
            }  # fmt: skip
        if message.channel == "analysis":
            return {"type": "reasoning", "content": [{"type": "reasoning_text", "text": text}]}
        return self._said(message)

    def _note_page(self, entry: Entry) -> None:
        """Note the page that a result has shown: its address is shortened in the text."""
        self.pages |= pages_in([entry.message])
        shown = shown_page(self.abouts.get(entry.id, {}))
        if shown is not None:
            cursor, url = shown
            title, _ = self.pages.get(cursor, ("", ""))
            self.pages[cursor] = title, url

    def _said(self, message: Message) -> dict[str, Any]:
        """Return what the model has said, with its citations of pages that were shown before."""
        part = {
            "type": "output_text",
            "text": message.text,
            "annotations": annotations_of(message.text, self.pages.get),
            "logprobs": [],
        }
        phase = "final_answer" if message.channel == "final" else "commentary"
        return {"type": "message", "role": "assistant", "content": [part], "phase": phase}

    def _server_call(self, message: Message, result: Entry | None) -> dict[str, Any]:
        """Return a call that ran here as one item with its result."""
        called = _called(message.recipient or "")
        if result is None:
            unfinished = item_of_call(called, message.text, self.container, None)
            return unfinished | {"status": "incomplete"}
        about = self.abouts.get(result.id, {})
        shown = shown_page(about)
        url = None if shown is None else shown[1]
        item = item_of_call(called, message.text, self.container, url)
        finish(item, _outcome(result.message, about), Include(), None)
        return item


def _outcome(result: Message, about: About) -> Outcome:
    """Return what a call gave. Without anything beside it, its text says whether it failed."""
    error = about.get("error")
    if not isinstance(error, bool):  # of Python, ``finish`` looks at the last line
        error = result.name == PYTHON.name or result.text.startswith("error:")
    return Outcome(result.text, error, 0.0)


def _runs_here(recipient: str | None) -> bool:
    """Report whether a tool is one that this server runs, by its full name: any but a function."""
    space, _, name = (recipient or "").partition(".")
    return space == PYTHON.name or (name != "" and space != FUNCTIONS)


def _called(recipient: str) -> Called:
    if recipient == PYTHON.name:
        return Called(PYTHON.name, kind=ServerKind.PYTHON)
    space, _, name = recipient.partition(".")
    if space == BROWSER.name:
        return Called(name, space, kind=ServerKind.BROWSER)
    return Called(name, space, kind=ServerKind.MCP, label=space, original=name)
