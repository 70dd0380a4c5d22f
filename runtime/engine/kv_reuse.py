"""KV cache reuse: which tokens a sequence (stream) has in memory, and how far a new prompt can
reuse them.

A prompt mostly begins as an earlier one did. gpt-oss's even layers keep the last 128 positions
only, so going back to position n is exact only while positions n − 127 to n − 1 are still there:
llama.cpp answers yes to any rewind and then attends to nothing. So the window layers' state (3 MiB
for the 20b model) is saved where clients come back to, and is restored before the rewind. Where no
saved state reaches, the prompt is decoded from its beginning. Logits after a rewind equal those
from scratch up to the noise that another split into batches gives.

A prefix that another sequence holds is copied, as the bytes of that sequence's state.
``llama_memory_seq_cp`` would copy the sequence's whole buffer, however little of it is in use, and
only during the next decode, over a window restored before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from gptoss.runtime.engine.prefix_tree import as_tokens
from gptoss.runtime.engine.saved_state import SavedState, Snapshot, State, first_and_last

MAX_SNAPSHOTS = 8
"""Saved window states for each sequence; each has 2,048 bytes × window layers × 128 positions."""

WORTH_COPYING = 32
"""Tokens that a copy must save: it takes about as long as decoding a few."""


class Memory(Protocol):
    """The context's memory, one stream for each sequence. Used by the scheduler's thread only."""

    window: int
    """Positions that the window layers look back at, the token's own included."""

    def first_position(self, stream: int) -> int:
        """Return the lowest position of a sequence that the sliding-window layers' cache still
        holds; −1 when empty.
        """
        ...

    def n_decoded(self, stream: int) -> int:
        """Return how many tokens of a sequence are in the KV cache."""
        ...

    def truncate(self, stream: int, position: int) -> None:
        """Remove ``position`` and all later ones of a sequence from the KV cache."""
        ...

    def save_window(self, stream: int) -> State | None:
        """Save the sliding-window layers' cache of a sequence as bytes; None when it cannot be
        saved.
        """
        ...

    def restore_window(self, stream: int, state: State) -> None:
        """Restore the sliding-window layers' part of a sequence's KV cache from what
        ``save_window`` returned.
        """
        ...

    def copy(self, source: int, target: int) -> bool:
        """Copy the KV cache of sequence ``source`` to ``target``; return False when that failed."""
        ...

    def state_bytes(self, stream: int) -> int:
        """Return how many bytes the whole state of a sequence has, without copying it."""
        ...

    def save_attention(self, stream: int) -> State | None:
        """Save the full-attention layers' KV of a sequence as bytes; None when it cannot be
        saved.
        """
        ...

    def restore(self, stream: int, attention: State, window: State) -> bool:
        """Replace a sequence's whole KV cache by saved states of both kinds of layers; return False
        when that failed.
        """
        ...


class Stream:
    """One sequence's tokens in memory, and the places that it can go back to."""

    def __init__(self, memory: Memory, number: int) -> None:
        self.number = number
        self.tokens: list[int] = []
        """In memory, by position."""
        self.last_used = 0
        """The scheduler's count of requests when this stream was last given to one."""
        self.conversation = 0
        """Tokens of the last prompt: going back further than this starts another branch."""
        self._memory = memory
        self._snapshots: list[Snapshot] = []

    def reach(self, prompt: Sequence[int]) -> int:
        """Return how many tokens at the start of ``prompt`` this stream can reuse exactly from its
        KV cache and snapshots.

        At least one token is left to decode, since its logits are wanted.
        """
        position = min(common_prefix(self.tokens, prompt), len(prompt) - 1)
        if position <= 0 or self._window_reaches(position):
            return max(0, position)
        snapshot = self._snapshot_for(position)
        return 0 if snapshot is None else min(position, snapshot.position)

    def rewind(self, prompt: Sequence[int]) -> int:
        """Set this stream's KV cache back to the part of ``prompt`` that ``reach`` gives; return
        its length in tokens.
        """
        position = self.reach(prompt)
        if position and not self._window_reaches(position):
            snapshot = self._snapshot_for(position)
            if snapshot is not None:
                self._memory.restore_window(self.number, snapshot.state)
        self._memory.truncate(self.number, position)
        if self._memory.n_decoded(self.number) != position or not self._window_reaches(position):
            self._memory.truncate(self.number, 0)
            position = 0
        self._forget_from(position)
        return position

    def copy_from(self, source: Stream) -> None:
        """Copy another stream's KV cache and snapshots into this one."""
        if not self._memory.copy(source.number, self.number):
            self.clear()
            return
        self.tokens = list(source.tokens)
        self._snapshots = list(source._snapshots)

    @property
    def nbytes(self) -> int:
        """Return how many bytes a copy of this stream's state takes."""
        return self._memory.state_bytes(self.number) + sum(
            it.state.nbytes for it in self._snapshots
        )

    def state(self, most: int = MAX_SNAPSHOTS) -> SavedState | None:
        """Copy this stream's state out of the context, with at most ``most`` of its snapshots; None
        when it has none or cannot be copied.
        """
        attention = self._memory.save_attention(self.number) if self._snapshots else None
        if attention is None:
            return None
        snapshots = first_and_last(tuple(self._snapshots), most)
        return SavedState(as_tokens(self.tokens), attention, snapshots)

    def restore(self, state: SavedState, snapshot: int) -> bool:
        """Put a saved state into this stream, as it was at the snapshot that was saved at
        ``snapshot``; return False, and the stream is empty, when that failed.
        """
        usable = tuple(it for it in state.snapshots if it.position <= snapshot)
        self.clear()
        if not usable or not self._memory.restore(self.number, state.attention, usable[-1].state):
            self.clear()
            return False
        position = usable[-1].position
        self._memory.truncate(self.number, position)
        if self._memory.n_decoded(self.number) != position or not self._window_reaches(position):
            self.clear()
            return False
        self.tokens = state.tokens[:position].tolist()
        self._snapshots = list(usable)
        return True

    @property
    def positions(self) -> list[int]:
        """Return the positions of this stream's snapshots, rising."""
        return [it.position for it in self._snapshots]

    def clear(self) -> None:
        """Empty this stream's KV cache and drop its snapshots."""
        self._memory.truncate(self.number, 0)
        self._forget_from(0)

    def drop_undecoded(self, tokens: Sequence[int]) -> None:
        """Bring the stream's list of tokens in line with its KV cache after a decode of ``tokens``
        was aborted; at least one token is left to decode, since its logits are needed.
        """
        whole = [*self.tokens, *tokens]
        position = min(self._memory.n_decoded(self.number), len(whole) - 1)
        self._memory.truncate(self.number, position)
        self.tokens = whole[:position]

    def drop_rejected(self, position: int) -> None:
        """Remove the tokens of a draft from ``position`` on, just decoded, from this stream.

        llama.cpp overwrites only positions that had left the window before the batch, so going back
        within it is exact; where it is not, the stream is emptied.
        """
        if position == len(self.tokens):
            return
        self._memory.truncate(self.number, position)
        self._forget_from(position)
        if self._memory.n_decoded(self.number) != position or not self._window_reaches(position):
            self.clear()

    def save_snapshot(self) -> None:
        """Save a snapshot of the sliding-window layers at this stream's present end."""
        position = len(self.tokens)
        if any(it.position == position for it in self._snapshots):
            return
        state = self._memory.save_window(self.number)
        if state is not None:
            added = [*self._snapshots, Snapshot(position, state)]
            self._snapshots = thinned(sorted(added, key=lambda it: it.position))

    def _window_reaches(self, position: int) -> bool:
        """Report whether the stream's sliding-window cache still has every position that a token at
        ``position`` attends to.

        llama.cpp keeps the positions from the first it still has to the last without a gap.
        """
        first = self._memory.first_position(self.number)
        return first <= max(0, position - self._memory.window + 1)

    def _snapshot_for(self, position: int) -> Snapshot | None:
        """Return the stream's latest snapshot from which it can go back to ``position``, or to a
        place before it.

        A state saved at n holds n − 128 to n − 1, which is enough for n − 1 too: the same prompt
        again decodes just its last token.
        """
        usable = [it for it in self._snapshots if it.position <= position + 1]
        return usable[-1] if usable else None

    def _forget_from(self, position: int) -> None:
        del self.tokens[position:]
        self._snapshots = [it for it in self._snapshots if it.position <= position]


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Count the tokens at the start of a prompt that are the same as a stream's; compared in
    slices, since prompts are long.
    """
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def thinned(snapshots: list[Snapshot]) -> list[Snapshot]:
    """Drop the sliding-window snapshot that costs least to decode again, when there are more than
    MAX_SNAPSHOTS.

    The last always stays; the others are needed when an earlier turn is gone back to.
    """
    if len(snapshots) <= MAX_SNAPSHOTS:
        return snapshots
    positions = [0, *(it.position for it in snapshots[:-1])]
    gaps = [after - before for before, after in pairwise(positions)]
    loss = gaps.index(min(gaps))
    return [it for i, it in enumerate(snapshots) if i != loss]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a prompt is decoded: in ``target``, after a copy of ``source`` unless that is None."""

    target: Stream
    source: Stream | None = None
    continues: bool = False
    """The target holds this very conversation; otherwise it loses another's tokens."""
    restores: bool = False
    """A saved state is put into the target first."""


def choose_place(
    prompt: Sequence[int], idle: Sequence[Stream], every: Sequence[Stream], saved: int = 0
) -> Place:
    """Choose the idle stream whose KV cache saves a prompt most decoding, and keep what other
    conversations hold.

    A prompt that goes back further than its stream's conversation is a branch of it, and gets a
    copy where another stream is free, so that both stay in memory. ``saved`` tokens of the prompt
    are in a state outside the context.
    """
    best = max(idle, key=lambda it: (it.reach(prompt), -it.last_used))
    reach = best.reach(prompt)
    if reach and _continues(best, reach) and saved - reach < WORTH_COPYING:
        return Place(best, continues=True)
    oldest = min(idle, key=lambda it: (len(it.tokens) > 0, it.last_used))
    source = max(every, key=lambda it: it.reach(prompt))
    if saved - max(source.reach(prompt), oldest.reach(prompt)) >= WORTH_COPYING:
        return Place(oldest, restores=True)
    if source.reach(prompt) - oldest.reach(prompt) >= WORTH_COPYING:
        return Place(oldest, source)
    return Place(oldest)


def _continues(stream: Stream, reach: int) -> bool:
    """Report whether a prompt that shares ``reach`` tokens with a stream continues the stream's
    conversation, and is not a branch of it.

    The last tokens of a prompt name who speaks next; a conversation that goes on shares all but
    those.
    """
    return reach >= stream.conversation - 8
