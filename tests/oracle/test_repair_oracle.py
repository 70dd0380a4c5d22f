"""llama.cpp runs what repairing makes: the same model, and a reply that ends where it should."""

from __future__ import annotations

from pathlib import Path

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest
from gguf.constants import GGUFValueType
from numpy.typing import NDArray

from gptoss.converter.convert import convert
from gptoss.converter.repair.repair import repair
from support import ggufs, ollama
from support.checkpoints import random_checkpoint

pytestmark = pytest.mark.oracle

IDS = [int(i) for i in np.random.default_rng(1).integers(0, 256, 200)]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return random_checkpoint(
        tmp_path / "model", hidden=96, intermediate=160, experts=6, top_k=4, heads=6, kv_heads=3
    )


@pytest.fixture
def good(checkpoint: Path) -> Path:
    out = checkpoint.with_name("good.gguf")
    convert(checkpoint, out, dense="bf16")
    return out


def test_a_file_of_ollamas_runs(good: Path, checkpoint: Path, tmp_path: Path) -> None:
    """llama.cpp refuses it as it is, and computes the same with it once it is repaired."""
    model = ggufs.load(good)
    ollama.keys(model)
    ollama.tensors(model, checkpoint)
    theirs = ggufs.save(tmp_path / "theirs.gguf", model)
    with pytest.raises(ValueError, match="Failed to load model"):
        logits(theirs)
    repair(theirs, tmp_path / "repaired.gguf")
    expected = logits(good)
    assert expected.std() > 0.1
    assert (logits(tmp_path / "repaired.gguf") == expected).all()


def test_without_ropes_keys_it_runs_wrong_and_repaired_it_runs_right(
    good: Path, tmp_path: Path
) -> None:
    model = ggufs.load(good)
    for key in [key for key in model.keys if ".rope." in key]:
        del model.keys[key]
    lacking = ggufs.save(tmp_path / "lacking.gguf", model)
    repair(lacking, tmp_path / "repaired.gguf")
    expected = logits(good)
    assert np.abs(logits(lacking) - expected).max() > 0.01
    assert (logits(tmp_path / "repaired.gguf") == expected).all()


def test_the_end_of_a_reply(good: Path, tmp_path: Path) -> None:
    """llama.cpp takes ``<|end|>``, which closes the reasoning, out of the ends; others not."""
    model = ggufs.load(good)
    tokens = model.keys["tokenizer.ggml.tokens"][2]
    model.set("tokenizer.ggml.eos_token_id", GGUFValueType.UINT32, tokens.index("<|end|>"))
    model.set("tokenizer.ggml.eot_token_id", GGUFValueType.UINT32, tokens.index("<|message|>"))
    repair(ggufs.save(tmp_path / "broken.gguf", model), tmp_path / "repaired.gguf")
    right = {"<|return|>", "<|call|>", "<|endoftext|>"}
    assert ends(tmp_path / "broken.gguf") == ("<|end|>", right | {"<|message|>"})
    assert ends(tmp_path / "repaired.gguf") == ("<|return|>", right)


def ends(path: Path) -> tuple[str, set[str]]:
    """What llama.cpp takes for the end of a text, and the tokens at which it ends a generation."""
    params = lib.llama_model_default_params()
    params.vocab_only = True
    model = lib.llama_model_load_from_file(str(path).encode(), params)
    assert model
    vocab = lib.llama_model_get_vocab(model)
    last = lib.llama_vocab_get_text(vocab, lib.llama_vocab_eos(vocab)).decode()
    found = {
        lib.llama_vocab_get_text(vocab, i).decode()
        for i in range(lib.llama_vocab_n_tokens(vocab))
        if lib.llama_vocab_is_eog(vocab, i)
    }
    lib.llama_model_free(model)
    return last, found


def logits(path: Path) -> NDArray[np.float32]:
    """Logits (tokens, vocabulary) by llama-cpp-python's own class."""
    from llama_cpp import Llama

    model = Llama(str(path), n_ctx=256, n_batch=256, n_threads=2, logits_all=True, verbose=False)
    model.eval(IDS)
    found = np.array(model.scores[: len(IDS)])
    model.close()
    return found
