"""Attachments go with their entries."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gptoss.runtime.harmony.messages import final, user
from gptoss.runtime.store.attachments import MAX_BYTES
from gptoss.runtime.store.conversations import Conversation, Entry
from gptoss.runtime.store.errors import NotFoundError
from gptoss.runtime.store.store import Store

ME, OTHER = "me", "other"


@pytest.fixture
def store() -> Iterator[Store]:
    with Store(None) as made:
        yield made


def made_in(store: Store) -> tuple[Conversation, str]:
    """A conversation, and the id of its last entry, which has attachments."""
    made = store.conversations.create(ME, [Entry(user("a")), Entry(final("b"))])
    last = made.entries[-1].id
    store.attachments.add(ME, made.id, {last: {"about": b"{}", "figure-0": b"PNG"}})
    return made, last


def n_kept(store: Store) -> int:
    return int(store._database.read(lambda it: it.execute("SELECT count(*) FROM attachments"))
               .fetchone()[0])  # fmt: skip


def test_kept_and_read(store: Store) -> None:
    made, last = made_in(store)
    assert store.attachments.read(ME, made.id, last, "figure-0") == b"PNG"
    assert store.attachments.named(ME, made.id, "about") == {last: b"{}"}
    store.attachments.add(ME, made.id, {last: {"about": b"[]"}})
    assert store.attachments.read(ME, made.id, last, "about") == b"[]"


def test_not_another_s(store: Store) -> None:
    made, last = made_in(store)
    for owner, conversation, entry, name in (
        (OTHER, made.id, last, "about"), (ME, "x", last, "about"), (ME, made.id, "x", "about"),
        (ME, made.id, last, "figure-1"),
    ):  # fmt: skip
        with pytest.raises(NotFoundError):
            store.attachments.read(owner, conversation, entry, name)
    assert store.attachments.named(OTHER, made.id, "about") == {}
    with pytest.raises(NotFoundError):
        store.attachments.add(OTHER, made.id, {last: {"about": b"x"}})
    with pytest.raises(NotFoundError):
        store.attachments.add(ME, made.id, {last: {"about": b"new"}, "none": {"about": b"x"}})
    assert store.attachments.read(ME, made.id, last, "about") == b"{}", "all or nothing"


def test_a_branch_has_those_of_its_entries(store: Store) -> None:
    made, last = made_in(store)
    whole = store.conversations.branch(ME, made.id, 2)
    assert store.attachments.read(ME, whole.id, last, "figure-0") == b"PNG"
    assert n_kept(store) == 4
    store.conversations.branch(ME, made.id, 1)
    assert n_kept(store) == 4


def test_deleted_with_the_entry_and_with_the_conversation(store: Store) -> None:
    made, _ = made_in(store)
    copy = store.conversations.branch(ME, made.id, 2)
    store.conversations.truncate(ME, made.id, 1)
    assert n_kept(store) == 2
    store.conversations.delete(ME, copy.id)
    assert n_kept(store) == 0


def test_too_large(store: Store) -> None:
    made, last = made_in(store)
    with pytest.raises(ValueError, match="may have"):
        store.attachments.add(ME, made.id, {last: {"figure-1": bytes(MAX_BYTES + 1)}})
