"""MXFP4: blocks of 32 four-bit floats that share one scale: the tables and the byte layouts.

The format is "OCP Microscaling Formats (MX) Specification" v1.0, sections 5 and 6. An element is
E2M1: a sign bit, two exponent bits with bias 1, one mantissa bit. The block's scale is E8M0: only a
biased exponent, ``2**(byte - 127)``, where the byte 255 means NaN. A value is element times scale.

Two layouts hold a block's codes ``e[0..31]``:

    Hugging Face   blocks[16]   byte j = e[2j] | e[2j+1] << 4          scales in a separate tensor
    ggml           block[17]    byte 0 = scale; byte 1+j = e[j] | e[j+16] << 4

Read as one little-endian 128-bit number, the Hugging Face block has the codes in order; ggml's
interleaves the two halves nibble by nibble. `repack` and `unpack` convert on 64-bit words, in
chunks that fit the cache; numpy releases the GIL, so threads run in parallel. `codes_from_hf`,
`codes_from_ggml` and `equal` follow each layout's definition and share no code with the
conversion, so they can verify it.

Every function accepts any leading shape: ``n`` below may also be ``rows, blocks``.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Words = NDArray[np.uint64]

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


# --- layouts ----------------------------------------------------------------------------------

_CHUNK = 16384
"""Blocks per chunk: 256 KiB of input, so that a chunk and its scratch arrays fit in L2."""

_LOW = np.uint64(0x0F0F0F0F0F0F0F0F)
_HIGH = np.uint64(0xF0F0F0F0F0F0F0F0)
_NIBBLE = np.uint64(4)
_BYTE = np.uint64(8)
# Unaligned on purpose: the 17 bytes of block_mxfp4. complex128 serves only as a 16-byte item, never
# for arithmetic: numpy moves it at once, while two 8-byte words take five times as long.
_GGML = np.dtype([("scale", "u1"), ("codes", "<c16")])


def repack(blocks: Bytes, scales: Bytes, out: Bytes) -> None:
    """Convert MXFP4 blocks from Hugging Face's layout, ``[n, 16]`` and scales ``[n]``, to ggml's
    layout ``out[n, 17]``.

    All are uint8. Views are accepted if their last axis is contiguous (for example every second
    row of a gate/up tensor). Raises ValueError when shapes or dtypes do not match.
    """
    _check_layouts(blocks, scales, out)
    words = blocks.view("<u8")
    target = out.view(_GGML)[..., 0]
    step, row = _step(scales.shape), scales.shape[1:]
    scratch = np.empty((3, step, *row), "<u8")
    wide = np.empty((2, step, *row, 8), "<u2")
    for chunk in _chunks(scales.shape):
        n = len(scales[chunk])
        first, last, even = scratch[:, :n]
        pairs, lower = wide[:, :n]
        np.copyto(first, words[chunk][..., 0])  # e[0..15]
        np.copyto(last, words[chunk][..., 1])  # e[16..31]
        np.bitwise_and(last, _LOW, out=even)  # byte k: e[2k] | e[2k+16] << 4
        even <<= _NIBBLE
        last &= _HIGH  # byte k: e[2k+1] | e[2k+17] << 4
        last |= (first >> _NIBBLE) & _LOW
        first &= _LOW
        even |= first
        np.copyto(pairs, _bytes(last))
        wider = pairs.view("<u8")
        wider <<= _BYTE  # each pair uses only its lower byte, so nothing spills into the next
        np.copyto(lower, _bytes(even))
        pairs |= lower
        target["scale"][chunk] = scales[chunk]
        target["codes"][chunk] = pairs.view("<c16")[..., 0]


def unpack(ggml: Bytes, blocks_out: Bytes, scales_out: Bytes) -> None:
    """Convert MXFP4 blocks from ggml's layout ``[n, 17]`` to Hugging Face's, blocks ``[n, 16]`` and
    scales ``[n]``; the inverse of `repack`.
    """
    _check_layouts(blocks_out, scales_out, ggml)
    source = ggml.view(_GGML)[..., 0]
    target = blocks_out.view("<u8")
    for chunk in _chunks(scales_out.shape):
        pairs = _words(source["codes"][chunk]).view("<u2")
        even = pairs.astype(np.uint8).view("<u8")[..., 0]
        pairs >>= 8
        odd = pairs.astype(np.uint8).view("<u8")[..., 0]
        target[chunk][..., 0] = (even & _LOW) | ((odd & _LOW) << _NIBBLE)
        target[chunk][..., 1] = ((even >> _NIBBLE) & _LOW) | (odd & _HIGH)
        scales_out[chunk] = source["scale"][chunk]


def codes_from_hf(blocks: Bytes) -> Bytes:
    """Unpack the E2M1 codes ``[n, 32]``, each 0..15, of MXFP4 blocks ``[n, 16]`` in Hugging Face's
    layout.
    """
    codes = np.empty((*blocks.shape[:-1], BLOCK), np.uint8)
    np.bitwise_and(blocks, 0x0F, out=codes[..., 0::2])
    np.right_shift(blocks, 4, out=codes[..., 1::2])
    return codes


def codes_from_ggml(ggml: Bytes) -> Bytes:
    """Unpack the E2M1 codes ``[n, 32]``, each 0..15, of MXFP4 blocks ``[n, 17]`` in
    ggml's layout.
    """
    return codes_from_ggml_nibbles(ggml[..., 1:])


def codes_from_ggml_nibbles(nibbles: Bytes) -> Bytes:
    """Unpack the E2M1 codes ``[n, 32]`` of MXFP4 blocks in ggml's layout without the scale byte,
    ``[n, 16]``.
    """
    codes = np.empty((*nibbles.shape[:-1], BLOCK), np.uint8)
    np.bitwise_and(nibbles, 0x0F, out=codes[..., :16])
    np.right_shift(nibbles, 4, out=codes[..., 16:])
    return codes


def equal(blocks: Bytes, scales: Bytes, ggml: Bytes) -> bool:
    """Return whether MXFP4 blocks in Hugging Face's layout hold the same codes and scales as those
    in ggml's.

    Shapes as for `repack`. It reorders ggml's nibbles into code order, 16 to a word, as Hugging
    Face stores them. That is four times as fast as comparing one code per byte; to locate a
    difference, use `codes_from_hf` and `codes_from_ggml`.
    """
    _check_layouts(blocks, scales, ggml)
    words = blocks.view("<u8")
    found = ggml.view(_GGML)[..., 0]
    for chunk in _chunks(scales.shape):
        packed = _words(found["codes"][chunk])
        low = packed & _LOW  # bytes: e[0], e[1], ... e[15]
        packed >>= _NIBBLE
        packed &= _LOW  # bytes: e[16], e[17], ... e[31]
        if (
            (scales[chunk] != found["scale"][chunk]).any()
            or (_sixteen_codes(low) != words[chunk][..., 0]).any()
            or (_sixteen_codes(packed) != words[chunk][..., 1]).any()
        ):
            return False
    return True


def _sixteen_codes(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Pack word pairs ``[..., 2]`` with one MXFP4 code per byte into one word with a code per
    nibble.
    """
    words |= words >> _NIBBLE  # the low byte of every 16 bits now holds two codes
    codes: NDArray[np.uint64] = words.view("<u2").astype(np.uint8).view("<u8")
    return codes[..., 0]


def ggml_fields(ggml: Bytes) -> tuple[Bytes, NDArray[np.uint64]]:
    """Split MXFP4 blocks ``[n, 17]`` in ggml's layout into scales ``[n]`` (a view) and codes as
    words ``[n, 2]`` (a copy).
    """
    blocks = ggml.view(_GGML)[..., 0]
    return blocks["scale"], _words(blocks["codes"])


def hf_words(ggml: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Reorder words ``[..., 2]`` of MXFP4 codes from ggml's layout to Hugging Face's, 16 codes to a
    word.
    """
    words = np.empty_like(ggml)
    words[..., 0] = _sixteen_codes(ggml & _LOW)
    words[..., 1] = _sixteen_codes((ggml >> _NIBBLE) & _LOW)
    return words


def hf_from_codes(codes: Bytes) -> Bytes:
    """Pack E2M1 codes ``[n, 32]`` into MXFP4 blocks ``[n, 16]`` in Hugging Face's layout."""
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


def _step(lead: tuple[int, ...]) -> int:
    """Return how many rows of MXFP4 blocks are repacked per chunk."""
    return max(1, _CHUNK // max(1, prod(lead[1:])))


def _chunks(lead: tuple[int, ...]) -> Iterator[slice]:
    step = _step(lead)
    for start in range(0, lead[0], step):
        yield slice(start, start + step)


def _words(codes: NDArray[Any]) -> NDArray[np.uint64]:
    """Copy the 16 code bytes of each MXFP4 block in ggml's layout to words ``[n, 2]``."""
    words: NDArray[np.uint64] = codes.copy()[..., None].view("<u8")
    return words


def _bytes(words: NDArray[Any]) -> Bytes:
    octets: Bytes = words[..., None].view(np.uint8)
    return octets


# --- values -----------------------------------------------------------------------------------


def _value_table() -> Floats:
    """Build the decoding table of MXFP4: the float32 value for each ``scale << 4 | code``.

    Exact: the smallest, 2**-128, is a subnormal float32. Values beyond float32's range (2.0 *
    2**127 and above) become infinity, as IEEE 754 rounds them; the standard leaves this case open.
    """
    scales = np.ldexp(1.0, np.arange(256) - E8M0_BIAS)
    scales[E8M0_NAN] = np.nan
    with np.errstate(over="ignore"):
        values: Floats = np.multiply.outer(scales, np.array(E2M1)).astype(np.float32)
    return values.reshape(-1)


_VALUES = _value_table()


def decode(codes: Bytes, scales: Bytes) -> Floats:
    """Decode MXFP4 codes ``[n, 32]`` with E8M0 scales ``[n]`` to their exact values ``float32[n,
    32]``.

    A scale byte of 255 makes the whole block NaN. Raises ValueError for a code above 15.
    """
    if codes.size and codes.max() > 15:
        raise ValueError(f"an E2M1 code is 0..15, found {codes.max()}")
    index = scales[..., None].astype(np.uint16) << np.uint16(4)
    values: Floats = _VALUES[index | codes]
    return values
