"""The one pass over a model's bytes: every tensor's statistics, a few threads at work.

Norms, biases, sinks, routers, attention and embeddings: whether all values are finite, how many
are zero and which is the largest is counted over every value; the root mean square of large tensors
over an eighth of them, evenly spread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any

import numpy as np

from gptoss.progress import Progress
from gptoss.quant.audit.histogram import (
    CodeCounter,
    ExpertCounter,
    ExpertStatistics,
)
from gptoss.quant.model import dtypes
from gptoss.quant.model.dtypes import FLOATS, FloatType
from gptoss.quant.model.reader import TensorReader, block_codes, chunk_rows, iter_expert_rows
from gptoss.quant.model.tensors import (
    MXFP4,
    DenseTensor,
    Encoding,
    ExpertTensor,
    Extent,
    Model,
    Part,
)
from gptoss.quant.mxfp4 import Bytes, Floats
from gptoss.quant.parallel import WORKERS, as_finished

EXPERTS = "ffn_exps"
"""The role of an expert tensor that is not in MXFP4."""
DENSE_TASK = 2**24
"""Bytes of a dense tensor that one task counts, about."""
DENSE_CHUNK = 2**19
"""Bytes of a dense tensor counted at once, about; of denser formats as many values as of BF16."""
_SAMPLED = 8
"""Of larger tensors, the first of so many parts of a chunk goes into the root mean square."""

Q8_0 = np.dtype([("scale", "<u2"), ("codes", "i1", 32)])


@dataclass(frozen=True, slots=True)
class DenseStatistics:
    """What is counted of a tensor that is not in MXFP4.

    ``layer`` is None outside the layers. ``peak`` is the largest finite magnitude and ``rms`` the
    root mean square of the finite values. ``first_bad`` is the first value that is not finite,
    counted from the tensor's start.
    """

    tensor: str
    layer: int | None
    encoding: str
    shape: tuple[int, ...]
    not_finite: int
    first_bad: int | None
    zeros: int
    peak: float
    rms: float

    def to_json(self) -> dict[str, Any]:
        """Return a dense tensor's statistics (zeros, not finite, peak, RMS) as plain data for
        ``json.dumps``.
        """
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class DenseCount:
    """What one chunk of a tensor adds to its statistics; ``values`` are those in the mean."""

    not_finite: int = 0
    first_bad: int | None = None
    zeros: int = 0
    peak: float = 0.0
    square: float = 0.0
    values: int = 0


@dataclass(frozen=True, slots=True)
class Counted:
    """What was counted of a model: its experts in MXFP4, and all other tensors."""

    experts: tuple[ExpertStatistics, ...]
    dense: tuple[DenseStatistics, ...]


def count(model: Model, files: TensorReader, progress: Progress | None = None) -> Counted:
    """Read all bytes of a model once, on a few threads; return the statistics of each tensor."""
    packed = [tensor for tensor in model.experts if tensor.encoding in MXFP4]
    others = [*model.dense, *map(as_dense, loose(model))]
    done = 0
    with ThreadPoolExecutor(WORKERS) as pool:
        of_experts = [
            [pool.submit(_count_expert, files, tensor, i) for i in range(tensor.experts)]
            for tensor in packed
        ]
        of_dense = [
            [pool.submit(_count_dense, files, tensor, *ends) for ends in _tasks(tensor)]
            for tensor in others
        ]
        try:
            for task in as_finished(_all(of_experts, of_dense)):
                done += task.result()[0]
                if progress is not None:
                    progress(done, model.nbytes)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    experts = [
        statistics
        for tensor, tasks in zip(packed, of_experts, strict=True)
        for statistics in _joined(tensor, [task.result()[1] for task in tasks])
    ]
    counted = [
        _merged(tensor, [it for task in tasks for it in task.result()[1]])
        for tensor, tasks in zip(others, of_dense, strict=True)
    ]
    return Counted(tuple(experts), tuple(counted))


PartCounters = dict[Part, ExpertCounter]
"""The counters of one expert."""


def _all(
    of_experts: Sequence[Sequence[Future[tuple[int, PartCounters]]]],
    of_dense: Sequence[Sequence[Future[tuple[int, list[DenseCount]]]]],
) -> list[Future[tuple[int, PartCounters]] | Future[tuple[int, list[DenseCount]]]]:
    experts = [task for tasks in of_experts for task in tasks]
    return [*experts, *(task for tasks in of_dense for task in tasks)]


def loose(model: Model) -> list[ExpertTensor]:
    """Return the expert tensors not in MXFP4, whose statistics are counted as those of dense
    tensors.
    """
    return [tensor for tensor in model.experts if tensor.encoding not in MXFP4]


def as_dense(tensor: ExpertTensor) -> DenseTensor:
    """View an expert tensor of floats as a dense tensor, so that its statistics are counted as
    such.
    """
    shape = (tensor.experts, tensor.rows, tensor.columns)
    if tensor.inputs_first:
        shape = (tensor.experts, tensor.columns, tensor.rows)
    return DenseTensor(
        tensor.name, tensor.layer, EXPERTS, shape, tensor.encoding, tensor.extents[0]
    )


def _tasks(tensor: DenseTensor) -> Iterator[tuple[int, int]]:
    unit = dtypes.block_bytes(tensor.encoding)
    step = DENSE_TASK // unit * unit
    for start in range(0, tensor.extent.nbytes, step):
        yield start, min(start + step, tensor.extent.nbytes)


def _count_dense(
    files: TensorReader, tensor: DenseTensor, start: int, stop: int
) -> tuple[int, list[DenseCount]]:
    step = _dense_chunk(tensor.encoding)
    chunks = [
        _count_bytes(files, tensor.encoding, tensor.extent, at, min(at + step, stop))
        for at in range(start, stop, step)
    ]
    return stop - start, chunks


def _dense_chunk(encoding: Encoding) -> int:
    """Return how many bytes (whole blocks) of a dense tensor one task of the statistics pass
    counts.
    """
    blocks = DENSE_CHUNK // max(2 * dtypes.block_values(encoding), dtypes.block_bytes(encoding))
    return max(1, blocks) * dtypes.block_bytes(encoding)


def _count_expert(
    files: TensorReader, tensor: ExpertTensor, expert: int
) -> tuple[int, PartCounters]:
    rows = tensor.rows // len(tensor.parts)
    counters = {part: ExpertCounter(rows) for part in tensor.parts}
    for chunk in iter_expert_rows(files, tensor, expert):
        of_codes: CodeCounter | None = getattr(_local, "of_codes", None)
        if of_codes is None or of_codes.room < chunk.words.size:
            _local.of_codes = of_codes = CodeCounter(chunk.words.size)
        counters[chunk.part].add(chunk.words, chunk.scales, of_codes)
    return tensor.nbytes // tensor.experts, counters


_local = threading.local()


def _joined(tensor: ExpertTensor, experts: Sequence[PartCounters]) -> Iterator[ExpertStatistics]:
    """Join the experts' counters to the statistics of each part of an expert tensor, one row per
    expert.
    """
    for part in tensor.parts:
        counters = [expert[part] for expert in experts]
        stretches = np.array([it.stretches for it in counters])
        yield ExpertStatistics(
            tensor.name,
            tensor.layer,
            part,
            tensor.experts,
            tensor.rows // len(tensor.parts),
            tensor.columns,
            scales=np.array([it.scales for it in counters]),
            codes=stretches.sum(axis=1),
            zero_blocks=np.array([it.zero_blocks for it in counters]),
            zero_rows=np.array([it.zero_rows for it in counters]),
            saturated_blocks=np.array([it.saturated_blocks for it in counters]),
            ever=np.array([block_codes(tensor.encoding, it.ever) for it in counters]),
            always=np.array([block_codes(tensor.encoding, it.always) for it in counters]),
            row_scales=np.array([it.row_scales for it in counters]),
            stretches=stretches,
            stretch_rows=chunk_rows(tensor),
        )


# --- dense tensors ---------------------------------------------------------------------------


def _count_bytes(
    files: TensorReader, encoding: Encoding, extent: Extent, start: int, stop: int
) -> DenseCount:
    """Count bytes ``start`` to ``stop`` (whole blocks) of a dense tensor's extent in one task of
    the statistics pass.
    """
    raw = files.read("dense", extent, start, stop - start)
    first = start // dtypes.block_bytes(encoding) * dtypes.block_values(encoding)
    sampled = 1 if extent.nbytes <= 2 * DENSE_CHUNK else _SAMPLED
    if encoding is Encoding.Q8_0:
        return _count_q8_0(raw, first, sampled)
    if encoding.value in FLOATS:
        return _count_floats(raw, FLOATS[encoding.value], first, sampled)
    decoded = dtypes.decode(encoding, raw).view(np.uint8)
    return _count_floats(decoded, dtypes.F32, first, sampled)


def _count_floats(raw: Bytes, of: FloatType, first: int, sampled: int) -> DenseCount:
    bits = raw.view(of.stored)
    magnitudes = bits & bits.dtype.type(of.magnitude)
    top = int(magnitudes.max())
    not_finite, first_bad = 0, None
    if top >= of.infinity:
        bad = magnitudes >= of.infinity
        not_finite, first_bad = int(np.count_nonzero(bad)), first + int(bad.argmax())
        magnitudes[bad] = 0
        top = int(magnitudes.max())
    zeros = len(bits) - int(np.count_nonzero(magnitudes)) - not_finite
    peak = float(of.widen(np.array([top], bits.dtype))[0])
    some = of.widen(magnitudes[: -(-len(bits) // sampled)])
    return DenseCount(not_finite, first_bad, zeros, peak, _square(some), len(some))


def _count_q8_0(raw: Bytes, first: int, sampled: int) -> DenseCount:
    blocks = raw.view(Q8_0)
    scales = blocks["scale"] & np.uint16(0x7FFF)
    bad = scales >= 0x7C00
    not_finite, first_bad = 0, None
    if bad.any():
        not_finite = 32 * int(np.count_nonzero(bad))
        first_bad = first + 32 * int(bad.argmax())
        scales[bad] = 0
    # A zero code is a value rounded to zero; only a zero scale says that all 32 were zero.
    zeros = 32 * int(np.count_nonzero(scales == 0)) - not_finite
    n = -(-len(blocks) // sampled)
    sizes = scales.view("<f2").astype(np.float32)
    some = blocks["codes"][:n].astype(np.float32) * sizes[:n, None]
    return DenseCount(not_finite, first_bad, zeros, 127 * float(sizes.max()), _square(some), 32 * n)


def _square(values: Floats) -> float:
    with np.errstate(over="ignore"):
        total = float(np.square(values).sum(dtype=np.float64))
    return total if total < inf else float(np.square(values.astype(np.float64)).sum())


def _merged(tensor: DenseTensor, counts: Sequence[DenseCount]) -> DenseStatistics:
    """Merge the counts of a dense tensor's chunks, in order, to the statistics of the tensor."""
    values = sum(count.values for count in counts)
    bad = [count.first_bad for count in counts if count.first_bad is not None]
    return DenseStatistics(
        tensor.name,
        tensor.layer,
        tensor.encoding.value,
        tensor.shape,
        sum(count.not_finite for count in counts),
        min(bad) if bad else None,
        sum(count.zeros for count in counts),
        max((count.peak for count in counts), default=0.0),
        sqrt(sum(count.square for count in counts) / values) if values else 0.0,
    )
