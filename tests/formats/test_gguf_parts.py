"""A model split over several files: as the gguf package writes it, and damaged ones."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from gptoss.errors import GgufError
from gptoss.formats.gguf import GgufFile

FIRST, SECOND, THIRD = (f"m-{i:05}-of-00003.gguf" for i in (1, 2, 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five tensors over three files."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gpt-oss", split_max_tensors=2)
    writer.add_uint32("a.number", 7)
    for i in range(5):
        writer.add_tensor(f"t{i}", np.full((2, 3 + i), i, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path


def test_the_first_stands_for_all(folder: Path) -> None:
    file = GgufFile.open(folder / FIRST)
    assert file.metadata["a.number"] == 7
    assert list(file.tensors) == [f"t{i}" for i in range(5)]
    assert file.paths == tuple(folder / name for name in (FIRST, SECOND, THIRD))
    for i, tensor in enumerate(file.tensors.values()):
        with tensor.path.open("rb") as part:
            part.seek(tensor.offset)
            values = np.frombuffer(part.read(tensor.nbytes), "<f4")
        assert values.tolist() == [i] * 2 * (3 + i)


def rename(folder: Path) -> None:
    (folder / FIRST).rename(folder / "m.gguf")
    shutil.copy(folder / "m.gguf", folder / FIRST)


def swap(folder: Path) -> None:
    shutil.copy(folder / SECOND, folder / THIRD)


@pytest.mark.parametrize(
    ("opened", "damage", "message"),
    [
        (SECOND, None, f"{SECOND}: is part of a model in 3 files; name the first one, .*{FIRST}"),
        ("m.gguf", rename, "m.gguf: is part of a model in 3 files; name the first one"),
        (
            FIRST,
            lambda folder: (folder / THIRD).unlink(),
            f"{THIRD}: part 3 of 3 is missing; put it beside {FIRST}",
        ),
        (FIRST, swap, rf"{THIRD}: split\.no and split\.count are \(1, 3\); expected \(2, 3\)"),
    ],
)
def test_parts_that_do_not_make_a_whole(
    folder: Path, opened: str, damage: Callable[[Path], object] | None, message: str
) -> None:
    if damage is not None:
        damage(folder)
    with pytest.raises(GgufError, match=message):
        GgufFile.open(folder / opened)


def test_a_tensor_that_is_missing(folder: Path) -> None:
    raw = (folder / FIRST).read_bytes()
    key = b"split.tensors.count"
    at = raw.index(key) + len(key) + 4
    (folder / FIRST).write_bytes(raw[:at] + b"\x06" + raw[at + 1 :])
    with pytest.raises(GgufError, match=r"split\.tensors\.count is 6, but the 3 files hold 5"):
        GgufFile.open(folder / FIRST)
