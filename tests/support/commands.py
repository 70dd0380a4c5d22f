"""A command run in this process, the way its console script calls it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Done]
"""Runs it with arguments, of which ``str`` is taken."""


def command(
    name: str,
    main: Callable[[], object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """The command of that name; ``main`` must end it by ``SystemExit``, with a number."""

    def run(*arguments: object) -> Done:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [name, *map(str, arguments)])
            with pytest.raises(SystemExit) as exited:
                main()
        assert isinstance(exited.value.code, int)
        return Done(exited.value.code, *capsys.readouterr())

    return run
