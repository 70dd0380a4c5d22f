"""The figures of README's table, measured side by side in one run.

    make bench                 everything, about half an hour and 45 GB of disk below build/bench
    python tests/bench.py --runs 1 --folder DIR --no-readme

A checkpoint of the 20b model's exact shape with random weights is made once. Then, in turns: `cp`
and `sync` of a file of the same size, our converter, our verify, llama.cpp's converter. Each is
a process of its own; what is compared is the median of its runs, and ratios are of medians. The
table between README's bench markers is then replaced. POSIX only (`os.wait4`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, quants

from gptoss.quant.encoder import Rule, encode
from support import peers
from support.checkpoints import random_checkpoint

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Run:
    """One process, by the operating system's own account."""

    wall: float
    cpu: float
    peak_bytes: int
    output: str


@dataclass
class Series:
    """What is run, and how it went."""

    title: str
    runs: list[Run] = field(default_factory=list)

    @property
    def wall(self) -> float:
        """Median seconds."""
        return statistics.median(run.wall for run in self.runs)

    @property
    def cpu(self) -> float:
        """Median processor seconds, user and system."""
        return statistics.median(run.cpu for run in self.runs)

    @property
    def peak_bytes(self) -> int:
        """Largest resident size of any run."""
        return max(run.peak_bytes for run in self.runs)


def timed(command: Sequence[str | Path], env: dict[str, str] | None = None) -> Run:
    """Run a command to its end; a failure ends the benchmark."""
    begin = time.monotonic()
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        env=os.environ | (env or {}),
        text=True,
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[0]} ended with {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit, output)


def converter_bench(checkpoint: Path, folder: Path, runs: int) -> tuple[list[Series], Path]:
    """Conversions of the 20b-sized checkpoint in turns; leaves our q8_0 file behind."""
    ours, copy, theirs = (folder / f"{name}.gguf" for name in ("bf16", "copy", "theirs"))
    q8 = folder / "q8_0.gguf"
    cp = Series("`cp` + `sync` of the bf16 file")
    convert_bf16 = Series("`gptoss-convert --dense bf16`")
    convert_q8 = Series("`gptoss-convert` (q8_0)")
    verify = Series("`gptoss-quant verify` (bf16)")
    llama = Series("llama.cpp's converter, bf16")
    for turn in range(runs):
        print(f"turn {turn + 1} of {runs}", file=sys.stderr)
        convert = (BIN / "gptoss-convert", checkpoint, "--dense")
        convert_bf16.runs.append(timed((*convert, "bf16", "-o", ours)))
        cp.runs.append(timed(("sh", "-c", 'cp "$0" "$1" && sync "$1"', ours, copy)))
        copy.unlink()
        verify.runs.append(timed((BIN / "gptoss-quant", "verify", checkpoint, ours)))
        ours.unlink()
        convert_q8.runs.append(timed((*convert, "q8_0", "-o", q8)))
        llama.runs.append(llama_converter(checkpoint, theirs))
        theirs.unlink()
    return [cp, convert_bf16, convert_q8, verify, llama], q8


def llama_converter(checkpoint: Path, out: Path) -> Run:
    """llama.cpp's own converter, with the gguf package it carries."""
    source = peers.llama_cpp()
    return timed(
        (sys.executable, source / "convert_hf_to_gguf.py", checkpoint, "--outfile", out,
         "--outtype", "bf16"),
        env={"PYTHONPATH": str(source / "gguf-py")},
    )  # fmt: skip


def vocabulary_bench(folder: Path, runs: int) -> list[Series]:
    """A tiny checkpoint with the full vocabulary: what a conversion costs at the least."""
    checkpoint = random_checkpoint(
        folder / "vocabulary", layers=2, vocab=201088, tokenizer_folder=peers.tokenizer()
    )
    out = folder / "vocabulary.gguf"
    ours = Series("full vocabulary, tiny weights: `gptoss-convert`")
    llama = Series("full vocabulary, tiny weights: llama.cpp's converter")
    for _ in range(runs):
        ours.runs.append(timed((BIN / "gptoss-convert", checkpoint, "--dense", "bf16", "-o", out)))
        out.unlink()
        llama.runs.append(llama_converter(checkpoint, out))
        out.unlink()
    shutil.rmtree(checkpoint)
    return [ours, llama]


def generation_bench(gguf: Path) -> Iterator[str]:
    """Load the 20b-sized file and generate with it."""
    run = timed(
        (BIN / "gptoss-run", "chat", gguf, "-p", "Hello", "--json", "--ctx", "4096",
         "--max-tokens", "64", "--seed", "1")
    )  # fmt: skip
    summary = json.loads(run.output.splitlines()[-1])
    yield f"load and 64 tokens of the q8_0 file, whole process: {run.wall:.0f} s"
    yield f"peak memory {gigabytes(run.peak_bytes)} (file pages included)"
    yield f"as the program itself says: `{json.dumps(summary)}`"


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
    """The audit of the 20b-sized file beside reading it once, from the page cache both."""
    read = Series("reading the q8_0 file (`cat`)")
    audit = Series("`gptoss-quant audit` (q8_0)")
    for _ in range(runs):
        read.runs.append(timed(("sh", "-c", 'cat "$0" > /dev/null', gguf)))
        audit.runs.append(timed((BIN / "gptoss-quant", "audit", gguf)))
    return [read, audit]


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

    two = rate(lambda: encode(values, workers=2))
    one, ocp = rate(lambda: encode(values)), rate(lambda: encode(values, rule=Rule.OCP))
    gguf = rate(lambda: quants.quantize(values, GGMLQuantizationType.MXFP4))
    yield f"MXFP4 encoder, of float32 values: {one}, with two threads {two}; OCP's rule {ocp}"
    yield f"the gguf package's encoder, which has OCP's rule: {gguf}"


def gigabytes(n: int) -> str:
    """Decimal gigabytes, two digits."""
    return f"{n / 1e9:.2f} GB"


def table(series: Sequence[Series], baseline: Series, size: int) -> list[str]:
    """Markdown rows, each with its ratio to the baseline."""
    rows = [
        f"| | wall | ratio to {baseline.title} | CPU | peak memory |",
        "|---|---|---|---|---|",
    ]
    for one in series:
        rate = f", {one.cpu / (size / 1e9):.2f} s/GB" if size else ""
        rows.append(
            f"| {one.title} | {one.wall:.1f} s | {one.wall / baseline.wall:.2f} "
            f"| {one.cpu:.1f} s{rate} | {gigabytes(one.peak_bytes)} |"
        )
    return rows


def write_readme(lines: Sequence[str]) -> None:
    """Put the table between the markers."""
    text = README.read_text("utf-8")
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    README.write_text("\n".join([head + BEGIN, *lines, END + tail]), "utf-8")


def main() -> None:
    """Measure, print, and put the table into README."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-readme", action="store_true")
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
    large, q8 = converter_bench(checkpoint, folder, options.runs)
    proof = proof_bench(checkpoint, q8, options.runs)
    audit = audit_bench(q8, options.runs)
    small = vocabulary_bench(folder, options.runs)
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    lines = [
        f"Measured {datetime.now(UTC):%Y-%m-%d} with `make bench` on {os.cpu_count()} cores "
        f"({platform.machine()}, {platform.system()}), Python {platform.python_version()}, "
        f"medians of {options.runs} runs in turns.",
        "",
        f"20b-sized random checkpoint ({gigabytes(size)}):",
        "",
        *table(large, large[0], size),
        "",
        *table(proof, proof[0], 0),
        "",
        *table(audit, audit[0], 0),
        "",
        *table(small, small[0], 0),
        "",
        *(f"- {line}" for line in (*encoder_bench(options.runs), *generation_bench(q8))),
    ]
    print("\n".join(lines))
    if not options.no_readme:
        write_readme(lines)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
