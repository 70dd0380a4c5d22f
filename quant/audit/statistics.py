"""The one pass over a model's bytes: every tensor's statistics, a few threads at work."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass

import numpy as np

from gptoss.progress import Progress
from gptoss.quant.audit.histogram import (
    CodeCounter,
    DenseStatistics,
    ExpertCounter,
    ExpertStatistics,
    Part,
)
from gptoss.quant.model import dtypes
from gptoss.quant.model.dtypes import DenseCount
from gptoss.quant.model.reader import Files, codes, slab_rows, slabs
from gptoss.quant.model.tensors import MXFP4, DenseTensor, ExpertTensor, Model

WORKERS = min(8, os.cpu_count() or 1)
DENSE_TASK = 2**24
"""Bytes of a dense tensor that one task counts, about."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What was counted of a model: its experts in MXFP4, and all other tensors."""

    experts: tuple[ExpertStatistics, ...]
    dense: tuple[DenseStatistics, ...]


def count(model: Model, files: Files, progress: Progress | None = None) -> Counted:
    """Read a model once and count everything. BF16 experts are counted as dense tensors."""
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
            for task in as_completed(_all(of_experts, of_dense)):
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
        dtypes.merged(tensor, [it for task in tasks for it in task.result()[1]])
        for tensor, tasks in zip(others, of_dense, strict=True)
    ]
    return Counted(tuple(experts), tuple(counted))


Expert = dict[Part, ExpertCounter]


def _all(
    of_experts: Sequence[Sequence[Future[tuple[int, Expert]]]],
    of_dense: Sequence[Sequence[Future[tuple[int, list[DenseCount]]]]],
) -> list[Future[tuple[int, Expert]] | Future[tuple[int, list[DenseCount]]]]:
    experts = [task for tasks in of_experts for task in tasks]
    return [*experts, *(task for tasks in of_dense for task in tasks)]


def loose(model: Model) -> list[ExpertTensor]:
    """The expert tensors that are not in MXFP4."""
    return [tensor for tensor in model.experts if tensor.encoding not in MXFP4]


def as_dense(tensor: ExpertTensor) -> DenseTensor:
    """An expert tensor of floats, seen as any other tensor."""
    shape = (tensor.experts, tensor.rows, tensor.columns)
    if tensor.inputs_first:
        shape = (tensor.experts, tensor.columns, tensor.rows)
    return DenseTensor(
        tensor.name, tensor.layer, "ffn_exps", shape, tensor.encoding, tensor.extents[0]
    )


def _tasks(tensor: DenseTensor) -> Iterator[tuple[int, int]]:
    unit = dtypes.unit_bytes(tensor.encoding)
    step = DENSE_TASK // unit * unit
    for start in range(0, tensor.extent.nbytes, step):
        yield start, min(start + step, tensor.extent.nbytes)


def _count_dense(
    files: Files, tensor: DenseTensor, start: int, stop: int
) -> tuple[int, list[DenseCount]]:
    unit = dtypes.unit_bytes(tensor.encoding)
    step = dtypes.PIECE // unit * unit
    pieces = [
        dtypes.count(files, tensor.encoding, tensor.extent, at, min(at + step, stop))
        for at in range(start, stop, step)
    ]
    return stop - start, pieces


def _count_expert(files: Files, tensor: ExpertTensor, expert: int) -> tuple[int, Expert]:
    rows = tensor.rows // len(tensor.parts)
    counters = {part: ExpertCounter(rows) for part in tensor.parts}
    for slab in slabs(files, tensor, expert):
        of_codes: CodeCounter | None = getattr(_local, "of_codes", None)
        if of_codes is None or of_codes.room < slab.words.size:
            _local.of_codes = of_codes = CodeCounter(slab.words.size)
        counters[slab.part].add(slab.words, slab.scales, of_codes)
    return tensor.nbytes // tensor.experts, counters


_local = threading.local()


def _joined(tensor: ExpertTensor, experts: Sequence[Expert]) -> Iterator[ExpertStatistics]:
    """The statistics of each part, the experts one above the other."""
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
            ever=np.array([codes(tensor.encoding, it.ever) for it in counters]),
            always=np.array([codes(tensor.encoding, it.always) for it in counters]),
            row_scales=np.array([it.row_scales for it in counters]),
            stretches=stretches,
            stretch_rows=slab_rows(tensor),
        )
