"""Approval of calls: asked once, remembered for a conversation, refused with a reason."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from gptoss.runtime.tools.approval import MAX_REASON_CHARACTERS, Approval, Approve, Decision
from gptoss.runtime.tools.cancel import CancelToken
from gptoss.runtime.tools.functions import Tool
from gptoss.runtime.tools.toolbox import Outcome, Toolbox


def now() -> str:
    """Tell the time."""
    return "noon"


NOW = replace(Tool.of(now), needs_approval=True)


def called(approve: Approve | None, seconds: float | None = None) -> Outcome:
    return Toolbox([NOW], approve).call("functions.now", "{}", seconds=seconds)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (True, "noon"),
        (Decision(True), "noon"),
        (False, "error: the person did not approve this call; do not repeat it"),
        (Decision(False, reason=" "), "error: the person did not approve this call; do not repeat "
                                      "it"),
        (Decision(False, reason="use UTC"), "error: the person did not approve this call: use UTC"),
        (Decision(False, always=True), "error: the person did not approve this call; do not repeat "
                                       "it"),
    ],
)  # fmt: skip
def test_what_the_model_reads(answer: bool | Decision, text: str) -> None:
    asked: list[tuple[str, str]] = []

    def approve(recipient: str, arguments: str) -> bool | Decision:
        asked.append((recipient, arguments))
        return answer

    outcome = called(approve)
    assert (outcome.text, outcome.error) == (text, text != "noon")
    assert asked == [("functions.now", "{}")]


def test_without_a_person_it_is_refused() -> None:
    assert "did not approve" in called(None).text
    assert Toolbox([now]).call("functions.now", "{}").text == "noon", "functions that need none run"


def test_a_long_reason_is_cut() -> None:
    assert len(called(lambda *_: Decision(False, reason="x" * 10**6)).text) < (
        MAX_REASON_CHARACTERS + 100
    )


def test_always_holds_for_the_tool_until_it_is_forgotten() -> None:
    asked: list[str] = []

    def ask(recipient: str, _: str) -> Decision:
        asked.append(recipient)
        return Decision(True, always=True)

    approval = Approval(ask)
    for recipient in ("functions.a", "functions.a", "files.read", "functions.a"):
        assert approval(recipient, "{}").allowed
    assert asked == ["functions.a", "files.read"]
    approval.forget()
    approval("functions.a", "{}")
    assert asked == ["functions.a", "files.read", "functions.a"]


def test_refused_is_not_remembered() -> None:
    answers = iter([Decision(False, always=True), Decision(True)])
    approval = Approval(lambda *_: next(answers))
    assert not approval("functions.a", "{}").allowed
    assert approval("functions.a", "{}").allowed


def test_calls_side_by_side_are_asked_for_one_by_one() -> None:
    asking, most = 0, 0

    def ask(*_: str) -> Decision:
        nonlocal asking, most
        asking += 1
        most = max(most, asking)
        time.sleep(0.01)
        asking -= 1
        return Decision(True)

    approval = Approval(ask)
    threads = [threading.Thread(target=approval, args=(f"f.{i}", "")) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_the_person_s_time_is_not_the_tool_s() -> None:
    def slow(*_: str) -> bool:
        time.sleep(1.2)
        return True

    assert called(slow, seconds=1).text == "noon"


def test_a_reply_that_was_cancelled_meanwhile_calls_nothing() -> None:
    token = CancelToken()

    def approve(*_: str) -> bool:
        token.event.set()
        return True

    outcome = Toolbox([NOW], approve).call("functions.now", "{}", token)
    assert outcome.text == "error: the reply was cancelled"


def test_a_person_who_interrupts() -> None:
    def approve(*_: str) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        called(approve)
