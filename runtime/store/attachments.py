"""What the person sees beside a message and the model does not: a tool's figures, how long a call
took, which pages an answer cites.

Each has a name within its entry (``about``, ``figure-0``) and is bytes. It goes with its entry:
deleted with it, and copied with it into a branch.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

from gptoss.runtime.store.database import Database
from gptoss.runtime.store.errors import NotFoundError

MAX_BYTES = 8 << 20
"""Size of one attachment at most."""


class Attachments:
    """The store's attachments, by conversation, entry and name."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self, owner: str, conversation: str, attached: Mapping[str, Mapping[str, bytes]]
    ) -> None:
        """Keep what is ``attached`` to entries, by their ids, each by its name. Raises
        NotFoundError, StoreFullError, ValueError for what is larger than ``MAX_BYTES``.
        """
        rows = [
            (conversation, entry, name, data)
            for entry, named in attached.items()
            for name, data in named.items()
        ]
        if any(len(data) > MAX_BYTES for *_, data in rows):
            raise ValueError(f"an attachment may have {MAX_BYTES:,} bytes")

        def insert(connection: sqlite3.Connection) -> None:
            for row in rows:
                there = connection.execute(
                    """SELECT 1 FROM entries e JOIN conversations c ON c.id = e.conversation
                        WHERE c.id = ? AND c.owner = ? AND e.id = ?""",
                    (conversation, owner, row[1]),
                ).fetchone()
                if there is None:
                    raise NotFoundError("no such item in the conversation")
                connection.execute("INSERT OR REPLACE INTO attachments VALUES (?, ?, ?, ?)", row)

        if rows:
            self._database.write(insert)

    def read(self, owner: str, conversation: str, entry: str, name: str) -> bytes:
        """Return one attachment; raises NotFoundError."""
        found = self._select(
            owner, conversation, "a.data", "a.entry = ? AND a.name = ?", entry, name
        )
        if not found:
            raise NotFoundError("no such attachment")
        return bytes(found[0][0])

    def named(self, owner: str, conversation: str, name: str) -> dict[str, bytes]:
        """Return the attachments of this name in a conversation, by the ids of their entries."""
        found = self._select(owner, conversation, "a.entry, a.data", "a.name = ?", name)
        return {entry: bytes(data) for entry, data in found}

    def _select(self, owner: str, conversation: str, what: str, where: str, *values: str) -> Any:
        return self._database.read(
            lambda connection: connection.execute(
                f"""SELECT {what} FROM attachments a JOIN conversations c ON c.id = a.conversation
                    WHERE c.id = ? AND c.owner = ? AND {where}""",
                (conversation, owner, *values),
            ).fetchall()
        )
