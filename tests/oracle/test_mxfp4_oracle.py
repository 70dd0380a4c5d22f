"""The project's MXFP4 and Q8_0 against four programs of others, every deviation named.

Where a program departs from the standard, its departure is asserted here too: should it be mended
there, the test that fails says so.

| | decoding departs | encoding departs |
|---|---|---|
| ml_dtypes | nowhere | nowhere |
| transformers | scale 255 is 2**128, not NaN | |
| gguf (numpy) | as llama.cpp | as llama.cpp |
| llama.cpp | scale 255 is 2**128; no negative zero | ties down; zeros lose their sign |

Scales 0 and 1, under which values are subnormal in float32, are right in all: gguf and llama.cpp,
which work with half of a scale and twice the values, make the halves of 2**-127 and 2**-126 by
their bits.
"""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from gptoss.quant import mxfp4
from gptoss.quant.model.dtypes import FLOATS
from gptoss.quant.mxfp4 import Bytes, Floats
from gptoss.quant.mxfp4.encoder import encode
from gptoss.quant.verify.encoded_mxfp4 import EncodedMxfp4
from gptoss.quant.verify.legacy_quants import Q8_0, LegacyQuant

pytestmark = pytest.mark.oracle

CODE_BYTES = mxfp4.BLOCK // 2


@pytest.fixture(scope="module")
def ggml() -> ctypes.CDLL:
    """llama.cpp's base library, as llama-cpp-python ships it."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    assert spec.origin is not None
    found = sorted((Path(spec.origin).parent / "lib").glob("*ggml-base.*"))
    assert found, "llama-cpp-python ships no ggml-base library"
    return ctypes.CDLL(str(found[0]))


def all_codes_under_all_scales() -> tuple[Bytes, Bytes, Bytes]:
    """Hugging Face blocks, scales, and the same as ggml blocks: each scale with each code twice."""
    codes = np.tile(np.random.default_rng(0).permutation(np.arange(32) % 16), (256, 1))
    blocks = mxfp4.hf_from_codes(codes.astype(np.uint8))
    scales = np.arange(256, dtype=np.uint8)
    packed = np.empty((256, mxfp4.GGML_BYTES), np.uint8)
    mxfp4.repack(blocks, scales, packed)
    return blocks, scales, packed


def ours(packed: Bytes) -> Floats:
    return mxfp4.decode(mxfp4.codes_from_ggml(packed), packed[:, 0])


def by_ggml(ggml: ctypes.CDLL, function: str, data: np.ndarray, out: np.ndarray, n: int) -> None:
    """Call one of ggml's row functions: (const void *, void *, int64_t)."""
    call = getattr(ggml, function)
    call.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    call.restype = None
    call(data.ctypes.data, out.ctypes.data, n)


def same_bits(a: Floats, b: Floats) -> bool:
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


def assert_decodes_as_ggml(theirs: Floats, packed: Bytes) -> None:
    """Deviations of ggml: no negative zero; and scale 255 is 2**128, not NaN.

    Under scale 255 the smallest magnitude is therefore a finite 2**127.
    """
    expected = ours(packed) + np.float32(0)  # -0 + 0 = 0
    assert same_bits(theirs[:255], expected[:255])
    assert np.isnan(expected[255]).all()
    smallest = np.isin(mxfp4.codes_from_ggml(packed)[255], (1, 9))
    assert (np.abs(theirs[255, smallest]) == np.float32(2.0**127)).all()
    assert not np.isnan(theirs[255]).any()


def test_decode_equals_ggml(ggml: ctypes.CDLL) -> None:
    _, _, packed = all_codes_under_all_scales()
    theirs = np.empty((256, mxfp4.BLOCK), np.float32)
    by_ggml(ggml, "dequantize_row_mxfp4", packed, theirs, theirs.size)
    assert_decodes_as_ggml(theirs, packed)


def test_decode_equals_gguf() -> None:
    _, _, packed = all_codes_under_all_scales()
    with np.errstate(over="ignore"):
        theirs = quants.dequantize(packed, GGMLQuantizationType.MXFP4)
    assert_decodes_as_ggml(theirs, packed)


def test_decode_equals_ggml_on_random_blocks(ggml: ctypes.CDLL) -> None:
    rng = np.random.default_rng(1)
    packed = rng.integers(0, 256, (5000, mxfp4.GGML_BYTES), dtype=np.uint8)
    packed[:, 0] %= 253  # scales under which every value is finite
    theirs = np.empty((len(packed), mxfp4.BLOCK), np.float32)
    by_ggml(ggml, "dequantize_row_mxfp4", packed, theirs, theirs.size)
    assert same_bits(theirs, ours(packed) + np.float32(0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_decode_equals_transformers(dtype: str) -> None:
    """On the checkpoint's own layout; the result is transposed to (expert, column, row).

    Deviation: scale 255 is taken for 2**128, not NaN.
    """
    import torch
    from transformers.integrations import mxfp4 as transformers_mxfp4

    blocks, scales, packed = all_codes_under_all_scales()
    decoded = transformers_mxfp4.convert_moe_packed_tensors(
        torch.from_numpy(blocks).reshape(1, 256, 1, CODE_BYTES),
        torch.from_numpy(scales).reshape(1, 256, 1),
        dtype=getattr(torch, dtype),
    )
    theirs = decoded[0].T.contiguous().float().numpy()
    expected = ours(packed)
    assert same_bits(theirs[:255], expected[:255])
    assert np.isnan(expected[255]).all()
    assert not np.isnan(theirs[255]).all()


def test_every_code_and_scale_is_ml_dtypes() -> None:
    """No deviation: E2M1 is its float4_e2m1fn, E8M0 its float8_e8m0fnu, 255 being NaN."""
    import ml_dtypes

    _, scales, packed = all_codes_under_all_scales()
    elements = mxfp4.codes_from_ggml(packed).view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    units = scales.view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    with np.errstate(over="ignore"):
        theirs = (elements * units[:, None]).astype(np.float32)
    assert same_bits(theirs[:255], ours(packed)[:255])
    assert np.isnan(theirs[255]).all()
    assert np.isnan(ours(packed)[255]).all()


def test_codes_are_ml_dtypes_rounding() -> None:
    """No deviation: ties to the even code, above 6 cut to 6, zeros keep their sign."""
    import ml_dtypes

    values = encoder_values()
    encoded = encode(values)
    units = encoded.scales.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    theirs = (values / units).astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    assert np.array_equal(mxfp4.codes_from_hf(encoded.blocks)[:, 0], theirs)


def encoder_values() -> Floats:
    """Values of all sizes, with grid points, ties and zeros among them."""
    rng = np.random.default_rng(2)
    values = rng.standard_normal((4000, 32)) * 2.0 ** rng.integers(-40, 40, (4000, 1))
    values[:1000] = np.round(values[:1000] * 8) / 8
    grid = rng.choice([0, 0.25, 0.5, 0.75, 1, 1.25, 1.75, 2.5, 3.5, 5, 6], (1000, 32))
    return np.concatenate([values, grid * rng.choice([-1, 1], (1000, 32))]).astype(np.float32)


def packed_by_ggml(ggml: ctypes.CDLL, values: Floats) -> Bytes:
    packed = np.empty((len(values), mxfp4.GGML_BYTES), np.uint8)
    by_ggml(ggml, "quantize_row_mxfp4_ref", values, packed, values.size)
    return packed


def packed_by_gguf(values: Floats) -> Bytes:
    packed: Bytes = quants.quantize(values, GGMLQuantizationType.MXFP4)
    return packed


def errors(values: Floats, codes: Bytes, scales: Bytes) -> np.ndarray:
    """Distances ``[n, 32]`` to what decodes."""
    return np.abs(mxfp4.decode(codes, scales) - values.astype(np.float64))


@pytest.mark.parametrize("program", ["gguf", "ggml"])
def test_verify_takes_what_their_encoders_make(ggml: ctypes.CDLL, program: str) -> None:
    """By OCP's rule, a tie going to the smaller magnitude, and what rounds to zero losing its sign.

    Their float32 logarithm may round up one ulp below a power of two; no such value is among these.
    """
    values = encoder_values()
    packed = packed_by_gguf(values) if program == "gguf" else packed_by_ggml(ggml, values)
    comparison = EncodedMxfp4(FLOATS["F32"])
    assert comparison.equal([values.view(np.uint8)], packed)
    spoilt = packed.copy()
    spoilt[5, 0] += 3
    assert not comparison.equal([values.view(np.uint8)], spoilt)


def test_least_error_never_loses_to_ggmls(ggml: ctypes.CDLL) -> None:
    values = encoder_values()
    packed = packed_by_ggml(ggml, values)
    encoded = encode(values)
    codes = mxfp4.codes_from_hf(encoded.blocks)[:, 0]
    ours_error = (errors(values, codes, encoded.scales[:, 0]) ** 2).sum(axis=1)
    theirs = errors(values, mxfp4.codes_from_ggml(packed), packed[:, 0])
    their_error = (theirs**2).sum(axis=1)
    assert (ours_error <= their_error * (1 + 1e-14)).all()
    gaussian = slice(1000, 4000)
    relative = ours_error[gaussian] / their_error[gaussian]
    assert 0.90 < relative.mean() < 0.97


def dense_values() -> tuple[np.ndarray, Floats]:
    """BF16 blocks with many ties among them, as their bits and as float32."""
    rng = np.random.default_rng(3)
    values = rng.standard_normal((20000, 32)) * 2.0 ** rng.integers(-20, 10, (20000, 1))
    values[:5000] = np.round(values[:5000] * 2) / 2  # many ties, amax a multiple of 1 / 2
    values[:2000, 0] = 127 * 2.0 ** rng.integers(-3, 3, 2000)
    values[7] = 0
    bits = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return bits, (bits.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1"])
def test_smaller_blocks_are_judged_by_ggmls_own_rounding(ggml: ctypes.CDLL, name: str) -> None:
    bits, exact = dense_values()
    comparison = LegacyQuant(bits=int(name[1]), has_minimum=name.endswith("1"))
    packed = np.empty((len(exact), comparison.found_bytes), np.uint8)
    by_ggml(ggml, f"quantize_row_{name}_ref", exact, packed, exact.size)
    source = bits.view(np.uint8)
    assert comparison.equal([source], packed)
    packed[123, -11] ^= 0x40
    scales, codes = comparison.differing([source], packed)
    assert not scales.any()
    assert np.argwhere(codes).tolist() == [[123, 21]]


def test_q8_0_is_judged_by_ggmls_own_rounding(ggml: ctypes.CDLL) -> None:
    bits, exact = dense_values()
    packed = np.empty((len(exact), 34), np.uint8)
    by_ggml(ggml, "quantize_row_q8_0_ref", exact, packed, exact.size)
    source = bits.view(np.uint8)
    assert Q8_0().equal([source], packed)
    packed[123, 17] ^= 1
    scales, codes = Q8_0().differing([source], packed)
    assert not scales.any()
    assert np.argwhere(codes).tolist() == [[123, 15]]
