"""Rounds that the model wrote (its reasoning, calls, answer), kept to be put back later.

A round is what the model wrote between two messages of others. Most clients send back only what
is visible of it: without the reasoning before a call the model forgets why it called, and without
the original token ids the prompt cache is lost. A round is found by the id of one of its calls, or
by a fingerprint of the visible conversation up to its end.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence

from gptoss.runtime.harmony.messages import Message
from gptoss.runtime.store.database import Database
from gptoss.runtime.store.fingerprint import (
    Beginnings,
    call_ids_between,
    fingerprint,
    restore_rounds,
)
from gptoss.runtime.store.message_json import messages_from_json, messages_to_json
from gptoss.text import replace_surrogates


class Rounds:
    """The store's rounds. ``vocabulary`` is that of the model in use: token ids of another one are
    left out.
    """

    def __init__(self, database: Database, vocabulary: str | None = None) -> None:
        self._database = database
        self._vocabulary = vocabulary

    def remember(
        self,
        owner: str,
        before: Sequence[Message],
        written: Sequence[Message],
        call_ids: Sequence[str] = (),
    ) -> None:
        """Keep a round: what the model has ``written`` after the messages ``before``, with the ids
        that the client was given for its calls.
        """
        keys = [_call_key(identity) for identity in call_ids]
        keys.append(_conversation_key(fingerprint([*before, *written])))

        def insert(connection: sqlite3.Connection) -> None:
            added = connection.execute(
                "INSERT INTO rounds (created, messages, vocabulary) VALUES (?, ?, ?)",
                (time.time(), replace_surrogates(messages_to_json(written)), self._vocabulary),
            )
            connection.executemany(
                "INSERT OR REPLACE INTO round_keys VALUES (?, ?, ?)",
                [(owner, key, added.lastrowid) for key in keys],
            )

        self._database.write(insert)

    def of_call(self, owner: str, call_id: str) -> tuple[Message, ...] | None:
        """Return the round that made a call, by the call's id; None if it is not known."""
        return self._find(owner, _call_key(call_id))

    def of_conversation(
        self, owner: str, messages: Sequence[Message]
    ) -> tuple[Message, ...] | None:
        """Return the last round of a conversation, by its visible messages; None if not known."""
        return self._find(owner, _conversation_key(fingerprint(messages)))

    def restore(
        self, owner: str, messages: Sequence[Message], call_ids: Mapping[int, str] | None = None
    ) -> list[Message]:
        """Return a conversation with its open rounds as the model wrote them: with the reasoning
        before calls, and the original token ids (see ``restore_rounds``).

        ``call_ids`` are the ids of calls by the call's index in ``messages``.
        """

        return restore_from([self], owner, messages, call_ids or {})

    def find(
        self,
        owner: str,
        conversation: Beginnings,
        call_ids: Mapping[int, str],
        start: int,
        end: int,
    ) -> tuple[Message, ...] | None:
        """Return the round that is ``[start:end]`` of a conversation's messages; None if it is not
        known.
        """
        for identity in call_ids_between(call_ids, start, end):
            if (found := self.of_call(owner, identity)) is not None:
                return found
        return self._find(owner, _conversation_key(conversation.fingerprint(end)))

    def _find(self, owner: str, key: str) -> tuple[Message, ...] | None:
        row = self._database.read(
            lambda connection: connection.execute(
                """SELECT messages, vocabulary FROM rounds WHERE id =
                    (SELECT round FROM round_keys WHERE owner = ? AND key = ?)""",
                (owner, key),
            ).fetchone()
        )
        if row is None:
            return None
        return messages_from_json(row[0], with_tokens=row[1] == self._vocabulary)


def restore_from(
    kept: Sequence[Rounds], owner: str, messages: Sequence[Message], call_ids: Mapping[int, str]
) -> list[Message]:
    """Return a conversation as ``Rounds.restore`` does, each round from the first store that knows
    it.
    """
    beginnings = Beginnings(messages)

    def find(start: int, end: int) -> tuple[Message, ...] | None:
        found = (it.find(owner, beginnings, call_ids, start, end) for it in kept)
        return next((it for it in found if it is not None), None)

    return restore_rounds(messages, find)


def _call_key(identity: str) -> str:
    return f"call:{identity}"


def _conversation_key(fingerprint: str) -> str:
    return f"conversation:{fingerprint}"
