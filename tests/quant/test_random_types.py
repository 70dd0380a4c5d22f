"""Random tensors of a GGUF in random types, each that ggml knows: nothing ends the process, no
verdict is good that a slow look at the values contradicts, and what preflight accepts runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from gptoss.converter.convert import convert
from gptoss.errors import InvalidFileError, UnsupportedModelError
from gptoss.quant.audit.auditor import audit
from gptoss.quant.diff.differ import diff
from gptoss.quant.verify.verifier import verify
from gptoss.runtime.models.preflight import Model
from support import ggufs
from support.checkpoints import random_checkpoint
from support.llama_child import run_files

Values = NDArray[np.float32]
REFUSALS = (InvalidFileError, UnsupportedModelError)
PUBLIC = sorted(GGMLQuantizationType, key=lambda kind: kind.value)


@dataclass(frozen=True)
class Original:
    """A model whose rows fit every type's blocks, and its values."""

    checkpoint: Path
    model: ggufs.Model
    values: dict[str, Values]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    folder = tmp_path_factory.mktemp("original")
    checkpoint = random_checkpoint(
        folder / "checkpoint", hidden=256, heads=4, kv_heads=4, experts=2, vocab=288
    )
    path = convert(checkpoint, folder / "original.gguf", dense="f32").out
    return Original(checkpoint, ggufs.load(path), ggufs.values_of(path))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the oracle, on NaN scales
@pytest.mark.parametrize("seeds", [range(12), pytest.param(range(12, 212), marks=pytest.mark.slow)])
def test_random_tensors_in_random_types(original: Original, seeds: range, tmp_path: Path) -> None:
    base = ggufs.save(tmp_path / "base.gguf", original.model)
    accepted = []
    for seed in seeds:
        path = ggufs.save(tmp_path / f"{seed}.gguf", varied(original, np.random.default_rng(seed)))
        runs = answer(Model.open, path) is not None
        check_verdicts(original, base, path, runs)
        if runs:
            accepted.append(path)
        else:
            path.unlink()
    for path, outcome in zip(accepted, run_files(accepted, n_prompt=20), strict=True):
        assert outcome.signal is None, path
        assert outcome.logits is not None, f"{path}: {outcome.refused}"
        if not np.isfinite(outcome.logits).all():
            found = answer(audit, path)
            assert found is None or not found.sound, path


def check_verdicts(original: Original, base: Path, path: Path, runs: bool) -> None:
    """None of the three is good where the values say otherwise, or where preflight refuses."""
    equal, exact = compare_values(original, ggufs.load(path))
    proven = answer(verify, original.checkpoint, path)
    sound = answer(audit, path)
    same = answer(diff, base, path)
    assert not proven or exact, f"{path}: proven"
    assert not same or (equal and runs), f"{path}: the same"
    assert not (sound is not None and sound.sound) or runs, f"{path}: sound, but refused"


def answer(call: Callable[..., Any], *paths: Path) -> Any:
    """What is returned; None where the file is refused by one of the errors meant for that."""
    try:
        return call(*paths)
    except REFUSALS:
        return None


def varied(original: Original, rng: np.random.Generator) -> ggufs.Model:
    """A random subset of tensors in a random type: encoded where possible, else random bytes."""
    model = ggufs.Model(dict(original.model.keys), dict(original.model.tensors))
    kind = GGMLQuantizationType(rng.choice([it.value for it in PUBLIC]))
    names = list(model.tensors)
    some = rng.random() < 0.5
    wanted = "_exps" if some and rng.random() < 0.5 else ".weight" if some else ""
    chosen = [name for name in names if wanted in name and rng.random() < 0.5]
    block, size = GGML_QUANT_SIZES[kind]
    for name in chosen:
        values = original.values[name]
        if values.shape[-1] % block == 0:
            raw = encoded(values, kind, rng)
            assert raw.size == values.size // block * size
            model.tensors[name] = (kind, values.shape, raw)
    return model


def encoded(
    values: Values, kind: GGMLQuantizationType, rng: np.random.Generator
) -> NDArray[np.uint8]:
    try:
        raw: NDArray[Any] = quantize(values, kind)
    except NotImplementedError:
        block, size = GGML_QUANT_SIZES[kind]
        raw = rng.integers(0, 256, values.size // block * size, np.uint8)
    return np.frombuffer(raw.tobytes(), np.uint8)


def compare_values(original: Original, model: ggufs.Model) -> tuple[bool, bool]:
    """Whether all values are the original's; whether all are, or its correct rounding."""
    equal = exact = True
    for name, same, rounded in looked_at(original, model):
        equal &= same
        exact &= same or rounded
        assert name in original.values
    return equal, exact


def looked_at(original: Original, model: ggufs.Model) -> Iterator[tuple[str, bool, bool]]:
    for name, (kind, shape, raw) in model.tensors.items():
        values = original.values[name]
        if kind is GGMLQuantizationType.F32:
            yield name, np.array_equal(raw.view("<f4").reshape(shape), values), False
            continue
        try:
            found = dequantize(raw, kind).reshape(shape)
        except NotImplementedError:
            yield name, False, False
            continue
        rounded = encoded(values, kind, np.random.default_rng())
        yield name, np.array_equal(found, values), np.array_equal(rounded, raw)
