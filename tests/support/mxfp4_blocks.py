"""Blocks of MXFP4 in ggml's layout, as the encoder makes them."""

from __future__ import annotations

import numpy as np

from gptoss.quant import mxfp4
from gptoss.quant.mxfp4 import Bytes, Floats
from gptoss.quant.mxfp4.encoder import encode


def blocks_of(values: Floats) -> Bytes:
    """Encode values ``[n, 32]`` to blocks ``[n, 17]``."""
    made = encode(values)
    packed = np.empty((len(values), 17), np.uint8)
    mxfp4.repack(made.blocks[:, 0], made.scales[:, 0], packed)
    return packed
