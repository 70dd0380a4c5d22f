"""Responses of the API in the store, by id, with what they were asked.

A response that is made in the background is stored before it is complete. Its maker keeps moving
``alive_until`` on; one that is found unfinished after that was lost with its process.
"""

from __future__ import annotations

import json
import sqlite3
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptoss.runtime.store.database import Database
from gptoss.runtime.store.errors import CorruptStoreError, NotFoundError
from gptoss.text import replace_surrogates

MAX_EVENT_BYTES = 16 << 20
"""The events of a background response are kept up to this size, to resume its stream."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response as it is kept.

    ``body`` is the API's object, ``input`` the items of its own request, with ids.
    ``alive_until`` is None for a response that is finished. ``events`` are not loaded with it.
    """

    id: str
    created: float
    previous: str | None
    body: Mapping[str, Any]
    input: tuple[Mapping[str, Any], ...]
    alive_until: float | None = None
    events: tuple[Mapping[str, Any], ...] | None = None


_ROW = "id, created, previous, body, input, alive_until"


class Responses:
    """The store's responses. Another owner's response is not found."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, owner: str, response: StoredResponse) -> None:
        """Store a response, or replace the earlier state of the same one; it is on disk when this
        returns.
        """
        self._database.write(lambda connection: self.insert(connection, owner, response))

    def insert(self, connection: sqlite3.Connection, owner: str, response: StoredResponse) -> None:
        """Store a response within a transaction of the database."""
        connection.execute(
            f"""INSERT INTO responses ({_ROW}, owner, events)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?)
                ON CONFLICT (id) DO UPDATE SET body = excluded.body,
                alive_until = excluded.alive_until, events = excluded.events
                WHERE owner = excluded.owner""",
            (
                response.id,
                response.created,
                response.previous,
                _dumps(response.body),
                _dumps(response.input),
                response.alive_until,
                owner,
                _packed(response.events),
            ),
        )
        connection.executemany(
            """INSERT OR IGNORE INTO response_items
                SELECT ?, ?, id FROM responses WHERE id = ? AND owner = ?""",
            [(owner, item["id"], response.id, owner) for item in _items(response) if "id" in item],
        )

    def get(self, owner: str, identity: str) -> StoredResponse:
        """Load a response without its events; raises NotFoundError."""
        row = self._database.read(
            lambda connection: connection.execute(
                f"SELECT {_ROW} FROM responses WHERE id = ? AND owner = ?", (identity, owner)
            ).fetchone()
        )
        if row is None:
            raise NotFoundError("no such response")
        return _response(row)

    def chain(self, owner: str, identity: str, limit: int) -> list[StoredResponse]:
        """Load a response and those before it, the oldest first, at most ``limit`` of them.

        A chain whose beginning has expired begins later. Raises NotFoundError if there is no
        response of this id.
        """
        responses = [self.get(owner, identity)]
        seen = {identity}
        while len(responses) < limit:
            previous = responses[-1].previous
            if previous is None or previous in seen:
                break
            seen.add(previous)
            try:
                responses.append(self.get(owner, previous))
            except NotFoundError:
                break
        return responses[::-1]

    def item(self, owner: str, identity: str) -> dict[str, Any]:
        """Load one item that was sent with or written in any response; raises NotFoundError."""
        row = self._database.read(
            lambda connection: connection.execute(
                "SELECT response FROM response_items WHERE owner = ? AND id = ?", (owner, identity)
            ).fetchone()
        )
        items = [] if row is None else _items(self.get(owner, row[0]))
        for item in items:
            if item.get("id") == identity:
                return dict(item)
        raise NotFoundError("no such item")

    def events(self, owner: str, identity: str) -> list[dict[str, Any]] | None:
        """Load the events of a finished background response; None if they were not kept."""
        row = self._database.read(
            lambda connection: connection.execute(
                "SELECT events FROM responses WHERE id = ? AND owner = ?", (identity, owner)
            ).fetchone()
        )
        if row is None:
            raise NotFoundError("no such response")
        return None if row[0] is None else _unpacked(row[0])

    def keep_alive(self, identity: str, until: float) -> None:
        """Report that an unfinished response is still being made, until a time in seconds."""
        self._database.write(
            lambda connection: connection.execute(
                "UPDATE responses SET alive_until = ? WHERE id = ? AND alive_until IS NOT NULL",
                (until, identity),
            )
        )

    def delete(self, owner: str, identity: str) -> None:
        """Delete a response; raises NotFoundError."""

        def delete(connection: sqlite3.Connection) -> None:
            deleted = connection.execute(
                "DELETE FROM responses WHERE id = ? AND owner = ?", (identity, owner)
            )
            if not deleted.rowcount:
                raise NotFoundError("no such response")

        self._database.write(delete)


def _items(response: StoredResponse) -> list[Mapping[str, Any]]:
    """Return a response's items, those of its request first."""
    return [*response.input, *response.body.get("output", ())]


def is_lost(response: StoredResponse) -> bool:
    """Report whether an unfinished response was lost with the process that was making it."""
    return response.alive_until is not None and response.alive_until < time.time()


def _response(row: Sequence[Any]) -> StoredResponse:
    identity, created, previous, body, asked, alive_until = row
    return StoredResponse(
        identity, created, previous, _loads(body, dict), tuple(_loads(asked, list)), alive_until
    )


def _packed(events: Sequence[Mapping[str, Any]] | None) -> bytes | None:
    """Compress a background response's events for the store; None if they are too large."""
    if events is None:
        return None
    raw = _dumps(events).encode()
    return zlib.compress(raw, 1) if len(raw) <= MAX_EVENT_BYTES else None


def _unpacked(packed: bytes) -> list[dict[str, Any]]:
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(packed, MAX_EVENT_BYTES)
    except zlib.error:
        raise CorruptStoreError("a stored response's events cannot be read") from None
    return list(_loads(raw.decode("utf-8", "replace"), list))


def _dumps(value: object) -> str:
    return replace_surrogates(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def _loads(text: str, kind: type) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise CorruptStoreError("a stored response cannot be read")
    return value
