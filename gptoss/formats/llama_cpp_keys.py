"""The metadata keys that llama.cpp reads for gpt-oss: each one's type, and its range or only value.

The single table ``KEYS`` serves preflight, audit, verify, diff and repair. On some of these keys
llama.cpp fails late, on others it aborts the process, and some change what the model computes
although no published gpt-oss has them.

Source: llama.cpp as packaged in llama-cpp-python 0.3.36, ``llama-model.cpp`` (``load_hparams``),
``models/openai-moe.cpp``, ``llama-vocab.cpp``, ``llama-model-loader.cpp``, ``gguf.cpp``. There a
key must have exactly the table's type: signed and unsigned integers are different types.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Any

import numpy as np
from gguf.constants import GGUFValueType, TokenType

from gptoss.errors import quoted
from gptoss.formats.gguf import GgufFile
from gptoss.formats.gguf_strings import StringArray
from gptoss.formats.hparams import ARCHITECTURE, FLOAT_LIMITS, GGUF_KEYS, INTEGER_LIMITS, is_within
from gptoss.formats.o200k import PRE_TOKENIZER

PREFIX = f"{ARCHITECTURE}."
_ARRAYS = (StringArray, tuple, list)

_PART = 10_000
"""Texts that are collected in one call."""
ABSENT = "nothing"
"""How messages show a missing key."""


class Effect(Enum):
    """The effect of a key's value in llama.cpp's gpt-oss."""

    MODEL = "part of what the model computes"
    NONE = "read, but without effect on the result"
    IGNORED = "not read for gpt-oss"


@dataclass(frozen=True, slots=True)
class KeyRule:
    """What a key may hold.

    ``type`` is the type of the value, or of an array's elements; None where llama.cpp does not
    check it. ``only`` is the one value valid for gpt-oss; llama.cpp also uses it when the key is
    absent, unless the key is ``required``. ``same_as`` names the key whose value this one must
    repeat. ``default`` is what an absent key means where more than one value is allowed.
    ``limits`` are inclusive. ``banned`` keys must be absent.
    """

    type: GGUFValueType | None
    effect: Effect = Effect.MODEL
    array: bool = False
    required: bool = False
    only: str | int | float | bool | None = None
    default: bool | None = None
    same_as: str | None = None
    limits: tuple[float, float] | None = None
    banned: bool = False


_U16, _U32, _I32 = GGUFValueType.UINT16, GGUFValueType.UINT32, GGUFValueType.INT32
_F32, _BOOL, _STR = GGUFValueType.FLOAT32, GGUFValueType.BOOL, GGUFValueType.STRING


def _hyperparameters() -> Iterator[tuple[str, KeyRule]]:
    """Yield the metadata keys that llama.cpp reads as hyperparameters, with the limits of
    ``HParams``.
    """
    for name, key in GGUF_KEYS.items():
        if name in INTEGER_LIMITS:
            yield key, KeyRule(_U32, required=True, limits=INTEGER_LIMITS[name])
        else:
            yield key, KeyRule(_F32, required=True, limits=FLOAT_LIMITS[name])


_KEY_LENGTH = PREFIX + "attention.key_length"

KEYS: dict[str, KeyRule] = {
    "general.architecture": KeyRule(_STR, required=True, only=ARCHITECTURE),
    "general.name": KeyRule(_STR, Effect.NONE),
    "general.file_type": KeyRule(_U32, Effect.NONE),
    "general.alignment": KeyRule(_U32, Effect.NONE, limits=(32, 2**20)),
    "general.tensor_extra.name": KeyRule(_STR, array=True, banned=True),
    "split.no": KeyRule(_U16, Effect.NONE),
    "split.count": KeyRule(_U16, Effect.NONE),
    "split.tensors.count": KeyRule(_I32, Effect.NONE),
    **dict(_hyperparameters()),
    PREFIX + "vocab_size": KeyRule(None, Effect.IGNORED),
    PREFIX + "feed_forward_length": KeyRule(_U32, Effect.NONE),
    PREFIX + "embedding_length_out": KeyRule(_U32, same_as=PREFIX + "embedding_length"),
    PREFIX + "nextn_predict_layers": KeyRule(_U32, only=0),
    PREFIX + "expert_group_count": KeyRule(_U32, only=0),
    PREFIX + "expert_group_used_count": KeyRule(_U32, only=0),
    PREFIX + "pooling_type": KeyRule(_U32, only=0),
    PREFIX + "classifier.pooling_type": KeyRule(_U32, banned=True),
    PREFIX + "classifier.output_labels": KeyRule(_STR, array=True, banned=True),
    PREFIX + "attention.causal": KeyRule(_BOOL, only=True),
    PREFIX + "attention.sliding_window_pattern": KeyRule(_U32, only=2),
    PREFIX + "attention.value_length": KeyRule(_U32, required=True, same_as=_KEY_LENGTH),
    PREFIX + "attention.key_length_swa": KeyRule(_U32, same_as=_KEY_LENGTH),
    PREFIX + "attention.value_length_swa": KeyRule(_U32, same_as=_KEY_LENGTH),
    PREFIX + "rope.dimension_count": KeyRule(_U32, same_as=_KEY_LENGTH),
    PREFIX + "rope.dimension_count_swa": KeyRule(_U32, same_as=_KEY_LENGTH),
    PREFIX + "rope.freq_base_swa": KeyRule(_F32, same_as=PREFIX + "rope.freq_base"),
    PREFIX + "rope.scaling.type": KeyRule(_STR, required=True, only="yarn"),
    PREFIX + "rope.scaling.attn_factor": KeyRule(_F32, only=1.0),
    PREFIX + "rope.scaling.alpha": KeyRule(_F32, only=0.0),
    PREFIX + "rope.scaling.finetuned": KeyRule(_BOOL, Effect.NONE),
    PREFIX + "rope.scale_linear": KeyRule(None, Effect.IGNORED),
    # Constants in llama.cpp's gpt-oss; the keys are not read.
    PREFIX + "rope.scaling.yarn_beta_fast": KeyRule(_F32, only=32.0),
    PREFIX + "rope.scaling.yarn_beta_slow": KeyRule(_F32, only=1.0),
    "tokenizer.ggml.model": KeyRule(_STR, required=True, only="gpt2"),
    "tokenizer.ggml.pre": KeyRule(_STR, required=True, only=PRE_TOKENIZER),
    "tokenizer.ggml.tokens": KeyRule(_STR, array=True, required=True),
    "tokenizer.ggml.token_type": KeyRule(_I32, array=True, required=True),
    "tokenizer.ggml.merges": KeyRule(_STR, array=True, required=True),
    "tokenizer.ggml.scores": KeyRule(_F32, Effect.NONE, array=True),
    "tokenizer.ggml.token_type_count": KeyRule(_U32, Effect.NONE),
    "tokenizer.ggml.suppress_tokens": KeyRule(_I32, array=True, banned=True),
    "tokenizer.ggml.add_bos_token": KeyRule(_BOOL, default=False),
    "tokenizer.ggml.add_eos_token": KeyRule(_BOOL, default=False),
    "tokenizer.ggml.add_sep_token": KeyRule(_BOOL, default=False),
    "tokenizer.ggml.add_space_prefix": KeyRule(_BOOL, Effect.NONE),
    "tokenizer.ggml.remove_extra_whitespaces": KeyRule(_BOOL, Effect.NONE),
    "tokenizer.ggml.normalizer.lowercase": KeyRule(_BOOL, Effect.NONE),
    "tokenizer.ggml.normalizer.strip_accents": KeyRule(_BOOL, Effect.NONE),
    "tokenizer.chat_template": KeyRule(_STR, Effect.NONE),
}  # fmt: skip
"""Every key that is read, and keys that are not but could contradict what is computed."""

TOKEN_ROLES = (
    "bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask", "fim_pre", "fim_suf",
    "fim_mid", "fim_pad", "fim_rep", "fim_sep", "prefix", "suffix", "middle",
)  # fmt: skip
"""``tokenizer.ggml.{role}_token_id`` each name a token; spelled as in llama.cpp."""

KEYS |= {f"tokenizer.ggml.{role}_token_id": KeyRule(_U32) for role in TOKEN_ROLES}


class SameAs(str):
    """In ``computed_with``'s result: this value equals that of the named key."""

    __slots__ = ()


_NAMES_THAT_FAIL = ("phi-3", "phi3")
"""If ``general.name`` contains one, llama.cpp looks for tokens gpt-oss lacks, and fails."""


@dataclass(frozen=True, slots=True)
class KeyProblem:
    """A key that llama.cpp cannot use, or that makes it compute something other than gpt-oss."""

    key: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.key} is {self.found}, expected {self.expected}"


def find_problems(file: GgufFile) -> list[KeyProblem]:
    """Find every metadata key of a GGUF that breaks llama.cpp's rules for it; empty when all are
    right.

    Raises ``GgufError`` if a text of the vocabulary is not UTF-8.
    """
    return find_key_problems(file) + find_vocabulary_problems(file)


def find_key_problems(file: GgufFile) -> list[KeyProblem]:
    """Find the metadata keys of a GGUF with a type or value that llama.cpp cannot use; the texts of
    the vocabulary are not looked at.
    """
    problems = [
        problem for key, rule in KEYS.items() if (problem := _check(file, key, rule)) is not None
    ]
    problems += [
        KeyProblem(key, show(file.metadata[key]), "the key to be absent")
        for key in file.metadata
        if key.startswith(PREFIX) and key not in KEYS
    ]
    name = file.metadata.get("general.name")
    if isinstance(name, str) and any(it in name.lower() for it in _NAMES_THAT_FAIL):
        problems.append(KeyProblem("general.name", show(name), "a name without 'phi-3'"))
    return problems


def find_vocabulary_problems(file: GgufFile) -> list[KeyProblem]:
    """Find what llama.cpp cannot use in the vocabulary of a GGUF. It takes 0.2 seconds for 201,088
    tokens.

    Raises ``GgufError`` if a text is not UTF-8.
    """
    return list(_vocabulary_problems(file.metadata))


def computed_with(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value that llama.cpp computes with for each metadata key that affects the result.

    An absent key has llama.cpp's default, or None if there is none. Unknown ``gpt-oss.*`` keys are
    included unchanged.
    """
    values: dict[str, Any] = {}
    for key, rule in KEYS.items():
        if rule.effect is Effect.MODEL:
            values[key] = _computed(metadata, key, rule)
    unknown = {k: v for k, v in metadata.items() if k.startswith(PREFIX) and k not in KEYS}
    return values | unknown


def _computed(metadata: Mapping[str, Any], key: str, rule: KeyRule) -> Any:
    value = metadata.get(key)
    if rule.same_as is not None:
        implied = value is None and not rule.required
        repeated = value is not None and value == metadata.get(rule.same_as)
        return SameAs(f"as {rule.same_as}") if implied or repeated else value
    if value is None and not rule.required:
        return rule.default if rule.only is None else rule.only
    return value


def show(value: object) -> str:
    """Format a metadata key's value for messages: short and printable."""
    if value is None:
        return ABSENT
    if isinstance(value, SameAs):
        return value
    if isinstance(value, _ARRAYS):
        return f"an array of {len(value)}"
    if isinstance(value, float):
        with np.errstate(over="ignore"):
            single = np.float32(value)
        return str(single) if single == value else repr(value)
    return quoted(value)


def _check(file: GgufFile, key: str, rule: KeyRule) -> KeyProblem | None:
    value = file.metadata.get(key)
    if value is None:
        if rule.required:
            return KeyProblem(key, ABSENT, _expected(file.metadata, rule))
        return None
    if _fits(file, key, rule, value):
        return None
    found = show(value)
    if _is_value(file.metadata, rule, value):
        found = f"{found} of type {file.types[key].name}"
    return KeyProblem(key, found, _expected(file.metadata, rule))


def _fits(file: GgufFile, key: str, rule: KeyRule, value: Any) -> bool:
    if rule.effect is Effect.IGNORED:
        return True
    is_array = isinstance(value, _ARRAYS)
    if rule.banned or is_array is not rule.array or file.types[key] is not rule.type:
        return False
    return _is_value(file.metadata, rule, value)


def _is_value(metadata: Mapping[str, Any], rule: KeyRule, value: Any) -> bool:
    """Return whether llama.cpp accepts a metadata value under a key's rule, whatever its type in
    the file.
    """
    if rule.banned or isinstance(value, _ARRAYS) is not rule.array:
        return False
    if rule.same_as is not None:
        return bool(value == metadata.get(rule.same_as))
    if rule.only is not None:
        return bool(value == rule.only)
    if rule.limits is not None:
        if rule.type is _F32:
            return isinstance(value, float) and is_within(value, rule.limits)
        return type(value) is int and rule.limits[0] <= value <= rule.limits[1]
    return True


def _expected(metadata: Mapping[str, Any], rule: KeyRule) -> str:
    if rule.banned:
        return "the key to be absent"
    kind = f"{'an array of ' if rule.array else ''}{rule.type.name if rule.type else ''}"
    if rule.same_as is not None:
        return f"{show(metadata.get(rule.same_as))} ({kind}), as {rule.same_as}"
    if rule.only is not None:
        return f"{rule.only!r} ({kind})"
    if rule.limits is not None:
        low, high = rule.limits
        return f"{low:.16g} to {high:.16g} ({kind})"
    return kind


# --- the vocabulary ---------------------------------------------------------------------------


def _vocabulary_problems(metadata: Mapping[str, Any]) -> Iterator[KeyProblem]:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, StringArray | list):
        return  # reported by the table
    yield from token_problems(tokens)
    types = metadata.get("tokenizer.ggml.token_type")
    if isinstance(types, tuple | list) and (
        len(types) != len(tokens) or not _KINDS.issuperset(types)
    ):
        expected = f"{len(tokens)} types from 1 to 6"
        yield KeyProblem("tokenizer.ggml.token_type", show(types), expected)
    merges = metadata.get("tokenizer.ggml.merges")
    if isinstance(merges, StringArray | tuple | list):
        if _has_nul(merges):
            yield KeyProblem("tokenizer.ggml.merges", "a text with NUL", "texts without NUL")
        if not len(merges) and isinstance(types, tuple | list) and has_words(tokens, types):
            yield KeyProblem("tokenizer.ggml.merges", show(merges), "those that make the tokens")
    scores = metadata.get("tokenizer.ggml.scores")
    if isinstance(scores, tuple) and len(scores) < len(tokens):
        yield KeyProblem("tokenizer.ggml.scores", show(scores), f"{len(tokens)} scores, or none")
    for role in TOKEN_ROLES:
        key = f"tokenizer.ggml.{role}_token_id"
        i = metadata.get(key)
        if isinstance(i, int) and not 0 <= i < len(tokens):
            yield KeyProblem(key, str(i), f"0 to {len(tokens) - 1}")


def _has_nul(texts: StringArray | Sequence[Any]) -> bool:
    """Report whether one of the texts has a NUL. Raises ``GgufError`` if one is not UTF-8."""
    if isinstance(texts, StringArray):
        return texts.has_nul()
    return any("\0" in it for it in texts if isinstance(it, str))


def _distinct(tokens: Iterable[str]) -> set[str]:
    """Return the different texts, collected in parts: one call for 201,088 tokens would keep other
    threads from running for 60 ms.
    """
    found, left = set[str](), iter(tokens)
    while part := list(islice(left, _PART)):
        found.update(part)
    return found


def has_words(tokens: StringArray | Sequence[str | None], types: Sequence[int | None]) -> bool:
    """Return whether a normal token has several bytes: without merges llama.cpp would never produce
    it.
    """
    pairs = zip(tokens, types, strict=False)
    return any(len(text) > 1 for text, kind in pairs if text and kind == TokenType.NORMAL)


def token_problems(tokens: StringArray | list[str]) -> Iterator[KeyProblem]:
    """Find token texts in ``tokenizer.ggml.tokens`` that make llama.cpp abort: duplicates, empty
    texts, texts with NUL.

    It ends a text at a NUL, and replaces an empty text by a generated one, which another token may
    already have.
    """
    texts = set[str]() if _has_nul(tokens) else _distinct(tokens)
    if len(texts) == len(tokens) and "" not in texts:
        return
    key = "tokenizer.ggml.tokens"
    seen: dict[str, int] = {}
    for i, text in enumerate(tokens):
        if not text or "\0" in text:
            yield KeyProblem(f"{key}[{i}]", quoted(text), "a text without NUL")
            return
        first = seen.setdefault(text, i)
        if first != i:
            yield KeyProblem(f"{key}[{i}]", quoted(text), f"another text than token {first} has")
            return


_KINDS = frozenset(int(kind) for kind in TokenType)
