"""The classic misreadings, done to the trained model: each is recognised by its mark."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gptoss.converter.convert import convert
from gptoss.quant import mxfp4
from gptoss.quant.audit.auditor import audit
from gptoss.quant.audit.findings import FindingKind, Severity
from gptoss.quant.location import Location
from gptoss.quant.mxfp4 import Bytes, Floats
from gptoss.quant.mxfp4.grid import share_on_grid
from support import safetensors_files
from support.checkpoints import random_checkpoint
from support.editing import Region, regions
from support.expert_floats import to_floats

TINY = Path(__file__).resolve().parent.parent / "tiny" / "checkpoint"
LAYERS = 4


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return shutil.copytree(TINY, tmp_path / "checkpoint")


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    convert(TINY, tmp_path / "model.gguf")
    return tmp_path / "model.gguf"


def named(path: Path, kind: FindingKind) -> list[str]:
    """The tensors in which this mistake and no other is found."""
    result = audit(path)
    found = [it for it in result.findings if it.severity is Severity.ERROR]
    assert {it.kind for it in found} <= {kind}, "\n".join(map(str, found))
    return [it.tensor or "" for it in found]


def test_swapped_nibbles(checkpoint: Path) -> None:
    for name, region in regions(checkpoint).items():
        if name.endswith("_blocks"):
            blocks = region.read()
            region.write((blocks << 4) | (blocks >> 4))
    found = named(checkpoint, FindingKind.NIBBLES_SWAPPED)
    assert sum("down_proj" in name for name in found) == LAYERS
    assert sum("gate_up_proj" in name for name in found) >= LAYERS - 1


def test_swapped_nibbles_in_a_gguf(gguf: Path) -> None:
    for name, region in regions(gguf).items():
        if name.endswith("_exps.weight"):
            blocks = region.read()
            blocks[..., 1:] = (blocks[..., 1:] << 4) | (blocks[..., 1:] >> 4)
            region.write(blocks)
    found = named(gguf, FindingKind.NIBBLES_SWAPPED)
    assert sum("ffn_down_exps" in name for name in found) == LAYERS


def test_one_tensor_with_swapped_nibbles(checkpoint: Path) -> None:
    name = "model.layers.2.mlp.experts.down_proj"
    region = regions(checkpoint)[name + "_blocks"]
    blocks = region.read()
    region.write((blocks << 4) | (blocks >> 4))
    assert named(checkpoint, FindingKind.NIBBLES_SWAPPED) == [name]


def test_blocks_in_the_other_order(checkpoint: Path) -> None:
    """ggml's order in a checkpoint."""
    for name, region in regions(checkpoint).items():
        if name.endswith("_blocks"):
            codes = mxfp4.codes_from_hf(region.read())
            region.write(codes[..., :16] | (codes[..., 16:] << 4))
    found = named(checkpoint, FindingKind.BLOCK_ORDER)
    assert sum("down_proj" in name for name in found) == LAYERS


def test_blocks_not_repacked(gguf: Path) -> None:
    """Hugging Face's order in a GGUF."""
    for name, region in regions(gguf).items():
        if name.endswith("_exps.weight"):
            blocks = region.read()
            blocks[..., 1:] = mxfp4.hf_from_codes(mxfp4.codes_from_ggml(blocks))
            region.write(blocks)
    found = named(gguf, FindingKind.BLOCK_ORDER)
    assert sum("ffn_down_exps" in name for name in found) == LAYERS


def test_gate_and_up_stored_as_halves(checkpoint: Path) -> None:
    for name, region in regions(checkpoint).items():
        if "gate_up_proj" in name:
            rows = region.read()
            region.write(np.concatenate([rows[:, 0::2], rows[:, 1::2]], axis=1))
    found = named(checkpoint, FindingKind.GATE_UP_HALVES)
    assert found == [f"model.layers.{i}.mlp.experts.gate_up_proj" for i in range(LAYERS)]


def test_gate_and_up_read_as_halves(gguf: Path) -> None:
    tensors = regions(gguf)
    for layer in range(LAYERS):
        gate, up = (tensors[f"blk.{layer}.ffn_{part}_exps.weight"] for part in ("gate", "up"))
        pair = gate.read(), up.read()
        rows = np.stack(pair, axis=2).reshape(len(pair[0]), -1, *pair[0].shape[2:])
        n = pair[0].shape[1]
        gate.write(rows[:, :n])
        up.write(rows[:, n:])
    found = named(gguf, FindingKind.GATE_UP_HALVES)
    assert found == [f"blk.{i}.ffn_gate_exps.weight" for i in range(LAYERS)]


@pytest.mark.parametrize("container", ["checkpoint", "gguf"])
def test_noise_for_weights(checkpoint: Path, gguf: Path, container: str) -> None:
    """Random bytes where an expert's codes should be; its scales are as they were."""
    rng = np.random.default_rng(0)
    path = checkpoint if container == "checkpoint" else gguf
    names = ("down_proj_blocks", "ffn_down_exps.weight")
    name, region = next(it for it in regions(path).items() if it[0].endswith(names))
    blocks = region.read()
    codes = blocks[2, :, :, -16:]
    codes[:] = rng.integers(0, 256, codes.shape)
    region.write(blocks)
    (found,) = (it for it in audit(path).findings if it.severity is Severity.ERROR)
    assert found.kind is FindingKind.CODE_NOISE
    assert found.tensor == name.removesuffix("_blocks")
    assert found.place == Location(2, 0)
    assert found.offset == region.offset + blocks[:2].nbytes


def swapped(blocks: Bytes, _: str) -> Bytes:
    """The two codes of each byte exchanged."""
    codes = blocks[..., -16:]
    blocks[..., -16:] = (codes << 4) | (codes >> 4)
    return blocks


def in_the_other_order(blocks: Bytes, container: str) -> Bytes:
    """The codes of each block in the other container's order."""
    if container == "checkpoint":
        codes = mxfp4.codes_from_hf(blocks)
        blocks[:] = codes[..., :16] | (codes[..., 16:] << 4)
        return blocks
    blocks[..., 1:] = mxfp4.hf_from_codes(mxfp4.codes_from_ggml(blocks))
    return blocks


def expert_names(container: str) -> list[str]:
    """Every expert tensor of the trained model."""
    if container == "gguf":
        parts = ("gate", "up", "down")
        return [f"blk.{i}.ffn_{part}_exps.weight" for i in range(LAYERS) for part in parts]
    base = "model.layers.{}.mlp.experts.{}_proj"
    return [base.format(i, part) for i in range(LAYERS) for part in ("gate_up", "down")]


@pytest.mark.parametrize(
    ("mistake", "kind"),
    [(swapped, FindingKind.NIBBLES_SWAPPED), (in_the_other_order, FindingKind.BLOCK_ORDER)],
)
@pytest.mark.parametrize(
    ("container", "name"),
    [
        pytest.param(it, name, marks=() if ".0." in name else pytest.mark.slow)
        for it in ("checkpoint", "gguf")
        for name in expert_names(it)
    ],
)
def test_one_tensor_alone_is_misread(
    checkpoint: Path,
    gguf: Path,
    container: str,
    name: str,
    mistake: Callable[[Bytes, str], Bytes],
    kind: FindingKind,
) -> None:
    path = checkpoint if container == "checkpoint" else gguf
    tensors = regions(path)
    region = tensors[name] if container == "gguf" else tensors[name + "_blocks"]
    region.write(mistake(region.read(), container))
    assert named(path, kind) == [name]


@pytest.mark.parametrize("part", ["gate", "up", "down"])
@pytest.mark.parametrize(
    "layer", [0, *(pytest.param(it, marks=pytest.mark.slow) for it in range(1, LAYERS))]
)
def test_one_tensor_alone_is_transposed_in_a_gguf(gguf: Path, part: str, layer: int) -> None:
    name = f"blk.{layer}.ffn_{part}_exps.weight"
    transpose(regions(gguf)[name])
    assert named(gguf, FindingKind.EXPERTS_TRANSPOSED) == [name]


def transpose(region: Region) -> None:
    """Exchange inputs and outputs of a GGUF's expert tensor and round it to MXFP4 again."""
    blocks = region.read()
    values = mxfp4.decode(mxfp4.codes_from_ggml(blocks), blocks[..., 0])
    values = values.reshape(*blocks.shape[:2], -1).transpose(0, 2, 1)
    codes, scales = encode(np.ascontiguousarray(values).reshape(*blocks.shape[:3], 32))
    hf = mxfp4.hf_from_codes(codes).reshape(-1, 16)
    ggml = np.empty((len(hf), 17), np.uint8)
    mxfp4.repack(hf, scales.reshape(-1), ggml)
    region.write(ggml.reshape(blocks.shape))


@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize("container", ["checkpoint", "gguf"])
def test_transposed_experts_in_mxfp4(
    checkpoint: Path, tmp_path: Path, container: str, noise: float
) -> None:
    """A fine-tune whose down_proj is transposed, encoded to MXFP4 as if it were not."""
    transposed_in_mxfp4(checkpoint, noise)
    path, name = checkpoint, "model.layers.{}.mlp.experts.down_proj"
    if container == "gguf":
        path, name = tmp_path / "transposed.gguf", "blk.{}.ffn_down_exps.weight"
        convert(checkpoint, path)
    found = named(path, FindingKind.EXPERTS_TRANSPOSED)
    assert found == [name.format(i) for i in range(LAYERS)]


def test_transposed_random_experts_in_mxfp4(tmp_path: Path) -> None:
    """Without structure that training made, MXFP4's grid alone shows it."""
    folder = random_checkpoint(tmp_path / "random", chat_template="x")
    transposed_in_mxfp4(folder, 0.0)
    convert(folder, tmp_path / "model.gguf")
    for path, name in (
        (folder, "model.layers.{}.mlp.experts.down_proj"),
        (tmp_path / "model.gguf", "blk.{}.ffn_down_exps.weight"),
    ):
        found = named(path, FindingKind.EXPERTS_TRANSPOSED)
        assert found == [name.format(i) for i in range(2)]


def transposed_in_mxfp4(checkpoint: Path, noise: float) -> None:
    """Transpose every down_proj of an MXFP4 checkpoint and round it to MXFP4 again."""
    rng = np.random.default_rng(0)
    for name, region in regions(checkpoint).items():
        if name.endswith("down_proj_blocks"):
            scales = regions(checkpoint)[name.removesuffix("_blocks") + "_scales"]
            blocks = region.read()
            values = mxfp4.decode(mxfp4.codes_from_hf(blocks), scales.read())
            values = values.reshape(*blocks.shape[:2], -1).transpose(0, 2, 1)
            values = values * (1 + noise * rng.standard_normal(values.shape)).astype(np.float32)
            codes, bytes_ = encode(np.ascontiguousarray(values).reshape(*blocks.shape[:3], 32))
            region.write(mxfp4.hf_from_codes(codes))
            scales.write(bytes_)


def encode(values: Floats) -> tuple[Bytes, Bytes]:
    """Codes ``[..., 32]`` and scales ``[...]`` by OCP's rule: the largest keeps its octave."""
    top = np.abs(values).max(axis=-1)
    exponent = np.floor(np.log2(np.maximum(top, 1e-30))) - 2
    scaled = np.abs(values) / np.exp2(exponent)[..., None]
    grid = np.array(mxfp4.E2M1[:8])
    codes = np.abs(scaled[..., None] - grid).argmin(axis=-1) + 8 * np.signbit(values)
    return codes.astype(np.uint8), (exponent + 127).astype(np.uint8)


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_experts_in_floats(checkpoint: Path, noise: float) -> None:
    to_floats(checkpoint, noise=noise)
    assert named(checkpoint, FindingKind.EXPERTS_TRANSPOSED) == []


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_square_experts_transposed(checkpoint: Path, noise: float) -> None:
    """With noise, no value lies on MXFP4's grid any more: the neurons' norms tell."""
    to_floats(checkpoint, noise=noise, transpose_down=True)
    found = named(checkpoint, FindingKind.EXPERTS_TRANSPOSED)
    assert found == [f"model.layers.{i}.mlp.experts.down_proj" for i in range(LAYERS)]


def test_the_grid_alone_tells_in_random_experts(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "random", chat_template="x")
    to_floats(folder, transpose_down=True)
    found = named(folder, FindingKind.EXPERTS_TRANSPOSED)
    assert found == [f"model.layers.{i}.mlp.experts.down_proj" for i in range(2)]


def test_experts_transposed_by_shape(checkpoint: Path) -> None:
    to_floats(checkpoint)
    path = checkpoint / "model.safetensors"
    contents = safetensors_files.load(path)
    name = "model.layers.1.mlp.experts.gate_up_proj"
    dtype, (experts, inputs, outputs), raw = contents[name]
    contents[name] = (dtype, [experts, outputs, inputs], raw)
    safetensors_files.save(path, contents)
    assert name in named(checkpoint, FindingKind.EXPERTS_TRANSPOSED)


def test_on_grid() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (4, 50, 32), np.uint8)
    scales = rng.integers(1, 250, (4, 50), np.uint8)
    values = mxfp4.decode(codes, scales).reshape(4, -1)
    values = values[:, np.isfinite(values).all(axis=0)]
    assert share_on_grid(values[:, : values.shape[1] // 32 * 32]) == 1
    assert share_on_grid(rng.standard_normal((4, 640), np.float32)) == 0
    assert share_on_grid(np.zeros((4, 64), np.float32)) == 0
