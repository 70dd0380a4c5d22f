"""Hostile files: a header is read correctly or refused, in bounded time and memory.

Every file must give ``CheckpointError`` or ``GgufError`` with one short line, or tensors that all
lie inside the file and strings that decode. It must take less than a second, and memory in
proportion to the header that is really there, not to what the file claims. ``PER_BYTE`` is the
memory of Python's objects per byte of the densest header.
"""

from __future__ import annotations

import json
import os
import random
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import process_time
from typing import Any

import pytest
from gguf.constants import GGUFValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptoss.converter.convert import convert
from gptoss.errors import CheckpointError, GgufError, InvalidFileError
from gptoss.formats.byte_source import FileSource
from gptoss.formats.checkpoint import Checkpoint
from gptoss.formats.gguf import MAX_ELEMENTS, MAX_KEYS, MAX_TENSORS, GgufFile
from gptoss.formats.gguf_cursor import HEADER_LIMIT
from gptoss.formats.safetensors import HEADER_LIMIT as JSON_LIMIT
from gptoss.formats.safetensors import read_header
from support import safetensors_files
from support.checkpoints import random_checkpoint
from support.damage import damaged
from support.posix import make_pipe

SECONDS = 1.0
MESSAGE = 600
"""Characters of a message beside the path."""
PER_BYTE = 32
BASE = 2**20
"""Bytes that reading takes whatever the file."""
MOST = 2**28
"""Bytes that reading never takes, whatever the file."""

Reader = Callable[[Path], object]


def read_safetensors(path: Path) -> None:
    size = path.stat().st_size
    for tensor in read_header(FileSource(path, CheckpointError)).values():
        assert 8 <= tensor.offset <= tensor.offset + tensor.nbytes <= size


def read_gguf(path: Path) -> None:
    size = path.stat().st_size
    file = GgufFile.open(path)
    for tensor in file.tensors.values():
        assert 24 <= tensor.offset < tensor.offset + tensor.nbytes <= size
    for value in file.metadata.values():
        if not isinstance(value, str | int | float):
            assert len(list(value)) == len(value)


READERS: dict[str, tuple[Reader, type[InvalidFileError]]] = {
    "safetensors": (read_safetensors, CheckpointError),
    "gguf": (read_gguf, GgufError),
}


def outcome(kind: str, path: Path) -> str:
    """Read a file; how it ended. Anything but the promise is an error of the test."""
    read, refusal = READERS[kind]
    began = process_time()
    try:
        read(path)
        said = "read"
    except refusal as error:
        said = str(error)
        assert str(path) in said
        assert said.replace(str(path), "").isprintable(), said
        assert len(said) - len(str(path)) <= MESSAGE, len(said)
    assert process_time() - began < SECONDS
    return said


@contextmanager
def bounded_memory(path: Path) -> Iterator[None]:
    """Fails when more is allocated meanwhile than the file's size allows."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    limit = min(BASE + PER_BYTE * path.stat().st_size, MOST)
    assert peak <= limit, f"{peak:,} bytes of memory for a file of {path.stat().st_size:,}"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[bytes, int]]]:
    """Two real files of each kind, and the size of each one's header."""
    folder = tmp_path_factory.mktemp("real")
    found: dict[str, list[tuple[bytes, int]]] = {kind: [] for kind in READERS}
    for i, layers in enumerate((1, 3)):
        source = random_checkpoint(folder / str(i), hidden=32, layers=layers, experts=2, seed=i)
        raw = (source / "model.safetensors").read_bytes()
        found["safetensors"].append((raw, 8 + int.from_bytes(raw[:8], "little")))
        convert(source, folder / f"{i}.gguf")
        start = min(t.offset for t in GgufFile.open(folder / f"{i}.gguf").tensors.values())
        found["gguf"].append(((folder / f"{i}.gguf").read_bytes(), start))
    return found


def fuzz(kind: str, real: list[tuple[bytes, int]], path: Path, cases: int, seed: int) -> None:
    """Damage real files ``cases`` times; both outcomes must occur, or nothing was tried."""
    rng = random.Random(seed)
    read = 0
    for _ in range(cases):
        (raw, head), (other, _) = rng.sample(real, 2)
        path.write_bytes(damaged(raw, other, head, rng))
        with bounded_memory(path):
            read += outcome(kind, path) == "read"
    assert cases // 200 < read < cases // 2


@pytest.mark.parametrize("kind", READERS)
def test_damaged_real_files(
    kind: str, real: dict[str, list[tuple[bytes, int]]], tmp_path: Path
) -> None:
    fuzz(kind, real[kind], tmp_path / "damaged", 400, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
@pytest.mark.parametrize("kind", READERS)
def test_thousands_of_damaged_real_files(
    kind: str, seed: int, real: dict[str, list[tuple[bytes, int]]], tmp_path: Path
) -> None:
    fuzz(kind, real[kind], tmp_path / "damaged", 5000, seed)


# --- headers that are well-formed and lie -----------------------------------------------------

NUMBERS = st.one_of(
    st.integers(0, 64), st.integers(0, 2**64 - 1), st.sampled_from([2**63, 2**64 - 32, -1, 2**99])
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "BF16", "F32", "F4"]) | JSON,
        "shape": st.lists(NUMBERS, max_size=9) | JSON,
        "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2) | JSON,
    }
)
HEADERS = st.dictionaries(st.text(max_size=200), ENTRY | JSON, max_size=6)
FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(FUZZ, max_examples=25)
@given(HEADERS, st.binary(max_size=64))
def test_lying_json(tmp_path: Path, header: dict[str, Any], data: bytes) -> None:
    read_lying_json(tmp_path, header, data)


@pytest.mark.slow
@settings(FUZZ, max_examples=500)
@given(HEADERS, st.binary(max_size=64))
def test_much_lying_json(tmp_path: Path, header: dict[str, Any], data: bytes) -> None:
    read_lying_json(tmp_path, header, data)


def read_lying_json(tmp_path: Path, header: dict[str, Any], data: bytes) -> None:
    path = tmp_path / "a.safetensors"
    safetensors_files.write(path, header, data)
    with bounded_memory(path):
        outcome("safetensors", path)


U32, U64 = struct.Struct("<I").pack, struct.Struct("<Q").pack
COUNTS = st.integers(0, 9) | st.integers(0, 2**64 - 1)


def text(value: bytes) -> bytes:
    return U64(len(value)) + value


TEXTS = st.binary(max_size=80).map(text) | st.binary(max_size=9).flatmap(
    lambda raw: COUNTS.map(lambda size: U64(size) + raw)
)
KINDS = st.integers(0, 14) | st.integers(0, 2**32 - 1)
KEYS = st.builds(
    lambda key, kind, value: key + U32(kind) + value,
    TEXTS,
    KINDS,
    st.binary(max_size=16)
    | st.builds(lambda kind, n, raw: U32(kind) + U64(n) + raw, KINDS, COUNTS, st.binary()),
)
TENSORS = st.builds(
    lambda name, shape, kind, offset: (
        name + U32(len(shape)) + b"".join(map(U64, shape)) + U32(kind) + U64(offset)
    ),
    TEXTS,
    st.lists(COUNTS, max_size=5),
    st.integers(0, 41),
    st.sampled_from([0, 32, 2**63, 2**64 - 32]) | COUNTS,
)


@FUZZ
@given(st.lists(KEYS, max_size=4), st.lists(TENSORS, max_size=4), st.binary(max_size=200))
def test_lying_gguf(tmp_path: Path, keys: list[bytes], tensors: list[bytes], data: bytes) -> None:
    path = tmp_path / "a.gguf"
    head = b"GGUF" + U32(3) + U64(len(tensors)) + U64(len(keys))
    path.write_bytes(head + b"".join(keys + tensors) + data)
    with bounded_memory(path):
        outcome("gguf", path)


# --- the densest headers that fit the limits --------------------------------------------------


def json_header(text: str) -> bytes:
    return U64(len(text)) + text.encode() + b"\0"


def json_filled(with_: str, before: str, after: str) -> bytes:
    n = (JSON_LIMIT - len(before) - len(after)) // len(with_)
    return json_header(before + with_ * n + after)


def json_tensors() -> bytes:
    entry = '"%06d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
    n = JSON_LIMIT // len(entry % 0) - 1
    last = '"x":{"dtype":"U8","shape":[],"data_offsets":[0,1]}'
    return json_header("{" + "".join(entry % i for i in range(n)) + last + "}")


def gguf_strings() -> bytes:
    array = U32(GGUFValueType.ARRAY) + U32(GGUFValueType.STRING)
    head = b"GGUF" + U32(3) + U64(0) + U64(1) + text(b"a") + array + U64(MAX_ELEMENTS)
    return head + bytes(8 * MAX_ELEMENTS)


def gguf_keys() -> bytes:
    keys = (text(b"%04d" % i) + U32(GGUFValueType.UINT8) + b"\1" for i in range(MAX_KEYS))
    return b"GGUF" + U32(3) + U64(0) + U64(MAX_KEYS) + b"".join(keys)


def gguf_tensors() -> bytes:
    align = text(b"general.alignment") + U32(GGUFValueType.UINT32) + U32(1)
    infos = (text(b"%05d" % i) + U32(1) + U64(1) + U32(0) + U64(4 * i) for i in range(MAX_TENSORS))
    head = b"GGUF" + U32(3) + U64(MAX_TENSORS) + U64(1) + align + b"".join(infos)
    return head + bytes(4 * MAX_TENSORS)


def gguf_long_key() -> bytes:
    return b"GGUF" + U32(3) + U64(0) + U64(1) + text(b"k" * 2**24) + U32(0) + b"\1"


def gguf_long_text() -> bytes:
    value = U32(GGUFValueType.STRING) + text("é".encode() * (HEADER_LIMIT // 2 - 2000))
    return b"GGUF" + U32(3) + U64(0) + U64(1) + text(b'a"[2J' * 99) + value


BOMBS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "lists": (
        "safetensors",
        lambda: json_filled("[],", '{"x":[', "0]}"),
        "expected dtype, shape and",
    ),
    "objects": (
        "safetensors",
        lambda: json_filled("{},", '{"x":[', "0]}"),
        "expected dtype, shape and",
    ),
    "deep": ("safetensors", lambda: json_filled('{"x":', "", ""), "nested too deeply"),
    "nested shape": (
        "safetensors",
        lambda: json_header(
            '{"x":{"dtype":"U8","data_offsets":[0,1],"shape":' + "[" * 900 + "1" + "]" * 900 + "}}"
        ),
        "shape",
    ),
    "long dtype": (
        "safetensors",
        lambda: json_filled("é", '{"x":{"shape":[],"data_offsets":[0,1],"dtype":"', '"}}'),
        "",
    ),
    "long number": (
        "safetensors",
        lambda: json_header(
            '{"x":{"dtype":"U8","shape":[],"data_offsets":[1,%s]}}' % ("9" * 4300)
        ),
        "bytes of data; the file is truncated",
    ),
    "long name": (
        "safetensors",
        lambda: json_filled("\\n", '{"', '":1}'),
        "expected dtype, shape and",
    ),
    "tensors": ("safetensors", json_tensors, "read"),
    "strings": ("gguf", gguf_strings, "read"),
    "keys": ("gguf", gguf_keys, "read"),
    "many tensors": ("gguf", gguf_tensors, "read"),
    "long key": ("gguf", gguf_long_key, "metadata key 0 claims 16777216 bytes"),
    "long text": ("gguf", gguf_long_text, "read"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_the_densest_headers(name: str, tmp_path: Path) -> None:
    kind, make, expected = BOMBS[name]
    path = tmp_path / "bomb"
    path.write_bytes(make())
    assert expected in outcome(kind, path)


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_the_densest_headers_in_memory(name: str, tmp_path: Path) -> None:
    """Apart from the time, for keeping account of memory takes longer than reading."""
    kind, make, _ = BOMBS[name]
    path = tmp_path / "bomb"
    path.write_bytes(make())
    read, refusal = READERS[kind]
    with bounded_memory(path), suppress(refusal):
        read(path)


# --- what is no file --------------------------------------------------------------------------


def in_time(function: Callable[[], object]) -> BaseException | None:
    """What a call raises; it must come back, which one that waits for a pipe's writer does not."""
    caught: list[BaseException] = []

    def call() -> None:
        try:
            function()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "still waiting"
    return caught[0] if caught else None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files on Windows")
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
             "chat_template.jinja"]
)  # fmt: skip
def test_a_pipe_in_a_checkpoint(tmp_path: Path, name: str) -> None:
    source = random_checkpoint(tmp_path / "source")
    (source / name).unlink(missing_ok=True)
    make_pipe(source / name)
    error = in_time(lambda: convert(source, tmp_path / "out.gguf"))
    assert isinstance(error, CheckpointError)
    assert f"{name}: is a pipe or a device; expected a regular file" in str(error)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files on Windows")
def test_a_pipe_or_a_device_as_gguf(tmp_path: Path) -> None:
    make_pipe(tmp_path / "a.gguf")
    for path in (tmp_path / "a.gguf", Path("/dev/zero")):
        error = in_time(lambda path=path: GgufFile.open(path))  # type: ignore[misc]
        assert isinstance(error, GgufError)
        assert "is a pipe or a device" in str(error)


def test_a_folder_as_a_file(tmp_path: Path) -> None:
    for folder in (tmp_path / "config.json", tmp_path / "a.gguf"):
        folder.mkdir()
    with pytest.raises(GgufError, match=r"a\.gguf: is a folder; expected a regular file"):
        GgufFile.open(tmp_path / "a.gguf")
    with pytest.raises(CheckpointError, match=r"config\.json: is a folder"):
        Checkpoint.open(tmp_path)


def test_an_index_of_endless_shards(tmp_path: Path) -> None:
    """Claimed shards are neither opened nor kept waiting for."""
    source = random_checkpoint(tmp_path / "source")
    (source / "model.safetensors").unlink()
    weights = {f"t{i}": f"model-{i}.safetensors" for i in range(50_000)}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    began = process_time()
    with pytest.raises(CheckpointError, match="50000 shards; the maximum is 4096"):
        Checkpoint.open(source)
    assert process_time() - began < SECONDS
