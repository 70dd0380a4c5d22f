"""How a command ends: one line and a code, whatever went wrong, and nothing left behind."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from gptoss import console
from gptoss.errors import InvalidFileError


@pytest.fixture(autouse=True)
def signals_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``run`` is a whole program's: it reads the arguments and sets signal handlers."""
    monkeypatch.setattr(sys, "argv", ["command"])
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.getsignal(signal.Signals[name]) for name in names}
    yield
    for name, handler in before.items():
        signal.signal(signal.Signals[name], handler)


def raising(error: BaseException) -> click.Command:
    @click.command()
    def command() -> None:
        raise error

    return command


def ended(capsys: pytest.CaptureFixture[str], error: BaseException) -> tuple[int, str]:
    """The exit code and stderr of a command that raises ``error``."""
    with pytest.raises(SystemExit) as exited:
        console.run(raising(error))
    assert isinstance(exited.value.code, int)
    return exited.value.code, capsys.readouterr().err


def test_a_message_is_one_line_that_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    code, err = ended(capsys, InvalidFileError("shard a\n\x1b[2Jb\x9b1A\u2028c\ud800 is missing"))
    assert (code, err) == (2, "error: shard a [2Jb 1A c  is missing\n")


def test_a_long_message_keeps_its_beginning_and_its_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, err = ended(capsys, InvalidFileError("model.gguf: " + "x" * 10**6 + " is unknown"))
    assert len(err) < 1100
    assert err.startswith("error: model.gguf: xxx")
    assert err.endswith("xxx is unknown\n")


def test_an_error_of_the_system_names_the_path(capsys: pytest.CaptureFixture[str]) -> None:
    error = OSError(errno.EACCES, "Permission denied", "folder/model.gguf")
    assert ended(capsys, error) == (2, "error: folder/model.gguf: Permission denied\n")
    error = OSError(errno.ENOSPC, "No space left on device")
    assert ended(capsys, error) == (2, "error: [Errno 28] No space left on device\n")


def test_a_mistake_of_ours_shows_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        console.run(raising(ZeroDivisionError()))


def test_a_code_that_the_command_gives_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(capsys, SystemExit(7)) == (7, "")


PROGRAM = r"""
import os, signal, sys, time
import click
from gptoss import console
from gptoss.errors import InvalidFileError

@click.command()
@click.argument("what")
def command(what):
    if what == "echo":
        click.echo(sys.stdin.read() + "\udcff \u20ac")
    elif what == "print":
        for _ in range(100_000):
            console.answer("line")
    elif what == "fail":
        raise InvalidFileError("model.gguf: is damaged")
    elif what == "say":
        console.say("a note")
    else:
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            print("cleaned up", flush=True)

if sys.argv[1:] == ["nohup"]:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
console.run(command)
"""


def echoed(given: bytes | None, encoding: str) -> tuple[int, bytes, bytes]:
    """What the program answers to ``given``, None being a closed stdin."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "echo"],
        input=given,
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": encoding},
        preexec_fn=(lambda: os.close(0)) if given is None else None,
    )
    return done.returncode, done.stdout.replace(b"\r", b""), done.stderr


def test_no_text_is_too_strange_for_the_streams() -> None:
    assert echoed(b"a\xffb", "utf-8:strict") == (0, "a\ufffdb? \u20ac\n".encode(), b"")
    assert echoed(b"a\xff", "latin-1:strict") == (0, b"a\xff? ?\n", b"")


@pytest.mark.skipif(os.name == "nt", reason="preexec_fn")
def test_a_closed_stdin_is_an_empty_one() -> None:
    assert echoed(None, "utf-8:strict") == (0, "? \u20ac\n".encode(), b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has this device")
class TestFullDisks:
    """What a stream is redirected to may be full; on stderr nothing depends."""

    def test_a_stdout_that_takes_nothing(self) -> None:
        with Path("/dev/full").open("w") as full:
            done = run_program("print", stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 2
        assert done.stderr == "error: standard output: No space left on device\n"

    def test_a_stderr_that_takes_nothing(self) -> None:
        with Path("/dev/full").open("w") as full:
            assert run_program("fail", stderr=full).returncode == 2
            assert run_program(stderr=full).returncode == 2
            assert run_program("say", stderr=full).returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="no SIGPIPE")
def test_a_stderr_whose_reader_has_gone() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert run_program("fail", stderr=writer).returncode == 2
        assert run_program("say", stderr=writer).returncode == 0
    finally:
        os.close(writer)


def run_program(*arguments: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], text=True, check=False, **streams
    )


def start(what: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither these signals nor SIGPIPE")
class TestSignals:
    @pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
    def test_ended_from_outside_it_cleans_up(self, number: str, code: int) -> None:
        with start("wait") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.Signals[number])
            out, err = process.communicate(timeout=20)
            assert (process.returncode, out, err) == (code, "cleaned up\n", "")

    def test_with_nohup_a_lost_terminal_ends_nothing(self) -> None:
        assert sys.platform != "win32"  # known to the type checkers
        with start("nohup") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=20)
            assert process.returncode == 143

    def test_a_reader_that_has_gone_is_not_the_answer_no(self) -> None:
        with start("print") as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == "line\n"
            process.stdout.close()
            assert process.stderr.read() == ""
            assert process.wait(timeout=20) == 141


@pytest.mark.parametrize("width", ["40", "80"])
def test_a_bar_takes_one_line_however_narrow_the_terminal(
    width: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("TERM", "xterm")
    with console.meter("verifying") as show:
        show(241_300_000, 857_775_584)
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    last = drawn.strip().rsplit("\n", 1)[-1]
    assert "verifying" in last
    assert ("MB" in last) == (width == "80")
