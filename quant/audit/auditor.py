"""Check a model's numbers without its source: what is wrong, and where.

One pass counts every tensor (`statistics`). The findings come from these counts, from a second look
at the few places they point to, and from samples of the layers' structure: the modules
`check_*`, each about one kind of finding. A single changed weight cannot be found without the
source: see `gptoss.quant.verify`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from gptoss.formats.hparams import HParams
from gptoss.progress import Progress
from gptoss.quant.audit import (
    check_channels,
    check_dense,
    check_duplicates,
    check_experts,
    check_model,
    check_neurons,
    check_tokenizer,
    statistics,
)
from gptoss.quant.audit.findings import Finding, Severity, arrange, tally
from gptoss.quant.audit.histogram import ExpertStatistics
from gptoss.quant.audit.statistics import Counted, DenseStatistics
from gptoss.quant.model.loader import open_model
from gptoss.quant.model.reader import TensorReader
from gptoss.quant.model.tensors import Model
from gptoss.quant.parallel import WORKERS
from gptoss.text import plural

ATTENTION = ("attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight")


class Verdict(StrEnum):
    """What an audit concludes."""

    SOUND = "sound"
    """Every tensor was read, and nothing of severity error was found."""
    UNSOUND = "unsound"
    """Something of severity error was found."""
    NOT_JUDGED = "not judged"
    """No error was found, but some tensors could not be read."""


@dataclass(frozen=True, slots=True)
class Audit:
    """What was counted and found; ``findings`` the worst first. True only if ``sound``.

    ``nbytes`` were read: all tensors except those in ``unread``, whose type or shape is not
    supported.
    """

    path: str
    is_gguf: bool
    hparams: HParams
    nbytes: int
    experts: tuple[ExpertStatistics, ...]
    dense: tuple[DenseStatistics, ...]
    findings: tuple[Finding, ...]
    unread: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """Return the audit's verdict: an error finding outweighs tensors that could not be read."""
        if any(it.severity is Severity.ERROR for it in self.findings):
            return Verdict.UNSOUND
        return Verdict.NOT_JUDGED if self.unread else Verdict.SOUND

    @property
    def sound(self) -> bool:
        """Return whether the audit read every tensor and found nothing of severity error."""
        return self.verdict is Verdict.SOUND

    def __bool__(self) -> bool:
        return self.sound

    @property
    def headline(self) -> str:
        """Return the audit's verdict and its reason in one sentence, without the model's path."""
        counts = tally(self.findings)
        found = ", ".join(counts.values())
        match self.verdict:
            case Verdict.UNSOUND:
                return f"unsound: {found}"
            case Verdict.NOT_JUDGED:
                unread = plural(len(self.unread), "tensor")
                return f"not judged: {unread} could not be read; no errors in the rest, {found}"
            case Verdict.SOUND if Severity.WARNING in counts:
                return f"no errors, but {found}"
            case Verdict.SOUND:
                return f"sound: {found or 'no errors, no warnings'}"

    def to_json(self) -> dict[str, Any]:
        """Return the audit (verdict, findings, statistics) as plain data for ``json.dumps``."""
        return {
            "verdict": self.verdict.value,
            "sound": self.sound,
            "path": self.path,
            "nbytes": self.nbytes,
            "findings": [finding.to_json() for finding in self.findings],
            "unread": list(self.unread),
            "experts": [it.to_json() for it in self.experts],
            "dense": [it.to_json() for it in self.dense],
        }


def audit(path: str | os.PathLike[str], *, progress: Progress | None = None) -> Audit:
    """Audit a checkpoint's folder or a GGUF file: run every check and return the ``Audit``.

    ``progress`` is called from time to time with the bytes read so far and the total. Raises
    ``InvalidFileError`` if the model is corrupt, truncated or modified while being read,
    ``UnsupportedModelError`` if it is not a gpt-oss model.
    """
    model = open_model(Path(path))
    with TensorReader() as files:
        counted = statistics.count(model, files, progress)
        findings = arrange(
            [*check_model.check_model(model, files), *_findings(model, files, counted)]
        )
    model.check_unchanged()
    return Audit(
        str(path),
        model.is_gguf,
        model.hparams,
        model.nbytes,
        counted.experts,
        counted.dense,
        findings,
        model.unread,
    )


def _findings(model: Model, files: TensorReader, counted: Counted) -> Iterator[Finding]:
    yield from check_tokenizer.check_tokenizer(model)
    loose = [*model.dense, *map(statistics.as_dense, statistics.loose(model))]
    by_name: dict[str, list[ExpertStatistics]] = {}
    for part in counted.experts:
        by_name.setdefault(part.tensor, []).append(part)
    packed = {tensor.name: tensor for tensor in model.experts if tensor.name in by_name}
    layers = list(check_neurons.layers(model.experts))
    with ThreadPoolExecutor(WORKERS) as pool:
        looks: list[Iterator[list[Finding]]] = [
            pool.map(lambda *it: list(check_dense.check_tensor(files, *it)), loose, counted.dense),
            pool.map(
                lambda name: list(check_experts.check_tensor(files, packed[name], by_name[name])),
                by_name,
            ),
            pool.map(lambda layer: list(check_neurons.check_layer(files, layer)), layers),
        ]
        yield from (finding for look in looks for findings in look for finding in findings)
        yield from check_channels.check_channels(files, model, pool)
    if counted.experts:
        yield from check_experts.check_outliers(counted.experts, _attention(model, counted.dense))
    yield from check_duplicates.check_duplicates(files, packed, counted.experts)


def _attention(model: Model, counted: Sequence[DenseStatistics]) -> dict[int, float]:
    """Return the typical root mean square of each layer's attention matrices, by layer number,
    which the audit passes to the outlier check.
    """
    sizes: dict[int, list[float]] = {}
    for tensor, its in zip(model.dense, counted, strict=False):
        if tensor.role in ATTENTION and tensor.layer is not None and its.rms > 0:
            sizes.setdefault(tensor.layer, []).append(its.rms)
    return {layer: float(np.median(of_layer)) for layer, of_layer in sizes.items()}
