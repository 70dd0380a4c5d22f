"""The input line: completion, several lines, and the file of earlier lines."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, InMemoryHistory

from gptoss.runtime.terminal.prompt import CommandCompleter, open_history
from gptoss.runtime.terminal.typed_text import is_complete, message_of


def completions(text: str) -> list[str]:
    completer = CommandCompleter(["get_weather", "get_time"])
    return [it.text for it in completer.get_completions(Document(text), CompleteEvent())]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/re", ["reasoning", "regenerate", "resume", "reset"]),
        ("/ex", ["exit"]),
        ("/effort ", ["low", "medium", "high"]),
        ("/think hi", ["high"]),
        ("/tools o", ["on", "off"]),
        ("/tools off get_w", ["get_weather"]),
        ("/unknown x", []),
        ("/help ", []),
        ("hello /re", []),
        ("one\n/re", []),
        ("", []),
    ],
)
def test_completion(text: str, expected: list[str]) -> None:
    assert completions(text) == expected


def test_files_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "talk.json").touch()
    monkeypatch.chdir(tmp_path)
    assert completions("/load ta") == ["lk.json"]


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("hello", True), ("", True), ('"""', False), ('"""a', False), ('"""a\nb"""', True),
        ('""""', False), ('"""a""" b', False), ('a """', True), ('  """a\n"""  ', True),
    ],
)  # fmt: skip
def test_three_quotes(text: str, complete: bool) -> None:
    assert is_complete(text) is complete


def test_the_message_in_three_quotes() -> None:
    assert message_of('"""\na\n  b\n"""') == "a\n  b"
    assert message_of(' a"""b """ ') == ' a"""b """ '


def test_earlier_lines_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "history"
    for text in ("one", "two\nthree"):
        history = open_history(path)
        assert isinstance(history, FileHistory)
        history.append_string(text)
    assert list(open_history(path).load_history_strings()) == ["two\nthree", "one"]
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of a folder")
def test_a_file_that_cannot_be_used_keeps_nobody_from_typing(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file, not a folder")
    assert isinstance(open_history(tmp_path / "state" / "history"), InMemoryHistory)
    assert isinstance(open_history(None), InMemoryHistory)
    link = tmp_path / "dangling"
    link.symlink_to(tmp_path / "nowhere" / "x")
    assert isinstance(open_history(link), InMemoryHistory)
