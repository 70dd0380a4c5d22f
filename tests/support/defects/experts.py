"""Harm to the experts' codes and scales."""

from __future__ import annotations

import numpy as np

from gptoss.quant import mxfp4
from support.defects.patient import Expected, Patient

# --- scales -----------------------------------------------------------------------------------


def _one_scale(patient: Patient, byte: int) -> Expected:
    name, blocks, region = patient.experts()
    scales = region.read()
    expert, row, block = (int(patient.rng.integers(n)) for n in scales.shape)
    scales[expert, row, block] = byte
    region.write(scales)
    codes = blocks.read()
    codes[expert, row, block, 0] |= 0x11
    blocks.write(codes)
    return Expected(name, expert, row, block)


def nan_scale(patient: Patient) -> Expected:
    return _one_scale(patient, 255)


def overflowing_scale(patient: Patient) -> Expected:
    return _one_scale(patient, 254)


def subnormal_scale(patient: Patient) -> Expected:
    return _one_scale(patient, int(patient.rng.integers(2)))


def outlying_scale(patient: Patient) -> Expected:
    return _one_scale(patient, 150)


def constant_scales(patient: Patient) -> Expected:
    name, _, region = patient.experts()
    region.write(np.full(region.shape, 121, np.uint8))
    return Expected(name)


def biased_scales(patient: Patient) -> Expected:
    for _, region in patient.all_experts():
        region.write(region.read() + np.uint8(8))
    return Expected()


def numbers_quantized_again(patient: Patient) -> Expected:
    """Decoded as code × byte, then encoded by the standard's rule."""
    for blocks, region in patient.all_experts():
        largest = np.abs(np.array(mxfp4.E2M1))[mxfp4.codes_from_hf(blocks.read())].max(axis=-1)
        exponent = np.floor(np.log2(np.maximum(largest, 0.5) * region.read())) - 2
        region.write((exponent + 127).astype(np.uint8))
    return Expected("_proj")


def scales_as_numbers(patient: Patient) -> Expected:
    """Linear, the largest 254: as other formats have their scales."""
    name, _, region = patient.experts()
    sizes = patient.rng.lognormal(0, 0.4, region.shape)
    region.write((sizes / sizes.max() * 254).astype(np.uint8))
    return Expected(name)


# --- codes ------------------------------------------------------------------------------------


def dead_expert(patient: Patient) -> Expected:
    name, region, _ = patient.experts()
    blocks = region.read()
    expert = int(patient.rng.integers(len(blocks)))
    blocks[expert] = 0
    region.write(blocks)
    return Expected(name, expert)


def zero_rows(patient: Patient) -> Expected:
    name, region, _ = patient.experts()
    blocks = region.read()
    expert = int(patient.rng.integers(len(blocks)))
    blocks[expert, int(patient.rng.integers(blocks.shape[1]))] = 0x80
    region.write(blocks)
    return Expected(name, expert)


def zero_blocks(patient: Patient) -> Expected:
    name, region, _ = patient.experts()
    blocks = region.read()
    mask = patient.rng.random(blocks.shape[:3]) < 0.02
    mask[1:, :, 0] = False
    blocks[mask] = 0
    region.write(blocks)
    return Expected(name)


def saturated_blocks(patient: Patient) -> Expected:
    name, region, _ = patient.experts()
    blocks = region.read()
    mask = patient.rng.random(blocks.shape[:3]) < 0.5
    blocks[mask] |= 0x77
    region.write(blocks)
    return Expected(name)


def _recode(patient: Patient, table: np.ndarray) -> Expected:
    """Replace every code by ``table[code]``."""
    name, region, _ = patient.experts()
    region.write(mxfp4.hf_from_codes(table[mxfp4.codes_from_hf(region.read())]))
    return Expected(name)


def largest_code_lost(patient: Patient) -> Expected:
    table = np.arange(16, dtype=np.uint8)
    table[[7, 15]] = 6, 14
    return _recode(patient, table)


def negative_bias(patient: Patient) -> Expected:
    name, region, _ = patient.experts()
    blocks = region.read()
    mask = patient.rng.random(blocks.shape) < 0.9
    blocks[mask] |= 0x88
    region.write(blocks)
    return Expected(name)


def integers_for_floats(patient: Patient) -> Expected:
    name, region, _ = patient.experts()
    numbers = np.clip(patient.rng.normal(0, 2.5, (*region.shape[:3], 32)).round(), -8, 7)
    region.write(mxfp4.hf_from_codes((numbers.astype(np.int8) & 15).astype(np.uint8)))
    return Expected(name)


def stuck_lane(patient: Patient) -> Expected:
    name, region, _ = patient.experts()
    codes = mxfp4.codes_from_hf(region.read())
    lane = int(patient.rng.integers(32))
    codes[..., lane] &= 0b1110
    region.write(mxfp4.hf_from_codes(codes))
    return Expected(name, lane=lane)


def upper_nibbles_lost(patient: Patient) -> Expected:
    name, region, _ = patient.experts()
    region.write(region.read() & np.uint8(15))
    return Expected(name, lane=1)


# --- tensors against each other ---------------------------------------------------------------


def outlying_layer(patient: Patient) -> Expected:
    name, _, region = patient.experts()
    region.write(region.read() + np.uint8(4))
    return Expected(name)


def outlying_expert(patient: Patient) -> Expected:
    name, _, region = patient.experts()
    scales = region.read()
    expert = int(patient.rng.integers(len(scales)))
    scales[expert] -= np.uint8(4)
    region.write(scales)
    return Expected(name, expert)


def duplicated_expert(patient: Patient) -> Expected:
    name, *both = patient.experts()
    a, b = sorted(patient.rng.choice(both[0].shape[0], 2, replace=False).tolist())
    for region in both:
        array = region.read()
        array[b] = array[a]
        region.write(array)
    return Expected(name, b)


def expert_of_another_layer(patient: Patient) -> Expected:
    names = sorted(name for name in patient.tensors if name.endswith("down_proj_blocks"))
    for ending in ("_blocks", "_scales"):
        source = patient.tensors[names[0].removesuffix("_blocks") + ending].read()
        region = patient.tensors[names[1].removesuffix("_blocks") + ending]
        array = region.read()
        array[2] = source[1]
        region.write(array)
    return Expected(names[1].removesuffix("_blocks"), 2)


# --- corrupt or misread -----------------------------------------------------------------------


def hole(patient: Patient) -> Expected:
    return patient.overwrite("gate_up_proj_blocks", bytes(2048))


def hole_of_ones(patient: Patient) -> Expected:
    return patient.overwrite("gate_up_proj_blocks", b"\xff" * 2048)


def hole_in_gguf(patient: Patient) -> Expected:
    return patient.overwrite("_exps.weight", bytes(2048))


def garbage_in_gguf(patient: Patient) -> Expected:
    return patient.overwrite("_exps.weight", patient.rng.bytes(2048))


def garbage_in_scales(patient: Patient) -> Expected:
    name, _, region = patient.experts()
    raw = region.read().reshape(-1)
    n = len(raw) // 8
    at = int(patient.rng.integers(len(raw) - n))
    raw[at : at + n] = patient.rng.integers(0, 256, n)
    region.write(raw)
    offset = region.offset + at
    return Expected(name, file=region.path.name, offset=range(offset, offset + 64))


def garbage_in_odd_rows(patient: Patient) -> Expected:
    name, _, region = patient.experts()
    scales = region.read()
    odd = scales[:, 1::2]
    scales[:, 1::2] = patient.rng.integers(0, 256, odd.shape)
    region.write(scales)
    return Expected(name)


def garbage_in_odd_rows_of_an_expert(patient: Patient) -> Expected:
    name, _, region = patient.experts()
    scales = region.read()
    expert = int(patient.rng.integers(len(scales)))
    odd = scales[expert, 1::2]
    odd[:] = patient.rng.integers(0, 256, odd.shape)
    region.write(scales)
    return Expected(name, expert)


def wrong_stride(patient: Patient) -> Expected:
    """Written as 16 bytes of codes and then the scale: read, a code stands for each scale."""
    name, region = patient.pick("_exps.weight")
    blocks = region.read()
    region.write(np.concatenate([blocks[..., 1:], blocks[..., :1]], axis=-1))
    return Expected(name)
