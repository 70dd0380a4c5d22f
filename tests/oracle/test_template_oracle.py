"""Rendered text against the official chat template, on conversations that it can express.

Differences that are meant, and so are put the template's way here before comparing:

* The template writes a call's type as `` json``; the model itself mostly writes
  `` <|constrain|>json``, and so do openai-harmony and we.
* The template puts a tool's answer through ``tojson``, so that text gets quotes and escapes. We
  hand on what the tool said, as openai-harmony does.
* The template leaves a line end pair behind instructions that no tools follow.
* The template's TypeScript differs from openai-harmony's beyond plain properties; ours is
  openai-harmony's, and tested against that.
"""

from __future__ import annotations

import json
import random
from typing import Any

import jinja2
import jinja2.sandbox
import pytest

from gptoss.converter import vocabulary
from gptoss.runtime.harmony import messages as m
from gptoss.runtime.harmony.messages import Effort, Function, Message, Role
from gptoss.runtime.harmony.render import render_for_completion
from gptoss.runtime.tokenizer import Tokenizer
from support import conversations, peers

pytestmark = pytest.mark.oracle

DATE = "2026-02-28"
WEATHER = Function(
    "get_weather",
    "The weather in a city.",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Name of the city"},
            "days": {"type": "integer"},
            "unit": {"type": "string", "enum": ["C", "F"]},
        },
        "required": ["city"],
    },
)
PING = Function("ping", "Nothing but an answer.")


def plain(rng: random.Random) -> str:
    """Text without control tokens' spellings: the template would let those through as tokens."""
    return conversations.text(rng).replace("<|", "< |") or "…"


def draw(rng: random.Random) -> tuple[list[Message], list[dict[str, Any]], dict[str, Any]]:
    """A conversation as our messages, as the template's, and the template's other arguments."""
    effort = rng.choice(list(Effort))
    tools = rng.choice([(), (WEATHER,), (WEATHER, PING)])
    ours = [m.system(date=DATE, effort=effort)]
    theirs: list[dict[str, Any]] = []
    instructions = plain(rng) if tools and rng.random() < 0.5 else None
    if instructions is not None:
        theirs.append({"role": "developer", "content": instructions})
    if instructions is not None or tools:
        ours.append(m.developer(instructions, tools))
    for turn in range(rng.randint(1, 4)):
        said = plain(rng)
        ours.append(m.user(said))
        theirs.append({"role": "user", "content": said})
        for _ in range(rng.randrange(3) if tools else 0):
            step(rng, ours, theirs)
        if turn < 3 and rng.random() < 0.8:
            answer, thought = plain(rng), plain(rng)
            ours += [m.analysis(thought), m.final(answer)]
            theirs.append({"role": "assistant", "content": answer, "thinking": thought})
    declared = [
        {"function": {"name": t.name, "description": t.description, "parameters": t.parameters}}
        for t in tools
    ]
    return ours, theirs, {"tools": declared, "reasoning_effort": effort.value}


def step(rng: random.Random, ours: list[Message], theirs: list[dict[str, Any]]) -> None:
    """Reasoning, a call and its answer."""
    thought, arguments, result = plain(rng), {"city": plain(rng)}, plain(rng)
    text = json.dumps(arguments, ensure_ascii=False)
    ours += [
        m.analysis(thought),
        Message(
            Role.ASSISTANT,
            text,
            channel="commentary",
            recipient="functions.get_weather",
            content_type="json",
        ),
        m.tool_result("get_weather", json.dumps(result, ensure_ascii=False)),
    ]
    call = {"function": {"name": "get_weather", "arguments": arguments}}
    theirs += [
        {"role": "assistant", "thinking": thought, "tool_calls": [call]},
        {"role": "tool", "content": result},
    ]


def official() -> jinja2.Template:
    """The template, with the functions that transformers gives it."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.globals["strftime_now"] = lambda _: DATE
    return environment.from_string(peers.chat_template().read_text("utf-8"))


def test_text_equals_the_official_template() -> None:
    read = vocabulary.read(peers.tokenizer(), 201088)
    tokenizer = Tokenizer.from_vocabulary(read.tokens, read.types)
    template, with_calls = official(), 0
    for seed in range(1_000):
        ours, theirs, arguments = draw(random.Random(seed))
        text = tokenizer.decode(render_for_completion(ours, tokenizer))
        expected = template.render(messages=theirs, add_generation_prompt=True, **arguments)
        assert text == expected, f"seed {seed}"
        with_calls += any(message["role"] == "tool" for message in theirs)
    assert with_calls > 300
