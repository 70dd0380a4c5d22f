"""Conversations in the store: listed, searched, loaded, continued, branched, deleted, exported.

The terminal, the page and the API see the same ones. A conversation is a list of entries; each is
a message in harmony's terms, with the token ids that the model produced where they are known.
Another owner's conversation is not found.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gptoss.runtime.harmony.messages import Message, Role
from gptoss.runtime.store.database import Database
from gptoss.runtime.store.errors import ConflictError, CorruptStoreError, NotFoundError
from gptoss.runtime.store.message_json import messages_from_json, messages_to_json
from gptoss.runtime.store.owners import new_id
from gptoss.text import replace_surrogates

MAX_LISTED = 1000
"""Conversations that one call lists at most."""

TITLE_CHARACTERS = 60
"""Length of a title made from the first message."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One message of a conversation, with what the API needs to know of it.

    ``call_id`` is that of a tool call or of its result. ``item`` is the message as an item of the
    API, where a client gave it so; its harmony form is in ``message`` all the same.
    """

    message: Message
    id: str = field(default_factory=lambda: new_id("msg"))
    created: float = field(default_factory=time.time)
    call_id: str | None = None
    item: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """A conversation without its messages. Times are seconds since 1970.

    ``settings`` are the maker's own (instructions, effort, the pinned date …), ``metadata`` the
    API client's; ``length`` is the number of entries.
    """

    id: str
    title: str | None
    created: float
    updated: float
    settings: Mapping[str, Any]
    metadata: Mapping[str, str]
    branched_from: str | None
    length: int


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation with its messages, the oldest first."""

    summary: Summary
    entries: tuple[Entry, ...]

    @property
    def id(self) -> str:
        """Return the conversation's id."""
        return self.summary.id

    @property
    def messages(self) -> tuple[Message, ...]:
        """Return the conversation's messages in harmony's terms."""
        return tuple(entry.message for entry in self.entries)


_SUMMARY = """SELECT c.id, c.title, c.created, c.updated, c.settings, c.metadata, c.branched_from,
    (SELECT count(*) FROM entries WHERE conversation = c.id) FROM conversations AS c"""
_ENTRY = "SELECT id, created, message, vocabulary, call_id, item FROM entries"


class Conversations:
    """The store's conversations. ``vocabulary`` is that of the model in use: token ids of another
    one are left out.
    """

    def __init__(self, database: Database, vocabulary: str | None = None) -> None:
        self._database = database
        self._vocabulary = vocabulary

    def create(
        self,
        owner: str,
        entries: Sequence[Entry] = (),
        *,
        title: str | None = None,
        settings: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Conversation:
        """Begin a conversation; a title that is not given is made from its first user message."""
        identity = new_id("conv")

        def insert(connection: sqlite3.Connection) -> None:
            now = time.time()
            connection.execute(
                "INSERT INTO conversations VALUES (?, ?, ?, ?, ?, ?, ?, NULL)",
                (identity, owner, title, now, now, _dumps(settings or {}), _dumps(metadata or {})),
            )
            self._add(connection, identity, 0, entries)

        self._database.write(insert)
        return self.load(owner, identity)

    def recent(self, owner: str, *, limit: int = 50, skip: int = 0) -> list[Summary]:
        """List an owner's conversations, the last used first, without their messages."""
        rows = self._database.read(
            lambda connection: connection.execute(
                f"{_SUMMARY} WHERE c.owner = ? ORDER BY c.updated DESC, c.id LIMIT ? OFFSET ?",
                (owner, _bounded(limit), max(0, skip)),
            ).fetchall()
        )
        return [_summary(row) for row in rows]

    def search(self, owner: str, text: str, *, limit: int = 50) -> list[Summary]:
        """List an owner's conversations that have ``text`` in their title or in what was said,
        whatever its case, the last used first.
        """
        wanted = replace_surrogates(text).casefold()

        def find(connection: sqlite3.Connection) -> list[Any]:
            connection.create_function(
                "has", 1, lambda it: it is not None and wanted in it.casefold(), deterministic=True
            )
            return connection.execute(
                f"""{_SUMMARY} WHERE c.owner = ? AND (has(c.title) OR EXISTS
                    (SELECT 1 FROM entries WHERE conversation = c.id AND has(text)))
                    ORDER BY c.updated DESC, c.id LIMIT ?""",
                (owner, _bounded(limit)),
            ).fetchall()

        return [_summary(row) for row in self._database.read(find)]

    def load(self, owner: str, identity: str) -> Conversation:
        """Load a conversation with its messages; raises NotFoundError."""

        def select(connection: sqlite3.Connection) -> tuple[Any, list[Any]]:
            summary = _found(connection, owner, identity)
            return summary, connection.execute(
                f"{_ENTRY} WHERE conversation = ? ORDER BY position", (identity,)
            ).fetchall()

        row, entries = self._database.read(select)
        return Conversation(_summary(row), tuple(map(self._entry, entries)))

    def append(
        self, owner: str, identity: str, entries: Sequence[Entry], *, expected: int | None = None
    ) -> None:
        """Add entries to the end of a conversation; they are on disk when this returns.

        ``expected`` is the length that the caller knows: ConflictError where it is another by now,
        and where an entry's id is taken. Raises NotFoundError, StoreFullError.
        """

        self._database.write(
            lambda connection: self.insert(connection, owner, identity, entries, expected)
        )

    def insert(
        self,
        connection: sqlite3.Connection,
        owner: str,
        identity: str,
        entries: Sequence[Entry],
        expected: int | None = None,
    ) -> None:
        """Add entries to the end of a conversation within a transaction of the database."""
        length = _found(connection, owner, identity)[-1]
        if expected is not None and length != expected:
            raise ConflictError(
                f"the conversation has {length} messages, not {expected}: it was continued "
                "elsewhere; load it again"
            )
        self._add(connection, identity, _end(connection, identity), entries)
        _touch(connection, identity)

    def truncate(self, owner: str, identity: str, length: int) -> None:
        """Delete all entries of a conversation but the first ``length``, to go on from there."""

        def delete(connection: sqlite3.Connection) -> None:
            _found(connection, owner, identity)
            connection.execute(
                f"DELETE FROM entries WHERE conversation = ?1 AND position >= {_NTH}",
                (identity, max(0, length)),
            )
            _touch(connection, identity)

        self._database.write(delete)

    def delete_entries(self, owner: str, identity: str, entries: Sequence[str]) -> None:
        """Delete entries of a conversation by their ids; raises NotFoundError if one is missing."""

        def delete(connection: sqlite3.Connection) -> None:
            _found(connection, owner, identity)
            for entry in entries:
                deleted = connection.execute(
                    "DELETE FROM entries WHERE conversation = ? AND id = ?", (identity, entry)
                )
                if not deleted.rowcount:
                    raise NotFoundError("no such item in the conversation")
            _touch(connection, identity)

        self._database.write(delete)

    def branch(self, owner: str, identity: str, length: int) -> Conversation:
        """Begin a conversation with a copy of another's settings and first ``length`` entries; its
        title says that it is one.
        """
        copy = new_id("conv")

        def insert(connection: sqlite3.Connection) -> None:
            _found(connection, owner, identity)
            now = time.time()
            connection.execute(
                """INSERT INTO conversations SELECT ?, owner,
                    CASE WHEN title LIKE '% (copy)' THEN title ELSE title || ' (copy)' END,
                    ?, ?, settings, metadata, id FROM conversations WHERE id = ?""",
                (copy, now, now, identity),
            )
            connection.execute(
                f"""INSERT INTO entries SELECT ?3, position, id, created, text, message, vocabulary,
                    call_id, item FROM entries WHERE conversation = ?1 AND position < {_NTH}""",
                (identity, max(0, length), copy),
            )
            connection.execute(
                """INSERT INTO attachments SELECT ?2, a.entry, a.name, a.data
                    FROM attachments a JOIN entries e ON e.conversation = ?2 AND e.id = a.entry
                    WHERE a.conversation = ?1""",
                (identity, copy),
            )

        self._database.write(insert)
        return self.load(owner, copy)

    def update(
        self,
        owner: str,
        identity: str,
        *,
        title: str | None = None,
        settings: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Summary:
        """Change what is given of a conversation's title, settings and metadata."""
        changed = {
            "title": title,
            "settings": None if settings is None else _dumps(settings),
            "metadata": None if metadata is None else _dumps(metadata),
        }

        def change(connection: sqlite3.Connection) -> Any:
            _found(connection, owner, identity)
            for name, value in changed.items():
                if value is not None:
                    connection.execute(
                        f"UPDATE conversations SET {name} = ? WHERE id = ?",
                        (replace_surrogates(value), identity),
                    )
            return _found(connection, owner, identity)

        return _summary(self._database.write(change))

    def delete(self, owner: str, identity: str) -> None:
        """Delete a conversation with all its messages; raises NotFoundError."""

        def delete(connection: sqlite3.Connection) -> None:
            _found(connection, owner, identity)
            connection.execute("DELETE FROM conversations WHERE id = ?", (identity,))

        self._database.write(delete)

    def export(self, owner: str, identity: str) -> dict[str, Any]:
        """Return a conversation as a JSON object that holds all of it but the token ids."""
        conversation = self.load(owner, identity)
        about = conversation.summary
        return {
            "id": about.id,
            "title": about.title,
            "created": about.created,
            "updated": about.updated,
            "settings": dict(about.settings),
            "metadata": dict(about.metadata),
            "messages": [_exported(entry) for entry in conversation.entries],
        }

    def _add(
        self,
        connection: sqlite3.Connection,
        identity: str,
        position: int,
        entries: Sequence[Entry],
    ) -> None:
        for i, entry in enumerate(entries):
            message = entry.message
            taken = "SELECT 1 FROM entries WHERE conversation = ? AND id = ?"
            if connection.execute(taken, (identity, entry.id)).fetchone() is not None:
                raise ConflictError("two entries of the conversation have one id; load it again")
            connection.execute(
                "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    identity,
                    position + i,
                    entry.id,
                    entry.created,
                    replace_surrogates(_seen_text(message)),
                    replace_surrogates(messages_to_json([message])),
                    None if message.tokens is None else self._vocabulary,
                    entry.call_id,
                    None if entry.item is None else _dumps(entry.item),
                ),
            )
        first = next((e.message.text for e in entries if e.message.role == Role.USER), None)
        if first is not None:
            connection.execute(
                "UPDATE conversations SET title = ? WHERE id = ? AND title IS NULL",
                (title_from(first), identity),
            )

    def _entry(self, row: Sequence[Any]) -> Entry:
        identity, created, message, vocabulary, call_id, item = row
        same = vocabulary is not None and vocabulary == self._vocabulary
        read = messages_from_json(message, with_tokens=same)
        if len(read) != 1:
            raise CorruptStoreError("a stored entry does not hold one message")
        return Entry(read[0], identity, created, call_id, None if item is None else _loads(item))


_NTH = """coalesce((SELECT position FROM entries WHERE conversation = ?1
    ORDER BY position LIMIT 1 OFFSET ?2), 9e18)"""
"""Position of the n-th entry: positions have gaps where entries were deleted."""


def title_from(text: str) -> str:
    """Return a conversation's title from its first message: the first line, cut at a word."""
    line = next((it.strip() for it in replace_surrogates(text).splitlines() if it.strip()), "")
    if len(line) <= TITLE_CHARACTERS:
        return line
    cut = line[:TITLE_CHARACTERS]
    return (cut.rpartition(" ")[0] or cut).rstrip() + "…"


def _seen_text(message: Message) -> str:
    """Return what a person has seen of a message: not reasoning, not what tools exchange."""
    if message.role == Role.USER:
        return message.text
    spoken = message.role == Role.ASSISTANT and message.recipient is None
    return message.text if spoken and message.channel != "analysis" else ""


def _exported(entry: Entry) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(messages_to_json([entry.message]))[0]
    message.pop("tokens", None)
    about = {"id": entry.id, "created": entry.created}
    return about | ({} if entry.call_id is None else {"call_id": entry.call_id}) | message


def _found(connection: sqlite3.Connection, owner: str, identity: str) -> Any:
    row = connection.execute(
        f"{_SUMMARY} WHERE c.id = ? AND c.owner = ?", (identity, owner)
    ).fetchone()
    if row is None:
        raise NotFoundError("no such conversation")
    return row


def _end(connection: sqlite3.Connection, identity: str) -> int:
    """Return the position after a conversation's last entry."""
    last = connection.execute(
        "SELECT max(position) FROM entries WHERE conversation = ?", (identity,)
    ).fetchone()[0]
    return 0 if last is None else int(last) + 1


def _touch(connection: sqlite3.Connection, identity: str) -> None:
    connection.execute("UPDATE conversations SET updated = ? WHERE id = ?", (time.time(), identity))


def _summary(row: Sequence[Any]) -> Summary:
    identity, title, created, updated, settings, metadata, branched_from, length = row
    return Summary(
        identity, title, created, updated, _loads(settings), _loads(metadata), branched_from, length
    )


def _bounded(limit: int) -> int:
    return max(0, min(limit, MAX_LISTED))


def _dumps(value: object) -> str:
    return replace_surrogates(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _loads(text: str) -> dict[str, Any]:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise CorruptStoreError("what is stored of a conversation is not a JSON object")
    return {str(name): it for name, it in value.items()}
