"""How events look, and that nothing a model or tool says drives the terminal."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss.runtime.chat.events import (
    ChatEvent,
    ReasoningClosed,
    ReplyEnded,
    StopReason,
    ToolFinished,
    ToolStarted,
)
from gptoss.runtime.engine.base import PromptProgress, Timings
from gptoss.runtime.harmony.events import (
    Diagnostic,
    End,
    MessageEnded,
    MessageStarted,
    RoundEnded,
    TextDelta,
)
from gptoss.runtime.harmony.messages import Message, Role
from gptoss.runtime.sampling.grammar import ReasoningStop
from gptoss.runtime.terminal.json_lines import JsonLines, as_dict
from gptoss.runtime.terminal.printer import Printer
from gptoss.runtime.terminal.wording import PromptClock
from gptoss.text import printable_lines

TIMINGS = Timings(100, 60, 20, 0.5, 2.0)
ENDED = ReplyEnded(End.RETURN, TIMINGS)


def started(channel: str, recipient: str | None = None) -> MessageStarted:
    return MessageStarted(Role.ASSISTANT, None, channel, recipient, None)


def ended(text: str, channel: str) -> MessageEnded:
    return MessageEnded(Message(Role.ASSISTANT, text, channel=channel, tokens=(1, 2)))


TURN: list[ChatEvent] = [
    started("analysis"),
    TextDelta("Need the ", "analysis"),
    TextDelta("weather.", "analysis"),
    ended("Need the weather.", "analysis"),
    started("commentary", "functions.weather"),
    TextDelta('{"city":', "commentary"),
    TextDelta(' "Oslo"}', "commentary"),
    ended('{"city": "Oslo"}', "commentary"),
    RoundEnded(End.CALL),
    ToolStarted("weather", '{"city": "Oslo"}'),
    ToolFinished("weather", '{"city": "Oslo"}', "3 degrees", False, 0.0123),
    Diagnostic("stray", "a stray token"),
    started("final"),
    TextDelta("It is ", "final"),
    TextDelta("cold.", "final"),
    ended("It is cold.", "final"),
    RoundEnded(End.RETURN),
    ENDED,
]

PLAIN = """\
[analysis] Need the weather.
weather({"city": "Oslo"})
  = 3 degrees  [12 ms]
[repaired: a stray token]
It is cold.
[100 prompt tokens, 60 of them reused, 0.50 s; 20 generated, 10.0 tokens/s]
"""


def shown(*events: ChatEvent, color: bool = False) -> str:
    out = io.StringIO()
    printer = Printer(out, color=color)
    for event in events:
        printer.show(event)
    return out.getvalue()


def test_a_turn_as_plain_text() -> None:
    assert shown(*TURN) == PLAIN


def test_with_colour_the_answer_is_plain_and_all_else_is_not() -> None:
    lines = shown(*TURN, color=True).splitlines()
    assert lines[0] == "\x1b[2mNeed the \x1b[0m\x1b[2mweather.\x1b[0m"
    assert lines[1] == '\x1b[36mweather(\x1b[0m{"city": "Oslo"})'
    assert lines[4] == "It is cold."


def test_a_cut_reply_says_so_on_a_line_of_its_own() -> None:
    text = shown(started("final"), TextDelta("It", "final"), ReplyEnded(End.CUT, TIMINGS))
    assert text.startswith("It\n[reply stopped]\n[100 prompt")
    for cut in StopReason:
        assert "[reply stopped: " in shown(ReplyEnded(End.CUT, TIMINGS, cut))


def test_reasoning_that_was_ended() -> None:
    text = shown(TextDelta("Wait", "analysis"), ReasoningClosed(ReasoningStop.BUDGET, 7))
    assert text == "Wait\n[reasoning ended: budget used up]\n"
    assert "the model was repeating itself" in shown(ReasoningClosed(ReasoningStop.LOOP, 7))


def test_stopped() -> None:
    out = io.StringIO()
    printer = Printer(out)
    printer.show(TextDelta("It", "final"))
    printer.stopped()
    assert out.getvalue() == "It\n[stopped]\n"


def test_each_event_is_flushed() -> None:
    class Out(io.StringIO):
        flushed = ""

        def flush(self) -> None:
            self.flushed = self.getvalue()

    out = Out()
    printer = Printer(out)
    for event in TURN:
        printer.show(event)
        assert out.flushed == out.getvalue()


EVIL = "a\x1b]0;owned\x07b\x9b31mc\rd\x08e\x7f\u202ef\x00"


def test_control_characters_are_made_visible() -> None:
    assert printable_lines(EVIL) == (
        "a\\x1b]0;owned\\x07b\\x9b31mc\\x0dd\\x08e\\x7f\\u202ef\\x00"
    )  # fmt: skip
    assert printable_lines("one\r\ntwo\tthree\n") == "one\ntwo\tthree\n"
    assert printable_lines("grå 中文 👩‍👩‍👧 é") == "grå 中文 👩‍👩‍👧 é"


@pytest.mark.parametrize(
    "event",
    [
        TextDelta(EVIL, "final"),
        TextDelta(EVIL, "analysis"),
        ToolStarted(EVIL, EVIL),
        ToolFinished(EVIL, EVIL, EVIL, False, 0.1),
        Diagnostic(EVIL, EVIL),
    ],
)
@given(extra=st.text())
def test_no_event_drives_the_terminal(event: ChatEvent, extra: str) -> None:
    text = shown(event, TextDelta(extra, "final"))
    assert not any(c in text for c in "\x1b\x07\x9b\r\x08\x7f\u202e\x00")
    assert all(c.isprintable() or c in "\n\t" or ord(c) > 0x9F for c in text)


def test_lone_surrogates_can_be_written() -> None:
    assert printable_lines("\ud800x").encode() == b"\\ud800x"


def test_long_results_are_shortened_and_kept_on_a_line() -> None:
    text = shown(ToolFinished("f", "{}", "line\n" * 1000, False, 0))
    assert text.count("\n") == 1
    assert len(text) < 2100


@pytest.mark.parametrize(
    ("environment", "tty", "colored"),
    [({}, True, True), ({}, False, False), ({"NO_COLOR": "1"}, True, False),
     ({"TERM": "dumb"}, True, False), ({"NO_COLOR": ""}, True, True)],
)  # fmt: skip
def test_colour_only_where_it_is_wanted(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], tty: bool, colored: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: tty)
    Printer(out).show(TextDelta("x", "analysis"))
    assert ("\x1b[" in out.getvalue()) is colored


def test_json_lines() -> None:
    out = io.StringIO()
    for event in [*TURN, TextDelta(EVIL, "final")]:
        JsonLines(out).show(event)
    lines = out.getvalue().split("\n")[:-1]
    objects = [json.loads(line) for line in lines]
    assert [it["event"] for it in objects[:3]] == ["message_started", "text_delta", "text_delta"]
    assert objects[3] == {
        "event": "message_ended",
        "role": "assistant",
        "channel": "analysis",
        "recipient": None,
        "content_type": None,
        "text": "Need the weather.",
    }
    assert objects[10]["seconds"] == 0.0123
    assert objects[17]["timings"]["generated_tokens"] == 20
    assert objects[-1]["text"] == EVIL
    assert out.getvalue().replace("\n", "").replace("\x7f", "").isprintable()


def test_events_by_their_names() -> None:
    assert as_dict(RoundEnded(End.CALL)) == {"event": "round_ended", "end": "call"}


def test_reading_a_long_prompt_shows_how_far_it_is() -> None:
    events = [PromptProgress(done, 6100, 100) for done in (100, 2100, 6100)]
    text = shown(*events, started("final"), TextDelta("It", "final"), color=True)
    assert "[reading 0 of 6,000 tokens]" in text
    assert "[reading 2,000 of 6,000 tokens, 0 s left]" in text
    assert text.count("\r\x1b[K") == 2, "each line is taken away"
    assert text.endswith("\r\x1b[KIt") or text.endswith("It")
    assert shown(*events, TextDelta("It", "final")) == "It"
    assert shown(PromptProgress(10, 200, 10), PromptProgress(200, 200, 10), color=True) == ""


def test_the_time_left() -> None:
    clock = PromptClock()
    clock.describe(PromptProgress(0, 4000, 0), 100.0)
    assert clock.describe(PromptProgress(1000, 4000, 0), 110.0).endswith(", 30 s left")


def test_the_answer_alone_on_one_stream_the_rest_on_another() -> None:
    out, aside = io.StringIO(), io.StringIO()
    printer = Printer(out, aside)
    for event in TURN:
        printer.show(event)
    assert out.getvalue() == "It is cold.\n"
    assert aside.getvalue() == PLAIN.replace("It is cold.\n", "")


def test_reasoning_that_is_hidden() -> None:
    out = io.StringIO()
    printer = Printer(out, hide_reasoning=True)
    for event in TURN:
        printer.show(event)
    assert out.getvalue() == PLAIN.removeprefix("[analysis] Need the weather.\n")


def test_a_call_is_shown_as_it_comes() -> None:
    out = io.StringIO()
    printer = Printer(out)
    for event in TURN[4:7]:
        printer.show(event)
    assert out.getvalue() == 'weather({"city": "Oslo"}'


def test_a_long_call_is_cut_and_stays_on_a_line() -> None:
    call: list[ChatEvent] = [
        started("commentary", "functions.f"),
        *[TextDelta("a\nb" * 10, "commentary")] * 500,
    ]
    text = shown(*call, ended("", "commentary"), ToolStarted("f", "x"))
    assert text.count("\n") == 1
    assert text.endswith("…)\n")
    assert len(text) < 2100


def test_a_call_that_was_not_seen_is_shown_when_it_runs() -> None:
    assert shown(ToolStarted("f", '{"a":\n1}')) == 'f({"a": 1})\n'
