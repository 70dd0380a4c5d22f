"""Read a GGUF as the source of a checkpoint: its tensors and its vocabulary.

A model is made from what is read here, so nothing is skipped: an unknown tensor, a duplicate token,
or a merge that makes no token is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gguf.constants import Keys, TokenType

from gptoss.converter.gguf.vocab import Vocabulary
from gptoss.converter.transforms.to_checkpoint import READABLE
from gptoss.errors import GgufError, UnsupportedModelError, quoted
from gptoss.formats import harmony_tokens
from gptoss.formats.gguf import GgufFile, GgufTensor
from gptoss.formats.gguf_strings import StringArray
from gptoss.formats.hparams import HParams
from gptoss.formats.llama_cpp_keys import token_problems
from gptoss.formats.o200k import BYTE_LEVEL, PRE_TOKENIZER
from gptoss.formats.safetensors import TensorInfo
from gptoss.formats.tensor_map import tensors

REPAIR = "try to repair it: gptoss-convert FILE -o NEW.gguf"

_KINDS = frozenset((TokenType.NORMAL, TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED))
_ROLES = {
    "bos": Keys.Tokenizer.BOS_ID,
    "eos": Keys.Tokenizer.EOS_ID,
    "pad": Keys.Tokenizer.PAD_ID,
}


def check_tensors(file: GgufFile, hparams: HParams) -> None:
    """Check the tensors of a GGUF that is the source of an export: raise ``GgufError`` unless
    exactly gpt-oss's are there, ``UnsupportedModelError`` when one has a type that cannot be
    decoded.
    """
    expected = {named.gguf: named for named in tensors(hparams)}
    for name, named in expected.items():
        found = file.tensors.get(name)
        if found is None:
            raise GgufError(f"{file.path}: has no tensor {name}; {REPAIR}")
        if found.shape != named.ggml_shape:
            raise GgufError(
                f"{found.path}: tensor {name} has shape {found.shape}; expected {named.ggml_shape}"
            )
        if found.type not in READABLE:
            raise UnsupportedModelError(
                f"{found.path}: tensor {name} is {found.type.name}, which cannot be decoded"
            )
    for name, found in file.tensors.items():
        if name not in expected:
            raise GgufError(
                f"{found.path}: unknown tensor {quoted(name)}; gpt-oss has no such tensor"
            )


def as_tensor_info(tensor: GgufTensor) -> TensorInfo:
    """Describe a source GGUF's tensor as a ``TensorInfo``; its shape in ggml's order is reversed to
    the checkpoint's.
    """
    shape = tensor.shape[::-1]
    return TensorInfo(
        tensor.name, tensor.type.name, shape, tensor.file, tensor.offset, tensor.nbytes
    )


def vocabulary(file: GgufFile) -> Vocabulary:
    """Read the vocabulary from the keys of a source GGUF.

    Raises ``UnsupportedModelError`` for another kind of tokenizer, ``GgufError`` for a damaged one.
    """
    where = str(file.path)
    model, pre = file.metadata.get(Keys.Tokenizer.MODEL), file.metadata.get(Keys.Tokenizer.PRE)
    if (model, pre) != ("gpt2", PRE_TOKENIZER):
        raise UnsupportedModelError(
            f"{where}: tokenizer {quoted(model)} with pre-tokenizer {quoted(pre)}; gpt-oss has "
            f"'gpt2' with {PRE_TOKENIZER!r}; {REPAIR}"
        )
    tokens = list(_strings(file, Keys.Tokenizer.LIST))
    types = _types(file, len(tokens))
    merges = list(_strings(file, Keys.Tokenizer.MERGES))
    roles = {role: _role(file, role, tokens) for role in harmony_tokens.ROLES}
    found = Vocabulary(tokens, types, merges, **roles, chat_template=template(file))
    check(found, where)
    return found


def template(file: GgufFile) -> str | None:
    """Read the chat template from the keys of a source GGUF; None if there is none."""
    found = file.metadata.get(Keys.Tokenizer.CHAT_TEMPLATE)
    if found is not None and not isinstance(found, str):
        raise GgufError(f"{file.path}: {Keys.Tokenizer.CHAT_TEMPLATE} is not a text")
    return found or None


def check(found: Vocabulary, where: str) -> None:
    """Check a vocabulary read from a GGUF: raise ``GgufError`` unless it encodes every text, and
    each in one way.
    """
    pairs = list(zip(found.tokens, found.types, strict=True))
    known = {token for token, kind in pairs if kind == TokenType.NORMAL}
    for problem in token_problems(found.tokens):
        raise GgufError(f"{where}: {problem}")
    missing = [code for code in BYTE_LEVEL if chr(code) not in known]
    if missing:
        raise GgufError(f"{where}: no token for the byte {BYTE_LEVEL[missing[0]]:#04x}")
    for i, merge in enumerate(found.merges):
        left, _, right = merge.partition(" ")
        if left not in known or right not in known or left + right not in known:
            raise GgufError(
                f"{where}: {Keys.Tokenizer.MERGES}[{i}] is {quoted(merge)}, which makes no token"
            )


def _strings(file: GgufFile, key: str) -> StringArray:
    found = file.metadata.get(key)
    if not isinstance(found, StringArray):
        raise GgufError(f"{file.path}: has no array of strings {key}")
    return found


def _types(file: GgufFile, n_tokens: int) -> list[int]:
    found = file.metadata.get(Keys.Tokenizer.TOKEN_TYPE)
    if not isinstance(found, tuple) or len(found) != n_tokens:
        raise GgufError(
            f"{file.path}: {Keys.Tokenizer.TOKEN_TYPE} does not have a type for each token"
        )
    types = list(found)
    strange = set(types) - _KINDS
    if strange:
        raise GgufError(
            f"{file.path}: {Keys.Tokenizer.TOKEN_TYPE} holds the unknown type "
            f"{quoted(min(strange))}"
        )
    return types


def _role(file: GgufFile, role: str, tokens: Sequence[str]) -> int:
    """Read a special token's id (bos, eos, pad) from the source GGUF's keys; harmony's token if
    absent.
    """
    given: Any = file.metadata.get(_ROLES[role])
    if type(given) is int and 0 <= given < len(tokens):
        return given
    if given is None and harmony_tokens.ROLES[role] in tokens:
        return tokens.index(harmony_tokens.ROLES[role])
    raise GgufError(f"{file.path}: {_ROLES[role]} is {quoted(given)}; expected a token's id")
