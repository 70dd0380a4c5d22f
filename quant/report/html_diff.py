"""The report's comparison with a base model: differences by layer and by expert."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from math import inf, isfinite

import numpy as np

from gptoss.quant.diff.result import Diff, TensorChange
from gptoss.quant.report import svg
from gptoss.quant.report.svg import Numbers, Shading

LEAST = 0.01
"""Least range of relative norms that a heat map's colours span; Q8_0's rounding is half of it."""


def differences(diff: Diff, n_layers: int) -> Iterator[str]:
    """Render the report page's section on what changed from A, the base model, to B, the audited
    model.
    """
    yield (
        '<h2>Difference from the base</h2><p class="path">Compared with '
        f"{escape(diff.a)}: {escape(diff.headline)}.</p>"
    )
    if not diff.changes:
        return
    yield (
        "<p>The norm of each tensor's difference, divided by the norm of the base's tensor, layer"
        " by layer. Rounding to another type gives about 0.005 for Q8_0 and 0.1 for MXFP4.</p>"
    )
    by_role: dict[str, list[TensorChange]] = {}
    for change in diff.changes:
        role = change.tensor.split(".", 2)[2] if change.layer is not None else change.tensor
        by_role.setdefault(role, []).append(change)
    yield svg.grid(_bars(role, found, n_layers) for role, found in by_role.items())
    experts = {role: found for role, found in by_role.items() if found[0].is_expert}
    if experts:
        yield (
            "<h2>Difference by layer and expert</h2><p>The same ratio for each expert: trained"
            " experts differ more than the others.</p>"
        )
        maps = {role: _of_experts(found, n_layers) for role, found in experts.items()}
        shading = Shading.of(np.concatenate([values.ravel() for values in maps.values()]), LEAST)
        yield svg.grid(_map(role, values, shading) for role, values in maps.items())


def _ratio(relative: float) -> str:
    return f"{relative:.3g}" if isfinite(relative) else "infinite: the base is zero there"


def _bars(role: str, found: Sequence[TensorChange], n_layers: int) -> str:
    """Render the base comparison's bar chart, one bar per layer, or one bar for tensors outside the
    layers.
    """
    if found[0].layer is None:
        relative = {0: found[0].relative}
        names = [""]
    else:
        relative = {change.layer: change.relative for change in found if change.layer is not None}
        names = [str(layer) for layer in range(n_layers)]
    shown = [min(relative.get(i, 0.0), _most(relative.values())) for i in range(len(names))]
    titles = [
        f"{f'layer {name}: ' if name else ''}{_ratio(relative.get(i, 0.0))}"
        for i, name in enumerate(names)
    ]
    stored = " → ".join(dict.fromkeys(found[0].stored))
    return svg.figure(role, svg.bars(shown, names, titles, form="{:.3g}".format), stored)


def _most(relative: Iterable[float]) -> float:
    """Return the largest finite difference from the base model, at which the report's bar chart
    draws infinite ones.
    """
    return max(filter(isfinite, relative), default=1.0)


def _of_experts(found: Sequence[TensorChange], n_layers: int) -> Numbers:
    """Collect the experts' relative norms of change from the base model, ``[layers, experts]``; 0
    where unchanged, NaN where infinite.
    """
    values = np.zeros((n_layers, found[0].n_experts))
    for change in found:
        for expert in change.experts:
            if change.layer is not None:
                known = expert.relative if expert.relative < inf else np.nan
                values[change.layer, expert.expert] = known
    return values


def _map(role: str, values: Numbers, shading: Shading) -> str:
    def title(layer: int, expert: int) -> str:
        return f"layer {layer}, expert {expert}: {_ratio(float(values[layer, expert]))}"

    drawn = svg.heat_map(values, shading, title, rows="layer", columns="expert")
    return svg.figure(role, drawn, svg.legend(shading, "{:.3g}".format))
