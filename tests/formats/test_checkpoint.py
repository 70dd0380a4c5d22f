"""Checkpoint folders: one file or shards, and an index that is not believed blindly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptoss.errors import CheckpointError, UnsupportedModelError
from gptoss.formats.byte_source import FileSource
from gptoss.formats.checkpoint import Checkpoint
from gptoss.formats.tensor_map import hf_tensors
from support import safetensors_files
from support.checkpoints import random_checkpoint

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return random_checkpoint(tmp_path / "sharded", shards=3)


def test_one_file_and_shards_hold_the_same(tmp_path: Path, sharded: Path) -> None:
    single = Checkpoint.open(random_checkpoint(tmp_path / "single"))
    shards = Checkpoint.open(sharded)
    assert single.hparams == shards.hparams
    assert single.tensors.keys() == shards.tensors.keys() == hf_tensors(single.hparams).keys()
    assert len({info.file for info in shards.tensors.values()}) == 3
    for name, one in single.tensors.items():
        other = shards.tensors[name]
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert safetensors_files.data_of(one) == safetensors_files.data_of(other)


def at(path: Path) -> FileSource | None:
    return FileSource(path) if path.exists() else None


def test_weights_that_are_elsewhere(tmp_path: Path, sharded: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for shard in sharded.glob("*.safetensors"):
        shard.rename(elsewhere / shard.name)
    with pytest.raises(CheckpointError, match="missing shard"):
        Checkpoint.open(sharded)
    found = Checkpoint.open(sharded, lambda name: at(elsewhere / name))
    found.check_tensors()
    assert all(str(elsewhere / info.file.name) == str(info.file) for info in found.tensors.values())


def edit_index(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    edit(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def first_shard(folder: Path) -> Path:
    return min(folder.glob("*.safetensors"))


def drop_shard(folder: Path) -> None:
    first_shard(folder).unlink()


def drop_tensor(folder: Path) -> None:
    contents = safetensors_files.load(first_shard(folder))
    del contents["lm_head.weight"]
    safetensors_files.save(first_shard(folder), contents)


def add_tensor(folder: Path) -> None:
    contents = safetensors_files.load(first_shard(folder))
    safetensors_files.save(first_shard(folder), contents | {"extra": ("U8", [1], b"x")})


def point_elsewhere(folder: Path) -> None:
    other = max(folder.glob("*.safetensors")).name
    edit_index(folder, lambda weights: weights.update({"lm_head.weight": other}))


def climb(folder: Path) -> None:
    edit_index(folder, lambda weights: weights.update({"x": "../outside.safetensors"}))


def empty_map(folder: Path) -> None:
    edit_index(folder, lambda weights: weights.clear())


def both(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def neither(folder: Path) -> None:
    (folder / INDEX).unlink()


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_shard, "missing shard, listed in .*; download it"),
        (drop_tensor, "'lm_head.weight' is missing, but .* lists it"),
        (add_tensor, "holds tensor 'extra', but .* omits it"),
        (point_elsewhere, "holds tensor 'lm_head.weight', but .* puts it in model-00002"),
        (climb, "'../outside.safetensors', which is not a valid shard name"),
        (empty_map, "weight_map is missing or empty"),
        (both, "holds both model.safetensors and model.safetensors.index.json"),
        (neither, "holds neither model.safetensors nor .*; download the weights"),
        (no_config, "has no config.json; give a checkpoint's folder"),
    ],
)
def test_damaged_folders(sharded: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(sharded)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(sharded)


@pytest.mark.parametrize("name", ["/etc/x.safetensors", "a\\b.safetensors", "a.bin", "", 3, None])
def test_shard_names_that_are_none(sharded: Path, name: Any) -> None:
    edit_index(sharded, lambda weights: weights.update({"lm_head.weight": name}))
    with pytest.raises(CheckpointError, match="not a valid shard name"):
        Checkpoint.open(sharded)


def test_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist; expected a checkpoint folder"):
        Checkpoint.open(tmp_path / "gone")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is not a folder; expected a checkpoint folder"):
        Checkpoint.open(tmp_path / "file")


def test_another_model_is_unsupported_before_its_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(UnsupportedModelError, match="model_type is 'qwen3'"):
        Checkpoint.open(tmp_path)
