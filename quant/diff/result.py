"""The result of a comparison: what differs between two models, by how much, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from gptoss.quant.verify.result import KeyDifference
from gptoss.text import plural

ROUNDED = 0.12
"""Relative norm up to which a tensor in another type counts as equal but for rounding."""
UNRELATED = 0.9
"""Relative norm of weights that are unrelated: chance gives 1.4. Models are unrelated when half of
their tensors are."""


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
        """Return whether a changed tensor in the result of a comparison holds experts' weights."""
        return self.n_experts > 0

    @property
    def is_rounding(self) -> bool:
        """Return whether a tensor differs between the models only by rounding to another type."""
        return self.stored[0] != self.stored[1] and self.relative <= ROUNDED

    def __str__(self) -> str:
        unit = "blocks" if self.is_expert else "values"
        text = f"{self.tensor}: {self.changed / self.units:.2%} of {self.units:,} {unit}"
        if self.is_expert:
            text += f" in {len(self.experts)} of {self.n_experts} experts"
        text += f", relative norm {self.relative:.3g}, largest difference {self.largest:.3g}"
        return text + (f" ({' → '.join(self.stored)})" if self.stored[0] != self.stored[1] else "")


class Verdict(StrEnum):
    """What a comparison concludes."""

    SAME = "same"
    """Every tensor was read; no value and no setting differs."""
    DIFFERENT = "different"
    """A value, a setting or a tensor differs."""
    NOT_JUDGED = "not judged"
    """Nothing differs but what rounding explains, and some tensors could not be read."""


@dataclass(frozen=True, slots=True)
class Diff:
    """Two models compared. True only if they are the same.

    ``equal`` counts the tensors that hold the same values on both sides, ``zero_signs`` names those
    of them that differ in the sign of zeros. ``apart`` names tensors that only one side has or that
    differ in shape, ``unread`` those that could not be read. ``one_container`` says whether both
    are checkpoints or both GGUFs. ``program_keys`` differ too, but are not part of the model: the
    verdict does not depend on them (see ``quant/verify/program_keys.py``).
    """

    a: str
    b: str
    nbytes: int
    equal: int
    equal_experts: int
    changes: tuple[TensorChange, ...]
    apart: tuple[str, ...]
    unread: tuple[str, ...]
    keys: tuple[KeyDifference, ...]
    zero_signs: tuple[str, ...] = ()
    one_container: bool = True
    program_keys: tuple[KeyDifference, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Return the verdict on two compared models: a difference outweighs tensors that could not
        be read.
        """
        rounding = all(change.is_rounding for change in self.changes)
        if self.unread and rounding and not (self.apart or self.keys):
            return Verdict.NOT_JUDGED
        if self.changes or self.apart or self.keys:
            return Verdict.DIFFERENT
        return Verdict.SAME

    @property
    def same(self) -> bool:
        """Return whether two compared models are equal: every tensor read, no value and no setting
        differs.
        """
        return self.verdict is Verdict.SAME

    def __bool__(self) -> bool:
        return self.same

    @property
    def headline(self) -> str:
        """Summarise in a sentence what the differences between two models amount to."""
        unread = f"{plural(len(self.unread), 'tensor')} could not be read"
        if self.verdict is Verdict.NOT_JUDGED:
            rest = "is equal but for rounding" if self.changes else f"is {_equal(self)}"
            return f"not judged: {unread}; the rest {rest}"
        return _differences(self) + (f"; {unread}" if self.unread else "")

    def to_json(self) -> dict[str, Any]:
        """Return the result of a comparison of two models as plain data for ``json.dumps``; an
        infinite norm is null.
        """
        plain = asdict(self)
        for change in (*plain["changes"], *(e for c in plain["changes"] for e in c["experts"])):
            for name in ("relative", "largest"):
                if not change[name] < float("inf"):
                    change[name] = None
        verdict = {"verdict": self.verdict.value, "headline": self.headline, "same": self.same}
        return verdict | plain


def _differences(diff: Diff) -> str:
    changes = [change for change in diff.changes if not change.is_rounding]
    rounded = len(diff.changes) - len(changes)
    if diff.apart:
        n = len(diff.apart)
        return f"not the same model: {plural(n, 'tensor')} only in one of them or of another shape"
    if not changes:
        return _unchanged(diff, rounded)
    if _median([0.0] * diff.equal + [change.relative for change in diff.changes]) >= UNRELATED:
        return "unrelated: neither was made from the other"
    clauses = [*_changed(diff, changes)]
    if rounded:
        clauses.append(f"{plural(rounded, 'tensor')} equal but for rounding")
    return "; ".join(clauses)


def _changed(diff: Diff, changes: Sequence[TensorChange]) -> Iterator[str]:
    experts = [change for change in changes if change.is_expert]
    others = [change for change in changes if not change.is_expert]
    n_experts = len(experts) + diff.equal_experts
    if experts:
        layers = len({change.layer for change in experts})
        yield f"{len(experts)} of {n_experts} expert tensors changed, in {plural(layers, 'layer')}"
    elif _is_round_trip(changes):
        largest = max(change.relative for change in changes)
        yield (
            f"no expert tensor changed; all {len(changes)} other matrices changed by at most "
            f"{largest:.1%}, as after rounding to another type and back"
        )
        return
    elif n_experts:
        advice = ": if experts were trained, their adapter was not merged"
        yield "no expert tensor changed" + (advice if diff.one_container else "")
    if others:
        yield f"{plural(len(others), 'other tensor')} changed ({_kinds(others)})"
    else:
        yield "nothing else changed"


def _is_round_trip(changes: Sequence[TensorChange]) -> bool:
    """Return whether two models differ only by a round trip through another type: all matrices
    outside the experts, and they alone, changed by one small amount.

    Rounding to another type does that. Training does not: it moves norms and biases too, or with
    an adapter leaves the embedding alone.
    """
    kinds = {_kind(change) for change in changes}
    sizes = [change.relative for change in changes]
    return kinds == _MATRICES and max(sizes) <= ROUNDED and max(sizes) <= 4 * min(sizes)


_MATRICES = {
    "token_embd.weight", "output.weight",
    "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight",
}  # fmt: skip


def _unchanged(diff: Diff, rounded: int) -> str:
    if diff.keys:
        n = len(diff.keys)
        weights = "the weights that could be read are equal" if diff.unread else "the same weights"
        return f"{weights}, but {plural(n, 'setting')} {'differs' if n == 1 else 'differ'}"
    if not rounded:
        advice = "; if one is a fine-tune, its adapter was not merged"
        return f"the same: all tensors are {_equal(diff)}" + (
            advice if diff.one_container and not diff.zero_signs else ""
        )
    types = sorted({" → ".join(change.stored) for change in diff.changes})
    some = " of experts too" if any(change.is_expert for change in diff.changes) else ""
    return (
        f"the same model, {plural(rounded, 'tensor')}{some} rounded to another type "
        f"({', '.join(types)})"
    )


def _equal(diff: Diff) -> str:
    if not diff.zero_signs:
        return "equal"
    return f"equal but for the sign of zeros in {plural(len(diff.zero_signs), 'tensor')}"


def _kind(change: TensorChange) -> str:
    """Strip the layer from a changed tensor's name, to group the models' differences by kind."""
    return change.tensor.split(".", 2)[-1] if change.layer is not None else change.tensor


def _kinds(changes: Sequence[TensorChange]) -> str:
    listed = sorted({_kind(change) for change in changes})
    return ", ".join(listed[:4]) + (", ..." if len(listed) > 4 else "")


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
