"""Findings from a model's tensor table, its settings, and the types of its experts."""

from __future__ import annotations

from collections.abc import Iterator

from gptoss.quant import mxfp4
from gptoss.quant.audit.findings import Finding, FindingKind, Severity
from gptoss.quant.model.defects import DefectKind
from gptoss.quant.model.dtypes import FLOATS
from gptoss.quant.model.reader import TensorReader, iter_part_values
from gptoss.quant.model.tensors import MXFP4, ExpertTensor, Model

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


def check_model(model: Model, files: TensorReader) -> Iterator[Finding]:
    """Check a model as a whole, without values: report each defect, unread tensor, and GGUF expert
    tensor not in MXFP4.
    """
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
            yield _of_encoding(files, tensor)


def _of_encoding(files: TensorReader, tensor: ExpertTensor) -> Finding:
    """Explain what it means for a model that an expert tensor is stored in an encoding other than
    MXFP4.
    """
    if tensor.encoding.value not in FLOATS:
        kind, severity = FindingKind.EXPERTS_REQUANTIZED, Severity.WARNING
        message = f"{tensor.encoding}, not MXFP4"
    else:
        kind, severity = FindingKind.EXPERTS_IN_FLOATS, Severity.INFO
        values = (
            "MXFP4's values" if _holds_mxfp4(files, tensor) else "values that MXFP4 cannot hold"
        )
        message = f"{tensor.encoding} holding {values}"
    return Finding(kind, severity, message, tensor.name, tensor.layer)


def _holds_mxfp4(files: TensorReader, tensor: ExpertTensor) -> bool:
    """Return whether a model's float expert tensor could be stored as MXFP4 without rounding: every
    block checked, for the finding about its type.
    """
    return all(
        mxfp4.lies_on_grid(rows.reshape(-1, mxfp4.BLOCK)).all()
        for expert in range(tensor.experts)
        for part in tensor.parts
        for rows in iter_part_values(files, tensor, expert, part)
    )
