"""Random gpt-oss checkpoints of any size, in the published form, streamed to disk.

    python tests/support/checkpoints.py --size 20b --tokenizer FOLDER OUT

Values are scaled so that activations stay sane: a model of them computes without overflow and its
logits have a spread of about one. Everything follows from the seed. Written by its own few lines
rather than by the ``safetensors`` package, which would hold a shard in memory.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gptoss.formats.hparams import HParams
from gptoss.formats.o200k import O200K_PATTERN
from gptoss.formats.tensor_map import HfTensor, hf_tensors

GPT_OSS_20B = HParams(
    num_hidden_layers=24,
    hidden_size=2880,
    intermediate_size=2880,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=64,
    num_local_experts=32,
    num_experts_per_tok=4,
    vocab_size=201088,
    sliding_window=128,
    max_position_embeddings=131072,
    rms_norm_eps=1e-5,
    rope_theta=150000.0,
    yarn_factor=32.0,
    yarn_original_context=4096,
    yarn_beta_fast=32.0,
    yarn_beta_slow=1.0,
)
"""What the published gpt-oss-20b has."""

POOL = 2**14
"""Different blocks that experts are drawn from."""
RopeSchema = Literal["rope_parameters", "rope_scaling"]
CHUNK = 2**22
"""Values made and written at once."""
CODE_RMS = 2.41
"""Root mean square of the E2M1 values that normal values are encoded to."""
CONTROL_TOKENS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|reserved_200000|>",
    "<|reserved_200001|>",
    "<|return|>",
    "<|constrain|>",
    "<|reserved_200004|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|reserved_200009|>",
    "<|reserved_200010|>",
    "<|reserved_200011|>",
    "<|call|>",
    "<|endofprompt|>",
)


def random_checkpoint(
    folder: Path,
    *,
    hidden: int = 64,
    intermediate: int | None = None,
    layers: int = 2,
    experts: int = 4,
    top_k: int = 2,
    heads: int = 2,
    kv_heads: int = 1,
    vocab: int = 320,
    tokenizer_folder: Path | None = None,
    shards: int = 1,
    seed: int = 0,
    rope_schema: RopeSchema = "rope_parameters",
    chat_template: str | None = None,
) -> Path:
    """Write a checkpoint to ``folder`` (created when missing) and return it.

    ``intermediate`` is ``hidden`` unless given. The vocabulary of ``vocab`` embedding rows: with
    ``tokenizer_folder`` (one holding a real tokenizer.json) its files as they are when they have
    as many tokens, else its first ranks and the control tokens; without, the 256 bytes and the
    control tokens. Rows that remain have no token, as in the published models.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids = write_tokenizer(folder, vocab, tokenizer_folder)
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template)
    config = _config(rope_schema) | {
        "eos_token_id": ids["<|return|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "hidden_size": hidden,
        "intermediate_size": hidden if intermediate is None else intermediate,
        "layer_types": ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)],
        "num_attention_heads": heads,
        "num_experts_per_tok": top_k,
        "experts_per_token": top_k,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "num_local_experts": experts,
        "vocab_size": vocab,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    _write_weights(folder, HParams.from_config(config), shards, seed)
    return folder


def _config(rope_schema: RopeSchema) -> dict[str, Any]:
    """What all gpt-oss models have in common, as published or as newer transformers save it."""
    yarn = {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    }
    rope: dict[str, Any] = {"rope_scaling": yarn, "rope_theta": 150000}
    if rope_schema == "rope_parameters":
        rope = {"rope_parameters": yarn | {"rope_theta": 150000.0}}
    return rope | {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "head_dim": 64,
        "hidden_act": "silu",
        "initial_context_length": 4096,
        "initializer_range": 0.02,
        "max_position_embeddings": 131072,
        "model_type": "gpt_oss",
        "output_router_logits": False,
        "quantization_config": {
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": 1e-05,
        "router_aux_loss_coef": 0.9,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "use_cache": True,
    }


# --- weights ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shard:
    path: Path
    tensors: Sequence[HfTensor]


def _write_weights(folder: Path, hparams: HParams, n_shards: int, seed: int) -> None:
    tensors = sorted(hf_tensors(hparams).values(), key=lambda tensor: tensor.name)
    total = sum(map(_nbytes, tensors))
    groups: list[list[HfTensor]] = [[] for _ in range(n_shards)]
    done = 0
    for tensor in tensors:
        groups[min(n_shards - 1, done * n_shards // total)].append(tensor)
        done += _nbytes(tensor)
    for k, group in enumerate(groups):
        name = "model.safetensors"
        if n_shards > 1:
            name = f"model-{k:05}-of-{n_shards - 1:05}.safetensors"
        _write_shard(_Shard(folder / name, group), seed)
    if n_shards > 1:
        weight_map = {
            tensor.name: f"model-{k:05}-of-{n_shards - 1:05}.safetensors"
            for k, group in enumerate(groups)
            for tensor in group
        }
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _write_shard(shard: _Shard, seed: int) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in shard.tensors:
        end = at + _nbytes(tensor)
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [at, end],
        }
        at = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with shard.path.open("wb") as out:
        out.write(struct.pack("<Q", len(raw)) + raw)
        for tensor in shard.tensors:
            for chunk in _chunks(tensor, seed):
                out.write(chunk.data)


def _chunks(tensor: HfTensor, seed: int) -> Iterator[NDArray[Any]]:
    """A tensor's values, a bounded piece at a time."""
    rng = np.random.Generator(np.random.SFC64([seed, *tensor.name.encode()]))
    left = math.prod(tensor.shape)
    while left:
        n = min(left, CHUNK)
        left -= n
        if tensor.name.endswith("_blocks"):
            yield _normal_blocks()[rng.integers(0, POOL, n // 16)].reshape(-1)
        elif tensor.name.endswith("_scales"):
            fan_in = tensor.shape[-1] * 32
            middle = 127 + round(math.log2(1 / (CODE_RMS * math.sqrt(fan_in))))
            yield rng.integers(middle - 1, middle + 2, n, np.uint8)
        else:
            mean, spread = _distribution(tensor)
            values = rng.standard_normal(n, np.float32)
            values *= np.float32(spread)
            values += np.float32(mean)
            yield bf16(values)


@cache
def _normal_blocks() -> NDArray[np.uint8]:
    """Blocks of normal values encoded to MXFP4, as trained weights look, ``uint8[POOL, 16]``."""
    values = np.random.default_rng(0).standard_normal((POOL, 32))
    sizes = np.abs(values)
    scales = np.exp2(np.floor(np.log2(sizes.max(axis=1, keepdims=True))) - 2)
    middles = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5])  # between E2M1's magnitudes
    codes = (np.searchsorted(middles, sizes / scales) | np.signbit(values) << 3).astype(np.uint8)
    packed: NDArray[np.uint8] = codes[:, 0::2] | codes[:, 1::2] << 4
    return packed


def _distribution(tensor: HfTensor) -> tuple[float, float]:
    """Mean and standard deviation of a BF16 tensor."""
    if tensor.name.endswith("norm.weight"):
        return 1.0, 0.1
    if tensor.name.endswith("bias"):
        return 0.0, 0.02
    if tensor.name.endswith(("sinks", "embed_tokens.weight")):
        return 0.0, 1.0
    return 0.0, 1.0 / math.sqrt(tensor.shape[-1])


def bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """float32 to the nearest BF16, as its bits; ties to even."""
    bits = values.view(np.uint32)
    rounded: NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


def _nbytes(tensor: HfTensor) -> int:
    return math.prod(tensor.shape) * (2 if tensor.dtype == "BF16" else 1)


# --- tokenizer --------------------------------------------------------------------------------


def write_tokenizer(folder: Path, vocab: int, source: Path | None) -> dict[str, int]:
    """Write tokenizer.json and tokenizer_config.json; returns the control tokens' ids."""
    ranks, merges = [*_byte_level()], []
    if source is not None:
        real = json.loads((source / "tokenizer.json").read_text())
        controls = {token["content"]: token["id"] for token in real["added_tokens"]}
        if max(controls.values()) < vocab:
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copyfile(source / name, folder / name)
            return controls
        by_rank = sorted(real["model"]["vocab"].items(), key=lambda item: item[1])
        ranks = [token for token, _ in by_rank[: vocab - len(CONTROL_TOKENS)]]
        known = set(ranks)
        merges = [[a, b] for a, b in real["model"]["merges"] if {a, b, a + b} <= known]
    controls = {token: len(ranks) + i for i, token in enumerate(CONTROL_TOKENS)}
    if len(ranks) + len(controls) > vocab:
        raise ValueError(f"{len(ranks)} tokens and {len(controls)} controls do not fit {vocab}")
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(ranks, merges, controls)))
    settings = {
        "bos_token": "<|startoftext|>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|return|>",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return controls


def _tokenizer(
    ranks: Sequence[str], merges: Sequence[Sequence[str]], controls: dict[str, int]
) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    split = {
        "type": "Split",
        "pattern": {"Regex": O200K_PATTERN},
        "behavior": "Isolated",
        "invert": False,
    }
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **flags, "special": True} for token, i in controls.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split, byte_level | {"use_regex": False}],
        },
        "post_processor": byte_level | {"trim_offsets": False, "use_regex": True},
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {token: i for i, token in enumerate(ranks)},
            "merges": merges,
        },
    }


def _byte_level() -> Iterator[str]:
    """The 256 bytes in GPT-2's spelling: printable Latin-1 as itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    yield from map(chr, printable)
    yield from map(chr, range(0x100, 0x100 + 256 - len(printable)))


SIZES: dict[str, dict[str, int]] = {
    "20b": {
        "hidden": 2880,
        "layers": 24,
        "experts": 32,
        "top_k": 4,
        "heads": 64,
        "kv_heads": 8,
        "vocab": 201088,
        "shards": 3,
    },
    "tiny": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a random gpt-oss checkpoint.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to create")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--tokenizer", type=Path, help="folder with a real tokenizer.json")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sizes: Any = SIZES[args.size]
    random_checkpoint(args.out, tokenizer_folder=args.tokenizer, seed=args.seed, **sizes)


if __name__ == "__main__":
    main()
