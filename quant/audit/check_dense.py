"""Checks on tensors that are not in MXFP4: norms, sinks, routers, dense matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from gptoss.quant.audit import check_blocks
from gptoss.quant.audit.findings import Finding, FindingKind, Severity
from gptoss.quant.audit.statistics import EXPERTS, DenseStatistics
from gptoss.quant.location import Location
from gptoss.quant.model import dtypes
from gptoss.quant.model.reader import TensorReader, read_values
from gptoss.quant.model.tensors import DenseTensor
from gptoss.quant.mxfp4 import Floats

HUGE, TOO_HUGE = 1e4, 65504.0
"""Magnitudes of weights that are worth a warning, and that F16 cannot hold."""
SINK, WRONG_SINK = 50.0, 1000.0
"""Magnitudes of sinks for a warning and an error: attention scores are a few tens at most."""
NORM = (1e-3, 1e3)
"""Range of the root mean square of a norm's weights."""
ROUTE = 30.0
"""Root mean square of a router's row: with inputs of size 1 its logits then reach thousands."""
NEVER = 80.0
"""How far a router's bias may lie below the largest: e^-80 is nothing."""
_SCAN = 2**22


def check_tensor(
    files: TensorReader, tensor: DenseTensor, counted: DenseStatistics
) -> Iterator[Finding]:
    """Check a dense tensor (norm, sink, router, bias, attention matrix, embedding), one not in
    MXFP4, and report its findings.
    """
    if counted.not_finite:
        yield from _not_finite(files, tensor, counted)
    n = int(np.prod(tensor.shape))
    if counted.zeros == n:
        # A bias of zeros is as a bias starts; sinks of zeros too.
        harmless = tensor.role.endswith("bias") or tensor.role == "attn_sinks.weight"
        severity = Severity.INFO if harmless else Severity.ERROR
        yield _of(FindingKind.DENSE_ZERO, severity, tensor, f"all {n:,} values are zero")
        return
    if counted.zeros * dtypes.block_bytes(tensor.encoding) >= check_blocks.FILL:
        yield from _hole(files, tensor)
    check = _CHECKS.get(tensor.role)
    if check is not None:
        yield from check(
            tensor, read_values(files, tensor.encoding, tensor.extent, 0, tensor.shape)
        )
    elif counted.peak > HUGE:
        severity = Severity.ERROR if counted.peak > TOO_HUGE else Severity.WARNING
        yield _of(FindingKind.DENSE_HUGE, severity, tensor, f"magnitudes up to {counted.peak:.6g}")


def _not_finite(
    files: TensorReader, tensor: DenseTensor, counted: DenseStatistics
) -> Iterator[Finding]:
    place = _place(tensor, counted.first_bad or 0)
    message = f"{counted.not_finite:,} values are NaN or infinite"
    yield _of(FindingKind.NOT_FINITE, Severity.ERROR, tensor, message, place)
    if counted.not_finite * dtypes.block_bytes(tensor.encoding) >= check_blocks.FILL:
        yield from _hole(files, tensor)


def _hole(files: TensorReader, tensor: DenseTensor) -> Iterator[Finding]:
    """Report the longest stretch of one repeated byte in a dense tensor with NaN or infinite
    values, unless it is whole rows of zeros.

    A row of the embedding that belongs to no token may be zero; rows of an expert are not.
    """
    offset, size, byte = max(_runs(files, tensor), key=lambda run: run[1])
    row = tensor.extent.nbytes // int(np.prod(tensor.shape[:-1]))
    whole_rows = byte == 0 and offset % row == 0 and size % row == 0
    whole_rows &= tensor.role != EXPERTS
    if size >= check_blocks.FILL and not whole_rows:
        index = offset // dtypes.block_bytes(tensor.encoding) * dtypes.block_values(tensor.encoding)
        yield Finding(
            FindingKind.HOLE,
            Severity.ERROR,
            f"{size:,} bytes of 0x{byte:02x}",
            tensor.name,
            tensor.layer,
            _place(tensor, index),
            tensor.extent.file.name,
            tensor.extent.offset + offset,
        )


def _runs(files: TensorReader, tensor: DenseTensor) -> Iterator[tuple[int, int, int]]:
    """Scan a dense tensor's bytes for long stretches of one repeated byte: offset, length, byte."""
    offset, size, byte = 0, 0, -1
    for start in range(0, tensor.extent.nbytes, _SCAN):
        raw = files.read("scan", tensor.extent, start, min(_SCAN, tensor.extent.nbytes - start))
        ends = np.append(np.flatnonzero(raw[1:] != raw[:-1]) + 1, len(raw))
        begins = np.insert(ends[:-1], 0, 0)
        long = ends - begins >= check_blocks.FILL
        long[[0, -1]] = True  # these may go on beyond the chunk
        for begin, end in zip(begins[long].tolist(), ends[long].tolist(), strict=True):
            if start + begin == offset + size and int(raw[begin]) == byte:
                size += end - begin
                continue
            yield offset, size, byte
            offset, size, byte = start + begin, end - begin, int(raw[begin])
    yield offset, size, byte


def _place(tensor: DenseTensor, index: int) -> Location:
    """Convert the flat index of a dense tensor's value to its location: expert, row, index."""
    at = [int(i) for i in np.unravel_index(index, tensor.shape)]
    expert = at.pop(0) if len(at) == 3 else None
    return Location(expert, row=at[0] if len(at) == 2 else None, index=at[-1])


def _of(
    kind: FindingKind,
    severity: Severity,
    tensor: DenseTensor,
    message: str,
    place: Location | None = None,
) -> Finding:
    return Finding(kind, severity, message, tensor.name, tensor.layer, place)


def _doubles(values: Floats) -> NDArray[np.float64]:
    """Convert a dense tensor's sampled values to float64 without a warning for signalling NaNs,
    which random bytes hold.
    """
    with np.errstate(invalid="ignore"):
        return values.astype(np.float64)


# --- by role ----------------------------------------------------------------------------------


def _norm(tensor: DenseTensor, values: Floats) -> Iterator[Finding]:
    numbers = values[~np.isnan(values)].astype(np.float64)
    if not numbers.size:
        return
    with np.errstate(over="ignore"):
        rms = float(np.sqrt(np.mean(np.square(numbers))))
    if not NORM[0] <= rms <= NORM[1]:
        message = f"root mean square {rms:.3g}"
        yield _of(FindingKind.NORM_RANGE, Severity.WARNING, tensor, message)


def _sinks(tensor: DenseTensor, values: Floats) -> Iterator[Finding]:
    sizes = np.nan_to_num(np.abs(values), nan=0, posinf=0)
    largest = float(sizes.max())
    if largest > SINK:
        severity = Severity.ERROR if largest > WRONG_SINK else Severity.WARNING
        head = int(sizes.argmax())
        message = f"{np.count_nonzero(sizes > SINK)} sinks beyond ±{SINK:g}, the largest "
        message += f"{values[head]:.6g}"
        yield _of(FindingKind.SINK_RANGE, severity, tensor, message, Location(index=head))


def _router(tensor: DenseTensor, values: Floats) -> Iterator[Finding]:
    rows = np.sqrt(np.square(np.nan_to_num(_doubles(values))).mean(axis=1))
    if rows.max() > ROUTE:
        expert = int(rows.argmax())
        severity = Severity.ERROR if rows[expert] > 30 * ROUTE else Severity.WARNING
        message = f"root mean square of an expert's row up to {rows[expert]:.3g}"
        yield _of(FindingKind.ROUTER_RANGE, severity, tensor, message, Location(expert))
    for dead in np.flatnonzero(rows == 0):
        message = "the expert's row is all zeros"
        yield _of(FindingKind.DEAD_ROUTE, Severity.WARNING, tensor, message, Location(int(dead)))
    seen: dict[bytes, int] = {}
    for expert, row in enumerate(values):
        first = seen.setdefault(row.tobytes(), expert)
        if first != expert and rows[expert] > 0:
            message = f"the same row as expert {first}"
            yield _of(
                FindingKind.DUPLICATE_ROUTE, Severity.WARNING, tensor, message, Location(expert)
            )


def _router_bias(tensor: DenseTensor, values: Floats) -> Iterator[Finding]:
    biases = np.nan_to_num(_doubles(values), nan=0, posinf=0, neginf=-np.inf)
    for expert in np.flatnonzero(biases < biases.max() - NEVER):
        message = f"a bias of {values[expert]:.6g}, the largest is {biases.max():.6g}"
        yield _of(FindingKind.DEAD_ROUTE, Severity.WARNING, tensor, message, Location(int(expert)))


_CHECKS: dict[str, Callable[[DenseTensor, Floats], Iterator[Finding]]] = {
    "attn_norm.weight": _norm,
    "post_attention_norm.weight": _norm,
    "output_norm.weight": _norm,
    "attn_sinks.weight": _sinks,
    "ffn_gate_inp.weight": _router,
    "ffn_gate_inp.bias": _router_bias,
}
