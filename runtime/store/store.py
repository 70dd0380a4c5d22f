"""The store: conversations, responses and rounds in one SQLite file, bounded and with expiry.

    with Store.open(default_path(), tokenizer) as store:
        conversation = store.conversations.create(LOCAL_OWNER)
        store.conversations.append(LOCAL_OWNER, conversation.id, [Entry(user("Hello"))])

Responses and rounds are deleted 30 days after they were made, or sooner when the file nears its
size limit, the oldest first. Conversations are the user's: only the user deletes them.
"""

from __future__ import annotations

import copy
import secrets
import sqlite3
import time
from pathlib import Path

import platformdirs

from gptoss.runtime.closing import Closing
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.store.attachments import Attachments
from gptoss.runtime.store.conversations import Conversations, Entry
from gptoss.runtime.store.database import Database, used_bytes
from gptoss.runtime.store.message_json import vocabulary_of
from gptoss.runtime.store.responses import Responses, StoredResponse
from gptoss.runtime.store.rounds import Rounds

MAX_BYTES = 1 << 30
"""Size limit of the store's file unless asked otherwise."""

MAX_MEMORY_BYTES = 128 << 20
"""Size limit of a store in memory."""

EXPIRY_SECONDS = 30 * 24 * 3600
"""Age at which responses and rounds are deleted; OpenAI keeps responses for as long."""

PRUNE_SECONDS = 600
"""How often a running store looks for what has expired."""

_FULL, _ROOM = 0.9, 0.8
"""From this share of the size limit on, the oldest are deleted until this share is left."""

_PRUNED = ("responses", "rounds", "dates")


def default_path() -> Path:
    """Return where the user's store is, on every system."""
    return Path(platformdirs.user_data_dir("gptoss", appauthor=False)) / "store.sqlite3"


class Store(Closing):
    """One store, on disk or in memory. Safe to use from any thread, and from several processes.

    A context manager: leaving it closes the file.
    """

    def __init__(
        self,
        path: Path | None,
        tokenizer: Tokenizer | None = None,
        *,
        max_bytes: int | None = None,
        expiry_seconds: float = EXPIRY_SECONDS,
    ) -> None:
        """``path`` None keeps everything in memory. Token ids are read and written only with the
        ``tokenizer`` of the model in use.

        Raises StoreError, CorruptStoreError.
        """
        self._max_bytes = max_bytes or (MAX_MEMORY_BYTES if path is None else MAX_BYTES)
        self._expiry = expiry_seconds
        self._database = Database(path, max_bytes=self._max_bytes, make_room=self._make_room)
        self._views: dict[str, Store] = {}
        self._pruned = 0.0
        self._bind(None if tokenizer is None else vocabulary_of(tokenizer))
        self.prune()

    def for_tokenizer(self, tokenizer: Tokenizer) -> Store:
        """Return this store as one that reads and writes token ids of another model's tokenizer;
        the file is the same.
        """
        vocabulary = vocabulary_of(tokenizer)
        if vocabulary not in self._views:
            view = copy.copy(self)
            view._bind(vocabulary)
            self._views[vocabulary] = view
        return self._views[vocabulary]

    @property
    def path(self) -> Path | None:
        """Return the store's file; None for a store in memory."""
        return self._database.path

    def close(self) -> None:
        """Close the store. May be called twice."""
        self._database.close()

    def used_bytes(self) -> int:
        """Return how many bytes of the store's file hold data."""
        return self._database.used_bytes()

    def prune(self) -> None:
        """Delete the store's expired responses and rounds, and the oldest ones if it is nearly
        full. Done when it is opened, and by ``prune_sometimes``.
        """
        self._pruned = time.monotonic()
        self._database.write(self._delete_expired)
        if self.used_bytes() > _FULL * self._max_bytes:
            self._database.write(self._make_room)

    def prune_sometimes(self) -> None:
        """Prune the store if that was long ago; cheap otherwise."""
        if time.monotonic() - self._pruned > PRUNE_SECONDS:
            self.prune()

    def finish_response(
        self,
        owner: str,
        response: StoredResponse,
        *,
        conversation: str | None = None,
        entries: tuple[Entry, ...] = (),
        expected: int | None = None,
    ) -> None:
        """Store a complete response, and what was asked and answered in its ``conversation``, in
        one transaction of the store.

        Raises NotFoundError and ConflictError for the conversation.
        """

        def insert(connection: sqlite3.Connection) -> None:
            if conversation is not None:
                self.conversations.insert(connection, owner, conversation, entries, expected)
            self.responses.insert(connection, owner, response)

        self._database.write(insert)
        self.prune_sometimes()

    def pinned_date(self, owner: str, key: str, date: str) -> str:
        """Return the date that was pinned for ``key`` (a fingerprint of a conversation's
        beginning); pin ``date`` if there is none.
        """

        def pin(connection: sqlite3.Connection) -> str:
            connection.execute(
                "INSERT OR IGNORE INTO dates VALUES (?, ?, ?, ?)", (owner, key, time.time(), date)
            )
            row = connection.execute(
                "SELECT date FROM dates WHERE owner = ? AND key = ?", (owner, key)
            ).fetchone()
            return str(row[0])

        return self._database.write(pin)

    def secret(self, name: str) -> bytes:
        """Return 32 random bytes that stay the same for this store, made on first use."""

        def make(connection: sqlite3.Connection) -> bytes:
            connection.execute(
                "INSERT OR IGNORE INTO secrets VALUES (?, ?)", (name, secrets.token_bytes(32))
            )
            row = connection.execute("SELECT value FROM secrets WHERE name = ?", (name,))
            return bytes(row.fetchone()[0])

        return self._database.write(make)

    def _bind(self, vocabulary: str | None) -> None:
        self.conversations = Conversations(self._database, vocabulary)
        self.attachments = Attachments(self._database)
        self.responses = Responses(self._database)
        self.rounds = Rounds(self._database, vocabulary)

    def _delete_expired(self, connection: sqlite3.Connection) -> None:
        oldest = time.time() - self._expiry
        for table in _PRUNED:
            connection.execute(f"DELETE FROM {table} WHERE created < ?", (oldest,))

    def _make_room(self, connection: sqlite3.Connection) -> bool:
        """Delete the store's oldest responses and rounds, a tenth at a time, until a fifth of the
        size limit is free; report whether any were deleted.
        """
        deleted = False
        while used_bytes(connection) > _ROOM * self._max_bytes:
            before = connection.total_changes
            for table in _PRUNED:
                connection.execute(
                    f"""DELETE FROM {table} WHERE created <= (SELECT created FROM {table}
                        ORDER BY created LIMIT 1
                        OFFSET (SELECT count(*) / 10 FROM {table}))"""
                )
            if connection.total_changes == before:
                break
            deleted = True
        return deleted
