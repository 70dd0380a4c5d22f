"""The loop over a scripted engine: what is a command, what is a message, what ends what."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gptoss.runtime.chat.events import ReplyEnded, StopReason
from gptoss.runtime.chat.model import Model
from gptoss.runtime.chat.settings import ChatError, Settings
from gptoss.runtime.harmony.messages import Effort
from gptoss.runtime.store.owners import LOCAL_OWNER
from gptoss.runtime.store.store import Store
from gptoss.runtime.terminal import plain_terminal
from gptoss.runtime.terminal.approval import MAX_CALL_CHARACTERS, approve_by_key
from gptoss.runtime.terminal.commands import BY_NAME, is_command, run_command
from gptoss.runtime.terminal.loop import answer_lines, converse
from gptoss.runtime.terminal.plain_terminal import PlainTerminal
from gptoss.runtime.terminal.printer import Printer
from gptoss.runtime.terminal.safe_text import SHOWN_LENGTH
from gptoss.runtime.terminal.session import OpenModel, Session
from gptoss.runtime.tools.approval import Approval
from gptoss.runtime.tools.builtin import PYTHON
from gptoss.runtime.tools.earlier import EarlierSessions
from gptoss.runtime.tools.functions import Tool
from gptoss.runtime.tools.groups import GroupResult
from support.fake_engine import ScriptedEngine, engine_of
from support.page_tools import Notes
from support.tokens import byte_tokenizer

FINAL = "<|channel|>final<|message|>Four.<|return|>"


def final(text: str) -> str:
    return FINAL.replace("Four.", text)


def session(*scripts: str, **options: Any) -> Session:
    given = {name: options.pop(name) for name in ("n_ctx", "before_token") if name in options}
    model = Model(ScriptedEngine(*scripts, **given), byte_tokenizer())
    return Session(model, "scripted", Settings(date="2026-01-01"), **options)


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Types lines at a plain terminal; gives what is printed."""

    def talk(given: Session, *lines: str) -> str:
        typed = iter(lines)

        def read(_question: str) -> str:
            line = next(typed, None)
            if line is None:
                raise EOFError
            if line == "^C":
                raise KeyboardInterrupt
            return line

        monkeypatch.setattr(plain_terminal, "input", read, raising=False)
        out = io.StringIO()
        converse(given, PlainTerminal(out))
        return out.getvalue()

    return talk


Talk = Callable[..., str]


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
    assert "1 replies; " in shown


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


# --- the store and files ----------------------------------------------------------------------


@pytest.fixture
def store() -> Iterator[Store]:
    with Store(None) as made:
        yield made


def kept(store: Store) -> list[list[str]]:
    """The texts of each conversation, the last used first."""
    recent = store.conversations.recent(LOCAL_OWNER)
    loaded = [store.conversations.load(LOCAL_OWNER, it.id) for it in recent]
    return [[message.text for message in it.messages] for it in loaded]


def test_conversations_are_kept(talk: Talk, store: Store) -> None:
    given = session(final("1"), final("2"), final("3"), final("4"), store=store)
    talk(given, "a", "b")
    assert kept(store) == [["a", "1", "b", "2"]]
    talk(given, "/undo", "/regenerate")
    assert kept(store) == [["a", "3"]]
    talk(given, "/clear", "c")
    assert kept(store) == [["c", "4"], ["a", "3"]]


def test_a_conversation_goes_on_with_its_settings_and_tokens(talk: Talk, store: Store) -> None:
    first = session(FINAL, store=store)
    talk(first, "/effort low", "/system Be brief.", "a")
    second = session(FINAL, store=store)
    assert second.resume(None).summary.title == "a"
    assert second.chat.messages == first.chat.messages
    assert second.chat.history[1].tokens is not None, "what is in memory is found by its tokens"
    talk(second, "b")
    assert kept(store) == [["a", "Four.", "b", "Four."]]


def test_resuming_by_number_or_id(talk: Talk, store: Store) -> None:
    given = session(FINAL, FINAL, store=store)
    talk(given, "old", "/clear", "new")
    shown = talk(given, "/conversations OLD", "/conversations", "/resume 2")
    assert [it.split()[1] for it in shown.splitlines()[:3]] == ["old", "new", "old"]
    assert shown.endswith("continuing: old (2 messages)\n> old\nFour.\n")
    identity = given.conversation or ""
    assert given.resume(identity[:20]).id == identity
    with pytest.raises(ChatError, match="no conversation has this id"):
        given.resume("conv_nothing")


def test_numbers_are_those_of_the_list_that_was_shown(talk: Talk, store: Store) -> None:
    given = session(*[FINAL] * 4, store=store)
    talk(given, "apples", "/clear", "pears", "/clear", "plums")
    shown = talk(given, "/conversations pea", "/resume 1")
    assert "continuing: pears" in shown
    shown = talk(given, "/conversations", "more", "/resume 1")
    assert "continuing: plums" in shown, "though the order is another one by now"


def test_a_branch_leaves_the_conversation_before_as_it_is(talk: Talk, store: Store) -> None:
    given = session(final("1"), final("2"), store=store)
    talk(given, "a", "/branch", "b")
    assert sorted(kept(store)) == [["a", "1"], ["a", "1", "b", "2"]]
    assert "no turn yet" in talk(session(store=store), "/branch")


def test_a_conversation_that_was_changed_elsewhere(talk: Talk, store: Store) -> None:
    """Neither overwrites what the other said."""
    said: list[str] = []
    first = session(final("1"), final("2"), store=store, say=said.append)
    talk(first, "a")
    other = session(final("3"), store=store)
    other.resume(None)
    talk(other, "b")
    talk(first, "c")
    assert sorted(kept(store)) == [["a", "1", "b", "3"], ["a", "1", "c", "2"]]
    assert said == ["the conversation was changed elsewhere; this one is kept as a new one"]


def test_a_conversation_that_was_deleted_elsewhere(talk: Talk, store: Store) -> None:
    given = session(final("1"), final("2"), store=store)
    talk(given, "a")
    store.conversations.delete(LOCAL_OWNER, given.conversation or "")
    talk(given, "b")
    assert kept(store) == [["a", "1", "b", "2"]]


def test_a_store_that_fails_is_said_once(talk: Talk, tmp_path: Path) -> None:
    store, said = Store(tmp_path / "store"), list[str]()
    given = session(FINAL, FINAL, store=store, say=said.append)
    store.close()
    assert talk(given, "a", "b").count("Four.") == 2
    assert len(said) == 1
    assert said[0].startswith("warning: the conversation is not kept any more: ")


def test_saving_and_loading(talk: Talk, tmp_path: Path) -> None:
    given = session(final("an answer"))
    path = tmp_path / "talk.json"
    assert talk(given, "a", f"/save {path}").endswith(f"saved 2 messages to {path}\n")
    assert "tokens" not in path.read_text("utf-8")
    other = session()
    assert talk(other, f"/load {path}") == f"loaded 2 messages from {path}\n"
    assert [it.text for it in other.chat.history] == ["a", "an answer"]
    talk(given, f"/save {tmp_path / 'talk.md'}")
    assert (tmp_path / "talk.md").read_text("utf-8") == "## You\n\na\n\n## gpt-oss\n\nan answer\n"


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1]", '[{"role": "x", "content": "a"}]', "[" * 100_000, '[{"role": "user"}]'],
)
def test_a_file_that_is_no_conversation(talk: Talk, tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    given = session(FINAL)
    assert "error: /load: " in talk(given, "a", f"/load {tmp_path / 'x.json'}")
    assert len(given.chat.history) == 2, "and the conversation is as it was"


# --- tools and models -------------------------------------------------------------------------

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
        return no_model

    given = session(FINAL, FINAL, find=find, opened=lambda: (again, "scripted"))
    shown = talk(given, "a", "/model gone", "b", "/model big", "c")
    assert "error: gone: not found" in shown
    assert "error: it does not fit" in shown
    assert [it.text for it in given.chat.history] == ["a", "Four.", "b", "Four.", "c", "again"]


def test_a_command_is_a_word() -> None:
    assert is_command("/help me")
    assert not is_command("/")
    assert not is_command("/* a comment */")
    with pytest.raises(ChatError):
        run_command(session(), "/HELLO")
    assert json.dumps(run_command(session(), "/EFFORT LOW".lower()).text) == '"effort: low"'
