"""The GGUF's hyperparameters and vocabulary against the checkpoint's config and tokenizer.

Weights alone do not make a model: without its ``rope.*`` keys a gpt-oss GGUF loads and talks, and
is wrong. Left out are keys that name or describe but change no result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import TokenType

from gptoss.errors import CheckpointError, UnsupportedModelError
from gptoss.formats.byte_source import read_json
from gptoss.formats.checkpoint import TOKENIZER, Checkpoint
from gptoss.formats.gguf import GgufFile
from gptoss.formats.hparams import ARCHITECTURE, GGUF_KEYS, YARN_BETAS
from gptoss.formats.o200k import PRE_TOKENIZER, find_split_problem
from gptoss.quant.verify.result import KeyDifference

TOKENIZER_LIMIT = 2**28
SETTINGS = "tokenizer_config.json"
SETTINGS_LIMIT = 2**24

_ABSENT = "nothing"


def compare_keys(checkpoint: Checkpoint, gguf: GgufFile) -> tuple[KeyDifference, ...]:
    """All differences. Raises ``UnsupportedModelError`` when the GGUF is of another architecture."""
    architecture = gguf.metadata.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise UnsupportedModelError(
            f"{gguf.path}: general.architecture is {architecture!r}; only {ARCHITECTURE!r} can be "
            "verified"
        )
    return (*_hyperparameters(checkpoint, gguf.metadata), *_vocabulary(checkpoint, gguf.metadata))


def _hyperparameters(
    checkpoint: Checkpoint, metadata: Mapping[str, Any]
) -> Iterator[KeyDifference]:
    hparams = checkpoint.hparams
    wanted: dict[str, str | int | float] = {
        key: getattr(hparams, name) for name, key in GGUF_KEYS.items()
    }
    wanted["gpt-oss.rope.scaling.type"] = "yarn"
    wanted["gpt-oss.attention.value_length"] = hparams.head_dim
    defaults = {GGUF_KEYS[name]: value for name, value in YARN_BETAS.items()}
    for key, expected in wanted.items():
        found = metadata.get(key, defaults.get(key))
        if not _same(expected, found):
            yield KeyDifference(key, _text(expected), _text(found))


def _vocabulary(checkpoint: Checkpoint, metadata: Mapping[str, Any]) -> Iterator[KeyDifference]:
    path = checkpoint.tokenizer / TOKENIZER
    if not path.exists():
        raise CheckpointError(f"{path}: missing; --tokenizer names another folder that holds one")
    tokenizer = read_json(path, CheckpointError, limit=TOKENIZER_LIMIT)
    if problem := find_split_problem(tokenizer.get("pre_tokenizer")):
        raise CheckpointError(f"{path}: does not split text as o200k does: {problem}")
    words, added = _words(tokenizer, path, checkpoint.hparams.vocab_size)
    texts, types = _tokens(words, added, checkpoint.hparams.vocab_size)
    yield from _literals(
        metadata, {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": PRE_TOKENIZER}
    )
    yield from _literals(metadata, _marks(checkpoint, added))
    yield from _array("tokenizer.ggml.tokens", texts, metadata)
    yield from _array("tokenizer.ggml.merges", _merges(tokenizer, path), metadata)
    yield from _array("tokenizer.ggml.token_type", types, metadata)


def _words(
    tokenizer: Mapping[str, Any], path: Path, size: int
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """The BPE vocabulary's ids by text, and the tokens added to it; all ids below ``size``."""
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens", [])
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict) or not isinstance(added, list):
        raise CheckpointError(
            f"{path}: model.vocab or added_tokens is not what a BPE tokenizer has"
        )
    added = [token if isinstance(token, dict) else {} for token in added]
    for text, i in (*vocab.items(), *((t.get("content"), t.get("id")) for t in added)):
        if type(i) is not int or not isinstance(text, str) or not 0 <= i < size:
            raise CheckpointError(
                f"{path}: token {text!r} has id {i!r}; the weights have room for 0 to {size - 1}"
            )
    return vocab, added


def _tokens(
    words: Mapping[str, int], added: Sequence[Mapping[str, Any]], size: int
) -> tuple[list[str | None], list[int | None]]:
    """Each id's text and type; None where any will do.

    An id that no token has may be called anything, but must not be a word: a text could become it.
    """
    texts: list[str | None] = [None] * size
    types: list[int | None] = [int(TokenType.UNUSED)] * size
    for text, i in words.items():
        texts[i], types[i] = text, int(TokenType.NORMAL)
    for token in added:
        text, i = token["content"], token["id"]
        texts[i], types[i] = text, int(TokenType.CONTROL)
        if not token.get("special"):
            # Converters differ on which of these are control tokens; words have real spaces.
            types[i] = None
            texts[i] = text if text.startswith("<|") else text.replace("\u2581", " ")
    return texts, types


def _marks(checkpoint: Checkpoint, added: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The ids that begin and end a text: those the tokenizer's settings name, else the config."""
    path = checkpoint.tokenizer / SETTINGS
    settings = read_json(path, CheckpointError, limit=SETTINGS_LIMIT) if path.exists() else {}
    ids = {token["content"]: token["id"] for token in added}
    marks = {}
    for name in ("bos", "eos"):
        text = settings.get(f"{name}_token")
        text = text.get("content") if isinstance(text, dict) else text
        known = isinstance(text, str) and text in ids
        i = ids[text] if known else checkpoint.config.get(f"{name}_token_id")
        if type(i) is int:
            marks[f"tokenizer.ggml.{name}_token_id"] = i
    return marks


def _merges(tokenizer: Mapping[str, Any], path: Path) -> list[str]:
    """As a GGUF spells them, with a space between; tokenizer.json has that form or pairs."""
    merges = tokenizer["model"].get("merges", [])
    if not isinstance(merges, list):
        raise CheckpointError(f"{path}: model.merges is no list")
    joined = []
    for merge in merges:
        pair = (
            isinstance(merge, list) and len(merge) == 2 and all(isinstance(p, str) for p in merge)
        )
        if not pair and not isinstance(merge, str):
            raise CheckpointError(f"{path}: model.merges holds {repr(merge)[:60]}, no pair")
        joined.append(merge if isinstance(merge, str) else " ".join(merge))
    return joined


def _literals(
    metadata: Mapping[str, Any], wanted: Mapping[str, str | int]
) -> Iterator[KeyDifference]:
    for key, expected in wanted.items():
        if not _same(expected, metadata.get(key)):
            yield KeyDifference(key, _text(expected), _text(metadata.get(key)))


def _array(
    key: str, expected: Sequence[str | int | None], metadata: Mapping[str, Any]
) -> Iterator[KeyDifference]:
    """Compare element by element; whatever stands where None is expected is right."""
    found = metadata.get(key)
    if found is None and not expected:
        return
    if not isinstance(found, Iterable) or isinstance(found, str):
        yield KeyDifference(key, f"{len(expected)} elements", _text(found))
        return
    wrong = [
        (i, e, f)
        for i, (e, f) in enumerate(zip_longest(expected, found, fillvalue=_ABSENT))
        if e is not None and e != f
    ]
    if wrong:
        i, e, f = wrong[0]
        yield KeyDifference(key, _text(e), _text(f), len(wrong), i)


def _same(expected: str | int | float, found: object) -> bool:
    """Equal, and a float equal as float32, which is what a GGUF stores."""
    if isinstance(expected, float) and isinstance(found, int | float):
        return bool(np.float32(expected) == np.float32(found))
    return type(found) is type(expected) and found == expected


def _text(value: object) -> str:
    return _ABSENT if value is None or value is _ABSENT else repr(value)
