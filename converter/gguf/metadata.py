"""The keys of a GGUF that llama.cpp needs to run gpt-oss, with their types.

Names and types are those of llama.cpp's own converter, and so are the values but for one:
``general.file_type`` goes by the experts, as the published GGUFs and llama.cpp's enum have it: 38,
mostly MXFP4, or 32, mostly BF16, whatever the dense type. That converter goes by ``--outtype``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gguf.constants import GGML_QUANT_VERSION, GGUFValueType

from gptoss.converter.gguf.vocab import Vocabulary
from gptoss.converter.transforms.float_experts import ExpertType
from gptoss.formats.hparams import ARCHITECTURE, GGUF_KEYS, HParams
from gptoss.formats.o200k import PRE_TOKENIZER

FILE_TYPES = {ExpertType.MXFP4: 38, ExpertType.BF16: 32}

STRING, BOOL = GGUFValueType.STRING, GGUFValueType.BOOL
U32, I32, F32 = GGUFValueType.UINT32, GGUFValueType.INT32, GGUFValueType.FLOAT32


@dataclass(frozen=True, slots=True)
class Entry:
    """A key, its value and the value's type; of an array, the elements' type."""

    key: str
    type: GGUFValueType
    value: Any
    array: bool = False


def metadata(
    hparams: HParams, vocabulary: Vocabulary, name: str, experts: ExpertType = ExpertType.MXFP4
) -> list[Entry]:
    """Build all GGUF keys that llama.cpp needs for a gpt-oss model called ``name``: hyperparameters
    and tokenizer.
    """
    return [
        Entry("general.architecture", STRING, ARCHITECTURE),
        Entry("general.type", STRING, "model"),
        Entry("general.name", STRING, name),
        Entry("general.file_type", U32, FILE_TYPES[experts]),
        Entry("general.quantization_version", U32, GGML_QUANT_VERSION),
        *model_keys(hparams),
        *tokenizer_keys(vocabulary),
    ]


def model_keys(hparams: HParams) -> Sequence[Entry]:
    """Build the GGUF keys of the hyperparameters, such as gpt-oss.block_count, with their types."""
    fields = [(key, getattr(hparams, name)) for name, key in GGUF_KEYS.items()]
    return [
        *(Entry(key, U32 if isinstance(value, int) else F32, value) for key, value in fields),
        # Each expert is as wide as a dense feed-forward would be, and a value as a key.
        Entry("gpt-oss.feed_forward_length", U32, hparams.intermediate_size),
        Entry("gpt-oss.attention.value_length", U32, hparams.head_dim),
        Entry("gpt-oss.rope.scaling.type", STRING, "yarn"),
    ]


def tokenizer_keys(vocabulary: Vocabulary) -> Sequence[Entry]:
    """Build the tokenizer.ggml.* keys of a GGUF from a vocabulary, with their types."""
    entries = [
        Entry("tokenizer.ggml.model", STRING, "gpt2"),
        Entry("tokenizer.ggml.pre", STRING, PRE_TOKENIZER),
        Entry("tokenizer.ggml.tokens", STRING, vocabulary.tokens, array=True),
        Entry("tokenizer.ggml.token_type", I32, vocabulary.types, array=True),
        Entry("tokenizer.ggml.merges", STRING, vocabulary.merges, array=True),
        Entry("tokenizer.ggml.bos_token_id", U32, vocabulary.bos),
        Entry("tokenizer.ggml.eos_token_id", U32, vocabulary.eos),
        Entry("tokenizer.ggml.padding_token_id", U32, vocabulary.pad),
        # Harmony places its own control tokens; nothing is to be added around a text.
        Entry("tokenizer.ggml.add_bos_token", BOOL, False),
        Entry("tokenizer.ggml.add_eos_token", BOOL, False),
    ]
    if vocabulary.chat_template is not None:
        entries.append(Entry("tokenizer.chat_template", STRING, vocabulary.chat_template))
    return entries
