"""Ways to damage a GGUF that a repair finds, and the comparison of two files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gguf.constants import GGUFValueType

from gptoss.formats.gguf import GgufFile
from support.ggufs import Model

ROPE = "gpt-oss.rope."


def same(one: Path, other: Path) -> bool:
    """Return whether two files hold the same keys and tensors, in whatever order."""
    a, b = GgufFile.open(one), GgufFile.open(other)
    raws = one.read_bytes(), other.read_bytes()
    keys = {
        key: (file.types[key], list(value) if hasattr(value, "__len__") else value)
        for file in (a, b)
        for key, value in file.metadata.items()
    }
    assert a.metadata.keys() == b.metadata.keys()
    for file in (a, b):
        for key, value in file.metadata.items():
            found = list(value) if hasattr(value, "__len__") else value
            assert keys[key] == (file.types[key], found), key
    assert a.tensors.keys() == b.tensors.keys()
    for name, tensor in a.tensors.items():
        other_tensor = b.tensors[name]
        assert (tensor.type, tensor.shape) == (other_tensor.type, other_tensor.shape), name
        bytes_of = [
            raw[t.offset : t.offset + t.nbytes]
            for raw, t in zip(raws, (tensor, other_tensor), strict=True)
        ]
        assert bytes_of[0] == bytes_of[1], name
    return True


def without(*keys: str) -> Callable[[Model], None]:
    """Damage a model by removing keys."""

    def damage(model: Model) -> None:
        for key in keys:
            del model.keys[key]

    return damage


def with_key(key: str, kind: GGUFValueType, value: Any) -> Callable[[Model], None]:
    """Damage a model by giving a key another value."""
    return lambda model: model.set(key, kind, value)
