"""How long a state of 8,000 tokens takes to come back from disk, in a process of its own.

    PYTHONPATH=.:tests python tests/bench_cache.py FOLDER write    # minutes: decodes the prefixes
    PYTHONPATH=.:tests python tests/bench_cache.py FOLDER read     # seconds, on a quiet machine

A model's name after that leaves the other out.

Two models: the small trained one of the tests, and one with the layers and KV heads, so the states,
of gpt-oss-20b, but few query heads and experts. The figures are in docs/measured.md.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gptoss.converter.convert import convert
from gptoss.runtime.engine.base import Logits
from gptoss.runtime.engine.llama_cpp import LlamaEngine
from gptoss.runtime.engine.prefix_cache import CacheSettings
from gptoss.runtime.engine.settings import EngineSettings
from support.checkpoints import random_checkpoint

PREFIX, NEW, TIMES = 8000, 20, 5
TINY = Path(__file__).resolve().parent / "tiny" / "checkpoint"


def _wide(folder: Path) -> Path:
    """gpt-oss-20b's KV over a narrow model with few query heads."""
    return random_checkpoint(
        folder / "checkpoint", hidden=64, layers=24, heads=8, kv_heads=8, experts=2
    )


MODELS: dict[str, Callable[[Path], Path]] = {"tiny": lambda _: TINY, "20b-shaped": _wide}


def open_engine(folder: Path) -> LlamaEngine:
    cache = CacheSettings(folder=folder / "cache")
    return LlamaEngine(folder / "model.gguf", EngineSettings(n_ctx=16_384), cache=cache)


def ask(engine: LlamaEngine, prompt: list[int]) -> tuple[float, float, float, int]:
    """Seconds to the first token, of these decoding the prompt; CPU seconds in all; and how many
    tokens were reused."""

    def first(logits: Logits) -> int:
        return int(logits.argmax())

    begun, used = time.perf_counter(), time.process_time()
    generation = engine.generate(prompt, first, stop=set(), max_tokens=1, checkpoints=[PREFIX])
    list(generation)
    timings = generation.timings
    seconds, used = time.perf_counter() - begun, time.process_time() - used
    return seconds, timings.prompt_seconds, used, timings.reused_tokens


def main() -> None:
    folder, what, *names = Path(sys.argv[1]), *sys.argv[2:]
    for name, checkpoint in MODELS.items():
        if names and name not in names:
            continue
        here = folder / name
        prefix = [int(it) for it in np.random.default_rng(0).integers(0, 200, PREFIX)]
        if what == "write":
            here.mkdir(parents=True, exist_ok=True)
            convert(checkpoint(here), here / "model.gguf")
            engine = open_engine(here)
            seconds, *_ = ask(engine, [*prefix, 1])
            print(f"{name}: {PREFIX:,} tokens decoded in {seconds:.1f} s", flush=True)
            engine.close()
            continue
        size = sum(it.stat().st_size for it in (here / "cache").iterdir())
        rows = []
        for i in range(TIMES):
            engine = open_engine(here)
            rows.append(ask(engine, [*prefix, *range(i, i + NEW)]))
            engine.close()
        assert all(row[-1] == PREFIX for row in rows), rows
        whole = statistics.median(row[0] for row in rows)
        decoding = statistics.median(row[1] for row in rows)
        print(
            f"{name}: {size / 1e6:.1f} MB; first token after {whole:.3f} s, "
            f"of which {decoding:.3f} s decode {NEW} new tokens; "
            f"{statistics.median(row[2] for row in rows):.3f} CPU s; medians of {TIMES}"
        )


if __name__ == "__main__":
    main()
