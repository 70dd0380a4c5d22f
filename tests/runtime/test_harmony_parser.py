"""The parser: good turns, malformed ones with what they must be taken for, and random ids."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from gptoss.runtime.harmony.events import (
    Diagnostic,
    End,
    Event,
    MessageEnded,
    MessageStarted,
    TextDelta,
    TurnEnded,
)
from gptoss.runtime.harmony.messages import Role
from gptoss.runtime.harmony.parser import TRANSITIONS, Kind, Parser, State
from gptoss.runtime.harmony.parser import parse as parse_with
from support.malformed import GOOD, MALFORMED, Case, outcome, summary
from support.tokens import byte_tokenizer, spell

TOKENIZER = byte_tokenizer()
CASES = GOOD + MALFORMED
ENDED = [case for case in CASES if case.end != End.CUT]


def parse(ids: list[int], role: Role | None = Role.ASSISTANT) -> list[Event]:
    return parse_with(ids, TOKENIZER, role)


def test_the_corpus_is_as_large_as_it_should_be() -> None:
    assert len(MALFORMED) > 110
    assert len({case.turn for case in CASES}) == len(CASES)
    assert not any(case.repairs for case in GOOD)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.turn[:60])
def test_turn(case: Case) -> None:
    events = parse(case.ids)
    assert outcome(case.turn, events) == case
    check_events(case.ids, events)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.turn[:60])
def test_turn_cut_at_each_point(case: Case) -> None:
    """Stopped anywhere, a turn has given the events it would have given until there."""
    whole = parse(case.ids)
    parser = Parser(TOKENIZER)
    given: list[Event] = []
    for at, token in enumerate(case.ids):
        given += parser.push(token)
        assert given == whole[: len(given)]
        check_events(case.ids[: at + 1], parse(case.ids[: at + 1]))
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
        assert set(TRANSITIONS[state]) == set(Kind)
        for action in TRANSITIONS[state].values():
            assert callable(getattr(Parser, f"_{action}"))


def test_ids_outside_the_vocabulary_are_reported() -> None:
    events = parse([*spell("<|channel|>final<|message|>a"), -1, 10**9, *spell("<|return|>")])
    assert [e.code for e in events if isinstance(e, Diagnostic)] == ["stray", "stray"]


UPPERCASE = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Letters that no word of the format holds: each stands in the events as often as in the ids."""
CONTROLS = list(TOKENIZER.control.values())
LETTERS = [*range(-1, 267), *UPPERCASE.encode() * 5, *b" \n=.:" * 8]
TURNS = [case.ids for case in CASES]


def random_ids(rng: random.Random) -> list[int]:
    """Uniform over the vocabulary with many control tokens, or a good turn with a few mutations."""
    if rng.random() < 0.5:
        return [
            rng.choice(CONTROLS) if rng.random() < 0.3 else rng.choice(LETTERS)
            for _ in range(rng.randrange(40))
        ]
    ids = list(rng.choice(TURNS))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(ids) + 1)
        action = rng.randrange(3)
        if action == 0 and ids:
            del ids[at - 1 : at + rng.randrange(3)]
        elif action == 1:
            ids.insert(at, rng.randrange(267))
        else:
            ids[at:at] = ids[max(0, at - 5) : at]
    return ids


def check_events(ids: list[int], events: list[Event]) -> None:
    """What holds for every sequence: events nest, and text is neither lost nor doubled."""
    open_message = False
    text = ""
    for event in events:
        if isinstance(event, MessageStarted):
            assert not open_message
            open_message, text = True, ""
        elif isinstance(event, TextDelta):
            assert open_message
            text += event.text
        elif isinstance(event, MessageEnded):
            assert open_message
            assert event.message.text == text
            open_message = False
    assert not open_message
    assert sum(isinstance(event, TurnEnded) for event in events) == 1
    shown = Counter("".join(map(_shown, events)))
    written = Counter(chr(i) for i in ids if 65 <= i <= 90)
    assert {letter: shown[letter] for letter in UPPERCASE if shown[letter]} == written


def _shown(event: Event) -> str:
    """The model's text in an event: that of deltas, of a header's fields, and of repairs."""
    if isinstance(event, TextDelta | Diagnostic):
        return event.text
    if isinstance(event, MessageStarted):
        fields = (event.name, event.channel, event.recipient, event.content_type)
        return " ".join(field for field in fields if field)
    return ""


def test_random_ids_give_events() -> None:
    rng = random.Random(0)
    for _ in range(5_000):
        ids = random_ids(rng)
        role = rng.choice([Role.ASSISTANT, None])
        check_events(ids, parse(ids, role))


@pytest.mark.slow
def test_a_million_random_sequences() -> None:
    rng = random.Random(1)
    for _ in range(1_000_000):
        ids = random_ids(rng)
        check_events(ids, parse(ids))
