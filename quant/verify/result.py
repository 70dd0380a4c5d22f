"""What `verify` answers: proven, or every difference and where the first one is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from gptoss.quant.location import Location


class Problem(Enum):
    """In which way a tensor of the GGUF is not what its source asks for."""

    MISSING = "missing"
    EXTRA = "extra"
    TYPE = "type"
    SHAPE = "shape"
    VALUES = "values"


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """A tensor that differs; ``expected`` and ``found`` are those of the first difference.

    ``values`` and ``scales`` count what differs; both are 0 where nothing could be compared.
    """

    tensor: str
    problem: Problem
    expected: str
    found: str
    place: Location | None = None
    values: int = 0
    scales: int = 0

    def __str__(self) -> str:
        where = f": {self.place}" if self.place else f": {self.problem.value}"
        return f"{self.tensor}{where}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True, slots=True)
class KeyDifference:
    """A metadata key that differs; of arrays, how many elements do, and the first of them."""

    key: str
    expected: str
    found: str
    elements: int = 1
    index: int | None = None

    def __str__(self) -> str:
        where = self.key if self.index is None else f"{self.key}[{self.index}]"
        return f"{where}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a comparison, and how much was compared.

    ``tensors`` and ``values`` count what was read on both sides, ``nbytes`` the bytes of both.
    """

    source: str
    gguf: str
    tensors: int
    values: int
    nbytes: int
    keys: tuple[KeyDifference, ...]
    differences: tuple[TensorDifference, ...]

    @property
    def proven(self) -> bool:
        """Whether the GGUF holds exactly what the source holds."""
        return not (self.keys or self.differences)

    @property
    def first(self) -> TensorDifference | KeyDifference | None:
        """The first difference: of the tensors in the order of the model, else of the keys."""
        return next(iter(self), None)

    def __iter__(self) -> Iterator[TensorDifference | KeyDifference]:
        yield from self.differences
        yield from self.keys

    def to_json(self) -> dict[str, Any]:
        """The same as plain data for ``json.dumps``."""
        plain = asdict(self)
        for difference, entry in zip(self.differences, plain["differences"], strict=True):
            entry["problem"] = difference.problem.value
        return {"proven": self.proven, "first": str(self.first) if self.first else None, **plain}
