"""What an audit can find: each kind with its effect on the model and what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from typing import Any

from gptoss.quant.location import Location
from gptoss.text import plural


class Severity(StrEnum):
    """How bad a finding is, the worst last."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def rank(self) -> int:
        """Rank a finding's severity: 0 for info, 1 for warning, 2 for error."""
        return list(Severity).index(self)

    @property
    def noun(self) -> str:
        """Return the word for one finding of this severity, such as "warning"."""
        return "note" if self is Severity.INFO else self.value


_AGAIN = "download or convert the model again"
_VERIFY = "compare with the source: gptoss-quant verify"
_TOKENIZER = "convert again from a checkpoint with the published tokenizer"


class FindingKind(Enum):
    """A kind of finding: its label, its effect on the model, what to do about it."""

    # Scales.
    SCALE_NAN = (
        "scale-nan",
        "a block scale of 255 is NaN: every answer becomes NaN, or garbage with llama.cpp, which "
        "reads it as 2^127",
        _AGAIN,
    )
    SCALE_OVERFLOW = (
        "scale-overflow",
        "under a block scale of 254 the largest values are infinite in float32 and BF16",
        _AGAIN,
    )
    SCALE_SUBNORMAL = (
        "scale-subnormal",
        "half of a block scale of 0 or 1 is subnormal: some kernels compute zero or another value",
        "none if these weights do not matter; otherwise quantize them again",
    )
    SCALE_OUTLIER = (
        "scale-outlier",
        "a few blocks are orders of magnitude larger than all others and dominate the result",
        f"{_VERIFY}; download or convert again if it differs",
    )
    SCALE_CONSTANT = (
        "scale-constant",
        "all blocks have the same scale: the scales were lost, and the magnitudes of the weights "
        "are wrong",
        "convert again, with the scales beside the blocks",
    )
    SCALE_BIAS = (
        "scale-bias",
        "all expert weights are wrong by one power of two",
        "convert again with an E8M0 bias of 127",
    )
    SCALE_LINEAR = (
        "scale-linear",
        "scales were read or written as linear numbers, but an E8M0 byte is an exponent: the "
        "magnitudes of the weights are wrong",
        "convert again, decoding a scale as 2^(byte - 127)",
    )
    # Codes.
    ZERO_BLOCKS = ("zero-blocks", "the weights in these blocks are lost", _VERIFY)
    ZERO_ROWS = ("zero-rows", "these expert outputs consist of the bias alone", _VERIFY)
    DEAD_EXPERT = (
        "dead-expert",
        "tokens that the router sends to this expert get nothing from it",
        "download or convert the model again; if the source has it too, training caused it",
    )
    SATURATED_BLOCKS = (
        "saturated-blocks",
        "the largest weights of these blocks were clipped at 6 times the scale",
        "quantize again with a scale that fits the block's largest value",
    )
    CODE_UNUSED = (
        "code-unused",
        "a code that every weight tensor uses never occurs: values were lost in packing",
        "convert again from the source",
    )
    CODE_SKEW = (
        "code-skew",
        "the codes are not distributed like those of trained weights",
        _VERIFY,
    )
    CODE_INT4 = (
        "code-int4",
        "the codes are distributed like two's complement integers, not like E2M1: decoded as "
        "MXFP4, small negative weights become large ones",
        "convert again; this is another 4-bit format labelled MXFP4",
    )
    CODE_NOISE = (
        "code-noise",
        "the codes are as even as random bytes, unlike the rest of the tensor: these are not "
        "weights",
        _AGAIN,
    )
    CODE_UNIFORM = (
        "code-uniform",
        "all 16 codes are equally frequent, as in random bytes: the weights look random or "
        "untrained",
        "none if the model is meant to be random; otherwise compare with its source",
    )
    STUCK_LANE = (
        "stuck-lane",
        "one lane of every block has lost a bit of its codes, or all of them",
        "convert again from the source: the packing is wrong",
    )
    # Layout.
    NIBBLES_SWAPPED = (
        "nibbles-swapped",
        "the two weights in each byte are exchanged: the experts compute noise",
        "convert again: the first of two codes belongs in the lower half of the byte",
    )
    BLOCK_ORDER = (
        "block-order",
        "the codes are in the order of the other container's blocks: the experts compute noise",
        "convert again and repack each block: Hugging Face pairs neighbours in a byte, ggml pairs "
        "the block's halves",
    )
    GATE_UP_HALVES = (
        "gate-up-halves",
        "gate and up were split as halves, but their rows alternate: every expert has "
        "them mixed up",
        "convert again: even rows are gate, odd rows are up",
    )
    EXPERTS_TRANSPOSED = (
        "experts-transposed",
        "the expert's matrix is transposed: inputs and outputs are exchanged",
        "convert again from a checkpoint in the right layout: transformers stores BF16 experts "
        "inputs first, MXFP4 experts outputs first",
    )
    EXPERTS_IN_FLOATS = (
        "experts-in-floats",
        "the experts are stored as floats: nothing is lost, but they take two to eight times as "
        "much memory as in MXFP4",
        "convert the source with --experts mxfp4 where memory matters",
    )
    EXPERTS_REQUANTIZED = (
        "experts-requantized",
        "the experts were rounded again, from MXFP4 to another type",
        "use a GGUF whose experts are MXFP4, repacked bit for bit",
    )
    # Tensors against each other.
    LAYER_OUTLIER = (
        "layer-outlier",
        "this tensor's values are far larger or smaller than those of the same tensor in other "
        "layers",
        _VERIFY,
    )
    EXPERT_OUTLIER = (
        "expert-outlier",
        "this expert's values are far larger or smaller than those of its siblings",
        _VERIFY,
    )
    DUPLICATE_EXPERT = (
        "duplicate-expert",
        "two experts hold the same weights: one of them overwrote the other",
        _AGAIN,
    )
    # Corrupt or misread.
    HOLE = (
        "hole",
        "a stretch of the file repeats one byte: part of it was never written",
        "download the file again",
    )
    CORRUPT_REGION = (
        "corrupt-region",
        "bad blocks lie side by side in one stretch of the file: it is corrupt there",
        "download or copy the file again",
    )
    MISREAD = (
        "misread",
        "bad blocks are spread over the whole tensor: its scales are not where they are read from, "
        "or all of it was overwritten",
        "convert again from the source",
    )
    # What is not in MXFP4.
    NOT_FINITE = (
        "not-finite",
        "NaN or infinity spreads to every value computed from it",
        "download the model again; if it was trained this way, repair the training",
    )
    DENSE_ZERO = (
        "dense-zero",
        "the tensor holds only zeros: it was never written, or its layer has no effect",
        _AGAIN,
    )
    DENSE_HUGE = (
        "dense-huge",
        "values far too large for weights: activations exceed the precision of BF16 or F16",
        _VERIFY,
    )
    NORM_RANGE = (
        "norm-range",
        "a norm's weights are far from 1: its layer is silenced, or drowns the others",
        _VERIFY,
    )
    SINK_RANGE = (
        "sink-range",
        "a sink so large takes all of its head's attention; one so small takes none of it",
        "compare with the source: sinks are logits, of the size of attention scores",
    )
    ROUTER_RANGE = (
        "router-range",
        "the router's logits saturate: it sends all tokens to the same experts",
        _VERIFY,
    )
    DEAD_ROUTE = ("dead-route", "the router never or hardly ever chooses this expert", _VERIFY)
    DUPLICATE_ROUTE = (
        "duplicate-route",
        "the router cannot tell these two experts apart",
        _AGAIN,
    )
    # Tensors and keys as a whole.
    TENSOR_MISSING = ("tensor-missing", "the model cannot be computed without it", _AGAIN)
    TENSOR_UNKNOWN = (
        "tensor-unknown",
        "gpt-oss has no such tensor: it is ignored, or the model is of another kind",
        "convert again; merge an adapter first",
    )
    TENSOR_SHAPE = ("tensor-shape", "the tensor does not fit the model's own sizes", _AGAIN)
    TENSOR_UNREAD = (
        "tensor-unread",
        "its values were not checked: this type cannot be decoded",
        "audit a file whose tensors are floats, MXFP4 or a quantized type of ggml",
    )
    TENSOR_UNUSABLE = (
        "tensor-unusable",
        "llama.cpp has no operator for it: the process ends at the first decode",
        "repair it with gptoss-convert IN.gguf -o OUT.gguf, or convert again",
    )
    KEY_UNUSABLE = (
        "key-unusable",
        "llama.cpp fails on this setting, or computes something other than gpt-oss",
        "repair it with gptoss-convert IN.gguf -o OUT.gguf, or convert again",
    )
    ROPE_MISSING = (
        "rope-missing",
        "positions are computed without YaRN or with another base: answers get worse as the text "
        "gets longer",
        "repair it with gptoss-convert IN.gguf -o OUT.gguf, or convert again",
    )
    ROPE_UNUSUAL = (
        "rope-unusual",
        "positions are computed differently than in the published models",
        "make sure that the model was trained this way",
    )
    TEMPLATE_MISSING = (
        "template-missing",
        "programs that format prompts with the file's own template use another one",
        "convert again with chat_template.jinja beside the checkpoint; gptoss-run needs none",
    )
    EOG_MISSING = ("eog-missing", "generation does not stop where a turn ends", _TOKENIZER)
    VOCABULARY = ("vocabulary", "text becomes other tokens than in training", _TOKENIZER)

    def __init__(self, label: str, effect: str, remedy: str) -> None:
        self.label = label
        self.effect = effect
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Finding:
    """Something found: what, how bad, where, and in figures.

    ``tensor`` is the file's own name of it, or a key; ``place`` is the first location in it;
    ``file`` and ``offset`` are the shard and the byte from its start, where that helps. ``cause``
    is the kind of another finding in the same tensor that explains this one.
    """

    kind: FindingKind
    severity: Severity
    message: str
    tensor: str | None = None
    layer: int | None = None
    place: Location | None = None
    file: str | None = None
    offset: int | None = None
    cause: FindingKind | None = None

    @property
    def where(self) -> str:
        """Format a finding's tensor, location and file on one line; empty if it is about the whole
        model.
        """
        parts = [self.tensor or ""]
        parts.append(str(self.place) if self.place else "")
        if self.file is not None:
            at = "" if self.offset is None else f" at byte {self.offset}"
            parts.append(f"in {self.file}{at}")
        return ", ".join(part for part in parts if part)

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        return f"{self.severity}: {self.kind.label}: {where}{self.message}"

    def to_json(self) -> dict[str, Any]:
        """Return one finding (kind, severity, location, effect, remedy) as plain data for
        ``json.dumps``.
        """
        place = self.place
        return {
            "kind": self.kind.label,
            "severity": self.severity.value,
            "tensor": self.tensor,
            "layer": self.layer,
            "expert": place.expert if place else None,
            "row": place.row if place else None,
            "block": place.block if place else None,
            "lane": place.lane if place else None,
            "index": place.index if place else None,
            "file": self.file,
            "offset": self.offset,
            "message": self.message,
            "effect": self.kind.effect,
            "remedy": self.kind.remedy,
            "cause": self.cause.label if self.cause else None,
        }


# --- all findings of a model ------------------------------------------------------------------

_CAUSES = (FindingKind.HOLE, FindingKind.CORRUPT_REGION, FindingKind.CODE_NOISE)
"""Damage to a stretch of the file, which shows in many other ways too; the strongest first."""
_EXPLAINED = frozenset({
    FindingKind.CORRUPT_REGION, FindingKind.CODE_NOISE,
    FindingKind.SCALE_NAN, FindingKind.SCALE_OVERFLOW, FindingKind.SCALE_SUBNORMAL,
    FindingKind.SCALE_OUTLIER, FindingKind.SCALE_CONSTANT, FindingKind.SCALE_LINEAR,
    FindingKind.ZERO_BLOCKS, FindingKind.ZERO_ROWS, FindingKind.DEAD_EXPERT,
    FindingKind.SATURATED_BLOCKS, FindingKind.CODE_UNUSED, FindingKind.CODE_SKEW,
    FindingKind.CODE_INT4, FindingKind.CODE_UNIFORM, FindingKind.STUCK_LANE,
    FindingKind.LAYER_OUTLIER, FindingKind.EXPERT_OUTLIER, FindingKind.MISREAD,
    FindingKind.NOT_FINITE, FindingKind.DENSE_HUGE, FindingKind.NORM_RANGE,
    FindingKind.SINK_RANGE, FindingKind.ROUTER_RANGE, FindingKind.DEAD_ROUTE,
})  # fmt: skip


def arrange(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sort findings, causes first and worst at the top, and link consequences to their causes.

    In a tensor with a damaged stretch, whatever the damage explains is a consequence of it.
    """
    known = list(findings)
    causes: dict[str, FindingKind] = {}
    for kind in reversed(_CAUSES):
        causes |= {it.tensor: kind for it in known if it.kind is kind and it.tensor is not None}
    explained = [
        replace(it, cause=cause)
        if (cause := causes.get(it.tensor or "")) and it.kind is not cause and it.kind in _EXPLAINED
        else it
        for it in known
    ]
    return tuple(sorted(explained, key=lambda it: (it.cause is not None, -it.severity.rank)))


def tally(findings: Sequence[Finding]) -> dict[Severity, str]:
    """Count findings by severity in words, such as "2 errors, 1 warning"; consequences are left
    out.
    """
    counts = Counter(finding.severity for finding in findings if finding.cause is None)
    return {it: plural(counts[it], it.noun) for it in reversed(Severity) if counts[it]}
