"""GGUFs as llama.cpp's own tools write them: one attn_qkv a layer, and experts encoded again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType

from gptoss.converter.convert import convert
from gptoss.formats.gguf import GgufFile
from gptoss.quant.audit.auditor import audit
from gptoss.quant.diff.differ import diff
from gptoss.quant.location import Location
from gptoss.quant.verify.result import Outcome, Problem
from gptoss.quant.verify.verifier import verify
from support import ggufs
from support.planted import HIDDEN, Copy, Copying

QUANTIZE = Path(__file__).parent.parent / "oracle" / "run_llama_cpp_quantize.py"
Q_ROWS, KV_ROWS = 128, 64
DENSE = pytest.mark.parametrize("dense", ["q8_0", "bf16"])


def fuse(model: ggufs.Model, kinds: tuple[str, ...] = ("weight", "bias")) -> None:
    """Put the rows of q, k and v into one tensor, as llama.cpp's --fuse-qkv does."""
    for layer in range(2):
        for kind in kinds:
            parts = [model.tensors.pop(f"blk.{layer}.attn_{it}.{kind}") for it in "qkv"]
            rows = sum(shape[0] for _, shape, _ in parts)
            raw = np.concatenate([data for _, _, data in parts])
            fused = (parts[0][0], (rows, *parts[0][1][1:]), raw)
            model.tensors[f"blk.{layer}.attn_qkv.{kind}"] = fused


@DENSE
@pytest.mark.parametrize("kinds", [("weight", "bias"), ("weight",)])
def test_fused_qkv_is_the_same_model(
    copy: Copying, converted: dict[str, Path], dense: str, kinds: tuple[str, ...]
) -> None:
    it = copy(dense)
    ggufs.edited(it.path, lambda model: fuse(model, kinds))
    verdict = it.verify()
    assert verdict.outcome is Outcome.PROVEN, verdict.first
    assert verdict.nbytes == verify(it.source, converted[dense]).nbytes
    assert not any(found.tensor and "attn" in found.tensor for found in audit(it.path).findings)
    compared = diff(converted[dense], it.path)
    assert (compared.changes, compared.apart, compared.unread) == ((), (), ())


@pytest.mark.parametrize(
    ("part", "row", "fused_row"),
    [("q", 0, 0), ("q", 127, 127), ("k", 0, 128), ("k", 63, 191), ("v", 0, 192), ("v", 63, 255)],
)
def test_a_difference_in_a_fused_tensor_is_placed(
    copy: Copying, part: str, row: int, fused_row: int
) -> None:
    it = copy("bf16")
    ggufs.edited(it.path, fuse)
    it.xor(it.offset("blk.1.attn_qkv.weight") + 2 * (fused_row * HIDDEN + 7), 1)
    difference = it.only()
    assert difference.tensor == f"blk.1.attn_{part}.weight"
    assert difference.place == Location(row=row, index=7)
    (change,) = diff(it.source, it.path).changes
    assert (change.tensor, change.changed) == (difference.tensor, 1)


def test_a_fused_tensor_that_does_not_fit_is_extra(copy: Copying) -> None:
    it = copy("bf16")

    def cut(model: ggufs.Model) -> None:
        fuse(model)
        kind, (rows, columns), raw = model.tensors["blk.0.attn_qkv.weight"]
        model.tensors["blk.0.attn_qkv.weight"] = (kind, (rows - 1, columns), raw[: -2 * columns])

    ggufs.edited(it.path, cut)
    verdict = it.verify()
    assert [(one.tensor, one.problem) for one in verdict.differences] == [
        ("blk.0.attn_q.weight", Problem.MISSING),
        ("blk.0.attn_k.weight", Problem.MISSING),
        ("blk.0.attn_v.weight", Problem.MISSING),
        ("blk.0.attn_qkv.weight", Problem.EXTRA),
    ]
    unsound = {one.tensor for one in audit(it.path).findings}
    assert unsound >= {"blk.0.attn_q.weight", "blk.0.attn_qkv.weight"}


def test_one_of_three_beside_a_fused_tensor_is_not_hidden(copy: Copying) -> None:
    """llama.cpp reads the fused one then; which of the two is meant cannot be told."""
    it = copy("bf16")

    def both(model: ggufs.Model) -> None:
        kept = model.tensors["blk.0.attn_k.weight"]
        fuse(model)
        model.tensors["blk.0.attn_k.weight"] = kept

    ggufs.edited(it.path, both)
    assert "blk.0.attn_qkv.weight" in [one.tensor for one in it.verify().differences]


def test_experts_that_llama_cpp_encoded_again_are_equal(source: Path, tmp_path: Path) -> None:
    """From their values in BF16; zeros lose their sign, which no computation notices."""
    convert(source, tmp_path / "bf16.gguf", dense="bf16", experts="bf16")
    done = subprocess.run(
        [sys.executable, QUANTIZE, tmp_path / "bf16.gguf", tmp_path / "mxfp4.gguf"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    it = Copy(source, tmp_path / "mxfp4.gguf")
    kinds = {tensor.type for name, tensor in GgufFile.open(it.path).tensors.items()
             if "_exps.weight" in name}  # fmt: skip
    assert kinds == {GGMLQuantizationType.MXFP4}
    verdict = it.verify()
    assert verdict.outcome is Outcome.SAME_VALUES, verdict.first
    assert len(verdict.reencodings) == 6
    assert sum(found.values for found in verdict.reencodings) > 100
