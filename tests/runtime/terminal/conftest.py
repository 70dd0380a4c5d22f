"""A plain terminal at which lines are typed, and a store."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from gptoss.runtime.store.store import Store
from gptoss.runtime.terminal import plain_terminal
from gptoss.runtime.terminal.loop import converse
from gptoss.runtime.terminal.plain_terminal import PlainTerminal
from gptoss.runtime.terminal.session import Session
from support.terminal_session import Talk


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Talk:
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


@pytest.fixture
def store() -> Iterator[Store]:
    with Store(None) as made:
        yield made
