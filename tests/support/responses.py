"""Events of the Responses API: read, and held to the order that OpenAI's API has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

FINAL = ("response.completed", "response.incomplete", "response.failed")

_DELTAS = {
    "response.reasoning_text": ("reasoning", "text"),
    "response.output_text": ("message", "text"),
    "response.function_call_arguments": ("function_call", "arguments"),
    "response.custom_tool_call_input": ("custom_tool_call", "input"),
    "response.code_interpreter_call_code": ("code_interpreter_call", "code"),
    "response.mcp_call_arguments": ("mcp_call", "arguments"),
}
_PARTS = ("message", "reasoning")
_STEPS = {
    "code_interpreter_call": ["in_progress", "interpreting", "completed"],
    "web_search_call": ["in_progress", "searching", "completed"],
    "mcp_call": ["in_progress", "completed"],
    "mcp_list_tools": ["in_progress", "completed"],
    "mcp_approval_request": [],
}
"""What a server reports of its own calls. They may be open while others are."""


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream's text; each has its type as name."""
    events = []
    for block in text.split("\n\n"):
        if not block:
            continue
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def check_events(events: Sequence[dict[str, Any]], first: int = 0) -> dict[str, Any]:
    """Hold a whole stream to its order; return the last event's response.

    Numbers are consecutive; an item is added before its deltas and they before it is done; one
    item's text is open at a time; the deltas of a text are its whole; the last response holds
    exactly the items that were done.
    """
    assert [event["sequence_number"] for event in events] == list(range(first, first + len(events)))
    names = [event["type"] for event in events]
    assert names[0] == "response.created"
    assert names[-1] in FINAL
    assert not set(names[:-1]) & set(FINAL)
    machine = _Machine()
    for event in events:
        machine.step(event)
    response: dict[str, Any] = events[-1]["response"]
    assert machine.open == {}
    assert response["output"] == [machine.done[i] for i in range(len(machine.done))]
    assert names[-1].removeprefix("response.") in (response["status"], "failed")
    assert response["id"] == events[0]["response"]["id"]
    return response


class _Open:
    """An item that was added and is not done."""

    def __init__(self, item: dict[str, Any]) -> None:
        self.item = item
        self.kind: str = item["type"]
        self.text = ""
        [stem] = [stem for stem, (kind, _) in _DELTAS.items() if kind == self.kind] or [""]
        self.stem = stem
        self.expected = [f"{stem}.done"] if stem else []
        """Events that must still come."""
        if self.kind in _PARTS:
            part = "response.content_part"
            self.expected = [f"{part}.added", *self.expected, f"{part}.done"]
        if self.kind in _STEPS:
            steps = [f"response.{self.kind}.{it}" for it in _STEPS[self.kind]]
            self.expected = [*steps[:1], *self.expected, *steps[1:]]

    @property
    def text_is_open(self) -> bool:
        return f"{self.stem}.done" in self.expected


class _Machine:
    """One stream's state: the items that are done, and those that are open, by index."""

    def __init__(self) -> None:
        self.done: dict[int, dict[str, Any]] = {}
        self.open: dict[int, _Open] = {}

    def step(self, event: dict[str, Any]) -> None:
        name = event["type"]
        if name.count(".") == 1 and name != "response.output_item":
            assert name.removeprefix("response.") in (
                "created", "queued", "in_progress", "completed", "incomplete", "failed"
            )  # fmt: skip
            return
        index = event["output_index"]
        if name == "response.output_item.added":
            assert index == len(self.done) + len(self.open)
            assert not any(it.text_is_open for it in self.open.values())
            assert event["item"].get("status", "in_progress") == "in_progress"
            self.open[index] = _Open(event["item"])
            return
        found = self.open[index]
        if name == "response.output_item.done":
            self._finished(found, event["item"])
            self.done[index] = event["item"]
            del self.open[index]
            return
        assert event["item_id"] == found.item["id"]
        if "part" in event or found.kind in _PARTS:
            assert event["content_index"] == 0
        if name == "response.output_text.annotation.added":
            assert found.kind == "message"
            return
        if name == f"{found.stem}.delta":
            assert found.expected[0] == f"{found.stem}.done"
            assert event["delta"]
            found.text += event["delta"]
            return
        assert found.expected.pop(0) == name.replace(".failed", ".completed")
        if name == f"{found.stem}.done":
            assert event[_DELTAS[found.stem][1]] == found.text
        elif name == "response.content_part.done":
            assert event["part"]["text"] == found.text
        elif "part" in event:
            assert event["part"]["text"] == ""

    def _finished(self, found: _Open, item: dict[str, Any]) -> None:
        assert (item["id"], item["type"]) == (found.item["id"], found.kind)
        status = item.get("status", "completed")
        assert status in ("completed", "incomplete", "failed")
        if status != "incomplete":
            assert found.expected == []
        if found.kind in _PARTS:
            assert found.text == item["content"][0]["text"]
        elif found.stem:
            assert found.text == item[_DELTAS[found.stem][1]]
