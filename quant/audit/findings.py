"""What an audit can find: each kind with what it does to a model and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any

from gptoss.quant.location import Location


class Severity(StrEnum):
    """How bad a finding is, the worst last."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def rank(self) -> int:
        """0 for info, 1 for warning, 2 for error."""
        return list(Severity).index(self)


class FindingKind(Enum):
    """A kind of finding: its name, what it would do to the model, what to do about it."""

    # Scales.
    SCALE_NAN = (
        "scale-nan",
        "a scale of 255 means NaN: every answer becomes NaN, or with llama.cpp, which takes it "
        "for 2^127, garbage",
        "download or convert the model again",
    )
    SCALE_OVERFLOW = (
        "scale-overflow",
        "the largest values under a scale of 254 are infinite in float32 and BF16",
        "download or convert the model again",
    )
    SCALE_SUBNORMAL = (
        "scale-subnormal",
        "scales of 0 and 1 are subnormal where half a scale is computed: some kernels give zero "
        "or another value there",
        "nothing where the values do not matter; else quantize those weights again",
    )
    SCALE_OUTLIER = (
        "scale-outlier",
        "a few blocks are larger than all others by orders of magnitude: they drown the rest",
        "compare with the source by gptoss-quant verify; download or convert again if it differs",
    )
    SCALE_CONSTANT = (
        "scale-constant",
        "all blocks have one scale: the scales were lost, and with them the weights' sizes",
        "convert again, with the scales beside the blocks",
    )
    SCALE_BIAS = (
        "scale-bias",
        "all weights are wrong by one power of two: the experts' output is too large or too small",
        "convert again with an E8M0 bias of 127",
    )
    SCALE_LINEAR = (
        "scale-linear",
        "scales were read or written as linear numbers, but an E8M0 byte is an exponent: the "
        "weights' sizes are wrong",
        "convert again, decoding a scale as 2^(byte - 127)",
    )
    # Codes.
    ZERO_BLOCKS = (
        "zero-blocks",
        "the weights in these blocks are lost",
        "compare with the source by gptoss-quant verify",
    )
    ZERO_ROWS = (
        "zero-rows",
        "these outputs of the expert are its bias alone",
        "compare with the source by gptoss-quant verify",
    )
    DEAD_EXPERT = (
        "dead-expert",
        "tokens that the router sends to this expert get nothing from it",
        "download or convert the model again; if the source has it too, it was trained away",
    )
    SATURATED_BLOCKS = (
        "saturated-blocks",
        "the largest weights of these blocks were cut off at 6 times the scale",
        "quantize again with a scale that fits the block's largest value",
    )
    CODE_UNUSED = (
        "code-unused",
        "a code that every tensor of weights uses never occurs: values were lost when packing",
        "convert again from the source",
    )
    CODE_SKEW = (
        "code-skew",
        "codes fall as those of trained weights do not",
        "compare with the source by gptoss-quant verify",
    )
    CODE_INT4 = (
        "code-int4",
        "codes fall as two's complement integers do, not as E2M1's sign and magnitude: decoded as "
        "MXFP4, small negative weights become large ones",
        "convert again; this is another 4-bit format under MXFP4's name",
    )
    CODE_NOISE = (
        "code-noise",
        "codes fall as random bytes do, unlike those of the rest of the tensor: there are no "
        "weights here",
        "download or convert the model again",
    )
    STUCK_LANE = (
        "stuck-lane",
        "one place of every block has lost a bit of its codes, or all of them",
        "convert again from the source: the packing is wrong",
    )
    # Layout.
    NIBBLES_SWAPPED = (
        "nibbles-swapped",
        "each two weights that share a byte stand in each other's place: the experts compute noise",
        "convert again: the first of two codes belongs in the lower half of the byte",
    )
    BLOCK_ORDER = (
        "block-order",
        "codes stand in the order of the other container's blocks: the experts compute noise",
        "convert again, repacking each block: Hugging Face pairs neighbours in a byte, ggml pairs "
        "the block's halves",
    )
    GATE_UP_HALVES = (
        "gate-up-halves",
        "gate and up were taken as halves, but their rows alternate: every expert mixes them up",
        "convert again: even rows are gate, odd rows are up",
    )
    EXPERTS_TRANSPOSED = (
        "experts-transposed",
        "the expert's matrix is turned: inputs stand where outputs belong",
        "save again with the input dimension first, as transformers has it for BF16 experts",
    )
    EXPERTS_REQUANTIZED = (
        "experts-requantized",
        "the experts were rounded once more, from MXFP4 to another type",
        "use a GGUF whose experts are MXFP4, repacked bit for bit",
    )
    # Tensors against each other.
    LAYER_OUTLIER = (
        "layer-outlier",
        "this tensor's values are larger or smaller by far than those of the same tensor in other "
        "layers",
        "compare with the source by gptoss-quant verify",
    )
    EXPERT_OUTLIER = (
        "expert-outlier",
        "this expert's values are larger or smaller by far than those of its siblings",
        "compare with the source by gptoss-quant verify",
    )
    DUPLICATE_EXPERT = (
        "duplicate-expert",
        "two experts hold the same weights: one of them overwrote the other",
        "download or convert the model again",
    )
    # Corrupt or misread.
    HOLE = (
        "hole",
        "a stretch of the file holds one byte over and over: part of it was never written",
        "download the file again",
    )
    CORRUPT_REGION = (
        "corrupt-region",
        "bad blocks stand side by side in one stretch of the file: it is corrupt there",
        "download or copy the file again",
    )
    MISREAD = (
        "misread",
        "bad blocks are spread over the whole tensor: it is not corrupt, but was packed by another "
        "rule than it is read by",
        "convert again from the source",
    )
    # What is not in MXFP4.
    NOT_FINITE = (
        "not-finite",
        "NaN or infinity spreads to every value computed from it",
        "download the model again; if it was trained so, repair the training",
    )
    DENSE_ZERO = (
        "dense-zero",
        "a tensor of nothing but zeros: it was never written, or its layer has no effect",
        "download or convert the model again",
    )
    DENSE_HUGE = (
        "dense-huge",
        "values beyond what weights are: activations overflow BF16's or F16's precision",
        "compare with the source by gptoss-quant verify",
    )
    NORM_RANGE = (
        "norm-range",
        "a norm's weights far from 1: its layer is silenced, or drowns the others",
        "compare with the source by gptoss-quant verify",
    )
    SINK_RANGE = (
        "sink-range",
        "a sink so large takes all of its head's attention; one so small takes none of it",
        "compare with the source: sinks are logits, of the size of attention scores",
    )
    ROUTER_RANGE = (
        "router-range",
        "the router's logits saturate: it sends all tokens to the same experts",
        "compare with the source by gptoss-quant verify",
    )
    DEAD_ROUTE = (
        "dead-route",
        "the router can never or hardly ever choose this expert",
        "compare with the source by gptoss-quant verify",
    )
    DUPLICATE_ROUTE = (
        "duplicate-route",
        "the router cannot tell these two experts from each other",
        "download or convert the model again",
    )
    # Tensors and keys as a whole.
    TENSOR_MISSING = (
        "tensor-missing",
        "the model cannot be computed without it",
        "download or convert the model again",
    )
    TENSOR_UNKNOWN = (
        "tensor-unknown",
        "no gpt-oss model has it: it is ignored, or the model is of another kind",
        "convert again; an adapter must be merged first",
    )
    TENSOR_SHAPE = (
        "tensor-shape",
        "the tensor does not fit the model's own sizes",
        "download or convert the model again",
    )
    ROPE_MISSING = (
        "rope-missing",
        "positions are computed without YaRN or with another base: the model talks, and is wrong, "
        "the more so the longer the text",
        "convert again, or add the missing keys with their published values",
    )
    ROPE_UNUSUAL = (
        "rope-unusual",
        "positions are computed in another way than in the published models",
        "make sure that the model was trained so",
    )
    TEMPLATE_MISSING = (
        "template-missing",
        "programs that format prompts by the file's own template fall back to another one",
        "convert again with chat_template.jinja beside the checkpoint; gptoss-run needs none",
    )
    EOG_MISSING = (
        "eog-missing",
        "generation does not stop where a turn ends",
        "convert again from a checkpoint with the published tokenizer",
    )
    VOCABULARY = (
        "vocabulary",
        "text becomes other tokens than the model was trained with",
        "convert again from a checkpoint with the published tokenizer",
    )

    def __init__(self, label: str, effect: str, remedy: str) -> None:
        self.label = label
        self.effect = effect
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Finding:
    """Something found: what, how bad, where, and in figures.

    ``tensor`` is the file's own name of it, or a key; ``place`` is the first place within it;
    ``file`` and ``offset`` are the shard and the byte from its start, where that tells more.
    """

    kind: FindingKind
    severity: Severity
    message: str
    tensor: str | None = None
    layer: int | None = None
    place: Location | None = None
    file: str | None = None
    offset: int | None = None

    @property
    def where(self) -> str:
        """Tensor, place and file on one line; empty when the finding is about the whole model."""
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
        """The same as plain data for ``json.dumps``."""
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
        }
