"""2,000 turns of random-weight models at temperature 1 to 2, with tools and schemas.

The weights say nothing, so that all structure is the constraint's. Each turn must parse without
repair, and every call's arguments and every structured answer must be valid by the jsonschema
library, which is not what constrained them; where the limit cuts a turn, its end says so.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gptoss.converter.convert import convert
from gptoss.runtime.engine.llama_cpp import LlamaEngine
from gptoss.runtime.engine.settings import EngineSettings
from gptoss.runtime.harmony.events import Diagnostic, End, MessageEnded, RoundEnded
from gptoss.runtime.harmony.messages import Function, system, user
from gptoss.runtime.harmony.parser import parse
from gptoss.runtime.harmony.render import render_for_completion
from gptoss.runtime.models.preflight import Model
from gptoss.runtime.sampling.constrained import TokenMasks
from gptoss.runtime.sampling.grammar import (
    JSON_OBJECT,
    JsonSchema,
    Lark,
    Regex,
    ResponseFormat,
    Rules,
    ToolChoice,
)
from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.sampling.sampler import RandomSampler
from support import peers
from support.checkpoints import random_checkpoint

pytestmark = pytest.mark.oracle

MAX_TOKENS = 400
BUDGET = 40
STOP = ("<|return|>", "<|call|>", "<|endoftext|>")


def record(*required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


SHORT = {"type": "string", "maxLength": 12}
TREE = {
    "$defs": {
        "node": record(
            "value", value={"type": "integer", "minimum": -9, "maximum": 9},
            children={"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
        )
    },
    "$ref": "#/$defs/node",
}  # fmt: skip
SCHEMAS: dict[str, dict[str, Any]] = {
    "scalars": record(
        "name", "count", "share", "flag",
        name=SHORT, count={"type": "integer", "minimum": 1, "maximum": 120},
        share={"type": "number", "minimum": 0, "exclusiveMaximum": 1}, flag={"type": "boolean"},
        note={"type": ["string", "null"], "maxLength": 5},
    ),
    "choices": record("unit", "level", unit={"enum": ["c", "f", None]}, level={"const": 3}),
    "nested": record(
        "user", user=record("id", "tags", id={"type": "integer"},
                            tags={"type": "array", "items": SHORT, "minItems": 1, "maxItems": 3}),
    ),
    "union": record("where", where={
        "anyOf": [SHORT, record("x", "y", x={"type": "number"}, y={"type": "number"})]}),
    "recursive": TREE,
    "map": {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 2},
    "pair": {"type": "array", "prefixItems": [SHORT, {"type": "boolean"}], "items": False,
             "minItems": 2},
    "strings": record("day", "code", day={"type": "string", "format": "date"},
                      code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}),
    "both": record("n", n={"allOf": [{"minimum": 5}, {"type": "integer", "maximum": 9}]}),
    "steps": record("of", of={"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 999}),
    "anything": record("value", value={}),
    "nothing": record(),
    "long": record("text", text={"type": "string"}),
}  # fmt: skip
TEXTS: dict[str, tuple[ResponseFormat, Callable[[str], Any]]] = {
    "regex": (Regex("[A-Z][a-z]{0,9}( [0-9]{1,3}){1,3}"),
              re.compile("[A-Z][a-z]{0,9}( [0-9]{1,3}){1,3}").fullmatch),
    "lark": (Lark('start: NAME "=" value\nvalue: INT | "[" INT ("," INT)* "]"\n'
                  "NAME: /[a-z]{1,8}/\nINT: /[0-9]{1,4}/"),
             re.compile(r"[a-z]{1,8}=([0-9]{1,4}|\[[0-9]{1,4}(,[0-9]{1,4})*\])").fullmatch),
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """What is declared and asked for, and how an answer is judged."""

    rules: Rules
    holds: Callable[[str], Any]


def valid(schema: Any) -> Callable[[str], bool]:
    """Whether a text is JSON that the schema admits, by jsonschema.

    ``format`` says nothing there unless it is asked to (JSON Schema 2020-12, validation 7.2.1).
    The grammar gives a date's form, and a 29th of February to each year.
    """
    import jsonschema

    validator = jsonschema.Draft202012Validator(schema)

    def check(text: str) -> bool:
        return bool(validator.is_valid(json.loads(text)))

    return check


def scenes() -> Iterator[Scene]:
    """For ever: a few tools, a choice, an answer of some form."""
    random = Random(20261125)
    objects = [name for name, schema in SCHEMAS.items() if schema.get("type") == "object"]
    while True:
        names = random.sample(objects, random.randrange(4))
        functions = tuple(Function(name, f"Takes {name}.", SCHEMAS[name]) for name in names)
        choices = [ToolChoice.AUTO, ToolChoice.NONE, ToolChoice.REQUIRED, *names[:1]]
        choice = random.choice(choices) if names else ToolChoice.AUTO
        form: ResponseFormat | None = None
        holds: Callable[[str], Any] = lambda text: True  # noqa: E731, ARG005
        kind = random.randrange(5)
        if kind == 0:
            form, holds = random.choice(list(TEXTS.values()))
        elif kind == 1:
            form, holds = JSON_OBJECT, valid({"type": "object"})
        elif kind in (2, 3):
            schema = SCHEMAS[random.choice(list(SCHEMAS))]
            form, holds = JsonSchema(schema), valid(schema)
        parallel = bool(random.randrange(2))
        rules = Rules(functions, tool_choice=choice, parallel_calls=parallel, response_format=form)
        yield Scene(rules, holds)


def take_turns(path: Path, n: int, n_ctx: int = 4096) -> Counter[str]:
    """Hold ``n`` turns; counts of what was found, by kind."""
    model = Model.open(path)
    vocabulary = TokenMasks(model.tokenizer)
    stop = frozenset(model.tokenizer.control[text] for text in STOP)
    engine = LlamaEngine(
        path, EngineSettings(n_ctx=n_ctx, n_threads=1)
    )  # for so little, two are slower
    random, found = Random(1), Counter[str]()
    # The tools are not told: these weights could not read it.
    prompt = render_for_completion([system(date="2025-01-01"), user("Go.")], model.tokenizer)
    try:
        for seed, scene in zip(range(n), scenes(), strict=False):
            inner = RandomSampler(Sampling(temperature=random.uniform(1, 2)), seed)
            sampler = vocabulary.constrain(scene.rules, inner, BUDGET)
            ids = list(engine.generate(prompt, sampler, stop=stop, max_tokens=MAX_TOKENS))
            found["closed"] += sampler.closed is not None
            found["tokens"] += len(ids)
            judge(scene, parse(ids, model.tokenizer), len(ids), found)
    finally:
        engine.close()
    return found


def judge(scene: Scene, events: list[Any], n: int, found: Counter[str]) -> None:
    """Count one turn, which fails here if it is not what it must be."""
    ended = events[-1]
    assert isinstance(ended, RoundEnded)
    repairs = [event for event in events if isinstance(event, Diagnostic)]
    if ended.end is End.CUT:
        assert n == MAX_TOKENS, "cut before the limit"
        assert {repair.code for repair in repairs} <= {"cut-header"}
        found["cut"] += 1
        return
    assert ended.end in (End.RETURN, End.CALL)
    assert not repairs
    schemas = {f"functions.{f.name}": f.parameters for f in scene.rules.functions}
    messages = [event.message for event in events if isinstance(event, MessageEnded)]
    for message in messages:
        if message.recipient is not None:
            assert valid(schemas[message.recipient])(message.text), message
            found["calls"] += 1
        elif message.channel == "final":
            assert scene.holds(message.text), message
            found["answers"] += 1
            found["structured answers"] += scene.rules.response_format is not None
    calls = [m for m in messages if m.recipient is not None]
    assert bool(calls) == (ended.end is End.CALL)
    assert len(calls) <= 1 or scene.rules.parallel_calls
    assert calls or scene.rules.tool_choice in (ToolChoice.AUTO, ToolChoice.NONE)
    found["whole"] += 1


def test_turns_of_random_weights(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "checkpoint", layers=2, heads=2, experts=2)
    convert(checkpoint, tmp_path / "random.gguf", dense="f32")
    found = take_turns(tmp_path / "random.gguf", 1900)
    print(dict(found))
    assert found["whole"] + found["cut"] == 1900
    assert found["whole"] > 1500
    assert min(found["cut"], found["closed"], found["calls"], found["structured answers"]) > 100


def test_turns_of_random_weights_over_the_full_vocabulary(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(
        tmp_path / "checkpoint",
        vocab=201_088,
        tokenizer_folder=peers.tokenizer(),
        heads=2,
        experts=2,
    )
    convert(checkpoint, tmp_path / "random.gguf")
    found = take_turns(tmp_path / "random.gguf", 100)
    print(dict(found))
    assert found["whole"] + found["cut"] == 100
    assert min(found["closed"], found["calls"], found["structured answers"]) > 10
