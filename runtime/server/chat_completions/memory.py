"""What the server remembers for clients of chat completions: reasoning before calls, and the date.

Most clients send back a call without the reasoning that led to it, and the model then forgets why
it called. The rounds that end in calls are kept, and are found again by a call's id or by the
conversation. A request with ``store: false`` is kept in memory only.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import replace

from gptoss.runtime.harmony.messages import Message, Role, SystemContent
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.server.chat_completions.request import ChatRequest
from gptoss.runtime.server.reply import ReplyDone
from gptoss.runtime.server.responses.context import beginning_of, gives_date
from gptoss.runtime.server.responses.state import ResponsesState
from gptoss.runtime.store.fingerprint import fingerprint
from gptoss.runtime.store.rounds import restore_from


def recall(
    state: ResponsesState, owner: str, asked: ChatRequest, tokenizer: Tokenizer
) -> ChatRequest:
    """Return the request with the rounds as the model wrote them, and with the date that the
    conversation keeps (see ``responses.context``). Blocking: reads the store.
    """
    system, *said = asked.reply.messages
    call_ids = {index - 1: identity for index, identity in asked.call_ids.items()}
    kept = [it.for_tokenizer(tokenizer).rounds for it in (state.unstored, state.store)]
    restored = restore_from(kept, owner, said, call_ids)
    content = system.content
    if isinstance(content, SystemContent) and not gives_date(said):
        today = datetime.date.today().isoformat()
        # In memory: a date is kept for as long as the prompt cache that depends on it.
        date = state.unstored.pinned_date(owner, fingerprint(beginning_of(said)), today)
        system = Message(Role.SYSTEM, replace(content, date=date))
    return replace(asked, reply=replace(asked.reply, messages=(system, *restored)))


def remember(
    state: ResponsesState,
    owner: str,
    asked: ChatRequest,
    tokenizer: Tokenizer,
    done: ReplyDone,
    call_ids: Sequence[str],
) -> None:
    """Keep a round that ended in calls. Blocking: writes the store."""
    store = state.store_for(stored=asked.stored).for_tokenizer(tokenizer)
    store.rounds.remember(owner, asked.reply.messages, done.messages, call_ids)
    store.prune_sometimes()
