"""Rendering, read as text. That it equals openai-harmony's is tested with the oracles."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gptoss.runtime.harmony import messages as m
from gptoss.runtime.harmony.events import End, MessageEnded
from gptoss.runtime.harmony.messages import Effort, Function, Message, Role
from gptoss.runtime.harmony.parser import Parser, parse
from gptoss.runtime.harmony.render import (
    render_for_completion,
    render_message,
)
from support.malformed import GOOD, Case
from support.rendering import kept_by_openai_harmony, render_all, render_history
from support.tokens import byte_tokenizer, spell, spelled

TOKENIZER = byte_tokenizer()

WEATHER = Function(
    "get_weather",
    "The weather now.\nIn a city.",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Name of the city"},
            "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
            "days": {"type": "array", "items": {"type": "integer"}},
            "where": {"type": "object", "properties": {"lat": {"type": "number"}}},
        },
        "required": ["city"],
    },
)

GOLDEN = """\
<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.
Knowledge cutoff: 2024-06
Current date: 2026-02-28

Reasoning: high

# Valid channels: analysis, commentary, final. Channel must be included for every message.
Calls to these tools must go to the commentary channel: 'functions'.<|end|>\
<|start|>developer<|message|># Instructions

Be brief.

# Tools

## functions

namespace functions {

// The weather now.
// In a city.
type get_weather = (_: {
// Name of the city
city: string,
unit?: "C" | "F", // default: C
days?: number[],
where?: {
    lat?: number,
    },
}) => any;

// Nothing.
type ping = () => any;

} // namespace functions<|end|>\
<|start|>user<|message|>Weather in Rome?<|end|>\
<|start|>assistant<|channel|>analysis<|message|>I must ask.<|end|>\
<|start|>assistant to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>\
{"city": "Rome"}<|call|>\
<|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>sunny<|end|>\
<|start|>assistant"""

CONVERSATION = [
    m.system(date="2026-02-28", effort=Effort.HIGH),
    m.developer("Be brief.", (WEATHER, Function("ping", "Nothing."))),
    m.user("Weather in Rome?"),
    m.analysis("I must ask."),
    m.call("get_weather", '{"city": "Rome"}'),
    m.tool_result("get_weather", "sunny"),
]


def test_a_whole_conversation() -> None:
    assert spelled(render_for_completion(CONVERSATION, TOKENIZER)) == GOLDEN


def test_reasoning_stays_until_the_final_answer_and_then_goes() -> None:
    answered = [*CONVERSATION, m.analysis("Say it."), m.final("Sunny."), m.user("Thanks")]
    assert "I must ask." in spelled(render_history(CONVERSATION, TOKENIZER))
    text = spelled(render_history(answered, TOKENIZER))
    assert "I must ask." not in text
    assert "Say it." not in text
    everything = spelled(render_all(answered, TOKENIZER))
    assert "I must ask." in everything


def test_harmony_keeps_what_follows_the_first_final() -> None:
    turns = [m.analysis("one"), m.final("1"), m.user("?"), m.analysis("two"), m.final("2")]
    by_harmony = spelled(render_all(kept_by_openai_harmony(turns), TOKENIZER))
    assert "one" not in by_harmony
    assert "two" in by_harmony
    assert "two" not in spelled(render_history(turns, TOKENIZER))


def test_the_models_own_tokens_are_replayed() -> None:
    """The recipient in the other place, as this model wrote it, stays there."""
    turn = spell("<|channel|>commentary to=functions.ping <|constrain|>json<|message|>{}<|call|>")
    parser = Parser(TOKENIZER)
    events = [event for i in turn for event in parser.push(i)]
    [message] = [event.message for event in events if isinstance(event, MessageEnded)]
    ids = render_message(message, TOKENIZER)
    assert ids == [*spell("<|start|>assistant"), *turn]
    assert render_message(replace(message, tokens=None), TOKENIZER) != ids


@pytest.mark.parametrize("case", [case for case in GOOD if case.end == End.CALL])
def test_after_a_call_the_cache_holds_all_that_was_generated(case: Case) -> None:
    """The next prompt begins with the last one and the model's own ids, to the letter."""
    before = [m.system(), m.user("?")]
    prompt = render_for_completion(before, TOKENIZER)
    said = [e.message for e in parse(case.ids, TOKENIZER) if isinstance(e, MessageEnded)]
    results = [Message(Role.TOOL, "1", name=it.recipient) for it in said if it.recipient]
    ids = render_for_completion([*before, *said, *results], TOKENIZER)
    assert ids[: len(prompt) + len(case.ids)] == prompt + case.ids


def test_replayed_ends_are_those_of_history() -> None:
    for end, kept in (("<|return|>", "<|end|>"), ("", "<|end|>"), ("<|call|>", "<|call|>")):
        tokens = tuple(spell(f"<|channel|>final<|message|>4{end}"))
        message = Message(Role.ASSISTANT, "4", channel="final", tokens=tokens)
        assert spelled(render_message(message, TOKENIZER)).endswith(f"4{kept}")


def test_no_field_yields_a_control_token() -> None:
    hostile = "".join(TOKENIZER.control)
    properties = {hostile: {"type": "string", "description": hostile, "default": hostile}}
    parameters = {"type": "object", "properties": properties}
    conversation = [
        m.system(identity=hostile, date=hostile),
        m.developer(hostile, (Function(hostile, hostile, parameters),)),
        Message(Role.USER, hostile, name=hostile),
        Message(Role.ASSISTANT, hostile, channel=hostile, recipient=hostile),
        Message(Role.TOOL, hostile, name=hostile, channel=hostile, recipient=hostile),
    ]
    control = set(TOKENIZER.control.values())
    ids = render_all(conversation, TOKENIZER)
    # start, message and end of each of the five, and the channel token of two
    assert sum(i in control for i in ids) == 5 * 3 + 2
