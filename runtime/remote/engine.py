"""The engine's interface over another server: harmony, tools, store and APIs in front of it.

The other server samples, so nothing is constrained here: the parser repairs malformed turns. Tool
choice, response formats and reasoning budgets need a model in this process.
"""

from __future__ import annotations

import contextlib
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
    EngineClosedError,
    EngineError,
    PromptProgress,
    PromptTooLongError,
    QueueFullError,
    RemoteError,
    Sampler,
    TimeLimitError,
    Timings,
)
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.models.preflight import Model as CheckedFile
from gptoss.runtime.remote.address import Server
from gptoss.runtime.remote.dialects import Asked, Dialect, Piece, event_object, find_dialect
from gptoss.runtime.remote.http import SILENCE_SECONDS, EventLines
from gptoss.runtime.remote.keys import find_key
from gptoss.runtime.sampling.generation import GenerationSampler
from gptoss.runtime.sampling.parameters import Sampling, SamplingError
from gptoss.runtime.sampling.sampler import RandomSampler

MAX_RUNNING = 256
"""Requests to another server at a time; each has a connection and a thread."""

_POLL_SECONDS = 0.5

_LAST_SECONDS = 0.5
"""After the last token, the wait for the event that says what was reused."""

_ACCEPTED_SECONDS = 2.0
"""The wait for an answer's status. Some servers send it with the first token: then an error comes
while the reply is read."""


def open_remote(base_url: str, gguf: Path) -> Model:
    """Return a model that another server runs: llama-server, vLLM or this project's own.

    ``base_url`` is its address; the tokenizer is read from ``gguf``, which must have that model's
    vocabulary. ``keys.find_key`` finds the key. Raises RemoteError, GgufError,
    UnsupportedModelError.
    """
    tokenizer = CheckedFile.open(gguf).tokenizer
    return connect_remote(base_url, tokenizer, (gguf.name.removesuffix(".gguf"),))


def connect_remote(base_url: str, tokenizer: Tokenizer, names: Sequence[str] = ()) -> Model:
    """Return a model that another server runs, by its tokenizer; of several models that the server
    has, the first whose name is in ``names``. Raises RemoteError.
    """
    engine = RemoteEngine(server_at(base_url), tokenizer, names=names)
    engine.connect()
    return Model(engine, tokenizer)


def server_at(base_url: str) -> Server:
    """Return the server at an address, with its key; ``/v1`` at the end is left out. Raises
    RemoteError.
    """
    url = Server(base_url).base_url.removesuffix("/v1")
    return Server(url, find_key(url))


class RemoteEngine:
    """See ``engine.base.Engine``."""

    def __init__(
        self,
        server: Server,
        tokenizer: Tokenizer,
        dialect: Dialect | None = None,
        names: Sequence[str] = (),
    ) -> None:
        """Without a ``dialect`` the server is asked for it before the first request; ``names`` are
        those of the model, for a server that has several.
        """
        self.server = server
        self._dialect = dialect
        self._tokenizer = tokenizer
        self._names = tuple(names)
        self._stale = dialect is None
        self._running: set[RemoteGeneration] = set()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def n_ctx(self) -> int:
        """Return the context of the remote server's model in tokens, as last known. Raises
        RemoteError where it has to be asked for and cannot be reached.
        """
        return (self._dialect or self.connect()).n_ctx

    def connect(self) -> Dialect:
        """Ask the remote server what it is, unless that is known. Raises RemoteError."""
        dialect = self._dialect
        if dialect is None or self._stale:
            dialect = find_dialect(self.server, self._names)
            if dialect is None:
                raise RemoteError(
                    f"{self.server.base_url} gives no token ids; llama-server, vLLM and "
                    "gptoss-run serve do"
                )
            self._dialect, self._stale = dialect, False
        return dialect

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

        Of ``sampler`` only its parameters and its seed are used. Raises RemoteError and
        SamplingError too.
        """
        if not prompt or min(prompt) < 0 or max(prompt) >= self._tokenizer.n_vocab:
            raise EngineError("the prompt is empty or has tokens that the model does not have")
        dialect = self.connect()
        room = dialect.n_ctx - len(prompt)
        if room < 1:
            raise PromptTooLongError(
                f"the prompt has {len(prompt)} tokens, the server's context holds {dialect.n_ctx}"
            )
        inner = sampler.draw if isinstance(sampler, GenerationSampler) else sampler
        random = inner if isinstance(inner, RandomSampler) else None
        if random is not None and random.sampling.top_logprobs is not None:
            raise SamplingError("log probabilities need a model in this process")
        asked = Asked(
            prompt,
            Sampling() if random is None else random.sampling,
            None if random is None else random.seed,
            sorted(stop),
            room if max_tokens is None else min(room, max_tokens),
        )
        with self._lock:
            if self._closed:
                raise EngineClosedError("the engine has been closed")
            if len(self._running) >= MAX_RUNNING:
                raise QueueFullError(f"{MAX_RUNNING} requests are at the other server already")
            lines = EventLines(self.server, dialect.path, dialect.body(asked))
            generation = RemoteGeneration(self, dialect, asked, lines, time_limit)
            self._running.add(generation)
        try:
            lines.await_acceptance(_ACCEPTED_SECONDS)
        except BaseException:
            generation.failed()
            raise
        return generation

    def close(self) -> None:
        """End every request to the remote server."""
        with self._lock:
            self._closed = True
            running = list(self._running)
        for generation in running:
            generation.cancel()

    def read(self, dialect: Dialect, line: str) -> Piece:
        """Read one event of the remote server; raises RemoteError."""
        return dialect.read(event_object(line, self.server), self._tokenizer)

    def forget(self, generation: RemoteGeneration, *, failed: bool = False) -> None:
        """Drop a remote generation that has ended. After one that ``failed`` the server is asked
        again what it is: it may have been started with another model or context.
        """
        with self._lock:
            self._running.discard(generation)
        self._stale = self._stale or failed


class RemoteGeneration:
    """See ``engine.base.Generation``."""

    def __init__(
        self,
        engine: RemoteEngine,
        dialect: Dialect,
        asked: Asked,
        lines: EventLines,
        time_limit: float | None,
    ) -> None:
        self._engine = engine
        self._dialect = dialect
        self._asked = asked
        self._begun = time.perf_counter()
        self._deadline = None if time_limit is None else time.monotonic() + time_limit
        self._silent_until = time.monotonic() + SILENCE_SECONDS
        self._stop = frozenset(asked.stop)
        self._tokens: deque[int] = deque()
        self._n = 0
        self._reused = 0
        self._first = self._last = 0.0
        self._over = self._ended = self._cancelled = False
        self._lines = lines

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

    def failed(self) -> None:
        """End a remote request that the server did not carry out."""
        self._over = True
        self._lines.cancel()
        self._engine.forget(self, failed=True)

    def _await_last(self) -> None:
        """Wait a moment for the remote server's last event."""
        self._ended = True
        end = time.monotonic() + _LAST_SECONDS
        with contextlib.suppress(Empty, EngineError):
            while not self._over and (left := end - time.monotonic()) > 0:
                self._take(left)
        self._tokens.clear()

    def _read(self) -> None:
        now = time.monotonic()
        if self._deadline is not None and now > self._deadline:
            self.close()
            raise TimeLimitError("the request took longer than its time limit")
        try:
            if now > self._silent_until:
                raise RemoteError(f"the server sent no token for {SILENCE_SECONDS:.0f} seconds")
            self._take(_POLL_SECONDS)
        except Empty:
            return
        except EngineError:
            self.failed()
            raise

    def _take(self, seconds: float) -> None:
        """Read the remote server's next event; raises Empty, EngineError."""
        line = self._lines.next(seconds)
        if line is None:
            self._over = True
            if not (self._ended or self._lines.whole or self._cancelled):
                where = self._engine.server.base_url
                raise RemoteError(f"{where} closed the connection before the end of its reply")
            return
        piece = self._engine.read(self._dialect, line)
        self._tokens += piece.tokens
        self._reused = self._reused if piece.reused is None else piece.reused
        self._ended = self._ended or piece.ended
        self._over = self._over or piece.last
        if piece.tokens:
            self._silent_until = time.monotonic() + SILENCE_SECONDS

    def _finish(self) -> None:
        if not self._over:
            self._lines.cancel()
        self._over = True
        self._engine.forget(self)
