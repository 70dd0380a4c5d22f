"""Check the order of the experts' residual channels, by their correlations in other tensors.

All layers read from and write to one residual stream, so in a trained model the same channels go
together everywhere: two channels that attention or the embedding treats alike are treated alike by
the experts too. The profile of a tensor is, for each two channels of a run of 32, the correlation
of their weights. Profiles of different tensors agree far beyond chance when the channels are where
they belong, and not at all when codes are in the wrong order within their blocks or the matrix is
transposed. So each likely mistake is undone in turn: where the profile then agrees and otherwise
does not, the mistake was made. Random weights agree with nothing, and nothing is reported.

Weights rounded to MXFP4 also show a transposed matrix by themselves; see `mxfp4.grid`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
from numpy.typing import NDArray

from gptoss.quant import mxfp4
from gptoss.quant.audit.check_neurons import SURE, Order, block_orders
from gptoss.quant.audit.findings import Finding, FindingKind, Severity
from gptoss.quant.model.reader import (
    TensorReader,
    block_codes,
    iter_expert_rows,
    read_matrix,
    read_values,
    sample_rows,
)
from gptoss.quant.model.tensors import MXFP4, DenseTensor, ExpertTensor, Model, Part
from gptoss.quant.mxfp4 import Floats, grid

VALUES = 2**19
"""Values of a tensor that its profile is computed from, about."""

Profile = NDArray[np.float64]
"""Correlations of each two channels of each run of 32, ``[channels / 32 * 496]``, standardised."""

_READERS = {
    "token_embd.weight": None,
    "output.weight": "output_norm.weight",
    "attn_q.weight": "attn_norm.weight",
    "attn_k.weight": "attn_norm.weight",
    "attn_v.weight": "attn_norm.weight",
    "ffn_gate_inp.weight": "post_attention_norm.weight",
}
"""Matrices whose columns are channels, and the norm whose weights each column is multiplied by."""
_UPPER = np.triu_indices(mxfp4.BLOCK, 1)


@dataclass(frozen=True, slots=True)
class _Profiles:
    """An expert tensor's profile as it is stored, and once each likely mistake is undone.

    ``on_grid`` is what MXFP4's grid shows by itself.
    """

    tensor: ExpertTensor
    stored: Profile
    undone: Mapping[FindingKind, Profile]
    on_grid: Finding | None


def check_channels(files: TensorReader, model: Model, pool: Executor) -> Iterator[Finding]:
    """Check the residual channels of the expert tensors: report tensors whose channels are out of
    order or transposed.
    """
    norms = {(it.layer, it.role): it for it in model.dense if it.role.endswith("norm.weight")}
    readers = [it for it in model.dense if it.role in _READERS]
    trusted = sum(
        pool.map(lambda it: _dense_profile(files, it, norms), readers),
        np.zeros(model.hparams.hidden_size // mxfp4.BLOCK * len(_UPPER[0])),
    )
    profiles = list(pool.map(lambda it: _expert_profiles(files, it, norms), model.experts))
    downs = [it for it in profiles if it.tensor.parts == (Part.DOWN,)]
    others = [it for it in profiles if it.tensor.parts != (Part.DOWN,)]
    for it in downs:
        yield from _judge(it, [trusted])
    # Rows of down are never out of order: with them, what can be trusted is more.
    trusted = sum((it.stored for it in downs), trusted)
    together = sum((it.stored for it in others), trusted)
    for it in others:
        yield from _judge(it, [trusted, together - it.stored])


def _judge(profiles: _Profiles, references: Sequence[Profile]) -> Iterator[Finding]:
    """Report the mistake (such as transposition) that explains why a tensor's residual channels
    disagree, by the first reference profile that is sure.
    """
    tensor = profiles.tensor
    for reference in references:
        found = _agreement(profiles.stored, reference)
        tried = {kind: _agreement(it, reference) for kind, it in profiles.undone.items()}
        best = max(tried, key=lambda kind: tried[kind], default=None)
        if best is None or max(found, tried[best]) < SURE:
            continue
        if found < tried[best] / 2:
            message = (
                f"once that is undone, the channels of {'/'.join(tensor.parts)} agree with those "
                f"of the other tensors ({tried[best]:.0f} standard deviations), as stored they do "
                f"not ({found:.0f})"
            )
            yield Finding(best, Severity.ERROR, message, tensor.name, tensor.layer)
            return
        break
    if profiles.on_grid is not None:
        yield profiles.on_grid


def _agreement(one: Profile, other: Profile) -> float:
    """Return the correlation of two residual-channel profiles, in standard deviations of what
    chance would give.
    """
    # Not by BLAS: its threads would contend with those of the audit.
    product, *squares = (
        float(np.einsum("i,i->", a, b)) for a, b in ((one, other), (one, one), (other, other))
    )
    size = sqrt(squares[0] * squares[1])
    return product / size * sqrt(len(one)) if size > 0 else 0.0


def _check_grid(files: TensorReader, tensor: ExpertTensor) -> Iterator[Finding]:
    """Report a square expert matrix with transposed channels: its values lie on MXFP4's grid along
    the outputs, not the inputs.

    A matrix in MXFP4 always lies on the grid along its inputs. If it was transposed when it was
    encoded, it still lies on the grid along the outputs: every value of a coarser grid is one of
    the finer grid too.
    """
    matrix = _first_rows(files, tensor, 0, grid.LARGEST)[:, : grid.LARGEST]
    outputs = grid.alignment(matrix.T)
    if tensor.encoding in MXFP4:
        transposed = outputs >= grid.ALIGNED
    else:
        transposed = grid.block_axis(matrix) == 0
    if transposed:
        message = f"{grid.share_on_grid(matrix.T):.0%} of the runs of 32 outputs lie on MXFP4's "
        message += f"grid, {outputs:.0%} more than by chance: blocks run along the inputs"
        kind = FindingKind.EXPERTS_TRANSPOSED
        yield Finding(kind, Severity.ERROR, message, tensor.name, tensor.layer)


# --- profiles ---------------------------------------------------------------------------------


Norms = Mapping[tuple[int | None, str], DenseTensor]


def _dense_profile(files: TensorReader, tensor: DenseTensor, norms: Norms) -> Profile:
    rows, channels = tensor.shape
    shape = (min(rows, max(1, VALUES // channels)), channels)
    values = read_values(files, tensor.encoding, tensor.extent, 0, shape)
    role = _READERS[tensor.role]
    weights = None if role is None else _norm(files, norms, tensor.layer, role)
    products = _Products(channels, weights)
    products.add(values)
    return products.profile()


def _norm(files: TensorReader, norms: Norms, layer: int | None, role: str) -> Floats | None:
    norm = norms.get((layer, role))
    if norm is None:
        return None
    return read_values(files, norm.encoding, norm.extent, 0, norm.shape)


def _expert_profiles(files: TensorReader, tensor: ExpertTensor, norms: Norms) -> _Profiles:
    """Compute an expert tensor's residual-channel profiles, as stored and with each likely mistake
    undone, over as many experts as ``VALUES`` allows.
    """
    k, is_down = len(tensor.parts), tensor.parts == (Part.DOWN,)
    square = k == 1 and tensor.rows == tensor.columns
    rows = max(1, VALUES // tensor.columns // k)
    columns = max(1, VALUES // tensor.rows // mxfp4.BLOCK) * mxfp4.BLOCK
    experts = range(min(tensor.experts, -(-rows * k // tensor.rows)))
    weights = None if is_down else _norm(files, norms, tensor.layer, "post_attention_norm.weight")
    by_column, by_row = (_Products(n, weights) for n in (tensor.columns, tensor.rows))
    for expert in experts:
        if square or not is_down:
            by_column.add(_first_rows(files, tensor, expert, rows))
        if square or is_down:
            by_row.add(_first_columns(files, tensor, expert, columns).T)
    on_grid = next(_check_grid(files, tensor), None) if square else None
    if is_down:
        undone = {FindingKind.EXPERTS_TRANSPOSED: by_column.profile()} if square else {}
        return _Profiles(tensor, by_row.profile(), undone, on_grid)
    undone = {
        kind: by_column.profile(order) for kind, order in block_orders(tensor.encoding).items()
    }
    if square:
        undone[FindingKind.EXPERTS_TRANSPOSED] = by_row.profile()
    return _Profiles(tensor, by_column.profile(), undone, on_grid)


def _first_rows(files: TensorReader, tensor: ExpertTensor, expert: int, rows: int) -> Floats:
    """Read the first rows of each part of an expert for its channel profile, ``float32[parts *
    rows, columns]``.
    """
    if tensor.encoding not in MXFP4:
        return read_matrix(files, tensor, expert)[: rows * len(tensor.parts)]
    found: list[Floats] = []
    for chunk in iter_expert_rows(files, tensor, expert):
        if chunk.row >= rows:
            break
        words = np.ascontiguousarray(chunk.words[: rows - chunk.row])
        values = mxfp4.decode(block_codes(tensor.encoding, words), chunk.scales[: len(words)])
        found.append(values.reshape(len(values), -1))
    return np.concatenate(found)


def _first_columns(files: TensorReader, tensor: ExpertTensor, expert: int, columns: int) -> Floats:
    """Read the first columns of a one-part expert tensor for its channel profile, ``float32[rows,
    columns]``.
    """
    (part,) = tensor.parts
    return sample_rows(files, tensor, expert, slice(0, columns), 1)[part]


class _Products:
    """Sums of products of each two channels of each run of 32, over rows that are added."""

    def __init__(self, channels: int, weights: Floats | None) -> None:
        """``weights`` multiply the channels, ``float32[channels]``."""
        self._weights = weights
        self._sums = np.zeros((channels // mxfp4.BLOCK, mxfp4.BLOCK, mxfp4.BLOCK))

    def add(self, values: Floats) -> None:
        """Add rows ``float32[n, channels]`` to the sums of products of residual channels; NaN and
        infinity count as 0.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            scaled = values if self._weights is None else values * self._weights
            size = max(float(scaled.max(initial=0)), -float(scaled.min(initial=0)))
        if not size < inf:
            scaled = np.nan_to_num(scaled, nan=0.0, posinf=0.0, neginf=0.0)
            size = float(np.abs(scaled).max(initial=0))
        if size == 0:
            return
        rows = (scaled / np.float32(size)).reshape(len(scaled), -1, mxfp4.BLOCK)
        runs = np.ascontiguousarray(rows.transpose(1, 0, 2))
        self._sums += (runs.transpose(0, 2, 1) @ runs).astype(np.float64) * size**2

    def profile(self, order: Order | None = None) -> Profile:
        """Return the standardised correlations of the residual channels within runs of 32,
        optionally in another ``order`` within the runs.
        """
        sums = self._sums if order is None else self._sums[:, order[:, None], order[None, :]]
        size = np.sqrt(np.einsum("bii->bi", sums))
        with np.errstate(invalid="ignore", divide="ignore"):
            correlations = sums / (size[:, :, None] * size[:, None, :])
        upper = correlations[:, _UPPER[0], _UPPER[1]].reshape(-1)
        profile: Profile = np.where(np.abs(upper) <= 1.01, upper, 0.0)  # no channel of zeros
        profile -= profile.mean()
        deviation = float(profile.std())
        return profile / deviation if deviation > 0 else profile
