"""A checkpoint's vocabulary, by the keys of a GGUF; read without the converter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gguf.constants import TokenType

from gptoss.errors import CheckpointError, quoted
from gptoss.formats.o200k import PRE_TOKENIZER, find_tokenizer_problem
from gptoss.formats.tokenizer_json import TOKENIZER, read_settings, read_tokenizer


def read_vocabulary(size: int, folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Read a checkpoint's vocabulary of ``size`` tokens under GGUF keys; None allows any value.

    Raises ``CheckpointError`` when the tokenizer is not a gpt-oss tokenizer, or when its tokens or
    merges are invalid.
    """
    path = folder / TOKENIZER
    tokenizer = read_tokenizer(folder)
    if problem := find_tokenizer_problem(tokenizer):
        raise CheckpointError(f"{path}: {problem}")
    words, added = _words(tokenizer, path, size)
    texts, types = _tokens(words, added, size)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": PRE_TOKENIZER,
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": _merges(tokenizer, path),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        **_ends(folder, config, added),
    }


def _words(
    tokenizer: Mapping[str, Any], path: Path, size: int
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Return the BPE vocabulary's ids by text, and the tokens added to it; all ids are below
    ``size``.
    """
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens", [])
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict) or not isinstance(added, list):
        raise CheckpointError(
            f"{path}: expected model.vocab to be an object and added_tokens a list, as in BPE "
            "tokenizers"
        )
    added = [token if isinstance(token, dict) else {} for token in added]
    texts: dict[int, str] = {}
    for text, i in (*vocab.items(), *((t.get("content"), t.get("id")) for t in added)):
        if not isinstance(text, str) or type(i) is not int:
            raise CheckpointError(
                f"{path}: a token is {quoted(text)} and its id {quoted(i)}; expected a text and a "
                "whole number"
            )
        if not 0 <= i < size:
            raise CheckpointError(
                f"{path}: token {quoted(text)} has id {i}; the embedding has rows 0 to {size - 1}"
            )
        if texts.setdefault(i, text) != text:
            raise CheckpointError(
                f"{path}: {quoted(texts[i])} and {quoted(text)} both have the id {i}"
            )
    return vocab, added


def _tokens(
    words: Mapping[str, int], added: Sequence[Mapping[str, Any]], size: int
) -> tuple[list[str | None], list[int | None]]:
    """Return the text and type of each id of a checkpoint's vocabulary; None allows any.

    An unused id may have any text, but its type must be UNUSED: as a normal token, text could be
    encoded to it.
    """
    texts: list[str | None] = [None] * size
    types: list[int | None] = [int(TokenType.UNUSED)] * size
    for text, i in words.items():
        texts[i], types[i] = text, int(TokenType.NORMAL)
    for token in added:
        text, i = token["content"], token["id"]
        texts[i], types[i] = text, int(TokenType.CONTROL)
        if not token.get("special"):
            # Converters disagree on which of these are control tokens. Others have plain spaces.
            types[i] = None
            texts[i] = text if text.startswith("<|") else text.replace("\u2581", " ")
    return texts, types


def _ends(
    folder: Path, config: Mapping[str, Any], added: Sequence[Mapping[str, Any]]
) -> dict[str, int]:
    """Return the BOS and EOS ids of a checkpoint's vocabulary, from the tokenizer's settings, else
    from the config.
    """
    settings = read_settings(folder)
    ids = {token["content"]: token["id"] for token in added}
    marks = {}
    for name in ("bos", "eos"):
        text = settings.get(f"{name}_token")
        text = text.get("content") if isinstance(text, dict) else text
        known = isinstance(text, str) and text in ids
        i = ids[text] if known else config.get(f"{name}_token_id")
        if type(i) is int:
            marks[f"tokenizer.ggml.{name}_token_id"] = i
    return marks


def _merges(tokenizer: Mapping[str, Any], path: Path) -> list[str]:
    """Return the merges of a checkpoint's vocabulary as a GGUF spells them, joined by a space;
    tokenizer.json has that form or pairs.
    """
    merges = tokenizer["model"].get("merges", [])
    if not isinstance(merges, list):
        raise CheckpointError(f"{path}: model.merges is not a list")
    joined = []
    for merge in merges:
        pair = (
            isinstance(merge, list) and len(merge) == 2 and all(isinstance(p, str) for p in merge)
        )
        if not pair and not isinstance(merge, str):
            raise CheckpointError(f"{path}: model.merges holds {repr(merge)[:60]}; expected a pair")
        joined.append(merge if isinstance(merge, str) else " ".join(merge))
    return joined
