"""Compare the settings of two models: hyperparameters and vocabulary, as llama.cpp reads them.

Equal weights are not enough: without its ``rope.*`` keys a gpt-oss GGUF loads and answers, but the
answers are wrong. Keys without effect on the result are not compared; see ``llama_cpp_keys``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from gptoss.errors import CheckpointError, UnsupportedModelError, quoted
from gptoss.formats.checkpoint import Checkpoint
from gptoss.formats.gguf import GgufFile
from gptoss.formats.gguf_strings import StringArray
from gptoss.formats.harmony_tokens import ENDS_OF_REPLY
from gptoss.formats.hparams import ARCHITECTURE, GGUF_KEYS, HParams
from gptoss.formats.llama_cpp_keys import ABSENT, computed_with, find_problems, show
from gptoss.formats.reply_ends import other_ends
from gptoss.formats.tokenizer_json import TOKENIZER
from gptoss.quant.model.defects import DefectKind
from gptoss.quant.model.tensors import Model
from gptoss.quant.model.vocabulary import read_vocabulary
from gptoss.quant.verify.result import KeyDifference

_HARMS = (
    DefectKind.KEY_UNUSABLE,
    DefectKind.VOCABULARY,
    DefectKind.TENSOR_UNUSABLE,
)
"""Defects that make llama.cpp fail or compute something else."""
_NO_DEFECT = "as gpt-oss has it"
_ARRAYS = (StringArray, tuple, list)
_END = object()
"""Placeholder for the elements that the shorter of two arrays does not have."""


def compare_keys(checkpoint: Checkpoint, gguf: GgufFile) -> tuple[KeyDifference, ...]:
    """Compare a GGUF's metadata with its checkpoint: every key with which llama.cpp would compute a
    different model.

    Raises ``UnsupportedModelError`` when the GGUF has another architecture, ``CheckpointError``
    when the checkpoint's tokenizer is missing or is not a gpt-oss tokenizer.
    """
    architecture = gguf.metadata.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise UnsupportedModelError(
            f"{gguf.path}: general.architecture is {quoted(architecture)}; only {ARCHITECTURE!r} "
            "can be verified"
        )
    if not (path := checkpoint.tokenizer / TOKENIZER).exists():
        raise CheckpointError(f"{path}: missing; --tokenizer names another folder that holds one")
    expected = _checkpoint_settings(checkpoint.hparams, checkpoint.tokenizer, checkpoint.config)
    differences = list(_compare(expected, computed_with(gguf.metadata)))
    differences += _other_ends(gguf.metadata)
    reported = {difference.key for difference in differences}
    for problem in find_problems(gguf):
        if problem.key.partition("[")[0] not in reported:
            differences.append(KeyDifference(problem.key, problem.expected, problem.found))
    return tuple(differences)


def _other_ends(metadata: Mapping[str, Any]) -> Iterator[KeyDifference]:
    """Report metadata keys with which llama.cpp would also end a reply at a token where gpt-oss
    does not.
    """
    for end in other_ends(metadata):
        expected = f"one of {', '.join(ENDS_OF_REPLY)}"
        if end.index is not None:
            expected = "a text that ends no reply"
        yield KeyDifference(end.key, expected, quoted(end.text), index=end.index)


def compare_settings(a: Model, b: Model) -> Iterator[KeyDifference]:
    """Compare the metadata of two models: every hyperparameter or vocabulary key that makes
    llama.cpp compute differently.

    Values of two GGUFs are compared exactly, as read. For a checkpoint without a tokenizer, only
    the hyperparameters are compared.
    """
    differences = list(_compare(_settings(a), _settings(b)))
    reported = {difference.key for difference in differences}
    differences += [it for it in _different_ends(a, b) if it.key not in reported]
    yield from differences
    reported = {difference.key for difference in differences}
    one, other = ({it.tensor: it.message for it in m.defects if it.kind in _HARMS} for m in (a, b))
    for key in {**one, **other}:
        if key.partition("[")[0] not in reported and one.get(key) != other.get(key):
            yield KeyDifference(key, one.get(key, _NO_DEFECT), other.get(key, _NO_DEFECT))


def _different_ends(a: Model, b: Model) -> Iterator[KeyDifference]:
    """Report the tokens at which llama.cpp would end a reply of one model only; of a checkpoint,
    none but gpt-oss's own.
    """
    one, other = (
        {(it.key, it.index): it.text for it in other_ends(model.metadata)}
        if model.tokenizer is None
        else {}
        for model in (a, b)
    )
    for place in {**one, **other}:
        if one.get(place) != other.get(place):
            key, index = place
            yield KeyDifference(key, _end(one.get(place)), _end(other.get(place)), index=index)


def _end(text: str | None) -> str:
    return "no end of a reply" if text is None else quoted(text)


def _settings(model: Model) -> dict[str, Any]:
    if model.tokenizer is None:
        return computed_with(model.metadata)
    return _checkpoint_settings(model.hparams, model.tokenizer, model.metadata)


def _checkpoint_settings(
    hparams: HParams, tokenizer: Path, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Express a checkpoint's hyperparameters and tokenizer as GGUF metadata to compare with; None
    in an array allows any value.

    Only tokenizer settings that its files state are included; none if there are no files.
    """
    stated: dict[str, Any] = {key: getattr(hparams, name) for name, key in GGUF_KEYS.items()}
    stated[f"{ARCHITECTURE}.attention.value_length"] = hparams.head_dim
    stated[f"{ARCHITECTURE}.rope.scaling.type"] = "yarn"
    stated["general.architecture"] = ARCHITECTURE
    if (tokenizer / TOKENIZER).exists():
        stated |= read_vocabulary(hparams.vocab_size, tokenizer, config)
    computed = computed_with(stated)
    return {k: v for k, v in computed.items() if k in stated or not k.startswith("tokenizer.")}


def _compare(expected: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[KeyDifference]:
    """Compare two sets of metadata keys; tokenizer keys are compared only if both
    sides have them.
    """
    for key in {**expected, **found}:
        if key.startswith("tokenizer.") and not (key in expected and key in found):
            continue
        one, other = expected.get(key), found.get(key)
        if isinstance(one, _ARRAYS) and isinstance(other, _ARRAYS):
            yield from _compare_arrays(key, one, other)
        elif not _same(one, other):
            yield KeyDifference(key, show(one), show(other))


def _compare_arrays(
    key: str, expected: Sequence[Any], found: Sequence[Any]
) -> Iterator[KeyDifference]:
    """Compare two arrays of metadata element by element; None matches any element."""
    wrong = [
        (i, e, f)
        for i, (e, f) in enumerate(zip_longest(expected, found, fillvalue=_END))
        if e != f and (e is _END or f is _END or (e is not None and f is not None))
    ]
    if wrong:
        i, e, f = wrong[0]
        yield KeyDifference(key, _element(e), _element(f), len(wrong), i)


def _element(value: object) -> str:
    return ABSENT if value is _END else show(value)


def _same(expected: object, found: object) -> bool:
    """Return whether two metadata values are equal, floats as float32, which is
    what a GGUF stores.
    """
    if isinstance(expected, float) and isinstance(found, int | float):
        return bool(np.float32(expected) == np.float32(found))
    return type(found) is type(expected) and found == expected
