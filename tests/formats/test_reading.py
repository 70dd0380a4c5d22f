"""Bounded reads: exact, shared between threads, and loud when a file shrinks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from gptoss.errors import CheckpointError, GgufError, InvalidFileError
from gptoss.formats.bounded_json import read_json
from gptoss.formats.byte_source import FileSource


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "bytes"
    found.write_bytes(bytes(range(256)) * 64)
    return found


def test_reads_into_arrays_and_buffers(path: Path) -> None:
    with FileSource(path) as source:
        assert source.size == 256 * 64
        words = np.empty((2, 3), "<u2")
        source.read_into(2, words)
        assert words.tobytes() == bytes(range(2, 14))
        some = bytearray(5)
        source.read_into(254, memoryview(some)[1:])
        assert some == b"\0\xfe\xff\0\1"
        source.read_into(source.size, np.empty(0, np.uint8))
        assert source.read(1, 2) == b"\1\2"


def test_a_gap_in_the_buffer_is_refused_not_filled_elsewhere(path: Path) -> None:
    with FileSource(path) as source, pytest.raises(TypeError):
        source.read_into(0, np.empty(8, np.uint8)[::2])


def test_a_file_that_shrank_is_an_error(path: Path) -> None:
    with FileSource(path, CheckpointError) as source:
        with path.open("r+b") as file:
            file.truncate(100)
        with pytest.raises(CheckpointError, match="ends at byte 100, 10 bytes early"):
            source.read_into(90, np.empty(20, np.uint8))


def test_threads_do_not_disturb_each_other(path: Path) -> None:
    def read(i: int) -> bool:
        return bytes(source.read(i, 100)) == bytes((i + k) % 256 for k in range(100))

    with FileSource(path) as source, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(2000)))


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match=r"gone: cannot be opened: No such file"):
        FileSource(tmp_path / "gone", GgufError)
    with pytest.raises(GgufError):
        FileSource(tmp_path, GgufError)


def test_json_is_read_within_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": {"b": 1}}')
    assert read_json(path, InvalidFileError, limit=15) == {"a": {"b": 1}}
    with pytest.raises(InvalidFileError, match="has 15 bytes; the limit is 14"):
        read_json(path, InvalidFileError, limit=14)
    path.write_text('{"a": {"b": 1, "b": 1}}')
    with pytest.raises(InvalidFileError, match="duplicate key 'b'"):
        read_json(path, InvalidFileError, limit=100)
