"""The figures of README and docs/measured.md, measured side by side in one run.

    make bench                 everything, half an hour and 55 GB of disk below build/bench
    python tests/bench.py --runs 1 --folder DIR --no-documents

A checkpoint of the 20b model's exact shape with random weights is made once. Then, in turns: our
converter, `cp` and `sync` of the file it made, llama.cpp's converter and quantizer; our verify
beside reading. Each is a process of its own; what is compared is the median of its runs, and
ratios are of medians. The text between the bench markers of both documents is then replaced. Linux
only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import bench_drafts
import bench_memory
import numpy as np
from bench_converter import converter_bench, memory_bench, vocabulary_bench
from gguf import GGMLQuantizationType, quants

from gptoss.quant.mxfp4.encoder import encode
from support import peers
from support.timing import BIN, Series, gigabytes, table, timed

assert sys.platform == "linux", "this bench needs Linux"


ROOT = Path(__file__).resolve().parent.parent
README, FIGURES = ROOT / "README.md", ROOT / "docs" / "measured.md"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"


def generation_bench(gguf: Path) -> Iterator[str]:
    """Load the 20b-sized file and generate with it."""
    run = timed(
        (BIN / "gptoss-run", "chat", gguf, "-p", "Hello", "--json", "--ctx", "4096",
         "--max-tokens", "64", "--seed", "1")
    )  # fmt: skip
    summary = json.loads(run.output.splitlines()[-1])
    yield f"load and 64 tokens of the q8_0 file, whole process: {run.wall:.0f} s"
    yield f"peak memory {gigabytes(run.peak_bytes)} (file pages included)"
    timings = summary["timings"]
    yield (
        f"of which: {timings['prompt_tokens']} prompt tokens in {timings['prompt_seconds']:.1f} s, "
        f"then {timings['generated_tokens']} generated in {timings['generate_seconds']:.1f} s"
    )


def drafts_bench(gguf: Path) -> Iterator[str]:
    """Drafts on the 20b-sized file: costs of batches, text that repeats and text that does not."""
    for figure in bench_drafts.figures(gguf, 512):
        yield f"drafts: {figure.what} {figure.value:.3g} {figure.unit}"


def proof_bench(checkpoint: Path, gguf: Path, runs: int) -> list[Series]:
    """Verify beside reading both sides once, in turns; what memory does not hold is on the disk."""
    both = [*sorted(checkpoint.glob("*.safetensors")), gguf]
    read = Series("reading checkpoint and q8_0 file (`cat`)")
    verify = Series("`gptoss-quant verify` (q8_0)")
    for _ in range(runs):
        read.runs.append(timed(("sh", "-c", 'cat "$@" > /dev/null', "cat", *both)))
        verify.runs.append(timed((BIN / "gptoss-quant", "verify", checkpoint, gguf)))
    return [read, verify]


def audit_bench(gguf: Path, runs: int) -> list[Series]:
    """The audit of the 20b-sized file beside reading it once: from the disk, and from memory."""
    read = "sh", "-c", 'cat "$0" > /dev/null', gguf
    audit = BIN / "gptoss-quant", "audit", gguf
    cold = [Series("reading the q8_0 file (`cat`), from disk"),
            Series("`gptoss-quant audit`, from disk")]  # fmt: skip
    warm = [Series("`cat`, from the page cache"), Series("`gptoss-quant audit`, from there")]
    for _ in range(runs):
        for series, command in zip(cold, (read, audit), strict=True):
            drop(gguf)
            series.runs.append(timed(command))
        for series, command in zip(warm, (read, audit), strict=True):
            timed(read)
            series.runs.append(timed(command))
    return [*cold, *warm]


def drop(path: Path) -> None:
    """Take a file out of the page cache. Linux only."""
    if sys.platform == "linux":
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def encoder_bench(runs: int) -> Iterator[str]:
    """Our MXFP4 encoder beside the gguf package's, on the same normal values, in this process."""
    values = np.random.default_rng(0).standard_normal((2880, 2880), np.float32)

    def rate(encode: Callable[[], object]) -> str:
        seconds = []
        for _ in range(runs):
            begin = time.perf_counter()
            encode()
            seconds.append(time.perf_counter() - begin)
        return f"{values.nbytes / statistics.median(seconds) / 1e9:.2f} GB/s"

    ours = rate(lambda: encode(values))
    gguf = rate(lambda: quants.quantize(values, GGMLQuantizationType.MXFP4))
    yield f"MXFP4 encoder, of float32 values, one thread: {ours}"
    yield f"the gguf package's encoder, which has OCP's rule: {gguf}"


def shortened(pairs: Sequence[tuple[Series, Series]]) -> Iterator[str]:
    """README's table: our command, and what it is compared with."""
    yield "| | time | peak memory | for comparison |"
    yield "|---|---|---|---|"
    for ours, other in pairs:
        yield (
            f"| {ours.title} | {ours.wall:.1f} s | {gigabytes(ours.peak_bytes)} "
            f"| {other.title}: {other.wall:.1f} s, {gigabytes(other.peak_bytes)} |"
        )


def replace_figures(document: Path, lines: Sequence[str]) -> None:
    """Put lines between the markers of a document."""
    text = document.read_text("utf-8")
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    document.write_text("\n".join([head + BEGIN, *lines, END + tail]), "utf-8")


def main() -> None:
    """Measure, print, and put the tables into the documents."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-documents", action="store_true")
    options = parser.parse_args()
    folder: Path = options.folder
    checkpoint = folder / "20b"
    if not (checkpoint / "config.json").exists():
        print("making the 20b-sized checkpoint", file=sys.stderr)
        timed(
            (sys.executable, ROOT / "tests" / "support" / "checkpoints.py", "--size", "20b",
             "--tokenizer", peers.tokenizer(), checkpoint),
            env={"PYTHONPATH": str(ROOT / "tests")},
        )  # fmt: skip
    bf16, q8_0, q8 = converter_bench(checkpoint, folder, options.runs)
    proof = proof_bench(checkpoint, q8, options.runs)
    audit = audit_bench(q8, options.runs)
    small = vocabulary_bench(folder, options.runs)
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    machine = f"{os.cpu_count()} cores, {platform.machine()} {platform.system()}"
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    pairs = [(bf16[1], bf16[2]), (q8_0[1], q8_0[2]), (proof[1], proof[0]), (audit[1], audit[0])]
    short = [
        f"A random checkpoint of the 20b model's size ({gigabytes(size)}), {machine}, {day}:",
        "",
        *shortened(pairs),
    ]
    lines = [
        f"Measured {day} on {machine}, Python {platform.python_version()}, medians of "
        f"{options.runs} runs in turns.",
        "",
        f"20b-sized random checkpoint ({gigabytes(size)}):",
        "",
        *table(bf16, bf16[0], size),
        "",
        *table(q8_0, q8_0[0], size),
        "",
        *table(proof, proof[0], 0),
        "",
        *table(audit, audit[0], 0),
        "",
        *table(small, small[0], 0),
        "",
        *bench_memory.memory_rows(q8),
        "",
        *bench_memory.group_rows(q8),
        "",
        *(f"- {line}" for line in memory_bench(options.runs)),
        *(
            f"- {line}"
            for line in (*encoder_bench(options.runs), *generation_bench(q8), *drafts_bench(q8))
        ),
    ]
    print("\n".join(lines))
    if not options.no_documents:
        replace_figures(README, short)
        replace_figures(FIGURES, lines)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
