"""Progress bars as they are drawn at a terminal."""

from __future__ import annotations

import pytest

from gptoss import progress_bars


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", "80")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_a_step_that_is_not_taken_leaves_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint that is here already is not downloaded."""
    with progress_bars.meters("downloading", "converting", "verifying") as steps:
        _, convert, verify = steps
        convert(10, 10)
        verify(10, 10)
    shown = capsys.readouterr().err
    assert "downloading" in shown, "from the beginning"
    assert shown.rindex("downloading") < shown.index("converting")
    assert shown.rindex("converting") > shown.index("verifying"), "what was done stays"
