"""What preflight refuses is repaired into a file that llama.cpp computes, or refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from gptoss.converter.convert import convert
from gptoss.converter.repair.repair import mend
from gptoss.errors import GgufError
from gptoss.runtime.models.preflight import Model
from support import ggufs
from support.checkpoints import random_checkpoint
from support.llama_child import run_files
from support.variations import FAILS, MOVES, Edit

STAYS = ("window 1", "rope base", "rope factor", "rope original context", "epsilon", "experts used")
"""Settings of another gpt-oss, not mistakes."""

BEYOND_REPAIR = (
    "scale of a matrix", "scale in F16", "scale in I32", "another tensor",
    "experts used by layer", "key-value heads by layer",
    "layers", "experts", "epsilon negative", "no merges",
)  # fmt: skip
"""What is right cannot be told from the file alone."""

SMALL = ("_norm.weight", ".bias", "attn_sinks.weight", "ffn_gate_inp.weight")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    checkpoint = random_checkpoint(
        folder / "checkpoint", layers=4, heads=32, kv_heads=2, experts=32
    )
    convert(checkpoint, folder / "base.gguf", dense="f32")
    return folder / "base.gguf"


@pytest.fixture(scope="module")
def varied(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Edit], Path]:
    folder = tmp_path_factory.mktemp("varied")

    def make(edit: Edit) -> Path:
        model = ggufs.load(base)
        edit(model)
        return ggufs.save(folder / f"{len(list(folder.iterdir()))}.gguf", model)

    return make


def test_what_can_be_repaired_is_the_same_model_again(
    base: Path, varied: Callable[[Edit], Path], tmp_path: Path
) -> None:
    edits = {n: e for n, e in (MOVES | FAILS).items() if n not in (*STAYS, *BEYOND_REPAIR)}
    repaired = [
        mend(varied(edit), tmp_path / f"{i}.gguf").out for i, edit in enumerate(edits.values())
    ]
    for path in repaired:
        Model.open(path)
    reference, *outcomes = run_files([base, *repaired])
    for name, outcome in zip(edits, outcomes, strict=True):
        assert outcome.logits is not None, name
        assert reference.logits is not None
        assert np.array_equal(outcome.logits, reference.logits), name


@pytest.mark.parametrize("name", BEYOND_REPAIR)
def test_what_cannot_be_repaired(name: str, varied: Callable[[Edit], Path], tmp_path: Path) -> None:
    with pytest.raises(GgufError) as caught:
        mend(varied((MOVES | FAILS)[name]), tmp_path / "out.gguf")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_small_tensors_are_widened(
    kind: str, varied: Callable[[Edit], Path], tmp_path: Path
) -> None:
    """Exactly: llama.cpp computes as on the same values stored as F32."""
    stored = GGMLQuantizationType[kind]

    def narrow(model: ggufs.Model) -> None:
        for name, (_, shape, raw) in model.tensors.items():
            if name.endswith(SMALL):
                values = raw.view("<f4").reshape(shape)
                raw = quantize(values, stored).reshape(-1).view(np.uint8)
                model.tensors[name] = (stored, shape, raw)

    def round_(model: ggufs.Model) -> None:
        narrow(model)
        for name, (found, shape, raw) in model.tensors.items():
            if found is stored:
                values = dequantize(raw, stored)
                same = values.astype("<f4").reshape(-1).view(np.uint8)
                model.tensors[name] = (GGMLQuantizationType.F32, shape, same)

    path = varied(narrow)
    with pytest.raises(GgufError, match=rf"is {kind}, expected F32; .* gptoss-convert .* -o "):
        Model.open(path)
    done = mend(path, tmp_path / "wide.gguf")
    assert f"{kind} is widened to F32" in "\n".join(done.changes)
    assert ("the rounding to Q8_0 stays" in "\n".join(done.changes)) == (kind == "Q8_0")
    Model.open(done.out)
    ours, theirs = run_files([done.out, varied(round_)])
    assert ours.logits is not None
    assert theirs.logits is not None
    assert np.array_equal(ours.logits, theirs.logits)
