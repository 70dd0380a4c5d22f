"""GGUF headers: read right, lazily and fast; hostile ones refused in bounded time."""

from __future__ import annotations

import struct
from pathlib import Path
from time import process_time
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType, GGUFValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptoss.errors import GgufError
from gptoss.formats import gguf_cursor
from gptoss.formats.gguf import GgufFile
from gptoss.formats.gguf_strings import StringArray

U32, U64 = struct.Struct("<I").pack, struct.Struct("<Q").pack
VALUES: dict[str, tuple[str, Any]] = {
    "a.u8": ("uint8", 255), "a.i8": ("int8", -128), "a.u16": ("uint16", 65535),
    "a.i16": ("int16", -3), "a.u32": ("uint32", 2**32 - 1), "a.i32": ("int32", -(2**31)),
    "a.u64": ("uint64", 2**64 - 1), "a.i64": ("int64", -(2**63)), "a.f32": ("float32", 0.5),
    "a.f64": ("float64", 0.1), "a.yes": ("bool", True), "a.no": ("bool", False),
    "a.text": ("string", "ünïcode \0 and more"), "a.ints": ("array", [1, -2, 3]),
    "a.floats": ("array", [0.5, 2.0]), "a.bools": ("array", [True, False]),
    "a.texts": ("array", ["", "Ġhello", "世界"]),
}  # fmt: skip
MATRIX = np.arange(6, dtype=np.float32).reshape(2, 3)
QUANTIZED = np.arange(4 * 34, dtype=np.uint8).reshape(2, 2 * 34)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file as the gguf package writes it."""
    found = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(found, "gpt-oss")
    for key, (kind, value) in VALUES.items():
        getattr(writer, f"add_{kind}")(key, value)
    writer.add_tensor("matrix", MATRIX)
    writer.add_tensor("quantized", QUANTIZED, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found


def test_metadata(path: Path) -> None:
    file = GgufFile.open(path)
    assert file.version == 3
    assert file.metadata["general.architecture"] == "gpt-oss"
    for key, (kind, value) in VALUES.items():
        found = file.metadata[key]
        assert list(found) == value if kind == "array" else found == value
        assert kind == "array" or type(found) is type(value)
    assert file.types["a.i16"] is GGUFValueType.INT16
    assert file.types["a.texts"] is GGUFValueType.STRING


def test_tensors(path: Path) -> None:
    file, raw = GgufFile.open(path), path.read_bytes()
    matrix, quantized = file.tensors["matrix"], file.tensors["quantized"]
    assert (matrix.type, matrix.shape) == (GGMLQuantizationType.F32, (3, 2))
    assert raw[matrix.offset : matrix.offset + matrix.nbytes] == MATRIX.tobytes()
    assert (quantized.type, quantized.shape) == (GGMLQuantizationType.Q8_0, (64, 2))
    assert raw[quantized.offset : quantized.offset + quantized.nbytes] == QUANTIZED.tobytes()


def test_strings_are_a_sequence(path: Path) -> None:
    texts = GgufFile.open(path).metadata["a.texts"]
    assert isinstance(texts, StringArray)
    assert len(texts) == 3
    assert (texts[1], texts[-1], texts[:2]) == ("Ġhello", "世界", ["", "Ġhello"])
    assert "世界" in texts
    with pytest.raises(IndexError):
        texts[3]


# --- files put together by hand ---------------------------------------------------------------


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return U64(len(raw)) + raw


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + U32(kind) + value


def tensor(name: str = "t", shape: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + U32(len(shape)) + b"".join(map(U64, shape)) + U32(kind) + U64(offset)


def file(*parts: bytes, tensors: int = 0, keys: int = 0, version: int = 3, data: int = 0) -> bytes:
    raw = b"GGUF" + U32(version) + U64(tensors) + U64(keys) + b"".join(parts)
    return raw + bytes(-len(raw) % 32) + bytes(data)


STRING, ARRAY, BOOL, UINT32 = (
    int(GGUFValueType[name]) for name in ("STRING", "ARRAY", "BOOL", "UINT32")
)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not a GGUF file: it is empty"),
        (b"GGUF", "not a GGUF file: it has 4 bytes; it is truncated"),
        (b"GGML" + bytes(40), "not a GGUF file: it starts with b'GGML', expected b'GGUF'"),
        (file(version=1), "GGUF version 1; versions 2 and 3 can be read"),
        (file(version=4), "GGUF version 4"),
        (file(version=3 << 24), "big-endian"),
        (file(keys=2**63), "claims 9223372036854775808 metadata keys"),
        (file(keys=4), "claims 4 metadata keys, more than it can hold; the file is truncated"),
        (file(tensors=2**40), "claims 1099511627776 tensors"),
        (file(U64(2**62) + bytes(40), keys=1), "metadata key 0 claims 4611686018427387904 bytes"),
        (file(key("a", STRING, U64(2**64 - 1)), keys=1), "a claims 18446744073709551615 bytes"),
        (file(key("a", 13, bytes(8)), keys=1), "a has unknown value type 13"),
        (file(key("a", BOOL, b"\2"), bytes(8), keys=1), "a is neither true nor false"),
        (file(text(b"\xff") + U32(0) + bytes(9), keys=1), "metadata key 0 is not UTF-8"),
        (file(key("a", ARRAY, U32(ARRAY) + U64(0)), keys=1), "array of arrays"),
        (file(key("a", ARRAY, U32(UINT32) + U64(2**62)), keys=1), "claims .* elements of a"),
        (file(key("a", ARRAY, U32(STRING) + U64(2**61)), keys=1), "claims .* elements of a"),
        (
            file(key("a", ARRAY, U32(STRING) + U64(2) + text("x") + U64(2**63)), bytes(8), keys=1),
            "ends within a",
        ),
        (file(*[key("a", UINT32, U32(1))] * 2, keys=2), "the key 'a' occurs twice"),
        (
            file(key("a\0b", UINT32, U32(1)), keys=1),
            r"metadata key 0 is 'a\\x00b'; expected printable",
        ),
        (file(key("a\x1b[2J", UINT32, U32(1)), keys=1), "expected printable ASCII"),
        (file(key("é", UINT32, U32(1)), keys=1), "expected printable ASCII"),
        (file(key("", UINT32, U32(1)), keys=1), "expected printable ASCII"),
        (file(tensor("t\0"), tensors=1, data=32), "the name of tensor 0 is .* expected printable"),
        (file(tensor("t\n"), tensors=1, data=32), "expected printable ASCII"),
        (file(key("general.alignment", UINT32, U32(24)), keys=1), "24; expected a power of two"),
        (file(key("general.alignment", UINT32, U32(0)), keys=1), "0; expected a power of two"),
        (
            file(key("general.alignment", STRING, text("32")), keys=1),
            "'32'; expected a power of two",
        ),
        (file(tensor(shape=()), bytes(8), tensors=1), "'t' has 0 dimensions"),
        (file(tensor(shape=(1,) * 5), tensors=1), "'t' has 5 dimensions"),
        (file(tensor(shape=(2**63, 2)), tensors=1), "impossible shape"),
        (file(tensor(shape=(8, 0)), tensors=1), "impossible shape"),
        (file(tensor(shape=(33,), kind=8), tensors=1, data=99), "impossible shape"),
        (file(tensor(kind=4), tensors=1, data=99), "unknown type 4"),
        (file(tensor(kind=10**6), tensors=1, data=99), "unknown type 1000000"),
        (file(tensor(), tensors=1, data=31), "would end at byte"),
        (file(tensor(offset=2**64 - 32), tensors=1, data=32), "would end at byte"),
        (file(tensor(offset=4), tensors=1, data=99), "not aligned to 32 bytes"),
        (file(tensor("a"), tensor("b"), tensors=2, data=99), "'b' overlaps 'a'"),
        (file(tensor("a"), tensor("a", offset=32), tensors=2, data=99), "'a' occurs twice"),
    ],
)
def test_hostile_headers_are_refused(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(raw)
    with pytest.raises(GgufError, match=message) as caught:
        GgufFile.open(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_smallest_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(file())
    assert GgufFile.open(path).tensors == {}
    path.write_bytes(file(tensor(), tensors=1, data=32, version=2))
    assert GgufFile.open(path).tensors["t"].nbytes == 32


@pytest.mark.parametrize(
    "head",
    [
        file(key("a", ARRAY, U32(STRING) + U64(2**21)), keys=1),
        file(key("a", ARRAY, U32(UINT32) + U64(2**24)), keys=1),
        file(key("a", STRING, U64(2**29)), keys=1),
    ],
    ids=["strings", "numbers", "text"],
)
def test_a_header_without_end_is_given_up(tmp_path: Path, head: bytes) -> None:
    """A sparse gigabyte of zeros bears out any claim; time and memory stay bounded all the same."""
    path = tmp_path / "a.gguf"
    with path.open("wb") as out:
        out.write(head)
        out.truncate(2**30)
    began = process_time()
    with pytest.raises(GgufError, match=r"more than|limit"):
        GgufFile.open(path)
    assert process_time() - began < 20


def test_damaged_strings_are_found_when_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    strings = U64(2) + text("good") + text(b"\xff")
    path.write_bytes(file(key("a", ARRAY, U32(STRING) + strings), keys=1))
    with pytest.raises(GgufError, match=r"a\[1\]: not UTF-8"):
        GgufFile.open(path).metadata["a"][0]


def array_of(texts: list[bytes]) -> StringArray:
    raw = b"".join(U64(len(it)) + it for it in texts)
    return StringArray(raw, [*map(len, texts)], "a.gguf: a")


TEXTS = st.lists(
    st.sampled_from([b"", b"\0", b"a", b"\0" * 7, b"\3" + b"\0" * 7, b"ab" * 127, b"c" * 256])
    | st.binary(max_size=12),
    max_size=40,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXTS, st.integers(1, 80))
def test_lengths_of_strings_are_those_of_a_walk(
    tmp_path: Path, texts: list[bytes], first_read: int
) -> None:
    """Whatever the texts contain, and wherever the part of the file that was read ends."""
    path = tmp_path / "a.gguf"
    strings = U64(len(texts)) + b"".join(map(text, texts))
    path.write_bytes(
        file(key("a", ARRAY, U32(STRING) + strings) + key("b", UINT32, U32(7)), keys=2)
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gguf_cursor, "FIRST_READ", first_read)
        metadata = GgufFile.open(path).metadata
    assert metadata["a"]._sizes.tolist() == [*map(len, texts)]
    assert metadata["b"] == 7


@settings(deadline=None)
@given(st.lists(st.binary(max_size=3) | st.text(max_size=300).map(str.encode), max_size=6))
def test_a_nul_is_found_without_decoding(texts: list[bytes]) -> None:
    """Also where a character is cut between two texts, which together are UTF-8."""
    try:
        expected = "\0" in "".join([it.decode() for it in texts])
    except UnicodeDecodeError:
        with pytest.raises(GgufError, match=r"a\.gguf: a\[\d+\]: not UTF-8"):
            array_of(texts).has_nul()
        return
    assert array_of(texts).has_nul() is expected
    decoded = array_of(texts)
    assert list(decoded) == [it.decode() for it in texts]
    assert decoded.has_nul() is expected


@pytest.mark.parametrize("texts", [[b"\xc3", b"\xa9"], [b"a\xe2\x82", b"", b"\xac"]])
def test_a_character_cut_in_two_is_not_utf_8(texts: list[bytes]) -> None:
    with pytest.raises(GgufError, match=r"a\[0\]: not UTF-8"):
        array_of(texts).has_nul()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_refused_or_harmless(path: Path, data: st.DataObject) -> None:
    """Whatever bytes change: a GgufError, or tensors inside the file and strings that decode."""
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    damaged = path.with_name("damaged.gguf")
    damaged.write_bytes(raw[: data.draw(st.sampled_from([len(raw), *range(len(raw))]))])
    try:
        file = GgufFile.open(damaged)
        for value in file.metadata.values():
            if isinstance(value, StringArray):
                list(value)
    except GgufError:
        return
    assert all(t.offset + t.nbytes <= len(raw) for t in file.tensors.values())


def test_a_full_vocabulary_is_fast(tmp_path: Path) -> None:
    """201,088 tokens and 446,189 merges; the aim is half a second, with room for slow machines.

    Who does not look at the strings does not pay for decoding them.
    """
    path = tmp_path / "a.gguf"
    tokens = b"".join(text(f"token{i}") for i in range(201_088))
    merges = b"".join(text(f"left{i} right") for i in range(446_189))
    path.write_bytes(
        file(
            key("tokenizer.ggml.tokens", ARRAY, U32(STRING) + U64(201_088) + tokens),
            key("tokenizer.ggml.merges", ARRAY, U32(STRING) + U64(446_189) + merges),
            keys=2,
        )
    )
    began = process_time()
    found = GgufFile.open(path)
    assert process_time() - began < 1.0
    assert len(found.metadata["tokenizer.ggml.merges"]) == 446_189
    assert found.metadata["tokenizer.ggml.tokens"][201_087] == "token201087"
