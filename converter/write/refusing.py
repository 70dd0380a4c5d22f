"""What a transform cannot take, said to the person who asked for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from gguf.constants import GGMLQuantizationType

from gptoss.converter.plan import TensorPlan
from gptoss.converter.transforms.base import NonFiniteError, OutOfRangeError
from gptoss.converter.transforms.floats import STORED
from gptoss.errors import CheckpointError


@contextmanager
def refusing(tensor: TensorPlan, first: int) -> Iterator[None]:
    """Turn a transform's errors, met from unit ``first`` on, into ``CheckpointError``."""
    source = tensor.sources[0]
    where = f"{source.path}: tensor {source.name!r}"
    try:
        yield
    except OutOfRangeError as error:
        raise CheckpointError(
            f"{where} holds {error.value:g}, beyond the range of {tensor.type.name}; choose "
            "another type"
        ) from error
    except NonFiniteError as error:
        index = first * tensor.transform.reads[0] // STORED[source.dtype].itemsize + error.index
        place = ", ".join(str(i) for i in np.unravel_index(index, source.shape))
        advice = "repair it, or go on with --allow-nonfinite"
        if tensor.type is GGMLQuantizationType.MXFP4:
            advice = "MXFP4 has no such value; repair it"
        raise CheckpointError(f"{where} holds {error.value} at [{place}]: {advice}") from error
