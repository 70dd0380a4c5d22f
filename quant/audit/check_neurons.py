"""Check the order of the experts' hidden neurons, by the norms of their rows and columns.

Swapped nibbles are as plausible as any other numbers. But in a trained model a hidden neuron's
three vectors (its row of gate, its row of up, its column of down) grow together: their norms are
correlated over the neurons, in the right order and in no other. So each likely mistake is undone in
turn: where the norms then correlate and otherwise do not, the mistake was made. In random weights
nothing correlates, and nothing is reported. `check_channels` does the same for the other side of
these matrices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptoss.quant import mxfp4
from gptoss.quant.audit.findings import Finding, FindingKind, Severity
from gptoss.quant.model.reader import TensorReader, sample_rows
from gptoss.quant.model.tensors import MXFP4, Encoding, ExpertTensor, Part

VALUES = 2**20
"""Values of a tensor that are decoded for one profile, about."""
SURE = 6.0
"""Standard deviations of a correlation from 0 that chance does not give."""

NormProfile = NDArray[np.float64]
"""Logarithms of norms, ``[experts, n]``."""
Order = NDArray[np.int64]
"""A permutation of the 32 places of a block."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's expert tensors, all three parts."""

    gate_up: tuple[ExpertTensor, ...]
    down: ExpertTensor


def layers(experts: Sequence[ExpertTensor]) -> Iterator[Layer]:
    """Yield the layers that have all three expert parts (gate, up, down), as the check of the
    neurons' order needs them.
    """
    for number in sorted({it.layer for it in experts}):
        mine = {it.parts: it for it in experts if it.layer == number}
        down = mine.pop((Part.DOWN,), None)
        gate_up = tuple(mine[parts] for parts in sorted(mine))
        if down is not None and sum(len(it.parts) for it in gate_up) == 2:
            yield Layer(gate_up, down)


def check_layer(files: TensorReader, layer: Layer) -> Iterator[Finding]:
    """Check the neurons' order in a layer's experts: do the rows of gate and up agree with the
    columns of down?
    """
    rows: dict[Part, NormProfile] = {}
    for tensor in layer.gate_up:
        rows |= _row_norms(files, tensor)
    gate, up = rows[Part.GATE], rows[Part.UP]
    columns = _column_norms(files, layer.down)[Part.DOWN]
    neurons = _standard(gate) + _standard(up)
    found = _correlation(neurons, columns)
    tried = {
        kind: _correlation(neurons, _reordered(columns, order))
        for kind, order in block_orders(layer.down.encoding).items()
    }
    yield from _verdict(layer.down, found, tried, "its neurons' rows")
    halves = _correlation(_regrouped(gate, up, interleaved=len(layer.gate_up) == 1), columns)
    tried = {FindingKind.GATE_UP_HALVES: halves}
    yield from _verdict(layer.gate_up[0], found, tried, "down's columns, neuron by neuron")


def _regrouped(gate: NormProfile, up: NormProfile, *, interleaved: bool) -> NormProfile:
    """Compute the neurons' norm profile as if gate's and up's rows were grouped the other way: as
    halves, or alternating.
    """
    n = gate.shape[1]
    if interleaved:
        rows = np.stack([gate, up], axis=-1).reshape(-1, 2 * n)
        return _standard(rows[:, :n]) + _standard(rows[:, n:])
    rows = np.concatenate([gate, up], axis=1)
    return _standard(rows[:, 0::2]) + _standard(rows[:, 1::2])


def _verdict(
    tensor: ExpertTensor, found: float, tried: Mapping[FindingKind, float], what: str
) -> Iterator[Finding]:
    """Report the mistake (swapped nibbles, block order, gate and up as halves) that explains why
    the neurons' norms disagree, if one does.
    """
    if not tried:
        return
    kind = max(tried, key=lambda it: tried[it])
    if tried[kind] >= SURE and found < tried[kind] / 2:
        yield Finding(
            kind,
            Severity.ERROR,
            f"once that is undone, the norms of {'/'.join(tensor.parts)} agree with those of "
            f"{what} ({tried[kind]:.0f} standard deviations), as stored they do not "
            f"({found:.0f})",
            tensor.name,
            tensor.layer,
        )


# --- profiles ---------------------------------------------------------------------------------


def _row_norms(files: TensorReader, tensor: ExpertTensor) -> dict[Part, NormProfile]:
    """Compute the norms of the neurons' rows in gate or up, over the first columns, by part."""
    n = min(tensor.columns, max(1, VALUES // tensor.rows // mxfp4.BLOCK) * mxfp4.BLOCK)
    return _norms(files, tensor, slice(0, n), 1, axis=1)


def _column_norms(files: TensorReader, tensor: ExpertTensor) -> dict[Part, NormProfile]:
    """Compute the norm profile of the neurons' columns in down, over evenly spaced rows."""
    step = max(1, tensor.rows * tensor.columns // VALUES)
    return _norms(files, tensor, slice(None), step, axis=0)


def _norms(
    files: TensorReader, tensor: ExpertTensor, columns: slice, step: int, axis: int
) -> dict[Part, NormProfile]:
    each = len(range(0, tensor.rows, step)) * len(range(tensor.columns)[columns])
    experts = range(min(tensor.experts, max(1, VALUES // each)))
    found: dict[Part, list[NormProfile]] = {part: [] for part in tensor.parts}
    for expert in experts:
        for part, values in sample_rows(files, tensor, expert, columns, step).items():
            with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
                found[part].append(np.log(np.square(values.astype(np.float64)).mean(axis=axis)) / 2)
    return {part: np.array(profiles) for part, profiles in found.items()}


def _standard(profile: NormProfile) -> NormProfile:
    """Standardise each expert's profile of neuron norms to mean 0 and deviation 1; NaN and infinity
    count as the mean.
    """
    finite = np.where(np.isfinite(profile), profile, np.nan)
    if not np.isfinite(finite).any(axis=1).all():
        return np.zeros_like(profile)
    finite = finite - np.nanmean(finite, axis=1, keepdims=True)
    deviation = np.nanstd(finite, axis=1, keepdims=True)
    scaled: NormProfile = np.nan_to_num(finite / np.where(deviation > 0, deviation, np.inf))
    return scaled


def _correlation(one: NormProfile, other: NormProfile) -> float:
    """Return the correlation of two profiles of neuron norms, in standard deviations of what chance
    would give.
    """
    n = min(len(one), len(other))
    a, b = _standard(one[:n]).reshape(-1), _standard(other[:n]).reshape(-1)
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size * float(np.sqrt(len(a))) if size > 0 else 0.0


def block_orders(encoding: Encoding) -> dict[FindingKind, Order]:
    """Return, for each packing mistake (swapped nibbles, block not repacked), the order of a
    block's 32 neurons or channels that undoes it.
    """
    if encoding not in MXFP4:
        return {}
    places = np.arange(mxfp4.BLOCK)
    pairs, halves = places.reshape(-1, 2), places.reshape(2, -1)
    if encoding is Encoding.MXFP4_HF:
        swapped, moved = pairs[:, ::-1], pairs.T
    else:
        swapped, moved = halves[::-1], halves.T
    return {
        FindingKind.NIBBLES_SWAPPED: swapped.reshape(-1),
        FindingKind.BLOCK_ORDER: moved.reshape(-1),
    }


def _reordered(profile: NormProfile, order: Order) -> NormProfile:
    blocks = profile.reshape(len(profile), -1, mxfp4.BLOCK)
    return blocks[..., order].reshape(profile.shape)
