"""The context's streams and the prefix cache behind them: where each prompt is decoded, and what is
kept of the conversation that was there before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gptoss.runtime.engine.kv_reuse import WORTH_COPYING, Memory, Stream, choose_place
from gptoss.runtime.engine.prefix_cache import (
    WORTH_READING,
    WORTH_WRITING,
    Fetch,
    PrefixCache,
)

IDLE_SECONDS = 10.0
"""The engine has had nothing to do for so long when conversations are written to disk."""


class StreamPool:
    """All streams of a context. Used by the scheduler's thread only."""

    def __init__(self, memory: Memory, n_streams: int, cache: PrefixCache | None = None) -> None:
        self.streams = [Stream(memory, i) for i in range(n_streams)]
        self._cache = cache
        self._n_started = 0
        self._unwritten: set[Stream] = set()

    @property
    def idle_seconds(self) -> float | None:
        """Return after how long without work ``write_idle`` wants to be called; None for never."""
        return IDLE_SECONDS if self._unwritten else None

    def fetch(
        self, prompt: Sequence[int], failed: Fetch | None, wake: Callable[[], None]
    ) -> Fetch | None:
        """Begin to fetch a saved state that saves more of ``prompt`` than any stream, where there
        is one; ``failed`` is one that could not be read. See ``PrefixCache.fetch``.
        """
        if self._cache is None:
            return None
        if failed is not None:
            self._cache.forget(failed)
        reach = max(it.reach(prompt) for it in self.streams)
        return self._cache.fetch(prompt, reach, wake)

    def occupy(
        self, prompt: Sequence[int], idle: Sequence[Stream], fetch: Fetch | None = None
    ) -> tuple[Stream, int]:
        """Take one of the ``idle`` streams for a prompt; return it and how many tokens of the
        prompt it has already.
        """
        place = choose_place(prompt, idle, self.streams, fetch.match.position if fetch else 0)
        target = place.target
        if not place.continues:
            self._keep(target)
        if place.source is not None:
            target.copy_from(place.source)
        elif place.restores and fetch is not None:
            self._restore(target, fetch)
        self._n_started += 1
        target.last_used = self._n_started
        reused = target.rewind(prompt)
        target.conversation = len(prompt)
        if self._cache is not None and self._cache.writes:
            self._unwritten.add(target)
        return target, reused

    def save_snapshot(self, stream: Stream, *, shared: bool) -> None:
        """Save a snapshot at a stream's present end; where it is the end of what conversations
        share, write the state to disk too.
        """
        stream.save_snapshot()
        if shared and self._is_worth_writing(stream, [len(stream.tokens)], WORTH_WRITING):
            self._write(stream, only_last=True)

    def write_idle(self) -> None:
        """Write to disk the conversations that have grown by much since they were written."""
        for stream in self._unwritten:
            if self._is_worth_writing(stream, stream.positions, WORTH_WRITING):
                self._write(stream)
        self._unwritten.clear()

    def close(self) -> None:
        """Write to disk all conversations of which a file saves less than is worth reading."""
        if self._cache is None:
            return
        for stream in self.streams:
            if self._is_worth_writing(stream, stream.positions, WORTH_READING):
                self._write(stream, wait=True)
        self._cache.close()

    def _keep(self, stream: Stream) -> None:
        """Keep the conversation that a stream is about to lose."""
        if self._cache is None or len(stream.tokens) < WORTH_COPYING:
            return
        if not self._cache.may_keep(stream.nbytes):  # gigabytes, in vain, for a long conversation
            return
        state = stream.state()
        if state is not None:
            self._cache.keep(state)

    def _restore(self, stream: Stream, fetch: Fetch) -> None:
        state, cache = fetch.state, self._cache
        if state is None or cache is None:
            return
        if not stream.restore(state, fetch.match.snapshot):
            cache.forget(fetch)

    def _is_worth_writing(self, stream: Stream, positions: Sequence[int], gain: int) -> bool:
        return self._cache is not None and self._cache.is_worth_writing(
            stream.tokens, positions, gain
        )

    def _write(self, stream: Stream, *, only_last: bool = False, wait: bool = False) -> None:
        if self._cache is None or not self._cache.may_write(stream.nbytes, wait=wait):
            return
        state = stream.state(1) if only_last else stream.state()
        if state is not None:
            self._cache.write(state, wait=wait)
