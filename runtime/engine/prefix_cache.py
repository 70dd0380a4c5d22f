"""The prefix cache: states of prompts that are no longer in the context, in memory and on disk.

A state of a sequence that another conversation takes over goes to memory, from there to disk when
memory is needed. What the next process will want is written to disk at once: the beginning that
conversations share, and each conversation's end when the engine is idle or closed. Everything here
runs on the engine's thread; only files are read and written elsewhere.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np

from gptoss.errors import InvalidFileError
from gptoss.formats.gguf import GgufFile
from gptoss.runtime.engine.cache_folder import CachedFile, CacheFolder
from gptoss.runtime.engine.disk_tier import DiskTier
from gptoss.runtime.engine.model_key import ModelFiles
from gptoss.runtime.engine.prefix_tree import Match, PrefixTree, Tokens, as_tokens, count_common
from gptoss.runtime.engine.saved_state import SavedState, first_and_last
from gptoss.text import printable

WORTH_RESTORING = 32
"""Tokens that a state in memory must save."""

WORTH_READING = 128
"""Tokens that a state on disk must save."""

WORTH_WRITING = 256
"""Tokens that a state must have, and that no file saves yet, to be written to disk."""

IN_TRANSIT = 512 << 20
"""Bytes of memory that states on their way to or from the disk may take for a moment."""

SNAPSHOTS_ON_DISK = 4
"""The first, where conversations branch, and the last ones, where this one goes on."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """What an engine may remember outside its context."""

    memory: int = 256 << 20
    """Bytes of RAM for states that are not in the context."""
    folder: Path | None = None
    """Where states are kept for later processes; None for nowhere."""
    header: GgufFile | None = None
    """The model's header, where it was read already."""


class Entry:
    """One saved state, in memory or on disk or both."""

    def __init__(self, tokens: Tokens, positions: frozenset[int]) -> None:
        self.tokens = tokens
        self.positions = positions
        self.state: SavedState | None = None
        self.file: CachedFile | None = None

    def reach(self, tokens: Tokens) -> int:
        """Return how many of ``tokens`` this saved state has, up to one of its snapshots."""
        common = count_common(self.tokens, tokens)
        return max((min(it, common) for it in self.positions if it <= common + 1), default=0)

    def is_within(self, other: Entry) -> bool:
        """Report whether another state has all that this one has, and is not much longer."""
        n = len(self.tokens)
        return (
            self is not other
            and n <= len(other.tokens) <= 2 * n
            and self.positions <= other.positions
            and np.array_equal(self.tokens, other.tokens[:n])
        )


@dataclass(slots=True)
class Fetch:
    """A state on its way to a request. ``done`` is set last, by whichever thread has it."""

    match: Match[Entry]
    entry: Entry
    file: CachedFile | None = None
    state: SavedState | None = None
    done: bool = False

    @property
    def failed(self) -> bool:
        """Report whether the state could not be read."""
        return self.done and self.state is None


class PrefixCache:
    """States in memory and on disk, found by the longest prefix of a prompt."""

    def __init__(self, memory: int, disk: DiskTier | None = None) -> None:
        """``memory``: bytes that states may take, not counting those being read or written."""
        self._limit = memory
        self._disk = disk
        self._tree: PrefixTree[Entry] = PrefixTree()
        self._in_memory: OrderedDict[Entry, None] = OrderedDict()
        self._files: dict[Path, Entry] = {}
        self._writing: list[SavedState] = []
        self._written: SimpleQueue[SavedState] = SimpleQueue()
        self._unusable: set[CachedFile] = set()

    def fetch(self, prompt: Sequence[int], reach: int, wake: Callable[[], None]) -> Fetch | None:
        """Begin to fetch the state that saves most of ``prompt``; None where none saves enough
        beyond ``reach`` tokens that are in the context.

        ``wake`` is called when the state is there, on another thread; not where it is in memory.
        """
        self._refresh()
        match = self._tree.find(as_tokens(prompt))
        if match is None:
            return None
        gain = match.position - reach
        for entry in match.holders:
            if entry.state is not None and gain >= WORTH_RESTORING:
                self._in_memory.move_to_end(entry)
                return Fetch(match, entry, state=entry.state, done=True)
        files = [it for it in match.holders if it.file is not None]
        if gain < WORTH_READING or self._disk is None or not files:
            return None
        entry = min(files, key=lambda it: len(it.tokens))
        assert entry.file is not None  # noqa: S101 those without were left out
        if not self._has_room(entry.file.nbytes):
            return None
        fetch = Fetch(match, entry, entry.file)

        def arrive(state: SavedState | None) -> None:
            fetch.state = state
            fetch.done = True
            wake()

        self._disk.read(entry.file, match.snapshot, arrive)
        return fetch

    def forget(self, fetch: Fetch) -> None:
        """Forget a state that could not be read, or that llama.cpp did not accept."""
        entry = fetch.entry
        if fetch.file is not None:
            self._unusable.add(fetch.file)
        if entry.state is not None:
            self._drop_from_memory(entry)
        self._forget_file(entry)

    def keep(self, state: SavedState) -> None:
        """Keep a state in memory, and the others as far as there is room; those that were used
        least recently go to disk.
        """
        if state.nbytes > self._limit:
            self._write_if_worth(state, WORTH_WRITING)
            return
        entry = Entry(state.tokens, state.positions)
        entry.state = state
        for old in list(self._in_memory):
            if entry.is_within(old):
                self._in_memory.move_to_end(old)
                return
        for old in [it for it in self._in_memory if it.is_within(entry)]:
            self._drop_from_memory(old)
        self._tree.insert(entry.tokens, entry.positions, entry)
        self._in_memory[entry] = None
        while self.kept_bytes > self._limit:
            oldest = next(iter(self._in_memory))
            spilled = oldest.state
            self._drop_from_memory(oldest)
            if spilled is not None:
                self._write_if_worth(spilled, WORTH_WRITING)

    @property
    def kept_bytes(self) -> int:
        """Return the bytes of the states that are kept in memory."""
        return sum(it.state.nbytes for it in self._in_memory if it.state is not None)

    @property
    def writes(self) -> bool:
        """Report whether there is a disk tier."""
        return self._disk is not None

    def is_worth_writing(self, tokens: Sequence[int], positions: Iterable[int], gain: int) -> bool:
        """Report whether a state with snapshots at ``positions`` is long enough for the disk, and
        saves ``gain`` tokens more than any file does.
        """
        last = max(positions, default=0)
        if self._disk is None or last < WORTH_WRITING:
            return False
        self._refresh()
        wanted = as_tokens(tokens[:last])
        saved = [*self._files.values(), *(Entry(it.tokens, it.positions) for it in self._writing)]
        return last - max((it.reach(wanted) for it in saved), default=0) >= gain

    def write(self, state: SavedState, *, wait: bool = False) -> None:
        """Write a state to disk in the background. Where memory is short it is left out, or, with
        ``wait``, written after the others.
        """
        if self._disk is None:
            return
        state = replace(state, snapshots=first_and_last(state.snapshots, SNAPSHOTS_ON_DISK))
        if self.may_write(state.nbytes, wait=wait):
            self._writing.append(state)
            self._disk.write(state, lambda: self._written.put(state))

    def may_keep(self, nbytes: int) -> bool:
        """Report whether a state of so many bytes may be copied to be kept, in memory or on
        disk.
        """
        return nbytes <= self._limit or self.may_write(nbytes)

    def may_write(self, nbytes: int, *, wait: bool = False) -> bool:
        """Report whether a state of so many bytes may be copied to be written to disk; with
        ``wait``, as soon as the others are written.
        """
        if self._disk is None:
            return False
        if wait and not self._has_room(nbytes):
            self._disk.wait()
            self._refresh()
        return self._has_room(nbytes)

    def close(self) -> None:
        """Write what is in memory to disk, and wait until it is there."""
        if self._disk is not None:
            for entry in self._in_memory:
                if entry.state is not None:
                    self._write_if_worth(entry.state, WORTH_READING, wait=True)
            self._disk.close()

    def _write_if_worth(self, state: SavedState, gain: int, *, wait: bool = False) -> None:
        if self.is_worth_writing(state.tokens.tolist(), state.positions, gain):
            self.write(state, wait=wait)

    def _has_room(self, nbytes: int) -> bool:
        """Report whether a state may be copied in memory on its way to or from the disk."""
        return nbytes + sum(it.nbytes for it in self._writing) <= max(self._limit, IN_TRANSIT)

    def _refresh(self) -> None:
        """Take note of what the disk's threads and other processes have done since the last
        time.
        """
        while True:
            try:
                done = self._written.get_nowait()
            except Empty:
                break
            self._writing = [it for it in self._writing if it is not done]
        found = None if self._disk is None else self._disk.scan()
        if found is None:
            return
        self._unusable &= set(found.values())
        usable = {path: it for path, it in found.items() if it not in self._unusable}
        for path, entry in list(self._files.items()):
            if entry.file is not usable.get(path):
                self._forget_file(entry)
        for path, cached in usable.items():
            if path not in self._files:
                self._add_file(path, cached)

    def _add_file(self, path: Path, cached: CachedFile) -> None:
        entry = Entry(cached.header.tokens, cached.header.positions)
        entry.file = cached
        self._files[path] = entry
        self._tree.insert(entry.tokens, entry.positions, entry)
        every = list(self._files.values())
        superfluous = [it for it in every if it.is_within(entry)]
        if any(entry.is_within(it) for it in every):
            superfluous.append(entry)
        for it in superfluous:
            if self._disk is not None and it.file is not None:
                self._disk.remove(it.file)

    def _forget_file(self, entry: Entry) -> None:
        """Forget a state's file; a copy in memory stays."""
        if entry.file is not None:
            self._files.pop(entry.file.path, None)
            entry.file = None
        if entry.state is None:
            self._tree.remove(entry)

    def _drop_from_memory(self, entry: Entry) -> None:
        entry.state = None
        del self._in_memory[entry]
        if entry.file is None:
            self._tree.remove(entry)


def open_cache(
    settings: CacheSettings, files: ModelFiles | None, name: str, *state_format: str
) -> PrefixCache:
    """Make the prefix cache of an engine that runs a model made of ``files``, shown as ``name``;
    ``state_format`` is what its states depend on besides. Without files there is no disk tier.

    Nor is there one, but a warning, where the cache folder or the files cannot be used.
    """
    disk = None
    if settings.folder is not None and files is not None:
        try:
            folder = CacheFolder(settings.folder)
            disk = DiskTier(folder, files.key(*state_format), name)
        except (OSError, InvalidFileError) as error:
            _log.warning(
                "no cache of prompts on disk: %s: %s",
                printable(str(settings.folder)),
                (isinstance(error, OSError) and error.strerror) or error,
            )
    return PrefixCache(settings.memory, disk)
