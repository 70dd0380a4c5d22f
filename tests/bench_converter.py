"""The converter beside `cp` and beside llama.cpp; part of tests/bench.py."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from support import peers
from support.checkpoints import random_checkpoint
from support.timing import BIN, Run, Series, gigabytes, timed

MEMORY_DISK = Path("/dev/shm")  # noqa: S108 - a file system in memory, where there is one
QUANTIZE = Path(__file__).with_name("oracle") / "run_llama_cpp_quantize.py"


def converter_bench(
    checkpoint: Path, folder: Path, runs: int
) -> tuple[list[Series], list[Series], Path]:
    """Conversions of the 20b-sized checkpoint in turns, to bf16 and to q8_0.

    Each list begins with `cp` and `sync` of the very file; our q8_0 file is left behind.
    """
    bf16, q8_0, copy, theirs = (
        folder / f"{name}.gguf" for name in ("bf16", "q8_0", "copy", "theirs")
    )
    cp_bf16, cp_q8 = (
        Series("`cp` + `sync` of the bf16 file"),
        Series("`cp` + `sync` of the q8_0 file"),
    )
    ours_bf16, ours_q8 = Series("`gptoss-convert --dense bf16`"), Series("`gptoss-convert` (q8_0)")
    llama_bf16 = Series("llama.cpp's converter, bf16")
    llama_q8 = Series("llama.cpp's converter, then its quantizer")
    shards = sorted(checkpoint.glob("*.safetensors"))
    for turn in range(runs):
        print(f"turn {turn + 1} of {runs}", file=sys.stderr)
        for ours, cp, dense, out, other in (
            (ours_q8, cp_q8, "q8_0", q8_0, bf16), (ours_bf16, cp_bf16, "bf16", bf16, q8_0),
        ):  # fmt: skip
            out.unlink(missing_ok=True)
            warm(other, *shards)
            ours.runs.append(
                timed((BIN / "gptoss-convert", checkpoint, "--dense", dense, "-o", out))
            )
            warm(*shards, out)
            cp.runs.append(timed(("sh", "-c", 'cp "$0" "$1" && sync "$1"', out, copy)))
            copy.unlink()
        bf16.unlink()
        warm(q8_0, *shards)
        converted = llama_converter(checkpoint, theirs)
        quantized = timed((sys.executable, QUANTIZE, theirs, copy))
        copy.unlink()
        theirs.replace(bf16)  # as large as ours: what fills the memory next
        llama_bf16.runs.append(converted)
        llama_q8.runs.append(converted + quantized)
    return [cp_bf16, ours_bf16, llama_bf16], [cp_q8, ours_q8, llama_q8], q8_0


def warm(*files: Path) -> None:
    """Read files, the last of which are to be in the page cache, to no purpose but that.

    All get the same start by it: a virtual machine has given its free memory back to the host, and
    who writes gigabytes into that waits for it as long again as for the disk. So memory is full.
    """
    timed(("sh", "-c", 'cat "$@" > /dev/null', "cat", *(path for path in files if path.exists())))


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


def memory_bench(runs: int) -> Iterator[str]:
    """Without a disk: four layers of the 20b model's shape, on a file system in memory."""
    if not MEMORY_DISK.is_dir() or shutil.disk_usage(MEMORY_DISK).free < 8e9:
        yield "on a file system in memory: not measured, there is none here with 8 GB of room"
        return
    with tempfile.TemporaryDirectory(dir=MEMORY_DISK) as name:
        folder = Path(name)
        checkpoint = random_checkpoint(
            folder / "source", hidden=2880, layers=4, experts=32, top_k=4, heads=64, kv_heads=8,
            vocab=20_000,
        )  # fmt: skip
        out, copy = folder / "out.gguf", folder / "copy.gguf"
        for dense in ("bf16", "q8_0"):
            ours, cp = Series(dense), Series("cp")
            for _ in range(runs):
                ours.runs.append(
                    timed((BIN / "gptoss-convert", checkpoint, "--dense", dense, "-o", out))
                )
                size = out.stat().st_size
                cp.runs.append(timed(("cp", out, copy)))
                copy.unlink()
                out.unlink()
            yield (
                f"on a file system in memory, dense {dense}, {gigabytes(size)}: "
                f"{size / ours.wall / 1e9:.2f} GB/s, {ours.cpu / size * 1e9:.2f} CPU s/GB; "
                f"`cp`: {size / cp.wall / 1e9:.2f} GB/s, {cp.cpu / size * 1e9:.2f} CPU s/GB"
            )
