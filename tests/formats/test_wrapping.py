"""Lines for people keep their words whole on a terminal; in a pipe they stay one line."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from gptoss.wrapping import wrap_for, wrap_line

WORDS = "error: the weights need eleven gigabytes, and nine of them are available at this moment"
PATH = "/a/folder/with-a-long-name/that-does-not-fit-into-one-line/gpt-oss-20b.gguf"
PROGRAM = f"""
import logging
from gptoss import console, logs
with logs.shown():
    console.say("first {WORDS}")
    console.answer_lines(["  second {WORDS}", "short"])
    console.say("third {PATH}: {WORDS}")
    logging.getLogger("gptoss.x").warning("fourth {WORDS}")
"""


@pytest.mark.parametrize("columns", [20, 60, 80])
def test_words_are_kept_whole(columns: int) -> None:
    for text in (WORDS, f"  {WORDS}", f"{PATH}: {WORDS}"):
        lines = wrap_line(text, columns)
        assert " ".join(" ".join(lines).split()) == text.strip()
        assert all(len(it) <= columns for it in lines if PATH not in it)
        assert {it.startswith("    " if text[0] == " " else "  ") for it in lines[1:]} == {True}


def test_wide_characters_take_two_columns() -> None:
    assert wrap_line("日本語 " * 3, 12) != ["日本語 " * 3]


def test_a_line_that_fits_is_not_changed() -> None:
    assert wrap_line("  a   b ", 9) == ["  a   b "]
    assert wrap_line(" " * 90, 80) == [" " * 90]


def test_a_pipe_gets_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines() == [f"  second {WORDS}", "short"]
    assert done.stderr.splitlines() == [
        f"first {WORDS}", f"third {PATH}: {WORDS}", f"warning: fourth {WORDS}"
    ]  # fmt: skip
    with (tmp_path / "file").open("w") as file:
        assert wrap_for(file, WORDS) == WORDS


if sys.platform != "win32":  # which has no pseudo-terminals
    import fcntl
    import termios

    @pytest.mark.parametrize("columns", [60, 200])
    def test_a_terminal_breaks_no_word(columns: int) -> None:
        reader, writer = os.openpty()
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=writer, stderr=writer):
            os.close(writer)
            shown = b""
            with suppress(OSError):  # how Linux ends a terminal that nothing holds
                while data := os.read(reader, 4096):
                    shown += data
        os.close(reader)
        lines = shown.decode().splitlines()
        assert all(len(it) < columns for it in lines if PATH not in it)
        assert " ".join(" ".join(lines).split()) == (
            f"first {WORDS} second {WORDS} short third {PATH}: {WORDS} warning: fourth {WORDS}"
        )
        assert (len(lines) > 5) == (columns == 60)
