"""Safetensors headers: what is accepted, and every way a header can lie."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptoss.errors import CheckpointError
from gptoss.formats.byte_source import FileSource
from gptoss.formats.safetensors import read_header
from support import safetensors_files


def entry(dtype: Any, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_places_are_counted_from_the_start_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    contents = {
        "x": ("U8", [2, 3], b"abcdef"),
        "none": ("F32", [0, 4], b""),
        "s": ("BF16", [], b"gh"),
    }
    safetensors_files.save(path, contents)
    found = read_header(FileSource(path, CheckpointError))
    assert list(found) == list(contents)
    raw = path.read_bytes()
    for name, (dtype, shape, data) in contents.items():
        info = found[name]
        assert (info.dtype, info.shape, str(info.file)) == (dtype, tuple(shape), str(path))
        assert raw[info.offset : info.offset + info.nbytes] == data


def test_metadata_and_padding_are_no_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = json.dumps({"__metadata__": {"format": "pt"}, "x": entry("U8", [1], 0, 1)})
    safetensors_files.write(path, header + "   ", b"x")
    assert list(read_header(FileSource(path, CheckpointError))) == ["x"]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"x": entry("U8", [4], 0, 4), "y": entry("U8", [5], 3, 8)}, "'y' overlaps 'x'"),
        ({"x": entry("U8", [8], 0, 8), "y": entry("U8", [8], 0, 8)}, "overlaps"),
        ({"x": entry("U8", [3], 0, 3), "y": entry("U8", [4], 4, 8)}, "'y' leaves a gap after 'x'"),
        ({"x": entry("U8", [7], 1, 8)}, "leaves a gap after the header"),
        ({"x": entry("U8", [7], 0, 7)}, "1 bytes after 'x' belong to no tensor"),
        ({}, "8 bytes after the header belong to no tensor"),
        ({"x": entry("U8", [9], 0, 9)}, "bytes of data; the file is truncated"),
        ({"x": entry("U8", [8], 8, 0)}, "bytes of data; the file is truncated"),
        ({"x": entry("U8", [8], -8, 0)}, "invalid data_offsets"),
        ({"x": entry("U8", [8], 0.0, 8)}, "invalid data_offsets"),
        ({"x": entry("U8", [8], 0, 8) | {"data_offsets": [0]}}, "invalid data_offsets"),
        ({"x": entry("U8", [4], 0, 8)}, "has 8 bytes; U8 of shape"),
        ({"x": entry("F32", [8], 0, 8)}, "has 8 bytes; F32 of shape"),
        ({"x": entry("U8", [2**32, 2**32], 0, 8)}, "has 8 bytes; U8"),
        ({"x": entry("U8", [2**64, 1], 0, 8)}, "invalid shape"),
        ({"x": entry("U8", [-1, -8], 0, 8)}, "invalid shape"),
        ({"x": entry("U8", [True] * 8, 0, 8)}, "invalid shape"),
        ({"x": entry("U8", [1] * 9, 0, 8)}, "invalid shape"),
        ({"x": entry("U8", "8", 0, 8)}, "invalid shape"),
        ({"x": entry("Q4", [8], 0, 8)}, "unknown dtype 'Q4'"),
        ({"x": entry(["U8"], [8], 0, 8)}, "unknown dtype"),
        ({"x": {"dtype": "U8", "shape": [8]}}, "expected dtype, shape and data_offsets"),
        ({"x": entry("U8", [8], 0, 8) | {"more": 1}}, "expected dtype, shape and data_offsets"),
        ({"x": 8}, "expected dtype, shape and data_offsets"),
        ('{"x": 1, "x": 2}', "duplicate key 'x'"),
        ("[]", "expected a JSON object, found list"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"x": ' + "9" * 5000 + "}", "not valid JSON"),
    ],
)  # fmt: skip
def test_lying_headers_are_refused(
    tmp_path: Path, header: dict[str, Any] | str, message: str
) -> None:
    path = tmp_path / "a.safetensors"
    safetensors_files.write(path, header, b"12345678")
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(FileSource(path, CheckpointError))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not a safetensors file .0 bytes"),
        (b"1234567", "not a safetensors file .7 bytes"),
        (struct.pack("<Q", 3) + b"{}", "exceeds the file size"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "exceeds the file size"),
        (struct.pack("<Q", 2) + b"\xff\xfe", "not UTF-8"),
    ],
)
def test_files_that_are_none_are_refused(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=message):
        read_header(FileSource(path, CheckpointError))


def test_a_header_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as out:
        out.write(struct.pack("<Q", 2**40))
        out.truncate(2**40 + 8)  # sparse: reading it would take minutes
    with pytest.raises(CheckpointError, match="exceeds the limit"):
        read_header(FileSource(path, CheckpointError))


def test_a_missing_file_is_a_bad_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.safetensors: cannot be opened"):
        read_header(FileSource(tmp_path / "gone.safetensors", CheckpointError))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever bytes change: a CheckpointError, or tensors that lie inside the file."""
    path = tmp_path / "a.safetensors"
    safetensors_files.save(path, {"x": ("U8", [2, 3], b"abcdef"), "y": ("BF16", [1], b"gh")})
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        found = read_header(FileSource(path, CheckpointError))
    except CheckpointError:
        return
    assert all(8 <= t.offset <= t.offset + t.nbytes <= len(raw) for t in found.values())
