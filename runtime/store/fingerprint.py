"""Fingerprints of conversations by what a client sees of them, and rounds put back by them.

Pure functions. A client that sends a conversation back may have dropped the reasoning, trimmed
texts, written arguments' JSON anew, or changed its instructions (a date, a billing line): none of
these changes a fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from gptoss.runtime.harmony.messages import Message, Role

_UNSEEN = (Role.SYSTEM, Role.DEVELOPER)


def fingerprint(messages: Sequence[Message]) -> str:
    """Return a hash of a conversation as clients see it, without instructions and reasoning."""
    return Beginnings(messages).fingerprint(len(messages))


class Beginnings:
    """The fingerprints of a conversation up to each of its messages; each message is hashed once.

    A conversation may have hundreds of rounds to look up, as many as an agent has called tools.
    """

    def __init__(self, messages: Sequence[Message]) -> None:
        self._messages = messages

    def fingerprint(self, end: int) -> str:
        """Return the fingerprint of the messages before ``end``."""
        return self._fingerprints[end]

    @cached_property
    def _fingerprints(self) -> list[str]:
        digest = hashlib.sha256()
        found = [digest.hexdigest()]
        for message in self._messages:
            if message.role not in _UNSEEN and message.channel != "analysis":
                digest.update(json.dumps([message.role.value, *_seen(message)]).encode())
            found.append(digest.hexdigest())
        return found


def restore_rounds(
    messages: Sequence[Message],
    find: Callable[[int, int], Sequence[Message] | None],
) -> list[Message]:
    """Return a conversation with its open rounds as the model wrote them, where they are known.

    A round is a run of the assistant's messages; open are those after the last final message,
    since reasoning before it is dropped anyway. ``find(start, end)`` looks up the round that is
    ``messages[start:end]``. It is put back only where what is visible of it is the same, and no
    other reasoning was sent.
    """
    start = 1 + max((i for i, m in enumerate(messages) if m.channel == "final"), default=-1)
    restored = list(messages[:start])
    while start < len(messages):
        end = start
        while end < len(messages) and messages[end].role == Role.ASSISTANT:
            end += 1
        if end == start:
            restored.append(messages[start])
            start += 1
            continue
        sent = messages[start:end]
        known = find(start, end)
        restored += known if known is not None and _agree(sent, known) else sent
        start = end
    return restored


def _agree(sent: Sequence[Message], known: Sequence[Message]) -> bool:
    """Report whether a round that a client sent can be replaced by the one that is known."""
    reasoning = _reasoning(sent)
    return _visible(sent) == _visible(known) and reasoning in ("", _reasoning(known))


def _reasoning(messages: Sequence[Message]) -> str:
    return "".join("".join(m.text.split()) for m in messages if m.channel == "analysis")


def _visible(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [_seen(message) for message in messages if message.channel != "analysis"]


def _seen(message: Message) -> tuple[str, str]:
    """Return to whom a message goes, or what tool it is from, and its text."""
    called = message.role == Role.ASSISTANT and message.recipient is not None
    text = _same_json(message.text) if called else message.text.strip()
    whose = message.recipient if called else message.name if message.role == Role.TOOL else None
    return whose or "", text


def _same_json(arguments: str) -> str:
    """Return a call's arguments so that equal JSON is equal text."""
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except (ValueError, RecursionError):
        return arguments.strip()


def call_ids_between(call_ids: Mapping[int, str], start: int, end: int) -> list[str]:
    """Return the ids of the calls at indices from ``start`` up to ``end``."""
    return [call_ids[i] for i in range(start, end) if i in call_ids]
