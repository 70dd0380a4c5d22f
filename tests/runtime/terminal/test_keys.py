"""Keys that are pressed while a reply is shown, on a pseudo-terminal."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import pytest

from gptoss.runtime.terminal.keys import KeyListener

if sys.platform == "win32":
    pytest.skip("pseudo-terminals", allow_module_level=True)

import pty
import select
import termios


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Where keys are pressed; standard input is the other end."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "r") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield ours
    with suppress(OSError):
        os.close(ours)


def press(keyboard: int, keys: str, until: list[str], count: int) -> None:
    os.write(keyboard, keys.encode())
    wait_until(lambda: len(until) >= count)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)


def test_keys_do_what_they_are_for_and_the_rest_is_typed_ahead(keyboard: int) -> None:
    pressed: list[str] = []
    listener = KeyListener({"\x0f": lambda: pressed.append("o")})
    before = termios.tcgetattr(sys.stdin)
    with listener.listening():
        assert not termios.tcgetattr(sys.stdin)[3] & termios.ECHO
        press(keyboard, "hä\x7fi\x0f", pressed, 1)
    assert pressed == ["o"]
    assert listener.typed_ahead == "hi"
    assert termios.tcgetattr(sys.stdin) == before


def test_ctrl_c_drops_nothing_typed_before_it(keyboard: int) -> None:
    """Both come at once, so that nothing was read when the terminal sees Ctrl-C."""
    listener = KeyListener({})
    with listener.listening():
        os.write(keyboard, b"next\x03")
        wait_until(lambda: listener.typed_ahead == "next")
    assert listener.typed_ahead == "next"


def test_ctrl_c_as_the_keyboard_is_taken(keyboard: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that reads it ends: otherwise the next prompt would get no keys."""
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    before = termios.tcgetattr(sys.stdin)
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    listener = KeyListener({})
    with pytest.raises(KeyboardInterrupt), listener.listening():
        pytest.fail("it was interrupted")
    assert termios.tcgetattr(sys.stdin) == before
    check_free(keyboard)


def test_ctrl_c_as_the_keyboard_is_given_back(
    keyboard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = threading.Event.wait
    waits: list[float | None] = []

    def interrupted_once(event: threading.Event, timeout: float | None = None) -> bool:
        if threading.current_thread() is threading.main_thread():
            waits.append(timeout)
            if len(waits) == 1:
                raise KeyboardInterrupt
        return wait(event, timeout)

    listener = KeyListener({})
    with pytest.raises(KeyboardInterrupt), listener.listening():
        monkeypatch.setattr(threading.Event, "wait", interrupted_once)
    assert len(waits) == 2
    check_free(keyboard)


def check_free(keyboard: int) -> None:
    """Keys that are typed after the reply belong to the next prompt."""
    os.write(keyboard, b"x\n")
    assert select.select([sys.stdin], [], [], 10)[0], "another reader took it"
    assert os.read(sys.stdin.fileno(), 10) == b"x\n"


def test_what_follows_a_line_end_is_not_typed_ahead(keyboard: int) -> None:
    pressed: list[str] = []
    listener = KeyListener({"\x0f": lambda: pressed.append("o")})
    with listener.listening():
        press(keyboard, "one\rrm -rf\r\x0f", pressed, 1)
    assert listener.typed_ahead == "one", "and nothing is sent that was not looked at"


def test_asking(keyboard: int) -> None:
    listener = KeyListener({})
    with listener.listening():
        os.write(keyboard, b"xY")  # typed before it was asked for: no answer
        wait_until(lambda: listener.typed_ahead == "xY")

        def answer() -> None:
            wait_until(lambda: listener._asked is not None)
            os.write(keyboard, b"qN")

        threading.Thread(target=answer).start()
        assert listener.ask("yna") == "n"


def test_asking_for_a_line(keyboard: int) -> None:
    listener = KeyListener({})
    shown: list[str] = []
    steps = ("no é日", "no é日"), ("\x7f\x7fw", "no é日\b \b\b \b\b \bw")

    def is_shown(text: str) -> bool:
        return "".join(shown) == text

    def answer() -> None:
        wait_until(lambda: listener._asked is not None)
        for keys, then_shown in steps:
            os.write(keyboard, keys.encode())
            wait_until(partial(is_shown, then_shown))
        os.write(keyboard, b"\r")

    with listener.listening():
        threading.Thread(target=answer).start()
        assert listener.ask_line(shown.append) == "no w"
    assert "".join(shown) == steps[-1][1]


def test_a_terminal_that_goes_away(keyboard: int) -> None:
    listener = KeyListener({})
    with suppress(termios.error), listener.listening():
        os.close(keyboard)
        with pytest.raises(EOFError):
            listener.ask("y")
