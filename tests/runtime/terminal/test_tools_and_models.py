"""Tools and models at the terminal: switched, approved, replaced."""

from __future__ import annotations

import io
import threading
from dataclasses import replace

import pytest

from gptoss.runtime.chat.model import Model
from gptoss.runtime.chat.settings import ChatError
from gptoss.runtime.store.store import Store
from gptoss.runtime.terminal import plain_terminal
from gptoss.runtime.terminal.approval import MAX_CALL_CHARACTERS, approve_by_key
from gptoss.runtime.terminal.loop import converse
from gptoss.runtime.terminal.plain_terminal import PlainTerminal
from gptoss.runtime.terminal.safe_text import SHOWN_LENGTH
from gptoss.runtime.terminal.session import OpenModel
from gptoss.runtime.tools.approval import Approval
from gptoss.runtime.tools.builtin import PYTHON
from gptoss.runtime.tools.earlier import EarlierSessions
from gptoss.runtime.tools.functions import Tool
from gptoss.runtime.tools.groups import GroupResult
from support.fake_engine import ScriptedEngine, engine_of
from support.page_tools import Notes
from support.terminal_session import FINAL, Talk, final, session
from support.tokens import byte_tokenizer

CALL = "<|channel|>commentary to=functions.now<|message|>{}<|call|>"


def now() -> str:
    """Tell the time."""
    return "noon"


def test_tools_can_be_switched_off(talk: Talk) -> None:
    given = session(FINAL, FINAL, tools=[Tool.of(now)])
    shown = talk(given, "/tools", "/tools off now", "a", "/tools on", "b")
    assert shown.splitlines()[:2] == ["on  now  Tell the time.", "off now  Tell the time."]
    first, second = engine_of(given.chat).prompts
    assert "functions" not in first
    assert "namespace functions" in second


REFUSED = "error: the person did not approve this call; do not repeat it"


@pytest.mark.parametrize(
    ("typed", "results"),
    [
        (["y", "y"], ["noon", "noon"]),
        (["n", ""], [REFUSED, REFUSED]),
        (["a"], ["noon", "noon"]),
        (["x", "r", "it is late", "y"], ["error: the person did not approve this call: it is late",
                                         "noon"]),
    ],
)  # fmt: skip
def test_a_tool_that_acts_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, typed: list[str], results: list[str]
) -> None:
    questions: list[str] = []
    lines = iter(["What time is it?", *typed])

    def read(question: str) -> str:
        questions.append(question)
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr(plain_terminal, "input", read, raising=False)
    terminal = PlainTerminal(io.StringIO())
    tool = replace(Tool.of(now), needs_approval=True)
    approval = Approval(approve_by_key(terminal))
    given = session(CALL, CALL, FINAL, tools=[tool], approval=approval)
    converse(given, terminal)
    assert [it.text for it in given.chat.history if it.name == "functions.now"] == results
    choice = "y yes, n no, a always here, r no with a reason"
    assert questions[1] == f"\nRun now({{}})? {choice}: "


def test_another_conversation_asks_again(talk: Talk) -> None:
    questions: list[str] = []

    class Always:
        def ask_key(self, question: str, keys: str) -> str:  # noqa: ARG002
            questions.append(question)
            return "a"

        def ask_text(self, question: str) -> str:
            raise NotImplementedError

    tool = replace(Tool.of(now), needs_approval=True)
    approval = Approval(approve_by_key(Always()))
    given = session(*[CALL, FINAL] * 4, tools=[tool], approval=approval)
    talk(given, "one", "two")
    assert len(questions) == 1
    talk(given, "/clear", "three", "four")
    assert len(questions) == 2


def test_a_call_of_several_lines_is_shown_whole() -> None:
    questions: list[str] = []

    class No:
        def ask_key(self, question: str, keys: str) -> str:  # noqa: ARG002
            questions.append(question)
            return "n"

        def ask_text(self, question: str) -> str:
            raise NotImplementedError

    ask = approve_by_key(No())
    choice = "? y yes, n no, a always here, r no with a reason"
    ask("python", "for i in range(3):\n    print('\x1b[2J')\n")
    ask("functions.f", "x" * SHOWN_LENGTH + "end")
    ask("functions.f", "x" * (MAX_CALL_CHARACTERS + 1_234))
    assert questions[0] == (
        f"  for i in range(3):\n      print('\\x1b[2J')\nRun this in python{choice}"
    )
    assert questions[1] == f"  {'x' * SHOWN_LENGTH}end\nRun this in f{choice}"
    assert questions[2].endswith(f"\n  [1,234 more characters]\nRun this in f{choice}")


class Remembering:
    """A built-in tool that notes when another conversation begins."""

    is_builtin = True
    needs_approval = False
    namespace = PYTHON

    def __init__(self) -> None:
        self.begun: list[EarlierSessions] = []

    def call(self, recipient: str, text: str, cancelled: threading.Event) -> GroupResult:  # noqa: ARG002
        return GroupResult("1")

    def start_over(self) -> None:
        self.begun.append(EarlierSessions())

    def go_on(self, earlier: EarlierSessions) -> None:
        self.begun[-1] = earlier

    def close(self) -> None: ...


def test_another_conversation_has_another_session(talk: Talk) -> None:
    """Variables of one conversation are not those of another; a copy keeps them."""
    python = Remembering()
    cell = "<|channel|>analysis to=python code<|message|>1<|call|>"
    with Store(None) as store:
        given = session(cell, *[FINAL] * 3, store=store, groups=[python])
        talk(given, "run", "/branch", "more")
        assert python.begun == []
        talk(given, "/clear", "new", "/resume 2")
        assert python.begun == [EarlierSessions(), EarlierSessions(cells=True)]


def test_another_model(talk: Talk) -> None:
    other = Model(ScriptedEngine(final("other")), byte_tokenizer())
    given = session(FINAL, find=lambda name: lambda: (other, name.upper()), opened=no_model)
    before = engine_of(given.chat)
    shown = talk(given, "a", "/model b", "c")
    assert "model: B" in shown
    assert "other" in shown
    assert before.closed
    assert [it.text for it in given.chat.history] == ["a", "Four.", "c", "other"]


def no_model() -> tuple[Model, str]:
    raise ChatError("it does not fit")


def test_groups_of_tools_are_listed_and_switched_off(talk: Talk) -> None:
    given = session(FINAL, FINAL, tools=[Tool.of(now)], groups=[Remembering(), Notes()])
    shown = talk(given, "/tools", "/tools off python", "a", "/tools on", "b")
    assert shown.splitlines()[:6] == [
        "on  now  Tell the time.",
        "on  python  built in",
        "on  notes  MCP server: add; asks before each call",
        "on  now  Tell the time.",
        "off python  built in",
        "on  notes  MCP server: add; asks before each call",
    ]
    first, second = engine_of(given.chat).prompts
    assert ("## python" in first, "## python" in second) == (False, True)
    assert "namespace notes" in first


def test_a_model_that_is_not_found_or_does_not_load(talk: Talk) -> None:
    """The one before goes on, with the conversation."""
    again = Model(ScriptedEngine(final("again")), byte_tokenizer())

    def find(name: str) -> OpenModel:
        if name == "gone":
            raise ChatError("gone: not found")
        if name == "asked":  # whether to download it
            raise KeyboardInterrupt
        return no_model

    given = session(FINAL, FINAL, find=find, opened=lambda: (again, "scripted"))
    shown = talk(given, "a", "/model gone", "/model asked", "b", "/model big", "c")
    assert "error: gone: not found" in shown
    assert "error: it does not fit" in shown
    assert [it.text for it in given.chat.history] == ["a", "Four.", "b", "Four.", "c", "again"]
