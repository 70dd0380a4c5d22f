"""The engine that calls llama.cpp through llama-cpp-python, the only module that imports it.

It uses llama-cpp-python's C-level functions. That package's ``Llama`` class detokenizes the whole
reply at every token, samples by walking all of the vocabulary, and rewinds a sliding-window
memory past its window without noticing; at 201,088 tokens a step over a small model costs it
three times a bare ``llama_decode``.

Each sequence has a stream of its own (``kv_unified`` off): a prefix is then shared exactly and at
no cost in time. Nothing but the scheduler's thread touches the context once it is made, and that
thread frees it: no other can be inside a call by then.
"""

from __future__ import annotations

import ctypes
import os
import sys
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np

from gptoss.runtime.engine.base import (
    N_BATCH,
    EngineError,
    ForkedProcessError,
    Logits,
    Sampler,
)
from gptoss.runtime.engine.context import Chunk
from gptoss.runtime.engine.drafts import LONGEST, BatchCosts
from gptoss.runtime.engine.prefix_cache import CacheSettings, open_cache
from gptoss.runtime.engine.request import ScheduledGeneration
from gptoss.runtime.engine.saved_state import State
from gptoss.runtime.engine.scheduler import Scheduler
from gptoss.runtime.engine.threads import physical_cores, run_interruptibly

os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # else a failed assertion runs gdb on this process
try:
    import llama_cpp
    import llama_cpp.llama_cpp as lib
except (ImportError, OSError, RuntimeError) as error:
    raise EngineError(
        f'llama.cpp cannot be loaded ({error}); install it: pip install "gptoss-toolkit[run]"'
    ) from error

Progress = Callable[[float], None]
"""Called with the share of the load that is done, 0 to 1, on the thread that loads. An exception
that it raises ends the load and is raised there: this is how a load is cancelled."""

MAX_THREADS = 512
"""ggml's own limit; far beyond it, it crashes."""

MAX_SEQUENCES = 64
"""Conversations at a time; llama.cpp allows 256, each with memory for a whole context."""

_READ_CHUNK = 16 << 20
_PAGE = 4096
_READING_SHARE = 0.9
"""Of the progress: reading the file's pages, before llama.cpp maps them."""

_logits_address = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)(
    ctypes.cast(lib.llama_get_logits_ith, ctypes.c_void_p).value or 0
)
"""``llama_get_logits_ith`` with an integer as its result: a pointer object takes twice as long."""

_STATE_HEAD = 8
"""Bytes of a state before its layers: llama.cpp's magic and the sequence's number."""
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
        """Return an EngineError that says ``what`` failed and adds the lines that llama.cpp logged
        about it.
        """
        reported = "; ".join(self.errors)
        self.errors.clear()
        return EngineError(f"{what}: {reported}" if reported else what)


_LOG = _Log()
_first_process: int | None = None


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


class LlamaEngine:
    """A gpt-oss GGUF in llama.cpp. See ``base.Engine``."""

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int,
        n_sequences: int = 1,
        n_threads: int | None = None,
        n_gpu_layers: int = -1,
        draft_costs: BatchCosts | None = None,
        cache: CacheSettings | None = None,
        progress: Progress | None = None,
        verbose: bool = False,
    ) -> None:
        """Load the model; raises EngineError, and what ``progress`` raises.

        ``n_ctx`` tokens for each of ``n_sequences`` conversations at a time. ``n_threads``
        defaults to the physical cores; ``n_gpu_layers`` to all (−1), which means none where
        llama.cpp was built without a GPU. With ``draft_costs`` text that repeats is decoded by
        drafts (``drafts``), which takes a buffer for more logits: 50 MiB. ``cache`` is what is
        remembered outside the context.
        """
        _require_count("n_ctx", n_ctx, 2**31 - 1)
        _require_count("n_sequences", n_sequences, MAX_SEQUENCES)
        if n_threads is not None:
            _require_count("n_threads", n_threads, MAX_THREADS)
        _require_first_process()
        _LOG.verbose = verbose
        loader = _Loader(path, progress or (lambda _: None))
        model = loader.load(n_gpu_layers)
        try:
            context = loader.new_context(
                model,
                n_ctx,
                n_sequences,
                n_threads or physical_cores(),
                n_outputs=n_sequences if draft_costs is None else n_sequences + LONGEST,
            )
        except BaseException:
            lib.llama_model_free(model)
            raise
        prefixes = open_cache(cache or CacheSettings(), path, context.state_format)
        self._scheduler = Scheduler(context, n_ctx, draft_costs, prefixes)
        self._close = weakref.finalize(self, self._scheduler.close)

    @property
    def n_ctx(self) -> int:
        """Return the llama.cpp context size of one sequence in tokens; implements
        ``base.Engine``.
        """
        return self._scheduler.n_ctx

    def generate(
        self,
        prompt: Sequence[int],
        sampler: Sampler,
        *,
        stop: AbstractSet[int],
        max_tokens: int | None = None,
        checkpoints: Sequence[int] = (),
        time_limit: float | None = None,
    ) -> ScheduledGeneration:
        """Queue a prompt with the scheduler of this llama.cpp engine; implements
        ``base.Engine.generate``.
        """
        return self._scheduler.submit(
            prompt,
            sampler,
            stop=stop,
            max_tokens=max_tokens,
            checkpoints=checkpoints,
            time_limit=time_limit,
            owner=self,
        )

    def close(self) -> None:
        """Stop the scheduler and free llama.cpp's model; implements ``base.Engine.close``."""
        self._scheduler.close()


class _Loader:
    """Loads one file: its pages first, so that there is progress to report, then the model."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self._path = path
        self._progress = progress
        self._stop = _StopFlag()
        self._share = 0.0
        self._reported = -1.0

    def load(self, n_gpu_layers: int) -> Any:
        """Load the GGUF into a ``llama_model`` of llama.cpp; raises EngineError, and what
        ``progress`` raises.
        """

        def advance(share: float, _: object) -> bool:
            self._share = _READING_SHARE + share * (0.99 - _READING_SHARE)
            return not self._stop.is_set

        self._read_pages()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        # Repacked experts would take 9.7 GB of memory beside the file's pages, for no speed; and
        # Q8_0 repacked for AMX ends the process at the first decode (llama-cpp-python 0.3.36).
        params.use_extra_bufts = False
        params.progress_callback = lib.llama_progress_callback(advance)
        lib.llama_backend_init()
        loaded: list[Any] = []
        try:
            run_interruptibly(
                lambda: loaded.append(
                    lib.llama_model_load_from_file(os.fsencode(self._path), params)
                ),
                abort=self._stop.set,
                poll=self._report,
            )
        except BaseException:
            for model in filter(None, loaded):  # it was ready before the abort was seen
                lib.llama_model_free(model)
            raise
        if not loaded[0]:
            raise _LOG.explain(f"{self._path}: llama.cpp cannot load it")
        return loaded[0]

    def new_context(
        self, model: Any, n_ctx: int, n_sequences: int, n_threads: int, n_outputs: int
    ) -> LlamaContext:
        """Create a ``llama_context`` of llama.cpp for so many sequences, and report that the load
        is done.
        """
        stop = _StopFlag()
        params = lib.llama_context_default_params()
        params.n_ctx = n_ctx * n_sequences
        params.n_batch = params.n_ubatch = N_BATCH
        params.n_seq_max = n_sequences
        params.kv_unified = False
        # Else a buffer for the logits of every token of a batch.
        params.n_outputs_max = n_outputs
        params.n_threads = params.n_threads_batch = n_threads
        params.swa_full = False
        params.no_perf = True
        params.abort_callback = stop.callback
        params.abort_callback_data = stop.address
        made: list[Any] = []
        try:
            run_interruptibly(
                lambda: made.append(lib.llama_init_from_model(model, params)),
                abort=stop.set,
                poll=self._report,
            )
            if not made[0]:
                times = f"{n_sequences} × " if n_sequences > 1 else ""
                raise _LOG.explain(
                    f"cannot create a context of {times}{n_ctx} tokens; "
                    "a smaller one may fit in memory"
                )
            self._share = 1.0
            self._report()
        except BaseException:
            for context in filter(None, made):
                lib.llama_free(context)
            raise
        return LlamaContext(model, made[0], stop, n_sequences, _state_format(params))

    def _read_pages(self) -> None:
        """Read the GGUF's memory-mapped pages in order while llama.cpp loads it, to report progress
        in bytes.
        """
        try:
            pages = np.memmap(self._path, np.uint8, "r")
        except (OSError, ValueError):  # llama.cpp reports what is wrong with it
            return
        for start in range(0, pages.size, _READ_CHUNK):
            self._share = _READING_SHARE * start / pages.size
            self._report()
            pages[start : start + _READ_CHUNK : _PAGE].max()

    def _report(self) -> None:
        if self._share > self._reported:
            self._reported = self._share
            self._progress(self._share)


class LlamaContext:
    """llama.cpp's context and its model. See ``context.Context``."""

    def __init__(
        self, model: Any, context: Any, stop: _StopFlag, n_sequences: int, state_format: str
    ) -> None:
        """Takes both over, to free them."""
        self.n_streams = n_sequences
        self.state_format = state_format
        """What the bytes of a state depend on besides the model."""
        self.n_ctx: int = lib.llama_n_ctx_seq(context)
        self.n_batch = min(N_BATCH, lib.llama_n_batch(context))  # less where n_ctx is less
        self.n_vocab: int = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        self.window: int = lib.llama_model_n_swa(model)
        self._model = model
        self._context = context
        self._stop = stop
        self._memory = lib.llama_get_memory(context)
        self._rows: list[int] = []
        self._views: dict[int, Logits] = {}
        self._allocate_batch()

    def _allocate_batch(self) -> None:
        self._tokens = (lib.llama_token * N_BATCH)()
        self._positions = (lib.llama_pos * N_BATCH)()
        self._n_sequence_ids = (ctypes.c_int32 * N_BATCH)(*[1] * N_BATCH)
        self._outputs = (ctypes.c_int8 * N_BATCH)()
        id_type = lib.llama_seq_id
        self._ids = (id_type * self.n_streams)(*range(self.n_streams))
        size = ctypes.sizeof(id_type)
        first = ctypes.addressof(self._ids)
        pointer = ctypes.POINTER(id_type)
        self._id_pointers = [ctypes.cast(first + i * size, pointer) for i in range(self.n_streams)]
        self._sequences = (pointer * N_BATCH)()
        self._batch = lib.llama_batch(
            token=self._tokens,
            pos=self._positions,
            n_seq_id=self._n_sequence_ids,
            seq_id=self._sequences,
            logits=self._outputs,
        )

    # Decoding

    def decode(self, chunks: Sequence[Chunk]) -> bool:
        """Call ``llama_decode`` on one batch; implements ``context.Context.decode``."""
        if self._stop.is_set:  # asked here too: not every backend asks the abort callback
            return False
        self._fill_batch(chunks)
        status = lib.llama_decode(self._context, self._batch)
        if status == 0:
            return True
        if status == _ABORTED:
            return False
        n, first = self._batch.n_tokens, chunks[0].position
        if status == _NO_ROOM:
            raise EngineError(f"the context has no room for {n} more tokens at {first}")
        raise _LOG.explain(f"llama.cpp failed to decode {n} tokens at {first} ({status})")

    def _fill_batch(self, chunks: Sequence[Chunk]) -> None:
        if len(chunks) == 1 and len(chunks[0].tokens) == 1:
            [chunk] = chunks  # what most batches are
            self._tokens[0], self._positions[0] = chunk.tokens[0], chunk.position
            self._sequences[0] = self._id_pointers[chunk.stream]
            self._outputs[0], self._rows[:] = chunk.n_logits, (0,)
            self._batch.n_tokens = 1
            return
        self._rows.clear()
        end = 0
        for chunk in chunks:
            start, end = end, end + len(chunk.tokens)
            self._tokens[start:end] = chunk.tokens
            self._positions[start:end] = range(chunk.position, chunk.position + end - start)
            for i in range(start, end):
                self._sequences[i] = self._id_pointers[chunk.stream]
                self._outputs[i] = 0
            first = end - chunk.n_logits
            for i in range(first, end):
                self._outputs[i] = 1
            self._rows.append(first)
        self._batch.n_tokens = end

    def logits(self, index: int, row: int = 0) -> Logits:
        """Read logits from llama.cpp's buffer (``llama_get_logits_ith``); implements
        ``context.Context.logits``.
        """
        address = _logits_address(self._context, self._rows[index] + row)
        if not address:
            raise _LOG.explain("llama.cpp gave no logits")
        return self._view(address)

    def _view(self, address: int) -> Logits:
        """Return llama.cpp's logits at an address as an array; making one takes as long as finding
        the largest of its values, so they are kept.
        """
        view = self._views.get(address)
        if view is None:
            if len(self._views) > N_BATCH:  # llama.cpp has allocated another buffer
                self._views.clear()
            row = (ctypes.c_float * self.n_vocab).from_address(address)
            view = self._views[address] = np.ctypeslib.as_array(row)
        return view

    def abort(self) -> None:
        """Set the flag that llama.cpp's abort callback reads; implements
        ``context.Context.abort``.
        """
        self._stop.set()

    def clear_abort(self) -> None:
        """Clear the flag that llama.cpp's abort callback reads; implements
        ``context.Context.clear_abort``.
        """
        self._stop.clear()

    def free(self) -> None:
        """Free the ``llama_context`` and ``llama_batch`` of llama.cpp; implements
        ``context.Context.free``.
        """
        lib.llama_free(self._context)
        lib.llama_model_free(self._model)

    # Memory: see ``kv_reuse.Memory``

    def first_position(self, stream: int) -> int:
        """Ask llama.cpp for a sequence's lowest position in its window cache; implements
        ``kv_reuse.Memory``.
        """
        first: int = lib.llama_memory_seq_pos_min(self._memory, stream)
        return first

    def n_decoded(self, stream: int) -> int:
        """Ask llama.cpp how many tokens of a sequence are in its KV cache; implements
        ``kv_reuse.Memory``.
        """
        last: int = lib.llama_memory_seq_pos_max(self._memory, stream)
        return last + 1

    def truncate(self, stream: int, position: int) -> None:
        """Remove positions from a sequence in llama.cpp's KV cache; implements
        ``kv_reuse.Memory``.
        """
        lib.llama_memory_seq_rm(self._memory, stream, position, -1)

    def save_window(self, stream: int) -> State | None:
        """Copy the sliding-window state of a sequence out of llama.cpp; implements
        ``kv_reuse.Memory``.
        """
        return self._state(stream, _WINDOW_LAYERS_ONLY)

    def restore_window(self, stream: int, state: State) -> None:
        """Restore a saved sliding-window state in llama.cpp; implements ``kv_reuse.Memory``."""
        self._set_state(stream, state, _WINDOW_LAYERS_ONLY)

    def copy(self, source: int, target: int) -> bool:
        """Copy a sequence to another one within llama.cpp; implements ``kv_reuse.Memory``."""
        state = self._state(source, 0)
        return state is not None and self._set_state(target, state, 0)

    def save_attention(self, stream: int) -> State | None:
        """Copy the full-attention layers' part of a sequence's state out of llama.cpp; implements
        ``kv_reuse.Memory``.

        A whole state is a head, that part, and then the window layers' part, which llama.cpp also
        gives alone after the same head.
        """
        whole, window = self._state(stream, 0), self.save_window(stream)
        if whole is None or window is None:
            return None
        end = len(whole) - (len(window) - _STATE_HEAD)
        if end < _STATE_HEAD or not np.array_equal(whole[end:], window[_STATE_HEAD:]):
            return None
        return whole[_STATE_HEAD:end]

    def restore(self, stream: int, attention: State, window: State) -> bool:
        """Put a whole saved state into a sequence of llama.cpp; implements ``kv_reuse.Memory``."""
        whole = np.concatenate([window[:_STATE_HEAD], attention, window[_STATE_HEAD:]])
        return self._set_state(stream, whole, 0)

    def _state(self, stream: int, flags: int) -> State | None:
        size = lib.llama_state_seq_get_size_ext(self._context, stream, flags)
        state = np.empty(size, np.uint8)
        written = lib.llama_state_seq_get_data_ext(
            self._context, _address(state), size, stream, flags
        )
        return state if written == size else None

    def _set_state(self, stream: int, state: State, flags: int) -> bool:
        read: int = lib.llama_state_seq_set_data_ext(
            self._context, _address(state), len(state), stream, flags
        )
        return read == len(state)


def _state_format(params: Any) -> str:
    """Describe the settings of llama.cpp that the bytes of a sequence's state depend on."""
    return (
        f"llama-cpp-python {llama_cpp.__version__}, {params.n_seq_max} sequences, "
        f"K {params.type_k}, V {params.type_v}, flash attention {params.flash_attn_type}, "
        f"full-size windows {params.swa_full}"
    )


def _address(state: State) -> Any:
    """Return the pointer that llama.cpp's state functions take."""
    return state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def _require_count(name: str, value: object, most: int) -> None:
    """Raise EngineError unless a number for llama.cpp's engine is a whole number from 1 to
    ``most``.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise EngineError(f"{name} is {value!r}; it must be a whole number from 1 to {most}")


def _require_first_process() -> None:
    """Refuse to load a model with llama.cpp in a forked child of a process that has used llama.cpp:
    its threads do not survive a fork, and the load would hang.
    """
    global _first_process
    if _first_process is None:
        _first_process = os.getpid()
    if _first_process != os.getpid():
        raise ForkedProcessError(
            "this process was forked from one that has loaded a model; start processes with "
            'multiprocessing\'s "spawn" method'
        )
