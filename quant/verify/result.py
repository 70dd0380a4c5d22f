"""The result of `verify`: the outcome, and its evidence for every tensor and key."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum, StrEnum
from typing import Any

from gptoss.quant.location import Location
from gptoss.text import plural


class Problem(Enum):
    """How a tensor of the GGUF differs from what its source requires."""

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


class Outcome(StrEnum):
    """The outcome of a comparison."""

    PROVEN = "proven"
    SAME_VALUES = "equal but for the sign of zeros"
    """All values are equal, but some are encoded differently: 0 as -0, or with another scale."""
    DIFFERENT = "different"
    NOT_JUDGED = "not judged"
    """Nothing differs, but some tensors cannot be proven."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """Tensors that are correctly rounded to a type.

    ``largest_error`` is the largest difference of a value from the source, found in ``tensor``.
    """

    type: str
    tensors: int
    largest_error: float
    tensor: str

    def __str__(self) -> str:
        count = plural(self.tensors, "tensor")
        return (
            f"{count} rounded to {self.type}, as its reference rounds; the largest error of a "
            f"value is {self.largest_error:.3g}, in {self.tensor}"
        )


@dataclass(frozen=True, slots=True)
class Reencoding:
    """A tensor with the source's values encoded differently: 0 as -0, or with other scales."""

    tensor: str
    values: int
    scales: int


@dataclass(frozen=True, slots=True)
class Unproven:
    """A tensor that cannot be compared with its source, and the reason."""

    tensor: str
    type: str
    reason: str

    def __str__(self) -> str:
        return f"{self.tensor}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a comparison, and how much was compared. True only if proven.

    ``tensors`` and ``values`` count what was read on both sides, ``nbytes`` the bytes of both.
    ``program_keys`` differ too, but do not belong to the model: the outcome ignores them
    (see ``program_keys``).
    """

    source: str
    gguf: str
    tensors: int
    values: int
    nbytes: int
    keys: tuple[KeyDifference, ...]
    differences: tuple[TensorDifference, ...]
    roundings: tuple[Rounding, ...] = ()
    reencodings: tuple[Reencoding, ...] = ()
    unproven: tuple[Unproven, ...] = ()
    program_keys: tuple[KeyDifference, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """Return the outcome of `verify`: differences count first, then what could
        not be proven.
        """
        if self.keys or self.differences:
            return Outcome.DIFFERENT
        if self.unproven:
            return Outcome.NOT_JUDGED
        return Outcome.SAME_VALUES if self.reencodings else Outcome.PROVEN

    @property
    def proven(self) -> bool:
        """Return whether `verify` proved that the GGUF holds the source's values or their correct
        rounding.
        """
        return self.outcome in (Outcome.PROVEN, Outcome.SAME_VALUES)

    def __bool__(self) -> bool:
        return self.proven

    @property
    def first(self) -> TensorDifference | KeyDifference | None:
        """Return the first difference that `verify` found: of the tensors in model order, else of
        the keys.
        """
        return self.differences[0] if self.differences else next(iter(self.keys), None)

    @property
    def equal(self) -> int:
        """Return how many tensors `verify` found to hold the source's values or their correct
        rounding.
        """
        compared = sum(it.problem is Problem.VALUES for it in self.differences)
        return self.tensors - compared

    def to_json(self) -> dict[str, Any]:
        """Return the result of `verify` as plain data for ``json.dumps``."""
        plain = asdict(self)
        for difference, entry in zip(self.differences, plain["differences"], strict=True):
            entry["problem"] = difference.problem.value
        first = str(self.first) if self.first else None
        return {"outcome": self.outcome.value, "proven": self.proven, "first": first, **plain}
