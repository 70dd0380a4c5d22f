"""What differs between two models, by how much, and what that amounts to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gptoss.quant.verify.result import KeyDifference
from gptoss.text import plural

ROUNDED = 0.12
"""Relative norm up to which a tensor stored in a coarser type counts as the same, rounded."""
UNRELATED = 0.9
"""Relative norm from which on weights have nothing to do with each other: 1.4 is chance. Where that
is so of half of all tensors, it is so of the models."""


@dataclass(frozen=True, slots=True)
class ExpertChange:
    """One expert's part that changed: how many of its blocks, its relative norm, and the largest
    difference of a value."""

    expert: int
    blocks: int
    relative: float
    largest: float


@dataclass(frozen=True, slots=True)
class TensorChange:
    """A tensor that differs between A and B, by its GGUF name.

    ``changed`` of ``units`` differ: blocks of 32 values for experts, single values for all else.
    ``relative`` is ‖B - A‖ / ‖A‖, infinite where A is zero or a difference is not finite;
    ``largest`` the largest difference of a value. ``stored`` is the type in A and in B.
    """

    tensor: str
    layer: int | None
    units: int
    changed: int
    relative: float
    largest: float
    stored: tuple[str, str]
    n_experts: int = 0
    experts: tuple[ExpertChange, ...] = ()

    @property
    def is_expert(self) -> bool:
        """Whether it holds experts' weights."""
        return self.n_experts > 0

    @property
    def is_rounding(self) -> bool:
        """Whether nothing changed but the type that the values were rounded to."""
        return self.stored[0] != self.stored[1] and self.relative <= ROUNDED

    def __str__(self) -> str:
        unit = "blocks" if self.is_expert else "values"
        text = f"{self.tensor}: {self.changed / self.units:.2%} of {self.units:,} {unit}"
        if self.is_expert:
            text += f" in {len(self.experts)} of {self.n_experts} experts"
        text += f", relative norm {self.relative:.3g}, largest difference {self.largest:.3g}"
        return text + (f" ({' → '.join(self.stored)})" if self.stored[0] != self.stored[1] else "")


@dataclass(frozen=True, slots=True)
class Diff:
    """Two models compared. ``equal`` counts the tensors that hold the same values on both sides,
    ``apart`` names those that only one side has or that differ in shape, ``unread`` those of a type
    that cannot be looked into."""

    a: str
    b: str
    nbytes: int
    equal: int
    equal_experts: int
    changes: tuple[TensorChange, ...]
    apart: tuple[str, ...]
    unread: tuple[str, ...]
    keys: tuple[KeyDifference, ...]

    @property
    def same(self) -> bool:
        """Whether no value and no setting differs."""
        return not (self.changes or self.apart or self.unread or self.keys)

    @property
    def verdict(self) -> str:
        """What the differences amount to, in a sentence."""
        unread = f"; {len(self.unread)} tensors were not compared" if self.unread else ""
        return _verdict(self) + unread

    def to_json(self) -> dict[str, Any]:
        """The same as plain data for ``json.dumps``; an infinite norm is null."""
        plain = asdict(self)
        for change in (*plain["changes"], *(e for c in plain["changes"] for e in c["experts"])):
            for name in ("relative", "largest"):
                if not change[name] < float("inf"):
                    change[name] = None
        return {"same": self.same, "verdict": self.verdict, **plain}


def _verdict(diff: Diff) -> str:
    changes = [change for change in diff.changes if not change.is_rounding]
    experts = [change for change in changes if change.is_expert]
    others = [change for change in changes if not change.is_expert]
    rounded = len(diff.changes) - len(changes)
    if diff.apart:
        n = len(diff.apart)
        return f"not the same model: {n} tensors are on one side only or differ in shape"
    if not changes:
        return _unchanged(diff, rounded)
    if _median([0.0] * diff.equal + [change.relative for change in diff.changes]) >= UNRELATED:
        return "unrelated: neither was made from the other"
    n_experts = len(experts) + diff.equal_experts
    said = []
    if experts:
        layers = len({change.layer for change in experts})
        said.append(
            f"{len(experts)} of {n_experts} expert tensors changed, in {plural(layers, 'layer')}"
        )
    elif n_experts:
        said.append(
            "no expert tensor changed: if experts were trained, their adapter was not merged"
        )
    if others:
        said.append(f"{plural(len(others), 'other tensor')} changed ({_kinds(others)})")
    else:
        said.append("nothing else changed")
    if rounded:
        said.append(f"{rounded} tensors are the same but for rounding")
    return "; ".join(said)


def _unchanged(diff: Diff, rounded: int) -> str:
    if diff.keys:
        n = len(diff.keys)
        return f"the same weights, but {plural(n, 'setting')} {'differs' if n == 1 else 'differ'}"
    if not rounded:
        return "the same: no tensor changed; if one is a fine-tune, its adapter was not merged"
    types = sorted({" → ".join(change.stored) for change in diff.changes})
    some = "of experts too " if any(change.is_expert for change in diff.changes) else ""
    return f"the same model, {rounded} tensors {some}rounded to another type ({', '.join(types)})"


def _kinds(changes: Sequence[TensorChange]) -> str:
    """Which tensors, without their layers."""
    kinds = {change.tensor.split(".", 2)[-1] if change.layer is not None else change.tensor
             for change in changes}  # fmt: skip
    listed = sorted(kinds)
    return ", ".join(listed[:4]) + (", ..." if len(listed) > 4 else "")


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
