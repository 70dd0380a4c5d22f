"""What drafts by prompt lookup gain on text that repeats, and lose on text that does not.

    python tests/bench_drafts.py MODEL.gguf [--tokens 512]

The cost of batches is measured first. Then a reply is forced, so that a model of random weights
does. The text of the prompt with one change: without drafts, with, with, without, so that a machine
that becomes slower or faster meanwhile favours neither; medians count. A text that does not repeat:
drafts are turned on and off every few tokens of one reply, which is exact as no batch spans a turn.
Exit code 1 when a figure is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from bench_harmony import Figure
from gptoss.runtime.engine.base import Logits
from gptoss.runtime.engine.drafts import BatchCosts, measure_batch_costs
from gptoss.runtime.engine.llama_cpp import LlamaEngine
from gptoss.runtime.engine.settings import EngineSettings
from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.sampling.sampler import RandomSampler

UNMEASURED = BatchCosts((1, 2), (1, 2))


def times(
    engine: LlamaEngine, prompt: Sequence[int], reply: Sequence[int], drawn: Callable[[int], None]
) -> list[float]:
    """When each token of a forced reply was drawn, in seconds; the sampler's work is done as well.

    ``drawn`` is called with the count of tokens after each.
    """
    random = RandomSampler(Sampling(), seed=1)
    taken: list[float] = []

    def sample(logits: Logits) -> int:
        random(logits)
        taken.append(time.perf_counter())
        drawn(len(taken))
        return reply[len(taken) - 1]

    n = len(reply)
    for _ in engine.generate(prompt, sample, stop=set(), max_tokens=n, checkpoints=[len(prompt)]):
        pass
    return taken


class Bench:
    """An engine whose drafts can be turned on and off."""

    def __init__(self, gguf: Path, n: int) -> None:
        settings = EngineSettings(n_ctx=4 * n + 1024, draft_costs=UNMEASURED)
        self.engine = LlamaEngine(gguf, settings)
        self._scheduler = self.engine._scheduler
        self.costs = measure_batch_costs(self._scheduler._context)
        rng = np.random.default_rng(0)
        vocabulary = min(199_000, self._scheduler._context.n_vocab)
        self.file, self.other = (rng.integers(0, vocabulary, n).tolist() for _ in "ab")

    def turn(self, on: bool) -> None:
        self._scheduler._draft_costs = self.costs if on else None

    def rates(self) -> tuple[float, float]:
        """Tokens a second of a reply that repeats the prompt, with one change: without and with
        drafts."""
        n = len(self.file)
        changed = [*self.file[: n // 2], 1, 2, 3, *self.file[n // 2 + 3 :]]
        found: dict[bool, list[float]] = {False: [], True: []}
        for on in (False, True, True, False):
            self.turn(on)
            taken = times(self.engine, self.file, changed, lambda _: None)
            found[on].append((n - 1) / (taken[-1] - taken[0]))
        return statistics.median(found[False]), statistics.median(found[True])

    def paired_rates(self) -> tuple[float, float]:
        """Tokens a second of a reply that does not repeat: without and with drafts, by the mean
        of the middle half of the tokens' times, as a machine's other work makes some slow."""
        on_at = [(i // 8) % 4 in (1, 2) for i in range(len(self.other) + 1)]
        self.turn(on_at[1])
        taken = times(self.engine, self.file, self.other, lambda i: self.turn(on_at[i]))
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for i in range(1, len(taken)):  # decided after the token before it was drawn
            seconds[on_at[i]].append(taken[i] - taken[i - 1])
        return middle_rate(seconds[False]), middle_rate(seconds[True])


def middle_rate(seconds: list[float]) -> float:
    quarter = len(seconds) // 4
    return 1 / statistics.fmean(sorted(seconds)[quarter : len(seconds) - quarter])


def figures(gguf: Path, n: int) -> Iterator[Figure]:
    """Costs of batches, then the two texts."""
    bench = Bench(gguf, n)
    for size, cost in zip(bench.costs.sizes, bench.costs.costs, strict=True):
        yield Figure(f"a batch of {size} tokens", cost, "tokens", size * 2)
    for what, bound, measured in (
        ("repeats", 1.3, bench.rates),
        ("does not repeat", 0.97, bench.paired_rates),
    ):
        plain, drafted = measured()
        yield Figure(f"text that {what}, without drafts", plain, "tokens/s", 1e9)
        yield Figure("... with drafts, times as fast", drafted / plain, "", bound, at_least=True)
    bench.engine.close()


def main() -> int:
    """Print each figure as soon as it is known."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=512)
    options = parser.parse_args()
    kept = True
    for figure in figures(options.model, options.tokens):
        print(figure, flush=True)
        kept &= figure.kept
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
