"""Checks on expert tensors in MXFP4: scale and code histograms, zeros, siblings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from gptoss.quant import mxfp4
from gptoss.quant.audit import check_blocks
from gptoss.quant.audit.findings import Finding, FindingKind, Severity
from gptoss.quant.audit.histogram import SATURATED, ExpertStatistics
from gptoss.quant.location import Location
from gptoss.quant.model.reader import TensorReader
from gptoss.quant.model.tensors import ExpertTensor, Part
from gptoss.text import plural

ENOUGH = 4096
"""Values below which the frequency of codes proves nothing."""
FAR = 12
"""Octaves from the bulk of a tensor's scales at which a scale is impossible."""
NOISE = 0.4
"""Unevenness of codes, relative to the tensor's usual one, up to which they are noise."""
UNIFORM = 0.1
"""Unevenness of codes, the sum over the 16 codes of |share - 1/16|, up to which they look random.
Normal values encoded to MXFP4 have 0.27, random bytes at most 0.06 from ``ENOUGH`` values on."""
ALIKE = 0.5
"""Sum of the differences of two frequencies of codes up to which they are the same."""
RATIO = 3.0
"""Octaves between a tensor's root mean square and its siblings' that are worth a warning."""
WRONG = 6.0
"""The same for an error: no training makes a factor of 64."""


def check_tensor(
    files: TensorReader, tensor: ExpertTensor, parts: Sequence[ExpertStatistics]
) -> Iterator[Finding]:
    """Check an MXFP4 expert tensor by its scale and code histograms, given the statistics of its
    one or two parts.
    """
    lost = [finding for part in parts for finding in _whole(part)]
    yield from lost
    for part in parts:
        yield from _codes(part)
        yield from _dead(part)
        yield from _noise(tensor, part)
        yield from _uniform(part)
    if any(
        finding.kind in (FindingKind.SCALE_LINEAR, FindingKind.SCALE_CONSTANT) for finding in lost
    ):
        return
    scales = sum((part.scales for part in parts), np.zeros((tensor.experts, 256), np.int64))
    impossible = _impossible(scales.sum(axis=0))
    extreme = impossible.copy()
    extreme[[0, 1, 254, 255]] = True
    odd = (scales[:, extreme].sum(axis=1) > 0) | _any(parts, "zero_blocks", "saturated_blocks")
    if odd.any():
        bad = check_blocks.locate(files, tensor, np.flatnonzero(odd).tolist(), extreme)
        yield from check_blocks.check_located(bad, impossible)


def _any(parts: Sequence[ExpertStatistics], *names: str) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = sum(getattr(part, name) for part in parts for name in names) > 0
    return found


def _impossible(scales: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of 256 scale bytes an expert tensor cannot plausibly have: NaN, and those far
    from the bulk of its histogram ``[256]``.
    """
    # Scales of 0 are what many encoders give to blocks of zeros: the bulk is among the others.
    others = scales.copy()
    others[[0, mxfp4.E8M0_NAN]] = 0
    if not others.any():
        return np.zeros(256, np.bool_)
    share = np.cumsum(others) / others.sum()
    low, high = np.searchsorted(share, [0.25, 0.75])
    bytes_ = np.arange(256)
    impossible: NDArray[np.bool_] = (bytes_ < low - FAR) | (bytes_ > high + FAR)
    impossible[mxfp4.E8M0_NAN] = True
    return impossible


# --- the tensor as a whole --------------------------------------------------------------------


def _whole(part: ExpertStatistics) -> Iterator[Finding]:
    """Report an expert tensor whose scale histogram is not one of exponents: linear numbers, or one
    constant.
    """
    scales = part.scales.sum(axis=0)
    # Zeros and 0xff, where a stretch of the file was lost, are not what the scales were written as.
    if scales[1 : mxfp4.E8M0_NAN].any():
        scales[[0, mxfp4.E8M0_NAN]] = 0
    used = np.flatnonzero(scales)
    n = int(scales.sum())
    if n < 64:
        return
    share = np.cumsum(scales) / n
    low, high = (int(it) for it in np.searchsorted(share, [0.25, 0.75]))
    collapsed = int(scales[131:136].sum()) >= 0.99 * n
    if collapsed:
        yield _of_part(
            FindingKind.SCALE_LINEAR,
            Severity.ERROR,
            part,
            f"nearly all scales are {used[0]} to {used[-1]}, as if numbers around 120 had been "
            "taken for scales and quantized again",
        )
    elif len(used) == 1:
        yield _of_part(
            FindingKind.SCALE_CONSTANT, Severity.ERROR, part, f"every scale byte is {used[0]}"
        )
    elif high - low >= 24 and not _are_codes(part):
        yield _of_part(
            FindingKind.SCALE_LINEAR,
            Severity.ERROR,
            part,
            f"half of the scale bytes are spread from {low} to {high}: as exponents, a range of "
            f"2^{high - low}",
        )


def _are_codes(part: ExpertStatistics) -> bool:
    """Return whether an expert tensor's scale histogram is really that of E2M1 codes: the upper
    half of a byte is then a code.
    """
    scales, codes = part.scales.sum(axis=0), part.codes.sum(axis=0)
    upper = scales.reshape(16, 16).sum(axis=1)
    return float(np.abs(upper / upper.sum() - codes / codes.sum()).sum()) < ALIKE


def _codes(part: ExpertStatistics) -> Iterator[Finding]:
    """Check the frequencies of the 16 E2M1 codes in an expert tensor (int4 codes, unused or skewed
    codes, saturation), dead experts left out.
    """
    alive = part.zero_blocks < part.blocks
    codes = part.codes[alive].sum(axis=0)
    n = int(codes.sum())
    if n < ENOUGH:
        return
    stuck = list(_stuck_lanes(part, alive))
    yield from stuck
    by_sign = codes.reshape(2, 8)[:, 1:]
    others = int(by_sign.sum())
    if stuck or not others:
        return
    negative = int(by_sign[1].sum()) / others
    as_e2m1 = int(np.abs(by_sign[0] - by_sign[1]).sum())
    as_int4 = int(np.abs(by_sign[0] - by_sign[1, ::-1]).sum())
    unused = [code for code in range(16) if code != 8 and not codes[code]]
    if as_e2m1 > 0.2 * n and as_int4 < as_e2m1 / 4:
        message = f"code c as often as 16 - c: they differ in {as_int4 / n:.1%} of the values, "
        message += f"c and 8 + c in {as_e2m1 / n:.0%}"
        yield _of_part(FindingKind.CODE_INT4, Severity.ERROR, part, message)
    elif unused:
        names = ", ".join(f"{code} ({mxfp4.E2M1[code]:g})" for code in unused)
        yield _of_part(
            FindingKind.CODE_UNUSED, Severity.ERROR, part, f"of {n:,} values none is {names}"
        )
    elif abs(negative - 0.5) > 0.2:
        severity = Severity.ERROR if abs(negative - 0.5) > 0.4 else Severity.WARNING
        message = f"{negative:.0%} of the values that are not zero are negative"
        yield _of_part(FindingKind.CODE_SKEW, severity, part, message)
    elif codes.max() > 0.6 * n:
        top = int(codes.argmax())
        message = f"{codes[top] / n:.0%} of the values have code {top} ({mxfp4.E2M1[top]:g})"
        yield _of_part(FindingKind.CODE_SKEW, Severity.WARNING, part, message)
    saturated = int(part.saturated_blocks.sum())
    share = saturated * mxfp4.BLOCK / n
    if share > 0.01:
        severity = Severity.ERROR if share > 0.25 else Severity.WARNING
        message = f"{saturated:,} blocks ({share:.1%}) have {SATURATED} values or more at ±6"
        expert = check_blocks.first_of(part.saturated_blocks > 0)
        yield _of_part(FindingKind.SATURATED_BLOCKS, severity, part, message, Location(expert))


def _noise(tensor: ExpertTensor, part: ExpertStatistics) -> Iterator[Finding]:
    """Report stretches of an expert's rows with noise: the 16 codes are equally frequent there, but
    not in the rest of the tensor.

    Unevenness is relative to the tensor's median: 1 is as everywhere else, 0 is noise. Stretches
    that are mostly zeros do not count for the median: beside a hole all that is left looked like
    noise.
    """
    values = part.stretches.sum(axis=2)
    written = part.stretches[..., [0, 8]].sum(axis=2) < values / 2
    if not written.any():
        return
    off = np.abs(part.stretches / np.maximum(values, 1)[..., None] - 1 / 16).sum(axis=2)
    usual = float(np.median(off[written]))
    noise = (values >= ENOUGH) & (off < NOISE * usual)
    if usual < 0.1 or not noise.any() or noise.mean() > 0.25:
        return
    expert, stretch = (int(i) for i in np.argwhere(noise)[0])
    row = stretch * part.stretch_rows * len(tensor.parts) + tensor.parts.index(part.part)
    extent = tensor.extents[0]
    row_bytes = extent.nbytes // (tensor.experts * tensor.rows)
    rows = min(part.stretch_rows, part.rows)
    message = f"{part.part}: {plural(int(noise.sum()), 'stretch')} of {plural(rows, 'row')}"
    yield Finding(
        FindingKind.CODE_NOISE,
        Severity.ERROR,
        message,
        part.tensor,
        part.layer,
        Location(expert, row),
        extent.file.name,
        extent.offset + (expert * tensor.rows + row) * row_bytes,
    )


def _uniform(part: ExpertStatistics) -> Iterator[Finding]:
    """Report a whole expert tensor whose 16 codes are as equally frequent as in random bytes."""
    codes = part.codes.sum(axis=0)
    n = int(codes.sum())
    if n >= ENOUGH and (unevenness := float(np.abs(codes / n - 1 / 16).sum())) <= UNIFORM:
        message = f"of {n:,} values each code has {codes.min() / n:.2%} to {codes.max() / n:.2%}"
        message += f", in sum {unevenness:.3f} from 1/16"
        yield _of_part(FindingKind.CODE_UNIFORM, Severity.WARNING, part, message)


def _stuck_lanes(part: ExpertStatistics, alive: NDArray[np.bool_]) -> Iterator[Finding]:
    ever = np.bitwise_or.reduce(part.ever[alive], axis=0)
    always = np.bitwise_and.reduce(part.always[alive], axis=0)
    lanes = np.flatnonzero((ever != 15) | (always != 0))
    if not len(lanes):
        return
    if len(lanes) == mxfp4.BLOCK and len(set(ever.tolist())) == len(set(always.tolist())) == 1:
        return  # all lanes alike: unused codes, which is another finding
    lane = int(lanes[0])
    bits = f"only bits {ever[lane]:04b}" if ever[lane] != 15 else f"always {always[lane]:04b}"
    listed = ", ".join(map(str, lanes[:8])) + (", ..." if len(lanes) > 8 else "")
    yield _of_part(
        FindingKind.STUCK_LANE,
        Severity.ERROR,
        part,
        f"{len(lanes)} of 32 lanes of a block ({listed}); the first has {bits}",
        Location(lane=lane),
    )


def _dead(part: ExpertStatistics) -> Iterator[Finding]:
    """Report dead experts, those of an expert tensor whose weights are all zero."""
    dead = np.flatnonzero(part.zero_blocks == part.blocks)
    if len(dead):
        message = "all weights are zero"
        if len(dead) > 1:
            message += (
                f"; so are all of {plural(len(dead) - 1, 'other expert')}: "
                f"{check_blocks.listed(dead[1:])}"
            )
        yield _of_part(
            FindingKind.DEAD_EXPERT, Severity.ERROR, part, message, Location(int(dead[0]))
        )


# --- siblings ---------------------------------------------------------------------------------


def check_outliers(
    parts: Sequence[ExpertStatistics], dense_rms: dict[int, float]
) -> Iterator[Finding]:
    """Report expert tensors and single experts whose root mean square is far from that of their
    siblings.

    ``dense_rms`` is the root mean square of a layer's attention matrices, by layer.
    """
    size = {(it.layer, it.part): _octaves(it) for it in parts}
    shifts = [
        size[it.layer, it.part] - float(np.log2(dense_rms[it.layer]))
        for it in parts
        if dense_rms.get(it.layer) and np.isfinite(size[it.layer, it.part])
    ]
    shift = float(np.median(shifts)) if shifts else 0.0
    if abs(shift) >= WRONG:
        yield Finding(
            FindingKind.SCALE_BIAS,
            Severity.ERROR,
            f"experts' weights are about 2^{round(shift)} times the size of attention's; an "
            f"exponent bias off by {round(shift)} would do that",
        )
    for part in Part:
        yield from _against_layers([it for it in parts if it.part is part], size)
    for it in parts:
        yield from _against_experts(it)


def _octaves(it: ExpertStatistics) -> float:
    """Return log2 of an expert tensor's root mean square for the comparison with its siblings; NaN
    when all experts are dead.
    """
    squares = it.mean_square
    squares = squares[np.isfinite(squares) & (squares > 0)]
    return float(np.log2(np.median(squares)) / 2) if len(squares) else float("nan")


def _against_layers(
    parts: Sequence[ExpertStatistics], size: dict[tuple[int, Part], float]
) -> Iterator[Finding]:
    sizes = np.array([size[it.layer, it.part] for it in parts])
    if np.isfinite(sizes).sum() < 3:
        return
    middle = float(np.nanmedian(sizes))
    for it, octaves in zip(parts, sizes, strict=True):
        off = octaves - middle
        if abs(off) < RATIO:  # NaN is not
            continue
        if np.isfinite(off):
            severity = Severity.ERROR if abs(off) >= WRONG else Severity.WARNING
            message = f"2^{off:.1f} times the size of the other layers'"
            yield _of_part(FindingKind.LAYER_OUTLIER, severity, it, message)


def _against_experts(it: ExpertStatistics) -> Iterator[Finding]:
    squares = it.mean_square
    alive = squares > 0
    if alive.sum() < 3:
        return
    with np.errstate(divide="ignore"):
        octaves = np.log2(squares) / 2
    off = octaves - np.median(octaves[alive])
    far = np.flatnonzero(alive & (np.abs(off) >= RATIO))
    if len(far):
        first = int(far[np.abs(off[far]).argmax()])
        severity = Severity.ERROR if abs(off[first]) >= WRONG else Severity.WARNING
        message = f"2^{off[first]:.1f} times the size of its siblings"
        if len(far) > 1:
            message += f"; {len(far) - 1} other experts are far off too"
        yield _of_part(FindingKind.EXPERT_OUTLIER, severity, it, message, Location(first))


def _of_part(
    kind: FindingKind,
    severity: Severity,
    part: ExpertStatistics,
    message: str,
    place: Location | None = None,
) -> Finding:
    return Finding(kind, severity, f"{part.part}: {message}", part.tensor, part.layer, place)
