"""Two models compared tensor by tensor: a base and its fine-tune, or two conversions of one.

Each side may be a checkpoint or a GGUF: tensors are matched by what they are. MXFP4 blocks are
compared as codes and scales, sixteen codes at a time; only those that differ are decoded. Anything
else is compared by value, so that a tensor stored in another type counts as changed only where its
values do. All of both is read, in pieces, by a few threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from math import inf, prod, sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptoss.progress import Progress
from gptoss.quant import mxfp4
from gptoss.quant.audit.statistics import WORKERS
from gptoss.quant.diff.result import Diff, ExpertChange, TensorChange
from gptoss.quant.model.loader import open_model
from gptoss.quant.model.reader import (
    ExpertRows,
    TensorReader,
    block_codes,
    iter_expert_rows,
    iter_part_values,
    read_values,
)
from gptoss.quant.model.tensors import (
    GATE_UP_BIAS,
    MXFP4,
    DenseTensor,
    Encoding,
    ExpertTensor,
    Model,
    Part,
)
from gptoss.quant.mxfp4 import Floats
from gptoss.quant.verify.result import KeyDifference

PIECE = 2**18
"""Values compared at once."""
TASK = 2**22
"""Values of a tensor that one task compares, whole pieces."""


def diff(
    a: str | os.PathLike[str], b: str | os.PathLike[str], *, progress: Progress | None = None
) -> Diff:
    """Compare two models, each a checkpoint's folder or a GGUF file.

    ``progress`` is called now and then with the bytes compared so far and the bytes in all. Raises
    ``InvalidFileError`` or ``UnsupportedModelError`` when either is no sound gpt-oss model or changes meanwhile.
    """
    models = open_model(Path(a)), open_model(Path(b))
    sides = _tensors(models[0]), _tensors(models[1])
    unread = {*models[0].unread, *models[1].unread}
    apart = [
        f"{name}: only in {a if name in sides[0] else b}"
        for name in sorted((sides[0].keys() ^ sides[1].keys()) - unread)
    ]
    pairs: dict[str, _Pair] = {}
    for name in (name for name in sides[0] if name in sides[1]):
        pair = _Pair(sides[0][name], sides[1][name])
        if pair.a.shape == pair.b.shape:
            pairs[name] = pair
        else:
            apart.append(f"{name}: shape {pair.a.shape} and {pair.b.shape}")
    with TensorReader.of(models[0]) as one, TensorReader.of(models[1]) as other:
        found = _compare(pairs, one, other, progress)
    for model in models:
        model.check_unchanged()
    changes = [_change(name, pair, found[name]) for name, pair in pairs.items()]
    equal = [name for name, change in zip(pairs, changes, strict=True) if change is None]
    return Diff(
        str(a),
        str(b),
        sum(pair.nbytes for pair in pairs.values()),
        len(equal),
        sum(pairs[name].is_expert for name in equal),
        tuple(change for change in changes if change is not None),
        tuple(apart),
        tuple(sorted(unread)),
        tuple(_keys(*models)),
    )


def _keys(a: Model, b: Model) -> Iterator[KeyDifference]:
    """Hyperparameters that differ; of floats, by more than float32 holds."""
    other = asdict(b.hparams)
    for name, value in asdict(a.hparams).items():
        if np.float32(value) != np.float32(other[name]):
            yield KeyDifference(name, repr(value), repr(other[name]))


# --- what is compared with what ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Side:
    """One side of a comparison: a part of an expert tensor, or another tensor.

    Of biases of gate and up in turn, ``turn`` says which: 0 or 1.
    """

    tensor: ExpertTensor | DenseTensor
    part: Part | None
    shape: tuple[int, ...]
    turn: int | None = None


@dataclass(frozen=True, slots=True)
class _Pair:
    """Tensors that are one and the same in two models."""

    a: _Side
    b: _Side

    @property
    def is_expert(self) -> bool:
        return self.a.part is not None

    @property
    def nbytes(self) -> int:
        return sum(_nbytes(side) for side in (self.a, self.b))


def _nbytes(side: _Side) -> int:
    if isinstance(side.tensor, ExpertTensor):
        return side.tensor.nbytes // len(side.tensor.parts)
    return side.tensor.extent.nbytes * prod(side.shape) // prod(side.tensor.shape)


def _tensors(model: Model) -> dict[str, _Side]:
    """A model's tensors by their GGUF names; of gate and up in one tensor, each of its own."""
    sides: dict[str, _Side] = {}
    for tensor in model.dense:
        prefix = "" if tensor.layer is None else f"blk.{tensor.layer}."
        if tensor.role != GATE_UP_BIAS:
            sides[prefix + tensor.role] = _Side(tensor, None, tensor.shape)
            continue
        experts, rows = tensor.shape
        for turn, part in enumerate((Part.GATE, Part.UP)):
            name = f"{prefix}ffn_{part}_exps.bias"
            sides[name] = _Side(tensor, None, (experts, rows // 2), turn)
    for it in model.experts:
        for part in it.parts:
            shape = (it.experts, it.rows // len(it.parts), it.columns)
            sides[f"blk.{it.layer}.ffn_{part}_exps.weight"] = _Side(it, part, shape)
    return sides


# --- the comparison ---------------------------------------------------------------------------


@dataclass(slots=True)
class _Sum:
    """What differs, added up: units, sums of squares of the difference and of A, the largest."""

    changed: int = 0
    difference: float = 0.0
    square: float = 0.0
    largest: float = 0.0

    def add(self, a: Floats, b: Floats, changed: int) -> None:
        """Values of A and B that differ in ``changed`` units; A's square is not added."""
        with np.errstate(invalid="ignore", over="ignore"):
            off = b.astype(np.float64) - a
            total, largest = float(np.square(off).sum()), float(np.abs(off).max(initial=0))
        # NaN against anything is as different as can be.
        self.difference += total if total == total else inf
        self.largest = max(self.largest, largest if largest == largest else inf)
        self.changed += changed

    @property
    def relative(self) -> float:
        """The relative norm of the difference."""
        if not self.changed:
            return 0.0
        return sqrt(self.difference / self.square) if self.square > 0 else inf


def _compare(
    pairs: Mapping[str, _Pair], one: TensorReader, other: TensorReader, progress: Progress | None
) -> dict[str, list[_Sum]]:
    """For each pair what differs, of experts one by one."""
    total = sum(pair.nbytes for pair in pairs.values())
    done = 0
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            tasks = {
                name: [pool.submit(work) for work in _works(pair, one, other)]
                for name, pair in pairs.items()
            }
            names = {task: name for name, them in tasks.items() for task in them}
            for task in as_completed(names):
                task.result()
                done += pairs[names[task]].nbytes // len(tasks[names[task]])
                if progress is not None:
                    progress(done, total)
            sums = {name: [task.result() for task in them] for name, them in tasks.items()}
            _add_squares(pool, pairs, sums, one)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return sums


def _add_squares(
    pool: ThreadPoolExecutor,
    pairs: Mapping[str, _Pair],
    sums: Mapping[str, Sequence[_Sum]],
    files: TensorReader,
) -> None:
    """Of tensors in MXFP4 that changed, what A's values amount to: who is equal needs no norm."""
    for name, pair in pairs.items():
        if any(it.changed for it in sums[name]) and _packed(pair):
            squares = pool.map(partial(_square, pair.a, files), range(len(sums[name])))
            for it, square in zip(sums[name], squares, strict=True):
                it.square = square


def _packed(pair: _Pair) -> bool:
    return pair.a.tensor.encoding in MXFP4 and pair.b.tensor.encoding in MXFP4


def _works(pair: _Pair, one: TensorReader, other: TensorReader) -> Iterator[Callable[[], _Sum]]:
    a, b = pair.a, pair.b
    if isinstance(a.tensor, DenseTensor) or isinstance(b.tensor, DenseTensor):
        n = prod(a.shape)
        for start in range(0, n, TASK):
            yield partial(_dense, a, b, one, other, range(start, min(start + TASK, n)))
        return
    compare = _blocks if _packed(pair) else _floats
    for expert in range(a.tensor.experts):
        yield partial(compare, a, b, one, other, expert)


def _blocks(a: _Side, b: _Side, one: TensorReader, other: TensorReader, expert: int) -> _Sum:
    """An expert's part in MXFP4 on both sides."""
    found = _Sum()
    for mine, theirs in zip(_slabs(a, one, expert), _slabs(b, other, expert), strict=True):
        ours, words = _in_order(a, mine), _in_order(b, theirs)
        changed = (ours != words).any(axis=-1) | (mine.scales != theirs.scales)
        n = int(np.count_nonzero(changed))
        if n:
            values = [
                mxfp4.decode(block_codes(Encoding.MXFP4_HF, them[changed]), scales[changed])
                for them, scales in ((ours, mine.scales), (words, theirs.scales))
            ]
            found.add(values[0], values[1], n)
    return found


def _slabs(side: _Side, files: TensorReader, expert: int) -> Iterator[ExpertRows]:
    assert isinstance(side.tensor, ExpertTensor)  # noqa: S101 - what _works chose
    return (it for it in iter_expert_rows(files, side.tensor, expert) if it.part is side.part)


def _rows(side: _Side, files: TensorReader, expert: int) -> Iterator[Floats]:
    assert isinstance(side.tensor, ExpertTensor)  # noqa: S101 - what _works chose
    return iter_part_values(files, side.tensor, expert, side.part or Part.DOWN)


def _in_order(side: _Side, slab: ExpertRows) -> NDArray[np.uint64]:
    """A slab's words in Hugging Face's order."""
    if side.tensor.encoding is Encoding.MXFP4_GGML:
        return mxfp4.hf_words(slab.words)
    return slab.words


def _square(side: _Side, files: TensorReader, expert: int) -> float:
    """The sum of the squares of an expert's values; NaN scales left out."""
    total = 0.0
    for slab in _slabs(side, files, expert):
        by_block = _BYTE_SQUARES[slab.words.view(np.uint8)].sum(axis=-1, dtype=np.float64)
        known = slab.scales != mxfp4.E8M0_NAN
        exponents = 2.0 * (slab.scales[known].astype(np.float64) - mxfp4.E8M0_BIAS)
        total += float((by_block[known] * np.exp2(exponents)).sum())
    return total


_CODE_SQUARES = np.square(np.array(mxfp4.E2M1, np.float32))
_BYTE_SQUARES = (_CODE_SQUARES[None, :] + _CODE_SQUARES[:, None]).reshape(-1)
"""The sum of the squares of the two codes in a byte, of scale 1."""


def _floats(a: _Side, b: _Side, one: TensorReader, other: TensorReader, expert: int) -> _Sum:
    """An expert's part of which one side at least is stored in floats."""
    found = _Sum()
    for ours, theirs in zip(_rows(a, one, expert), _rows(b, other, expert), strict=True):
        found.square += _finite_square(ours)
        changed = _differ(ours, theirs).reshape(len(ours), -1, mxfp4.BLOCK).any(axis=-1)
        n = int(np.count_nonzero(changed))
        if n:
            found.add(ours, theirs, n)
    return found


def _dense(a: _Side, b: _Side, one: TensorReader, other: TensorReader, task: range) -> _Sum:
    """Some values of a tensor, counted from its start."""
    found = _Sum()
    for start in task[::PIECE]:
        n = min(PIECE, task.stop - start)
        ours, theirs = _values(a, one, start, n), _values(b, other, start, n)
        found.square += _finite_square(ours)
        n = int(np.count_nonzero(_differ(ours, theirs)))
        if n:
            found.add(ours, theirs, n)
    return found


def _differ(ours: Floats, theirs: Floats) -> NDArray[np.bool_]:
    """Where values differ: 0 and -0 do not, nor does a NaN from itself."""
    differ: NDArray[np.bool_] = ours != theirs
    if differ.any():
        differ &= ~(np.isnan(ours) & np.isnan(theirs))
    return differ


def _values(side: _Side, files: TensorReader, start: int, n: int) -> Floats:
    """``n`` values of a tensor from ``start`` on; of biases in turn, of those that are meant."""
    tensor = side.tensor
    assert isinstance(tensor, DenseTensor)  # noqa: S101 - what _works chose
    step = 1 if side.turn is None else 2
    values = read_values(files, tensor.encoding, tensor.extent, start * step, (n * step,))
    return values if side.turn is None else np.ascontiguousarray(values[side.turn :: 2])


def _finite_square(values: Floats) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        squares = np.square(values.astype(np.float64))
    return float(squares.sum(where=np.isfinite(squares)))


def _change(name: str, pair: _Pair, sums: list[_Sum]) -> TensorChange | None:
    if not any(it.changed for it in sums):
        return None
    total = _Sum(
        sum(it.changed for it in sums),
        sum(it.difference for it in sums),
        sum(it.square for it in sums),
        max(it.largest for it in sums),
    )
    experts = tuple(
        ExpertChange(i, it.changed, it.relative, it.largest)
        for i, it in enumerate(sums)
        if it.changed and pair.is_expert
    )
    return TensorChange(
        name,
        pair.a.tensor.layer,
        prod(pair.a.shape) // (mxfp4.BLOCK if pair.is_expert else 1),
        total.changed,
        total.relative,
        total.largest,
        (_type(pair.a), _type(pair.b)),
        len(sums) if pair.is_expert else 0,
        experts,
    )


def _type(side: _Side) -> str:
    """The type without the container's own packing, which is no rounding."""
    return "MXFP4" if side.tensor.encoding in MXFP4 else side.tensor.encoding.value
