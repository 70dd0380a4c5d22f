"""Token sequences at random, and what must hold of the parser's events for each of them."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from gptoss.runtime.harmony.events import (
    Diagnostic,
    Event,
    MessageEnded,
    MessageStarted,
    RoundEnded,
    TextDelta,
)
from gptoss.runtime.harmony.messages import Message, Role, system, user
from gptoss.runtime.harmony.parser import parse
from gptoss.runtime.harmony.render import render_message
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.harmony.validate import check_conversation
from support.malformed import GOOD, MALFORMED

UPPERCASE = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Letters that no word of the format holds: each stands in the events as often as in the ids."""


@dataclass(frozen=True)
class Sequences:
    """Draws sequences of ids over a whole vocabulary, ids just outside of it among them."""

    tokenizer: Tokenizer

    @cached_property
    def controls(self) -> list[int]:
        """The format's control tokens; the reserved ones come with all other ids."""
        return [i for text, i in self.tokenizer.control.items() if "reserved" not in text]

    @cached_property
    def letters(self) -> list[int]:
        """Single letters and what stands between a header's words."""
        return [self.tokenizer.encode(sign)[0] for sign in UPPERCASE + " \n=.:" * 3]

    @cached_property
    def turns(self) -> list[list[int]]:
        """Turns good and malformed."""
        return [case.ids_in(self.tokenizer) for case in GOOD + MALFORMED]

    def draw(self, rng: random.Random) -> list[int]:
        """Uniform with many control tokens, or a turn with a few mutations."""
        return self._uniform(rng) if rng.random() < 0.5 else self._mutated(rng)

    def _token(self, rng: random.Random) -> int:
        return rng.randrange(-1, self.tokenizer.n_vocab + 1)

    def _uniform(self, rng: random.Random) -> list[int]:
        ids = []
        for _ in range(rng.randrange(40)):
            chance = rng.random()
            if chance < 0.3:
                ids.append(rng.choice(self.controls))
            else:
                ids.append(rng.choice(self.letters) if chance < 0.6 else self._token(rng))
        return ids

    def _mutated(self, rng: random.Random) -> list[int]:
        ids = list(rng.choice(self.turns))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(ids) + 1)
            action = rng.randrange(4)
            if action == 0 and ids:
                del ids[at - 1 : at + rng.randrange(3)]
            elif action == 1:
                ids.insert(at, self._token(rng))
            elif action == 2:
                ids.insert(at, rng.choice(self.controls))
            else:
                ids[at:at] = ids[max(0, at - 5) : at]
        return ids

    def check(self, ids: list[int], role: Role | None = Role.ASSISTANT) -> list[Event]:
        """The events of ``ids``, of which holds what must: see ``check_events``."""
        events = parse(ids, self.tokenizer, role)
        check_events(self.tokenizer, ids, events)
        return events


def check_events(tokenizer: Tokenizer, ids: list[int], events: list[Event]) -> None:
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
    assert sum(isinstance(event, RoundEnded) for event in events) == 1
    shown, given = "".join(map(_shown, events)), written(tokenizer, ids)
    if shown != given:
        counts, expected = Counter(shown), Counter(given)
        assert {c: counts[c] for c in UPPERCASE} == {c: expected[c] for c in UPPERCASE}


def _shown(event: Event) -> str:
    """The model's text in an event: that of deltas, of a header's fields, and of repairs."""
    if isinstance(event, TextDelta | Diagnostic):
        return event.text
    if isinstance(event, MessageStarted):
        fields = (event.name, event.channel, event.recipient, event.content_type)
        return " ".join(field for field in fields if field)
    return ""


def written(tokenizer: Tokenizer, ids: list[int]) -> str:
    """What the ids spell; control tokens and ids outside the vocabulary spell nothing."""
    control = tokenizer.control.values()
    known = [i for i in ids if 0 <= i < tokenizer.n_vocab]
    skipped = set(known).intersection(control)
    return tokenizer.decode([i for i in known if i not in skipped])


def check_replay(tokenizer: Tokenizer, events: list[Event]) -> None:
    """What was parsed can be put before the model again: a turn's second round never fails.

    Each call gets a result; the turn's messages then are a possible conversation.
    """
    said = [event.message for event in events if isinstance(event, MessageEnded)]
    own = [message for message in said if message.role == Role.ASSISTANT]
    results = [Message(Role.TOOL, "1", name=m.recipient) for m in own if m.recipient is not None]
    check_conversation([system(), user("?"), *own, *results])
    for message in own:
        events = parse(render_message(message, tokenizer), tokenizer, role=None)
        [again] = [event.message for event in events if isinstance(event, MessageEnded)]
        assert (again.channel, again.text) == (message.channel, message.text)
