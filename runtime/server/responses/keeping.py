"""What the store keeps of a response beside its body: its messages exactly as they were.

The items of a response do not hold all of its messages: of a search only what was looked for, not
what was found. So a response's messages are kept as rounds (see ``store.rounds``), by three keys:
the ids of the calls of each generation, ``ID/exact`` for a call that this server ran with its
result, and the response's own id for all that it has written.
"""

from __future__ import annotations

from collections.abc import Sequence

from gptoss.runtime.harmony.messages import Message
from gptoss.runtime.server.responses.run import ResponseRun
from gptoss.runtime.server.responses.server_items import RESULT, exact_key
from gptoss.runtime.server.responses.writer import WrittenItem
from gptoss.runtime.store.conversations import Entry
from gptoss.runtime.store.rounds import Rounds


def remember(rounds: Rounds, owner: str, run: ResponseRun) -> None:
    """Keep what a response has written."""
    for generation in run.turn.generations:
        written = generation.done.messages
        if written:
            rounds.remember(owner, generation.asked.messages, written, generation.call_ids)
    for item in run.writer.items:
        if item.message is not None and item.result is not None:
            pair = (item.message, item.result)
            rounds.remember(owner, (), pair, [exact_key(item.data["id"])])
    if run.status == "completed" and run.request.store and run.turn.written:
        rounds.remember(owner, (), run.turn.written, [run.id])


def written_entries(run: ResponseRun) -> list[Entry]:
    """Return what a response has written as entries of a conversation, in its order: the items with
    their messages, and after each generation the results of its calls.
    """
    entries: list[Entry] = []
    for number in range(run.writer.round + 1):
        items = [it for it in run.writer.items if it.round == number]
        entries += [entry for it in items for entry in _entries_of(it)]
        entries += [
            Entry(it.result, item={"type": RESULT, "call_id": it.data["id"]})
            for it in items
            if it.message is not None and it.result is not None
        ]
    return entries


def _entries_of(item: WrittenItem) -> Sequence[Entry]:
    """Return the entry of an item. An approved call has no message of its own, but its result."""
    message: Message | None = item.message or item.result
    if message is None:
        return ()
    data = {name: value for name, value in item.data.items() if name != "encrypted_content"}
    return (Entry(message, id=data["id"], call_id=data.get("call_id"), item=data),)
