"""Locate the bad blocks of an expert tensor, and tell corruption from misreading.

The histograms show how many there are, not where: only experts with bad blocks are read again. A
corrupt file has its bad blocks side by side in one stretch, whatever tensor, row or expert that is.
A file that was packed or read by another rule has them all over the tensor, or always in the same
row, block of a row, or every other row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss.quant import mxfp4
from gptoss.quant.audit.findings import Finding, FindingKind, Severity
from gptoss.quant.location import Location
from gptoss.quant.model.reader import TensorReader, iter_expert_rows
from gptoss.quant.model.tensors import Encoding, ExpertTensor, Extent
from gptoss.quant.mxfp4 import Bytes
from gptoss.text import plural

FILL = 512
"""Bytes of one value side by side that count as a hole: a disk's sector."""
FEW = 16
"""Fewest bad blocks whose places prove anything."""
DENSE = 0.6
"""Share of bad blocks in a stretch that makes it garbage: most blocks of random bytes are bad."""
LOST = 0.1
"""Share of an expert's rows that are zero from which weights are lost, not trained away."""
_LIMIT = 2**22
"""Blocks located in one tensor, at most."""
_EIGHTHS = 8

_MAGNITUDES = np.uint64(0x7777777777777777)
_REPEAT = np.uint64(0x0101010101010101)


@dataclass(frozen=True, slots=True)
class SuspectBlocks:
    """Blocks worth locating, in the order of the file.

    ``index`` counts blocks from the tensor's start as it is stored; ``scale`` are their scales,
    ``zero`` says whether all codes are zero, ``fill`` is the byte that all of a block's codes
    consist of, or -1.
    """

    tensor: ExpertTensor
    index: NDArray[np.int64]
    scale: Bytes
    zero: NDArray[np.bool_]
    fill: NDArray[np.int16]

    def where(self, mask: NDArray[np.bool_]) -> SuspectBlocks:
        """Select the suspect MXFP4 blocks that a boolean mask ``[n]`` marks."""
        return SuspectBlocks(
            self.tensor, self.index[mask], self.scale[mask], self.zero[mask], self.fill[mask]
        )

    def place(self, i: int = 0) -> Location:
        """Return expert, row and block of the ``i``-th suspect block; the row is counted as the
        expert tensor stores it.
        """
        blocks = self.tensor.columns // mxfp4.BLOCK
        row, block = divmod(int(self.index[i]), blocks)
        expert, row = divmod(row, self.tensor.rows)
        return Location(expert, row, block)

    def __len__(self) -> int:
        return len(self.index)


def locate(
    files: TensorReader, tensor: ExpertTensor, experts: Sequence[int], scales: NDArray[np.bool_]
) -> SuspectBlocks:
    """Locate the suspect blocks of some experts: the scale byte is one of ``scales[256]``, or all
    bytes or all codes of the block are alike.

    Capped at a few million blocks.
    """
    index: list[NDArray[np.int64]] = []
    scale: list[Bytes] = []
    zero: list[NDArray[np.bool_]] = []
    fill: list[NDArray[np.int16]] = []
    k, blocks = len(tensor.parts), tensor.columns // mxfp4.BLOCK
    for expert in experts:
        for chunk in iter_expert_rows(files, tensor, expert):
            first, last = chunk.words[..., 0], chunk.words[..., 1]
            byte = first & np.uint64(255)
            alike = (first == last) & (first == byte * _REPEAT)
            no_code = ((first | last) & _MAGNITUDES) == 0
            at = np.nonzero(scales[chunk.scales] | alike | no_code)
            row = expert * tensor.rows + (chunk.row + at[0]) * k + tensor.parts.index(chunk.part)
            index.append(row * blocks + at[1])
            scale.append(chunk.scales[at])
            zero.append(no_code[at])
            fill.append(np.where(alike[at], byte[at].astype(np.int16), np.int16(-1)))
        if sum(map(len, index)) >= _LIMIT:
            break
    indices = np.concatenate(index)
    order = np.argsort(indices, kind="stable")[:_LIMIT]
    return SuspectBlocks(
        tensor,
        indices[order],
        np.concatenate(scale)[order],
        np.concatenate(zero)[order],
        np.concatenate(fill)[order],
    )


def holes(bad: SuspectBlocks) -> Iterator[Finding]:
    """Report runs of suspect blocks that hold one repeated byte (a hole in the file), except whole
    rows of zeros.
    """
    for extent, unit, filled in _fills(bad):
        for start, stop in runs(bad.index, filled):
            n = int(bad.index[stop - 1] - bad.index[start]) + 1
            byte = int(bad.scale[start] if unit == 1 else bad.fill[start])
            if n * unit < FILL or (byte == 0 and unit != 1 and _whole_rows(bad, start, stop)):
                continue
            offset = extent.offset + int(bad.index[start]) * unit
            yield Finding(
                FindingKind.HOLE,
                Severity.ERROR,
                f"{n * unit:,} bytes or more of 0x{byte:02x}, {n:,} blocks",
                bad.tensor.name,
                bad.tensor.layer,
                bad.place(start),
                extent.file.name,
                offset,
            )


def _fills(bad: SuspectBlocks) -> Iterator[tuple[Extent, int, NDArray[np.int64]]]:
    """Yield each extent of the suspect blocks' tensor with its bytes per block and, for each block,
    the one byte that fills it, or -1.
    """
    fill = bad.fill.astype(np.int64)
    scale = bad.scale.astype(np.int64)
    if bad.tensor.encoding is Encoding.MXFP4_GGML:
        yield bad.tensor.extents[0], mxfp4.GGML_BYTES, np.where(fill == scale, fill, -1)
        return
    codes, scales = bad.tensor.extents
    yield codes, mxfp4.HF_BYTES, fill
    yield scales, 1, np.where((scale == 0) | (scale == 255), scale, -1)


def _whole_rows(bad: SuspectBlocks, start: int, stop: int) -> bool:
    blocks = bad.tensor.columns // mxfp4.BLOCK
    return int(bad.index[start]) % blocks == 0 and (int(bad.index[stop - 1]) + 1) % blocks == 0


def runs(index: NDArray[np.int64], value: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Find ranges of suspect blocks with consecutive ``index`` and one common ``value`` other than
    -1.
    """
    if not len(index):
        return []
    breaks = np.flatnonzero((np.diff(index) != 1) | (np.diff(value) != 0)) + 1
    starts = np.concatenate([[0], breaks])
    stops = np.concatenate([breaks, [len(index)]])
    return [(int(a), int(b)) for a, b in zip(starts, stops, strict=True) if value[a] != -1]


def classify_damage(bad: SuspectBlocks) -> Iterator[Finding]:
    """Report blocks with impossible scales: as a corrupt region if they lie together, as misreading
    if they are spread over the whole tensor.
    """
    n, tensor = len(bad), bad.tensor
    if n < FEW:
        return
    total = tensor.experts * tensor.rows * (tensor.columns // mxfp4.BLOCK)
    first, last = int(bad.index[0]), int(bad.index[-1])
    extent, unit = _scale_bytes(tensor)
    span = last - first + 1
    if n >= DENSE * span and span <= total / 2:
        yield Finding(
            FindingKind.CORRUPT_REGION,
            Severity.ERROR,
            f"{n:,} of {span:,} blocks in {span * unit:,} bytes have impossible scales, "
            "none elsewhere",
            tensor.name,
            tensor.layer,
            bad.place(),
            extent.file.name,
            extent.offset + first * unit,
        )
    elif n >= 0.005 * total:
        yield Finding(
            FindingKind.MISREAD,
            Severity.ERROR,
            f"{n:,} of {total:,} blocks ({n / total:.1%}) have impossible scales: {_spread(bad)}",
            tensor.name,
            tensor.layer,
            bad.place(),
        )


def _scale_bytes(tensor: ExpertTensor) -> tuple[Extent, int]:
    """Return the extent with an expert tensor's block scales, and the distance in bytes between two
    of them, to give a suspect block's file offset.
    """
    if tensor.encoding is Encoding.MXFP4_GGML:
        return tensor.extents[0], mxfp4.GGML_BYTES
    return tensor.extents[1], 1


def _spread(bad: SuspectBlocks) -> str:
    """Describe what the blocks with impossible scales have in common: block of the row, parity of
    the row, expert, or nothing.
    """
    blocks = bad.tensor.columns // mxfp4.BLOCK
    row, block = np.divmod(bad.index, blocks)
    expert = row // bad.tensor.rows
    alike: list[str] = []
    if blocks > 1 and len(np.unique(block)) == 1:
        alike.append(f"always block {int(block[0])} of a row")
    if len(np.unique(row % 2)) == 1:
        alike.append(f"always in {'odd' if row[0] % 2 else 'even'} rows")
    if bad.tensor.experts > 1 and len(np.unique(expert)) == 1:
        alike.append(f"always in expert {int(expert[0])}")
    if alike:
        return ", ".join(alike)
    total = bad.tensor.experts * bad.tensor.rows * blocks
    eighths = len(np.unique(bad.index * _EIGHTHS // total))
    return f"in {eighths} eighths of the tensor, in all rows and blocks alike"


def first_of(array: NDArray[Any]) -> int:
    """Return the position of the first true element, for the location of a finding about blocks."""
    return int(np.flatnonzero(array)[0])


def listed(numbers: NDArray[np.int64]) -> str:
    return ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")


# --- findings about single blocks -------------------------------------------------------------


def check_located(bad: SuspectBlocks, impossible: NDArray[np.bool_]) -> Iterator[Finding]:
    """Report single suspect blocks by location: holes, NaN, overflowing or outlying scales, zero
    rows, zero blocks.
    """
    empty = list(holes(bad))
    yield from empty
    nan = bad.where(bad.scale == mxfp4.E8M0_NAN)
    yield from _blocks(FindingKind.SCALE_NAN, Severity.ERROR, nan, "scale 255")
    top = bad.where(bad.scale == mxfp4.E8M0_NAN - 1)
    yield from _blocks(FindingKind.SCALE_OVERFLOW, Severity.ERROR, top, "scale 254")
    low = bad.where((bad.scale <= 1) & ~bad.zero)
    yield from _blocks(
        FindingKind.SCALE_SUBNORMAL, Severity.WARNING, low, "scale 0 or 1, weights not 0"
    )
    middle = int(np.median(np.flatnonzero(~impossible)))
    large = bad.where(impossible[bad.scale] & (bad.scale > middle) & (bad.scale < 254))
    if len(large):
        factor = int(large.scale.max()) - middle
        yield from _blocks(
            FindingKind.SCALE_OUTLIER,
            Severity.ERROR,
            large,
            f"scales up to 2^{factor} times the others'",
        )
    # A small scale of zeros does no harm; of other weights it is as impossible as a large one.
    yield from classify_damage(bad.where(impossible[bad.scale] & ~(bad.zero)))
    yield from _zero_rows(bad)
    zero = bad.where(bad.zero)
    total = bad.tensor.experts * bad.tensor.rows * (bad.tensor.columns // mxfp4.BLOCK)
    live = zero.where(zero.scale > 1)
    scattered = _scattered(live)
    if len(scattered) and not empty:
        severity = Severity.WARNING if len(scattered) > total / 1000 else Severity.INFO
        yield from _blocks(
            FindingKind.ZERO_BLOCKS, severity, scattered, "all codes 0 under a live scale"
        )


def _zero_rows(bad: SuspectBlocks) -> Iterator[Finding]:
    """Report rows whose blocks are all zero, for each part at the expert with most of them; dead
    experts are left out.
    """
    tensor, blocks, k = bad.tensor, bad.tensor.columns // mxfp4.BLOCK, len(bad.tensor.parts)
    rows, counts = np.unique(bad.index[bad.zero] // blocks, return_counts=True)
    experts, rows = np.divmod(rows[counts == blocks], tensor.rows)
    each = tensor.rows // k
    for turn, part in enumerate(tensor.parts):
        mine = rows % k == turn
        zero = np.bincount(experts[mine], minlength=tensor.experts)
        zero[zero == each] = 0
        if not zero.any():
            continue
        worst = int(zero.argmax())
        severity = Severity.ERROR if zero[worst] >= LOST * each else Severity.WARNING
        message = f"{part}: {plural(int(zero.sum()), 'row')} of zeros in "
        message += f"{plural(int(np.count_nonzero(zero)), 'expert')}, "
        message += f"{zero[worst]:,} of {each:,} in this one"
        place = Location(worst, int(rows[mine & (experts == worst)][0]))
        yield Finding(FindingKind.ZERO_ROWS, severity, message, tensor.name, tensor.layer, place)


def _scattered(zero: SuspectBlocks) -> SuspectBlocks:
    """Select the suspect blocks of zeros that lie outside rows of zeros."""
    blocks = zero.tensor.columns // mxfp4.BLOCK
    rows, inverse, counts = np.unique(zero.index // blocks, return_inverse=True, return_counts=True)
    del rows
    return zero.where(counts[inverse] < blocks)


def _blocks(
    kind: FindingKind, severity: Severity, bad: SuspectBlocks, what: str
) -> Iterator[Finding]:
    if not len(bad):
        return
    experts = np.unique(bad.index // (bad.tensor.rows * (bad.tensor.columns // mxfp4.BLOCK)))
    message = f"{what}: {plural(len(bad), 'block')} in {plural(len(experts), 'expert')}"
    message += f" ({listed(experts)})"
    yield Finding(kind, severity, message, bad.tensor.name, bad.tensor.layer, bad.place())
