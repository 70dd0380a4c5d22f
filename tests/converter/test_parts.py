"""Results split over several files: never larger than asked, together the same, all or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest

from gptoss.converter.convert import convert
from gptoss.converter.gguf import split
from gptoss.errors import OptionError
from gptoss.formats.gguf import GgufFile
from gptoss.quant.verify.verifier import verify
from support.checkpoints import random_checkpoint

LIMIT = 60_000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("source") / "model")


def contents(path: Path) -> dict[str, bytes]:
    """Each tensor's bytes."""
    found = {}
    for name, tensor in GgufFile.open(path).tensors.items():
        with tensor.path.open("rb") as file:
            file.seek(tensor.offset)
            found[name] = file.read(tensor.nbytes)
    return found


def test_parts_hold_together_what_one_file_holds(checkpoint: Path, tmp_path: Path) -> None:
    convert(checkpoint, tmp_path / "whole.gguf")
    done = convert(checkpoint, tmp_path / "m.gguf", split_max_size=LIMIT)
    n = len(done.files)
    assert n > 3
    assert [p.name for p in done.files] == [f"m-{i + 1:05}-of-{n:05}.gguf" for i in range(n)]
    assert all(path.stat().st_size <= LIMIT for path in done.files)
    assert sum(path.stat().st_size for path in done.files) == done.nbytes
    assert not (tmp_path / "m.gguf").exists()
    assert contents(done.files[0]) == contents(tmp_path / "whole.gguf")
    assert verify(checkpoint, done.files[0]).proven
    whole, first = (GgufFile.open(p).metadata for p in (tmp_path / "whole.gguf", done.files[0]))
    assert {k: str(v) for k, v in first.items() if not k.startswith("split.")} == {
        k: str(v) for k, v in whole.items()
    }


def test_the_keys_that_llama_cpp_reads(checkpoint: Path, tmp_path: Path) -> None:
    """As the gguf package finds them, types included."""
    done = convert(checkpoint, tmp_path / "m.gguf", split_max_size=LIMIT)
    total = 0
    for i, path in enumerate(done.files):
        reader = gguf.GGUFReader(path)
        total += len(reader.tensors)
        for key, kind, value in (
            ("split.no", gguf.GGUFValueType.UINT16, i),
            ("split.count", gguf.GGUFValueType.UINT16, len(done.files)),
            ("split.tensors.count", gguf.GGUFValueType.INT32, done.tensors),
        ):
            field = reader.fields[key]
            assert (field.types, int(field.contents())) == ([kind], value)
    assert total == done.tensors


def test_what_fits_is_not_split(checkpoint: Path, tmp_path: Path) -> None:
    done = convert(checkpoint, tmp_path / "m.gguf", split_max_size=10**9)
    assert done.files == (tmp_path / "m.gguf",)
    assert "split.count" not in GgufFile.open(done.files[0]).metadata


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (1000, "the keys with the vocabulary take [0-9,]+ bytes and cannot be split"),
        (20_000, "the tensor token_embd.weight takes 21,[0-9]+ bytes and cannot be split"),
    ],
)
def test_limits_that_are_too_small(
    checkpoint: Path, tmp_path: Path, limit: int, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        convert(checkpoint, tmp_path / "m.gguf", split_max_size=limit)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("5G", 5 * 10**9), ("700m", 700 * 10**6), ("12KB", 12_000), (" 1000000 ", 1_000_000)],
)
def test_sizes(text: str, nbytes: int) -> None:
    assert split.parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "0", "0G", "-5G", "5T", "5 G", "1.5G", "G", "٥G", "9" * 40])
def test_texts_that_are_no_size(text: str) -> None:
    with pytest.raises(OptionError, match="expected a number of bytes, or a size such as 700M"):
        split.parse_size(text)


def test_no_first_file_while_the_others_change(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after any of the renames, no set of old and new parts can be opened."""
    out, other = tmp_path / "m.gguf", checkpoint.with_name("other")
    first = convert(checkpoint, out, split_max_size=LIMIT).files[0]
    random_checkpoint(other, seed=9)
    replace = Path.replace
    renamed = allowed = 0

    class Cut(BaseException):
        pass

    def until(self: Path, target: Any) -> Path:
        nonlocal renamed
        renamed += 1
        if renamed > allowed:
            raise Cut
        return replace(self, target)

    n_parts = len(list(tmp_path.glob("m-*.gguf")))
    for n in range(n_parts + 1):
        convert(checkpoint, out, split_max_size=LIMIT)
        allowed, renamed = n, 0
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", until)
            with pytest.raises(Cut):
                convert(other, out, split_max_size=LIMIT)
        assert first.exists() is (n == n_parts)
        assert not (tmp_path / "m.gguf.manifest.json").exists()
    assert verify(other, first).proven


def test_the_staging_is_gone(checkpoint: Path, tmp_path: Path) -> None:
    done = convert(checkpoint, tmp_path / "m.gguf", split_max_size=LIMIT)
    assert set(tmp_path.iterdir()) == {*done.files, done.manifest}
