"""Conversations at the terminal: kept in the store, continued, branched, saved to files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptoss.runtime.chat.settings import ChatError
from gptoss.runtime.harmony.messages import final as final_message
from gptoss.runtime.harmony.messages import user
from gptoss.runtime.store.conversations import Entry
from gptoss.runtime.store.owners import LOCAL_OWNER
from gptoss.runtime.store.store import Store
from support.terminal_session import FINAL, Talk, final, session


def kept(store: Store) -> list[list[str]]:
    """The texts of each conversation, the last used first."""
    recent = store.conversations.recent(LOCAL_OWNER)
    loaded = [store.conversations.load(LOCAL_OWNER, it.id) for it in recent]
    return [[message.text for message in it.messages] for it in loaded]


def test_conversations_are_kept(talk: Talk, store: Store) -> None:
    given = session(final("1"), final("2"), final("3"), final("4"), store=store)
    talk(given, "a", "b")
    assert kept(store) == [["a", "1", "b", "2"]]
    talk(given, "/undo", "/regenerate")
    assert kept(store) == [["a", "3"]]
    talk(given, "/clear", "c")
    assert kept(store) == [["c", "4"], ["a", "3"]]


def test_a_conversation_goes_on_with_its_settings_and_tokens(talk: Talk, store: Store) -> None:
    first = session(FINAL, store=store)
    talk(first, "/effort low", "/system Be brief.", "a")
    second = session(FINAL, store=store)
    assert second.resume(None).summary.title == "a"
    assert second.chat.messages == first.chat.messages
    assert second.chat.history[1].tokens is not None, "what is in memory is found by its tokens"
    talk(second, "b")
    assert kept(store) == [["a", "Four.", "b", "Four."]]


def test_resuming_by_number_or_id(talk: Talk, store: Store) -> None:
    given = session(FINAL, FINAL, store=store)
    talk(given, "old", "/clear", "new")
    shown = talk(given, "/conversations OLD", "/conversations", "/resume 2")
    assert [it.split()[1] for it in shown.splitlines()[:3]] == ["old", "new", "old"]
    assert shown.endswith("continuing: old (2 messages)\n> old\nFour.\n")
    identity = given.conversation or ""
    assert given.resume(identity[:20]).id == identity
    with pytest.raises(ChatError, match="no conversation has this id"):
        given.resume("conv_nothing")


def test_numbers_are_those_of_the_list_that_was_shown(talk: Talk, store: Store) -> None:
    given = session(*[FINAL] * 4, store=store)
    talk(given, "apples", "/clear", "pears", "/clear", "plums")
    shown = talk(given, "/conversations pea", "/resume 1")
    assert "continuing: pears" in shown
    shown = talk(given, "/conversations", "more", "/resume 1")
    assert "continuing: plums" in shown, "though the order is another one by now"


def test_a_branch_leaves_the_conversation_before_as_it_is(talk: Talk, store: Store) -> None:
    given = session(final("1"), final("2"), store=store)
    talk(given, "a", "/branch", "b")
    assert sorted(kept(store)) == [["a", "1"], ["a", "1", "b", "2"]]
    assert "no turn yet" in talk(session(store=store), "/branch")


def test_a_conversation_that_was_changed_elsewhere(talk: Talk, store: Store) -> None:
    """Neither overwrites what the other said."""
    said: list[str] = []
    first = session(final("1"), final("2"), store=store, say=said.append)
    talk(first, "a")
    other = session(final("3"), store=store)
    other.resume(None)
    talk(other, "b")
    talk(first, "c")
    assert sorted(kept(store)) == [["a", "1", "b", "3"], ["a", "1", "c", "2"]]
    assert said == ["the conversation was changed elsewhere; this one is kept as a new one"]


def test_a_conversation_that_was_deleted_elsewhere(talk: Talk, store: Store) -> None:
    given = session(final("1"), final("2"), store=store)
    talk(given, "a")
    store.conversations.delete(LOCAL_OWNER, given.conversation or "")
    talk(given, "b")
    assert kept(store) == [["a", "1", "b", "2"]]


def test_a_store_that_fails_is_said_once(talk: Talk, tmp_path: Path) -> None:
    store, said = Store(tmp_path / "store"), list[str]()
    given = session(FINAL, FINAL, store=store, say=said.append)
    store.close()
    assert talk(given, "a", "b").count("Four.") == 2
    assert len(said) == 1
    assert said[0].startswith("warning: the conversation is not kept any more: ")


def test_saving_and_loading(talk: Talk, tmp_path: Path) -> None:
    given = session(final("an answer"))
    path = tmp_path / "talk.json"
    assert talk(given, "a", f"/save {path}").endswith(f"saved 2 messages to {path}\n")
    assert "tokens" not in path.read_text("utf-8")
    other = session()
    assert talk(other, f"/load {path}") == f"loaded 2 messages from {path}\n"
    assert [it.text for it in other.chat.history] == ["a", "an answer"]
    talk(given, f"/save {tmp_path / 'talk.md'}")
    assert (tmp_path / "talk.md").read_text("utf-8") == "## You\n\na\n\n## gpt-oss\n\nan answer\n"


def test_loading_what_the_page_exported(talk: Talk, tmp_path: Path) -> None:
    with Store(None) as store:
        entries = [Entry(user("a")), Entry(final_message("an answer"))]
        made = store.conversations.create(LOCAL_OWNER, entries)
        exported = store.conversations.export(LOCAL_OWNER, made.id)
    path = tmp_path / "conversation.json"
    path.write_text(json.dumps(exported, indent=2), "utf-8")
    given = session()
    assert talk(given, f"/load {path}") == f"loaded 2 messages from {path}\n"
    assert [it.text for it in given.chat.history] == ["a", "an answer"]


def test_no_other_file_is_replaced(talk: Talk, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("my notes")
    given = session(FINAL, FINAL)
    said = talk(given, f"/save {tmp_path / 'notes.md'}")
    assert said.endswith("notes.md: is another file; name one that is not there\n")
    assert (tmp_path / "notes.md").read_text() == "my notes"
    for name in ("talk.md", "talk.json"):
        save = f"/save {tmp_path / name}"
        assert "error" not in talk(given, save, "a", save, save, "/clear", save)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"messages": 1}',
        "{" * 100_000,
        "[1]",
        '[{"role": "x", "content": "a"}]',
        "[" * 100_000,
        '[{"role": "user"}]',
    ],
)
def test_a_file_that_is_no_conversation(talk: Talk, tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    given = session(FINAL)
    assert "error: /load: " in talk(given, "a", f"/load {tmp_path / 'x.json'}")
    assert len(given.chat.history) == 2, "and the conversation is as it was"
