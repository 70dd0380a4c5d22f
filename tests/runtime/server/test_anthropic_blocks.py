"""The model's turns as events of Anthropic's stream, and as whole messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from gptoss.runtime.harmony.events import MessageEnded, RoundEnded
from gptoss.runtime.harmony.parser import parse
from gptoss.runtime.server.anthropic.blocks import (
    INVALID_ARGUMENTS,
    BlockWriter,
    Written,
    collect_message,
)
from gptoss.runtime.server.anthropic.thinking import Visible
from gptoss.runtime.server.reply import Usage
from support.malformed import GOOD, MALFORMED
from support.tokens import byte_tokenizer, spell

USAGE = Usage(prompt=100, cached=90, completion=7, reasoning=3)
REASONED = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'


def stream(
    turn: str | list[int], visible: Visible = Visible.TEXT, constrained: bool = True
) -> list[Written]:
    """The events of a whole stream; a turn is spelled as in ``support.tokens``."""
    writer = BlockWriter("gpt-oss", visible, constrained)
    written = [writer.start(USAGE)]
    for event in parse(spell(turn) if isinstance(turn, str) else turn, byte_tokenizer()):
        written += writer.write(event)
    reason = "tool_use" if writer.call_ids else "end_turn"
    return [*written, *writer.finish(reason, None, USAGE)]


def content(events: list[Written]) -> list[dict[str, Any]]:
    """The blocks of the message, without ids."""
    return [
        {key: value for key, value in block.items() if key not in ("id", "signature")}
        for block in collect_message(events)["content"]
    ]


def test_events_come_in_order() -> None:
    events = stream(f"{REASONED}<|channel|>final<|message|>Hi<|return|>")
    kinds = [
        (event["type"], event.get("index"), event.get("delta", {}).get("type")) for event in events
    ]
    assert kinds == [
        ("message_start", None, None),
        ("content_block_start", 0, None),
        *[("content_block_delta", 0, "thinking_delta")] * 3,
        ("content_block_delta", 0, "signature_delta"),
        ("content_block_stop", 0, None),
        ("content_block_start", 1, None),
        *[("content_block_delta", 1, "text_delta")] * 2,
        ("content_block_stop", 1, None),
        ("message_delta", None, None),
        ("message_stop", None, None),
    ]
    assert collect_message(events)["content"][0]["signature"]


def test_usage_counts_cached_tokens_apart() -> None:
    message = collect_message(stream("<|channel|>final<|message|>Hi<|return|>"))
    assert message["usage"] == {
        "input_tokens": 10,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 90,
        "output_tokens": 7,
        "output_tokens_details": {"thinking_tokens": 3},
    }


@pytest.mark.parametrize("constrained", [True, False])
def test_reasoning_preamble_and_call(constrained: bool) -> None:
    preamble = "<|channel|>commentary<|message|>Wait.<|end|><|start|>assistant"
    events = stream(f"{REASONED}{preamble}{CALL}", constrained=constrained)
    assert content(events) == [
        {"type": "thinking", "thinking": "Hm."},
        {"type": "text", "text": "Wait."},
        {"type": "tool_use", "name": "f", "input": {"a": 1}},
    ]
    assert collect_message(events)["stop_reason"] == "tool_use"


@pytest.mark.parametrize(
    ("visible", "blocks"),
    [
        (Visible.TEXT, [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Hi"}]),
        (Visible.SIGNATURE, [{"type": "thinking", "thinking": ""}, {"type": "text", "text": "Hi"}]),
        (Visible.NOTHING, [{"type": "text", "text": "Hi"}]),
    ],
)
def test_what_is_seen_of_the_reasoning(visible: Visible, blocks: list[Any]) -> None:
    events = stream(f"{REASONED}<|channel|>final<|message|>Hi<|return|>", visible)
    assert content(events) == blocks
    starts = [event["index"] for event in events if event["type"] == "content_block_start"]
    assert starts == list(range(len(blocks)))


def test_arguments_are_streamed_as_they_come() -> None:
    deltas = [event["delta"] for event in stream(CALL) if event["type"] == "content_block_delta"]
    assert [delta["partial_json"] for delta in deltas] == list('{"a": 1}')


@pytest.mark.parametrize("constrained", [True, False])
def test_a_call_that_was_cut_is_no_call(constrained: bool) -> None:
    events = stream(CALL.partition("1")[0], constrained=constrained)
    assert content(events) == []


def test_arguments_that_are_not_json_are_still_an_object() -> None:
    turn = CALL.replace('{"a": 1}', "a=1")
    [block] = content(stream(turn, constrained=False))
    assert block["input"] == {INVALID_ARGUMENTS: "a=1"}
    several = turn.replace("<|call|>", "<|end|>") + "<|start|>assistant" + CALL
    assert [block["input"] for block in content(stream(several, constrained=False))] == [
        {INVALID_ARGUMENTS: "a=1"},
        {"a": 1},
    ]


def test_other_roles_are_not_shown() -> None:
    turn = "<|channel|>final<|message|>Hi<|end|><|start|>user<|message|>secret<|return|>"
    assert content(stream(turn)) == [{"type": "text", "text": "Hi"}]


def texts(turn: list[int]) -> Iterator[str]:
    for event in parse(turn, byte_tokenizer()):
        if isinstance(event, MessageEnded) and event.message.role == "assistant":
            yield event.message.text


@pytest.mark.parametrize("case", [*GOOD, *MALFORMED], ids=lambda case: case.turn)
def test_malformed_turns_give_a_valid_stream(case: Any) -> None:
    """Blocks open and close in order, input is an object, and no text of the model is lost."""
    events = stream(case.ids, constrained=False)
    opened: int | None = None
    n = 0
    for event in events[1:-2]:
        match event["type"]:
            case "content_block_start":
                assert opened is None
                assert event["index"] == n
                opened = n
            case "content_block_delta":
                assert event["index"] == opened
            case "content_block_stop":
                assert event["index"] == opened
                opened, n = None, n + 1
    assert opened is None
    message = collect_message(events)
    assert all(isinstance(b["input"], dict) for b in message["content"] if b["type"] == "tool_use")
    cut = any(
        isinstance(event, RoundEnded) and event.end == "cut"
        for event in parse(case.ids, byte_tokenizer())
    )
    shown = json.dumps(message["content"], ensure_ascii=False)
    for text in texts(case.ids):
        assert cut or json.dumps(text, ensure_ascii=False)[1:-1] in shown or _is_json(text)


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
