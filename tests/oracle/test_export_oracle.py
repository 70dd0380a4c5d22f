"""What an export gives, in transformers' hands: the same model, the same tokenizer."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from gptoss.converter.convert import convert
from gptoss.converter.export.export import export
from support import peers
from support.checkpoints import random_checkpoint

pytestmark = pytest.mark.oracle

FULL_VOCABULARY = 201088


@pytest.mark.parametrize("form", ["hf", "hf-bf16"])
@pytest.mark.parametrize("dense", ["bf16", "f32"])
def test_the_exported_model_computes_the_same(tmp_path: Path, form: str, dense: str) -> None:
    """Bit by bit: what transformers unpacks from MXFP4 is what ``hf-bf16`` holds."""
    source = random_checkpoint(
        tmp_path / "source", hidden=96, intermediate=160, layers=3, experts=5, top_k=2, vocab=600
    )
    convert(source, tmp_path / "model.gguf", dense=dense)
    export(tmp_path / "model.gguf", tmp_path / "back", to=form, shard_bytes=500_000)
    ids = [random.Random(1).randrange(600) for _ in range(200)]
    expected, found = logits(source, ids), logits(tmp_path / "back", ids)
    assert expected.std() > 0.1
    assert (expected == found).all()


def logits(folder: Path, ids: list[int]) -> Any:
    import torch
    from transformers import GptOssForCausalLM

    model = GptOssForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def test_the_full_tokenizer_is_the_published_one(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    source = random_checkpoint(
        tmp_path / "source", hidden=32, layers=1, experts=2, top_k=1, vocab=FULL_VOCABULARY,
        tokenizer_folder=peers.tokenizer(),
    )  # fmt: skip
    convert(source, tmp_path / "model.gguf")
    export(tmp_path / "model.gguf", tmp_path / "back")
    real, back = (
        json.loads((folder / "tokenizer.json").read_text("utf-8"))
        for folder in (peers.tokenizer(), tmp_path / "back")
    )
    assert back == real

    published = Tokenizer.from_file(str(peers.tokenizer() / "tokenizer.json"))
    ours = AutoTokenizer.from_pretrained(tmp_path / "back")
    theirs = AutoTokenizer.from_pretrained(peers.tokenizer())
    assert len(ours) == published.get_vocab_size()
    rng = random.Random(2)
    for _ in range(300):
        text = "".join(rng.choices(PIECES, k=12))
        ids = published.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, add_special_tokens=False) == ids
        assert ours.decode(ids) == theirs.decode(ids)
    for role in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(ours, role) == getattr(theirs, role)


PIECES = (
    "hello", " world", "\n\n", "  ", "\t", "I'll", "12345", "ünï", "世界", "🙂", "e\u0301",
    "<|start|>", "<|return|>", "!?", "//", "\r\n", "Größe", "ÀÉ", "日本語", "\u200b", "0", " the",
)  # fmt: skip


def test_the_file_is_the_one_that_the_safetensors_package_writes(tmp_path: Path) -> None:
    """Header, order and padding: a checkpoint saved by it comes back byte by byte."""
    from safetensors.torch import load_file, save_file

    source = random_checkpoint(tmp_path / "source")
    weights = source / "model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt"})
    convert(source, tmp_path / "model.gguf", dense="bf16")
    export(tmp_path / "model.gguf", tmp_path / "back")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == weights.read_bytes()
