"""What is counted, against counting one by one."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from gptoss.converter.convert import convert
from gptoss.quant import mxfp4
from gptoss.quant.audit import statistics
from gptoss.quant.audit.histogram import SATURATED, CodeCounter, ExpertStatistics
from gptoss.quant.audit.statistics import Counted, count
from gptoss.quant.model import reader
from gptoss.quant.model.loader import open_model
from gptoss.quant.model.reader import TensorReader
from gptoss.quant.model.tensors import Part
from support.checkpoints import random_checkpoint
from support.editing import regions
from support.planted import DENSE

LAYERS, EXPERTS, HIDDEN, INTERMEDIATE = 2, 3, 96, 64


@pytest.mark.parametrize("n", [2, 4, 6, 8, 10, 64, 254, 256])
@pytest.mark.parametrize("top", [16, 8, 1, 2])
def test_codes_are_counted_as_one_by_one(n: int, top: int) -> None:
    rng = np.random.default_rng([n, top])
    codes = rng.integers(16 - top, 16, (n // 2, 32), np.uint8)
    words = mxfp4.hf_from_codes(codes).view(np.uint64).reshape(-1)
    counts, saturated = CodeCounter(256).count(words)
    assert counts.tolist() == np.bincount(codes.reshape(-1), minlength=16).tolist()
    assert saturated == ((codes & 7) == 7).sum(axis=1).__ge__(SATURATED).sum()


def counted(path: Path) -> Counted:
    model = open_model(path)
    assert not model.defects
    with TensorReader() as files:
        return count(model, files)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With some blocks and rows of zeros, and blocks of the largest code."""
    folder = tmp_path_factory.mktemp("counted")
    random_checkpoint(
        folder, hidden=HIDDEN, intermediate=INTERMEDIATE, experts=EXPERTS, layers=LAYERS, shards=2
    )
    for name, region in regions(folder).items():
        if name.endswith("_blocks"):
            blocks = region.read().reshape(-1, 16)
            blocks[5] = 0x80
            blocks[6] = 0xF7
            blocks[7:16] = 0
            region.write(blocks)
    return folder


def by_hand(codes: mxfp4.Bytes, scales: mxfp4.Bytes, it: ExpertStatistics) -> None:
    """Compare with codes ``[experts, rows, blocks, 32]`` and scales ``[experts, rows, blocks]``."""
    for expert in range(len(codes)):
        mine = codes[expert]
        assert it.codes[expert].tolist() == np.bincount(mine.ravel(), minlength=16).tolist()
        by_scale = np.bincount(scales[expert].ravel(), minlength=256)
        assert it.scales[expert].tolist() == by_scale.tolist()
        zero = ((mine & 7) == 0).all(axis=-1)
        assert it.zero_blocks[expert] == zero.sum()
        assert it.zero_rows[expert] == zero.all(axis=-1).sum()
        largest = ((mine & 7) == 7).sum(axis=-1)
        assert it.saturated_blocks[expert] == (largest >= SATURATED).sum()
        assert np.allclose(it.row_scales[expert], scales[expert].mean(axis=-1))


@pytest.mark.parametrize("slab", [2**18, 1, 200])
def test_checkpoint_counted_as_by_hand(
    checkpoint: Path, slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "CHUNK", slab)
    tensors = regions(checkpoint)
    found = counted(checkpoint).experts
    parts = [(it.layer, it.part) for it in found]
    assert parts == [(layer, part) for layer in range(LAYERS) for part in Part]
    for it in found:
        codes = mxfp4.codes_from_hf(tensors[it.tensor + "_blocks"].read())
        scales = tensors[it.tensor + "_scales"].read()
        if it.part is not Part.DOWN:
            first = [Part.GATE, Part.UP].index(it.part)
            codes, scales = codes[:, first::2], scales[:, first::2]
        assert it.zero_rows.sum() + it.saturated_blocks.sum() > 0
        by_hand(codes, scales, it)
        if slab == 2**18:
            ever = np.bitwise_or.reduce(codes, axis=(1, 2))
            assert (it.ever == ever).all()
            assert (it.always == np.bitwise_and.reduce(codes, axis=(1, 2))).all()


@pytest.mark.parametrize("dtype", [*DENSE, "q4_0", "q5_1"])
def test_gguf_counted_like_its_checkpoint(checkpoint: Path, tmp_path: Path, dtype: str) -> None:
    convert(checkpoint, tmp_path / "model.gguf", dense=dtype)
    source, gguf = counted(checkpoint), counted(tmp_path / "model.gguf")
    for one, other in zip(source.experts, gguf.experts, strict=True):
        assert (one.layer, one.part, one.rows, one.columns) == (
            other.layer, other.part, other.rows, other.columns,
        )  # fmt: skip
        for name in ("scales", "codes", "zero_blocks", "zero_rows", "saturated_blocks", "ever"):
            assert (getattr(one, name) == getattr(other, name)).all(), name
    assert sum(it.zeros for it in gguf.dense) >= sum(it.zeros for it in source.dense)
    embedding = {it.tensor: it for it in gguf.dense}["token_embd.weight"]
    original = {it.tensor: it for it in source.dense}["model.embed_tokens.weight"]
    assert embedding.rms == pytest.approx(original.rms, rel=0.02)
    assert embedding.peak == pytest.approx(
        original.peak, rel=0.1 if dtype in ("q4_0", "q5_1") else 0.001
    )


def test_mean_square(checkpoint: Path) -> None:
    """The estimate is near what the decoded values give."""
    it, tensors = counted(checkpoint).experts[2], regions(checkpoint)
    codes = mxfp4.codes_from_hf(tensors[it.tensor + "_blocks"].read())
    values = mxfp4.decode(codes, tensors[it.tensor + "_scales"].read()).astype(np.float64)
    assert it.mean_square == pytest.approx(np.square(values).mean(axis=(1, 2, 3)), rel=0.1)


@pytest.mark.parametrize("piece", [2**19, 2**7])
def test_dense_counted_as_by_hand(
    checkpoint: Path, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    monkeypatch.setattr(statistics, "DENSE_CHUNK", piece)
    monkeypatch.setattr(statistics, "DENSE_TASK", 4 * piece)
    region = regions(folder)["lm_head.weight"]
    bits = region.read().reshape(-1)
    bits[[7, 300, 301]] = 0x8000, 0x7F80, 0xFFC1
    region.write(bits)
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    finite = values[np.isfinite(values)].astype(np.float64)
    it = {it.tensor: it for it in counted(folder).dense}["lm_head.weight"]
    assert (it.not_finite, it.first_bad) == (2, 300)
    assert it.zeros == (finite == 0).sum()
    assert it.peak == np.abs(finite).max()
    assert it.rms == pytest.approx(np.sqrt(np.square(finite).mean()), rel=0.05)
