"""The tools of a server: one session of the built-in tools for each conversation, within limits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from click.testing import CliRunner

from gptoss.errors import OptionError
from gptoss.library import cli as run
from gptoss.runtime.harmony.messages import Namespace
from gptoss.runtime.server.serve_command import open_tool_host
from gptoss.runtime.tools.builtin import PYTHON
from gptoss.runtime.tools.builtin_groups import BuiltinTools
from gptoss.runtime.tools.groups import GroupResult
from gptoss.runtime.tools.tool_host import ToolHost

NEVER = threading.Event()
LONG = 30.0


class Cells:
    """A ``python`` that keeps what it is sent; ``wait`` runs until it is closed or cancelled."""

    is_builtin = True
    needs_approval = False
    namespace: Namespace = PYTHON

    def __init__(self) -> None:
        self.cells: list[str] = []
        self.closed = threading.Event()
        self.waiting = threading.Event()

    def call(self, recipient: str, text: str, cancelled: threading.Event) -> GroupResult:  # noqa: ARG002
        self.cells.append(text)
        if text == "wait":
            self.waiting.set()
            while not (cancelled.is_set() or self.closed.is_set()):
                time.sleep(0.005)
        return GroupResult(" ".join(self.cells))

    def close(self) -> None:
        self.closed.set()


def host_of(**limits: float) -> tuple[ToolHost, list[Cells]]:
    made: list[Cells] = []

    def make() -> list[Cells]:
        made.append(Cells())
        return made[-1:]

    return ToolHost(make, **limits), made  # type: ignore[arg-type]


def called(host: ToolHost, conversation: str, text: str, cancelled: threading.Event = NEVER) -> str:
    [group] = host.groups(conversation)
    return group.call("python", text, cancelled).text


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_each_conversation_has_its_session() -> None:
    host, made = host_of()
    with host:
        assert not host.is_alive("a")
        assert called(host, "a", "1") == "1"
        assert called(host, "b", "2") == "2"
        assert called(host, "a", "3") == "1 3"
        assert host.is_alive("a")
        host.end("a")
        assert called(host, "a", "4") == "4"
    assert all(it.closed.is_set() for it in made)


def test_the_one_idle_longest_makes_room() -> None:
    host, made = host_of(max_sessions=2)
    with host:
        for name in ("a", "b", "a", "c"):
            called(host, name, "x")
        assert [host.is_alive(name) for name in "abc"] == [True, False, True]
        assert [it.closed.is_set() for it in made[1:]] == [False, True, False]


def test_a_call_waits_for_a_place_while_all_sessions_run() -> None:
    host, made = host_of(max_sessions=1)
    with host:
        ends = threading.Event()
        runner = threading.Thread(target=called, args=(host, "a", "wait", ends))
        runner.start()
        until(lambda: len(made) == 2 and made[1].waiting.is_set())
        given_up = threading.Event()
        threading.Timer(0.1, given_up.set).start()
        assert called(host, "b", "x", given_up) == "error: the call was cancelled"
        assert not made[1].closed.is_set()
        threading.Timer(0.1, ends.set).start()
        assert called(host, "b", "x") == "x"
        assert made[1].closed.is_set()
        runner.join(LONG)
        assert not runner.is_alive()


def test_an_idle_session_ends_by_itself() -> None:
    host, made = host_of(idle_seconds=0.2)
    with host:
        called(host, "a", "x")
        until(made[1].closed.is_set)
        assert not host.is_alive("a")
        assert called(host, "a", "y") == "y"


def test_closing_ends_a_call_that_runs() -> None:
    host, made = host_of()
    runner = threading.Thread(target=called, args=(host, "a", "wait"))
    runner.start()
    until(lambda: len(made) == 2 and made[1].waiting.is_set())
    host.close()
    runner.join(LONG)
    assert not runner.is_alive()
    assert called(host, "a", "x") == "error: the call was cancelled"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ask-all"], "--ask-all is for --python and --browser; give one of them"),
        (["--python-folder", "x"], "--python-folder is for --python; give both"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "chat"])
def test_what_has_no_effect_is_refused(command: str, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(run.cli, [command, "missing.gguf", *arguments])
    assert isinstance(done.exception, OptionError)
    assert str(done.exception) == message


def test_no_tools_are_turned_on() -> None:
    with open_tool_host(BuiltinTools(), None) as host:
        assert host.groups("a") == ()


def test_chat_and_serve_have_the_same_options_for_tools() -> None:
    pages = [CliRunner().invoke(run.cli, [it, "--help"]).output for it in ("chat", "serve")]
    for name in ("--python ", "--python-folder", "--browser", "--mcp", "--ask-all"):
        texts = {page.partition(f"  {name}")[2].partition("\n  --")[0] for page in pages}
        assert len(texts) == 1, texts
        assert texts != {""}
