"""What a client that keeps its own conversation does not send back, put back from the store.

* the reasoning before its calls, and the token ids of the model's own messages: found by a call's
  id, or by what is visible of the conversation (``store.rounds``);
* the date on which the conversation began, so that a new day does not throw the prompt cache away.

All of this blocks: call it in a thread.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping, Sequence

from gptoss.runtime.harmony.messages import Effort, Message, Role, SystemContent
from gptoss.runtime.server.responses.context import beginning_of, gives_date
from gptoss.runtime.store.errors import StoreError
from gptoss.runtime.store.fingerprint import fingerprint
from gptoss.runtime.store.store import Store

_log = logging.getLogger(__name__)


def whole_conversation(
    store: Store,
    owner: str,
    effort: Effort,
    said: Sequence[Message],
    call_ids: Mapping[int, str],
) -> tuple[Message, ...]:
    """Return what the model reads for a conversation that a client sent without system block:
    that block, and the messages ``said`` with what is known of the model's rounds.

    ``call_ids`` are the ids of calls by the call's index in ``said``.
    """
    date = None
    if not gives_date(said):
        today = datetime.date.today().isoformat()
        try:
            date = store.pinned_date(owner, fingerprint(beginning_of(said)), today)
        except StoreError as error:  # a full disk: the reply matters more
            _log.warning("the date of a conversation is not kept: %s", error)
            date = today
    system = Message(Role.SYSTEM, SystemContent(date=date, effort=effort))
    return (system, *store.rounds.restore(owner, said, call_ids))


def remember_round(
    store: Store,
    owner: str,
    read: Sequence[Message],
    written: Sequence[Message],
    call_ids: Sequence[str],
) -> None:
    """Keep what the model has ``written`` after the messages that it ``read``, with the ids that
    the client was given for its calls.
    """
    if not written:
        return
    try:
        store.rounds.remember(owner, read, written, call_ids)
    except StoreError as error:
        _log.warning("a round of the model is not kept: %s", error)
