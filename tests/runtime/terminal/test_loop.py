"""The loop over a scripted engine: what is a command, what is a message, what ends what."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

from gptoss.runtime.chat.events import ReplyEnded, StopReason
from gptoss.runtime.chat.settings import ChatError
from gptoss.runtime.harmony.messages import Effort
from gptoss.runtime.terminal.commands import BY_NAME, is_command, run_command
from gptoss.runtime.terminal.loop import answer_lines
from gptoss.runtime.terminal.plain_terminal import PlainTerminal
from gptoss.runtime.terminal.printer import Printer
from support.fake_engine import engine_of
from support.terminal_session import FINAL, Talk, final, session


def answers(shown: str) -> list[str]:
    return [line for line in shown.splitlines() if not line.startswith(("[", "tools"))]


# --- what is typed ----------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["/bye", "/exit", "/quit", "exit", "quit", "bye", "Exit", ":q"])
def test_leaving(talk: Talk, word: str) -> None:
    assert talk(session(FINAL, FINAL), "a", word, "b").count("Four.") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("//usr", "/usr"),
        ("/usr/bin/python crashes", "/usr/bin/python crashes"),
        ("/home/x.py", "/home/x.py"),
        ("/etc.", "/etc."),
        ("exit code 1?", "exit code 1?"),
    ],
)
def test_messages_that_look_like_commands(talk: Talk, line: str, message: str) -> None:
    given = session(FINAL)
    talk(given, line)
    assert [it.text for it in given.chat.history] == [message, "Four."]


def test_several_lines(talk: Talk) -> None:
    given = session(FINAL, FINAL)
    talk(given, '"""one', "two", 'three"""', '"""one line"""')
    assert [it.text for it in given.chat.history[::2]] == ["one\ntwo\nthree", "one line"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/effort hihg", "error: /effort: 'hihg' is not low, medium or high"),
        ("/efort high", "error: /efort is not a command; did you mean /effort?"),
        ("/frobnicate", "error: /frobnicate is not a command; /help lists the commands"),
        ("/save", "error: /save: name a file"),
        ("/load /nowhere/x.json", "error: /load: /nowhere/x.json: No such file or directory"),
        ("/tools of", "error: /tools: 'of' is not on or off"),
        ("/tools on x", "error: tool is 'x'; known: none"),
        ("/regenerate", "error: there is no turn to take back"),
        ("/edit", "error: /edit: there is no message yet"),
        ("/resume", "error: conversations are not kept here"),
        ("/help nothing", "error: /help: there is no command 'nothing'"),
        ("/model x", "error: no other model can be loaded here"),
    ],
)
def test_errors_name_the_argument(talk: Talk, line: str, said: str) -> None:
    shown = talk(session(), line)
    assert shown.startswith(said)
    assert shown.count("\n") == 1


def test_help_names_every_command(talk: Talk) -> None:
    shown = talk(session(), "/help")
    for command in set(BY_NAME.values()):
        assert f"/{command.names[0]} " in shown
        assert command.help in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "/effort, /reasoning, /think" in talk(session(), "/help effort")


def test_help_of_a_plain_terminal_names_no_keys_that_it_does_not_take() -> None:
    given = session()
    assert "Ctrl-T" in run_command(given, "/help").text
    PlainTerminal(io.StringIO()).begin(given)
    shown = run_command(given, "/help").text
    assert "Ctrl-C" in shown
    assert not [it for it in ("Ctrl-T", "Ctrl-O", "Alt-") if it in shown]


def test_settings(talk: Talk) -> None:
    given = session(FINAL)
    shown = talk(given, "/reasoning high", "/system Be brief.", "a", "/system -")
    assert given.chat.effort is Effort.HIGH
    assert shown.startswith("effort: high\ninstructions: Be brief.\n")
    assert given.chat.settings.instructions is None
    [prompt] = engine_of(given.chat).prompts
    assert "Be brief." in prompt
    assert "Reasoning: high" in prompt


def test_regenerate_edit_undo(talk: Talk) -> None:
    given = session(final("one"), final("two"), final("three"))
    shown = talk(given, "a", "/regenerate", "/edit b", "/undo")
    assert answers(shown)[-4:] == ["one", "two", "three", "taken back: b"]
    assert given.chat.history == ()


def test_an_edited_question_is_offered(talk: Talk) -> None:
    assert answers(talk(session(FINAL), "my question", "/edit"))[-1] == "my question"


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        (("changed",), ["changed", "Two."]),
        (("^C", "more"), ["my question", "Four.", "more", "Two."]),
        (("", "more"), ["my question", "Four.", "more", "Two."]),
        (("/stats", "more"), ["my question", "Four.", "more", "Two."]),
    ],
)
def test_editing_replaces_the_last_turn_once_it_is_sent(
    talk: Talk, typed: tuple[str, ...], kept: list[str]
) -> None:
    given = session(FINAL, final("Two."))
    talk(given, "my question", "/edit", *typed)
    assert [it.text for it in given.chat.history] == kept


def test_a_draft_is_offered_once(talk: Talk) -> None:
    shown = talk(session(FINAL), "my question", "/edit", "^C", "^C")
    assert shown.count("my question") == 1


def test_context_and_stats(talk: Talk) -> None:
    shown = talk(session(FINAL), "a", "/context", "/stats")
    assert "of 100,000 tokens (" in shown
    assert "2 messages" in shown
    assert "1 reply; " in shown


# --- what ends ---------------------------------------------------------------------------------


def test_ctrl_c_stops_the_reply_and_the_conversation_goes_on(talk: Talk) -> None:
    tokens = iter(range(1000))

    def interrupt() -> None:
        if next(tokens) == 10:
            raise KeyboardInterrupt

    given = session(FINAL, FINAL, before_token=interrupt)
    shown = talk(given, "a", "^C", "b")
    assert shown.startswith("Fou\n[stopped]\nFour.\n")
    assert [it.text for it in given.chat.history] == ["a", "Fou", "b", "Four."]


def test_an_error_ends_the_reply_not_the_conversation(talk: Talk) -> None:
    shown = talk(session(FINAL, n_ctx=700), "x" * 1000, "b")
    assert shown.startswith("error: ")
    assert "; here, /clear begins a new one and /undo shortens this one\n" in shown
    assert "Four." in shown


def test_lines_of_a_pipe() -> None:
    out = io.StringIO()
    lines = ["a\n", "\n", "/effort high\n", "/bad\n", "b\n", "/quit\n", "c\n"]
    given = session(FINAL, FINAL)
    assert answer_lines(given, lines, Printer(out)) == (False, True)
    assert out.getvalue().count("Four.") == 2


def test_a_pipe_whose_reply_is_cut() -> None:
    class Seen(Printer):
        def show(self, event: Any) -> None:
            if isinstance(event, ReplyEnded):
                assert event.cut is StopReason.CONTEXT
            super().show(event)

    given = session("<|channel|>final<|message|>no end")
    assert answer_lines(given, ["a"], Seen(io.StringIO())) == (True, False)


def test_ctrl_c_ends_a_conversation_that_nobody_types() -> None:
    def lines() -> Iterator[str]:
        yield "a"
        pytest.fail("asked for another line")

    class Out(io.StringIO):
        def write(self, text: str) -> int:  # noqa: ARG002
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer_lines(session(FINAL), lines(), Printer(Out()))


def test_a_command_is_a_word() -> None:
    assert is_command("/help me")
    assert not is_command("/")
    assert not is_command("/* a comment */")
    with pytest.raises(ChatError):
        run_command(session(), "/HELLO")
    assert json.dumps(run_command(session(), "/EFFORT LOW".lower()).text) == '"effort: low"'
