"""A report as one self-contained HTML page: no script, nothing fetched.

The page forbids itself to load anything, and all text from files is escaped: a hostile tensor name
is shown as text. The page follows the reader's light or dark setting, and prints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from importlib.resources import files

import numpy as np

from gptoss.quant.audit.auditor import Audit, Verdict
from gptoss.quant.audit.findings import Finding, Severity, tally
from gptoss.quant.audit.histogram import ExpertStatistics
from gptoss.quant.audit.statistics import DenseStatistics
from gptoss.quant.diff.result import Diff
from gptoss.quant.model.tensors import Part
from gptoss.quant.mxfp4 import E2M1, E8M0_BIAS, E8M0_NAN
from gptoss.quant.report import svg
from gptoss.quant.report.html_diff import differences
from gptoss.quant.report.svg import Numbers, Shading
from gptoss.text import plural

SHOWN = 200
"""Findings listed on the page; all of them are in the JSON."""

_CODES_BY_VALUE = (15, 14, 13, 12, 11, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7)


def page(audit: Audit, diff: Diff | None = None) -> str:
    """Render the report's whole HTML page about an audited model, with the comparison with a base
    if there is one.
    """
    style = files("gptoss.quant.report").joinpath("style.css").read_text("utf-8")
    sections = [
        _header(audit),
        _findings(audit.findings),
        *(differences(diff, audit.hparams.num_hidden_layers) if diff is not None else ()),
        *_experts(audit.experts),
        *_dense(audit.dense),
        _footer(),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(_name(audit))}</title><style>{style}</style></head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def _name(audit: Audit) -> str:
    """Return the model's name for the report page's heading: the last part of its path, with either
    separator.
    """
    return audit.path.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1] or audit.path


# --- head and findings ------------------------------------------------------------------------


def _header(audit: Audit) -> str:
    hparams = audit.hparams
    blocks = sum(it.blocks * it.experts for it in audit.experts)
    zero = sum(int(it.zero_blocks.sum()) for it in audit.experts)
    saturated = sum(int(it.saturated_blocks.sum()) for it in audit.experts)
    tiles = [
        (f"{hparams.num_hidden_layers}", "layers"),
        (f"{hparams.num_local_experts}", f"experts, {hparams.num_experts_per_tok} at a time"),
        (f"{hparams.hidden_size}", "hidden size"),
        (_size(audit.nbytes), "read, every byte"),
    ]
    if blocks:
        tiles += [
            (f"{blocks:,}", "MXFP4 blocks"),
            (svg.percent(zero / blocks), "blocks of zeros"),
            (svg.percent(saturated / blocks), "saturated blocks"),
        ]
    shown = "".join(
        f'<div class="tile"><b>{escape(figure)}</b><span>{escape(what)}</span></div>'
        for figure, what in tiles
    )
    form = "GGUF file" if audit.is_gguf else "checkpoint"
    return (
        f"<header><h1>{escape(_name(audit))}</h1>"
        f'<p class="muted path">{form}, {escape(audit.path)}</p>'
        f"<p>{_verdict(audit)}</p></header>\n"
        f'<div class="tiles">{shown}</div>'
    )


def _verdict(audit: Audit) -> str:
    counts = tally(audit.findings)
    if audit.verdict is Verdict.SOUND and not counts.keys() - {Severity.INFO}:
        return f'<span class="good">✓ {escape(audit.headline)}</span>'
    severity = next(iter(counts), Severity.WARNING)
    return f'<span class="{severity}">{_MARKS[severity]} {escape(audit.headline)}</span>'


def _size(nbytes: int) -> str:
    """Format a number of bytes for the report page in a readable unit, such as ``12.83 GB``."""
    if nbytes < 1e4:
        return plural(nbytes, "byte")
    return f"{nbytes / 1e9:,.2f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.2f} MB"


_MARKS = {Severity.ERROR: "✕", Severity.WARNING: "▲", Severity.INFO: "●"}


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return ""
    rows = "".join(_finding(finding) for finding in findings[:SHOWN])
    more = len(findings) - SHOWN
    rest = f"<p>{plural(more, 'finding')} more: --json has all.</p>" if more > 0 else ""
    return (
        '<h2>Findings</h2><div class="scroll"><table><thead><tr><th>What</th><th>Where</th>'
        "<th>Found</th><th>What it does to the model</th><th>What to do</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>{rest}"
    )


def _finding(finding: Finding) -> str:
    severity = finding.severity
    return (
        f'<tr><td class="{severity}">{_MARKS[severity]} {escape(finding.kind.label)}</td>'
        f'<td class="place">{escape(finding.where or "the whole model")}</td>'
        f"<td>{escape(finding.message)}</td><td>{escape(finding.kind.effect)}</td>"
        f"<td>{escape(finding.kind.remedy)}</td></tr>"
    )


# --- experts ----------------------------------------------------------------------------------


def _experts(experts: Sequence[ExpertStatistics]) -> Iterator[str]:
    if not experts:
        yield "<h2>Experts</h2><p>No expert of this model is in MXFP4.</p>"
        return
    parts = {part: [it for it in experts if it.part is part] for part in Part}
    parts = {part: found for part, found in parts.items() if found}
    yield (
        "<h2>Block scales by layer and expert</h2><p>The mean exponent of an expert's block scales."
        " A cell that stands out is an expert whose weights are larger or smaller than those of its"
        " neighbours; an outline marks values beyond the range of the colours.</p>"
    )
    yield _heat_maps(parts, _mean_exponents, 1.0, lambda value: f"2^{value:.2f}", "mean scale")
    yield (
        "<h2>Saturated blocks by layer and expert</h2><p>The share of blocks in which at least half"
        " of the values are ±6 times the scale, the largest code: they may be clipped.</p>"
    )
    if any(it.saturated_blocks.any() for it in experts):
        yield _heat_maps(parts, _saturated, 0.01, svg.percent, "saturated")
    else:
        yield "<p>No block is saturated.</p>"
    yield (
        "<h2>Block scales</h2><p>The share of blocks with each scale. Scales of trained weights"
        " lie close together; a second peak, or blocks far away, are suspect.</p>"
    )
    yield svg.grid((_scale_bars(part, found) for part, found in parts.items()))
    yield (
        "<h2>Codes</h2><p>The share of values with each of the 16 codes, by the code's value."
        " Trained weights give a symmetric shape with few values at ±6; zero has two codes.</p>"
    )
    yield svg.grid((_code_bars(part, found) for part, found in parts.items()))


Layers = Sequence[ExpertStatistics]


def _heat_maps(
    parts: dict[Part, list[ExpertStatistics]],
    measure: Callable[[Layers], Numbers],
    least: float,
    form: Callable[[float], str],
    what: str,
) -> str:
    """Render one heat map of experts by layer for each part, for the report page; all share one
    colour scale at least ``least`` wide.
    """
    measured = {part: measure(found) for part, found in parts.items()}
    shading = Shading.of(np.concatenate([values.ravel() for values in measured.values()]), least)
    key = svg.legend(shading, form)

    def figure(part: Part, values: Numbers) -> str:
        layers = [it.layer for it in parts[part]]

        def title(row: int, expert: int) -> str:
            value = float(values[row, expert])
            shown = form(value) if np.isfinite(value) else "undefined: all scales are NaN"
            return f"layer {layers[row]}, expert {expert}: {what} {shown}"

        drawn = svg.heat_map(values, shading, title, rows="layer", columns="expert")
        return svg.figure(part.value, drawn, key)

    return svg.grid(figure(part, values) for part, values in measured.items())


def _mean_exponents(layers: Layers) -> Numbers:
    """Compute the mean scale exponents ``[layers, experts]`` for the report page's heat map; NaN
    scales are left out, NaN where no scale is left.
    """
    counts = np.array([it.scales[:, :E8M0_NAN] for it in layers], np.float64)
    with np.errstate(invalid="ignore"):
        means: Numbers = counts @ (np.arange(E8M0_NAN) - E8M0_BIAS) / counts.sum(axis=2)
    return means


def _saturated(layers: Layers) -> Numbers:
    return np.array([it.saturated_blocks / max(it.blocks, 1) for it in layers])


def _scale_bars(part: Part, layers: Layers) -> str:
    counts = sum(it.scales.sum(axis=0) for it in layers)
    used = np.flatnonzero(counts)
    first, last = int(used[0]), int(used[-1])
    total = int(np.sum(counts))
    names = [_scale_name(byte) for byte in range(first, last + 1)]
    titles = [
        f"scale {name} (byte {byte}): {int(counts[byte]):,} blocks, "
        f"{svg.percent(counts[byte] / total)}"
        for byte, name in enumerate(names, first)
    ]
    shares = [float(counts[byte] / total) for byte in range(first, last + 1)]
    drawn = svg.bars(shares, [name.removeprefix("2^") for name in names], titles)
    return svg.figure(part.value, drawn, "exponent of the scale, a power of two")


def _scale_name(byte: int) -> str:
    return "NaN" if byte == E8M0_NAN else f"2^{byte - E8M0_BIAS}"


def _code_bars(part: Part, layers: Layers) -> str:
    counts = sum(it.codes.sum(axis=0) for it in layers)
    total = max(int(np.sum(counts)), 1)
    labels = [f"{E2M1[code]:g}" for code in _CODES_BY_VALUE]
    shares = [float(counts[code] / total) for code in _CODES_BY_VALUE]
    titles = [
        f"{label} (code {code}): {int(counts[code]):,} values, {svg.percent(share)}"
        for code, label, share in zip(_CODES_BY_VALUE, labels, shares, strict=True)
    ]
    return svg.figure(part.value, svg.bars(shares, labels, titles))


# --- dense tensors ----------------------------------------------------------------------------


def _dense(dense: Sequence[DenseStatistics]) -> Iterator[str]:
    if not dense:
        return
    by_name: dict[str, list[DenseStatistics]] = {}
    for it in dense:
        name = it.tensor if it.layer is None else it.tensor.replace(f".{it.layer}.", ".*.", 1)
        by_name.setdefault(name, []).append(it)
    rows = "".join(_dense_row(name, found) for name, found in by_name.items())
    yield (
        "<h2>Other tensors</h2><p>Root mean square of the values, layer by layer: a jump is a layer"
        " unlike its neighbours.</p>"
        '<div class="scroll"><table><thead><tr><th>Tensor</th><th>Type</th><th>Shape</th>'
        '<th>By layer</th><th class="number">Root mean square</th><th class="number">Largest</th>'
        '<th class="number">Zeros</th><th class="number">Not finite</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _dense_row(name: str, found: list[DenseStatistics]) -> str:
    rms = [it.rms for it in found]
    types = ", ".join(sorted({it.encoding for it in found}))
    shapes = ", ".join(sorted({" × ".join(map(str, it.shape)) for it in found}))
    values = sum(int(np.prod(it.shape, dtype=np.int64)) for it in found)
    not_finite = sum(it.not_finite for it in found)
    low, high = min(rms), max(rms)
    span = f"{low:.3g}" if len(rms) == 1 else f"{low:.3g} to {high:.3g}"
    picture = svg.trend(rms, f"{name}, by layer") if len(rms) > 1 else ""
    bad = f'<span class="error">{not_finite:,}</span>' if not_finite else "0"
    zeros = svg.percent(sum(it.zeros for it in found) / max(values, 1))
    return (
        f'<tr><td class="place">{escape(name)}</td><td>{escape(types)}</td>'
        f"<td>{escape(shapes)}</td><td>{picture}</td>"
        f'<td class="number">{span}</td><td class="number">{max(it.peak for it in found):.3g}</td>'
        f'<td class="number">{zeros}</td><td class="number">{bad}</td></tr>'
    )


def _footer() -> str:
    return (
        "<footer><p>MXFP4: 32 values of four bits share a scale, a power of two (OCP MX v1.0)."
        " Every block was counted, none sampled. Move the pointer over a cell or bar for its"
        " figures; <code>gptoss-quant report --json</code> has them all.</p></footer>"
    )
