"""What a model's vocabulary must have for a conversation: harmony's tokens, ends, a template."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from gguf.constants import TokenType

from gptoss.errors import CheckpointError, quoted
from gptoss.formats.bounded_json import read_json
from gptoss.formats.checkpoint import CONFIG, CONFIG_LIMIT, GENERATION
from gptoss.formats.gguf_strings import StringArray
from gptoss.formats.harmony_tokens import (
    CALL,
    END_OF_TEXT,
    OF_TURNS,
    RETURN,
)
from gptoss.formats.llama_cpp_keys import has_words, token_problems
from gptoss.formats.reply_ends import other_ends
from gptoss.formats.tokenizer_json import TEMPLATE, TOKENIZER, read_settings, read_tokenizer
from gptoss.quant.audit.findings import Finding, FindingKind, Severity
from gptoss.quant.model.tensors import Model
from gptoss.quant.model.vocabulary import read_vocabulary


def check_tokenizer(model: Model) -> Iterator[Finding]:
    """Check a model's tokenizer for the audit: control tokens, end-of-turn tokens and chat
    template, from a GGUF's keys or the files beside a checkpoint.
    """
    if model.tokenizer is None:
        yield from _gguf(model.metadata)
    else:
        yield from _checkpoint(model, model.tokenizer)


def _gguf(metadata: Mapping[str, Any]) -> Iterator[Finding]:
    if not metadata.get("tokenizer.chat_template"):
        yield Finding(
            FindingKind.TEMPLATE_MISSING, Severity.WARNING, "no template", "tokenizer.chat_template"
        )
    key = "tokenizer.ggml.tokens"
    tokens = metadata.get(key)
    if not isinstance(tokens, StringArray):
        return  # a defect of the model, reported as such
    ids = {token: i for i, token in enumerate(tokens) if token in (*OF_TURNS, END_OF_TEXT)}
    yield from _controls(ids, key)
    types = metadata.get("tokenizer.ggml.token_type")
    types = types if isinstance(types, tuple) else ()
    plain = [it for it in OF_TURNS if ids.get(it, 2**31) < len(types)]
    plain = [it for it in plain if types[ids[it]] != TokenType.CONTROL]
    if plain or not len(types):
        message = f"not marked as control tokens: {', '.join(plain or OF_TURNS)}"
        yield Finding(FindingKind.VOCABULARY, Severity.ERROR, message, "tokenizer.ggml.token_type")
    key = "tokenizer.ggml.eos_token_id"
    end = metadata.get(key)
    if end is None:
        yield Finding(FindingKind.EOG_MISSING, Severity.WARNING, "no end-of-turn token is set", key)
    elif end != ids.get(RETURN):
        message = f"{end}, which is not {RETURN}"
        yield Finding(FindingKind.EOG_MISSING, Severity.ERROR, message, key)
    for other in other_ends(metadata):
        message = f"{other.token} ({quoted(other.text)}), at which llama.cpp would also end a reply"
        yield Finding(FindingKind.EOG_MISSING, Severity.ERROR, message, other.key)


def _checkpoint(model: Model, tokenizer: Path) -> Iterator[Finding]:
    folder, config = model.path, model.metadata
    path = tokenizer / TOKENIZER
    if not path.is_file():
        message = "no tokenizer beside the weights: the model cannot be converted without one"
        yield Finding(FindingKind.VOCABULARY, Severity.WARNING, message, TOKENIZER)
        return
    described = read_tokenizer(tokenizer)
    added = described.get("added_tokens", [])
    listed = added if isinstance(added, list) else [added]
    tokens = [token for token in listed if _is_added_token(token)]
    if len(tokens) != len(listed):
        message = "added_tokens is not a list of tokens with a text as content and a number as id"
        yield Finding(FindingKind.VOCABULARY, Severity.ERROR, message, TOKENIZER)
    elif problem := _vocabulary_problem(model, tokenizer):
        yield Finding(FindingKind.VOCABULARY, Severity.ERROR, problem, TOKENIZER)
    ids = {token["content"]: token["id"] for token in tokens}
    yield from _controls(ids, TOKENIZER)
    settings = read_settings(tokenizer)
    if not (tokenizer / TEMPLATE).is_file() and not settings.get("chat_template"):
        yield Finding(FindingKind.TEMPLATE_MISSING, Severity.WARNING, "no template", TEMPLATE)
    generation = _optional(folder / GENERATION, CONFIG_LIMIT)
    named = generation.get("eos_token_id", config.get("eos_token_id"))
    ends = named if isinstance(named, list) else [named]
    where = GENERATION if "eos_token_id" in generation else CONFIG
    for token, severity in ((RETURN, Severity.ERROR), (CALL, Severity.WARNING)):
        if token in ids and ids[token] not in ends and ends != [None]:
            message = f"eos_token_id does not include {token} ({ids[token]})"
            yield Finding(FindingKind.EOG_MISSING, severity, message, where)


def _vocabulary_problem(model: Model, folder: Path) -> str | None:
    """Find what in a checkpoint's tokenizer would give other tokens or none, for the audit; None if
    nothing does.
    """
    try:
        found = read_vocabulary(model.hparams.vocab_size, folder, model.metadata)
    except CheckpointError as error:
        return str(error).removeprefix(f"{folder / TOKENIZER}: ")
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    for problem in token_problems([text for text in tokens if text is not None]):
        return f"{problem.found} is the text of a token; expected {problem.expected}"
    if not found["tokenizer.ggml.merges"] and has_words(tokens, types):
        return "model.merges is empty; text could not be merged into whole-word tokens"
    return None


def _is_added_token(token: Any) -> bool:
    return (
        isinstance(token, dict)
        and isinstance(token.get("content"), str)
        and type(token.get("id")) is int
    )


def _optional(path: Path, limit: int) -> dict[str, Any]:
    return read_json(path, CheckpointError, limit=limit) if path.is_file() else {}


def _controls(ids: Collection[str], where: str) -> Iterator[Finding]:
    missing = [token for token in OF_TURNS if token not in ids]
    ends = [token for token in missing if token in (RETURN, CALL)]
    if ends:
        message = f"no token {' nor '.join(ends)}"
        yield Finding(FindingKind.EOG_MISSING, Severity.ERROR, message, where)
    others = [token for token in missing if token not in ends]
    if others:
        message = f"harmony tokens are missing: {', '.join(others)}"
        yield Finding(FindingKind.VOCABULARY, Severity.ERROR, message, where)
