"""From nothing to the first token of a 20b-sized model in one command, on a machine of 16 GB.

    python tests/bench_first_start.py CHECKPOINT [--limit 16]

The checkpoint is served as the Hub's openai/gpt-oss-20b on loopback. ``gptoss-run chat 20b`` runs
in a memory control group, is killed twice on the way, and then ends; the file is compared with its
source. Then it starts twice more. Needs 26 GB of disk, root, and Linux with cgroups of version 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import bench_memory

from gptoss.quant.verify.verifier import verify
from support.hub_server import HubServer
from support.posix import SIGKILL

assert sys.platform == "linux", "this bench needs Linux"

ONE = ("-p", "Hi", "--max-tokens", "1", "--json", "--no-disk-cache")
KILLED_AT = (0.3, 0.9)
"""Shares of the checkpoint that were downloaded in all when the command is killed."""

COMMAND = "from gptoss.library.cli import main; main()"


class Machine:
    """A person's machine: a folder of models, the Hub, and a control group."""

    def __init__(self, folder: Path, hub: HubServer, group: Path) -> None:
        self._group = group
        self.models = folder / "models"
        self._log = folder / "log"
        self._environment = {
            **os.environ,
            "HOME": str(folder),
            "GPTOSS_MODELS": str(self.models),
            "HF_ENDPOINT": hub.endpoint,
            "HF_HUB_CACHE": str(folder / "cache"),
        }

    def start(self) -> subprocess.Popen[str]:
        def enter() -> None:
            (self._group / "cgroup.procs").write_text(str(os.getpid()))

        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, "chat", "20b", "--yes", *ONE],
            env=self._environment, preexec_fn=enter, text=True,
            stdout=subprocess.PIPE, stderr=self._log.open("a"),
        )  # fmt: skip

    def first_token(self) -> tuple[float, float]:
        """Run the command to its end: seconds until it begins to read the prompt, and until the
        first token."""
        begun = time.perf_counter()
        process = self.start()
        assert process.stdout is not None
        reading = 0.0
        for line in process.stdout:
            if not reading and json.loads(line)["event"] == "prompt_progress":
                reading = time.perf_counter() - begun
        if process.wait() not in (0, 1):  # 1: the reply was cut, by --max-tokens
            said = self._log.read_text("utf-8", "replace")[-2000:]
            raise SystemExit(f"exit code {process.returncode}: {said}")
        return reading, time.perf_counter() - begun


def rows(checkpoint: Path, limit: int) -> Iterator[str]:
    """Two kills, the first answer, the comparison, the second start."""
    weights = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    with (
        tempfile.TemporaryDirectory(dir=checkpoint.parent) as folder,
        HubServer({"openai/gpt-oss-20b": checkpoint}) as hub,
        bench_memory.control_group(limit) as group,
    ):
        machine = Machine(Path(folder), hub, group)
        for share in KILLED_AT:
            process = machine.start()
            while hub.sent < share * weights:
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(SIGKILL)
            process.wait()
            there = [*machine.models.glob("*/*/*.gguf"), *machine.models.glob("*/*/model.json")]
            yield f"killed after {hub.sent / 1e9:.1f} GB; files at their place: {len(there)}"
        _, whole = machine.first_token()
        yield f"third start, to the first token: {whole:.0f} s; sent in all {hub.sent / 1e9:.1f} GB"
        peak = int((group / "memory.max_usage_in_bytes").read_text())
        yield f"peak of the group, page cache included: {peak / 1e9:.1f} of {limit / 1e9:.1f} GB"
        [gguf] = machine.models.glob("*/*/*.gguf")
        yield f"proven equal to its source: {verify(checkpoint, gguf).proven}"
        hub.forget()
        for _ in range(2):
            reading, first = machine.first_token()
            yield f"second start: prefill begins after {reading:.1f} s, first token {first:.1f} s"
        yield f"asked of the Hub by these: {len(hub.requests)} requests"


def main() -> None:
    """Print each finding as soon as it is known."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--limit", type=int, default=16, help="GiB of the control group")
    asked = parser.parse_args()
    for row in rows(asked.checkpoint, asked.limit * 2**30):
        print(row, flush=True)


if __name__ == "__main__":
    main()
