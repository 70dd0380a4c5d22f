"""Every defect that an audit must find, and what it calls it."""

from __future__ import annotations

from dataclasses import dataclass

from gptoss.quant.audit.findings import FindingKind, Severity
from support.defects import experts, others
from support.defects.patient import Plant


@dataclass(frozen=True)
class Defect:
    """A way to harm a model, and the finding that must name it."""

    kind: FindingKind
    severity: Severity
    plant: Plant
    gguf: bool = False
    also: tuple[FindingKind, ...] = ()
    """What else may be said of it."""

    @property
    def name(self) -> str:
        """For the test's own."""
        return f"{self.plant.__name__}{' in a GGUF' if self.gguf else ''}"


_E, _W = Severity.ERROR, Severity.WARNING
_OUTLIERS = (FindingKind.EXPERT_OUTLIER, FindingKind.LAYER_OUTLIER)
_GARBAGE = (
    *_OUTLIERS,
    FindingKind.SCALE_NAN,
    FindingKind.SCALE_OVERFLOW,
    FindingKind.SCALE_OUTLIER,
    FindingKind.SCALE_SUBNORMAL,
    FindingKind.STUCK_LANE,
    FindingKind.SATURATED_BLOCKS,
)

DEFECTS = (
    Defect(FindingKind.SCALE_NAN, _E, experts.nan_scale),
    Defect(FindingKind.SCALE_OVERFLOW, _E, experts.overflowing_scale, also=_OUTLIERS),
    Defect(FindingKind.SCALE_SUBNORMAL, _W, experts.subnormal_scale),
    Defect(FindingKind.SCALE_OUTLIER, _E, experts.outlying_scale, also=_OUTLIERS),
    Defect(FindingKind.SCALE_CONSTANT, _E, experts.constant_scales),
    Defect(FindingKind.SCALE_BIAS, _E, experts.biased_scales),
    Defect(
        FindingKind.SCALE_LINEAR,
        _E,
        experts.numbers_quantized_again,
        also=(FindingKind.SCALE_BIAS,),
    ),
    Defect(FindingKind.SCALE_LINEAR, _E, experts.scales_as_numbers, also=_OUTLIERS),
    Defect(FindingKind.DEAD_EXPERT, _E, experts.dead_expert),
    Defect(FindingKind.ZERO_ROWS, _W, experts.zero_rows),
    Defect(FindingKind.ZERO_BLOCKS, _W, experts.zero_blocks),
    Defect(FindingKind.SATURATED_BLOCKS, _E, experts.saturated_blocks),
    Defect(FindingKind.CODE_UNUSED, _E, experts.largest_code_lost),
    Defect(FindingKind.CODE_SKEW, _E, experts.negative_bias),
    Defect(FindingKind.CODE_INT4, _E, experts.integers_for_floats),
    Defect(FindingKind.STUCK_LANE, _E, experts.stuck_lane),
    Defect(FindingKind.STUCK_LANE, _E, experts.upper_nibbles_lost),
    Defect(FindingKind.LAYER_OUTLIER, _W, experts.outlying_layer),
    Defect(FindingKind.EXPERT_OUTLIER, _W, experts.outlying_expert),
    Defect(FindingKind.DUPLICATE_EXPERT, _E, experts.duplicated_expert),
    Defect(FindingKind.DUPLICATE_EXPERT, _E, experts.expert_of_another_layer),
    Defect(FindingKind.HOLE, _E, experts.hole, also=(FindingKind.ZERO_ROWS,)),
    Defect(FindingKind.HOLE, _E, experts.hole_of_ones, also=(FindingKind.SATURATED_BLOCKS,)),
    Defect(FindingKind.HOLE, _E, others.hole_in_dense),
    Defect(
        FindingKind.HOLE,
        _E,
        experts.hole_in_gguf,
        gguf=True,
        also=(FindingKind.ZERO_ROWS, FindingKind.SCALE_SUBNORMAL),
    ),
    Defect(FindingKind.CORRUPT_REGION, _E, experts.garbage_in_scales, also=_GARBAGE),
    Defect(FindingKind.CORRUPT_REGION, _E, experts.garbage_in_gguf, gguf=True, also=_GARBAGE),
    Defect(FindingKind.MISREAD, _E, experts.garbage_in_odd_rows, also=_GARBAGE),
    Defect(FindingKind.MISREAD, _E, experts.garbage_in_odd_rows_of_an_expert, also=_GARBAGE),
    Defect(FindingKind.MISREAD, _E, experts.wrong_stride, gguf=True, also=_GARBAGE),
    Defect(FindingKind.NOT_FINITE, _E, others.infinite_weight),
    Defect(FindingKind.NOT_FINITE, _E, others.nan_in_norm),
    Defect(FindingKind.NOT_FINITE, _E, others.nan_in_sinks),
    Defect(FindingKind.DENSE_HUGE, _E, others.huge_weight),
    Defect(FindingKind.DENSE_ZERO, _E, others.zero_matrix),
    Defect(FindingKind.NORM_RANGE, _W, others.silent_norm),
    Defect(FindingKind.SINK_RANGE, _E, others.greedy_sink),
    Defect(FindingKind.ROUTER_RANGE, _E, others.loud_router),
    Defect(FindingKind.DEAD_ROUTE, _W, others.router_that_forgot_an_expert),
    Defect(FindingKind.DEAD_ROUTE, _W, others.router_that_shuns_an_expert),
    Defect(FindingKind.DUPLICATE_ROUTE, _W, others.router_with_two_rows_alike),
    Defect(FindingKind.TENSOR_MISSING, _E, others.missing_tensor),
    Defect(FindingKind.TENSOR_UNKNOWN, _E, others.foreign_tensor),
    Defect(FindingKind.TENSOR_SHAPE, _E, others.misshapen_tensor),
    Defect(FindingKind.ROPE_MISSING, _E, others.config_without_rope),
    Defect(FindingKind.ROPE_MISSING, _E, others.key_lost, gguf=True),
    Defect(FindingKind.TEMPLATE_MISSING, _W, others.template_lost, gguf=True),
    Defect(FindingKind.EOG_MISSING, _E, others.ends_without_return),
    Defect(FindingKind.EOG_MISSING, _E, others.end_token_lost, gguf=True),
    Defect(FindingKind.EOG_MISSING, _E, others.another_end, gguf=True),
    Defect(FindingKind.VOCABULARY, _E, others.another_split),
    Defect(FindingKind.VOCABULARY, _E, others.controls_as_words, gguf=True),
    Defect(FindingKind.VOCABULARY, _E, others.another_pre_tokenizer, gguf=True),
)
