"""GGUF files taken apart and put together again, by the gguf package."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

Key = tuple[GGUFValueType, GGUFValueType | None, Any]
"""A value's type, of an array its elements', and the value."""


@dataclass
class Model:
    """A file's keys and tensors by name; a tensor's bytes with its type and row-major shape."""

    keys: dict[str, Key] = field(default_factory=dict)
    tensors: dict[str, tuple[GGMLQuantizationType, tuple[int, ...], NDArray[np.uint8]]] = field(
        default_factory=dict
    )

    def set(self, key: str, kind: GGUFValueType, value: Any) -> None:
        """Put a value that is no array."""
        self.keys[key] = (kind, None, value)

    def rename(self, change: Callable[[str], str]) -> None:
        """Give every tensor the name that ``change`` makes of its own."""
        self.tensors = {change(name): tensor for name, tensor in self.tensors.items()}


class _Writer(gguf.GGUFWriter):  # type: ignore[misc]
    """One that can write an empty array, too: a vocabulary of single bytes has no merges."""

    def _pack_val(
        self,
        val: Any,
        vtype: GGUFValueType,
        add_vtype: bool,
        sub_type: GGUFValueType | None = None,
    ) -> bytes:
        if vtype is GGUFValueType.ARRAY and len(val) == 0:
            return struct.pack("<IIQ", vtype, sub_type or GGUFValueType.STRING, 0)
        packed: bytes = super()._pack_val(val, vtype, add_vtype, sub_type)
        return packed


def load(path: Path) -> Model:
    """Everything in a file."""
    reader = gguf.GGUFReader(path)
    model = Model()
    for name, entry in reader.fields.items():
        if not name.startswith("GGUF."):
            element = entry.types[1] if len(entry.types) > 1 else None
            model.keys[name] = (entry.types[0], element, entry.contents())
    for tensor in reader.tensors:
        raw = np.array(tensor.data).reshape(-1).view(np.uint8)
        shape = tuple(int(n) for n in reversed(tensor.shape))
        model.tensors[tensor.name] = (tensor.tensor_type, shape, raw)
    return model


def save(path: Path, model: Model) -> Path:
    """Write a file."""
    writer = _Writer(path, model.keys["general.architecture"][2])
    for key, (kind, element, value) in model.keys.items():
        if key != "general.architecture":
            writer.add_key_value(key, value, kind, element)
    for name, (tensor_type, shape, raw) in model.tensors.items():
        writer.add_tensor_info(name, shape, np.dtype(np.float32), len(raw), tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, _, raw in model.tensors.values():
        writer.write_tensor_data(raw)
    writer.close()
    return path


def edited(path: Path, edit: Callable[[Model], object]) -> Path:
    """The file itself, changed."""
    model = load(path)
    edit(model)
    return save(path, model)


def tensors_of(path: Path) -> dict[str, bytes]:
    """Every tensor's bytes, by name."""
    return {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(path).tensors}


def values_of(path: Path) -> dict[str, NDArray[np.float32]]:
    """Every tensor's values, by name, as the gguf package decodes them."""
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(
            tensor.shape[::-1]
        )
        for tensor in gguf.GGUFReader(path).tensors
    }
