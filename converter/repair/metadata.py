"""Plan the keys of a repaired GGUF, from the file's own keys and tensors and from a base.

Each value comes from the first of these that has it: the base's config and tokenizer, if a base is
given; the file; the shapes of its tensors; the value of every published gpt-oss. A
value that is right, or of no effect, is left as it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGUFValueType, Keys, TokenType

from gptoss.converter.export import gguf_source
from gptoss.converter.gguf import vocab
from gptoss.converter.gguf.metadata import FILE_TYPES, Entry, model_keys, tokenizer_keys
from gptoss.converter.gguf.vocab import Vocabulary
from gptoss.converter.transforms.float_experts import ExpertType
from gptoss.errors import CheckpointError, GgufError, UnsupportedModelError, quoted
from gptoss.formats import harmony_tokens, published
from gptoss.formats.bounded_json import read_json
from gptoss.formats.checkpoint import CONFIG, CONFIG_LIMIT
from gptoss.formats.gguf import GgufFile
from gptoss.formats.gguf_strings import StringArray
from gptoss.formats.hparams import ARCHITECTURE, GGUF_KEYS, YARN_BETAS, HParams
from gptoss.formats.llama_cpp_keys import find_problems
from gptoss.formats.reply_ends import ENDING_KEYS, ENDING_TEXTS

OLLAMA = "gptoss"
"""Ollama's name of the architecture."""

_OPTIONAL = frozenset(
    (
        "gpt-oss.feed_forward_length",
        Keys.Tokenizer.PAD_ID,
        Keys.Tokenizer.ADD_BOS,
        Keys.Tokenizer.ADD_EOS,
    )
)
"""Keys that may be absent."""
_OF_PARTS = frozenset((Keys.Split.LLM_KV_SPLIT_NO, Keys.Split.LLM_KV_SPLIT_COUNT,
                       Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT, Keys.General.ALIGNMENT))  # fmt: skip
"""Keys about a file's layout; the repaired file has its own."""
_KINDS = frozenset(TokenType)
_RESERVED, _PAD = re.compile(r"<\|reserved_\d+\|>"), re.compile(r"\[PAD\d+\]")


@dataclass(frozen=True, slots=True)
class Base:
    """A checkpoint's config and vocabulary; its weights are not needed."""

    hparams: HParams
    vocabulary: Vocabulary

    @classmethod
    def open(cls, folder: Path) -> Base:
        """Read config.json and the tokenizer of the base checkpoint that a GGUF's metadata is
        repaired from. Raises ``CheckpointError`` or ``UnsupportedModelError``.
        """
        path = folder / CONFIG
        hparams = HParams.from_config(
            read_json(path, CheckpointError, limit=CONFIG_LIMIT), str(path)
        )
        return cls(hparams, vocab.read(folder, hparams.vocab_size))


@dataclass(frozen=True, slots=True)
class Change:
    """A key that was changed; ``found`` or ``now`` is None where the key is absent."""

    key: str
    found: str | None
    now: str | None
    why: str

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.key}: {self.now}, was missing ({self.why})"
        return f"{self.key}: {self.found} → {self.now or 'removed'} ({self.why})"


def plan(file: GgufFile, base: Base | None) -> tuple[HParams, list[Entry], list[Change]]:
    """Plan the keys of a repaired GGUF: its hyperparameters, all keys, and the changes to them.

    Raises ``UnsupportedModelError`` for another architecture or tokenizer, ``GgufError`` for what
    cannot be repaired.
    """
    given = {_renamed(key): value for key, value in file.metadata.items() if key not in _OF_PARTS}
    _check_architecture(file)
    hparams, reasons = _hparams(file, given, base)
    vocabulary, more = _vocabulary(file, given, base, hparams.vocab_size)
    reasons |= more
    wanted = [Entry(Keys.General.ARCHITECTURE, GGUFValueType.STRING, ARCHITECTURE)]
    if file.metadata[Keys.General.ARCHITECTURE] == OLLAMA:  # whose numbers are its own, too
        number = FILE_TYPES[ExpertType.MXFP4]
        wanted.append(Entry(Keys.General.FILE_TYPE, GGUFValueType.UINT32, number))
    wanted += [*model_keys(hparams), *tokenizer_keys(vocabulary)]
    changes = list(_changes(file, given, wanted, reasons))
    changed = {change.key for change in changes}
    kept = {_renamed(key): entry for key, entry in _entries(file).items() if key not in _OF_PARTS}
    new = {entry.key: entry for entry in wanted if entry.key in changed}
    removed = {change.key for change in changes if change.now is None}
    entries = {key: entry for key, entry in (kept | new).items() if key not in removed}
    changes += [
        Change(problem.key, problem.found, None, "the file gets a new layout")
        for problem in find_problems(file)
        if problem.key in _OF_PARTS
    ]
    for change in _harmful_keys(file, entries, {entry.key for entry in wanted}):
        changes.append(change)
        del entries[change.key]
    return hparams, list(entries.values()), changes


def _harmful_keys(
    file: GgufFile, entries: Mapping[str, Entry], wanted: Collection[str]
) -> Iterator[Change]:
    """Find a GGUF's keys that a repair must remove: llama.cpp fails on them, or computes something
    other than gpt-oss.

    Raises ``GgufError`` for what is still wrong and cannot be removed.
    """
    metadata = {key: entry.value for key, entry in entries.items()}
    types = {key: entry.type for key, entry in entries.items()}
    for problem in find_problems(replace(file, metadata=metadata, types=types)):
        if problem.key not in entries or problem.key in wanted:
            raise GgufError(f"{file.path}: {problem}; give the checkpoint as --base")
        why = "with it, llama.cpp would not compute gpt-oss correctly"
        yield Change(problem.key, problem.found, None, why)


def _check_architecture(file: GgufFile) -> None:
    found = file.metadata.get(Keys.General.ARCHITECTURE)
    if found not in (ARCHITECTURE, OLLAMA):
        raise UnsupportedModelError(
            f"{file.path}: {Keys.General.ARCHITECTURE} is {quoted(found)}; only {ARCHITECTURE!r}, "
            f"and Ollama's {OLLAMA!r}, can be repaired"
        )


def _renamed(key: str) -> str:
    prefix, dot, rest = key.partition(".")
    return f"{ARCHITECTURE}.{rest}" if dot and prefix == OLLAMA else key


def _entries(file: GgufFile) -> dict[str, Entry]:
    """Copy a GGUF's keys to the repaired file under their new names."""
    return {
        key: Entry(
            _renamed(key), file.types[key], value, array=isinstance(value, StringArray | tuple)
        )
        for key, value in file.metadata.items()
    }


# --- hyperparameters --------------------------------------------------------------------------


def _hparams(
    file: GgufFile, given: Mapping[str, Any], base: Base | None
) -> tuple[HParams, dict[str, str]]:
    """Complete the hyperparameters of a GGUF in repair; returns them, and by key where the missing
    ones come from.
    """
    shown = _from_shapes(file)
    values: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for name in (field.name for field in fields(HParams)):
        key = GGUF_KEYS.get(name, "")
        if name in YARN_BETAS:
            values[name], reasons[key] = YARN_BETAS[name], "built into llama.cpp's gpt-oss"
        elif base is not None:
            values[name], reasons[key] = getattr(base.hparams, name), "as the base has it"
        elif given.get(key) is not None:
            values[name] = given[key]
        elif name in shown:
            values[name], reasons[key] = shown[name], "by the tensors' shapes"
        else:
            values[name], reasons[key] = published.HPARAMS[name], "as in every published gpt-oss"
    given = {GGUF_KEYS[name]: value for name, value in values.items() if name in GGUF_KEYS}
    given |= {
        Keys.General.ARCHITECTURE: ARCHITECTURE,
        "gpt-oss.rope.scaling.type": "yarn",
        Keys.Tokenizer.LIST: range(values["vocab_size"]),
    }
    reasons["gpt-oss.rope.scaling.type"] = "every gpt-oss has it; without it the output is wrong"
    reasons["gpt-oss.feed_forward_length"] = "as expert_feed_forward_length"
    reasons["gpt-oss.attention.value_length"] = "as key_length"
    return HParams.from_gguf(given, str(file.path)), reasons


def _from_shapes(file: GgufFile) -> dict[str, int]:
    """Find hyperparameters that a GGUF's metadata lacks from the shapes of its tensors."""

    def dimension(axis: int, *names: str) -> int:
        """Return one dimension of a GGUF's tensor, in ggml's order, to repair missing
        hyperparameters; 0 when there is no such tensor.
        """
        tensor = next((file.tensors[name] for name in names if name in file.tensors), None)
        return tensor.shape[axis] if tensor and len(tensor.shape) > axis else 0

    heads = dimension(0, "blk.0.attn_sinks.weight", "blk.0.attn_sinks")
    head_dim = dimension(0, "blk.0.attn_output.weight", "blk.0.attn_out.weight") // max(1, heads)
    rows_qkv = dimension(1, "blk.0.attn_qkv.weight")
    rows_k = dimension(1, "blk.0.attn_k.weight") or (rows_qkv - heads * head_dim) // 2
    blocks = {name.split(".")[1] for name in file.tensors if name.startswith("blk.")}
    found = {
        "num_hidden_layers": len(blocks),
        "hidden_size": dimension(0, "token_embd.weight"),
        "vocab_size": dimension(1, "token_embd.weight"),
        "intermediate_size": dimension(0, "blk.0.ffn_down_exps.weight"),
        "num_local_experts": dimension(1, "blk.0.ffn_gate_inp.weight"),
        "num_attention_heads": heads,
        "head_dim": head_dim,
        "num_key_value_heads": rows_k // max(1, head_dim),
    }
    lacking = [name for name, n in found.items() if n < 1]
    if lacking:
        raise GgufError(f"{file.path}: the tensors that show its {lacking[0]} are missing")
    return found


# --- vocabulary -------------------------------------------------------------------------------


def _vocabulary(
    file: GgufFile, given: Mapping[str, Any], base: Base | None, size: int
) -> tuple[Vocabulary, dict[str, str]]:
    """Complete the vocabulary of a GGUF in repair; returns it, and by key where the missing parts
    come from.
    """
    model = given.get(Keys.Tokenizer.MODEL, "gpt2")
    if model != "gpt2":
        raise UnsupportedModelError(f"{file.path}: {Keys.Tokenizer.MODEL} is {quoted(model)}")
    why = dict.fromkeys((Keys.Tokenizer.MODEL, Keys.Tokenizer.PRE), "what gpt-oss was trained with")
    template = gguf_source.template(file)
    if base is not None:
        found = base.vocabulary
        vocabulary = Vocabulary(
            found.tokens, found.types, found.merges, found.bos, found.eos, found.pad,
            chat_template=template or found.chat_template,
        )  # fmt: skip
        return vocabulary, why | {
            entry.key: "as the base has it" for entry in tokenizer_keys(vocabulary)
        }
    tokens = list(_texts(file, given, Keys.Tokenizer.LIST))
    if not tokens or not harmony_tokens.CONTROL - {harmony_tokens.END_OF_PROMPT} <= set(tokens):
        raise UnsupportedModelError(
            f"{file.path}: {Keys.Tokenizer.LIST} lacks harmony's control tokens"
        )
    tokens += [f"[PAD{i}]" for i in range(len(tokens), size)]
    types = _given_types(file, given, tokens)
    _name_unused(tokens, types)
    _correct_types(tokens, types)
    merges = list(_texts(file, given, Keys.Tokenizer.MERGES))
    roles = {role: tokens.index(token) for role, token in harmony_tokens.ROLES.items()}
    for role, key in (("bos", Keys.Tokenizer.BOS_ID), ("pad", Keys.Tokenizer.PAD_ID)):
        if type(given.get(key)) is int and 0 <= given[key] < len(tokens):
            roles[role] = given[key]
    vocabulary = Vocabulary(tokens, types, merges, **roles, chat_template=template)
    gguf_source.check(vocabulary, str(file.path))
    return vocabulary, why | {
        Keys.Tokenizer.LIST: "one for each row of the embedding, all different",
        Keys.Tokenizer.TOKEN_TYPE: "control tokens are such, unused ones too",
        Keys.Tokenizer.BOS_ID: harmony_tokens.ROLES["bos"],
        Keys.Tokenizer.EOS_ID: f"a reply ends with {harmony_tokens.ROLES['eos']}",
        Keys.Tokenizer.PAD_ID: harmony_tokens.ROLES["pad"],
        Keys.Tokenizer.ADD_BOS: "harmony has its own",
        Keys.Tokenizer.ADD_EOS: "harmony has its own",
    }


def _texts(file: GgufFile, given: Mapping[str, Any], key: str) -> StringArray:
    found = given.get(key)
    if not isinstance(found, StringArray):
        raise GgufError(
            f"{file.path}: has no array of strings {key}; give the checkpoint as --base"
        )
    return found


def _given_types(file: GgufFile, given: Mapping[str, Any], tokens: Sequence[str]) -> list[int]:
    """Return each token's type from the metadata of a GGUF in repair; tokens without one are
    NORMAL.
    """
    found = given.get(Keys.Tokenizer.TOKEN_TYPE)
    types = list(found) if isinstance(found, tuple) and _KINDS.issuperset(found) else []
    if len(types) > len(tokens):
        raise GgufError(f"{file.path}: {len(types)} types for {len(tokens)} tokens")
    return types + [int(TokenType.NORMAL)] * (len(tokens) - len(types))


def _correct_types(tokens: Sequence[str], types: list[int]) -> None:
    """Correct a GGUF's token types: control tokens are marked CONTROL, those without a meaning
    UNUSED.
    """
    for i, token in enumerate(tokens):
        if token in harmony_tokens.CONTROL or _RESERVED.fullmatch(token):
            types[i] = int(TokenType.CONTROL)
        elif _PAD.fullmatch(token):
            types[i] = int(TokenType.UNUSED)


def _name_unused(tokens: list[str], types: Sequence[int]) -> None:
    """Rename unused tokens of a GGUF in repair where llama.cpp would fail, or end a reply: texts
    that are empty, another token's, or another model's end.

    No text is encoded to them, so only that they differ matters.
    """
    taken = Counter(tokens)
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        is_usable = taken[token] == 1 and token and "\0" not in token
        if kind != TokenType.UNUSED or (is_usable and token not in ENDING_TEXTS):
            continue
        names = chain([f"[PAD{i}]"], (f"[PAD{i}-{n}]" for n in count()))
        tokens[i] = next(name for name in names if not taken[name])
        taken[token] -= 1
        taken[tokens[i]] += 1


# --- differences ------------------------------------------------------------------------------


def _changes(
    file: GgufFile,
    given: Mapping[str, Any],
    wanted: Sequence[Entry],
    reasons: Mapping[str, str],
) -> Iterator[Change]:
    types = {_renamed(key): kind for key, kind in file.types.items()}
    for entry in wanted:
        found, why = given.get(entry.key), reasons.get(entry.key, "llama.cpp's name")
        if found is None and (entry.key in _OPTIONAL or _is_default(entry)):
            continue
        same = found is not None and _same(entry, found)
        if same and types[entry.key] is not entry.type:
            shown = f"{_text(found)} of type {types[entry.key].name}"
            yield Change(entry.key, shown, entry.type.name, "the type that llama.cpp reads")
        elif not same:
            yield Change(entry.key, _text(found), _text(entry.value), why)
    renamed = sum(_renamed(key) != key for key in file.metadata)
    if renamed:
        yield Change(f"{renamed} keys", f"{OLLAMA}.*", f"{ARCHITECTURE}.*", "llama.cpp's name")
    for key in ENDING_KEYS:
        if key in given and not _ends(given[key], wanted):
            why = f"only {', '.join(harmony_tokens.ENDS_OF_REPLY)} end a reply"
            yield Change(key, _text(given[key]), None, why)


def _is_default(entry: Entry) -> bool:
    """Check whether llama.cpp uses this value if the GGUF lacks the key, so that the repair need
    not add it.
    """
    names = {key: name for name, key in GGUF_KEYS.items()}
    default = YARN_BETAS.get(names.get(entry.key, ""))
    return default is not None and bool(default == entry.value)


def _same(entry: Entry, found: Any) -> bool:
    if entry.array:
        same = isinstance(found, StringArray | tuple) and list(entry.value) == list(found)
        return bool(same)
    if entry.type is GGUFValueType.FLOAT32:
        return type(found) in (int, float) and np.float32(found) == np.float32(entry.value)
    return type(found) is type(entry.value) and bool(found == entry.value)


def _ends(token: Any, wanted: Sequence[Entry]) -> bool:
    """Check whether a token ends a reply, so that the repair can correct the GGUF's end-of-turn
    keys.
    """
    [tokens] = (entry.value for entry in wanted if entry.key == Keys.Tokenizer.LIST)
    ends = [i for i, text in enumerate(tokens) if text in harmony_tokens.ENDS_OF_REPLY]
    return token in ends


def _text(value: Any) -> str | None:
    """Format a GGUF key's value for the repair's list of changed metadata."""
    if value is None or isinstance(value, str):
        return value if value is None or len(value) < 60 else f"{len(value)} characters"
    if isinstance(value, StringArray | tuple | list):
        return f"{len(value)} values"
    return f"{value:g}" if isinstance(value, float) else str(value)
