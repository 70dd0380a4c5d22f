"""The engine's interface over another server: harmony, tools, store and APIs in front of it.

The other server samples, so nothing is constrained here: the parser repairs malformed turns. Tool
choice, response formats and reasoning budgets need a model in this process.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from queue import Empty
from typing import Self

from gptoss.runtime.chat.model import Model
from gptoss.runtime.engine.base import (
    EngineError,
    PromptProgress,
    PromptTooLongError,
    Sampler,
    TimeLimitError,
    Timings,
)
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.models.preflight import Model as CheckedFile
from gptoss.runtime.remote.dialects import Asked, Dialect, event_object, find_dialect
from gptoss.runtime.remote.stream import EventLines, Server
from gptoss.runtime.sampling.generation import GenerationSampler
from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.sampling.sampler import RandomSampler

KEY_VARIABLE = "GPTOSS_REMOTE_KEY"

_POLL_SECONDS = 0.5

_LAST_SECONDS = 0.5
"""After the last token, the wait for the event that says what was reused."""


def open_remote(base_url: str, gguf: Path) -> Model:
    """Return a model that another server runs: llama-server, vLLM or this project's own.

    ``base_url`` is its address; the tokenizer is read from ``gguf``, which must be that model's
    file. A key is taken from the environment variable GPTOSS_REMOTE_KEY. Raises EngineError,
    GgufError, UnsupportedModelError.
    """
    server = Server(base_url.rstrip("/").removesuffix("/v1"), os.environ.get(KEY_VARIABLE))
    tokenizer = CheckedFile.open(gguf).tokenizer
    return Model(RemoteEngine(server, find_dialect(server), tokenizer), tokenizer)


class RemoteEngine:
    """See ``engine.base.Engine``."""

    def __init__(self, server: Server, dialect: Dialect, tokenizer: Tokenizer) -> None:
        self._server = server
        self._dialect = dialect
        self._tokenizer = tokenizer
        self._running: set[RemoteGeneration] = set()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def n_ctx(self) -> int:
        """Return the context of the remote server's model in tokens."""
        return self._dialect.n_ctx

    def generate(
        self,
        prompt: Sequence[int],
        sampler: Sampler,
        *,
        stop: AbstractSet[int],
        max_tokens: int | None = None,
        checkpoints: Sequence[int] = (),  # noqa: ARG002 the other server decides
        time_limit: float | None = None,
    ) -> RemoteGeneration:
        """Ask the remote server for the tokens that follow ``prompt``; see ``engine.base``.

        Of ``sampler`` only its parameters and its seed are used.
        """
        if not prompt or min(prompt) < 0 or max(prompt) >= self._tokenizer.n_vocab:
            raise EngineError("the prompt is empty or has tokens that the model does not have")
        room = self.n_ctx - len(prompt)
        if room < 1:
            raise PromptTooLongError(
                f"the prompt has {len(prompt)} tokens, the server's context holds {self.n_ctx}"
            )
        inner = sampler.draw if isinstance(sampler, GenerationSampler) else sampler
        random = inner if isinstance(inner, RandomSampler) else None
        asked = Asked(
            prompt,
            Sampling() if random is None else random.sampling,
            None if random is None else random.seed,
            sorted(stop),
            room if max_tokens is None else min(room, max_tokens),
        )
        with self._lock:
            if self._closed:
                raise EngineError("the engine has been closed")
            generation = RemoteGeneration(self, asked, time_limit)
            self._running.add(generation)
        return generation

    def close(self) -> None:
        """End every request to the remote server."""
        with self._lock:
            self._closed = True
            running = list(self._running)
        for generation in running:
            generation.cancel()

    def send(self, asked: Asked) -> EventLines:
        """Send a request to the remote server."""
        return EventLines(self._server, self._dialect.path, self._dialect.body(asked))

    def read(self, line: str) -> tuple[tuple[int, ...], int | None, bool]:
        """Read one event of the remote server: tokens, how many of the prompt were reused, and
        whether it is the last.
        """
        piece = self._dialect.read(event_object(line), self._tokenizer)
        return piece.tokens, piece.reused, piece.last

    def forget(self, generation: RemoteGeneration) -> None:
        """Drop a remote generation that has ended."""
        with self._lock:
            self._running.discard(generation)


class RemoteGeneration:
    """See ``engine.base.Generation``."""

    def __init__(self, engine: RemoteEngine, asked: Asked, time_limit: float | None) -> None:
        self._engine = engine
        self._asked = asked
        self._begun = time.perf_counter()
        self._deadline = None if time_limit is None else time.monotonic() + time_limit
        self._stop = frozenset(asked.stop)
        self._tokens: deque[int] = deque()
        self._n = 0
        self._reused = 0
        self._first = self._last = 0.0
        self._over = self._cancelled = False
        self._lines = engine.send(asked)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> int:
        while not self._tokens and not self._over and not self._cancelled:
            self._read()
        if self._cancelled or not self._tokens:
            self._finish()
            raise StopIteration
        token = self._tokens.popleft()
        self._last = time.perf_counter()
        self._first = self._first or self._last
        self._n += 1
        if token in self._stop or self._n == self._asked.max_tokens:
            self._tokens.clear()
            self._await_last()
            self._finish()
        return token

    def steps(self) -> Iterator[int | PromptProgress]:
        """Iterate over the remote server's tokens; it reports no progress of its prompt."""
        yield PromptProgress(0, len(self._asked.prompt), 0)
        yield from self

    @property
    def timings(self) -> Timings:
        """Return what the remote request has cost so far, as seen from here."""
        waited = self._first - self._begun if self._first else 0.0
        return Timings(
            len(self._asked.prompt),
            self._reused,
            self._n,
            waited,
            self._last - self._first,
            0.0,
            waited,
        )

    def cancel(self) -> None:
        """End the remote request: the connection is closed."""
        self._cancelled = True
        self._lines.cancel()

    def close(self) -> None:
        """End the remote request, since nobody reads it any more."""
        self.cancel()
        self._engine.forget(self)

    def _await_last(self) -> None:
        """Wait a moment for the remote server's last event."""
        end = time.monotonic() + _LAST_SECONDS
        with contextlib.suppress(Empty, EngineError):
            while not self._over and (left := end - time.monotonic()) > 0:
                self._take(left)
        self._tokens.clear()

    def _read(self) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            self.close()
            raise TimeLimitError("the request took longer than its time limit")
        try:
            self._take(_POLL_SECONDS)
        except Empty:
            return
        except EngineError:
            self.close()
            raise

    def _take(self, seconds: float) -> None:
        """Read the remote server's next event; raises Empty, EngineError."""
        line = self._lines.next(seconds)
        if line is None:
            self._over = True
            return
        tokens, reused, last = self._engine.read(line)
        self._tokens += tokens
        self._reused = self._reused if reused is None else reused
        self._over = self._over or last

    def _finish(self) -> None:
        if not self._over:
            self._lines.cancel()
        self._over = True
        self._engine.forget(self)
