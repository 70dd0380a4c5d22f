"""The engine that calls llama.cpp through llama-cpp-python.

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
import weakref
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np

from gptoss.errors import InvalidFileError
from gptoss.formats.gguf import GgufFile
from gptoss.formats.gguf_strings import StringArray
from gptoss.runtime.engine.base import EngineError, ForkedProcessError, Logits, Sampler
from gptoss.runtime.engine.context import Chunk
from gptoss.runtime.engine.file_stamp import FileStamp
from gptoss.runtime.engine.library import LIBRARY_VERSION, LOG, StopFlag, lib
from gptoss.runtime.engine.loader import Loaded, Progress, explain_failure, load
from gptoss.runtime.engine.model_key import ModelFiles
from gptoss.runtime.engine.prefix_cache import CacheSettings, open_cache
from gptoss.runtime.engine.repacking import Repacking
from gptoss.runtime.engine.request import ScheduledGeneration
from gptoss.runtime.engine.rpc import LOSS
from gptoss.runtime.engine.saved_state import State
from gptoss.runtime.engine.scheduler import Scheduler
from gptoss.runtime.engine.settings import EngineSettings

_logits_address = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)(
    ctypes.cast(lib.llama_get_logits_ith, ctypes.c_void_p).value or 0
)
"""``llama_get_logits_ith`` with an integer as its result: a pointer object takes twice as long."""

_STATE_HEAD = 8
"""Bytes of a state before its layers: llama.cpp's magic and the sequence's number."""
_WINDOW_LAYERS_ONLY = lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
_ABORTED = 2
_NO_ROOM = 1


_first_process: int | None = None


class LlamaEngine:
    """A gpt-oss GGUF in llama.cpp. See ``base.Engine``."""

    def __init__(
        self,
        path: Path,
        settings: EngineSettings,
        *,
        cache: CacheSettings | None = None,
        progress: Progress | None = None,
        verbose: bool = False,
    ) -> None:
        """Load the model; ``cache`` is what is remembered outside the context. Raises EngineError,
        OptionError, and what ``progress`` raises.
        """
        _require_first_process()
        LOG.verbose = verbose
        self.settings = settings
        cache = cache or CacheSettings()
        header = cache.header or _header(path)
        files = _files(header, settings, cache)
        n_vocab = None if header is None else _count_tokens(header)
        stamp = FileStamp((path,) if header is None else header.paths)
        try:
            loaded = load(path, settings, progress or (lambda _: None), n_vocab=n_vocab)
            self._context = LlamaContext(loaded)
        except BaseException:
            stamp.close()
            raise
        try:
            stamp.check_paths()
            if settings.repack == "later":
                self._context.change_over_to(Repacking(path, settings, loaded.stop, n_vocab, stamp))
            prefixes = open_cache(cache, files, path.name, self._context.state_format)
            self._scheduler = Scheduler(
                self._context, settings.n_ctx, settings.draft_costs, prefixes
            )
        except BaseException:
            self._context.free()
            stamp.close()
            raise
        self._stamp = stamp
        if settings.rpc:
            LOSS.listen(self._scheduler.fail)
        self._close = weakref.finalize(self, _close, self._scheduler, stamp)

    @property
    def is_repacked(self) -> bool:
        """Report whether llama.cpp computes with repacked experts by now."""
        return self._context.is_repacked

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
        self._stamp.check()
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
        _close(self._scheduler, self._stamp)


def _close(scheduler: Scheduler, stamp: FileStamp) -> None:
    scheduler.close()
    stamp.close()


class LlamaContext:
    """llama.cpp's context and its model. See ``context.Context``."""

    def __init__(self, loaded: Loaded) -> None:
        """Takes over what was loaded, to free it."""
        context = loaded.context
        self.n_streams = loaded.settings.n_sequences
        self.state_format = _state_format(loaded.settings)
        """What the bytes of a state depend on besides the model."""
        self.n_ctx: int = lib.llama_n_ctx_seq(context)
        self.n_batch: int = lib.llama_n_batch(context)  # less than asked for where n_ctx is less
        self.n_vocab: int = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(loaded.model))
        self.window: int = lib.llama_model_n_swa(loaded.model)
        self._loaded = loaded
        self._context = context
        self._stop: StopFlag = loaded.stop
        self._repacking: Repacking | None = None
        self._memory = lib.llama_get_memory(context)
        self._rows: list[int] = []
        self._views: dict[int, Logits] = {}
        self._allocate_batch()

    def _allocate_batch(self) -> None:
        self._tokens = (lib.llama_token * self.n_batch)()
        self._positions = (lib.llama_pos * self.n_batch)()
        self._n_sequence_ids = (ctypes.c_int32 * self.n_batch)(*[1] * self.n_batch)
        self._outputs = (ctypes.c_int8 * self.n_batch)()
        id_type = lib.llama_seq_id
        self._ids = (id_type * self.n_streams)(*range(self.n_streams))
        size = ctypes.sizeof(id_type)
        first = ctypes.addressof(self._ids)
        pointer = ctypes.POINTER(id_type)
        self._id_pointers = [ctypes.cast(first + i * size, pointer) for i in range(self.n_streams)]
        self._sequences = (pointer * self.n_batch)()
        self._batch = lib.llama_batch(
            token=self._tokens,
            pos=self._positions,
            n_seq_id=self._n_sequence_ids,
            seq_id=self._sequences,
            logits=self._outputs,
        )

    # Repacking

    @property
    def is_repacked(self) -> bool:
        """Report whether llama.cpp computes with repacked experts by now."""
        return self._loaded.settings.repack == "now"

    def change_over_to(self, repacking: Repacking) -> None:
        """Continue with the repacked model of llama.cpp as soon as it is ready."""
        self._repacking = repacking

    def _change_over(self, repacked: Loaded) -> None:
        """Move every sequence into the other context of llama.cpp, and free the one so far; keep it
        where a sequence cannot be moved.
        """
        for stream in range(self.n_streams):
            if not self.n_decoded(stream):
                continue
            state = self._state(stream, 0)
            taken = state is not None and lib.llama_state_seq_set_data_ext(
                repacked.context, _address(state), len(state), stream, 0
            )
            if state is None or taken != len(state):
                repacked.free()
                return
        self._loaded.free()
        self._views.clear()
        self._loaded, self._context = repacked, repacked.context
        self._memory = lib.llama_get_memory(repacked.context)

    # Decoding

    def decode(self, chunks: Sequence[Chunk]) -> bool:
        """Call ``llama_decode`` on one batch; implements ``context.Context.decode``."""
        if self._repacking is not None and (repacked := self._repacking.take()) is not None:
            self._change_over(repacked)
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
        raise explain_failure(f"llama.cpp failed to decode {n} tokens at {first} ({status})")

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
            raise LOG.explain("llama.cpp gave no logits")
        return self._view(address)

    def _view(self, address: int) -> Logits:
        """Return llama.cpp's logits at an address as an array; making one takes as long as finding
        the largest of its values, so they are kept.
        """
        view = self._views.get(address)
        if view is None:
            if len(self._views) > self.n_batch:  # llama.cpp has allocated another buffer
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
        if self._repacking is not None:
            self._repacking.close()
        self._loaded.free()

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

    def state_bytes(self, stream: int) -> int:
        """Ask llama.cpp for the size of a sequence's whole state; implements
        ``kv_reuse.Memory``.
        """
        size: int = lib.llama_state_seq_get_size_ext(self._context, stream, 0)
        return size

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


def _header(path: Path) -> GgufFile | None:
    """Read a GGUF's header; None where it cannot be read: llama.cpp reports why."""
    try:
        return GgufFile.open(path)
    except InvalidFileError:
        return None


def _count_tokens(header: GgufFile) -> int | None:
    """Return the size of a GGUF's vocabulary; None where it has none: llama.cpp reports that."""
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    return len(tokens) if isinstance(tokens, StringArray) else None


def _files(
    header: GgufFile | None, settings: EngineSettings, cache: CacheSettings
) -> ModelFiles | None:
    """Return the files whose content the disk tier's key covers, before llama.cpp loads them; None
    where there is no such tier, and where they cannot be read: llama.cpp reports why.
    """
    if cache.folder is None or header is None:
        return None
    try:
        return ModelFiles(header, settings.loras)
    except InvalidFileError:
        return None


def _state_format(settings: EngineSettings) -> str:
    """Describe the settings of llama.cpp that the bytes of a sequence's state depend on."""
    return (
        f"llama-cpp-python {LIBRARY_VERSION}, {settings.n_sequences} sequences, "
        f"KV {settings.kv_type}, flash attention {settings.flash_attention}"
    )


def _address(state: State) -> Any:
    """Return the pointer that llama.cpp's state functions take."""
    return state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


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
