"""Defects planted in a converted file: each must be found, counted, and named at its place."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType

from gptoss.converter.convert import convert
from gptoss.formats.checkpoint import Checkpoint
from gptoss.formats.gguf import GgufFile, GgufTensor
from gptoss.quant import mxfp4
from gptoss.quant.location import Location
from gptoss.quant.verify.result import Outcome, Problem
from gptoss.quant.verify.verifier import verify
from support import safetensors_files
from support.editing import regions
from support.planted import DENSE, EXPERTS, HIDDEN, INTERMEDIATE, Copy, Copying

pytestmark = pytest.mark.usefixtures("piece")


@pytest.mark.parametrize("dense", DENSE)
def test_a_good_conversion_is_proven(source: Path, converted: dict[str, Path], dense: str) -> None:
    steps: list[tuple[int, int]] = []
    verdict = verify(source, converted[dense], progress=lambda *step: steps.append(step))
    assert verdict.proven
    assert verdict.first is None
    file = GgufFile.open(converted[dense])
    checkpoint = Checkpoint.open(source)
    nbytes = sum(tensor.nbytes for tensor in file.tensors.values())
    nbytes += sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    assert verdict.tensors == len(file.tensors)
    assert verdict.nbytes == nbytes
    assert steps[-1] == (nbytes, nbytes)
    assert verdict.values == sum(
        int(np.prod(tensor.shape, dtype=np.int64)) for tensor in file.tensors.values()
    )


# --- experts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", [0, 15, 16, 31])
@pytest.mark.parametrize(
    ("which", "rows", "columns"),
    [
        ("gate", INTERMEDIATE, HIDDEN),
        ("up", INTERMEDIATE, HIDDEN),
        ("down", HIDDEN, INTERMEDIATE),
    ],
)
def test_a_flipped_nibble(copy: Copying, which: str, rows: int, columns: int, lane: int) -> None:
    it, name = copy(), f"blk.1.ffn_{which}_exps.weight"
    place = Location(expert=2, row=rows - 1, block=1, lane=lane)
    block = (2 * rows + rows - 1) * (columns // 32) + 1
    at, shift = it.offset(name) + 17 * block + 1 + lane % 16, 0 if lane < 16 else 4
    zero = it.read(at, 1)[0] >> shift & 7 == 0
    it.xor(at, (2 if zero else 8) << shift)
    difference = it.only()
    assert (difference.tensor, difference.problem) == (name, Problem.VALUES)
    assert (difference.place, difference.values, difference.scales) == (place, 1, 0)
    expected, found = (float(text.split()[0]) for text in (difference.expected, difference.found))
    if zero:
        assert expected == 0 != found
    else:
        assert expected == -found  # the bit flipped is the sign
    assert str(place) == f"expert 2, row {rows - 1}, block 1, lane {lane}"
    assert str(difference).startswith(f"{name}: {place}: expected ")


def test_signs_of_zeros_are_no_difference(copy: Copying) -> None:
    """As llama.cpp leaves them when it encodes MXFP4 again from its values."""
    it, name = copy(), "blk.0.ffn_down_exps.weight"
    data = np.frombuffer(it.tensor(name), np.uint8).reshape(-1, 17).copy()
    low, high = data[:, 1:] & 0x0F, data[:, 1:] >> 4
    n = int((low == 8).sum() + (high == 8).sum())
    low[low == 8], high[high == 8] = 0, 0
    data[:, 1:] = low | high << 4
    it.write(it.offset(name), data.tobytes())
    verdict = it.verify()
    assert n > 0
    assert (verdict.outcome, verdict.proven) == (Outcome.SAME_VALUES, True)
    (found,) = verdict.reencodings
    assert (found.tensor, found.values, found.scales) == (name, n, 0)


def test_another_scale_for_the_same_values_is_no_difference(copy: Copying, tmp_path: Path) -> None:
    """Codes up to 3 are codes up to 6 under half the scale."""
    made, name = copy(), "blk.0.ffn_down_exps.weight"
    it = Copy(shutil.copytree(made.source, tmp_path / "source"), made.path)
    source = regions(it.source)
    for ending, first in (
        ("blocks", mxfp4.hf_from_codes(np.array([2] * 16 + [1] * 16, np.uint8))),  # 1.0, 0.5
        ("scales", np.array([120], np.uint8)),
    ):
        region = source[f"model.layers.0.mlp.experts.down_proj_{ending}"]
        array = region.read()
        array.reshape(-1, len(first))[0] = first
        region.write(array)
    it.write(it.offset(name), bytes([120, *[0x12] * 16]))
    assert it.verify().outcome is Outcome.PROVEN
    it.write(it.offset(name), bytes([119, *[0x24] * 16]))  # 2.0, 1.0
    (found,) = it.verify().reencodings
    assert (found.tensor, found.values, found.scales) == (name, 32, 1)
    it.write(it.offset(name), bytes([119, *[0x24] * 15, 0x25]))
    assert it.only().values == 32


def test_a_changed_scale(copy: Copying) -> None:
    it, name = copy(), "blk.0.ffn_up_exps.weight"
    at = it.offset(name) + 17 * (1 * INTERMEDIATE * 3 + 5 * 3 + 2)
    was = it.read(at, 1)[0]
    it.write(at, b"\xff")
    difference = it.only()
    assert difference.place == Location(expert=1, row=5, block=2)
    assert (difference.values, difference.scales) == (0, 1)
    assert (difference.expected, difference.found) == (f"scale {was}", "scale 255")


def test_swapped_experts(copy: Copying) -> None:
    it, name = copy(), "blk.0.ffn_down_exps.weight"
    data = bytearray(it.tensor(name))
    size = len(data) // EXPERTS
    data[size : 2 * size], data[3 * size :] = data[3 * size :], data[size : 2 * size]
    it.write(it.offset(name), bytes(data))
    difference = it.only()
    assert difference.place is not None
    assert (difference.place.expert, difference.place.row) == (1, 0)
    assert difference.values > HIDDEN * INTERMEDIATE  # of two experts, most codes


def test_gate_and_up_swapped(copy: Copying) -> None:
    it = copy()
    gate, up = "blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight"
    gate_data, up_data = it.tensor(gate), it.tensor(up)
    it.write(it.offset(gate), up_data)
    it.write(it.offset(up), gate_data)
    verdict = it.verify()
    assert [difference.tensor for difference in verdict.differences] == [gate, up]
    for difference in verdict.differences:
        assert difference.place is not None
        assert (difference.place.expert, difference.place.row) == (0, 0)


def test_halves_in_place_of_every_second_row(copy: Copying) -> None:
    it = copy()
    tensors = Checkpoint.open(it.source).tensors
    prefix = "model.layers.0.mlp.experts.gate_up_proj"
    arrays = []
    for ending in ("_blocks", "_scales"):
        info = tensors[prefix + ending]
        raw = np.frombuffer(safetensors_files.data_of(info), np.uint8)
        arrays.append(raw.reshape(info.shape))
    blocks, scales = arrays
    for which, half in (("gate", 0), ("up", 1)):
        rows = slice(half * INTERMEDIATE, (half + 1) * INTERMEDIATE)
        out = np.empty((*scales[:, rows].shape, 17), np.uint8)
        mxfp4.repack(blocks[:, rows], scales[:, rows], out)
        it.write(it.offset(f"blk.0.ffn_{which}_exps.weight"), out.tobytes())
    gate, up = it.verify().differences
    assert gate.place is not None
    assert up.place is not None
    assert (gate.place.expert, gate.place.row) == (0, 1)  # row 0 is right either way
    assert (up.place.expert, up.place.row) == (0, 0)


def test_codes_in_the_order_of_the_checkpoint(copy: Copying) -> None:
    """What a forgotten repack looks like."""
    it, name = copy(), "blk.0.ffn_down_exps.weight"
    data = np.frombuffer(it.tensor(name), np.uint8).reshape(-1, 17).copy()
    blocks, scales = np.empty((len(data), 16), np.uint8), np.empty(len(data), np.uint8)
    mxfp4.unpack(data, blocks, scales)
    data[:, 1:] = blocks
    it.write(it.offset(name), data.tobytes())
    difference = it.only()
    assert difference.scales == 0
    assert difference.values > data.shape[0] * 32 // 2


# --- dense tensors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "at", "place"),
    [
        ("blk.1.attn_sinks.weight", 4, 1, Location(index=1)),
        ("blk.0.attn_norm.weight", 4, 95, Location(index=95)),
        ("output_norm.weight", 4, 0, Location(index=0)),
        ("blk.0.attn_k.bias", 4, 63, Location(index=63)),
        ("blk.1.ffn_gate_inp.weight", 4, 2 * HIDDEN + 7, Location(expert=2, index=7)),
        ("blk.1.ffn_gate_inp.bias", 4, 3, Location(index=3)),
        ("blk.1.ffn_gate_exps.bias", 4, 2 * INTERMEDIATE + 9, Location(expert=2, index=9)),
        ("blk.1.ffn_up_exps.bias", 4, 3 * INTERMEDIATE + 63, Location(expert=3, index=63)),
        ("blk.1.ffn_down_exps.bias", 4, HIDDEN + 1, Location(expert=1, index=1)),
        ("token_embd.weight", 2, 319 * HIDDEN + 95, Location(row=319, index=95)),
        ("output.weight", 2, 3 * HIDDEN, Location(row=3, index=0)),
        ("blk.0.attn_output.weight", 2, 5 * 128 + 127, Location(row=5, index=127)),
    ],
)
def test_a_changed_value(copy: Copying, name: str, size: int, at: int, place: Location) -> None:
    it = copy()
    it.xor(it.offset(name) + size * at, 1)
    difference = it.only()
    assert (difference.tensor, difference.place) == (name, place)
    assert (difference.values, difference.scales) == (1, 0)


@pytest.mark.parametrize(("dense", "size"), [("f16", 2), ("f32", 4)])
def test_a_changed_value_in_other_types(copy: Copying, dense: str, size: int) -> None:
    it = copy(dense)
    it.xor(it.offset("blk.0.attn_q.weight") + size * (7 * HIDDEN + 11), 1)
    assert it.only().place == Location(row=7, index=11)


def test_a_changed_q8_0_code_and_scale(copy: Copying) -> None:
    it, name = copy("q8_0"), "blk.1.attn_v.weight"
    block = it.offset(name) + 34 * (9 * HIDDEN // 32 + 2)
    it.xor(block + 2 + 21, 1)
    difference = it.only()
    assert difference.place == Location(row=9, block=2, lane=21)
    assert (difference.values, difference.scales) == (1, 0)
    it.xor(block, 1)
    difference = it.only()
    assert difference.place == Location(row=9, block=2)
    assert (difference.values, difference.scales) == (1, 1)
    assert difference.expected.startswith("scale ")


@pytest.mark.parametrize(
    ("dense", "size"), [("q4_0", 18), ("q4_1", 20), ("q5_0", 22), ("q5_1", 24)]
)
def test_smaller_blocks(source: Path, tmp_path: Path, dense: str, size: int) -> None:
    it, name = Copy(source, tmp_path / "model.gguf"), "blk.1.attn_v.weight"
    convert(source, it.path, dense=dense)
    assert it.verify().proven
    block = it.offset(name) + size * (9 * HIDDEN // 32 + 2)
    it.xor(block + size - 16 + 5, 0x40)
    difference = it.only()
    assert difference.place == Location(row=9, block=2, lane=21)
    assert (difference.values, difference.scales) == (1, 0)
    it.xor(block, 1)
    difference = it.only()
    assert difference.place == Location(row=9, block=2)
    assert (difference.values, difference.scales) == (1, 1)


def only_zeros_changed_sign(tensor: GgufTensor, at: int, was: int, became: int) -> bool:
    """Whether two codes of a byte of MXFP4 have the same values, 0 being -0."""
    if tensor.type is not GGMLQuantizationType.MXFP4 or at % 17 == 0:
        return False
    return all(
        mxfp4.E2M1[was >> shift & 15] == mxfp4.E2M1[became >> shift & 15] for shift in (0, 4)
    )


@pytest.mark.parametrize("dense", DENSE)
def test_any_byte_of_any_tensor_counts(copy: Copying, dense: str) -> None:
    it = copy(dense)
    rng = np.random.default_rng(3)
    tensors = list(GgufFile.open(it.path).tensors.values())
    for tensor in rng.choice(np.array(tensors, object), 12):
        at = tensor.offset + int(rng.integers(tensor.nbytes))
        bits = int(rng.integers(1, 256))
        was = it.read(at, 1)[0]
        it.xor(at, bits)
        if only_zeros_changed_sign(tensor, at - tensor.offset, was, was ^ bits):
            assert [found.tensor for found in it.verify().reencodings] == [tensor.name]
        else:
            difference = it.only()
            assert difference.tensor == tensor.name
            assert 1 <= difference.values + difference.scales <= 2
        it.xor(at, bits)
    assert it.verify().proven


def test_the_first_difference_is_the_first_in_the_model(copy: Copying) -> None:
    it = copy()
    names = ["token_embd.weight", "output.weight", "blk.0.attn_sinks.weight", "blk.1.attn_q.bias"]
    for name in reversed(names):
        it.xor(it.offset(name), 1)
        it.xor(it.offset(name) + 5, 1)
    verdict = it.verify()
    assert [difference.tensor for difference in verdict.differences] == names
    assert verdict.first == verdict.differences[0]
    assert verdict.differences[0].place == Location(row=0, index=0)
    assert verdict.differences[0].values == 2


# --- tensors that cannot be compared ----------------------------------------------------------


def test_a_missing_and_an_extra_tensor(copy: Copying) -> None:
    it = copy()
    it.replace(b"blk.1.ffn_up_exps.weight", b"blk.1.ffn_up_expz.weight")
    verdict = it.verify()
    missing, extra = verdict.differences
    assert (missing.tensor, missing.problem) == ("blk.1.ffn_up_exps.weight", Problem.MISSING)
    assert missing.expected == f"MXFP4 or F32 or F16 or BF16 ({HIDDEN}, {INTERMEDIATE}, {EXPERTS})"
    assert (extra.tensor, extra.problem) == ("blk.1.ffn_up_expz.weight", Problem.EXTRA)
    assert verdict.first == missing
    # Its other half, of the same source tensor, is compared all the same.
    it.xor(it.offset("blk.1.ffn_gate_exps.weight") + 1, 1)
    assert it.verify().differences[0].place == Location(expert=0, row=0, block=0, lane=0)


def test_a_wrong_type(copy: Copying) -> None:
    it, name = copy(), b"blk.0.attn_sinks.weight"
    it.replace(name, struct.pack("<I", GGMLQuantizationType.I32), len(name) + 4 + 8)
    difference = it.only()
    assert difference.problem is Problem.TYPE
    assert (difference.expected, difference.found) == ("F32", "I32")


def test_a_wrong_shape(copy: Copying) -> None:
    it, name = copy(), b"blk.0.attn_q.weight"
    it.replace(name, struct.pack("<QQ", 128, HIDDEN), len(name) + 4)
    difference = it.only()
    assert difference.problem is Problem.SHAPE
    assert (difference.expected, difference.found) == (f"({HIDDEN}, 128)", f"(128, {HIDDEN})")
