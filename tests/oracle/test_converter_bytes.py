"""The converter's output against that of llama.cpp's own converter, byte by byte."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptoss.converter.convert import convert
from gptoss.formats.gguf import GgufFile
from gptoss.formats.o200k import PRE_TOKENIZER
from gptoss.quant.verify.verifier import verify
from support import forms, peers
from support.checkpoints import random_checkpoint

pytestmark = pytest.mark.oracle

RUNNER = Path(__file__).with_name("run_llama_cpp_converter.py")
FULL_VOCABULARY = 201088

KEYS = (
    "general.architecture",
    "general.file_type",
    "general.quantization_version",
    "gpt-oss.block_count",
    "gpt-oss.context_length",
    "gpt-oss.embedding_length",
    "gpt-oss.feed_forward_length",
    "gpt-oss.expert_feed_forward_length",
    "gpt-oss.attention.head_count",
    "gpt-oss.attention.head_count_kv",
    "gpt-oss.attention.key_length",
    "gpt-oss.attention.value_length",
    "gpt-oss.attention.layer_norm_rms_epsilon",
    "gpt-oss.attention.sliding_window",
    "gpt-oss.expert_count",
    "gpt-oss.expert_used_count",
    "gpt-oss.rope.freq_base",
    "gpt-oss.rope.scaling.type",
    "gpt-oss.rope.scaling.factor",
    "gpt-oss.rope.scaling.original_context_length",
    "gpt-oss.rope.scaling.yarn_beta_fast",
    "gpt-oss.rope.scaling.yarn_beta_slow",
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.padding_token_id",
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_eos_token",
)
"""Both must have these, alike in value and type; and merges and template where there are any."""


@dataclass(frozen=True)
class Case:
    """A checkpoint's shape, and the dense types to convert it with.

    With ``floats`` it is a fine-tune saved in that dtype, and experts are kept as BF16.
    """

    name: str
    dense: tuple[str, ...]
    real_tokenizer: bool = False
    floats: str | None = None
    shape: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("bytes", ("bf16", "f16", "q8_0", "f32"), shape={"rope_schema": "rope_scaling"}),
    Case(
        "sharded",
        ("bf16", "q8_0"),
        real_tokenizer=True,
        shape={
            "hidden": 96, "intermediate": 160, "layers": 3, "experts": 5, "top_k": 3, "heads": 6,
            "kv_heads": 3, "vocab": 3000, "shards": 3, "seed": 1,
            "chat_template": "{{ messages }} ≠ ünïcode\n",
        },
    ),
    Case(
        "wide",
        ("bf16", "q8_0"),
        shape={"hidden": 2880, "layers": 2, "experts": 2, "heads": 64, "kv_heads": 8, "seed": 2},
    ),
    Case("fine-tune-bf16", ("bf16",), floats="BF16", shape={"intermediate": 96, "seed": 4}),
    Case("fine-tune-f16", ("bf16",), floats="F16", shape={"seed": 5}),
    Case("fine-tune-f32", ("bf16",), floats="F32", shape={"intermediate": 32, "seed": 6}),
    Case("full", ("bf16",), real_tokenizer=True, shape={"vocab": FULL_VOCABULARY, "seed": 3}),
)  # fmt: skip

CONVERSIONS = [
    pytest.param(case, dense, id=f"{case.name}-{dense}") for case in CASES for dense in case.dense
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every case's checkpoint, and what llama.cpp's converter makes of each."""
    folder = tmp_path_factory.mktemp("bytes")
    jobs = []
    for case in CASES:
        source = folder / case.name
        tokenizer = peers.tokenizer() if case.real_tokenizer else None
        if case.floats:
            published = random_checkpoint(folder / f"{case.name}-published", **case.shape)
            forms.to_floats(published, source, case.floats)
        else:
            random_checkpoint(source, tokenizer_folder=tokenizer, **case.shape)
        pre = None if case.shape.get("vocab") == FULL_VOCABULARY else PRE_TOKENIZER
        jobs += [
            (str(source), dense, str(theirs(folder, case, dense)), pre) for dense in case.dense
        ]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, RUNNER, peers.llama_cpp(), folder / "jobs.json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def theirs(folder: Path, case: Case, dense: str) -> Path:
    return folder / f"{case.name}-{dense}-theirs.gguf"


@pytest.mark.parametrize(("case", "dense"), CONVERSIONS)
def test_equals_llama_cpp_converter(folder: Path, case: Case, dense: str) -> None:
    ours = folder / "ours.gguf"
    experts = "bf16" if case.floats else "mxfp4"
    convert(folder / case.name, ours, dense=dense, experts=experts)
    mine, other = GgufFile.open(ours), GgufFile.open(theirs(folder, case, dense))
    assert_same_tensors(mine, other)
    keys = set(KEYS)
    if dense == "q8_0":
        # The published GGUFs say MXFP4 here, their converter with q8_0 does not.
        keys.remove("general.file_type")
        assert (mine.metadata["general.file_type"], other.metadata["general.file_type"]) == (38, 7)
    if case.real_tokenizer:
        keys.add("tokenizer.ggml.merges")
    if "chat_template" in case.shape:
        keys.add("tokenizer.chat_template")
    assert_same_keys(mine, other, keys)


@pytest.mark.parametrize("dense", ["bf16", "q8_0"])
def test_their_fused_attention_is_proven(folder: Path, tmp_path: Path, dense: str) -> None:
    """``--fuse-qkv`` writes one attn_qkv a layer, and otherwise the same file."""
    source, out = folder / "bytes", tmp_path / "fused.gguf"
    jobs = [(str(source), dense, str(out), PRE_TOKENIZER, "--fuse-qkv")]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, RUNNER, peers.llama_cpp(), tmp_path / "jobs.json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    names = GgufFile.open(out).tensors
    assert {"blk.0.attn_qkv.weight", "blk.1.attn_qkv.bias"} <= names.keys()
    assert not any(".attn_q." in name for name in names)
    verdict = verify(source, out)
    assert (verdict.differences, verdict.unproven) == ((), ())
    # A vocabulary of single bytes has no merges; theirs leaves the key out, fused or not.
    assert [it.key for it in verdict.keys] == ["tokenizer.ggml.merges"]


def assert_same_tensors(mine: GgufFile, other: GgufFile) -> None:
    assert mine.tensors.keys() == other.tensors.keys()
    with mine.path.open("rb") as a, other.path.open("rb") as b:
        for name, x in mine.tensors.items():
            y = other.tensors[name]
            assert (x.type, x.shape, x.nbytes) == (y.type, y.shape, y.nbytes), name
            a.seek(x.offset)
            b.seek(y.offset)
            assert a.read(x.nbytes) == b.read(y.nbytes), f"{name} has other bytes"


def assert_same_keys(mine: GgufFile, other: GgufFile, keys: Iterable[str]) -> None:
    for key in keys:
        assert key in other.metadata, f"{key}: theirs has none"
        assert key in mine.metadata, f"{key}: ours has none"
        x, y = mine.metadata[key], other.metadata[key]
        assert mine.types[key] is other.types[key], key
        assert type(x) is type(y), key
        same = list(x) == list(y) if hasattr(x, "__len__") else x == y
        assert same, f"{key}: {x!r} is not {y!r}"
    extra = {key for key in other.metadata if key.startswith(("gpt-oss.", "tokenizer."))}
    assert extra <= mine.metadata.keys(), "theirs has keys that ours lacks"


def test_the_comparison_sees_a_difference(folder: Path) -> None:
    """One flipped bit in a tensor, one token changed: each is noticed."""
    case = CASES[0]
    ours, damaged = folder / "ours.gguf", folder / "damaged.gguf"
    convert(folder / case.name, ours, dense="bf16")
    raw = np.fromfile(ours, np.uint8)
    mine = GgufFile.open(ours)
    raw[mine.tensors["blk.1.ffn_up_exps.weight"].offset + 5] ^= 1
    raw.tofile(damaged)
    with pytest.raises(AssertionError, match=r"blk\.1\.ffn_up_exps\.weight"):
        assert_same_tensors(GgufFile.open(damaged), mine)
    damaged.write_bytes(ours.read_bytes().replace(b"<|start|>", b"<|stert|>"))
    with pytest.raises(AssertionError, match=r"tokenizer\.ggml\.tokens"):
        assert_same_keys(GgufFile.open(damaged), mine, KEYS)
