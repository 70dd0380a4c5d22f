"""What drafts by prompt lookup gain on text that repeats, and lose on text that does not.

    python tests/bench_drafts.py MODEL.gguf [--tokens 256]

The cost of batches is measured first. Then a reply is forced, so that a model of random weights
does: the text of the prompt with one change, and a text that does not repeat; each without drafts,
with, with, without, so that a machine that becomes slower or faster meanwhile favours neither.
Medians count. Exit code 1 when a figure is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
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


def rate(engine: LlamaEngine, prompt: Sequence[int], reply: Sequence[int]) -> float:
    """Tokens a second of a forced reply; the sampler's work is done as well."""
    tokens, random = iter(reply), RandomSampler(Sampling(), seed=1)
    times: list[float] = []

    def sample(logits: Logits) -> int:
        random(logits)
        times.append(time.perf_counter())
        return next(tokens)

    n = len(reply)
    for _ in engine.generate(prompt, sample, stop=set(), max_tokens=n, checkpoints=[len(prompt)]):
        pass
    return (n - 1) / (times[-1] - times[0])


def figures(gguf: Path, n: int) -> Iterator[Figure]:
    """Costs of batches, then the two texts."""
    engine = LlamaEngine(gguf, EngineSettings(n_ctx=4 * n + 1024, draft_costs=UNMEASURED))
    scheduler = engine._scheduler
    costs = measure_batch_costs(scheduler._context)
    for size, cost in zip(costs.sizes, costs.costs, strict=True):
        yield Figure(f"a batch of {size} tokens", cost, "tokens", size * 2)
    rng = np.random.default_rng(0)
    file, other = (rng.integers(0, 199_000 % scheduler._context.n_vocab, n).tolist() for _ in "ab")
    changed = [*file[: n // 2], 1, 2, 3, *file[n // 2 + 3 :]]
    for what, reply, bound in ("repeats", changed, 1.3), ("does not repeat", other, 0.97):
        rates: dict[bool, list[float]] = {False: [], True: []}
        for drafts in (False, True, True, False):
            scheduler._draft_costs = costs if drafts else None
            rates[drafts].append(rate(engine, file, reply))
        plain = statistics.median(rates[False])
        ratio = statistics.median(rates[True]) / plain
        yield Figure(f"text that {what}, without drafts", plain, "tokens/s", 1e9)
        yield Figure("... with drafts, times as fast", ratio, "", bound, at_least=True)
    engine.close()


def main() -> int:
    """Print each figure as soon as it is known."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=256)
    options = parser.parse_args()
    kept = True
    for figure in figures(options.model, options.tokens):
        print(figure, flush=True)
        kept &= figure.kept
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
