"""A checkpoint's MXFP4 experts saved in BF16, as fine-tunes are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gptoss.quant import mxfp4
from support import safetensors_files
from support.checkpoints import bf16


def to_floats(checkpoint: Path, *, transpose_down: bool = False, noise: float = 0.0) -> None:
    """Save the experts as a fine-tune in BF16 has them, down the wrong way round if asked."""
    rng = np.random.default_rng(0)
    path = checkpoint / "model.safetensors"
    contents = safetensors_files.load(path)
    for name in [name for name in contents if name.endswith("_blocks")]:
        base = name.removesuffix("_blocks")
        (_, shape, blocks), (_, _, scales) = contents.pop(name), contents.pop(base + "_scales")
        codes = mxfp4.codes_from_hf(np.frombuffer(blocks, np.uint8).reshape(shape))
        values = mxfp4.decode(codes, np.frombuffer(scales, np.uint8).reshape(shape[:3]))
        values = values.reshape(*shape[:2], -1)
        values = values * (1 + noise * rng.standard_normal(values.shape)).astype(np.float32)
        if not (transpose_down and "down_proj" in base):
            values = values.transpose(0, 2, 1)
        bits = bf16(np.ascontiguousarray(values))
        contents[base] = ("BF16", list(values.shape), bits.tobytes())
    safetensors_files.save(path, contents)
