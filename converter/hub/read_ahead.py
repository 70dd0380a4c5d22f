"""Fetch the bytes that will be read from files on the Hub, a little before they are needed.

A conversion's reads and their order are known in advance. They are fetched in that order, in large
chunks over several connections, each byte once. Scales are needed long before their position in the
file is reached; they stay in memory until the last block of their tensor has been read.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Self

from gptoss.converter.hub.client import HubError
from gptoss.converter.hub.remote_file import RemoteFile
from gptoss.formats.byte_source import Span

CHUNK = 2**23
"""The most bytes per request."""
CONNECTIONS = 6
HELD = 14
"""Chunks in memory, including those being fetched."""
WAIT_SECONDS = 0.1
"""How often a reader that waits for a chunk checks whether to stop."""


class Chunk:
    """A span of a file that is fetched whole; ``readers`` counts the reads that need some of it."""

    def __init__(self, file: RemoteFile, span: Span) -> None:
        self.file = file
        self.span = span
        self.readers = 0
        self.data: Future[bytearray] | None = None


class ReadAhead:
    """Fetches the bytes of ``reads`` in their order, ahead of the readers.

    Each of ``reads``, a file and a span of it, will be read once. ``stop`` ends all fetching; it is
    set at the end. Use as a context manager.
    """

    def __init__(self, reads: Iterable[tuple[RemoteFile, Span]], stop: threading.Event) -> None:
        reads = list(reads)
        spans: dict[RemoteFile, list[Span]] = {}
        for file, span in reads:
            spans.setdefault(file, []).append(span)
        self._chunks = {
            file: [Chunk(file, span) for span in chunks(found)] for file, found in spans.items()
        }
        order: dict[Chunk, None] = {}
        for file, span in reads:
            for chunk in self._overlapping(file, span):
                chunk.readers += 1
                order[chunk] = None
        self._todo = iter(order)
        self._held: dict[Chunk, None] = {}
        self._lock = threading.Lock()
        self._stop = stop
        self._queue: SimpleQueue[tuple[Chunk, Future[bytearray]] | None] = SimpleQueue()

    def read_into(self, file: RemoteFile, offset: int, out: memoryview) -> int:
        """Copy what one read-ahead chunk has of the bytes at ``offset`` to ``out``; returns 0 when
        no planned chunk has any.
        """
        chunk = next(self._overlapping(file, (offset, offset + 1)), None)
        with self._lock:
            if chunk is None or not chunk.readers:
                return 0
            future = self._request(chunk)
        data = memoryview(self._wait(future))[offset - chunk.span[0] :][: len(out)]
        out[: len(data)] = data
        with self._lock:
            chunk.readers -= 1
            if not chunk.readers:
                self._forget(chunk)
            self._fill()
        return len(data)

    def __enter__(self) -> Self:
        for file in self._chunks:
            file.ahead = self
        for _ in range(CONNECTIONS):
            # Daemons: the process can end while one hangs in a silent connection.
            threading.Thread(target=self._fetch, name="fetch", daemon=True).start()
        with self._lock:
            self._fill()
        return self

    def __exit__(self, *_raised: object) -> None:
        for file in self._chunks:
            file.ahead = None
        self._stop.set()
        for _ in range(CONNECTIONS):
            self._queue.put(None)

    def _fetch(self) -> None:
        while (wanted := self._queue.get()) is not None:
            chunk, future = wanted
            try:
                future.set_result(chunk.file.fetch(chunk.span))
            except BaseException as error:
                future.set_exception(error)

    def _wait(self, future: Future[bytearray]) -> bytearray:
        """Wait for a chunk that is read ahead and return its bytes; raises what went wrong, or when
        stopped.
        """
        while not wait((future,), WAIT_SECONDS).done:
            if self._stop.is_set():
                raise HubError("interrupted")
        return future.result()

    def _overlapping(self, file: RemoteFile, span: Span) -> Iterator[Chunk]:
        found = self._chunks.get(file, [])
        at = bisect_right(found, span[0], key=lambda chunk: chunk.span[0]) - 1
        for chunk in found[max(at, 0) :]:
            if chunk.span[0] >= span[1]:
                break
            if chunk.span[1] > span[0]:
                yield chunk

    # The methods below are called with the lock held.

    def _request(self, chunk: Chunk) -> Future[bytearray]:
        """Return the future of a read-ahead chunk's bytes; a chunk that no thread fetches yet comes
        next.
        """
        self._fill()
        if chunk.data is None:
            self._make_room()
        data = chunk.data or self._start(chunk)
        self._held[chunk] = self._held.pop(chunk)  # now the last to be dropped
        return data

    def _fill(self) -> None:
        """Start fetching the next chunks while the read-ahead's memory has room."""
        while len(self._held) < HELD and (chunk := next(self._todo, None)) is not None:
            if chunk.data is None and chunk.readers:
                self._start(chunk)

    def _make_room(self) -> None:
        """Drop a chunk of the read-ahead for a read out of order; it is fetched again when it is
        needed.
        """
        if len(self._held) >= HELD:
            done = (it for it in self._held if it.data is not None and it.data.done())
            if (oldest := next(done, None)) is not None:
                self._forget(oldest)

    def _start(self, chunk: Chunk) -> Future[bytearray]:
        data: Future[bytearray] = Future()
        chunk.data = data
        self._held[chunk] = None
        self._queue.put((chunk, data))
        return data

    def _forget(self, chunk: Chunk) -> None:
        chunk.data = None
        self._held.pop(chunk, None)


def chunks(spans: Iterable[Span]) -> Sequence[Span]:
    """Divide the spans that will be read ahead, adjacent ones joined, into chunks of at most
    ``CHUNK`` bytes, in order.
    """
    joined: list[Span] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return [(at, min(at + CHUNK, end)) for begin, end in joined for at in range(begin, end, CHUNK)]
