"""What a command shows of the loggers: warnings, everything with GPTOSS_LOG=debug."""

from __future__ import annotations

import logging

import pytest

from gptoss import logs

LOGGER = logging.getLogger("gptoss.somewhere")


def record() -> None:
    LOGGER.debug("a detail of %s", "a\x1b[2Jfile")
    LOGGER.warning("a warning")


@pytest.mark.parametrize("value", ["", "nonsense", "warning"])
def test_only_warnings(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(logs.VARIABLE, value)
    with logs.shown():
        record()
    assert capsys.readouterr() == ("", "warning: a warning\n")


def test_everything(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(logs.VARIABLE, "debug")
    with logs.shown():
        record()
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "gptoss.somewhere: debug: a detail of a\\x1b[2Jfile\nwarning: a warning\n"


def test_a_traceback_is_shown_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(logs.VARIABLE, "debug")
    with logs.shown():
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            LOGGER.debug("internal error", exc_info=True)
    assert "Traceback" in capsys.readouterr().err


def test_nothing_stays_behind(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("gptoss")
    before = logger.handlers[:], logger.level
    with logs.shown():
        assert logger.handlers != before[0]
    assert (logger.handlers, logger.level) == before
    capsys.readouterr()
