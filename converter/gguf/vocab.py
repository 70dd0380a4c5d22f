"""The vocabulary a GGUF carries, from a checkpoint's tokenizer files.

``tokenizer.json`` is read with plain ``json``, which takes half a second for 201,088 tokens.
Building the tokenizer, as llama.cpp's converter does, takes almost half a minute. All assumptions
of this shortcut are checked: byte-level BPE, o200k's split pattern, unambiguous ids. Tokens keep
their byte-level form (``Ġ`` for a space), as in a GGUF.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import TokenType

from gptoss.errors import CheckpointError, quoted
from gptoss.formats import harmony_tokens
from gptoss.formats.bounded_json import read_json
from gptoss.formats.byte_source import FileSource
from gptoss.formats.checkpoint import CONFIG, CONFIG_LIMIT
from gptoss.formats.llama_cpp_keys import has_words, token_problems
from gptoss.formats.o200k import BYTE_LEVEL, find_tokenizer_problem
from gptoss.formats.tokenizer_json import (
    SETTINGS,
    SETTINGS_LIMIT,
    TEMPLATE,
    TOKENIZER,
    read_settings,
    read_tokenizer,
)

MAX_TOKENS = 2**24


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A GGUF's tokens by id, with their types, the merges, special ids and chat template.

    ``types`` are ``gguf.TokenType`` numbers. ``merges`` are pairs joined by a space, in order of
    priority. ``chat_template`` is None if the checkpoint has none.
    """

    tokens: list[str]
    types: list[int]
    merges: list[str]
    bos: int
    eos: int
    pad: int
    chat_template: str | None


def read(folder: Path, vocab_size: int | None = None) -> Vocabulary:
    """Read the vocabulary of a checkpoint folder from its tokenizer files.

    With ``vocab_size``, the number of embedding rows, ids without a token get unused tokens
    (``[PAD201087]``); the published models have 1,069 of them. Raises ``CheckpointError`` if a file
    is missing or corrupt, describes another kind of tokenizer, or has more tokens than the
    embedding has rows.
    """
    with _collector_off():
        return _read(folder, vocab_size)


def find_notes(vocabulary: Vocabulary) -> tuple[str, ...]:
    """Note what is unusual about a checkpoint's vocabulary, but can be converted as it is."""
    end, usual = vocabulary.tokens[vocabulary.eos], harmony_tokens.RETURN
    if end == usual:
        return ()
    return (
        f"eos_token is {quoted(end)}, but a reply of gpt-oss ends with {usual}; programs that go "
        "by it do not stop there: correct tokenizer_config.json, or repair the result "
        "(gptoss-convert OUT -o NEW.gguf)",
    )


@contextmanager
def _collector_off() -> Iterator[None]:
    """Turn off garbage collection while a vocabulary is read: with a million small lists in use it
    takes half of the time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _read(folder: Path, vocab_size: int | None) -> Vocabulary:
    path = folder / TOKENIZER
    tokenizer = read_tokenizer(folder)
    if problem := find_tokenizer_problem(tokenizer):
        raise CheckpointError(f"{path}: {problem}")
    model = tokenizer["model"]
    added = _added_tokens(path, tokenizer)
    tokens, types = _tokens(path, model.get("vocab"), added, vocab_size)
    settings = read_settings(folder)
    config = _optional(folder / CONFIG, CONFIG_LIMIT)
    ids = {added[i]["content"]: i for i in added}
    roles = {
        role: _role(role, path, settings, config, ids, len(tokens)) for role in harmony_tokens.ROLES
    }
    merges = _merges(path, model.get("merges"), model["vocab"])
    if not merges and has_words(tokens, types):
        raise CheckpointError(
            f"{path}: model.merges is empty; text could not be merged into whole-word tokens"
        )
    _check_text(path, (*tokens, *merges))
    for bad in token_problems(tokens):
        raise CheckpointError(f"{path}: its vocabulary would make llama.cpp fail: {bad}")
    template = _chat_template(folder, settings)
    return Vocabulary(tokens, types, merges, **roles, chat_template=template)


def _optional(path: Path, limit: int) -> dict[str, Any]:
    """Read config.json, which a vocabulary can do without, as plain data; empty when there is no
    such file.
    """
    return read_json(path, CheckpointError, limit=limit) if path.exists() else {}


def _added_tokens(path: Path, tokenizer: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """Read the vocabulary's added tokens, those beside the BPE tokens, by id."""
    entries = tokenizer.get("added_tokens", [])
    added: dict[int, Mapping[str, Any]] = {}
    for entry in entries if isinstance(entries, list) else [None]:
        if (
            not isinstance(entry, dict)
            or type(entry.get("id")) is not int
            or not isinstance(entry.get("content"), str)
        ):
            raise CheckpointError(
                f"{path}: added_tokens is not a list of tokens with id and content"
            )
        if entry["id"] in added:
            raise CheckpointError(f"{path}: two added tokens have the id {entry['id']}")
        added[entry["id"]] = entry
    return added


def _tokens(
    path: Path, vocab: Any, added: Mapping[int, Mapping[str, Any]], size: int | None
) -> tuple[list[str], list[int]]:
    """List a vocabulary's tokens and their types by id, ``size`` of them when given."""
    if not isinstance(vocab, dict) or not vocab:
        raise CheckpointError(f"{path}: model.vocab is missing or empty")
    _check_spelling(path, vocab)
    ids = [*vocab.values(), *added]
    if not all(type(i) is int for i in ids):
        raise CheckpointError(f"{path}: model.vocab has an id that is not an integer")
    low, high = min(ids), max(ids)
    limit = MAX_TOKENS if size is None else size
    if low < 0 or high >= limit:
        rows = "" if size is None else f"; the embedding has {size} rows"
        raise CheckpointError(f"{path}: holds token ids from {low} to {high}{rows}")
    n = high + 1 if size is None else size
    tokens: list[str | None] = [None] * n
    types = [int(TokenType.UNUSED)] * n
    for token, i in vocab.items():
        if tokens[i] is not None:
            raise CheckpointError(f"{path}: {tokens[i]!r} and {token!r} both have the id {i}")
        tokens[i] = token
        types[i] = TokenType.NORMAL
    for i, entry in added.items():
        if tokens[i] not in (None, entry["content"]):
            raise CheckpointError(
                f"{path}: {tokens[i]!r} and {entry['content']!r} both have the id {i}"
            )
        tokens[i], types[i] = _added_token(entry)
    return [f"[PAD{i}]" if token is None else token for i, token in enumerate(tokens)], types


def _check_spelling(path: Path, vocab: Iterable[str]) -> None:
    """Check that a vocabulary's BPE tokens are spelled byte-level, so without a space, and that
    every byte is a token by itself.
    """
    letters = set(map(chr, BYTE_LEVEL))
    missing = sorted(letters - set(vocab))
    if missing:
        raise CheckpointError(
            f"{path}: model.vocab has no {missing[0]!r}, the token of byte "
            f"{BYTE_LEVEL[ord(missing[0])]:#04x}; every byte must be a token"
        )
    if set("".join(vocab)) - letters:
        odd = next(token for token in vocab if set(token) - letters)
        raise CheckpointError(
            f"{path}: model.vocab has {odd!r:.60}, which is not in byte-level encoding"
        )


def _added_token(entry: Mapping[str, Any]) -> tuple[str, int]:
    """Return an added token's text and type in the vocabulary, by the rule of llama.cpp's
    converter.

    A token that looks like a control token is one, whatever its flag; others have plain spaces.
    """
    text: str = entry["content"]
    if entry.get("special") is True or (text.startswith("<|") and text.endswith("|>")):
        return text, TokenType.CONTROL
    return text.replace("▁", " "), TokenType.USER_DEFINED


def _merges(path: Path, merges: Any, vocab: Mapping[str, int]) -> list[str]:
    """Spell a vocabulary's BPE merges as the GGUF has them; tokenizer.json has pairs, or in older
    versions joined pairs.

    Each merge makes one token of two: any other would be skipped by llama.cpp without a warning.
    """
    if not isinstance(merges, list):
        raise CheckpointError(f"{path}: model.merges is missing")
    try:
        pairs = list(map(_pair, merges))
        tokens = {left for left, _ in pairs}
        tokens.update(right for _, right in pairs)
        tokens.update(left + right for left, right in pairs)
        if vocab.keys() >= tokens:
            return list(map(" ".join, pairs))
    except (TypeError, ValueError):
        pass
    i = next(i for i, merge in enumerate(merges) if not _is_known(merge, vocab))
    raise CheckpointError(
        f"{path}: model.merges[{i}] is {repr(merges[i])[:60]}; two tokens of model.vocab that make "
        "a third are expected"
    )


def _pair(merge: Any) -> tuple[str, str]:
    """Split one of the vocabulary's BPE merges into its two tokens. Raises TypeError or ValueError
    for an invalid one.
    """
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _is_known(merge: Any, vocab: Mapping[str, int]) -> bool:
    """Check whether a BPE merge joins two tokens of the vocabulary to a third one."""
    try:
        left, right = _pair(merge)
        return left in vocab and right in vocab and left + right in vocab
    except (TypeError, ValueError):
        return False


def _check_text(path: Path, strings: Iterable[str]) -> None:
    """Check that the vocabulary's texts can be in a GGUF: JSON can spell half of a surrogate pair,
    UTF-8 cannot; llama.cpp cuts a text at a NUL.
    """
    strings = tuple(strings)
    if any("\0" in text for text in strings):
        raise CheckpointError(f"{path}: holds a text with NUL")
    try:
        "".join(strings).encode()
    except UnicodeEncodeError as reason:
        found = reason.object[reason.start]
        raise CheckpointError(f"{path}: holds {found!r}, half of a surrogate pair") from None


def _role(
    role: str,
    path: Path,
    settings: Mapping[str, Any],
    config: Mapping[str, Any],
    ids: Mapping[str, int],
    n_tokens: int,
) -> int:
    """Find the id of the vocabulary's bos, eos or pad token: by its text in tokenizer_config.json,
    else config.json's, else harmony's.
    """
    named = settings.get(f"{role}_token")
    text = named.get("content") if isinstance(named, dict) else named
    if isinstance(text, str) and text in ids:
        return ids[text]
    given = config.get(f"{role}_token_id")
    if type(given) is int and 0 <= given < n_tokens:
        return given
    if harmony_tokens.ROLES[role] in ids:
        return ids[harmony_tokens.ROLES[role]]
    raise CheckpointError(
        f"{path}: has no {role} token: neither {text!r} nor {harmony_tokens.ROLES[role]}"
    )


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """Read the chat template that goes with the vocabulary from tokenizer_config.json, else from
    the file beside it.

    The order is that of llama.cpp's converter; of several named templates the default is taken.
    """
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
        template = named[-1].get("template") if named else None
    path = folder / TEMPLATE
    if template is None and path.exists():
        with FileSource(path, CheckpointError) as source:
            if source.size > SETTINGS_LIMIT:
                raise CheckpointError(f"{path}: {source.size} bytes; too long for a chat template")
            try:
                template = source.read(0, source.size).decode()
            except UnicodeDecodeError as reason:
                raise CheckpointError(f"{path}: not UTF-8 at byte {reason.start}") from reason
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{folder / SETTINGS}: chat_template is not text")
    if template is not None:
        _check_text(folder / SETTINGS, (template,))
    return template or None
