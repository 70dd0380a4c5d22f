"""Requests that come together and begin alike: the later ones wait for the first one's prefix, and
copy it, instead of decoding it again."""

from __future__ import annotations

from collections.abc import Sequence

from gptoss.runtime.engine.kv_reuse import WORTH_COPYING, Stream
from gptoss.runtime.engine.request import Awaited, Request


def awaits_prefix(request: Request, active: Sequence[Request], streams: Sequence[Stream]) -> bool:
    """Report whether an active request is decoding a prefix that this waiting one can copy from its
    stream soon; let that stream keep the place where the two prompts part.
    """
    if request.awaited is not None and request.awaited.is_coming(active):
        return True
    request.awaited = None
    for leader in active:
        stream = leader.stream
        if stream is None or leader.paused or len(stream.tokens) >= leader.n_prompt:
            continue
        awaited = Awaited(leader, leader.shared_prompt(request))
        if not awaited.is_coming(active):
            continue
        others = (it.reach(request.target) for it in streams if it is not stream)
        if awaited.n_tokens - max(others, default=0) >= WORTH_COPYING:
            leader.checkpoints |= {awaited.n_tokens}
            request.awaited = awaited
            return True
    return False
