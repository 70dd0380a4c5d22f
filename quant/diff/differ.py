"""Compare two models tensor by tensor: a base and its fine-tune, or two conversions of one.

Each side may be a checkpoint or a GGUF: tensors are matched by their GGUF names. Values are
compared, not bytes (`compare_tensors`): a tensor stored in another type counts as changed where its
values differ. All of both models is read, in chunks, by a few threads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import prod
from pathlib import Path

from gptoss.formats.tensor_map import tensors
from gptoss.progress import Progress
from gptoss.quant import mxfp4
from gptoss.quant.diff.compare_tensors import Difference, Pair, Side, sum_of_squares, tasks
from gptoss.quant.diff.result import Diff, ExpertChange, TensorChange
from gptoss.quant.model.defects import DefectKind
from gptoss.quant.model.loader import open_model
from gptoss.quant.model.reader import TensorReader
from gptoss.quant.model.tensors import GATE_UP_BIAS, Model, Part
from gptoss.quant.parallel import WORKERS, as_finished
from gptoss.quant.verify.metadata import compare_settings
from gptoss.quant.verify.program_keys import (
    ProgramKeys,
    compare_program_keys,
    program_keys_of_checkpoint,
    program_keys_of_gguf,
)


def diff(
    a: str | os.PathLike[str], b: str | os.PathLike[str], *, progress: Progress | None = None
) -> Diff:
    """Compare two models A and B, each a checkpoint's folder or a GGUF file, and return the
    ``Diff``.

    ``progress`` is called from time to time with the bytes compared so far and the total. Raises
    ``InvalidFileError`` if either is corrupt or modified while being read,
    ``UnsupportedModelError`` if it is not a gpt-oss model.
    """
    models = open_model(Path(a)), open_model(Path(b))
    pairs, apart, unread = _match(*models)
    with TensorReader() as one, TensorReader() as other:
        found = _compare(pairs, one, other, progress)
    for model in models:
        model.check_unchanged()
    changes = [_change(name, pair, found[name]) for name, pair in pairs.items()]
    equal = [name for name, change in zip(pairs, changes, strict=True) if change is None]
    return Diff(
        str(a),
        str(b),
        sum(pair.nbytes for pair in pairs.values()),
        len(equal),
        sum(pairs[name].is_expert for name in equal),
        tuple(change for change in changes if change is not None),
        apart,
        unread,
        tuple(compare_settings(*models)),
        zero_signs=tuple(name for name in equal if any(it.zero_signs for it in found[name])),
        one_container=models[0].is_gguf == models[1].is_gguf,
        program_keys=compare_program_keys(*map(_program_keys, models)),
    )


def _program_keys(model: Model) -> ProgramKeys:
    if model.tokenizer is None:
        return program_keys_of_gguf(model.metadata)
    return program_keys_of_checkpoint(model.path, model.tokenizer)


# --- what is compared with what ---------------------------------------------------------------


def _match(a: Model, b: Model) -> tuple[dict[str, Pair], tuple[str, ...], tuple[str, ...]]:
    """Match the tensors of models A and B by name: pairs to compare, those in only one or of
    different shapes, those that cannot be read.
    """
    ours, theirs = _sides(a), _sides(b)
    extra = _unknown(a), _unknown(b)
    unread = {*_unread(a), *_unread(b), *(extra[0] & extra[1])}
    apart = [
        f"{name}: only in {a.path if name in ours.keys() | extra[0] else b.path}"
        for name in sorted(((ours.keys() | extra[0]) ^ (theirs.keys() | extra[1])) - unread)
    ]
    pairs: dict[str, Pair] = {}
    for name in (name for name in ours if name in theirs):
        pair = Pair(ours[name], theirs[name])
        if pair.a.shape == pair.b.shape:
            pairs[name] = pair
        else:
            apart.append(f"{name}: shape {pair.a.shape} and {pair.b.shape}")
    return pairs, tuple(apart), tuple(sorted(unread))


def _sides(model: Model) -> dict[str, Side]:
    """Map one compared model's tensors by GGUF name; gate and up stored as one tensor are listed
    separately.
    """
    sides: dict[str, Side] = {}
    for tensor in model.dense:
        prefix = "" if tensor.layer is None else f"blk.{tensor.layer}."
        if tensor.role != GATE_UP_BIAS:
            sides[prefix + tensor.role] = Side(tensor, None, tensor.shape)
            continue
        experts, rows = tensor.shape
        for turn, part in enumerate((Part.GATE, Part.UP)):
            name = f"{prefix}ffn_{part}_exps.bias"
            sides[name] = Side(tensor, None, (experts, rows // 2), turn)
    for it in model.experts:
        for part in it.parts:
            shape = (it.experts, it.rows // len(it.parts), it.columns)
            sides[f"blk.{it.layer}.ffn_{part}_exps.weight"] = Side(it, part, shape)
    return sides


def _unknown(model: Model) -> set[str]:
    """List a compared model's tensors that gpt-oss does not have, whose values are not compared."""
    return {it.tensor for it in model.defects if it.kind is DefectKind.TENSOR_UNKNOWN}


def _unread(model: Model) -> Iterator[str]:
    """List the GGUF names of a compared model's tensors whose values cannot be read."""
    unread = set(model.unread)
    for named in tensors(model.hparams):
        stored = {named.gguf, *(source.name for source in named.sources)}
        if (stored | {name.removesuffix("_blocks") for name in stored}) & unread:
            yield named.gguf


# --- the comparison ---------------------------------------------------------------------------


def _compare(
    pairs: Mapping[str, Pair], one: TensorReader, other: TensorReader, progress: Progress | None
) -> dict[str, list[Difference]]:
    """Run the comparison tasks of all pairs of models A and B on threads, and sum up each pair's
    differences.
    """
    total = sum(pair.nbytes for pair in pairs.values())
    done = 0
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            work = {
                name: [pool.submit(task) for task in tasks(pair, one, other)]
                for name, pair in pairs.items()
            }
            names = {task: name for name, them in work.items() for task in them}
            for task in as_finished(names):
                task.result()
                done += pairs[names[task]].nbytes // len(work[names[task]])
                if progress is not None:
                    progress(done, total)
            found = {name: [task.result() for task in them] for name, them in work.items()}
            _add_squares(pool, pairs, found, one)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return found


def _add_squares(
    pool: ThreadPoolExecutor,
    pairs: Mapping[str, Pair],
    found: Mapping[str, Sequence[Difference]],
    files: TensorReader,
) -> None:
    """Add the squares of A's MXFP4 values to the differences of tensors that changed."""
    for name, pair in pairs.items():
        if pair.is_packed and any(it.changed for it in found[name]):
            squares = pool.map(partial(sum_of_squares, pair.a, files), range(len(found[name])))
            for it, square in zip(found[name], squares, strict=True):
                it.square = square


def _change(name: str, pair: Pair, found: list[Difference]) -> TensorChange | None:
    total = Difference.total(found)
    if not total.changed:
        return None
    experts = tuple(
        ExpertChange(i, it.changed, it.relative, it.largest)
        for i, it in enumerate(found)
        if it.changed and pair.is_expert
    )
    return TensorChange(
        name,
        pair.a.tensor.layer,
        prod(pair.a.shape) // (mxfp4.BLOCK if pair.is_expert else 1),
        total.changed,
        total.relative,
        total.largest,
        (pair.a.stored, pair.b.stored),
        len(found) if pair.is_expert else 0,
        experts,
    )
