"""The engine on the 20b-sized file: peak memory beside the plan, a control group of 13 GiB, speed
beside a bare loop, and the time to the first token. Linux only.

    python tests/bench_memory.py FILE.gguf memory|group|loop [--rounds 3]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

assert sys.platform == "linux", "this bench needs Linux"


CONTEXTS = (4096, 32768, 131072)
LIMIT = 13 * 2**30
N_PROMPT = 160
"""Tokens of which each chooses 4 of 32 experts: all experts are read."""
N_DECODE = 32


def run_child(*arguments: object, group: Path | None = None) -> Any:
    """Run this file's ``child`` in a process of its own, in a control group if one is given."""

    def enter() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    done = subprocess.run(
        [sys.executable, __file__, "child", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=enter,
    )
    if done.returncode != 0:
        raise SystemExit(f"{arguments}: exit code {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def child(path: Path, n_ctx: int, kv_type: str, repack: str, n_decode: int) -> None:
    """Open the model as a program does, read a prompt, generate, and print what it took."""
    begin = time.perf_counter()
    import gptoss

    options: dict[str, Any] = {"n_ctx": n_ctx, "repack": repack}
    if kv_type != "auto":
        options["kv_type"] = kv_type
    model = gptoss.open(path, parallel=1, **options)
    loaded = time.perf_counter() - begin
    prompt = [(i * 7919 + 11) % 199_000 for i in range(N_PROMPT)]

    def rare(logits: Any) -> int:
        return int(logits.argmax())

    first = time.perf_counter()
    generation = model.engine.generate(prompt, rare, stop=set(), max_tokens=n_decode)
    next(iter(generation))
    prefill = time.perf_counter() - first
    next(generation)
    faults, times = resource.getrusage(resource.RUSAGE_SELF).ru_majflt, []
    read = _read_bytes()
    for _ in range(n_decode - 2):
        before = time.perf_counter()
        next(generation)
        times.append(time.perf_counter() - before)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults
    plan = model.plan
    assert plan is not None
    _fill_contexts()
    print(
        json.dumps(
            {
                "loaded": loaded,
                "prefill": prefill,
                "prefill_rate": N_PROMPT / prefill,
                "decode": 1 / statistics.median(times),
                "faults": faults,
                "read": _read_bytes() - read,
                "peak": _status("VmHWM"),
                "anonymous": _status("RssAnon"),
                "needed": plan.needed,
                "kv_type": plan.settings.kv_type,
                "repack": plan.settings.repack,
                "verdict": plan.verdict.value,
            }
        )
    )
    model.close()


def loop_child(path: Path, repack: str, rounds: int) -> None:
    """Print what a token takes in a chat, and in a loop of ``llama_decode`` over a second context
    of the same model, in turns: so both read the same weights of the same memory.
    """
    import llama_cpp.llama_cpp as lib
    from bench_engine import token_seconds

    import gptoss
    from gptoss.runtime.engine.loader import context_params

    options: dict[str, Any] = {"n_ctx": 4096, "kv_type": "f16", "repack": repack}
    model = gptoss.open(path, parallel=1, **options)
    chat = model.chat(sampling=gptoss.Sampling(temperature=1), seed=1, max_tokens=N_DECODE)
    loaded = model.engine._scheduler._context._loaded  # type: ignore[attr-defined]
    context = lib.llama_init_from_model(loaded.model, context_params(loaded.settings))

    def loop_token() -> float:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        prompt = (lib.llama_token * N_PROMPT)(*((i * 7919 + 11) % 199_000 for i in range(N_PROMPT)))
        lib.llama_decode(context, lib.llama_batch_get_one(prompt, N_PROMPT))
        begin = time.perf_counter()
        for i in range(N_DECODE):
            token = (lib.llama_token * 1)((i * 104_729 + 5) % 199_000)
            lib.llama_decode(context, lib.llama_batch_get_one(token, 1))
            lib.llama_get_logits_ith(context, -1)
        return (time.perf_counter() - begin) / N_DECODE

    pairs = [(loop_token(), token_seconds(chat, N_DECODE)) for _ in range(rounds + 1)][1:]
    lib.llama_free(context)
    model.close()
    print(json.dumps(pairs))


def _fill_contexts() -> None:
    """Use all of the memory that is reserved, as full contexts do: the plan counts all of it."""
    madvise, populate_write = ctypes.CDLL(None).madvise, 23
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, access, *_, inode = line.split()[:5]
        start, end = (int(it, 16) for it in place.split("-"))
        if access == "rw-p" and inode == "0" and end - start >= 16 << 20:
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), populate_write)


def _read_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("read_bytes")))


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name)))


@contextmanager
def control_group(limit: int) -> Iterator[Path]:
    """A memory control group (version 1) with a limit; needs root."""
    folder = Path("/sys/fs/cgroup/memory/gptoss-bench")
    folder.mkdir()
    try:
        (folder / "memory.limit_in_bytes").write_text(str(limit))
        yield folder
    finally:
        folder.rmdir()


def memory_rows(path: Path) -> Iterator[str]:
    """Peak memory of the process beside the plan's."""
    yield "| context | peak memory | the plan's | difference |"
    yield "|---|---|---|---|"
    for n_ctx in CONTEXTS:
        it = run_child(path, n_ctx, "f16", "no", 8)
        off = it["needed"] / it["peak"] - 1
        yield f"| {n_ctx:,} | {_gb(it['peak'])} | {_gb(it['needed'])} | {off:+.1%} |"
    yield ""
    yield "Peak memory of the process, pages of the file included, once all memory that is reserved"
    yield "is in use, as when the context is full; one run each. The plan's constant for the"
    yield "process itself is measured too; only the differences between contexts are predictions."


def group_rows(path: Path) -> Iterator[str]:
    """What runs in a control group of 13 GiB, and what it reads from the disk while decoding.

    Nothing without root, or where control groups are not of version 1.
    """
    if not os.access("/sys/fs/cgroup/memory", os.W_OK):
        return
    yield "| context in 13 GiB | keys and values | tokens/s | read from disk per token |"
    yield "|---|---|---|---|"
    for n_ctx, kv_type in ((32768, "f16"), (131072, "auto")):
        drop(path)  # pages that are cached already would not count in the group
        with control_group(LIMIT) as group:
            it = run_child(path, n_ctx, kv_type, "no", 40, group=group)
        read = it["read"] / 38 / 1e6
        yield f"| {n_ctx:,} | {it['kv_type']} | {it['decode']:.2f} | {read:.2f} MB |"


def loop_rows(path: Path, rounds: int) -> Iterator[str]:
    """A chat with constraint and parsing beside a bare loop, as mapped and as repacked."""
    yield "| | a bare loop, ms a token | a chat, more |"
    yield "|---|---|---|"
    for repack in ("no", "now"):
        pairs = run_child("loop", path, repack, rounds)
        bare = statistics.median(loop for loop, _ in pairs)
        more = statistics.median(chat - loop for loop, chat in pairs)
        yield f"| repack {repack} | {bare * 1e3:.1f} | {more * 1e3:+.2f} ms ({more / bare:+.1%}) |"


def drop(path: Path) -> None:
    """Take a file out of the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _gb(n: int) -> str:
    return f"{n / 1e9:.2f} GB"


def main() -> None:
    """Measure what was asked for, or run as a child."""
    if sys.argv[1:3] == ["child", "loop"]:
        loop_child(Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
        return
    if sys.argv[1] == "child":
        path, n_ctx, kv_type, repack, n_decode = sys.argv[2:]
        child(Path(path), int(n_ctx), kv_type, repack, int(n_decode))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf", type=Path)
    parser.add_argument("what", choices=("memory", "group", "loop"))
    parser.add_argument("--rounds", type=int, default=3, help="of loop")
    asked = parser.parse_args()
    rows = {
        "memory": lambda: memory_rows(asked.gguf),
        "group": lambda: group_rows(asked.gguf),
        "loop": lambda: loop_rows(asked.gguf, asked.rounds),
    }
    for row in rows[asked.what]():
        print(row, flush=True)


if __name__ == "__main__":
    main()
