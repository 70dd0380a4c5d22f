"""Whether a fine-tune's expert matrices are transposed: by shape, or if square by their values.

A fine-tune saved in floats has its experts' weights inputs first; some tools write the transpose.
The published models have as many inputs as outputs, so the shape of ``down_proj`` does not show it.
Its values may: a fine-tune is close to its base, and far from its base's transpose; and what was
widened from MXFP4 lies on MXFP4's grid along its inputs, block by block, and not along its outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import fields

import numpy as np

from gptoss.converter.transforms.base import Bytes, Floats
from gptoss.converter.transforms.floats import STORED, widen
from gptoss.errors import CheckpointError
from gptoss.formats.checkpoint import Checkpoint, StoredTensors
from gptoss.formats.hparams import HParams
from gptoss.formats.safetensors import TensorInfo
from gptoss.formats.tensor_map import NamedTensor, TensorRole, tensors
from gptoss.quant import mxfp4

COMPARED = 2 * mxfp4.BLOCK
"""Rows of the first expert that are compared with the base's, and as many columns."""

SAMPLED = 4 * mxfp4.BLOCK
"""Rows of the first expert that are enough to see on which grid they lie."""

_SHAPES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_local_experts")


def square(hparams: HParams, stored: StoredTensors) -> list[NamedTensor]:
    """List a fine-tune's float expert tensors that are square, so their shape does not show whether
    they are transposed.
    """
    return [
        named
        for named in tensors(hparams)
        if named.floats
        and named.floats.shape[1] == named.floats.shape[2]
        and len(stored[named.gguf]) == 1
    ]


def check_base(checkpoint: Checkpoint, base: Checkpoint, stored: StoredTensors) -> None:
    """Raise ``CheckpointError`` unless ``base`` has MXFP4 experts of the checkpoint's shapes, to
    compare their orientation with.
    """
    for field in fields(HParams):
        ours, its = (getattr(it.hparams, field.name) for it in (checkpoint, base))
        if field.name in _SHAPES and ours != its:
            raise CheckpointError(
                f"{base.folder}: is not the base of {checkpoint.folder}: its {field.name} is "
                f"{its}, not {ours}"
            )
    for named in tensors(base.hparams):
        if named.role is TensorRole.EXPERTS and len(stored[named.gguf]) != 2:
            raise CheckpointError(
                f"{base.folder}: its experts are floats; a base must have MXFP4 experts"
            )


def inputs_first(
    stored_tensors: StoredTensors, base: Checkpoint, base_stored: StoredTensors
) -> Iterator[tuple[str, bool]]:
    """Find whether each square expert tensor has its inputs first (is transposed), by comparing its
    values with the base's.

    Raises ``CheckpointError`` when a tensor resembles neither the base's nor its transpose.
    """
    for named in square(base.hparams, stored_tensors):
        (info,) = stored_tensors[named.gguf]
        n = min(COMPARED, info.shape[-1])
        stored = _rows(info, n)
        outputs_first, transposed = _base_rows(base_stored[named.gguf], n)
        to_outputs, to_inputs = (_squared(stored - it) for it in (outputs_first, transposed))
        if min(to_outputs, to_inputs) > _squared(stored) / 2:
            raise CheckpointError(
                f"{info.file}: tensor {info.name!r} resembles neither the one in {base.folder} nor "
                "its transpose; is that its base?"
            )
        yield (named.floats or named.sources[0]).name, to_inputs <= to_outputs


def inputs_first_by_grid(
    squares: Sequence[NamedTensor], stored_tensors: StoredTensors
) -> dict[str, bool]:
    """Find whether square expert tensors have their inputs first (are transposed) without a base,
    where MXFP4's grid shows it.

    If all that show it agree, the others were saved by the same tool and are taken likewise.
    """
    found: dict[str, bool | None] = {}
    for named in squares:
        (info,) = stored_tensors[named.gguf]
        axis = mxfp4.block_axis(_rows(info, min(SAMPLED, info.shape[1])))
        found[(named.floats or named.sources[0]).name] = None if axis is None else axis == 0
    known = {it for it in found.values() if it is not None}
    if len(known) == 1:
        return dict.fromkeys(found, known.pop())
    return {name: it for name, it in found.items() if it is not None}


def inputs_first_by_shape(hparams: HParams, stored: StoredTensors) -> dict[str, bool]:
    """Find whether each float expert tensor has its inputs first, by comparing its shape with the
    declared one; the shape of a square tensor does not show that it is transposed.
    """
    return {
        named.floats.name: stored[named.gguf][0].shape == named.floats.shape
        for named in tensors(hparams)
        if named.floats and len(stored[named.gguf]) == 1
    }


def assume_declared(
    hparams: HParams, stored_tensors: StoredTensors, squares: Sequence[NamedTensor]
) -> str:
    """Note that square expert tensors are assumed to have their inputs first, as declared.

    Raises ``CheckpointError`` when another expert tensor's shape shows that it is transposed.
    """
    for named in tensors(hparams):
        stored = stored_tensors[named.gguf]
        if named.floats and len(stored) == 1 and stored[0].shape != named.floats.shape:
            raise CheckpointError(
                f"{stored[0].file}: tensor {stored[0].name!r} is stored outputs first, unlike "
                f"the declared layout, and {squares[0].gguf} is square; use --base to resolve it"
            )
    return (
        f"{len(squares)} down_proj are square, so their shape does not show whether they are "
        "transposed; assumed inputs first, as declared (--base FOLDER compares with the base)"
    )


def _rows(info: TensorInfo, n: int) -> Floats:
    """Read the first rows of a square tensor's first expert as stored, to find out whether the
    matrix is transposed.
    """
    row = info.nbytes // info.shape[0] // info.shape[1]
    raw = np.empty(n * row, np.uint8)
    with closing(info.file):
        info.file.read_into(info.offset, raw)
    return widen(raw.view(STORED[info.dtype]), info.dtype).reshape(n, -1)


def _base_rows(infos: tuple[TensorInfo, ...], n: int) -> tuple[Floats, Floats]:
    """Read the first rows of the base's first expert, outputs first, and of its transpose, to
    compare the orientation with.
    """
    blocks, scales = (_first_expert(info) for info in infos)
    rows = mxfp4.decode(mxfp4.codes_from_hf(blocks[:n]), scales[:n])
    k = n // mxfp4.BLOCK
    columns = mxfp4.decode(mxfp4.codes_from_hf(blocks[:, :k]), scales[:, :k])
    return rows.reshape(n, -1), columns.reshape(-1, n).T


def _first_expert(info: TensorInfo) -> Bytes:
    raw = np.empty(info.nbytes // info.shape[0], np.uint8)
    with closing(info.file):
        info.file.read_into(info.offset, raw)
    return raw.reshape(info.shape[1:])


def _squared(values: Floats) -> float:
    return float(np.square(values, dtype=np.float64).sum())
