"""What a report shows, as plain data: what was counted of a model and what was found in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from gptoss.files.hparams import HParams
from gptoss.quant.findings import Finding, Severity
from gptoss.quant.statistics import DenseStatistics, ExpertStatistics


@dataclass(frozen=True, slots=True)
class TensorError:
    """How far a tensor is from that of another model: root of the squared differences over the
    root of the other's squares. ``name`` is the GGUF's, without the layer."""

    name: str
    layer: int | None
    relative_error: float


@dataclass(frozen=True, slots=True)
class Contents:
    """A model's statistics and findings; ``errors`` are against ``base``, when there is one."""

    path: str
    form: str
    hparams: HParams
    nbytes: int
    experts: tuple[ExpertStatistics, ...]
    dense: tuple[DenseStatistics, ...]
    findings: tuple[Finding, ...]
    base: str | None = None
    errors: tuple[TensorError, ...] = ()

    @property
    def by_severity(self) -> dict[Severity, int]:
        """Findings of each severity, the worst first."""
        counts = Counter(finding.severity for finding in self.findings)
        return {severity: counts[severity] for severity in reversed(Severity)}

    def to_json(self) -> dict[str, Any]:
        """All that the page shows, and more, for ``json.dumps``."""
        return {
            "path": self.path,
            "form": self.form,
            "nbytes": self.nbytes,
            "hparams": asdict(self.hparams),
            "severities": {str(severity): n for severity, n in self.by_severity.items()},
            "findings": [finding.to_json() for finding in self.findings],
            "experts": [statistics.to_json() for statistics in self.experts],
            "dense": [statistics.to_json() for statistics in self.dense],
            "base": self.base,
            "errors": [asdict(error) for error in self.errors],
        }
