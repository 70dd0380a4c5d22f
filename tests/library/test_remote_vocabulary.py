"""A model that another server runs: of its own name only the vocabulary is fetched."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("httpcore")

from gptoss.library.finder import LibraryFinder
from gptoss.library.store import ModelFolder
from gptoss.runtime.models.preflight import Model
from support.commands import Command
from support.hub_server import HubServer
from support.remote_servers import LLAMA_SERVER, answering, event

from .conftest import CHECKPOINT, GGUF


@pytest.mark.parametrize("name", ["20b", CHECKPOINT, GGUF, "folder", "file"])
def test_the_vocabulary_of_a_model_that_is_not_here(
    name: str, hub: HubServer, models: Path, published: Path, published_gguf: Path
) -> None:
    here = {"folder": published, "file": published_gguf / "gpt-oss-20b-mxfp4.gguf"}
    expected = Model.open(here["file"]).tokenizer
    with LibraryFinder(ModelFolder()).vocabulary(str(here.get(name, name))) as path:
        found = Model.open(path)
        assert found.tokenizer.control == expected.control
        text = "What is 17 + 25? Ünïcödé 日本"
        assert found.tokenizer.encode(text) == expected.encode(text)
        assert found.tokenizer.n_vocab == expected.n_vocab
    assert not models.exists()
    assert not [it for it in hub.requests if it.file.endswith(".safetensors")]


def test_chat_in_front_of_a_server_downloads_no_weights(
    run: Command, hub: HubServer, models: Path, published_gguf: Path
) -> None:
    tokenizer = Model.open(published_gguf / "gpt-oss-20b-mxfp4.gguf").tokenizer
    control = tokenizer.control
    reply = [control["<|channel|>"], *tokenizer.encode("final"), control["<|message|>"],
             *tokenizer.encode("four"), control["<|return|>"]]  # fmt: skip
    chunks = [event(content="", tokens=reply), event(content="", stop=True)]
    with answering(chunks) as server:
        server.got = LLAMA_SERVER
        done = run("chat", "20b", "--base-url", server.url, "--no-save", "-p", "2 + 2?")
        assert (done.code, done.out) == (0, "four\n"), done.err
    assert not models.exists()
    assert not [it for it in hub.requests if it.file.endswith(".safetensors")]
