"""Findings from a model's tensor table and settings, before any value is read."""

from __future__ import annotations

from collections.abc import Iterator

from gptoss.quant.audit.findings import Finding, FindingKind, Severity
from gptoss.quant.model.defects import DefectKind
from gptoss.quant.model.tensors import MXFP4, Encoding, Model

_FINDINGS = {
    DefectKind.TENSOR_MISSING: (FindingKind.TENSOR_MISSING, Severity.ERROR),
    DefectKind.TENSOR_UNKNOWN: (FindingKind.TENSOR_UNKNOWN, Severity.ERROR),
    DefectKind.TENSOR_SHAPE: (FindingKind.TENSOR_SHAPE, Severity.ERROR),
    DefectKind.TENSOR_UNUSABLE: (FindingKind.TENSOR_UNUSABLE, Severity.ERROR),
    DefectKind.KEY_UNUSABLE: (FindingKind.KEY_UNUSABLE, Severity.ERROR),
    DefectKind.VOCABULARY: (FindingKind.VOCABULARY, Severity.ERROR),
    DefectKind.EXPERTS_TRANSPOSED: (FindingKind.EXPERTS_TRANSPOSED, Severity.ERROR),
    DefectKind.ROPE_MISSING: (FindingKind.ROPE_MISSING, Severity.ERROR),
    DefectKind.ROPE_UNUSUAL: (FindingKind.ROPE_UNUSUAL, Severity.WARNING),
    DefectKind.ROPE_TYPE: (FindingKind.ROPE_UNUSUAL, Severity.ERROR),
}


def check_model(model: Model) -> Iterator[Finding]:
    """A finding for each defect, unread tensor, and expert tensor of a GGUF not in MXFP4."""
    for defect in model.defects:
        kind, severity = _FINDINGS[defect.kind]
        yield Finding(kind, severity, defect.message, defect.tensor, defect.layer, file=defect.file)
    misshapen = {it.tensor for it in model.defects if it.kind is DefectKind.TENSOR_SHAPE}
    for name in model.unread:
        if name not in misshapen:
            message = "its type cannot be decoded"
            yield Finding(FindingKind.TENSOR_UNREAD, Severity.WARNING, message, name)
    for tensor in model.experts if model.is_gguf else ():
        if tensor.encoding not in MXFP4:
            exact = tensor.encoding in (Encoding.BF16, Encoding.F32)
            severity = Severity.INFO if exact else Severity.WARNING
            message = f"{tensor.encoding}, not MXFP4"
            yield Finding(
                FindingKind.EXPERTS_REQUANTIZED, severity, message, tensor.name, tensor.layer
            )
