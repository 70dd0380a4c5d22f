"""Whole conversions: what is in the file, and that there is a whole file or none."""

from __future__ import annotations

import os
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from gptoss.converter.convert import convert
from gptoss.converter.write import tasks, writer
from gptoss.errors import CheckpointError, OutputError
from gptoss.formats.checkpoint import Checkpoint
from gptoss.formats.gguf import GgufFile
from gptoss.formats.hparams import HParams
from support import safetensors_files
from support.checkpoints import random_checkpoint
from support.peak_memory import peak_memory

DENSE = ("q8_0", "bf16", "f16", "f32", "q5_1", "q5_0", "q4_1", "q4_0")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "some-model"
    return random_checkpoint(folder, shards=2, chat_template="hello {{ world }}")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.gguf"


@pytest.mark.parametrize("dense", DENSE)
def test_the_gguf_package_reads_it(checkpoint: Path, out: Path, dense: str) -> None:
    """Names, types, shapes and values as an independent reader finds them."""
    done = convert(checkpoint, out, dense=dense)
    reader = gguf.GGUFReader(out)
    mine = GgufFile.open(out)
    assert (done.tensors, done.nbytes) == (len(reader.tensors), out.stat().st_size)
    assert [t.name for t in reader.tensors] == list(mine.tensors)
    for theirs in reader.tensors:
        ours = mine.tensors[theirs.name]
        assert (ours.type, ours.shape) == (theirs.tensor_type, tuple(theirs.shape.tolist()))
        assert (ours.offset, ours.nbytes) == (theirs.data_offset, theirs.n_bytes)
    embedding = next(t for t in reader.tensors if t.name == "token_embd.weight")
    found = gguf.quants.dequantize(embedding.data, embedding.tensor_type)
    info = Checkpoint.open(checkpoint).tensors["model.embed_tokens.weight"]
    bits = np.frombuffer(safetensors_files.data_of(info), "<u2").astype(np.uint32) << 16
    atol = {"q5_1": 0.15, "q5_0": 0.3, "q4_1": 0.3, "q4_0": 0.6}.get(dense, 0.02)
    assert np.allclose(found.reshape(-1), bits.view(np.float32), rtol=0.01, atol=atol)


def test_hyperparameters_and_keys(checkpoint: Path, out: Path) -> None:
    convert(checkpoint, out)
    file = GgufFile.open(out)
    expected = Checkpoint.open(checkpoint).hparams
    found = HParams.from_gguf(file.metadata)
    for name in HParams.__dataclass_fields__:
        assert getattr(found, name) == pytest.approx(getattr(expected, name)), name
    assert file.metadata["general.name"] == "some-model"
    assert file.metadata["general.file_type"] == 38
    assert file.metadata["tokenizer.ggml.pre"] == "gpt-4o"
    assert file.metadata["tokenizer.chat_template"] == "hello {{ world }}"


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes are Linux's")
def test_a_folder_whose_name_is_no_text(checkpoint: Path, out: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"model-\xff")
    shutil.copytree(checkpoint, folder)
    convert(folder, out)
    assert GgufFile.open(out).metadata["general.name"] == "model-\ufffd"


def test_cutting_into_chunks_changes_nothing(
    checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(checkpoint, out)
    whole = out.read_bytes()
    monkeypatch.setattr(tasks, "CHUNK", 1000)
    convert(checkpoint, out)
    assert out.read_bytes() == whole


def test_progress_rises_to_the_files_size(checkpoint: Path, out: Path) -> None:
    calls: list[tuple[int, int]] = []
    convert(checkpoint, out, progress=lambda done, total: calls.append((done, total)))
    assert all(a[0] <= b[0] for a, b in pairwise(calls))
    assert {total for _, total in calls} == {out.stat().st_size}
    assert calls[-1][0] == calls[-1][1]


def test_an_older_file_stays_until_the_new_one_is_whole(
    checkpoint: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out.write_bytes(b"older")

    def fail(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writer, "run_task", fail)
        with pytest.raises(OutputError, match="No space left on device; nothing was left there"):
            convert(checkpoint, out)
    assert out.read_bytes() == b"older"
    assert list(out.parent.iterdir()) == [out]
    convert(checkpoint, out)
    assert GgufFile.open(out).tensors


def test_a_source_that_shrinks_meanwhile(tmp_path: Path, out: Path) -> None:
    folder = random_checkpoint(tmp_path / "source")
    weights = folder / "model.safetensors"

    def cut(*_: int) -> None:
        with weights.open("r+b") as file:
            file.truncate(weights.stat().st_size // 2)

    with pytest.raises(CheckpointError, match=r"(modified|truncated) while being read"):
        convert(folder, out, progress=cut)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_the_source_is_never_overwritten(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "source")
    weights = folder / "model.safetensors"
    before = weights.read_bytes()
    link = tmp_path / "link.gguf"
    link.symlink_to(weights)
    part, linked = "is part of the checkpoint", "is a symbolic link to .*model.safetensors"
    for target, found in ((weights, part), (link, linked), (folder / "config.json", part)):
        with pytest.raises(OutputError, match=found):
            convert(folder, target)
    assert weights.read_bytes() == before


# --- as a process -----------------------------------------------------------------------------

CONVERT = """
import sys
from gptoss.converter.convert import convert
convert(sys.argv[1], sys.argv[2])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Layers of the 20b model's width, 16 experts each: 0.59 GB convert within 0.2."""
    folder = random_checkpoint(
        tmp_path / "source", hidden=2880, experts=16, heads=64, kv_heads=8, vocab=5000
    )
    size = (folder / "model.safetensors").stat().st_size
    out = tmp_path / "out.gguf"
    assert size > 580e6
    assert peak_memory(CONVERT, folder, out) < 200e6
