"""The parser: good turns, malformed ones with what they must be taken for, and random ids."""

from __future__ import annotations

import random
from dataclasses import dataclass

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
from gptoss.runtime.harmony.messages import Message, Role
from gptoss.runtime.harmony.parser import TRANSITIONS, Kind, Parser, State
from support.tokens import byte_tokenizer, spell

TOKENIZER = byte_tokenizer()


def parse(ids: list[int], role: Role | None = Role.ASSISTANT) -> list[Event]:
    parser = Parser(TOKENIZER, role)
    events = [event for i in ids for event in parser.push(i)]
    return events + parser.finish()


@dataclass(frozen=True)
class Case:
    """A turn behind ``<|start|>assistant``; its messages as ``summary`` writes them."""

    turn: str
    messages: tuple[str, ...]
    end: End
    repairs: tuple[str, ...] = ()


def summary(message: Message) -> str:
    """``[author ]channel[ to=recipient][ type]: text``, the author where it is not assistant."""
    who = "" if message.role == Role.ASSISTANT else f"{message.name or message.role} "
    to = f" to={message.recipient}" if message.recipient else ""
    kind = f" {message.content_type}" if message.content_type else ""
    return f"{who}{message.channel}{to}{kind}: {message.text}"


GOOD = [
    Case("<|channel|>final<|message|>4<|return|>", ("final: 4",), End.RETURN),
    Case(
        "<|channel|>analysis<|message|>2 + 2<|end|>"
        "<|start|>assistant<|channel|>final<|message|>4<|return|>",
        ("analysis: 2 + 2", "final: 4"),
        End.RETURN,
    ),
    Case(
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
        ("commentary to=functions.f <|constrain|>json: {}",),
        End.CALL,
    ),
    Case(
        " to=functions.f<|channel|>commentary json<|message|>{}<|call|>",
        ("commentary to=functions.f json: {}",),
        End.CALL,
    ),
    Case(
        " to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>",
        ("commentary to=functions.f <|constrain|>json: {}",),
        End.CALL,
    ),
    Case(
        "<|channel|>analysis to=python code<|message|>1+1<|call|>",
        ("analysis to=python code: 1+1",),
        End.CALL,
    ),
    Case(
        "<|channel|>commentary<|message|>Let me look.<|end|><|start|>assistant to=functions.f"
        "<|channel|>commentary<|message|>{}<|call|>",
        ("commentary: Let me look.", "commentary to=functions.f: {}"),
        End.CALL,
    ),
    Case("<|channel|>final<|message|><|return|>", ("final: ",), End.RETURN),
    Case("<|channel|>final<|message|>naïve 🙂<|return|>", ("final: naïve 🙂",), End.RETURN),
]

CUT = [
    Case("<|channel|>final<|message|>half", ("final: half",), End.CUT),
    Case("<|channel|>final<|message|>whole<|end|>", ("final: whole",), End.CUT),
    Case("", (), End.CUT),
    Case("<|channel|>fin", (), End.CUT, ("cut-header",)),
    Case("Hello", ("final: Hello",), End.CUT, ("cut-header",)),
    Case("<|channel|>final<|message|>half<|endoftext|>", ("final: half",), End.END_OF_TEXT),
]

MALFORMED = [
    # a header's markers in plain text, which must not be taken for a role
    Case(
        "assistant<|channel|>commentary to=functions.f<|message|>{}<|call|>",
        ("commentary to=functions.f: {}",),
        End.CALL,
        ("role-twice",),
    ),
    Case(
        "<|start|>assistant<|channel|>final<|message|>4<|return|>",
        ("final: 4",),
        End.RETURN,
        ("start-twice",),
    ),
    # a call on the analysis channel is a call
    Case(
        "<|channel|>analysis to=functions.f <|constrain|>json<|message|>{}<|call|>",
        ("analysis to=functions.f <|constrain|>json: {}",),
        End.CALL,
    ),
    # a call that ends in <|return|> is a call; <|call|> of nobody is an answer
    Case(
        "<|channel|>commentary to=functions.f<|message|>{}<|return|>",
        ("commentary to=functions.f: {}",),
        End.CALL,
        ("call-returned",),
    ),
    Case(
        "<|channel|>final<|message|>4<|call|>", ("final: 4",), End.RETURN, ("call-of-nothing",)
    ),
    # bare text without any header
    Case("The answer is 4.<|return|>", ("final: The answer is 4.",), End.RETURN, ("no-message",)),
    Case(
        "The answer:\nis 4.<|return|>", ("final: The answer:\nis 4.",), End.RETURN, ("no-header",)
    ),
    Case("x" * 300 + "<|return|>", (f"final: {'x' * 300}",), End.RETURN, ("no-header",)),
    Case("<|message|>4<|return|>", ("final: 4",), End.RETURN, ("no-channel",)),
    Case(
        " to=functions.f<|message|>{}<|call|>",
        ("commentary to=functions.f: {}",),
        End.CALL,
        ("no-channel",),
    ),
    # recipients twice
    Case(
        " to=functions.f<|channel|>commentary to=functions.f<|message|>{}<|call|>",
        ("commentary to=functions.f: {}",),
        End.CALL,
        ("recipient-twice",),
    ),
    Case(
        " to=functions.f<|channel|>commentary to=functions.g<|message|>{}<|call|>",
        ("commentary to=functions.g: {}",),
        End.CALL,
        ("recipients-differ",),
    ),
    # text after a complete answer does not harm it
    Case(
        "<|channel|>final<|message|>4<|return|>and", ("final: 4",), End.RETURN, ("after-end",) * 3
    ),
    Case(
        "<|channel|>final<|message|>4<|end|>and<|return|>",
        ("final: 4", "final: and"),
        End.RETURN,
        ("no-header",),
    ),
    # stray control tokens inside a message are dropped, the text stays
    Case(
        "<|channel|>final<|message|>a<|constrain|>b<|message|>c<|startoftext|>d<|return|>",
        ("final: abcd",),
        End.RETURN,
        ("stray",) * 3,
    ),
    # an end token forgotten
    Case(
        "<|channel|>analysis<|message|>hm<|start|>assistant<|channel|>final<|message|>4<|return|>",
        ("analysis: hm", "final: 4"),
        End.RETURN,
        ("unclosed",),
    ),
    Case(
        "<|channel|>analysis<|message|>hm<|channel|>final<|message|>4<|return|>",
        ("analysis: hm", "final: 4"),
        End.RETURN,
        ("unclosed",),
    ),
    # a start token forgotten
    Case(
        "<|channel|>analysis<|message|>hm<|end|><|channel|>final<|message|>4<|return|>",
        ("analysis: hm", "final: 4"),
        End.RETURN,
        ("no-start",),
    ),
    Case(
        "<|channel|>analysis<|message|>hm<|end|>4<|return|>",
        ("analysis: hm", "final: 4"),
        End.RETURN,
        ("no-header",),
    ),
    Case(
        "<|channel|>analysis<|message|>hm<|end|><|message|>4<|return|>",
        ("analysis: hm", "final: 4"),
        End.RETURN,
        ("no-header",),
    ),
    # a role forgotten, an unknown one, an unknown channel
    Case(
        "<|channel|>analysis<|message|>hm<|end|><|start|><|channel|>final<|message|>4<|return|>",
        ("analysis: hm", "final: 4"),
        End.RETURN,
        ("no-role",),
    ),
    Case(
        "<|channel|>analysis<|message|>hm<|end|><|start|>robot<|channel|>final<|message|>4<|return|>",
        ("analysis: hm", "robot final: 4"),
        End.RETURN,
        ("unknown-role",),
    ),
    Case("<|channel|>last<|message|>4<|return|>", ("last: 4",), End.RETURN, ("unknown-channel",)),
    # a message token forgotten: what the channel says is kept apart from the text
    Case("<|channel|>final 4<|return|>", ("final:  4",), End.RETURN, ("no-message",)),
    Case("<|channel|>analysis hm<|end|>", ("analysis:  hm",), End.CUT, ("no-message",)),
    # doubled markers
    Case(
        "<|channel|>final<|channel|><|message|>4<|return|>",
        ("final: 4",),
        End.RETURN,
        ("channel-twice",),
    ),
    Case(
        "<|channel|>commentary to=functions.f <|constrain|><|constrain|>json<|message|>{}<|call|>",
        ("commentary to=functions.f <|constrain|>json: {}",),
        End.CALL,
        ("constrain-twice",),
    ),
    Case(
        "<|channel|>commentary to=functions.f json please<|message|>{}<|call|>",
        ("commentary to=functions.f json: {}",),
        End.CALL,
        ("header-words",),
    ),
    Case("<|return|>", ("final: ",), End.RETURN, ("no-message",)),
    Case("<|end|>", ("final: ",), End.CUT, ("no-message",)),
]  # fmt: skip


@pytest.mark.parametrize("case", GOOD + CUT + MALFORMED, ids=lambda case: case.turn[:60])
def test_turn(case: Case) -> None:
    events = parse(spell(case.turn))
    messages = [event.message for event in events if isinstance(event, MessageEnded)]
    assert tuple(map(summary, messages)) == case.messages
    assert tuple(e.code for e in events if isinstance(e, Diagnostic)) == case.repairs
    assert [e.end for e in events if isinstance(e, TurnEnded)] == [case.end]


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


def random_ids(rng: random.Random) -> list[int]:
    """Uniform over the vocabulary with many control tokens, or a good turn with a few mutations."""
    if rng.random() < 0.5:
        controls = list(TOKENIZER.control.values())
        letters = [*range(-1, 267), *b"QXZJKVW" * 20]
        return [
            rng.choice(controls) if rng.random() < 0.3 else rng.choice(letters)
            for _ in range(rng.randrange(40))
        ]
    ids = spell(rng.choice(GOOD + CUT + MALFORMED).turn)
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
    """What holds for every sequence: events nest, and no text token's text is lost."""
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
    shown = "".join(map(_shown, events))
    for letter in "QXZJKVW":  # none of them stands in a diagnostic's own words
        assert ids.count(ord(letter)) <= shown.count(letter)


def _shown(event: Event) -> str:
    if isinstance(event, TextDelta):
        return event.text
    if isinstance(event, Diagnostic):
        return event.detail
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
