"""What preflight refuses is repaired so that llama.cpp computes it, or is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from gptoss.converter.convert import convert
from gptoss.converter.repair.repair import repair
from gptoss.errors import GgufError
from gptoss.formats.gguf import GgufFile
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

DAMAGED = ("alignment",)
"""All data is read from the wrong place; no repair brings that back."""

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


REPAIRED = {n: e for n, e in (MOVES | FAILS).items() if n not in (*STAYS, *BEYOND_REPAIR, *DAMAGED)}


@pytest.mark.parametrize(
    "edits",
    [dict(list(REPAIRED.items())[::5]), pytest.param(REPAIRED, marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_what_can_be_repaired_is_the_same_model_again(
    base: Path, varied: Callable[[Edit], Path], tmp_path: Path, edits: dict[str, Edit]
) -> None:
    repaired = [
        repair(varied(edit), tmp_path / f"{i}.gguf").out for i, edit in enumerate(edits.values())
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
        repair(varied((MOVES | FAILS)[name]), tmp_path / "out.gguf")
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
    done = repair(path, tmp_path / "wide.gguf")
    assert f"{kind} widened to F32" in "\n".join(done.changes)
    assert ("the rounding to Q8_0 stays" in "\n".join(done.changes)) == (kind == "Q8_0")
    Model.open(done.out)
    ours, theirs = run_files([done.out, varied(round_)])
    assert ours.logits is not None
    assert theirs.logits is not None
    assert np.array_equal(ours.logits, theirs.logits)


def test_unused_bytes_between_tensors(base: Path, tmp_path: Path) -> None:
    """llama.cpp refuses a file that has any; the repaired one has none."""
    last = list(GgufFile.open(base).tensors.values())[-1]
    raw = base.read_bytes()
    at = raw.index(last.name.encode()) + len(last.name) + 4 + 8 * len(last.shape) + 4
    offset = int.from_bytes(raw[at : at + 8], "little")
    gap = tmp_path / "gap.gguf"
    moved = raw[:at] + (offset + 64).to_bytes(8, "little") + raw[at + 8 : last.offset]
    gap.write_bytes(moved + bytes(64) + raw[last.offset :])
    with pytest.raises(GgufError, match=f"{last.name} begins 64 bytes after"):
        Model.open(gap)
    done = repair(gap, tmp_path / "whole.gguf")
    assert done.changes == ("1 tensor: moved to where llama.cpp reads it",)
    refused, repaired, reference = run_files([gap, done.out, base])
    assert refused.logits is None
    assert repaired.logits is not None
    assert reference.logits is not None
    assert np.array_equal(repaired.logits, reference.logits)
