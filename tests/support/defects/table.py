"""Every defect that an audit must find, and what it calls it."""

from __future__ import annotations

from dataclasses import dataclass

from gptoss.quant.audit.findings import Kind, Severity
from support.defects import experts, others
from support.defects.patient import Plant


@dataclass(frozen=True)
class Defect:
    """A way to harm a model, and the finding that must name it."""

    kind: Kind
    severity: Severity
    plant: Plant
    gguf: bool = False
    also: tuple[Kind, ...] = ()
    """What else may be said of it."""

    @property
    def name(self) -> str:
        """For the test's own."""
        return f"{self.plant.__name__}{' in a GGUF' if self.gguf else ''}"


_E, _W = Severity.ERROR, Severity.WARNING
_OUTLIERS = (Kind.EXPERT_OUTLIER, Kind.LAYER_OUTLIER)
_GARBAGE = (
    *_OUTLIERS,
    Kind.SCALE_NAN,
    Kind.SCALE_OVERFLOW,
    Kind.SCALE_OUTLIER,
    Kind.SCALE_SUBNORMAL,
    Kind.STUCK_LANE,
    Kind.SATURATED_BLOCKS,
)

DEFECTS = (
    Defect(Kind.SCALE_NAN, _E, experts.nan_scale),
    Defect(Kind.SCALE_OVERFLOW, _E, experts.overflowing_scale, also=_OUTLIERS),
    Defect(Kind.SCALE_SUBNORMAL, _W, experts.subnormal_scale),
    Defect(Kind.SCALE_OUTLIER, _E, experts.outlying_scale, also=_OUTLIERS),
    Defect(Kind.SCALE_CONSTANT, _E, experts.constant_scales),
    Defect(Kind.SCALE_BIAS, _E, experts.biased_scales),
    Defect(Kind.SCALE_LINEAR, _E, experts.numbers_quantized_again, also=(Kind.SCALE_BIAS,)),
    Defect(Kind.SCALE_LINEAR, _E, experts.scales_as_numbers, also=_OUTLIERS),
    Defect(Kind.DEAD_EXPERT, _E, experts.dead_expert),
    Defect(Kind.ZERO_ROWS, _W, experts.zero_rows),
    Defect(Kind.ZERO_BLOCKS, _W, experts.zero_blocks),
    Defect(Kind.SATURATED_BLOCKS, _E, experts.saturated_blocks),
    Defect(Kind.CODE_UNUSED, _E, experts.largest_code_lost),
    Defect(Kind.CODE_SKEW, _E, experts.negative_bias),
    Defect(Kind.CODE_INT4, _E, experts.integers_for_floats),
    Defect(Kind.STUCK_LANE, _E, experts.stuck_lane),
    Defect(Kind.STUCK_LANE, _E, experts.upper_nibbles_lost),
    Defect(Kind.LAYER_OUTLIER, _W, experts.outlying_layer),
    Defect(Kind.EXPERT_OUTLIER, _W, experts.outlying_expert),
    Defect(Kind.DUPLICATE_EXPERT, _E, experts.duplicated_expert),
    Defect(Kind.DUPLICATE_EXPERT, _E, experts.expert_of_another_layer),
    Defect(Kind.HOLE, _E, experts.hole, also=(Kind.ZERO_ROWS,)),
    Defect(Kind.HOLE, _E, experts.hole_of_ones, also=(Kind.SATURATED_BLOCKS,)),
    Defect(Kind.HOLE, _E, others.hole_in_dense),
    Defect(
        Kind.HOLE, _E, experts.hole_in_gguf, gguf=True, also=(Kind.ZERO_ROWS, Kind.SCALE_SUBNORMAL)
    ),
    Defect(Kind.CORRUPT_REGION, _E, experts.garbage_in_scales, also=_GARBAGE),
    Defect(Kind.CORRUPT_REGION, _E, experts.garbage_in_gguf, gguf=True, also=_GARBAGE),
    Defect(Kind.MISREAD, _E, experts.garbage_in_odd_rows, also=_GARBAGE),
    Defect(Kind.MISREAD, _E, experts.garbage_in_odd_rows_of_an_expert, also=_GARBAGE),
    Defect(Kind.MISREAD, _E, experts.wrong_stride, gguf=True, also=_GARBAGE),
    Defect(Kind.NOT_FINITE, _E, others.infinite_weight),
    Defect(Kind.NOT_FINITE, _E, others.nan_in_norm),
    Defect(Kind.NOT_FINITE, _E, others.nan_in_sinks),
    Defect(Kind.DENSE_HUGE, _E, others.huge_weight),
    Defect(Kind.DENSE_ZERO, _E, others.zero_matrix),
    Defect(Kind.NORM_RANGE, _W, others.silent_norm),
    Defect(Kind.SINK_RANGE, _E, others.greedy_sink),
    Defect(Kind.ROUTER_RANGE, _E, others.loud_router),
    Defect(Kind.DEAD_ROUTE, _W, others.router_that_forgot_an_expert),
    Defect(Kind.DEAD_ROUTE, _W, others.router_that_shuns_an_expert),
    Defect(Kind.DUPLICATE_ROUTE, _W, others.router_with_two_rows_alike),
    Defect(Kind.TENSOR_MISSING, _E, others.missing_tensor),
    Defect(Kind.TENSOR_UNKNOWN, _E, others.unmerged_adapter),
    Defect(Kind.TENSOR_SHAPE, _E, others.misshapen_tensor),
    Defect(Kind.ROPE_MISSING, _E, others.config_without_rope),
    Defect(Kind.ROPE_MISSING, _E, others.key_lost, gguf=True),
    Defect(Kind.TEMPLATE_MISSING, _W, others.template_lost, gguf=True),
    Defect(Kind.EOG_MISSING, _E, others.ends_without_return),
    Defect(Kind.EOG_MISSING, _E, others.end_token_lost, gguf=True),
    Defect(Kind.EOG_MISSING, _E, others.another_end, gguf=True),
    Defect(Kind.VOCABULARY, _E, others.another_split),
    Defect(Kind.VOCABULARY, _E, others.controls_as_words, gguf=True),
    Defect(Kind.VOCABULARY, _E, others.another_pre_tokenizer, gguf=True),
)
