"""Every type that ggml can decode is read, in chunks, and gives the values that ggml means."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from gptoss.converter.convert import convert
from gptoss.formats.gguf import GgufFile
from gptoss.quant import mxfp4
from gptoss.quant.audit.auditor import audit
from gptoss.quant.audit.findings import FindingKind, Severity
from gptoss.quant.model import dtypes
from gptoss.quant.model.loader import open_model
from gptoss.quant.model.reader import TensorReader, read_matrix, read_values
from gptoss.quant.model.tensors import MXFP4, Encoding
from support.checkpoints import random_checkpoint
from support.editing import regions, retype

NOT_DECODED = {"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"}
"""ggml has no function that gives their values, or they hold no weights."""
KINDS = [kind for kind in GGMLQuantizationType if kind.name not in NOT_DECODED]
DOWN, DENSE = "blk.0.ffn_down_exps.weight", "blk.0.attn_output.weight"
SIZE = 256


@pytest.mark.parametrize("kind", GGMLQuantizationType, ids=lambda it: it.name)
def test_every_type_has_an_encoding_or_is_known_to_have_none(kind: GGMLQuantizationType) -> None:
    found = dtypes.encoding_of(kind)
    assert (found is Encoding.OTHER) == (kind.name in NOT_DECODED)


@pytest.mark.parametrize("at_once", [2**16, 512])
@pytest.mark.parametrize("kind", KINDS, ids=lambda it: it.name)
def test_decoding_equals_the_gguf_package(
    kind: GGMLQuantizationType, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtypes, "AT_ONCE", at_once)
    values, nbytes = GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(int(kind)).integers(0, 256, (21, nbytes), np.uint8)
    if kind is GGMLQuantizationType.MXFP4:
        raw[:, 0] %= 254  # a scale of 255 is NaN here, as the standard has it; ggml has 2^127
    found = dtypes.decode(dtypes.encoding_of(kind), raw)
    assert found.shape == (21 * values,)
    if kind is GGMLQuantizationType.Q1_0:  # which the package does not decode
        expected = np.array([twin_q1_0(block.tobytes()) for block in raw], np.float32)
    elif kind is GGMLQuantizationType.BF16:
        expected = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        with np.errstate(all="ignore"):
            expected = dequantize(raw, kind)
    assert np.array_equal(found, expected.reshape(-1), equal_nan=True)


def twin_q1_0(block: bytes) -> list[float]:
    """One value at a time: an F16 scale, then bit by bit plus or minus it."""
    scale = float(np.frombuffer(block[:2], "<f2")[0])
    return [scale if block[2 + i // 8] >> i % 8 & 1 else -scale for i in range(128)]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF whose matrices are all BF16, so that there is room for each other type."""
    folder = tmp_path_factory.mktemp("wide")
    source = random_checkpoint(folder / "source", hidden=SIZE, layers=1, experts=2, heads=4)
    convert(source, folder / "model.gguf", dense="bf16", experts="bf16")
    return folder / "model.gguf"


@pytest.mark.parametrize(
    "kind", [it for it in KINDS if it.name != "F32"], ids=lambda it: it.name
)  # F32 needs more room than BF16 leaves
def test_experts_and_matrices_of_every_type_are_read(
    wide: Path, tmp_path: Path, kind: GGMLQuantizationType
) -> None:
    path = Path(shutil.copyfile(wide, tmp_path / "model.gguf"))
    for name in (DOWN, DENSE):
        retype(path, name, kind)
    model = open_model(path)
    assert not model.unread
    (expert,) = (it for it in model.experts if it.name == DOWN)
    (dense,) = (it for it in model.dense if it.name == DENSE)
    with TensorReader() as files:
        whole = read_values(files, dense.encoding, dense.extent, 0, dense.shape)
        middle = read_values(files, dense.encoding, dense.extent, 3 * SIZE + 5, (100,))
        assert np.array_equal(middle, whole.reshape(-1)[3 * SIZE + 5 :][:100], equal_nan=True)
        if expert.encoding not in MXFP4:
            assert read_matrix(files, expert, 1).shape == (SIZE, SIZE)


@pytest.mark.parametrize("name", ["Q8_1", "Q8_K", "I8", "I16"])
def test_other_types_are_listed_as_unread(wide: Path, tmp_path: Path, name: str) -> None:
    path = Path(shutil.copyfile(wide, tmp_path / "model.gguf"))
    kind = GGMLQuantizationType[name]
    retype(path, DOWN, kind)
    assert open_model(path).unread == (DOWN,)
    assert GgufFile.open(path).tensors[DOWN].type is kind


def test_lies_on_grid_equals_trying_every_scale() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (400, 32))
    runs = (np.array(mxfp4.E2M1)[codes] * 2.0 ** rng.integers(-20, 20, (400, 1))).astype(np.float32)
    kept = rng.integers(0, 33, 400)
    runs[np.arange(32) >= kept[:, None]] = 0
    spoilt = rng.integers(0, 32, 400)
    factors = rng.choice([1, 1, 0.25, 1.25, 2, 8, np.nan, np.inf], 400)
    with np.errstate(invalid="ignore"):
        runs[np.arange(400), spoilt] *= factors.astype(np.float32)
    grid = np.array(mxfp4.E2M1, np.float32)

    def twin(run: mxfp4.Floats) -> bool:
        return any(np.isin(run * np.float32(2.0**-e), grid).all() for e in range(-30, 31))

    expected = [twin(run) for run in runs]
    assert 50 < sum(expected) < 350
    assert mxfp4.lies_on_grid(runs).tolist() == expected


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("BF16", "BF16 holding MXFP4's values"),
        ("F16", "F16 holding MXFP4's values"),
        ("NVFP4", "NVFP4, not MXFP4"),
    ],
)
def test_audit_calls_experts_rounded_only_where_they_are(
    wide: Path, tmp_path: Path, kind: str, message: str
) -> None:
    path = Path(shutil.copyfile(wide, tmp_path / "model.gguf"))
    retype(path, DOWN, GGMLQuantizationType[kind])
    region = regions(path)[DOWN] if kind == "F16" else None
    if region is not None:  # the same values, as F16
        values = (region.read().astype(np.uint32) << 16).view(np.float32)
        region.write(values.astype(np.float16).view("<u2"))
    found = {it.tensor: it for it in audit(path).findings if it.kind in ENCODINGS}[DOWN]
    assert found.message == message
    rounded = found.kind is FindingKind.EXPERTS_REQUANTIZED
    assert (rounded, found.severity) == (
        (True, Severity.WARNING) if kind == "NVFP4" else (False, Severity.INFO)
    )


ENCODINGS = (FindingKind.EXPERTS_IN_FLOATS, FindingKind.EXPERTS_REQUANTIZED)


def test_one_value_off_the_grid_is_seen(wide: Path, tmp_path: Path) -> None:
    path = Path(shutil.copyfile(wide, tmp_path / "model.gguf"))
    region = regions(path)[DOWN]
    bits = region.read()
    bits[1, 200, 77] ^= 1  # the lowest bit of the mantissa
    region.write(bits)
    messages = {it.tensor: it.message for it in audit(path).findings if it.kind in ENCODINGS}
    assert messages.pop(DOWN) == "BF16 holding values that MXFP4 cannot hold"
    assert set(messages.values()) == {"BF16 holding MXFP4's values"}
