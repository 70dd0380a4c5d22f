"""``/v1/completions`` in this process: text and token ids, without harmony."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptoss.runtime.chat.model import open as open_model
from support.fake_engine import ScriptedEngine
from support.random_engine import RandomEngine
from support.server import client_of, scripted
from support.tokens import byte_tokenizer, spell


async def test_text_is_text() -> None:
    engine = ScriptedEngine("four<|return|>")
    async with client_of(lambda: scripted(engine)) as client:
        asked = {"prompt": "<|start|>2 + 2 is ", "echo": True, "return_token_ids": True}
        body = (await client.post("/v1/completions", json=asked)).json()
    [choice] = body["choices"]
    assert choice["text"] == "<|start|>2 + 2 is four"
    assert choice["finish_reason"] == "stop"
    assert choice["token_ids"] == spell("four<|return|>")
    assert choice["prompt_token_ids"] == byte_tokenizer().encode("<|start|>2 + 2 is ")


async def test_token_ids_may_be_control_tokens() -> None:
    engine = ScriptedEngine("<|channel|>final<|message|>4<|return|>", "naïve")
    async with client_of(lambda: scripted(engine)) as client:
        asked = {"prompt": spell("<|start|>user"), "skip_special_tokens": False, "max_tokens": 99}
        first = (await client.post("/v1/completions", json=asked)).json()["choices"][0]
        again = asked | {"stream": True, "stop": "ve", "return_token_ids": True}
        streamed = (await client.post("/v1/completions", json=again)).text
    assert engine.prompts[0] == "<|start|>user"
    assert first["text"] == "<|channel|>final<|message|>4"
    events = streamed.split("\n\n")
    assert events[-2] == "data: [DONE]"
    choices = [json.loads(it.removeprefix("data: "))["choices"][0] for it in events[:-2]]
    assert "".join(it["text"] for it in choices) == "naï"
    assert [it["finish_reason"] for it in choices if it["finish_reason"]] == ["stop"]
    assert [token for it in choices for token in it["token_ids"]] == spell("naïve")


async def test_several_prompts_and_log_probabilities() -> None:
    n_vocab = byte_tokenizer().n_vocab
    async with client_of(lambda: scripted(RandomEngine(n_vocab, 1))) as client:
        asked = {"prompt": ["a", "bcde"], "n": 2, "logprobs": 2, "max_tokens": 5, "seed": 7}
        body = (await client.post("/v1/completions", json=asked)).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert body["usage"]["prompt_tokens"] == 5, "each prompt counts once"
    for choice in body["choices"]:
        entries = choice["logprobs"]
        assert len(entries["tokens"]) == len(entries["token_logprobs"]) <= 5
        assert all(value < 0 for value in entries["token_logprobs"])


async def test_what_is_refused() -> None:
    async with client_of(lambda: scripted(ScriptedEngine())) as client:
        for asked, param in (
            ({}, "prompt"),
            ({"prompt": []}, "prompt"),
            ({"prompt": [-1]}, "prompt"),
            ({"prompt": [True]}, "prompt"),
            ({"prompt": [10**6]}, "prompt"),
            ({"prompt": "a", "suffix": "b"}, "suffix"),
            ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
            ({"prompt": "a", "prompt_logprobs": 1}, "prompt_logprobs"),
            ({"prompt": "a" * 100_000}, "prompt"),
        ):
            response = await client.post("/v1/completions", json=asked)
            assert (response.status_code, response.json()["error"]["param"]) == (400, param), asked


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_is_scored(stream: bool) -> None:
    """As evaluation programs ask for it: the log probabilities of the prompt's own tokens."""
    tokens = [
        *byte_tokenizer().encode("naïve"),
        *spell("<|return|>"),
        *byte_tokenizer().encode("b"),
    ]
    n_vocab = byte_tokenizer().n_vocab
    asked = {
        "prompt": tokens, "echo": True, "logprobs": 1, "max_tokens": 2, "stream": stream, "seed": 1,
    }  # fmt: skip
    async with client_of(lambda: scripted(RandomEngine(n_vocab, 1))) as client:
        response = await client.post("/v1/completions", json=asked)
    choices = [it["choices"][0] for it in objects_of(response.text) if it["choices"]]
    entries: dict[str, list[Any]] = {}
    for choice in choices:
        for name, values in choice["logprobs"].items():
            entries.setdefault(name, []).extend(values)
    assert len(entries["tokens"]) == len(tokens) + 2
    assert entries["token_logprobs"][0] is entries["top_logprobs"][0] is None
    assert all(value < 0 for value in entries["token_logprobs"][1:])
    assert entries["tokens"][:2] == ["n", "a"]
    assert entries["text_offset"][:5] == [0, 1, 2, 2, 3]  # the ï has two tokens
    assert choices[-1]["finish_reason"] == "length"


async def test_scores_are_those_of_the_same_logits() -> None:
    """The scores are the ones that the tokens have where the model itself chooses them."""
    n_vocab = byte_tokenizer().n_vocab
    asked = {"logprobs": 0, "temperature": 0}
    async with client_of(lambda: scripted(RandomEngine(n_vocab, 5))) as client:
        free = {"prompt": [0], "max_tokens": 6, "return_token_ids": True} | asked
        chosen = (await client.post("/v1/completions", json=free)).json()["choices"][0]
    async with client_of(lambda: scripted(RandomEngine(n_vocab, 5))) as client:
        given = {"prompt": [0, *chosen["token_ids"]], "max_tokens": 0, "echo": True} | asked
        body = (await client.post("/v1/completions", json=given)).json()
    assert (
        body["choices"][0]["logprobs"]["token_logprobs"][1:]
        == (chosen["logprobs"]["token_logprobs"])
    )
    assert body["usage"]["completion_tokens"] == 0
    assert body["usage"]["prompt_tokens"] == 7


async def test_a_real_engine_scores_a_prompt(random_gguf: Path) -> None:
    model = open_model(random_gguf, n_ctx=512, parallel=1, disk_cache=False)
    asked: dict[str, Any] = {"logprobs": 0, "temperature": 0, "skip_special_tokens": False}
    async with client_of(lambda: model) as client:
        free = {"prompt": "Once upon a time", "max_tokens": 12, "return_token_ids": True} | asked
        chosen = (await client.post("/v1/completions", json=free)).json()["choices"][0]
        prompt = [*chosen["prompt_token_ids"], *chosen["token_ids"]]
        given = {"prompt": prompt, "max_tokens": 0, "echo": True} | asked
        scored = (await client.post("/v1/completions", json=given)).json()["choices"][0]
    values = scored["logprobs"]["token_logprobs"]
    assert len(values) == len(prompt)
    n = len(chosen["token_ids"])
    assert n > 1
    assert values[-n:] == pytest.approx(chosen["logprobs"]["token_logprobs"], abs=0.05)


async def test_an_engine_that_draws_by_itself_scores_no_prompt() -> None:
    async with client_of(lambda: scripted(ScriptedEngine("xyz"))) as client:
        asked = {"prompt": "abc", "echo": True, "logprobs": 1}
        response = await client.post("/v1/completions", json=asked)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "logprobs")


async def test_no_token_is_wanted() -> None:
    async with client_of(lambda: scripted(ScriptedEngine("xyz"))) as client:
        response = await client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 0})
    body = response.json()
    assert (body["choices"][0]["text"], body["choices"][0]["finish_reason"]) == ("", "length")
    assert body["usage"]["completion_tokens"] == 0


def objects_of(text: str) -> list[Any]:
    """The JSON object of a response, or those of its events."""
    if not text.startswith("data: "):
        return [json.loads(text)]
    events = text.split("\n\n")
    return [
        json.loads(it.removeprefix("data: ")) for it in events if it not in ("", "data: [DONE]")
    ]
