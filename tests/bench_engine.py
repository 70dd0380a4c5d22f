"""What the engine adds to a bare ``llama_decode`` loop.

    python tests/bench_engine.py [--folder DIR] [--runs 7]

The model is tiny and has the full vocabulary, so that every microsecond beside the decoding shows.
In turns: a bare loop, a chat at temperature 1, a greedy chat; with constraint and parsing, read
event by event. Each is a process of its own, as OpenMP's threads wait differently where a process
has more of them than processors. Exit code 1 when a figure is missed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import gptoss
from bench_harmony import Figure
from support import peers
from support.checkpoints import random_checkpoint

N_TOKENS = 200
N_CTX = 4096
PROMPT = 100

Measure = Callable[[], float]


def bare_loop(gguf: Path) -> Measure:
    """The shortest program over llama.cpp: nothing is sampled, a fixed token follows."""
    import llama_cpp.llama_cpp as lib

    from gptoss.runtime.engine.base import N_BATCH
    from gptoss.runtime.engine.threads import physical_cores

    quiet = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(quiet, None)
    model_params = lib.llama_model_default_params()
    model_params.use_extra_bufts = False
    model = lib.llama_model_load_from_file(str(gguf).encode(), model_params)
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = N_CTX, N_BATCH, N_BATCH
    params.n_threads = params.n_threads_batch = physical_cores()
    params.swa_full, params.no_perf, params.n_outputs_max = False, True, 1
    context = lib.llama_init_from_model(model, params)

    def measure(_: object = quiet) -> float:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        prompt = (lib.llama_token * PROMPT)(*range(PROMPT))
        lib.llama_decode(context, lib.llama_batch_get_one(prompt, PROMPT))
        token = (lib.llama_token * 1)(7)
        begun = time.perf_counter()
        for _ in range(N_TOKENS):
            lib.llama_decode(context, lib.llama_batch_get_one(token, 1))
            lib.llama_get_logits_ith(context, -1)
        return (time.perf_counter() - begun) / N_TOKENS

    return measure


def streamed_chat(gguf: Path, temperature: float) -> Measure:
    """A new conversation's reply, read event by event."""
    chat = gptoss.load(
        gguf,
        n_ctx=N_CTX,
        sampling=gptoss.Sampling(temperature=temperature),
        seed=1,
        max_tokens=N_TOKENS,
    )

    return partial(token_seconds, chat, N_TOKENS)


def token_seconds(chat: gptoss.Chat, n_tokens: int) -> float:
    """Seconds a token of a new conversation's reply, which must have as many."""
    chat.reset()
    first = last = 0.0
    for event in chat.send("Tell me something long."):
        if isinstance(event, gptoss.PromptProgress):
            first = time.perf_counter()
        elif isinstance(event, gptoss.TextDelta):
            last = time.perf_counter()
        elif isinstance(event, gptoss.ReplyEnded):
            assert event.timings.generated_tokens == n_tokens, event
    return (last - first) / n_tokens


def serve(make: Callable[[Path], Measure], gguf: Path, parent: Connection) -> None:
    """Measure once for each message from the parent; None ends it."""
    measure = make(gguf)
    measure()
    parent.send(0.0)
    while parent.recv() is not None:
        parent.send(measure())


def measured_in_turns(
    kinds: Mapping[str, Callable[[Path], Measure]],
    gguf: Path,
    runs: int,
    others: Mapping[str, Measure] | None = None,
) -> dict[str, list[float]]:
    """Several measurements of each kind, in turns: ``kinds`` in processes of their own (module
    level functions), ``others`` in this one."""
    spawn = multiprocessing.get_context("spawn")
    pipes = {}
    for kind, make in kinds.items():
        pipes[kind], theirs = spawn.Pipe()
        spawn.Process(target=serve, args=(make, gguf, theirs), daemon=True).start()
        pipes[kind].recv()
    found: dict[str, list[float]] = {kind: [] for kind in (*kinds, *(others or ()))}
    for _ in range(runs):
        for kind, pipe in pipes.items():
            pipe.send(kind)
            found[kind].append(pipe.recv())
        for kind, measure in (others or {}).items():
            found[kind].append(measure())
    for pipe in pipes.values():
        pipe.send(None)
    return found


def figures(gguf: Path, runs: int) -> Iterator[Figure]:
    """Medians of what each kind of chat takes beyond the bare loop beside it."""
    kinds: dict[str, Callable[[Path], Measure]] = {
        "bare": bare_loop,
        "temperature 1": partial(streamed_chat, temperature=1),
        "greedy": partial(streamed_chat, temperature=0),
    }
    found = measured_in_turns(kinds, gguf, runs)
    bare = found["bare"]
    yield Figure("a bare loop, a token", statistics.median(bare) * 1e3, "ms", 100)
    for kind, bound in ("temperature 1", 0.5), ("greedy", 0.15):
        over = [mine - base for mine, base in zip(found[kind], bare, strict=True)]
        yield Figure(f"... and a chat, {kind}, more", statistics.median(over) * 1e3, "ms", bound)


def full_vocabulary_model(folder: Path) -> Path:
    """A random GGUF of 128 dimensions and 4 layers with the real vocabulary, made once."""
    gguf = folder / "full.gguf"
    if not gguf.exists():
        checkpoint = random_checkpoint(
            folder / "checkpoint", hidden=128, layers=4, heads=4, vocab=201088,
            tokenizer_folder=peers.tokenizer(),
        )  # fmt: skip
        gptoss.convert(checkpoint, gguf, dense="bf16")
    return gguf


def main() -> int:
    """Print each figure as soon as it is known."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    kept = True
    with tempfile.TemporaryDirectory() as temporary:
        gguf = full_vocabulary_model(options.folder or Path(temporary))
        for figure in figures(gguf, options.runs):
            print(figure, flush=True)
            kept &= figure.kept
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
