"""``/v1/completions`` in this process: text and token ids, without harmony."""

from __future__ import annotations

import json

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
        asked = {"prompt": ["a", "b"], "n": 2, "logprobs": 2, "max_tokens": 5, "seed": 7}
        body = (await client.post("/v1/completions", json=asked)).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
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
            ({"prompt": "a", "echo": True, "logprobs": 1}, "logprobs"),
        ):
            response = await client.post("/v1/completions", json=asked)
            assert (response.status_code, response.json()["error"]["param"]) == (400, param), asked
