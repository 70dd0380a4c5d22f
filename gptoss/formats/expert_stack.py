"""Present experts stored as one tensor each as the single tensor that transformers saves.

A ``torch.nn.Linear`` stores its weight as [outputs, inputs]; transformers stores all experts of a
layer as [experts, inputs, outputs]. A stack is computed while it is read: an expert's tensors are
read whole, gate and up are interleaved if they are separate, and the matrix is transposed. The
bytes are those that transformers would have saved, so readers need no special case.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss.errors import CheckpointError, quoted
from gptoss.formats.byte_source import Buffer, ByteSource, bytes_of
from gptoss.formats.expert_modules import ExpertModule, parse_expert_module
from gptoss.formats.hparams import HParams
from gptoss.formats.safetensors import DTYPE_BYTES, FLOATS, TensorInfo
from gptoss.formats.tensor_map import HfTensor, Rows, parameters

TILE = 128
"""Rows transposed at a time."""
_WHOLE, _HALVES = (Rows.ALL,), (Rows.EVEN, Rows.ODD)

Parts = dict[Rows, TensorInfo]
"""The tensors of one expert, by their rows."""


def stack_experts(
    tensors: Mapping[str, TensorInfo], hparams: HParams, folder: Path
) -> dict[str, TensorInfo]:
    """Replace tensors of single experts by stacks of all experts, under transformers' names.

    Raises ``CheckpointError`` if an expert is missing or does not match the others or the config.
    """
    found: dict[str, TensorInfo] = {}
    stacks: dict[str, dict[int, Parts]] = {}
    for name, info in tensors.items():
        module, _, kind = name.rpartition(".")
        expert = parse_expert_module(module) if kind in ("weight", "bias") else None
        if expert is None:
            found[name] = info
        else:
            _add(stacks, expert, kind, info)
    known = parameters(hparams)
    for name, experts in stacks.items():
        if name in found:
            raise CheckpointError(f"{folder}: holds {quoted(name)} both whole and by expert")
        if name not in known:
            raise CheckpointError(
                f"{folder}: holds experts for {quoted(name)}; a gpt-oss model of "
                f"{hparams.num_hidden_layers} layers has no such tensor"
            )
        found[name] = _stack(known[name], experts, folder)
    return found


def _add(
    stacks: dict[str, dict[int, Parts]], expert: ExpertModule, kind: str, info: TensorInfo
) -> None:
    name = expert.parameter + ("_bias" if kind == "bias" else "")
    parts = stacks.setdefault(name, {}).setdefault(expert.expert, {})
    if expert.rows in parts:
        raise CheckpointError(
            f"{info.file}: {quoted(info.name)} and {quoted(parts[expert.rows].name)} are the same "
            "part of an expert; remove one of them"
        )
    parts[expert.rows] = info


def _stack(target: HfTensor, experts: Mapping[int, Parts], folder: Path) -> TensorInfo:
    """Build the stack of all experts for ``target``: [experts, inputs, outputs], or for a bias
    [experts, outputs].
    """
    n = target.shape[0]
    if beyond := [e for e in experts if e >= n]:
        info = next(iter(experts[beyond[0]].values()))
        raise CheckpointError(
            f"{info.file}: unknown tensor {quoted(info.name)}; by config.json there are {n} experts"
        )
    for e in range(n):
        if tuple(sorted(experts.get(e, {}), key=list(Rows).index)) not in (_WHOLE, _HALVES):
            raise CheckpointError(
                f"{folder}: {quoted(target.name)}: expert {e} is missing or incomplete"
            )
    parts = [[experts[e][rows] for rows in Rows if rows in experts[e]] for e in range(n)]
    outputs, inputs = target.shape[-1], target.shape[1:-1]
    first = parts[0][0]
    for infos in parts:
        for info in infos:
            _check_part(info, (outputs // len(infos), *inputs), first.dtype)
    nbytes = math.prod(target.shape) * DTYPE_BYTES[first.dtype]
    source = StackedExperts(parts, outputs, nbytes // n, DTYPE_BYTES[first.dtype])
    return TensorInfo(f"{first.name} and others", first.dtype, target.shape, source, 0, nbytes)


def _check_part(info: TensorInfo, shape: tuple[int, ...], dtype: str) -> None:
    where = f"{info.file}: tensor {quoted(info.name)}"
    if info.dtype not in FLOATS:
        raise CheckpointError(f"{where} is {info.dtype}; expected one of {', '.join(FLOATS)}")
    if info.dtype != dtype:
        raise CheckpointError(f"{where} is {info.dtype}, the first expert's is {dtype}")
    if info.shape != shape:
        raise CheckpointError(f"{where} has shape {info.shape}; by config.json it must be {shape}")


class StackedExperts:
    """The bytes of a stack: one expert after the other, each computed when it is first read.

    ``parts`` has each expert's tensors: one, or two for separate gate and up. Each thread caches
    the last expert that it read, so reading in order computes each expert once.
    """

    def __init__(
        self, parts: Sequence[Sequence[TensorInfo]], outputs: int, expert_bytes: int, unit: int
    ) -> None:
        self._parts = parts
        self._outputs = outputs
        self._expert_bytes = expert_bytes
        self._unit = np.dtype(f"<u{unit}")
        self._local = threading.local()
        self.files: tuple[ByteSource, ...] = tuple(
            {id(info.file): info.file for infos in parts for info in infos}.values()
        )
        self.size = expert_bytes * len(parts)

    def __str__(self) -> str:
        return str(self.files[0])

    @property
    def name(self) -> str:
        return self.files[0].name

    @property
    def stamp(self) -> str:
        return "; ".join(file.stamp for file in self.files)

    def read_into(self, offset: int, out: Buffer) -> None:
        """Fill ``out`` with the stacked experts' bytes from ``offset`` on, computed as needed."""
        view, done = bytes_of(out), 0
        while done < len(view):
            e, at = divmod(offset + done, self._expert_bytes)
            found = self._expert(e)[at : at + len(view) - done]
            view[done : done + len(found)] = found.data
            done += len(found)

    def check_unchanged(self) -> None:
        """Raise ``CheckpointError`` when one of the stacked experts' files was modified."""
        for file in self.files:
            file.check_unchanged()

    def close(self) -> None:
        """Close the files of the stacked experts, and drop what was computed."""
        for file in self.files:
            file.close()
        self._local = threading.local()

    def _expert(self, e: int) -> NDArray[np.uint8]:
        last: tuple[int, NDArray[np.uint8]] | None = getattr(self._local, "last", None)
        if last is None or last[0] != e:
            last = self._local.last = (e, self._computed(e))
        return last[1]

    def _computed(self, e: int) -> NDArray[np.uint8]:
        """Compute one expert's matrix for the stack as transformers has it: [inputs, outputs]."""
        infos = self._parts[e]
        columns = self._expert_bytes // self._outputs // self._unit.itemsize
        matrix = np.empty((self._outputs, columns), self._unit)
        for k, info in enumerate(infos):
            raw = np.empty(info.nbytes, np.uint8)
            info.file.read_into(info.offset, raw)
            matrix[k :: len(infos)] = raw.view(self._unit).reshape(-1, columns)
        return _transposed(matrix).reshape(-1).view(np.uint8)


def _transposed(matrix: NDArray[Any]) -> NDArray[Any]:
    """Transpose a single expert's matrix for the stack, contiguously; in groups of rows, five times
    as fast at this size.
    """
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    for start in range(0, len(matrix), TILE):
        rows = slice(start, start + TILE)
        out[:, rows] = matrix[rows].T
    return out
