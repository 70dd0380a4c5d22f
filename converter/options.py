"""The options of a conversion, checked once: types, base, adapter, tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gptoss.converter.dense_types import Dense, DenseTypes
from gptoss.converter.transforms.float_experts import ExpertType
from gptoss.errors import OptionError


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """Options that decide what the converted tensors are.

    ``dense`` is the type of the dense matrices, one of ``Dense``; ``types`` gives groups of them
    another type: ``{"embedding": "q4_0", "output": "q8_0"}``, the groups being those of ``Group``.

    ``experts`` is one of ``ExpertType``. MXFP4 experts stay as they are; experts that a fine-tune
    stores as floats are encoded to MXFP4 or, with ``bf16``, converted to BF16. ``base`` is the
    folder of the checkpoint that the source was fine-tuned from: its blocks are kept where the
    fine-tune left them unchanged, and it shows whether square matrices are transposed.

    ``lora`` is the folder of a PEFT adapter to add. ``tokenizer`` is the folder of tokenizer.json
    when the source lacks it. ``allow_nonfinite`` converts NaN and infinity where the type has them.

    Raises ``OptionError``, which is a ValueError, for an unknown type or group.
    """

    dense: str = Dense.Q8_0
    types: Mapping[str, str] = field(default_factory=dict)
    experts: str = ExpertType.MXFP4
    base: Path | None = None
    lora: Path | None = None
    tokenizer: Path | None = None
    allow_nonfinite: bool = False

    def __post_init__(self) -> None:
        DenseTypes.choose(self.dense, self.types)
        if self.experts not in list(ExpertType):
            raise OptionError(f"experts must be {' or '.join(ExpertType)}, not {self.experts!r}")

    @property
    def dense_types(self) -> DenseTypes:
        """Return the requested type of each group of dense matrices, checked with the other
        conversion options.
        """
        return DenseTypes.choose(self.dense, self.types)

    @property
    def expert_type(self) -> ExpertType:
        """Return the type that the conversion options request for the experts: MXFP4 or BF16."""
        return ExpertType(self.experts)
