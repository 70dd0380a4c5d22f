"""Text in every field of every request: none of it becomes a control token of the prompt."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from gptoss.runtime.engine.base import Sampler
from gptoss.runtime.sampling.constrained import TokenMasks
from support.fake_engine import ScriptedEngine
from support.generation import FakeGeneration
from support.request_mutations import CONTROL, VALID
from support.server import scripted
from support.server_tools import Server, tool_client, tools_of
from support.tokens import byte_tokenizer

PATHS = (  # completions have the prompt alone
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
)
ANSWER = "<|channel|>final<|message|>4<|return|>"
HARMLESS = "nothing to see"

Place = tuple[str | int, ...]


class Counting(ScriptedEngine):
    """Notes the number of control tokens of each prompt, and answers in the same way."""

    def __init__(self) -> None:
        super().__init__(n_ctx=200_000)
        self.controls: list[int] = []

    def generate(self, prompt: Sequence[int], sampler: Sampler, **options: Any) -> FakeGeneration:
        self.controls.append(sum(token > 255 for token in prompt))
        self._scripts = iter([ANSWER])
        return super().generate(prompt, sampler, **options)


def places(tree: Any, above: Place = ()) -> Iterator[Place]:
    """The places of all texts and names of a JSON tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        if isinstance(value, str):
            yield (*above, key)
        elif isinstance(value, dict | list):
            yield from places(value, (*above, key))
        if isinstance(key, str):
            yield (*above, key, "its name")


def put(tree: Any, place: Place, text: str) -> Any:
    """A copy with a text in a place, or with a text as a name."""
    copied = copy.deepcopy(tree)
    renamed = place[-1] == "its name"
    *above, last = place[:-1] if renamed else place
    inner = copied
    for key in above:
        inner = inner[key]
    if renamed:
        inner[text] = inner.pop(last)
    else:
        inner[last] = text
    return copied


@pytest.mark.parametrize("path", PATHS)
async def test_control_tokens_in_every_text_and_name(path: str) -> None:
    left_out = ("stream", "stream_options", "n", "echo")  # one prompt, and one answer
    asked = {name: it for name, it in VALID[path].items() if name not in left_out}
    if path == "/v1/completions":
        asked["prompt"] = "Hi"
    engine, masks = Counting(), TokenMasks(byte_tokenizer())
    tried = 0
    with tools_of(Server()) as tools:
        async with tool_client(engine, tools, make=lambda: scripted(engine, masks)) as client:
            for place in places(asked):
                engine.controls.clear()
                for text in (HARMLESS, CONTROL):
                    body = put(asked, place, text)
                    answer = await client.post(path, json=body)
                    assert answer.status_code < 500, (place, answer.text)
                if len(engine.controls) == 2:
                    assert len(set(engine.controls)) == 1, (
                        f"{place}: text has become control tokens"
                    )
                    tried += 1
    assert tried >= (1 if path == "/v1/completions" else 15)
    print(f"{path}: {tried} places of {len(list(places(asked)))} reach the model")
