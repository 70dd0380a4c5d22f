"""Weights that stand in another place than they are read from, recognised by their own structure.

No layout says that it is misread: swapped nibbles are as good numbers as any. But in a trained
model a hidden neuron's three vectors (its row of gate, its row of up, its column of down) have
grown together, and a column of gate and up with the norm weight it is multiplied by. Their norms
are correlated over the neurons, in the order they are meant to have and in no other. So each
likely mistake is tried in turn: where the weights correlate well once it is undone, and hardly as
they stand, it was made. In weights at random nothing correlates, and nothing is said.

Values rounded to MXFP4 and stored as BF16 tell their orientation besides: runs of 32 inputs lie on
a grid of eight magnitudes, runs of 32 outputs do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptoss.quant import mxfp4
from gptoss.quant.audit.findings import Finding, FindingKind, Severity
from gptoss.quant.model.dtypes import FLOATS
from gptoss.quant.model.reader import TensorReader, read_values, sample_rows
from gptoss.quant.model.tensors import MXFP4, DenseTensor, Encoding, ExpertTensor, Part
from gptoss.quant.mxfp4 import Floats

VALUES = 2**20
"""Values of a tensor that are decoded for one profile, about."""
SURE = 6.0
"""Standard deviations of a correlation from 0 that are no chance."""

NormProfile = NDArray[np.float64]
"""Logarithms of norms, ``[experts, n]``."""
Order = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's expert tensors and its norm before them."""

    number: int
    gate_up: tuple[ExpertTensor, ...]
    down: ExpertTensor
    norm: Floats


def layers(
    files: TensorReader, experts: Sequence[ExpertTensor], dense_tensors: Sequence[DenseTensor]
) -> Iterator[Layer]:
    """The layers that have all three parts and the norm before them."""
    norms = {it.layer: it for it in dense_tensors if it.role == "post_attention_norm.weight"}
    for number in sorted({it.layer for it in experts}):
        mine = {it.parts: it for it in experts if it.layer == number}
        down = mine.pop((Part.DOWN,), None)
        gate_up = tuple(mine[parts] for parts in sorted(mine))
        norm = norms.get(number)
        if down is None or norm is None or sum(len(it.parts) for it in gate_up) != 2:
            continue
        extent = norm.extent
        values = np.abs(read_values(files, norm.encoding, extent, 0, norm.shape))
        yield Layer(number, gate_up, down, values)


def check_layer(files: TensorReader, layer: Layer) -> Iterator[Finding]:
    """What is found in a layer."""
    rows: dict[Part, NormProfile] = {}
    for tensor in layer.gate_up:
        rows |= _row_norms(files, tensor)
    gate, up = rows[Part.GATE], rows[Part.UP]
    columns = _column_norms(files, layer.down)[Part.DOWN]
    neurons = _standard(gate) + _standard(up)
    found = _correlation(neurons, columns)
    tried = {
        kind: _correlation(neurons, columns[:, order])
        for kind, order in _orders(layer.down).items()
    }
    yield from _verdict(layer.down, found, tried, "its neurons' rows")
    for tensor in layer.gate_up:
        yield from _inputs(files, layer, tensor)
    halves = _correlation(_regrouped(gate, up, interleaved=len(layer.gate_up) == 1), columns)
    tried = {FindingKind.GATE_UP_HALVES: halves}
    yield from _verdict(layer.gate_up[0], found, tried, "down's columns, neuron by neuron")
    if layer.down.encoding.value in FLOATS and layer.down.rows == layer.down.columns:
        yield from _transposed(files, layer, neurons, found)


def _regrouped(gate: NormProfile, up: NormProfile, *, interleaved: bool) -> NormProfile:
    """The neurons' profile if the rows had been taken the other way: as halves, or in turn."""
    n = gate.shape[1]
    if interleaved:
        rows = np.stack([gate, up], axis=-1).reshape(-1, 2 * n)
        return _standard(rows[:, :n]) + _standard(rows[:, n:])
    rows = np.concatenate([gate, up], axis=1)
    return _standard(rows[:, 0::2]) + _standard(rows[:, 1::2])


def _inputs(files: TensorReader, layer: Layer, tensor: ExpertTensor) -> Iterator[Finding]:
    """The columns of gate or up against the norm weight that each is multiplied by."""
    columns = np.concatenate([*_column_norms(files, tensor).values()]).mean(axis=0, keepdims=True)
    with np.errstate(divide="ignore"):
        norm = np.log(layer.norm.astype(np.float64))[None]
    tried = {
        kind: abs(_correlation(norm, columns[:, order])) for kind, order in _orders(tensor).items()
    }
    yield from _verdict(tensor, abs(_correlation(norm, columns)), tried, "the norm before it")


def _transposed(
    files: TensorReader, layer: Layer, neurons: NormProfile, found: float
) -> Iterator[Finding]:
    """A square matrix of floats, which could stand either way."""
    sample = read_values(
        files,
        layer.down.encoding,
        layer.down.extents[0],
        0,
        (layer.down.rows, layer.down.columns),
    )
    along, across = on_grid(sample), on_grid(sample.T)
    if layer.down.inputs_first:
        along, across = across, along
    if across > 0.5 and along < 0.1:
        yield Finding(
            FindingKind.EXPERTS_TRANSPOSED,
            Severity.ERROR,
            f"{across:.0%} of the runs of 32 outputs lie on a grid of MXFP4, "
            f"of 32 inputs {along:.0%}",
            layer.down.name,
            layer.number,
        )
        return
    other = _correlation(neurons, _row_norms(files, layer.down)[Part.DOWN])
    yield from _verdict(
        layer.down, found, {FindingKind.EXPERTS_TRANSPOSED: other}, "its neurons' rows"
    )


def _verdict(
    tensor: ExpertTensor, found: float, tried: Mapping[FindingKind, float], what: str
) -> Iterator[Finding]:
    """A finding for the mistake that explains the weights, if one does and they do not."""
    if not tried:
        return
    kind = max(tried, key=lambda it: tried[it])
    if tried[kind] >= SURE and found < tried[kind] / 2:
        yield Finding(
            kind,
            Severity.ERROR,
            f"once that is undone, the norms of {'/'.join(tensor.parts)} agree with those of "
            f"{what} ({tried[kind]:.0f} standard deviations), as they stand they do not "
            f"({found:.0f})",
            tensor.name,
            tensor.layer,
        )


# --- profiles ---------------------------------------------------------------------------------


def _row_norms(files: TensorReader, tensor: ExpertTensor) -> dict[Part, NormProfile]:
    """Of some experts the norm of each row, over its first columns."""
    n = min(tensor.columns, max(1, VALUES // tensor.rows // mxfp4.BLOCK) * mxfp4.BLOCK)
    return _norms(files, tensor, slice(0, n), 1, axis=1)


def _column_norms(files: TensorReader, tensor: ExpertTensor) -> dict[Part, NormProfile]:
    """Of some experts the norm of each column, over rows at even distances."""
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
            with np.errstate(divide="ignore", over="ignore"):
                found[part].append(np.log(np.square(values.astype(np.float64)).mean(axis=axis)) / 2)
    return {part: np.array(profiles) for part, profiles in found.items()}


def _standard(profile: NormProfile) -> NormProfile:
    """Each expert's profile with mean 0 and deviation 1; what is not finite counts as the mean."""
    finite = np.where(np.isfinite(profile), profile, np.nan)
    if not np.isfinite(finite).any(axis=1).all():
        return np.zeros_like(profile)
    finite = finite - np.nanmean(finite, axis=1, keepdims=True)
    deviation = np.nanstd(finite, axis=1, keepdims=True)
    scaled: NormProfile = np.nan_to_num(finite / np.where(deviation > 0, deviation, np.inf))
    return scaled


def _correlation(one: NormProfile, other: NormProfile) -> float:
    """The correlation of two profiles, in standard deviations of what chance would give."""
    n = min(len(one), len(other))
    a, b = _standard(one[:n]).reshape(-1), _standard(other[:n]).reshape(-1)
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size * float(np.sqrt(len(a))) if size > 0 else 0.0


def _orders(tensor: ExpertTensor) -> dict[FindingKind, Order]:
    """Where each column of a tensor would have to be taken from to undo a mistake."""
    if tensor.encoding not in MXFP4:
        return {}
    base = np.arange(tensor.columns).reshape(-1, mxfp4.BLOCK)
    pairs = base.reshape(-1, mxfp4.BLOCK // 2, 2)
    halves = base.reshape(-1, 2, mxfp4.BLOCK // 2)
    if tensor.encoding is Encoding.MXFP4_HF:
        swapped, moved = pairs[:, :, ::-1], np.concatenate([pairs[..., 0], pairs[..., 1]], axis=1)
    else:
        swapped, moved = halves[:, ::-1], np.stack([halves[:, 0], halves[:, 1]], axis=-1)
    return {
        FindingKind.NIBBLES_SWAPPED: swapped.reshape(-1),
        FindingKind.BLOCK_ORDER: moved.reshape(-1),
    }


def on_grid(values: Floats) -> float:
    """The share of runs of 32 along the rows that a scale of two's power makes E2M1 throughout.

    Runs of zeros prove nothing and are left out.
    """
    runs = values[:, : values.shape[1] // mxfp4.BLOCK * mxfp4.BLOCK].reshape(-1, mxfp4.BLOCK)
    top = np.abs(runs).max(axis=1)
    runs, top = runs[(top > 0) & np.isfinite(top)], top[(top > 0) & np.isfinite(top)]
    if not len(runs):
        return 0.0
    exponent = np.frexp(top)[1].astype(np.int32)
    grid = np.array(mxfp4.E2M1[:8], np.float32)
    hit = np.zeros(len(runs), np.bool_)
    for shift in (3, 2, 1, 0):  # the largest may be any code from 0.5 on
        scaled = np.ldexp(np.abs(runs), (shift - exponent)[:, None])
        hit |= np.isin(scaled, grid).all(axis=1)
    return float(hit.mean())
