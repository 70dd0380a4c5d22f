"""The whole terminal, in tmux: screens as a person sees them, keys as a person presses them."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gptoss.converter.convert import convert
from support.tmux import Screen

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]

ROOT = Path(__file__).resolve().parents[3]
SCRIPTED = ROOT / "tests" / "support" / "scripted_chat.py"
FINAL = "<|channel|>final<|message|>{}<|return|>"
THINK = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant"
CALL = '<|channel|>commentary to=functions.act<|message|>{"what": "x"}<|call|>'
TOOLS = '''
def act(what: str) -> str:
    """Do something."""
    return "did " + what
'''

Start = Callable[..., Screen]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the chat with what the model will say; its files of the user are in ``tmp_path``."""
    with ExitStack() as stack:

        def start(
            *scripts: str, options: tuple[str, ...] = (), columns: int = 80, rows: int = 24,
            seconds: float = 0.0, **environment: str,
        ) -> Screen:  # fmt: skip
            (tmp_path / "said.json").write_text(json.dumps(scripts), "utf-8")
            (tmp_path / "mytools.py").write_text(TOOLS, "utf-8")
            variables = user(tmp_path) | {"SECONDS": str(seconds)} | environment
            command: list[str | Path] = [sys.executable, SCRIPTED, "said.json", *options]
            screen = Screen(command, tmp_path, columns=columns, rows=rows, environment=variables)
            return stack.enter_context(screen)

        yield start


def user(folder: Path) -> dict[str, str]:
    return {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "XDG_DATA_HOME": str(folder / "user"),
        "XDG_STATE_HOME": str(folder / "user"),
        "HOME": str(folder / "user"),
    }


READY = "/help lists the commands"
PROMPT = "(Ctrl-T)"
"""In the bar, which is there while a message can be typed."""


def test_a_reply_at_80_by_24(start: Start) -> None:
    screen = start(THINK.format("Adding.") + FINAL.format("# Sum\nIt is **four**.\n\n* a\n* b"))
    screen.wait_for(READY, "effort medium")
    screen.keys("2 + 2?", "Enter")
    shown = screen.wait_for("tokens/s", "context")
    lines = [line.rstrip() for line in shown.splitlines()]
    assert lines[-1].startswith("said · effort medium (Ctrl-T) · context ")
    begin = lines.index("> 2 + 2?")
    assert re.fullmatch(r"▸ reasoned for \d+ s", lines[begin + 1])
    assert lines[begin + 2 : begin + 7] == ["Sum", "It is four.", "", " • a", " • b"]
    assert "\x1b[1m" in screen.text(styled=True), "bold"


def test_a_question_is_edited(start: Start) -> None:
    screen = start(FINAL.format("One."), FINAL.format("Two."))
    screen.wait_for(READY, PROMPT)
    screen.keys("first", "Enter")
    screen.wait_for("One.", PROMPT)
    screen.keys("/edit", "Enter")
    screen.wait_for("> /edit\n> first\n", PROMPT)
    screen.keys("C-c")
    screen.wait_for("> /edit\n> first\n>\n", PROMPT)
    screen.keys("/edit", "Enter")
    screen.wait_for("> first\n> /edit\n> first\n", PROMPT)
    screen.keys(" question", "Enter")
    screen.wait_for("> first question", "Two.", PROMPT)
    screen.keys("/context", "Enter")
    screen.wait_for("2 messages")


def test_reasoning_unfolds_by_a_key(start: Start) -> None:
    screen = start(THINK.format("One.\nTwo.\nThree.\n" * 20) + FINAL.format("x"), seconds=0.02)
    screen.wait_for(READY, PROMPT)
    screen.keys("a", "Enter")
    screen.wait_for("▸ reasoning")
    screen.keys("C-o")
    screen.wait_for("▾", "  Two.")
    screen.wait_for("▾ reasoned for")


def test_effort_changes_by_a_key(start: Start) -> None:
    screen = start()
    screen.wait_for("effort medium")
    screen.keys("C-t")
    screen.wait_for("effort high")
    screen.keys("/effort lo")
    screen.wait_for(" low\n")  # in the menu
    screen.keys("Tab")
    screen.wait_for("> /effort low")
    screen.keys("Enter")
    screen.wait_for("effort: low", "effort low")


def test_ctrl_c_stops_the_reply_and_what_is_typed_ahead_stays(start: Start) -> None:
    screen = start(FINAL.format("word " * 1000), FINAL.format("Second."), seconds=0.02)
    screen.wait_for(READY, PROMPT)
    screen.keys("a", "Enter")
    screen.wait_for("word word")
    screen.keys("next")
    screen.keys("C-c")
    screen.wait_for("stopped", "> next", PROMPT)
    screen.keys("Enter")
    screen.wait_for("Second.", PROMPT)
    screen.keys("C-d")
    screen.wait_for("exited 0")


def test_several_lines_and_history(start: Start, tmp_path: Path) -> None:
    screen = start(FINAL.format("1"), FINAL.format("2"))
    screen.wait_for(READY, PROMPT)
    screen.keys('"""first', "Enter", 'second"""', "Enter")
    screen.wait_for("tokens/s", PROMPT)
    screen.keys("one", "M-Enter", "two", "Enter")
    screen.wait_for("… two", "2\n", PROMPT)
    screen.keys("C-d")
    screen.wait_for("exited 0")
    history = tmp_path / "user" / "gptoss" / "history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "+two" in history.read_text("utf-8")


def test_history_of_an_earlier_session(start: Start, tmp_path: Path) -> None:
    state = tmp_path / "user" / "gptoss"
    state.mkdir(parents=True)
    (state / "history").write_text("\n# 2026-01-01\n+an old line\n")
    screen = start()
    screen.wait_for(READY, PROMPT)
    screen.keys("Up")
    screen.wait_for("> an old line")


def test_hostile_text_moves_nothing(start: Start) -> None:
    evil = "a\x1b]0;owned\x07b\x1b[2Jc\x1b[31md\x9b5me\u202ef\rg"
    call = f"<|channel|>commentary to=functions.act<|message|>{evil}<|call|>"
    screen = start(
        THINK.format(evil) + call, FINAL.format(f"{evil}\n\n```{evil}\n{evil}\n```"),
        options=("--tools", "mytools.py:act", "--approve-all"),
    )  # fmt: skip
    screen.wait_for(READY, PROMPT)
    before = screen.title()
    screen.keys("a", "Enter")
    shown = screen.wait_for("tokens/s")
    assert screen.title() == before
    assert shown.count("a\\x1b]0;owned\\x07b\\x1b[2Jc\\x1b[31md\\x9b5me\\u202ef\\x0dg") >= 2
    assert READY in shown, "nothing was erased"


def test_a_tool_is_asked_for(start: Start) -> None:
    screen = start(CALL, CALL, FINAL.format("Done."), options=("--tools", "mytools.py:act"))
    screen.wait_for(READY, PROMPT)
    screen.keys("a", "Enter")
    screen.wait_for('Run act({"what": "x"})? y yes, n no, a always here, r no with a reason')
    screen.keys("r")
    screen.wait_for("Reason, for the model:")
    screen.keys("not y", "BSpace", "now", "Enter")
    screen.wait_for("did not approve this call: not now", "with a reason\n")
    screen.keys("y")
    shown = screen.wait_for("did x", "Done.")
    assert shown.count('● act({"what": "x"})') == 2


def test_ctrl_c_at_a_question_in_a_narrow_terminal(start: Start) -> None:
    options = ("--tools", "mytools.py:act")
    screen = start(CALL, FINAL.format("Done."), options=options, columns=60)
    screen.wait_for("/help", PROMPT)
    screen.keys("a", "Enter")
    screen.wait_for("a always here, r no\nwith a reason")
    screen.keys("C-c")
    screen.wait_for("a always here, r no\nwith a reason\nstopped\n>", PROMPT)
    screen.keys("b", "Enter")
    screen.wait_for("Done.", PROMPT)


def test_ten_thousand_lines(start: Start) -> None:
    lines = "".join(f"line {i}\n" for i in range(10_000))
    screen = start(FINAL.format(f"```\n{lines}```"))
    screen.wait_for(READY, PROMPT)
    screen.keys("a", "Enter")
    assert "line 9999" in screen.wait_for("tokens/s")
    found = [int(it) for it in re.findall(r"line (\d+)", screen.text(history=True))]
    assert found[-1900:] == list(range(8_100, 10_000)), "as many as tmux keeps, none lost"


def test_wide_text_and_text_from_right_to_left(start: Start) -> None:
    screen = start(FINAL.format("世界你好 " * 20 + "\n\nשלום עולם مرحبا\n\n👩‍👩‍👧 é"), columns=40)
    screen.wait_for(READY, PROMPT)
    screen.keys("a", "Enter")
    shown = screen.wait_for("tokens/s", "עולם")
    assert shown.count("世") == shown.count("好") == 20


def test_resizing_in_the_middle(start: Start) -> None:
    text = " ".join(f"word{i}" for i in range(300))
    screen = start(FINAL.format(text), seconds=0.002)
    screen.wait_for(READY, PROMPT)
    screen.keys("a", "Enter")
    screen.wait_for("word30")
    screen.resize(50, 30)
    screen.wait_for("word90")
    screen.resize(100, 20)
    screen.wait_for("tokens/s", "word299")
    words = re.findall(r"word(\d+)", screen.text(history=True))
    assert [int(it) for it in words][-200:] == list(range(100, 300))


@pytest.mark.parametrize("columns", [20, 40])
def test_lines_of_the_program_break_at_words(start: Start, columns: int) -> None:
    screen = start(columns=columns)
    screen.wait_for(">")
    screen.keys("/tools", "Enter")
    shown = screen.wait_for("--mcp")
    assert any(line.rstrip().endswith("FILE") for line in shown.splitlines())
    assert all(word in shown for word in ("FILE.py:FUNCTION,", "--python,", "--browser,"))


@pytest.mark.parametrize("columns", [20, 40])
def test_a_narrow_terminal(start: Start, columns: int) -> None:
    screen = start(THINK.format("Hm. " * 30) + FINAL.format("A **reply**."), columns=columns)
    screen.wait_for(">")
    screen.keys("a", "Enter")
    screen.wait_for("A reply.")


def test_without_colour(start: Start) -> None:
    screen = start(THINK.format("x") + FINAL.format("# T\n`code`"), NO_COLOR="1")
    screen.wait_for(READY, PROMPT)
    screen.keys("a", "Enter")
    screen.wait_for("tokens/s")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", screen.text(styled=True))


@pytest.mark.parametrize("how", [{"options": ("--plain",)}, {"TERM": "dumb"}])
def test_for_a_screen_reader(start: Start, how: dict[str, object]) -> None:
    """Lines that are printed once, without styles; Ctrl-C and tools work too."""
    options = ("--tools", "mytools.py:act", *how.pop("options", ()))  # type: ignore[misc]
    screen = start(
        THINK.format("Thinking.") + CALL, FINAL.format("Done."), FINAL.format("w " * 5000),
        options=options, seconds=0.002, **how,
    )  # fmt: skip
    screen.wait_for(READY, "\n>")
    screen.keys("a", "Enter")
    screen.wait_for('Run act({"what": "x"})? y yes, n no, a always here, r no with a reason:')
    screen.keys("y", "Enter")
    shown = screen.wait_for("tokens/s")
    assert '[analysis] Thinking.\nact({"what": "x"})' in shown
    assert "\x1b" not in screen.text(styled=True)
    screen.keys("b", "Enter")
    screen.wait_for("w w w")
    screen.keys("C-c")
    screen.wait_for("[stopped]\n>")


def test_leaving_and_resuming_with_a_real_model(tmp_path: Path) -> None:
    convert(ROOT / "tests" / "tiny" / "checkpoint", tmp_path / "tiny.gguf")
    command: list[str | Path] = [Path(sys.executable).with_name("gptoss-run"), "chat", "tiny.gguf"]
    with Screen(command, tmp_path, environment=user(tmp_path)) as screen:
        screen.wait_for(READY, PROMPT)
        screen.keys("What is 17 + 25?", "Enter")
        screen.wait_for("42", "tokens/s", PROMPT)
        screen.keys("/bye", "Enter")
        screen.wait_for("exited 0")
    with Screen([*command, "--continue"], tmp_path, environment=user(tmp_path)) as screen:
        screen.wait_for("continuing: What is 17 + 25? (3 messages)", "17 + 25 = 42.", READY)
        screen.keys("Thanks, bye!", "Enter")
        screen.wait_for("tokens/s", PROMPT)
        screen.keys("/conversations", "Enter")
        screen.wait_for("  1  What is 17 + 25?  (")
    piped = subprocess.run(
        [*command, "-c", "-p", "What is 3 + 4?", "--temperature", "0", "--hide-reasoning"],
        cwd=tmp_path, env=os.environ | user(tmp_path), input="", capture_output=True, text=True,
    )  # fmt: skip
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout == "3 + 4 = 7.\n"
