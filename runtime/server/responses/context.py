"""What the model is given for a request: date, truncation to the context, the system block; pure.

**The date.** The system block carries a date, and a new one every day would throw away the prompt
cache of an agent's long prefix. So: a client that gives the date itself (Codex, Claude Code and
others do, in their environment) gets a system block without one, and its prefix is the same on
every day. Otherwise a conversation keeps the date on which it began.

**Truncation.** With ``truncation: auto`` whole turns are dropped, the oldest first, in steps of a
quarter of the room. While a conversation grows by less than that, its beginning stays the same,
and with it the prompt cache.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from gptoss.runtime.harmony.messages import DeveloperContent, Message, Role
from gptoss.runtime.harmony.render import declares_functions, render_message
from gptoss.runtime.harmony.tokenizer import Tokenizer

_STEPS = 4
"""Turns are dropped in steps of this part of the room."""

_SPARE = 8
"""Tokens kept free for the beginning of the reply."""

_DATE = re.compile(
    r"(?:current[ _]date|today(?:['’]s date| is))\W{0,4}(?:is\W)?\s{0,8}(?:\w{1,16},?\s)?"
    r"\d{4}-\d\d-\d\d",
    re.IGNORECASE,
)
"""Every repetition is bounded: a long text costs no more than its length."""
_SEARCHED = 200_000
"""Characters of a message in which a date is looked for."""


def gives_date(messages: Sequence[Message]) -> bool:
    """Report whether the client's own messages, up to the model's first, give the current date."""
    for message in messages:
        if message.role == Role.ASSISTANT:
            return False
        content = message.content
        text = content.instructions if isinstance(content, DeveloperContent) else message.text
        if text and _DATE.search(text[:_SEARCHED]):
            return True
    return False


def beginning_of(messages: Sequence[Message]) -> Sequence[Message]:
    """Return a conversation's messages before the model's first, by which it is known again."""
    for i, message in enumerate(messages):
        if message.role == Role.ASSISTANT:
            return messages[:i]
    return messages


def truncated(messages: Sequence[Message], tokenizer: Tokenizer, room: int) -> list[Message]:
    """Return a conversation without its oldest turns, so that it fits into ``room`` tokens.

    What precedes the first user message and the last turn are kept, whatever their size.
    """
    with_functions = any(map(declares_functions, messages))
    sizes = [
        len(render_message(it, tokenizer, conversation_has_functions=with_functions))
        for it in messages
    ]
    excess = sum(sizes) + _SPARE - room
    starts = [i for i, message in enumerate(messages) if message.role == Role.USER]
    if excess <= 0 or len(starts) < 2:
        return list(messages)
    step = max(1, room // _STEPS)
    wanted = -(-excess // step) * step
    dropped, cut = 0, starts[-1]
    for start, end in pairwise(starts):
        dropped += sum(sizes[start:end])
        if dropped >= wanted:
            cut = end
            break
    return [*messages[: starts[0]], *messages[cut:]]
