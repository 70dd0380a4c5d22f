"""What was measured of a machine and a model (``tune``): a value, which needs no llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass

from gptoss.runtime.engine.drafts import BatchCosts


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was measured. Speeds are tokens a second, with the experts as they are in the file;
    ``repack_gain`` is how many times as fast repacked ones are decoded, 1 where ggml cannot.
    ``batch_costs`` are for drafts.
    """

    n_threads: int
    n_batch: int
    decode: float
    prefill: float
    repack_gain: float
    batch_costs: BatchCosts
