"""--plan: exact where it can be, near where it estimates, and nothing is touched."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptoss.converter.convert import convert, plan
from gptoss.converter.estimate import estimate
from gptoss.formats.byte_source import FileSource
from gptoss.formats.gguf import GgufFile
from support import ggufs
from support.checkpoints import random_checkpoint
from support.commands import Command
from support.hub_server import REPOSITORY, HubServer
from support.peak_memory import peak_memory


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(
        tmp_path_factory.mktemp("source") / "model", shards=2, chat_template="{{ messages }}"
    )


@pytest.fixture
def said(run: Command) -> Callable[..., str]:
    """What the command prints when all is well."""

    def said(*arguments: object) -> str:
        done = run(*arguments)
        assert (done.code, done.err) == (0, "")
        return done.out

    return said


def test_the_plan_is_what_is_done(
    checkpoint: Path,
    tmp_path: Path,
    said: Callable[..., str],
) -> None:
    out = tmp_path / "m.gguf"
    options = ("--dense", "bf16", "--type", "output=q5_0")
    listed = said(checkpoint, "-o", out, "--plan", "--json", *options)
    found = json.loads(listed)
    assert list(tmp_path.iterdir()) == []
    done = convert(checkpoint, out, dense="bf16", types={"output": "q5_0"})
    made = json.loads(done.manifest.read_text())
    for entry in made["tensors"]:
        del entry["sha256"]
    assert found["tensors"] == made["tensors"]
    assert found["dense"] == made["dense"]
    tensors = GgufFile.open(out).tensors.values()
    assert found["tensor_bytes"] == sum(tensor.nbytes for tensor in tensors)
    assert abs(found["bytes"] - done.nbytes) < 100_000
    assert found["disk_free"] > 0


def test_for_people(checkpoint: Path, said: Callable[..., str]) -> None:
    """The summary comes first; the tensors are listed on request."""
    short = said(checkpoint, "--plan").splitlines()
    assert short[0].startswith("41 tensors, ")
    assert [line.split(":")[0] for line in short[1:]] == ["disk", "memory"]
    lines = said(checkpoint, "--plan", "--verbose").splitlines()
    assert lines[:4] == [*short, ""]
    rows = lines[4:]
    assert len(rows) == 41
    [row] = [line for line in rows if line.startswith("blk.1.ffn_up_exps.weight ")]
    for text in ("MXFP4", "64 × 64 × 4", "8,704", "MXFP4 repack, odd rows",
                 "model.layers.1.mlp.experts.gate_up_proj_blocks + model.layers.1.mlp.experts."
                 "gate_up_proj_scales"):  # fmt: skip
        assert text in row
    columns = {min(i for i in map(line.find, ("model.", "lm_head")) if i > 0) for line in rows}
    assert len(columns) == 1, "the columns are not straight"


def test_too_little_room_is_a_no(
    checkpoint: Path, tmp_path: Path, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1, for a checkpoint and for a GGUF that would be exported."""
    gguf = tmp_path / "m.gguf"
    convert(checkpoint, gguf)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    for source, *options in ((checkpoint,), (gguf, "--to", "hf")):
        done = run(source, "-o", tmp_path / "new", "--plan", *options)
        assert done.code == 1
        assert "0.00 GB are free there: NOT ENOUGH" in done.out
        found = run(source, "-o", tmp_path / "new", "--plan", "--json", *options)
        assert (found.code, json.loads(found.out)["fits"]) == (1, False)
        assert run(source, "--plan", *options).code == 0


def test_only_headers_are_read(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    read_into = FileSource.read_into

    def counting(self: FileSource, offset: int, out: bytearray) -> None:
        read.append(len(out))
        read_into(self, offset, out)

    monkeypatch.setattr(FileSource, "read_into", counting)
    estimate(plan(checkpoint))
    headers = 0
    for shard in checkpoint.glob("*.safetensors"):
        headers += 8 + int.from_bytes(shard.read_bytes()[:8], "little")
    jsons = ("config.json", "model.safetensors.index.json")
    assert sum(read) == headers + sum((checkpoint / name).stat().st_size for name in jsons)


def test_parts(checkpoint: Path, tmp_path: Path) -> None:
    found = estimate(plan(checkpoint), tmp_path / "m.gguf", split_max_size=100_000)
    n = len(found.files)
    assert n > 1
    assert [part.name for part in found.files] == [f"m-{i + 1:05}-of-{n:05}.gguf" for i in range(n)]
    assert sum(line.startswith("m-0000") for line in found.lines()) == n


def test_over_the_hub(hub: HubServer, said: Callable[..., str]) -> None:
    """Config, index and headers come; no weight and no vocabulary does."""
    found = json.loads(said(REPOSITORY, "--plan", "--json"))
    assert len(found["tensors"]) == 41
    asked = {request.file for request in hub.requests}
    assert "tokenizer.json" not in asked
    assert hub.sent < 40_000


def test_without_output_and_plan(checkpoint: Path) -> None:
    command = Path(sys.executable).with_name("gptoss-convert")
    done = subprocess.run([command, checkpoint], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Missing option '-o'" in done.stderr


CONVERT = """
import sys
from gptoss.converter.convert import convert, plan
convert(sys.argv[1], sys.argv[2])
"""


@pytest.mark.slow
def test_the_memory_said_is_not_exceeded(tmp_path: Path) -> None:
    folder = random_checkpoint(
        tmp_path / "source", hidden=2880, layers=1, experts=16, heads=64, kv_heads=8, vocab=40_000
    )
    peak = peak_memory(CONVERT, folder, tmp_path / "out.gguf")
    said = estimate(plan(folder)).memory
    assert said is not None
    assert peak < said < 3 * peak


@pytest.fixture
def lacking(checkpoint: Path, tmp_path: Path) -> Path:
    """A GGUF without RoPE's base."""
    path = tmp_path / "lacking.gguf"
    convert(checkpoint, path, dense="bf16")
    return ggufs.edited(path, lambda model: model.keys.pop("gpt-oss.rope.freq_base") and None)


@pytest.mark.parametrize("limit", [(), ("--split-max-size", "100K")])
def test_a_plan_of_a_repair(
    lacking: Path, tmp_path: Path, said: Callable[..., str], limit: tuple[str, ...]
) -> None:
    """What the command then does, name by name and byte for byte; the keys are known here."""
    before = sorted(tmp_path.iterdir())
    out = tmp_path / "new.gguf"
    found = json.loads(said(lacking, "-o", out, "--plan", "--json", *limit))
    assert sorted(tmp_path.iterdir()) == before
    done = json.loads(said(lacking, "-o", out, "--json", *limit))
    made = json.loads((tmp_path / "new.gguf.manifest.json").read_text())
    for entry in made["tensors"]:
        del entry["sha256"]
    assert (found["tensors"], found["files"]) == (made["tensors"], made["files"])
    assert (found["changes"], found["bytes"]) == (done["changes"], done["bytes"])
    assert "gpt-oss.rope.freq_base: 150000, was missing" in found["changes"][0]
    assert len(done["files"]) == len(found["files"])
    assert (len(found["files"]) > 1) == bool(limit)
    lines = said(lacking, "--plan", "--verbose", *limit).splitlines()
    assert lines[0] == found["changes"][0]
    assert any(line.startswith("token_embd.weight ") for line in lines)
    assert not any(line.startswith("memory") for line in lines)
    first = Path(done["files"][0])
    expected = f"files: {len(done['files'])} → 1" if limit else f"{first}: no repair needed"
    assert said(first, "--plan").splitlines()[0] == expected


@pytest.mark.parametrize("to", ["hf", "hf-bf16"])
def test_a_plan_of_an_export(
    checkpoint: Path, tmp_path: Path, said: Callable[..., str], to: str
) -> None:
    gguf, out = tmp_path / "m.gguf", tmp_path / "back"
    convert(checkpoint, gguf, dense="bf16")
    found = json.loads(said(gguf, "-o", out, "--to", to, "--plan", "--json"))
    assert not out.exists()
    done = json.loads(said(gguf, "-o", out, "--to", to, "--json"))
    made = json.loads((out / "gptoss.manifest.json").read_text())
    for entry in made["tensors"]:
        del entry["sha256"]
    assert (found["tensors"], found["files"]) == (made["tensors"], made["files"])
    manifest = (out / "gptoss.manifest.json").stat().st_size
    assert found["bytes"] == done["bytes"] - manifest
