"""The store: conversations, responses and rounds in one file, and whose they are."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gptoss.runtime.harmony import messages as m
from gptoss.runtime.harmony.messages import Effort, Function, Message, Namespace
from gptoss.runtime.harmony.text_formats import JsonSchema, Lark, Regex
from gptoss.runtime.store.conversations import Entry, title_from
from gptoss.runtime.store.errors import ConflictError, CorruptStoreError, NotFoundError
from gptoss.runtime.store.message_json import messages_from_json, messages_to_json
from gptoss.runtime.store.owners import LOCAL_OWNER
from gptoss.runtime.store.responses import StoredResponse
from gptoss.runtime.store.store import Store
from support.tokens import byte_tokenizer, spell

ME, OTHER = LOCAL_OWNER, "another"
ANSWER = replace(m.final("4"), tokens=tuple(spell("<|channel|>final<|message|>4<|return|>")))


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    path = tmp_path / "store" / "store.sqlite3" if request.param == "file" else None
    with Store(path, byte_tokenizer()) as store:
        yield store


def entries(*messages: Message) -> list[Entry]:
    return [Entry(message) for message in messages]


def test_conversation_comes_back_as_it_was(store: Store) -> None:
    made = store.conversations.create(
        ME, entries(m.user("What is 2 + 2?")), settings={"effort": "high"}, metadata={"a": "b"}
    )
    call = Entry(m.call("add", "{}"), call_id="call_1", item={"type": "function_call"})
    store.conversations.append(ME, made.id, [call, Entry(ANSWER)])
    found = store.conversations.load(ME, made.id)
    assert found.messages == (m.user("What is 2 + 2?"), m.call("add", "{}"), ANSWER)
    assert found.messages[-1].tokens == ANSWER.tokens
    assert found.entries[1] == call
    assert found.summary.title == "What is 2 + 2?"
    assert (found.summary.settings, found.summary.metadata) == ({"effort": "high"}, {"a": "b"})
    assert (found.summary.length, found.summary.branched_from) == (3, None)


def test_token_ids_of_another_vocabulary_are_left_out(tmp_path: Path) -> None:
    with Store(tmp_path / "a", byte_tokenizer()) as store:
        made = store.conversations.create(ME, entries(ANSWER))
        store.rounds.remember(ME, [], [ANSWER], ["call_1"])
    with Store(tmp_path / "a") as store:
        same = store.for_tokenizer(byte_tokenizer())
        assert same.conversations.load(ME, made.id).messages[0].tokens == ANSWER.tokens
        assert store.conversations.load(ME, made.id).messages[0].tokens is None
        [found] = store.rounds.of_call(ME, "call_1") or ()
        assert (found.text, found.tokens) == ("4", None)


def test_recent(store: Store) -> None:
    first, second = (store.conversations.create(ME, title=name) for name in "ab")
    assert [it.title for it in store.conversations.recent(ME)] == ["b", "a"]
    store.conversations.append(ME, first.id, entries(m.user("again")))
    assert [it.id for it in store.conversations.recent(ME)] == [first.id, second.id]
    assert [it.id for it in store.conversations.recent(ME, limit=1, skip=1)] == [second.id]
    assert store.conversations.recent(OTHER) == []


def test_search_finds_what_was_seen_whatever_its_case(store: Store) -> None:
    made = store.conversations.create(
        ME,
        entries(m.user("Straße 100%_\\"), m.analysis("secret thought"), m.final("ÄRGER")),
        title="Walking",
    )
    for text in ("STRASSE", "100%_\\", "ärger", "walk"):
        assert [it.id for it in store.conversations.search(ME, text)] == [made.id], text
    for text in ("secret", "nothing"):
        assert store.conversations.search(ME, text) == []
    assert store.conversations.search(OTHER, "ärger") == []


def test_branch_truncate_and_delete(store: Store) -> None:
    said = [m.user("a"), m.final("b"), m.user("c"), m.final("d")]
    made = store.conversations.create(ME, entries(*said))
    branch = store.conversations.branch(ME, made.id, 2)
    assert branch.messages == tuple(said[:2])
    assert branch.summary.branched_from == made.id
    assert branch.summary.title == f"{made.summary.title} (copy)"
    assert store.conversations.branch(ME, branch.id, 2).summary.title == branch.summary.title
    store.conversations.append(ME, branch.id, entries(m.user("e")))
    store.conversations.truncate(ME, made.id, 3)
    assert store.conversations.load(ME, made.id).messages == tuple(said[:3])
    store.conversations.delete(ME, made.id)
    with pytest.raises(NotFoundError):
        store.conversations.load(ME, made.id)
    assert store.conversations.load(ME, branch.id).messages == (*said[:2], m.user("e"))


def test_gaps_left_by_deleted_entries(store: Store) -> None:
    said = entries(*map(m.user, "abcd"))
    made = store.conversations.create(ME, said)
    store.conversations.delete_entries(ME, made.id, [said[1].id])
    store.conversations.append(ME, made.id, entries(m.user("e")))
    texts = [it.text for it in store.conversations.load(ME, made.id).messages]
    assert texts == ["a", "c", "d", "e"]
    assert [it.text for it in store.conversations.branch(ME, made.id, 2).messages] == ["a", "c"]
    store.conversations.truncate(ME, made.id, 3)
    assert [it.text for it in store.conversations.load(ME, made.id).messages] == ["a", "c", "d"]
    with pytest.raises(NotFoundError):
        store.conversations.delete_entries(ME, made.id, [said[1].id])


def test_append_to_a_changed_conversation(store: Store) -> None:
    made = store.conversations.create(ME, entries(m.user("a")))
    store.conversations.append(ME, made.id, entries(m.final("b")), expected=1)
    with pytest.raises(ConflictError, match="2 messages, not 1"):
        store.conversations.append(ME, made.id, entries(m.final("c")), expected=1)
    assert len(store.conversations.load(ME, made.id).entries) == 2


def test_update_changes_what_is_given(store: Store) -> None:
    made = store.conversations.create(ME, metadata={"a": "b"}, settings={"x": 1})
    changed = store.conversations.update(ME, made.id, title="New", metadata={})
    assert (changed.title, changed.metadata, changed.settings) == ("New", {}, {"x": 1})
    assert store.conversations.update(ME, made.id, settings={}).settings == {}


def test_export_holds_all_but_the_token_ids(store: Store) -> None:
    made = store.conversations.create(ME, [Entry(m.call("f", "{}"), call_id="c"), Entry(ANSWER)])
    exported = store.conversations.export(ME, made.id)
    call, answer = exported["messages"]
    assert (call["recipient"], call["call_id"], answer["content"]) == ("functions.f", "c", "4")
    assert "tokens" not in answer


def test_another_owner_finds_nothing(store: Store) -> None:
    made = store.conversations.create(ME, entries(m.user("a")))
    store.responses.put(ME, StoredResponse("resp_1", 1.0, None, {}, ()))
    store.rounds.remember(ME, [m.user("a")], [m.final("b")], ["call_1"])
    conversations, identity = store.conversations, made.id
    for attempt in (
        lambda: conversations.load(OTHER, identity),
        lambda: conversations.append(OTHER, identity, entries(m.user("b"))),
        lambda: conversations.truncate(OTHER, identity, 0),
        lambda: conversations.branch(OTHER, identity, 1),
        lambda: conversations.update(OTHER, identity, title="b"),
        lambda: conversations.delete(OTHER, identity),
        lambda: conversations.delete_entries(OTHER, identity, [made.entries[0].id]),
        lambda: conversations.export(OTHER, identity),
        lambda: store.responses.get(OTHER, "resp_1"),
        lambda: store.responses.events(OTHER, "resp_1"),
        lambda: store.responses.chain(OTHER, "resp_1", 5),
        lambda: store.responses.delete(OTHER, "resp_1"),
    ):
        with pytest.raises(NotFoundError):
            attempt()
    store.responses.put(OTHER, StoredResponse("resp_1", 1.0, None, {"stolen": True}, ()))
    assert store.responses.get(ME, "resp_1").body == {}
    assert store.rounds.of_call(OTHER, "call_1") is None
    assert store.rounds.of_conversation(OTHER, [m.user("a"), m.final("b")]) is None
    assert store.conversations.load(ME, identity).summary.title == "a"


def test_response_and_its_chain(store: Store) -> None:
    for i in range(4):
        previous = f"resp_{i - 1}" if i else None
        asked = ({"type": "message", "id": f"msg_{i}"},)
        response = StoredResponse(f"resp_{i}", 1.0 + i, previous, {"n": i}, asked)
        store.responses.put(ME, response)
    found = store.responses.chain(ME, "resp_3", 10)
    assert [it.id for it in found] == ["resp_0", "resp_1", "resp_2", "resp_3"]
    assert found[0].input == ({"type": "message", "id": "msg_0"},)
    assert [it.id for it in store.responses.chain(ME, "resp_3", 2)] == ["resp_2", "resp_3"]
    store.responses.delete(ME, "resp_1")
    assert [it.id for it in store.responses.chain(ME, "resp_3", 10)] == ["resp_2", "resp_3"]


def test_events_of_a_background_response(store: Store) -> None:
    events = tuple({"sequence_number": i, "delta": "é"} for i in range(100))
    unfinished = StoredResponse("resp_1", 1.0, None, {"status": "queued"}, (), alive_until=1e12)
    store.responses.put(ME, unfinished)
    assert store.responses.events(ME, "resp_1") is None
    store.responses.keep_alive("resp_1", 2e12)
    assert store.responses.get(ME, "resp_1").alive_until == 2e12
    finished = replace(unfinished, body={"status": "completed"}, alive_until=None, events=events)
    store.responses.put(ME, finished)
    assert store.responses.events(ME, "resp_1") == list(events)
    store.responses.keep_alive("resp_1", 3e12)
    assert store.responses.get(ME, "resp_1").alive_until is None


def test_a_finished_response_and_its_conversation_are_stored_together(store: Store) -> None:
    made = store.conversations.create(ME)
    response = StoredResponse("resp_1", 1.0, None, {}, ())
    with pytest.raises(ConflictError):
        store.finish_response(
            ME, response, conversation=made.id, entries=tuple(entries(ANSWER)), expected=7
        )
    with pytest.raises(NotFoundError):
        store.responses.get(ME, "resp_1")
    store.finish_response(
        ME, response, conversation=made.id, entries=tuple(entries(ANSWER)), expected=0
    )
    assert store.responses.get(ME, "resp_1").body == {}
    assert store.conversations.load(ME, made.id).messages == (ANSWER,)


def test_every_kind_of_message_comes_back() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    formats = (None, JsonSchema(schema), Regex("[a-z]"), Lark('start: "a"'))
    functions = tuple(
        Function(f"f{i}", "does", schema, takes_text=bool(it), text_format=it)
        for i, it in enumerate(formats)
    )
    messages = (
        m.system(date="2026-01-02", effort=Effort.HIGH, tools=(Namespace("python", (), "p"),)),
        m.system(identity=None, effort=None, knowledge_cutoff=None),
        m.developer("Be brief.", functions, (Namespace("ns", functions),)),
        replace(m.user("hi \ud800"), name="ada"),
        ANSWER,
        m.tool_result("f", "1"),
    )
    text = messages_to_json(messages)
    assert messages_from_json(text, with_tokens=True) == messages
    assert messages_from_json(text, with_tokens=True)[4].tokens == ANSWER.tokens


@pytest.mark.parametrize(
    "text",
    ["", "[", "{}x", "[1]", "[{}]", '[{"role": "nobody", "content": ""}]', "null", "[" * 100_000]
    + [f'[{{"role": "user", "content": {it}}}]' for it in ("1", "null", '{"system": 1}', "{}")]
    + [f'[{{"role": "user", "content": "", "tokens": {it}}}]' for it in ('"a"', "[-1]", "[true]")]
    + ['[{"role": "user", "content": "", "name": 1}]'],
)
def test_messages_that_are_none(text: str) -> None:
    with pytest.raises(CorruptStoreError):
        messages_from_json(text, with_tokens=True)


def test_titles() -> None:
    assert title_from("\n  Hello \nworld") == "Hello"
    assert title_from("a " * 100) == "a " * 28 + "a a…"
    assert len(title_from("x" * 1000)) == 61
    assert title_from("") == ""


def test_secret_and_pinned_date_stay(tmp_path: Path) -> None:
    with Store(tmp_path / "a") as store:
        secret = store.secret("seal")
        assert len(secret) == 32
        assert store.secret("other") != secret
        assert store.pinned_date(ME, "key", "2026-01-01") == "2026-01-01"
    with Store(tmp_path / "a") as store:
        assert store.secret("seal") == secret
        assert store.pinned_date(ME, "key", "2026-01-02") == "2026-01-01"
        assert store.pinned_date(OTHER, "key", "2026-01-02") == "2026-01-02"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_files_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "store.sqlite3"
    with Store(path) as store:
        store.conversations.create(ME)
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.chmod(0o644)
    with Store(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
