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

from gptoss import console, progress_bars
from gptoss.errors import InvalidFileError
from support.posix import SIGHUP


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
    code, err = ended(
        capsys, InvalidFileError("shard a\n\x1b[2Jb\x9b1A\u2028c\ud800\u202e is gone")
    )
    assert code == 2
    assert err == "error: shard a\\n\\x1b[2Jb\\x9b1A\\u2028c\\ud800\\u202e is gone\n"


def test_an_answer_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console.answer_lines(["blk.0\nproven: all", "a\x1b[1Fb", "Größe 日本"])
    assert capsys.readouterr().out == "blk.0\\nproven: all\na\\x1b[1Fb\nGröße 日本\n"
    console.answer("one\ntwo\x1b[1F")
    assert capsys.readouterr().out == "one\ntwo\\x1b[1F\n"


def test_a_wrong_request_is_quoted_printably(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["command", "--\x1b[2Jno"])
    with pytest.raises(SystemExit) as exited:
        console.run(raising(ZeroDivisionError()))
    assert exited.value.code == 2
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert err.startswith("Usage: command")
    assert re.search(r"Error: No such option:? '?--\\x1b\[2Jno'?\.?\n$", err)


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


def test_a_mistake_of_ours_is_one_line_with_a_code_of_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, err = ended(capsys, ZeroDivisionError("a\nb"))
    assert code == 70
    assert re.fullmatch(
        r"internal error: ZeroDivisionError at test_console.py, line \d+: a\\nb; .* report it\n",
        err,
    )
    assert ended(capsys, MemoryError())[0] == 70


def test_a_code_that_the_command_gives_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(capsys, SystemExit(7)) == (7, "")


PROGRAM = r"""
import os, signal, sys, time
import click
from gptoss import console, progress_bars
from gptoss.errors import InvalidFileError

@click.command()
@click.argument("what")
def command(what):
    if what == "echo":
        click.echo(sys.stdin.read() + "\udcff \u20ac")
    elif what == "print":
        for _ in range(100_000):
            console.answer("line")
    elif what == "write":
        print("text" * 10_000)
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

    @pytest.mark.parametrize("what", ["print", "write", "--help"])
    def test_a_stdout_that_takes_nothing(self, what: str) -> None:
        with Path("/dev/full").open("w") as full:
            done = run_program(what, stdout=full, stderr=subprocess.PIPE)
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
            out, err = process.communicate(timeout=60)
            assert (process.returncode, out, err) == (code, "cleaned up\n", "")

    def test_with_nohup_a_lost_terminal_ends_nothing(self) -> None:
        with start("nohup") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(SIGHUP)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
            assert process.returncode == 143

    def test_a_reader_that_has_gone_is_not_the_answer_no(self) -> None:
        with start("print") as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == "line\n"
            process.stdout.close()
            assert process.stderr.read() == ""
            assert process.wait(timeout=60) == 141


def bar_lines(
    width: int,
    steps: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    title: str = "verifying",
) -> list[str]:
    """What a bar draws on a terminal of that width, line by line, without its colours."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    with progress_bars.meter(title) as show:
        for step in steps:
            show(*step)
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    return [line for line in re.split(r"[\r\n]+", drawn) if line.strip()]


@pytest.mark.parametrize("width", [40, 63, 80, 200])
def test_a_bar_takes_one_line_however_narrow_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And leaves room for the "^C" that a terminal adds to it."""
    lines = bar_lines(width, [(0, 10**13), (10**13 - 1, 10**13)], monkeypatch, capsys)
    assert {line.split()[0] for line in lines} == {"verifying"}  # no line is the rest of another
    assert max(map(len, lines)) <= width - 3
    assert ("10,000.0/10,000.0 GB" in lines[-1]) == (width >= 63)


def test_a_title_is_printable_and_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    title = "loading [red]\x1b[2J" + "x" * 100
    lines = bar_lines(80, [(1, 2)], monkeypatch, capsys, title)
    assert max(map(len, lines)) <= 77
    assert all("\x1b" not in line for line in lines)


def test_a_bar_shows_no_figures_before_there_are_any(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And no rate of what an earlier run did."""
    lines = bar_lines(80, [], monkeypatch, capsys)
    assert not any("?" in line or "B" in line for line in lines)
    lines = bar_lines(80, [(9 * 10**12, 10**13), (9 * 10**12 + 5, 10**13)], monkeypatch, capsys)
    assert not any("B/s" in line for line in lines)
