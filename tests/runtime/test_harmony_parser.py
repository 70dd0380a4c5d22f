"""The parser: good turns, malformed ones with what they must be taken for, and random ids."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from gptoss.runtime.harmony.events import (
    Diagnostic,
    End,
    Event,
    MessageEnded,
    TextDelta,
)
from gptoss.runtime.harmony.messages import Role
from gptoss.runtime.harmony.parser import Parser
from gptoss.runtime.harmony.parser import parse as parse_with
from gptoss.runtime.harmony.state import TRANSITIONS, State, TokenKind
from support.malformed import GOOD, MALFORMED, Case, outcome, summary
from support.random_turns import Sequences, check_events, check_replay
from support.tokens import byte_tokenizer, spell
from tiny.training.vocabulary import tokenizer

TOKENIZER = byte_tokenizer()
CHECKPOINT = Path(__file__).parents[1] / "tiny" / "checkpoint"
SEQUENCES = Sequences(TOKENIZER)
CASES = GOOD + MALFORMED
ENDED = [case for case in CASES if case.end != End.CUT]


def parse(ids: list[int], role: Role | None = Role.ASSISTANT) -> list[Event]:
    return parse_with(ids, TOKENIZER, role)


def test_the_corpus_is_as_large_as_it_should_be() -> None:
    assert len(MALFORMED) > 140
    assert len({case.turn for case in CASES}) == len(CASES)
    assert not any(case.repairs for case in GOOD)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.turn[:60])
def test_turn(case: Case) -> None:
    events = parse(case.ids)
    assert outcome(case.turn, events) == case
    check_events(TOKENIZER, case.ids, events)
    check_replay(TOKENIZER, events)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.turn[:60])
def test_turn_cut_at_each_point(case: Case) -> None:
    """Stopped anywhere, a turn has given the events it would have given until there."""
    whole = parse(case.ids)
    parser = Parser(TOKENIZER)
    given: list[Event] = []
    for at, token in enumerate(case.ids):
        given += parser.push(token)
        assert given == whole[: len(given)]
        check_events(TOKENIZER, case.ids[: at + 1], parse(case.ids[: at + 1]))
    assert given + parser.finish() == whole
    assert parser.finish() == []


@pytest.mark.parametrize("case", ENDED, ids=lambda case: case.turn[:60])
def test_turn_with_trailing_input(case: Case) -> None:
    """What comes behind a turn's end changes nothing of the turn, and is told."""
    more = [*spell("<|start|>user<|message|>"), *b"QXZ", 0xF0, *spell("<|return|>")]
    parser = Parser(TOKENIZER)
    events = [event for token in case.ids for event in parser.push(token)]
    assert events == parse(case.ids)
    behind = [event for token in more for event in parser.push(token)] + parser.finish()
    assert [e.code for e in behind if isinstance(e, Diagnostic)] == ["after-end"] * len(behind)
    assert "".join(e.text for e in behind if isinstance(e, Diagnostic)) == "userQXZ"


def test_control_tokens_spelled_out_in_plain_text() -> None:
    """Some models write the letters of ``<|constrain|>`` instead of its token."""
    ids = spell("<|channel|>commentary to=functions.f ")
    ids += TOKENIZER.encode("<|constrain|>json")
    ids += spell("<|message|>{}<|call|>")
    events = parse(ids)
    [message] = [event.message for event in events if isinstance(event, MessageEnded)]
    assert summary(message) == "commentary to=functions.f <|constrain|>json: {}"
    assert [e.code for e in events if isinstance(e, Diagnostic)] == ["spelled-out"]


def test_whole_header_spelled_out() -> None:
    events = parse(TOKENIZER.encode("<|channel|>final") + spell("<|message|>4<|return|>"))
    [message] = [event.message for event in events if isinstance(event, MessageEnded)]
    assert summary(message) == "final: 4"


def test_deltas_never_split_a_character() -> None:
    events = parse(spell("<|channel|>final<|message|>ñ🙂<|return|>"))
    assert [e.text for e in events if isinstance(e, TextDelta)] == ["ñ", "🙂"]


def test_broken_character_is_replaced_not_lost() -> None:
    ids = [*spell("<|channel|>final<|message|>a"), 0xF0, 0x9F, *spell("<|return|>")]
    [message] = [e.message for e in parse(ids) if isinstance(e, MessageEnded)]
    assert message.text == "a\ufffd"


def test_tokens_are_kept_for_replay_unless_something_was_repaired() -> None:
    first = spell("<|channel|>analysis<|message|>hm<|end|>")
    second = spell("<|channel|>final<|message|>4<|return|>")
    events = parse([*first, *spell("<|start|>assistant"), *second])
    kept = [event.message.tokens for event in events if isinstance(event, MessageEnded)]
    assert kept == [tuple(first), tuple(second)]
    [mended] = [
        event.message
        for event in parse(spell("<|channel|>final<|message|>a<|constrain|>b<|return|>"))
        if isinstance(event, MessageEnded)
    ]
    assert mended.tokens is None


def test_every_state_knows_every_kind() -> None:
    for state in State:
        assert set(TRANSITIONS[state]) == set(TokenKind)
        for action in TRANSITIONS[state].values():
            assert callable(getattr(Parser, f"_{action}"))


def test_ids_outside_the_vocabulary_are_reported() -> None:
    events = parse([*spell("<|channel|>final<|message|>a"), -1, 10**9, *spell("<|return|>")])
    assert [e.code for e in events if isinstance(e, Diagnostic)] == ["stray", "stray"]


CIRCLES = (
    *TOKENIZER.control, "a", " ", "\n", "<|start|>a", "<|channel|>a ", "<|channel|>to= <|message|>",
    "<|start|><|channel|><|end|>",
)  # fmt: skip


@pytest.mark.parametrize("turn", CIRCLES)
def test_the_same_over_and_over_costs_no_more_each_time(turn: str) -> None:
    """Models go in circles; the events of a long one must not fill the memory."""
    ids = spell(turn) * (100_000 // len(spell(turn)))
    begun = time.process_time()
    size = sum(len(str(event)) for event in parse(ids) if isinstance(event, Diagnostic))
    assert size < 1_000 * len(ids)
    assert time.process_time() - begun < 5


def test_random_ids_give_events() -> None:
    rng = random.Random(0)
    for _ in range(5_000):
        check_replay(TOKENIZER, SEQUENCES.check(SEQUENCES.draw(rng), Role.ASSISTANT))
        SEQUENCES.check(SEQUENCES.draw(rng), role=None)


@pytest.mark.slow
def test_a_million_random_sequences() -> None:
    """Over a vocabulary of bytes, and one of o200k's first words."""
    words = Sequences(tokenizer(json.loads((CHECKPOINT / "tokenizer.json").read_text("utf-8"))))
    rng = random.Random(1)
    for _ in range(500_000):
        SEQUENCES.check(SEQUENCES.draw(rng))
        words.check(words.draw(rng))
