"""The engine over llama.cpp: the only module that imports it.

It uses llama-cpp-python's C-level functions. That package's ``Llama`` class detokenizes the whole
reply at every token, samples by walking all of the vocabulary, and rewinds a sliding-window
memory past its window without noticing; at 201,088 tokens a step over a small model costs it
three times a bare ``llama_decode``.

**What stays in memory.** A prompt mostly begins as the last one did. gpt-oss's even layers keep
the last 128 positions only, so going back to position n is exact only while positions n − 128 to
n − 1 are still there: llama.cpp answers yes to any rewind and then attends to nothing. So the
window layers' state (3 MiB for the 20b model) is saved at each prompt's end, which is where the
next turn goes back to once the reasoning has been dropped; it is restored before the rewind. With
no saved state to go back to, everything is decoded again. Logits after a rewind equal those from
scratch up to the noise that another split into batches gives.

**Interrupting.** A prompt can take minutes. Batches are decoded on a worker thread, so that the
caller's thread stays open to Ctrl-C; llama.cpp asks an abort callback between graph nodes.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from gptoss.runtime.engine.base import EngineError, Logits, PromptTooLongError, Sampler, Timings
from gptoss.runtime.engine.cpu import physical_cores
from gptoss.runtime.engine.worker import Worker

os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # else a failed assertion runs gdb on this process
try:
    import llama_cpp.llama_cpp as lib
except (ImportError, OSError, RuntimeError) as error:
    raise EngineError(
        f"llama.cpp cannot be loaded ({error}); install it: pip install 'gptoss-toolkit[run]'"
    ) from error

Progress = Callable[[float], None]
"""Called with the share of the model that has been loaded, 0 to 1, on a worker thread."""

MAX_THREADS = 512
"""ggml's own limit; far beyond it, it crashes."""

N_BATCH = 512
"""Prompt tokens decoded in one call; the window layers' memory is 128 + this."""

MAX_SNAPSHOTS = 8
"""Saved states of the window layers; each is 2,048 bytes × window layers × 128 positions."""

_SEQUENCE = 0
_WINDOW_LAYERS_ONLY = lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
_ABORTED = 2
_NO_ROOM = 1


class _Log:
    """llama.cpp's log, of which a process has one: errors are kept for messages, the rest goes
    to stderr when ``verbose``."""

    def __init__(self) -> None:
        self.verbose = False
        self.errors: deque[str] = deque(maxlen=4)
        self._callback = lib.llama_log_callback(self._receive)  # the library keeps no reference
        lib.llama_log_set(self._callback, None)

    def _receive(self, level: int, text: bytes, _: object) -> None:
        line = text.decode("utf-8", "replace")
        if level == 4:  # GGML_LOG_LEVEL_ERROR
            self.errors.append(line.strip())
        if self.verbose:
            sys.stderr.write(line)

    def explain(self, what: str) -> EngineError:
        """An error that says ``what`` failed and what llama.cpp said about it."""
        said = "; ".join(self.errors)
        self.errors.clear()
        return EngineError(f"{what}: {said}" if said else what)


_LOG = _Log()


class _StopFlag:
    """A flag that llama.cpp reads between graph nodes without entering Python.

    A callback in Python would wait for the interpreter's lock a thousand times a token. The C
    library's ``strlen`` has the same signature and answers 0 for an empty string, 1 for "\\1".
    """

    def __init__(self) -> None:
        library = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)
        self._text = ctypes.create_string_buffer(2)
        self.callback = ctypes.cast(library.strlen, lib.ggml_abort_callback)
        self.address = ctypes.cast(self._text, ctypes.c_void_p)

    def set(self) -> None:
        self._text[0] = b"\1"

    def clear(self) -> None:
        self._text[0] = b"\0"

    @property
    def is_set(self) -> bool:
        return self._text[0] != b"\0"


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The window layers' state when memory held exactly ``position`` tokens."""

    position: int
    state: ctypes.Array[ctypes.c_uint8]


class LlamaEngine:
    """A gpt-oss GGUF in llama.cpp, one sequence, one context. See ``engine.Engine``."""

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int,
        n_threads: int | None = None,
        n_gpu_layers: int = -1,
        progress: Progress | None = None,
        verbose: bool = False,
    ) -> None:
        """Load the model; raises EngineError.

        ``n_threads`` defaults to the physical cores; ``n_gpu_layers`` to all (−1), which means
        none where llama.cpp was built without a GPU. ``n_ctx`` may be rounded up.
        """
        if n_threads is not None and not 1 <= n_threads <= MAX_THREADS:
            raise EngineError(f"{n_threads} threads; 1 to {MAX_THREADS} are possible")
        _LOG.verbose = verbose
        self._stop = _StopFlag()
        self._worker = Worker("llama", self._stop.set)
        self._model = self._load(path, n_gpu_layers, progress)
        self._context = self._new_context(n_ctx, n_threads or physical_cores())
        self._close = weakref.finalize(self, _free, self._worker, self._model, self._context)
        self._memory = lib.llama_get_memory(self._context)
        self._window: int = lib.llama_model_n_swa(self._model)
        self._n_ctx: int = lib.llama_n_ctx(self._context)
        self._n_batch: int = lib.llama_n_batch(self._context)  # less where n_ctx is less
        self.n_vocab: int = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        self._batch_tokens = (lib.llama_token * N_BATCH)()
        self._batch_positions = (lib.llama_pos * N_BATCH)()
        # Left out, so NULL: sequence ids (all 0) and output flags (the last token only).
        self._batch = lib.llama_batch(token=self._batch_tokens, pos=self._batch_positions)
        self._tokens: list[int] = []
        self._snapshots: list[_Snapshot] = []
        self._timings = Timings()
        self._turn = object()

    def _load(self, path: Path, n_gpu_layers: int, progress: Progress | None) -> Any:
        def report(share: float, _: object) -> bool:
            if progress is not None:
                progress(share)
            return not self._stop.is_set

        params = lib.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        # Repacked experts would take 9.7 GB of memory beside the file's pages, for no speed; and
        # Q8_0 repacked for AMX ends the process at the first decode (llama-cpp-python 0.3.36).
        params.use_extra_bufts = False
        params.progress_callback = lib.llama_progress_callback(report)
        lib.llama_backend_init()
        model = self._worker.run(lib.llama_model_load_from_file, os.fsencode(path), params)
        if not model:
            self._worker.close()
            raise _LOG.explain(f"{path}: llama.cpp cannot load it")
        return model

    def _new_context(self, n_ctx: int, n_threads: int) -> Any:
        params = lib.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = N_BATCH
        params.n_seq_max = 1
        params.n_outputs_max = 1  # else a buffer for the logits of every token of a batch
        params.n_threads = params.n_threads_batch = n_threads
        params.swa_full = False
        params.no_perf = True
        params.abort_callback = self._stop.callback
        params.abort_callback_data = self._stop.address
        context = lib.llama_init_from_model(self._model, params)
        if not context:
            self._worker.close()
            lib.llama_model_free(self._model)
            raise _LOG.explain(f"no context of {n_ctx} tokens; a smaller one may fit in memory")
        return context

    @property
    def n_ctx(self) -> int:
        return self._n_ctx

    @property
    def timings(self) -> Timings:
        return self._timings

    def cancel(self) -> None:
        self._stop.set()

    def close(self) -> None:
        self._close()

    def generate(
        self,
        prompt: Sequence[int],
        sampler: Sampler,
        *,
        stop: AbstractSet[int],
        max_tokens: int | None = None,
    ) -> Iterator[int]:
        """See ``Engine.generate``. Raises EngineError when a later call has begun meanwhile."""
        self._check(prompt)
        turn = self._turn = object()
        self._stop.clear()
        self._timings = Timings(len(prompt))
        begun = time.perf_counter()
        reused = self._rewind(prompt)
        logits = self._decode_prompt(prompt[reused:])
        prompt_seconds = time.perf_counter() - begun
        generated, seconds = 0, 0.0
        begun = time.perf_counter()
        while logits is not None:
            token = sampler(logits)
            generated += 1
            seconds += time.perf_counter() - begun
            self._timings = Timings(len(prompt), reused, generated, prompt_seconds, seconds)
            yield token
            if self._turn is not turn:
                raise EngineError("another reply was begun before this one was finished")
            if token in stop or generated == max_tokens or len(self._tokens) == self._n_ctx:
                return
            begun = time.perf_counter()
            logits = self._decode([token])

    def _check(self, prompt: Sequence[int]) -> None:
        if not self._close.alive:
            raise EngineError("the engine has been closed")
        if not prompt:
            raise EngineError("the prompt is empty; it must have at least one token")
        if len(prompt) >= self._n_ctx:
            raise PromptTooLongError(
                f"the conversation has {len(prompt)} tokens, the context holds {self._n_ctx}; "
                "start over, or load the model with a larger context"
            )

    # Decoding

    def _decode_prompt(self, tokens: Sequence[int]) -> Logits | None:
        """Logits after ``tokens``, None when cancelled; saves the window layers' state."""
        logits = None
        for start in range(0, len(tokens), self._n_batch):
            logits = self._decode(tokens[start : start + self._n_batch])
            if logits is None:
                return None
        self._save_snapshot()
        return logits

    def _decode(self, tokens: Sequence[int]) -> Logits | None:
        """Decode at most a batch behind what is in memory: a view of the last token's logits.

        None when cancelled. The view holds until the next call.
        """
        if self._stop.is_set:  # asked here too: not every backend asks the abort callback
            return None
        n, position = len(tokens), len(self._tokens)
        self._batch_tokens[:n] = tokens
        self._batch_positions[:n] = range(position, position + n)
        self._batch.n_tokens = n
        # Before decoding: interrupted anywhere, the list is too long at worst, which is seen.
        self._tokens.extend(tokens)
        if n == 1:
            status = lib.llama_decode(self._context, self._batch)
        else:
            status = self._worker.run(lib.llama_decode, self._context, self._batch)
        if status == _ABORTED:
            return None
        if status == _NO_ROOM:
            raise EngineError(f"the context of {self._n_ctx} tokens has no room for {n} more")
        if status != 0:
            raise _LOG.explain(f"llama.cpp failed to decode {n} tokens at {position} ({status})")
        logits = lib.llama_get_logits_ith(self._context, -1)
        if not logits:
            raise _LOG.explain("llama.cpp gave no logits")
        return np.ctypeslib.as_array(logits, (self.n_vocab,))

    # Going back

    def _rewind(self, prompt: Sequence[int]) -> int:
        """Bring memory to a beginning of ``prompt``, as long as is exact; returns its length.

        At least one token is left to decode, since its logits are wanted.
        """
        self._forget_undecoded()
        position = min(_common_prefix(self._tokens, prompt), len(prompt) - 1)
        if position < len(self._tokens) and not self._window_reaches(position):
            position = self._restore_snapshot(position)
        lib.llama_memory_seq_rm(self._memory, _SEQUENCE, position, -1)
        if self._n_decoded() != position or not self._window_reaches(position):
            lib.llama_memory_clear(self._memory, True)
            position = 0
        del self._tokens[position:]
        self._snapshots = [it for it in self._snapshots if it.position <= position]
        return position

    def _forget_undecoded(self) -> None:
        """Drop from the list what an aborted or failed decode did not put into memory."""
        del self._tokens[self._n_decoded() :]

    def _n_decoded(self) -> int:
        last: int = lib.llama_memory_seq_pos_max(self._memory, _SEQUENCE)
        return last + 1

    def _window_reaches(self, position: int) -> bool:
        """Whether the window layers still hold all that a token at ``position`` looks back at."""
        first: int = lib.llama_memory_seq_pos_min(self._memory, _SEQUENCE)
        return first <= max(0, position - self._window)

    def _save_snapshot(self) -> None:
        size = lib.llama_state_seq_get_size_ext(self._context, _SEQUENCE, _WINDOW_LAYERS_ONLY)
        state = (ctypes.c_uint8 * size)()
        written = lib.llama_state_seq_get_data_ext(
            self._context, state, size, _SEQUENCE, _WINDOW_LAYERS_ONLY
        )
        if written != size:
            return
        position = len(self._tokens)
        kept = [it for it in self._snapshots if it.position != position]
        self._snapshots = _thinned([*kept, _Snapshot(position, state)])

    def _restore_snapshot(self, position: int) -> int:
        """Put back the latest state saved at or before ``position``; returns where it was saved.

        0 when there is none.
        """
        usable = [it for it in self._snapshots if it.position <= position]
        if not usable:
            return 0
        last = usable[-1]
        lib.llama_state_seq_set_data_ext(
            self._context, last.state, len(last.state), _SEQUENCE, _WINDOW_LAYERS_ONLY
        )
        return last.position


def _free(worker: Worker, model: Any, context: Any) -> None:
    worker.close()
    lib.llama_free(context)
    lib.llama_model_free(model)


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


def _thinned(snapshots: list[_Snapshot]) -> list[_Snapshot]:
    """At most MAX_SNAPSHOTS: without the one whose loss costs least to decode again.

    The last always stays; the others are needed when an earlier turn is gone back to.
    """
    if len(snapshots) <= MAX_SNAPSHOTS:
        return snapshots
    positions = [0, *(it.position for it in snapshots[:-1])]
    gaps = [after - before for before, after in pairwise(positions)]
    loss = gaps.index(min(gaps))
    return [it for i, it in enumerate(snapshots) if i != loss]
