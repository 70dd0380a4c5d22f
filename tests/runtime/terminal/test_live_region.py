"""The lines that change, against a small terminal that understands what is written to it."""

from __future__ import annotations

import io
import random
import re

import pytest
from rich.console import Console
from rich.segment import Segment

from gptoss.runtime.chat.events import PromptProgress, ReplyEnded, ToolFinished, ToolStarted
from gptoss.runtime.engine.base import Timings
from gptoss.runtime.harmony.events import End, MessageEnded, MessageStarted, TextDelta
from gptoss.runtime.harmony.messages import Message, Role
from gptoss.runtime.terminal.live_region import LiveRegion
from gptoss.runtime.terminal.live_view import LiveView

WIDTH, HEIGHT = 40, 10


class Emulator(io.StringIO):
    """A terminal of one-column characters: lines, the cursor, and what is above the screen."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = [""]
        self.row = self.column = 0

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        for piece in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|.|\n", text, re.DOTALL):
            self._put(piece)
        return super().write(text)

    def _put(self, piece: str) -> None:
        if piece == "\n":
            self.row, self.column = self.row + 1, 0
            self.lines += [""] * (self.row + 1 - len(self.lines))
        elif piece == "\r":
            self.column = 0
        elif found := re.fullmatch(r"\x1b\[(\d+)A", piece):
            self.row -= int(found[1])
            assert self.row >= max(0, len(self.lines) - HEIGHT), "above the screen"
        elif piece == "\x1b[J":
            self.lines[self.row :] = [self.lines[self.row][: self.column]]
        elif not piece.startswith("\x1b"):
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + piece + line[self.column + 1 :]
            self.column += 1
            assert self.column <= WIDTH

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines)


@pytest.fixture(autouse=True)
def size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.setenv("LINES", str(HEIGHT))
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_any_order_of_drawings_shows_the_last() -> None:
    chance = random.Random(7)
    out = Emulator()
    region = LiveRegion(Console(file=out, force_terminal=True), out)
    printed: list[str] = []
    for _ in range(2000):
        drawn = [f"{chance.choice('ab')}{i}" for i in range(chance.randint(0, 12))]
        final = [f"final {len(printed) + i}" for i in range(chance.choice([0, 0, 1, 3]))]
        region.draw([[Segment(it)] for it in drawn], [[Segment(it)] for it in final])
        printed += final
        assert out.text.split("\n") == [*printed, *(drawn[-region.height :] or [""])]


def test_only_what_changed_is_written() -> None:
    out = Emulator()
    region = LiveRegion(Console(file=out, force_terminal=True), out)
    region.draw([[Segment("the same line")], [Segment("one")]])
    before = len(out.getvalue())
    region.draw([[Segment("the same line")], [Segment("two")]])
    assert "same" not in out.getvalue()[before:]
    before = len(out.getvalue())
    region.draw([[Segment("the same line")], [Segment("two")]])
    assert out.getvalue()[before:] == ""


# --- a reply -----------------------------------------------------------------------------------


def message(channel: str, *texts: str, recipient: str | None = None) -> list[object]:
    started = MessageStarted(Role.ASSISTANT, None, channel, recipient, None)
    whole = Message(Role.ASSISTANT, "".join(texts), channel=channel, recipient=recipient)
    return [started, *[TextDelta(it, channel) for it in texts], MessageEnded(whole)]


REPLY = [
    PromptProgress(0, 5000, 0),
    PromptProgress(2000, 5000, 0),
    *message("analysis", "Think about ", "it.\nThen ", "more."),
    *message("commentary", '{"city":', '"Oslo"}', recipient="functions.weather"),
    ToolStarted("weather", '{"city":"Oslo"}'),
    ToolFinished("weather", '{"city":"Oslo"}', "3 degrees", False, 0.012),
    *message("final", "# Cold\n", "It is **3", "** degrees.\n\n* one", "\n* two"),
    ReplyEnded(End.RETURN, Timings(100, 60, 20, 0.5, 2.0)),
]


def shown(events: list[object], *, unfolded: bool = False) -> str:
    """What is on the screen in the end; each event comes a second after the one before."""
    now = 0.0
    out = Emulator()
    view = LiveView(out, unfolded=unfolded, clock=lambda: now)
    view.begin()
    for event in events:
        now += 1
        view.show(event)  # type: ignore[arg-type]
    return out.text


ENDING = "\n".join(
    [
        '● weather({"city":"Oslo"})',
        "  3 degrees  12 ms",
        "Cold",
        "It is 3 degrees.",
        "",
        " • one",
        " • two",
        "100 prompt tokens, 60 of them reused,",
        "0.50 s; 20 generated, 10.0 tokens/s",
        "",
    ]
)


def test_a_reply_with_its_reasoning_folded() -> None:
    text = shown(REPLY)
    assert re.sub(r"\d+ s$", "N s", text.split("\n")[0]) == "▸ reasoned for N s"
    assert text.partition("\n")[2] == ENDING


def test_a_reply_with_its_reasoning_unfolded() -> None:
    first, second, third, rest = shown(REPLY, unfolded=True).split("\n", 3)
    assert (first, second) == ("  Think about it.", "  Then more.")
    assert third.startswith("▾ reasoned for ")
    assert rest == ENDING


def test_code_and_its_output_are_shown_as_lines() -> None:
    code = "for i in range(2):\n    print(i)\n"
    numbers = "\n".join(map(str, range(40)))
    events = [
        *message("analysis", code, recipient="python"), ToolStarted("python", code),
        ToolFinished("python", code, numbers, False, 0.012), REPLY[-1],
    ]  # fmt: skip
    lines = shown(events).split("\n")
    assert lines[:3] == ["● python", "  for i in range(2):", "      print(i)"]
    assert lines[3:16] == [*(f"  {i}" for i in range(12)), "  … 28 more lines  12 ms"]


def test_while_it_comes() -> None:
    assert shown(REPLY[:2]).startswith("… reading 2,000 of 5,000 tokens, ")
    assert shown(REPLY[:5]) == "▸ reasoning 2 s (Ctrl-O unfolds)  t it."
    assert shown(REPLY[:10]).endswith('● weather({"city":"Oslo"}')
    assert shown(REPLY[:12]).endswith("… running weather")
    assert shown(REPLY[:17]).endswith("Cold\nIt is 3 degrees.\n\n • one")


def test_a_block_taller_than_the_screen() -> None:
    rows = "".join(f"| {i} | x |\n" for i in range(50))
    table = ["| a | b |\n|---|---|\n", *rows.splitlines(keepends=True)]
    text = shown([*message("final", *table), REPLY[-1]])
    assert [int(it) for it in re.findall(r"^ (\d+) +x", text, re.MULTILINE)] == list(range(50))


def test_no_event_drives_the_terminal() -> None:
    evil = "a\x1b]0;owned\x07b\x9b31mc\x1b[2J\u202e\n"
    events = [
        *message("analysis", evil), *message("final", evil, f"```{evil}{evil}```\n", evil),
        *message("commentary", evil, recipient=evil), ToolStarted(evil, evil),
        ToolFinished(evil, evil, evil, True, 0.1), *message("commentary", evil), REPLY[-1],
    ]  # fmt: skip
    for unfolded in (False, True):
        out = Emulator()
        view = LiveView(out, unfolded=unfolded)
        for event in events:
            view.show(event)  # type: ignore[arg-type]
        plain = re.sub(r"\x1b\[[0-9;]*m|\x1b\[\d+A|\x1b\[J|\x1b\[\?2026[hl]|\r", "", out.getvalue())
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", plain)


def test_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = Emulator()
    view = LiveView(out)
    for event in REPLY:
        view.show(event)  # type: ignore[arg-type]
    assert not re.search(r"\x1b\[[0-9;]*3\dm", out.getvalue())
