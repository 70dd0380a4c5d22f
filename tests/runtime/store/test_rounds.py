"""Rounds found again for clients that send back only what they saw."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from gptoss.runtime.harmony import messages as m
from gptoss.runtime.harmony.messages import Message, Role
from gptoss.runtime.store import fingerprint as fingerprints
from gptoss.runtime.store.fingerprint import fingerprint
from gptoss.runtime.store.owners import LOCAL_OWNER
from gptoss.runtime.store.store import Store
from support.tokens import byte_tokenizer, spell

THOUGHT = replace(
    m.analysis("I must look."),
    tokens=tuple(spell("<|channel|>analysis<|message|>I must look.<|end|>")),
)
CALL = replace(
    m.call("f", '{"a": 1, "b": 2}'),
    tokens=tuple(spell(' to=functions.f<|channel|>commentary json<|message|>{"a": 1, "b": 2}')),
)
QUESTION = [m.system(), m.developer("Be brief."), m.user("What is it?")]
RESULT = m.tool_result("f", "7")


@pytest.fixture
def store() -> Iterator[Store]:
    with Store(None, byte_tokenizer()) as store:
        store.rounds.remember(LOCAL_OWNER, QUESTION, [THOUGHT, CALL], ["call_1"])
        yield store


def tokens(messages: list[Message]) -> list[tuple[int, ...] | None]:
    return [message.tokens for message in messages]


def test_by_call_id(store: Store) -> None:
    changed = [m.system(), m.user("Another question, e.g. a summary")]
    sent = [*changed, m.call("f", '{"a": 1, "b": 2}'), RESULT]
    found = store.rounds.restore(LOCAL_OWNER, sent, {2: "call_1"})
    assert found == [*changed, THOUGHT, CALL, RESULT]
    assert tokens(found) == [None, None, THOUGHT.tokens, CALL.tokens, None]


def test_by_fingerprint_with_other_instructions_and_json(store: Store) -> None:
    begin = [m.system(date="2026-01-01"), m.developer("Be long."), m.user(" What is it?\n")]
    sent = [*begin, m.call("f", '{"b":2,"a":1}'), RESULT]
    assert store.rounds.restore(LOCAL_OWNER, sent, {3: "call_9"}) == [
        *begin, THOUGHT, CALL, RESULT
    ]  # fmt: skip


@pytest.mark.parametrize(
    "sent",
    [
        [*QUESTION, m.call("f", '{"a": 1, "b": 3}'), RESULT],
        [*QUESTION, m.call("g", '{"a": 1, "b": 2}'), m.tool_result("g", "7")],
        [*QUESTION, m.analysis("Another thought."), CALL, RESULT],
        [*QUESTION, m.final("no"), m.user("x"), m.call("h", "{}"), m.tool_result("h", "")],
    ],
)
def test_what_differs_is_left_as_it_is(store: Store, sent: list[Message]) -> None:
    assert store.rounds.restore(LOCAL_OWNER, sent, {3: "call_1", 5: "call_1"}) == sent


def test_the_same_reasoning_gets_its_token_ids_back(store: Store) -> None:
    sent = [*QUESTION, m.analysis("I must\nlook. "), m.call("f", '{"a":1,"b":2}'), RESULT]
    assert tokens(store.rounds.restore(LOCAL_OWNER, sent))[3:5] == [THOUGHT.tokens, CALL.tokens]


def test_rounds_before_an_answer_are_left_as_they_are(store: Store) -> None:
    sent = [*QUESTION, m.call("f", '{"a": 1, "b": 2}'), RESULT, m.final("7"), m.user("Thanks")]
    assert tokens(store.rounds.restore(LOCAL_OWNER, sent, {3: "call_1"})) == [None] * 7


def test_two_calls_of_one_round(store: Store) -> None:
    second = m.call("g", "{}")
    written = [THOUGHT, CALL, second]
    store.rounds.remember(LOCAL_OWNER, QUESTION, written, ["call_2", "call_3"])
    results = [RESULT, m.tool_result("g", "8")]
    sent = [*QUESTION, m.call("f", '{"a": 1, "b": 2}'), m.call("g", ""), *results]
    sent[4] = second
    for ids in ({3: "call_2", 4: "call_3"}, {4: "call_3"}, {}):
        assert store.rounds.restore(LOCAL_OWNER, sent, ids)[3:6] == written


def test_several_open_rounds(store: Store) -> None:
    before = [*QUESTION, THOUGHT, CALL, RESULT]
    again = [m.analysis("Once more."), m.call("f", "{}")]
    store.rounds.remember(LOCAL_OWNER, before, again, ["call_2"])
    sent = [*QUESTION, m.call("f", '{"a": 1, "b": 2}'), RESULT, m.call("f", "{}"), RESULT]
    assert store.rounds.restore(LOCAL_OWNER, sent) == [*before, *again, RESULT]


def test_each_message_is_hashed_once_for_all_open_rounds(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an agent's conversation, none of whose 200 rounds is known."""
    hashed: list[Message] = []
    seen = fingerprints._seen

    def counted(message: Message) -> tuple[str, str]:
        hashed.append(message)
        return seen(message)

    monkeypatch.setattr(fingerprints, "_seen", counted)
    sent = [*QUESTION, *[m.call("f", "{}"), m.tool_result("f", "8")] * 200]
    assert store.rounds.restore(LOCAL_OWNER, sent, {3: "call_9"}) == sent
    assert len(hashed) == 1 + 2 * 200


def test_fingerprint_separates_what_differs() -> None:
    base = [m.user("a"), m.final("b")]
    others = [
        [m.user("ab")],
        [m.user("a"), m.user("b")],
        [m.user("b"), m.final("a")],
        [m.user("a"), m.call("f", "b")],
        [m.user("a"), Message(Role.TOOL, "b", name="functions.f", channel="commentary")],
        [m.user("a")],
        [m.user('a", "b')],
    ]
    assert len({fingerprint(it) for it in [base, *others]}) == 1 + len(others)
