"""Random tensors of a file in random types: no traceback, and no good verdict on wrong values."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from gptoss.converter.convert import convert
from gptoss.errors import GptossError
from gptoss.formats.gguf import GgufFile
from gptoss.quant.audit.auditor import audit
from gptoss.quant.diff.differ import diff
from gptoss.quant.verify.result import Outcome
from gptoss.quant.verify.verifier import verify
from support import ggufs
from support.checkpoints import random_checkpoint

Tensor = tuple[GGMLQuantizationType, tuple[int, ...], NDArray[np.uint8]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and a GGUF of it; rows of 256 values, so that every type has whole blocks."""
    folder = tmp_path_factory.mktemp("types")
    source = random_checkpoint(folder / "source", hidden=256, layers=1, experts=2, heads=4)
    convert(source, folder / "model.gguf", dense="bf16")
    return source, folder / "model.gguf"


@pytest.mark.parametrize("seed", range(12))
def test_a_few_variations(model: tuple[Path, Path], tmp_path: Path, seed: int) -> None:
    vary(*model, tmp_path / "model.gguf", seed)


@pytest.mark.slow
def test_two_hundred_variations(model: tuple[Path, Path], tmp_path: Path) -> None:
    judged = sum(vary(*model, tmp_path / "model.gguf", seed) for seed in range(100, 300))
    assert judged > 150


def vary(source: Path, whole: Path, path: Path, seed: int) -> bool:
    """Put some tensors into other types, of random bytes; whether the file was judged at all."""
    rng = np.random.default_rng(seed)
    shutil.copyfile(whole, path)
    edited = ggufs.load(path)
    for name in rng.choice(list(edited.tensors), int(rng.integers(1, 6)), replace=False):
        kind = GGMLQuantizationType(int(rng.choice([int(it) for it in GGMLQuantizationType])))
        _, shape, _ = edited.tensors[name]
        values, nbytes = GGML_QUANT_SIZES[kind]
        if shape[-1] % values == 0:
            size = int(np.prod(shape)) // values * nbytes
            edited.tensors[name] = (kind, shape, rng.integers(0, 256, size, np.uint8))
    ggufs.save(path, edited)
    try:
        verdict, found, compared = verify(source, path), audit(path), diff(whole, path)
    except GptossError:
        return False
    before, after = decoded(whole), decoded(path)
    unreadable = [it for it in GgufFile.open(path).tensors.values() if it.type.name in NO_VALUES]
    same = [name for name in before if equal(before[name], after[name])]
    assert verdict.proven == (len(same) == len(before))
    if unreadable:
        assert verdict.outcome is not Outcome.PROVEN
        assert not found
        assert not compared
    assert bool(compared) == (len(same) == len(before))
    return True


NO_VALUES = {"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"}
"""Types that hold no weights."""


def decoded(path: Path) -> dict[str, NDArray[np.float32] | None]:
    """Every tensor's values by the gguf package; None where it does not decode them."""
    found: dict[str, NDArray[np.float32] | None] = {}
    for name, tensor in GgufFile.open(path).tensors.items():
        raw = np.fromfile(path, np.uint8, tensor.nbytes, offset=tensor.offset)
        try:
            with np.errstate(all="ignore"):
                found[name] = dequantize(raw.reshape(math.prod(tensor.shape[1:]), -1), tensor.type)
        except NotImplementedError:
            found[name] = None
    return found


def equal(a: NDArray[np.float32] | None, b: NDArray[np.float32] | None) -> bool:
    return a is not None and b is not None and np.array_equal(a.reshape(-1), b.reshape(-1), True)
