"""Where llama.cpp ends a reply beside the tokens at which gpt-oss does.

Source: llama.cpp as packaged in llama-cpp-python 0.3.36, ``llama-vocab.cpp`` (``load``). It takes
the end-of-generation tokens from these keys, and from texts of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gguf.constants import TokenType

from gptoss.formats.gguf_strings import StringArray
from gptoss.formats.harmony_tokens import END, ENDS_OF_REPLY

ENDING_KEYS = tuple(
    f"tokenizer.ggml.{role}_token_id" for role in ("eot", "eom", "fim_pad", "fim_rep", "fim_sep")
)
"""The keys, beside that of the EOS, whose tokens end a reply."""
_ALLOWED = (*ENDS_OF_REPLY, END)

ENDING_TEXTS = frozenset((
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[",
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>",
    "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
))  # fmt: skip
"""Texts at whose token llama.cpp ends a reply, whatever the token's type."""


@dataclass(frozen=True, slots=True)
class OtherEnd:
    """A key, or a token (``tokenizer.ggml.tokens``, ``index``), that makes ``text`` end a reply."""

    key: str
    token: int
    text: str
    index: int | None = None


def other_ends(metadata: Mapping[str, Any]) -> Iterator[OtherEnd]:
    """Find the tokens of a GGUF at which llama.cpp would end a reply and gpt-oss does not.

    A text that ends a reply counts where its token is unused by the type that the file gives it.
    """
    key = "tokenizer.ggml.tokens"
    tokens = metadata.get(key)
    if not isinstance(tokens, StringArray | Sequence):
        return
    for name in ENDING_KEYS:
        i = metadata.get(name)
        if isinstance(i, int) and 0 <= i < len(tokens) and tokens[i] not in _ALLOWED:
            yield OtherEnd(name, i, tokens[i])
    types = metadata.get("tokenizer.ggml.token_type")
    kinds = types if isinstance(types, tuple | list) else ()
    for i in (i for i, kind in enumerate(kinds[: len(tokens)]) if kind == TokenType.UNUSED):
        if tokens[i] in ENDING_TEXTS:
            yield OtherEnd(key, i, tokens[i], i)
