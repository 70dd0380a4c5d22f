"""Defects found while opening a model, in its tensor table and settings, not in its values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class DefectKind(Enum):
    """What is wrong with a tensor's entry or a setting."""

    TENSOR_MISSING = auto()
    TENSOR_UNKNOWN = auto()
    TENSOR_SHAPE = auto()
    EXPERTS_TRANSPOSED = auto()
    TENSOR_UNUSABLE = auto()
    """A type or an offset that makes llama.cpp fail."""
    KEY_UNUSABLE = auto()
    """A key that makes llama.cpp fail, or compute something other than gpt-oss."""
    VOCABULARY = auto()
    """A part of the vocabulary that llama.cpp cannot use."""
    ROPE_MISSING = auto()
    ROPE_UNUSUAL = auto()
    ROPE_TYPE = auto()
    """A kind of rope scaling other than the published models'."""


@dataclass(frozen=True, slots=True)
class Defect:
    """A defect; ``tensor`` is the file's own name of a tensor, or a key; ``file`` the shard."""

    kind: DefectKind
    message: str
    tensor: str
    layer: int | None = None
    file: str | None = None
