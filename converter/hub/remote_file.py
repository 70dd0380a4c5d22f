"""Weights on the Hub, read as if they were files here.

A ``RemoteFile`` stands where a path does. What a conversion will read of it is known before; a
``ReadAhead`` fetches it in that order, in large pieces on several connections, a little before it
is needed, each byte once: scales are needed long before their turn in the file, and stay until the
last block of their tensor has passed. What comes goes through sha256 in the file's order; once the
whole file has passed, its hash must be the one that the Hub publishes.
"""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Self

from gptoss.converter.hub.client import HubError
from gptoss.converter.hub.range_requests import HubFile, Ranges
from gptoss.errors import CheckpointError

SEGMENT = 2**23
"""Bytes asked for at once, at most."""
CONNECTIONS = 6
HELD = 14
"""Segments in memory, those on their way included."""
WAIT_SECONDS = 0.1
"""How often whoever waits for a segment looks whether to stop."""
WAITING = 16
"""Pieces that may wait for those before them to be hashed; with more, the hash is given up."""

Span = tuple[int, int]
"""Bytes of a file, from begin to end."""


class RemoteFile:
    """A file on the Hub, in the place of a ``Path``; shared by threads.

    ``ahead``, when it is set, has what will be read.
    """

    def __init__(self, ranges: Ranges) -> None:
        self.file: HubFile = ranges.file
        self.ahead: ReadAhead | None = None
        self.digest = Digest(ranges.file)
        self._ranges = ranges

    def __str__(self) -> str:
        return str(self.file)

    @property
    def name(self) -> str:
        return self.file.name

    def is_file(self) -> bool:
        return True

    def open(self, mode: str, buffering: int) -> RemoteHandle:  # noqa: ARG002
        """A handle for one thread."""
        return RemoteHandle(self)

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill ``out`` with the file's bytes from ``offset`` on; raises ``HubError``."""
        while out and self.ahead is not None:
            n = self.ahead.read_into(self, offset, out)
            if n == 0:
                break
            offset, out = offset + n, out[n:]
        if out:
            out[:] = self.fetch((offset, offset + len(out)))

    def fetch(self, span: Span) -> bytearray:
        """Bytes from the Hub itself, now. They must not be changed: they may wait to be hashed."""
        piece = bytearray(span[1] - span[0])
        self._ranges.read_into(span[0], memoryview(piece))
        self.digest.feed(span[0], piece)
        return piece


class RemoteHandle:
    """A position in a remote file."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._at = 0

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._at = offset + (self._file.file.size if whence == 2 else 0)
        return self._at

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer, or as much of it as the file has."""
        n = max(0, min(len(buffer), self._file.file.size - self._at))
        self._file.read_into(self._at, buffer[:n])
        self._at += n
        return n

    def close(self) -> None:
        pass


class Segment:
    """A span of a file that comes as a whole; ``readers`` is how many reads want some of it."""

    def __init__(self, file: RemoteFile, span: Span) -> None:
        self.file = file
        self.span = span
        self.readers = 0
        self.piece: Future[bytearray] | None = None


class ReadAhead:
    """Fetches the bytes of ``reads`` in their order, ahead of who reads them.

    Each of ``reads``, a file and a span of it, will be asked for once. ``stop`` is the word to all
    who fetch, and set at the end. Use as a context manager.
    """

    def __init__(self, reads: Iterable[tuple[RemoteFile, Span]], stop: threading.Event) -> None:
        reads = list(reads)
        spans: dict[RemoteFile, list[Span]] = {}
        for file, span in reads:
            spans.setdefault(file, []).append(span)
        self._segments = {
            file: [Segment(file, span) for span in segments(found)] for file, found in spans.items()
        }
        order: dict[Segment, None] = {}
        for file, span in reads:
            for segment in self._overlapping(file, span):
                segment.readers += 1
                order[segment] = None
        self._todo = iter(order)
        self._held: dict[Segment, None] = {}
        self._lock = threading.Lock()
        self._stop = stop
        self._queue: SimpleQueue[tuple[Segment, Future[bytearray]] | None] = SimpleQueue()

    def read_into(self, file: RemoteFile, offset: int, out: memoryview) -> int:
        """Copy what one segment has of the bytes at ``offset``; 0 if none will have any."""
        segment = next(self._overlapping(file, (offset, offset + 1)), None)
        with self._lock:
            if segment is None or not segment.readers:
                return 0
            future = self._asked_for(segment)
        piece = memoryview(self._come(future))[offset - segment.span[0] :][: len(out)]
        out[: len(piece)] = piece
        with self._lock:
            segment.readers -= 1
            if not segment.readers:
                self._forget(segment)
            self._fill()
        return len(piece)

    def __enter__(self) -> Self:
        for file in self._segments:
            file.ahead = self
        for _ in range(CONNECTIONS):
            # Nobody waits for these at the end: they may hang in a connection where nothing comes.
            threading.Thread(target=self._fetch, name="fetch", daemon=True).start()
        with self._lock:
            self._fill()
        return self

    def __exit__(self, *_raised: object) -> None:
        for file in self._segments:
            file.ahead = None
        self._stop.set()
        for _ in range(CONNECTIONS):
            self._queue.put(None)

    def _fetch(self) -> None:
        while (wanted := self._queue.get()) is not None:
            segment, future = wanted
            try:
                future.set_result(segment.file.fetch(segment.span))
            except BaseException as error:
                future.set_exception(error)

    def _come(self, future: Future[bytearray]) -> bytearray:
        """What was fetched, once it is there; raises what went wrong, or when it is to stop."""
        while not wait((future,), WAIT_SECONDS).done:
            if self._stop.is_set():
                raise HubError("interrupted")
        return future.result()

    def _overlapping(self, file: RemoteFile, span: Span) -> Iterator[Segment]:
        found = self._segments.get(file, [])
        at = bisect_right(found, span[0], key=lambda segment: segment.span[0]) - 1
        for segment in found[max(at, 0) :]:
            if segment.span[0] >= span[1]:
                break
            if segment.span[1] > span[0]:
                yield segment

    # What follows is done under the lock.

    def _asked_for(self, segment: Segment) -> Future[bytearray]:
        """The piece of a segment, which is fetched at once if it is not on its way."""
        self._fill()
        if segment.piece is None:
            self._make_room()
        piece = segment.piece or self._start(segment)
        self._held[segment] = self._held.pop(segment)  # the last to be forgotten
        return piece

    def _fill(self) -> None:
        """Start what comes next, as long as there is room."""
        while len(self._held) < HELD and (segment := next(self._todo, None)) is not None:
            if segment.piece is None and segment.readers:
                self._start(segment)

    def _make_room(self) -> None:
        """Out of the order that was told: something must go, and come again when it is needed."""
        if len(self._held) >= HELD:
            done = (it for it in self._held if it.piece is not None and it.piece.done())
            if (oldest := next(done, None)) is not None:
                self._forget(oldest)

    def _start(self, segment: Segment) -> Future[bytearray]:
        piece: Future[bytearray] = Future()
        segment.piece = piece
        self._held[segment] = None
        self._queue.put((segment, piece))
        return piece

    def _forget(self, segment: Segment) -> None:
        segment.piece = None
        self._held.pop(segment, None)


def segments(spans: Iterable[Span]) -> Sequence[Span]:
    """Spans, neighbours joined, cut into pieces of at most ``SEGMENT`` bytes, in order."""
    joined: list[Span] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return [
        (at, min(at + SEGMENT, end)) for begin, end in joined for at in range(begin, end, SEGMENT)
    ]


class Digest:
    """The sha256 of a file whose pieces come in nearly their order.

    ``verified`` says whether all have come and the Hub publishes the same.
    """

    def __init__(self, file: HubFile) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._at = 0
        self._waiting: dict[int, bytes | bytearray] = {}
        self._given_up = file.sha256 is None
        self._lock = threading.Lock()
        self._notes: Path | None = None
        self.verified = False

    @property
    def line(self) -> str:
        """What is noted of a file that is verified, as sha256sum has it."""
        return f"{self._file.sha256}  {self._file.name}"

    def note_in(self, notes: Path) -> None:
        """Where to append the line once it is true."""
        self._notes = notes

    def feed(self, offset: int, piece: bytes | bytearray) -> None:
        """Take the bytes at ``offset``; ``HashMismatchError`` when the last prove the file wrong."""
        with self._lock:
            if self._given_up or offset < self._at:
                return
            self._waiting[offset] = piece
            while (ready := self._waiting.pop(self._at, None)) is not None:
                self._sha256.update(ready)
                self._at += len(ready)
            if len(self._waiting) > WAITING:
                self._given_up = True
                self._waiting.clear()
            if self._at == self._file.size and not self.verified:
                self._check()

    def _check(self) -> None:
        found = self._sha256.hexdigest()
        if found != self._file.sha256:
            raise HashMismatchError(
                f"{self._file}: what came has the sha256 {found}, and {self._file.sha256} is "
                "published; nothing of it is kept, run the command again"
            )
        self.verified = True
        if self._notes is not None:
            with self._notes.open("a", encoding="utf-8", newline="\n") as file:
                file.write(f"{self.line}\n")


class HashMismatchError(CheckpointError):
    """A file that passed through whole is not the one that the Hub publishes."""
