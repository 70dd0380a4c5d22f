"""Decode and prefill beside llama-bench, in slices of a few seconds.

    python tests/bench_slices.py FILE.gguf [--repack now|no] [--llama-bench PATH]

A machine that is shared becomes faster and slower by tens of percent within minutes, so two runs
one after the other compare moments, not programs. Here both programs hold their model at the same
time and take turns: one is stopped (SIGSTOP) while the other works. llama-bench's samples that were
cut by a stop are left out, and so are our first ones of each slice, for which caches are as cold.
Both models must fit into memory at once: repacked experts are copies. Medians count. Exit code 1
when a figure is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_harmony import Figure

assert sys.platform != "win32", "this bench needs signals that stop a program"


@dataclass(frozen=True)
class Kind:
    """What is compared: ``n`` tokens a sample, ``samples`` by llama-bench, each program works for
    ``seconds`` before the other one does, which must be longer than some samples."""

    n: int
    samples: int
    seconds: float


N_PROMPT = 64
"""Tokens of which each chooses 4 of 32 experts: nearly all experts are read."""

KINDS = {"decode": Kind(8, 100, 5), "prefill": Kind(N_PROMPT, 60, 8)}


def child(path: Path, repack: str) -> None:
    """For each line "prefill" or "decode", print the seconds a token of samples until the slice
    is over."""
    import gptoss

    options: dict[str, Any] = {"n_ctx": 4096, "repack": repack}
    model = gptoss.open(path, parallel=1, **options)
    print(json.dumps("ready"), flush=True)
    taken = 0

    def prompt() -> list[int]:
        nonlocal taken
        taken += 1
        return [(i * 7919 + taken * 104729) % 199_000 for i in range(N_PROMPT)]

    def draw(logits: Any) -> int:
        return int(logits.argmax() * 31 + 17) % 199_000

    for line in sys.stdin:
        kind, found = KINDS[line.strip()], list[float]()
        end = time.perf_counter() + kind.seconds
        if line == "prefill\n":
            while time.perf_counter() < end:
                begun = time.perf_counter()
                for _ in model.engine.generate(prompt(), draw, stop=set(), max_tokens=1):
                    found.append((time.perf_counter() - begun) / N_PROMPT)
        else:
            generation = model.engine.generate(
                prompt(), draw, stop=set(), max_tokens=4000 - N_PROMPT
            )
            times = [next(generation) and time.perf_counter()]
            end = time.perf_counter() + kind.seconds
            while time.perf_counter() < end:
                next(generation)
                times.append(time.perf_counter())
            generation.close()
            found = [
                (times[i + kind.n] - times[i]) / kind.n
                for i in range(0, len(times) - kind.n, kind.n)
            ]
        print(json.dumps(found[1:]), flush=True)


class Ours:
    """The engine in a process of its own."""

    def __init__(self, path: Path, repack: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "child", str(path), "--repack", repack],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def slice(self, what: str) -> list[float]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        found: list[float] = self._read()
        return found

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compared(
    what: str, path: Path, repack: str, llama_bench: Path, ours: Ours
) -> tuple[list[float], list[float]]:
    """Seconds a token of each sample, ours and llama-bench's."""
    kind = KINDS[what]
    test = {"decode": ("-p", 0, "-n", kind.n, "-d", N_PROMPT), "prefill": ("-p", kind.n, "-n", 0)}
    theirs = subprocess.Popen(
        [llama_bench, "-m", path, "-o", "json", "-r", str(kind.samples),
         "--repack", "1" if repack == "now" else "0", *map(str, test[what])],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    mine: list[float] = []
    while theirs.poll() is None:
        time.sleep(kind.seconds)
        os.kill(theirs.pid, signal.SIGSTOP)
        mine += ours.slice(what)
        os.kill(theirs.pid, signal.SIGCONT)
    assert theirs.stdout is not None
    (row,) = json.load(theirs.stdout)
    return mine, [ns / 1e9 / kind.n for ns in row["samples_ns"]]


def uncut(times: list[float]) -> list[float]:
    """What is left of samples without those that took half as long again as the median."""
    return [it for it in times if it < 1.5 * statistics.median(times)]


def figures(path: Path, repack: str, llama_bench: Path) -> Iterator[Figure]:
    ours = Ours(path, repack)
    for what in KINDS:
        mine, theirs = compared(what, path, repack, llama_bench, ours)
        mine, theirs = uncut(mine), uncut(theirs)
        for who, times in ("ours", mine), ("llama-bench", theirs):
            low, middle, high = statistics.quantiles([1 / it for it in times], n=4)
            print(
                f"{what}, {who}: {len(times)} samples, median {middle:.2f} tokens/s, "
                f"the middle half {low:.2f} to {high:.2f}"
            )
        ratio = statistics.median(theirs) / statistics.median(mine)
        yield Figure(f"{what}, times as fast as llama-bench", ratio, "", 0.97, at_least=True)
    ours.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--repack", choices=("now", "no"), default="now")
    parser.add_argument("--llama-bench", type=Path, default=Path("llama-bench"))
    asked = parser.parse_args()
    if asked.what == "child":
        child(asked.gguf, asked.repack)
        return 0
    kept = True
    for figure in figures(asked.gguf, asked.repack, asked.llama_bench):
        print(figure, flush=True)
        kept &= figure.kept
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
