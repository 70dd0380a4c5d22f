"""Measures how fast this machine computes a model: threads, batch sizes, repacking, and what a
batch costs against one token.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from gptoss.runtime.engine.context import Chunk
from gptoss.runtime.engine.drafts import LONGEST, BatchCosts, measure_batch_costs
from gptoss.runtime.engine.library import lib
from gptoss.runtime.engine.llama_cpp import LlamaContext
from gptoss.runtime.engine.loader import load
from gptoss.runtime.engine.settings import EngineSettings
from gptoss.runtime.engine.threads import physical_cores
from gptoss.runtime.engine.tuning import Tuning

Say = Callable[[str], None]

N_CTX = 2048
BATCHES = (128, 256, 512, 1024)
REPEATS = 5
"""Decodes of which the median counts; fewer of a batch, which takes longer."""
WARM_UP = 4
COMPARED = 32
"""Decodes of which the median counts where repacked experts are compared with those in the file.

Of five, an interruption of a moment is enough to reverse the answer: one run said 0.83 times as
fast where the mean of many gave 1.15 to 1.3.
"""

_FREE = BatchCosts((1, 2), (1.0, 1.0))
"""Any costs: with them a context has room for the logits of a draft."""


def tune(path: Path, threads: tuple[int, ...], *, n_vocab: int, repack: bool, say: Say) -> Tuning:
    """Measure a GGUF of ``n_vocab`` tokens on this machine's CPU; ``threads`` are the numbers
    tried, ``repack`` also loads it with its experts repacked. ``say`` is called with each finding.

    Raises EngineError.
    """
    settings = EngineSettings(
        N_CTX, n_batch=max(*BATCHES, LONGEST + 1), n_gpu_layers=0, draft_costs=_FREE
    )
    with _opened(path, settings, n_vocab) as meter:
        n_threads, decode = _best_threads(meter, threads, say)
        meter.set_threads(n_threads)
        n_batch, prefill = _best_batch(meter, say)
        costs = _batch_costs(meter, say)
        before = meter.seconds(1, repeats=COMPARED) if repack else 0.0
    gain = 1.0
    if repack:
        settings = replace(settings, n_threads=n_threads)
        gain, decode = _compare_repacked(path, settings, n_vocab, before, say)
    return Tuning(n_threads, n_batch, round(decode, 3), round(prefill, 3), gain, costs)


def _compare_repacked(
    path: Path, settings: EngineSettings, n_vocab: int, before: float, say: Say
) -> tuple[float, float]:
    """Return how many times as fast repacked experts are as those in the file, which took
    ``before`` seconds a token, and how many tokens a second the latter are.

    Those in the file are measured once more afterwards, so that a machine that becomes faster or
    slower meanwhile favours neither.
    """
    seconds = []
    for repack in ("now", "no"):
        with _opened(path, replace(settings, repack=repack), n_vocab) as meter:
            seconds.append(meter.seconds(1, repeats=COMPARED))
    repacked, after = seconds
    mapped = statistics.mean((before, after))
    gain = round(mapped / repacked, 3)
    say(
        f"repacked experts: {1 / repacked:.2f} tokens/s, {gain:.2f} times as fast as "
        f"{1 / before:.2f} before and {1 / after:.2f} after"
    )
    return gain, 1 / mapped


def thread_numbers() -> tuple[int, ...]:
    """Return the numbers of threads worth trying: half, all, and one less of the physical cores."""
    cores = physical_cores()
    return tuple(sorted({max(1, cores // 2), max(1, cores - 1), cores}))


def _best_threads(meter: _Meter, numbers: tuple[int, ...], say: Say) -> tuple[int, float]:
    speeds: dict[int, float] = {}
    for n in numbers:
        meter.set_threads(n)
        speeds[n] = 1 / meter.seconds(1)
        say(f"{n} threads: {speeds[n]:.2f} tokens/s")
    best = max(speeds, key=lambda n: speeds[n])
    return best, speeds[best]


def _best_batch(meter: _Meter, say: Say) -> tuple[int, float]:
    """Return the smallest batch that reads a prompt at least 0.97 times as fast as the best."""
    speeds: dict[int, float] = {}
    for n in BATCHES:
        speeds[n] = n / meter.seconds(n, repeats=1)
        say(f"prompt in batches of {n}: {speeds[n]:.2f} tokens/s")
        if speeds[n] < 0.9 * max(speeds.values()):
            break
    best = min(n for n in speeds if speeds[n] >= 0.97 * max(speeds.values()))
    return best, speeds[best]


def _batch_costs(meter: _Meter, say: Say) -> BatchCosts:
    costs = measure_batch_costs(meter.context, depth=64, runs=1)
    sizes = zip(costs.sizes, costs.costs, strict=True)
    say("a batch against one token: " + ", ".join(f"{n}: {cost:.1f}" for n, cost in sizes))
    return costs


class _Meter:
    """A context of which decodes are timed. Tokens differ, so that they choose various experts."""

    def __init__(self, context: LlamaContext, handle: object) -> None:
        self.context = context
        self._handle = handle
        self._position = 0
        self._token = 0
        for _ in range(WARM_UP):
            self._decode(1)

    def set_threads(self, n: int) -> None:
        """Compute on ``n`` threads from now on."""
        lib.llama_set_n_threads(self._handle, n, n)

    def seconds(self, n: int, *, repeats: int = REPEATS) -> float:
        """Return the median time of decoding ``n`` tokens at once."""
        return statistics.median(self._decode(n) for _ in range(repeats))

    def _decode(self, n: int) -> float:
        if self._position + n > N_CTX:
            self.context.truncate(0, 0)
            self._position = 0
        tokens = [self._next_token() for _ in range(n)]
        begin = time.perf_counter()
        self.context.decode([Chunk(0, self._position, tokens, 1)])
        self.context.logits(0)
        self._position += n
        return time.perf_counter() - begin

    def _next_token(self) -> int:
        self._token = (self._token * 7919 + 104729) % min(self.context.n_vocab, 199_000)
        return self._token


@contextmanager
def _opened(path: Path, settings: EngineSettings, n_vocab: int) -> Iterator[_Meter]:
    loaded = load(path, settings, lambda _: None, n_vocab=n_vocab)
    context = LlamaContext(loaded)
    try:
        yield _Meter(context, loaded.context)
    finally:
        context.free()
