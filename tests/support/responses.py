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
}


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
    item is open at a time; the deltas of a text are its whole; the last response holds exactly the
    items that were done.
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
    assert machine.open is None
    assert response["output"] == machine.done
    assert names[-1].removeprefix("response.") in (response["status"], "failed")
    assert response["id"] == events[0]["response"]["id"]
    return response


class _Machine:
    """One stream's state: the items that are done, and the one that is open."""

    def __init__(self) -> None:
        self.done: list[dict[str, Any]] = []
        self.open: dict[str, Any] | None = None
        self.text = ""
        self.expected: list[str] = []
        """Events that must still come for the open item."""

    def step(self, event: dict[str, Any]) -> None:
        name = event["type"]
        if name.count(".") == 1 and name != "response.output_item":
            assert name.removeprefix("response.") in (
                "created", "queued", "in_progress", "completed", "incomplete", "failed"
            )  # fmt: skip
            return
        assert event["output_index"] == len(self.done)
        if name == "response.output_item.added":
            self._added(event["item"])
            return
        assert self.open is not None
        if name == "response.output_item.done":
            self._finished(event["item"])
            return
        assert event["item_id"] == self.open["id"]
        if "part" in event or self.open["type"] in ("message", "reasoning"):
            assert event["content_index"] == 0
        stem, _, what = name.rpartition(".")
        if stem in _DELTAS:
            assert _DELTAS[stem][0] == self.open["type"]
        if what == "delta":
            assert self.expected[0] == f"{stem}.done"
            assert event["delta"]
            self.text += event["delta"]
            return
        assert self.expected.pop(0) == name
        if stem in _DELTAS:
            assert event[_DELTAS[stem][1]] == self.text
        elif name == "response.content_part.done":
            assert event["part"]["text"] == self.text
        else:
            assert event["part"]["text"] == ""

    def _added(self, item: dict[str, Any]) -> None:
        assert self.open is None
        assert item["status"] == "in_progress"
        self.open, self.text = item, ""
        [stem] = [stem for stem, (kind, _) in _DELTAS.items() if kind == item["type"]]
        self.expected = [f"{stem}.done"]
        if item["type"] in ("message", "reasoning"):
            part = "response.content_part"
            self.expected = [f"{part}.added", *self.expected, f"{part}.done"]

    def _finished(self, item: dict[str, Any]) -> None:
        assert self.open is not None
        assert self.expected == []
        assert (item["id"], item["type"]) == (self.open["id"], self.open["type"])
        assert item["status"] in ("completed", "incomplete")
        whole = item["content"][0]["text"] if "content" in item else None
        assert self.text == (
            whole if whole is not None else item.get("arguments", item.get("input"))
        )
        self.done.append(item)
        self.open = None
