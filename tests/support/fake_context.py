"""A context that computes nothing: the token after n is n + 1, or what ``next_token`` says. It
remembers every batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from gptoss.runtime.engine.base import EngineError, Logits
from gptoss.runtime.engine.context import Chunk
from gptoss.runtime.engine.saved_state import State

N_VOCAB = 1000


class FakeContext:
    """See ``engine.context.Context``. ``before_decode`` is called with each batch."""

    window = 128

    def __init__(
        self,
        n_streams: int = 2,
        n_ctx: int = 4096,
        before_decode: Callable[[Sequence[Chunk]], None] = lambda _: None,
        next_token: Callable[[list[int]], int] = lambda held: (held[-1] + 1) % 900,
    ) -> None:
        self.n_streams, self.n_ctx, self.n_batch, self.n_vocab = n_streams, n_ctx, 64, N_VOCAB
        self.batches: list[list[Chunk]] = []
        self.held: list[list[int]] = [[] for _ in range(n_streams)]
        self.freed = False
        self.aborted = threading.Event()
        self._before_decode = before_decode
        self._next_token = next_token

    def decode(self, chunks: Sequence[Chunk]) -> bool:
        assert not self.freed
        assert sum(len(it.tokens) for it in chunks) <= self.n_batch
        assert len({it.stream for it in chunks}) == len(chunks)
        self._before_decode(chunks)
        if self.aborted.is_set():
            return False
        for chunk in chunks:
            assert chunk.position == len(self.held[chunk.stream])
            self.held[chunk.stream] += chunk.tokens
            if 999 in chunk.tokens:
                raise EngineError("999 cannot be decoded")
        self.batches.append(list(chunks))
        return True

    def logits(self, index: int, row: int = 0) -> Logits:
        chunk = self.batches[-1][index]
        assert row < chunk.n_logits
        after = chunk.position + len(chunk.tokens) - chunk.n_logits + row + 1
        logits = np.zeros(N_VOCAB, np.float32)
        logits[self._next_token(self.held[chunk.stream][:after])] = 1
        return logits

    def abort(self) -> None:
        self.aborted.set()

    def clear_abort(self) -> None:
        self.aborted.clear()

    def free(self) -> None:
        assert not self.freed
        self.freed = True

    def first_position(self, stream: int) -> int:
        return max(0, len(self.held[stream]) - self.window) if self.held[stream] else -1

    def n_decoded(self, stream: int) -> int:
        return len(self.held[stream])

    def truncate(self, stream: int, position: int) -> None:
        del self.held[stream][position:]

    def save_window(self, stream: int) -> State:
        return as_bytes(self.held[stream])

    def restore_window(self, stream: int, state: State) -> None:
        del self.held[stream][len(tokens_of(state)) :]

    def copy(self, source: int, target: int) -> bool:
        self.held[target] = list(self.held[source])
        return True

    def state_bytes(self, stream: int) -> int:
        return 2 * as_bytes(self.held[stream]).nbytes

    def save_attention(self, stream: int) -> State:
        return as_bytes(self.held[stream])

    def restore(self, stream: int, attention: State, window: State) -> bool:
        self.held[stream] = tokens_of(attention)[: len(tokens_of(window))]
        return self.held[stream] == tokens_of(window)


def as_bytes(tokens: list[int]) -> State:
    return np.array(tokens, np.int32).view(np.uint8)


def tokens_of(state: State) -> list[int]:
    return [int(it) for it in state.view(np.int32)]
