"""Safetensors files taken apart and put together again, right or wrong."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from gptoss.formats.safetensors import TensorInfo

Contents = dict[str, tuple[str, list[int], bytes]]
"""dtype, shape and bytes by name, in the order of the data."""


def load(path: Path) -> Contents:
    """Everything in a sound file."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    contents = {}
    for name, entry in header.items():
        begin, end = (8 + length + at for at in entry["data_offsets"])
        contents[name] = (entry["dtype"], entry["shape"], raw[begin:end])
    return contents


def save(path: Path, contents: Contents) -> None:
    """A sound file."""
    header, data = {}, b""
    for name, (dtype, shape, raw) in contents.items():
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += raw
    write(path, header, data)


def write(path: Path, header: Mapping[str, Any] | str, data: bytes) -> None:
    """A file with any header, true or not; text is taken as it stands."""
    text = header if isinstance(header, str) else json.dumps(header)
    path.write_bytes(struct.pack("<Q", len(text.encode())) + text.encode() + data)


def data_of(info: TensorInfo) -> bytearray:
    """A tensor's bytes."""
    out = bytearray(info.nbytes)
    with closing(info.file):
        info.file.read_into(info.offset, out)
    return out
