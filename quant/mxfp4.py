"""MXFP4: blocks of 32 four-bit floats that share one scale. The only module that knows nibbles.

The format is "OCP Microscaling Formats (MX) Specification" v1.0, sections 5 and 6. An element is
E2M1: a sign bit, two exponent bits with bias 1, one mantissa bit. The block's scale is E8M0: a bare
biased exponent, ``2**(byte - 127)``, where the byte 255 means NaN. A value is element times scale.

Two layouts hold a block's codes ``e[0..31]``:

    Hugging Face   blocks[16]   byte j = e[2j] | e[2j+1] << 4          its scale: another tensor
    ggml           block[17]    byte 0 = scale; byte 1+j = e[j] | e[j+16] << 4

Read as one 128-bit number, the Hugging Face block is the codes in order, and ggml's is the nibbles
of its two halves shuffled together. `repack` and `unpack` do that shuffle on 64-bit words in pieces
that stay in the cache; numpy releases the GIL meanwhile, so threads add up. `codes_from_hf`,
`codes_from_ggml` and `equal` read each layout from its definition and share nothing with the
shuffle, so that they can prove it.

Every function takes any leading shape: below, ``n`` may be ``rows, blocks`` as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptoss.files.errors import GptossError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

BLOCK = 32
"""Values in a block."""
HF_BYTES = 16
GGML_BYTES = 17

E2M1 = (
    0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0,
    -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
)  # fmt: skip
"""The value of each 4-bit code."""

E8M0_BIAS = 127
E8M0_NAN = 255


class NotFiniteError(GptossError):
    """MXFP4 elements have no NaN and no infinity; ``block`` and ``lane`` say where one was met."""

    def __init__(self, block: tuple[int, ...], lane: int, value: float) -> None:
        super().__init__(
            f"MXFP4 cannot hold {value} (block {', '.join(map(str, block))}, lane {lane}): "
            "repair the source weights"
        )
        self.block = block
        self.lane = lane
        self.value = value


# --- layouts ----------------------------------------------------------------------------------

_PIECE = 16384
"""Blocks worked on at once: 256 KiB of input, so that a piece and its scratch about fit in L2."""

_LOW = np.uint64(0x0F0F0F0F0F0F0F0F)
_HIGH = np.uint64(0xF0F0F0F0F0F0F0F0)
_NIBBLE = np.uint64(4)
# Unaligned on purpose: the 17 bytes of block_mxfp4 as a scale and two 64-bit words.
_GGML = np.dtype([("scale", "u1"), ("codes", "<u8", 2)])


def repack(blocks: Bytes, scales: Bytes, out: Bytes) -> None:
    """Hugging Face blocks ``[n, 16]`` and scales ``[n]`` to ggml's ``out[n, 17]``.

    All are uint8 and may be views whose last axis is contiguous (every second row of a gate/up
    tensor, say). Raises ValueError when shapes or dtypes do not fit together.
    """
    _check_layouts(blocks, scales, out)
    words = blocks.view("<u8")
    target = out.view(_GGML)[..., 0]
    for piece in _pieces(scales.shape):
        first, last = words[piece][..., 0], words[piece][..., 1]  # e[0..15], e[16..31]
        even = last & _LOW  # byte k: e[2k] | e[2k+16] << 4
        even <<= _NIBBLE
        even |= first & _LOW
        odd = first >> _NIBBLE  # byte k: e[2k+1] | e[2k+17] << 4
        odd &= _LOW
        odd |= last & _HIGH
        pairs = _bytes(odd).astype("<u2")
        pairs <<= 8
        pairs |= _bytes(even)
        target["scale"][piece] = scales[piece]
        target["codes"][piece] = pairs.view("<u8")


def unpack(ggml: Bytes, blocks_out: Bytes, scales_out: Bytes) -> None:
    """The inverse of `repack`: ggml's ``[n, 17]`` to blocks ``[n, 16]`` and scales ``[n]``."""
    _check_layouts(blocks_out, scales_out, ggml)
    source = ggml.view(_GGML)[..., 0]
    target = blocks_out.view("<u8")
    for piece in _pieces(scales_out.shape):
        pairs = np.ascontiguousarray(source["codes"][piece]).view("<u2")
        even = pairs.astype(np.uint8).view("<u8")[..., 0]
        pairs >>= 8
        odd = pairs.astype(np.uint8).view("<u8")[..., 0]
        target[piece][..., 0] = (even & _LOW) | ((odd & _LOW) << _NIBBLE)
        target[piece][..., 1] = ((even >> _NIBBLE) & _LOW) | (odd & _HIGH)
        scales_out[piece] = source["scale"][piece]


def codes_from_hf(blocks: Bytes) -> Bytes:
    """The codes ``[n, 32]``, each 0..15, of Hugging Face blocks ``[n, 16]``."""
    codes = np.empty((*blocks.shape[:-1], BLOCK), np.uint8)
    np.bitwise_and(blocks, 0x0F, out=codes[..., 0::2])
    np.right_shift(blocks, 4, out=codes[..., 1::2])
    return codes


def codes_from_ggml(ggml: Bytes) -> Bytes:
    """The codes ``[n, 32]``, each 0..15, of ggml blocks ``[n, 17]``."""
    codes = np.empty((*ggml.shape[:-1], BLOCK), np.uint8)
    np.bitwise_and(ggml[..., 1:], 0x0F, out=codes[..., :16])
    np.right_shift(ggml[..., 1:], 4, out=codes[..., 16:])
    return codes


def equal(blocks: Bytes, scales: Bytes, ggml: Bytes) -> bool:
    """Whether Hugging Face blocks and scales hold the same codes and scales as ggml's blocks.

    Shapes as for `repack`. Decodes ggml's nibbles into the order of the codes, 16 to a word, in
    which a Hugging Face block has them already. Four times as fast as comparing codes byte by
    byte, which `codes_from_hf` and `codes_from_ggml` are for once a difference is to be placed.
    """
    _check_layouts(blocks, scales, ggml)
    words = blocks.view("<u8")
    found = ggml.view(_GGML)[..., 0]
    for piece in _pieces(scales.shape):
        packed = np.ascontiguousarray(found["codes"][piece])
        low = packed & _LOW  # bytes: e[0], e[1], ... e[15]
        packed >>= _NIBBLE
        packed &= _LOW  # bytes: e[16], e[17], ... e[31]
        if (
            (scales[piece] != found["scale"][piece]).any()
            or (_sixteen_codes(low) != words[piece][..., 0]).any()
            or (_sixteen_codes(packed) != words[piece][..., 1]).any()
        ):
            return False
    return True


def _sixteen_codes(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Pairs of words ``[..., 2]``, a code in each byte, as one word with a code in each nibble."""
    words |= words >> _NIBBLE  # each 16 bits: now two codes in the lower byte
    codes: NDArray[np.uint64] = words.view("<u2").astype(np.uint8).view("<u8")
    return codes[..., 0]


def hf_from_codes(codes: Bytes) -> Bytes:
    """The Hugging Face blocks ``[n, 16]`` that hold the codes ``[n, 32]``."""
    return codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))


def _check_layouts(blocks: Bytes, scales: Bytes, ggml: Bytes) -> None:
    lead = scales.shape
    if not lead or blocks.shape != (*lead, HF_BYTES) or ggml.shape != (*lead, GGML_BYTES):
        raise ValueError(
            f"blocks {blocks.shape}, scales {scales.shape} and ggml {ggml.shape} "
            f"are not [n, {HF_BYTES}], [n] and [n, {GGML_BYTES}]"
        )
    if any(array.dtype != np.uint8 for array in (blocks, scales, ggml)):
        raise ValueError("MXFP4 layouts are uint8")


def _pieces(lead: tuple[int, ...]) -> Iterator[slice]:
    step = max(1, _PIECE // max(1, prod(lead[1:])))
    for start in range(0, lead[0], step):
        yield slice(start, start + step)


def _bytes(words: NDArray[Any]) -> Bytes:
    octets: Bytes = words[..., None].view(np.uint8)
    return octets


# --- values -----------------------------------------------------------------------------------


def _value_table() -> Floats:
    """float32 value by ``scale << 4 | code``.

    Exact: the smallest, 2**-128, is a subnormal float32. What float32 cannot hold (2.0 * 2**127 and
    above; the standard leaves this case open) is infinite, as IEEE 754 rounds it.
    """
    scales = np.ldexp(1.0, np.arange(256) - E8M0_BIAS)
    scales[E8M0_NAN] = np.nan
    with np.errstate(over="ignore"):
        values: Floats = np.multiply.outer(scales, np.array(E2M1)).astype(np.float32)
    return values.reshape(-1)


_VALUES = _value_table()


def decode(codes: Bytes, scales: Bytes) -> Floats:
    """The values ``float32[n, 32]`` of codes ``[n, 32]`` under scales ``[n]``, exact.

    A scale byte of 255 makes the whole block NaN. Raises ValueError on a code above 15.
    """
    if codes.size and codes.max() > 15:
        raise ValueError(f"an E2M1 code is 0..15, found {codes.max()}")
    index = scales[..., None].astype(np.uint16) << np.uint16(4)
    values: Floats = _VALUES[index | codes]
    return values


# Halfway points between neighbouring magnitudes. A tie goes to the even code, so a value equal to
# the midpoint above an even code stays, and above an odd code moves up.
_MIDPOINTS = ((0.25, False), (0.75, True), (1.25, False), (1.75, True), (2.5, False), (3.5, True),
              (5.0, False))  # fmt: skip


def ocp_scales(values: Floats) -> Bytes:
    """Block scales ``uint8[n]`` by the standard's rule (OCP MX v1.0, section 6.3).

    ``2**(floor(log2(amax)) - 2)``, 2 being the exponent of E2M1's largest power of two: the largest
    magnitude comes to lie in [4, 8) scales. Clamped to 2**-127; a block of zeros gets that too.
    """
    amax: Floats = np.abs(values).max(axis=-1)
    exponent = (amax.view(np.uint32) >> 23).astype(np.int16)  # float32 and E8M0 share the bias
    return np.maximum(exponent - 2, 0).astype(np.uint8)


def codes_at(values: Floats, scales: Bytes) -> Bytes:
    """The nearest codes ``uint8[n, 32]`` to float32 ``values[n, 32]`` under given scales ``[n]``.

    Ties to the even code; magnitudes above 6 scales saturate to 6. Scales are 0..254.
    """
    # A power of two: the product is exact, but for results so small that they round to 0 anyway.
    inverse = np.ldexp(np.float32(1), E8M0_BIAS - scales.astype(np.int32))
    with np.errstate(over="ignore"):
        magnitude = np.abs(values) * inverse[..., None]
    codes = np.signbit(values).astype(np.uint8)
    codes <<= 3
    for midpoint, tie_moves_up in _MIDPOINTS:
        codes += (magnitude >= midpoint) if tie_moves_up else (magnitude > midpoint)
    return codes


def encode(values: Floats) -> tuple[Bytes, Bytes]:
    """Codes ``uint8[n, 32]`` and scales ``uint8[n]`` of least squared error for ``float32[n, 32]``.

    Scales tried, in this order, a later one taken only if strictly better: the standard's
    (`ocp_scales`), its double, its half. No other can win. In units of the standard's scale the
    largest magnitude m is in [4, 8). From its fourfold on, every grid point that a value up to 8
    rounds to is also a point of the double's grid. From its quarter on, m saturates at 1.5 or
    less and loses at least 6.25 over the standard's scale, while the other 31 gain at most 1/16
    each.

    So a block that lies on the grid of any scale comes back exactly (by value: 0.5 at one scale
    is 1.0 at half of it). Bound: the standard's rule keeps every error below amax / 4, and the
    squared error of a block is here never above that rule's. Deterministic on every machine:
    elementwise IEEE arithmetic, sums in a fixed order.

    Raises `NotFiniteError` on NaN or infinity, ValueError for another dtype or shape.
    """
    if values.dtype != np.float32 or values.ndim < 2 or values.shape[-1] != BLOCK:
        raise ValueError(
            f"MXFP4 is encoded from float32[n, {BLOCK}], not {values.dtype}{[*values.shape]}"
        )
    _require_finite(values)
    codes = np.empty(values.shape, np.uint8)
    scales = np.empty(values.shape[:-1], np.uint8)
    for piece in _pieces(scales.shape):
        codes[piece], scales[piece] = _encode_piece(values[piece])
    return codes, scales


def _encode_piece(values: Floats) -> tuple[Bytes, Bytes]:
    scales = ocp_scales(values)
    codes = codes_at(values, scales)
    error = squared_error(values, codes, scales)
    standard = scales.astype(np.int16)
    for step in (1, -1):
        other_scales = np.maximum(standard + step, 0).astype(np.uint8)
        other_codes = codes_at(values, other_scales)
        other_error = squared_error(values, other_codes, other_scales)
        better = other_error < error
        codes[better] = other_codes[better]
        scales[better] = other_scales[better]
        error[better] = other_error[better]
    return codes, scales


def squared_error(values: Floats, codes: Bytes, scales: Bytes) -> NDArray[np.float64]:
    """The sum over each block, ``float64[n]``, of the squared differences to what decodes."""
    difference = decode(codes, scales).astype(np.float64)
    difference -= values
    difference *= difference
    # Pairwise by halves: numpy's own sum may add in another order on another machine.
    for half in (16, 8, 4, 2, 1):
        difference = difference[..., :half] + difference[..., half:]
    total: NDArray[np.float64] = difference[..., 0]
    return total


def _require_finite(values: Floats) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        *block, lane = (int(i) for i in np.argwhere(~finite)[0])
        raise NotFiniteError(tuple(block), lane, float(values[(*block, lane)]))
