"""Conversations and turns at random: roles, channels, tools, efforts, unicode, hostile text."""

from __future__ import annotations

import random
from typing import Any

from gptoss.runtime.harmony.messages import (
    FUNCTIONS,
    DeveloperContent,
    Effort,
    Function,
    Message,
    Namespace,
    Role,
    SystemContent,
)
from gptoss.runtime.harmony.tokenizer import Tokenizer

PIECES = (
    "Hello", " world", "\n", "\n\n", "  ", "\t", "12345", "3.14", "don't", "I'LL", "naïve", "ß",
    "日本語", "مرحبا", "🙂", "👩\u200d👩\u200d👧", "e\u0301", "\u0000", "\ufffd", "\u200b", "ﬁ",
    "\r\n",
    "{}", '"quoted"', "\\n", "// comment", "```python\nx = 1\n```", "to=functions.f", "assistant",
    "a" * 50, "…", " ", "<|", "|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>",
    "<|constrain|>", "<|return|>", "<|call|>", "<|endoftext|>", "<|startoftext|>",
    "<|endofprompt|>", "<|reserved_200013|>",
)  # fmt: skip
WORDS = ("alpha", "beta", "gamma", "get_weather", "x", "über", "value_2", "<|call|>", "a b")
NAMES = ("alpha", "get_weather", "x", "value_2", "A-1")
"""Names of functions: in a header they must be taken for nothing else."""


def text(rng: random.Random, most: int = 12) -> str:
    """Text of up to ``most`` pieces, control tokens' spellings among them."""
    return "".join(rng.choice(PIECES) for _ in range(rng.randrange(most + 1)))


def line(rng: random.Random) -> str:
    """Text without line ends, for descriptions."""
    return text(rng, 4).replace("\n", " ").replace("\r", " ")


def schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A JSON schema with every keyword that openai-harmony looks at."""
    simple = ("string", "number", "integer", "boolean", "enum", "types", "anything")
    nested = ("object", "array", "bare array", "oneOf") if depth < 3 else ()
    kind = rng.choice(simple + nested)
    out: dict[str, Any] = {}
    if kind == "enum":
        out = {"type": "string", "enum": rng.sample(["a", "b", "c d", 3], rng.randint(1, 4))}
    elif kind == "types":
        out = {"type": rng.sample(["string", "integer", "null", "object"], rng.randint(1, 3))}
    elif kind == "object":
        out = object_schema(rng, depth)
    elif kind == "array":
        out = {"type": "array", "items": schema(rng, depth + 1)}
    elif kind == "bare array":
        out = {"type": "array"}
    elif kind == "oneOf":
        out = {"oneOf": [schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]}
    elif kind != "anything":
        out = {"type": kind}
    return out | _annotations(rng)


def _annotations(rng: random.Random) -> dict[str, Any]:
    """Keywords that may stand at any schema."""
    every: dict[str, Any] = {
        "description": line(rng),
        "title": line(rng),
        "examples": [rng.choice(["one", "two", 3]) for _ in range(rng.randrange(3))],
        "default": rng.choice(["text", "a", 5, 2.5, True, None, [1, "x"], {"k": "v"}, []]),
        "nullable": rng.random() < 0.7,
    }
    return {key: value for key, value in every.items() if rng.random() < 0.3}


def object_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """An object with some properties, of which some are required."""
    names = rng.sample(WORDS, rng.randrange(4))
    out: dict[str, Any] = {
        "type": "object",
        "properties": {name: schema(rng, depth + 1) for name in names},
    }
    if rng.random() < 0.7:
        out["required"] = [name for name in names if rng.random() < 0.5]
    return out


def functions(rng: random.Random) -> tuple[Function, ...]:
    """One to three functions, one in four without parameters."""
    names = rng.sample(NAMES, rng.randint(1, 3))
    return tuple(
        Function(name, text(rng, 5), object_schema(rng) if rng.random() < 0.75 else None)
        for name in names
    )


def namespace(rng: random.Random, name: str) -> Namespace:
    """A namespace, now and then without functions or description."""
    inside = functions(rng) if rng.random() < 0.8 else ()
    return Namespace(name, inside, text(rng, 6) if rng.random() < 0.5 else None)


def conversation(rng: random.Random) -> list[Message]:
    """A system block, perhaps a developer's, then turns of every kind."""
    messages = [Message(Role.SYSTEM, _system(rng))]
    if rng.random() < 0.7:
        messages.append(Message(Role.DEVELOPER, _developer(rng)))
    for _ in range(rng.randrange(5)):
        messages += _turn(rng)
    return messages


def _system(rng: random.Random) -> SystemContent:
    spaces = tuple(namespace(rng, name) for name in ("python", "browser") if rng.random() < 0.3)
    return SystemContent(
        identity=rng.choice([SystemContent().identity, text(rng)]),
        knowledge_cutoff=rng.choice(["2024-06", None]),
        date=rng.choice([None, "2026-02-28", "2025-12-31"]),
        effort=rng.choice([*Effort, None]),
        tools=spaces,
    )


def _developer(rng: random.Random) -> DeveloperContent:
    spaces = tuple(namespace(rng, name) for name in (FUNCTIONS, "other") if rng.random() < 0.6)
    return DeveloperContent(rng.choice([None, text(rng)]), spaces)


def _turn(rng: random.Random) -> list[Message]:
    messages = [Message(Role.USER, text(rng), name=rng.choice([None, None, "ada"]))]
    for _ in range(rng.randrange(3)):
        messages += _step(rng)
    if rng.random() < 0.8:
        messages.append(Message(Role.ASSISTANT, text(rng), channel="final"))
    return messages


def _step(rng: random.Random) -> list[Message]:
    """Reasoning, a preamble, or a call with its answer."""
    kind = rng.randrange(3)
    if kind == 0:
        return [Message(Role.ASSISTANT, text(rng), channel="analysis")]
    if kind == 1:
        return [Message(Role.ASSISTANT, text(rng), channel="commentary")]
    tool = rng.choice(["functions.get_weather", "python", "browser.search"])
    channel = "analysis" if tool == "python" else "commentary"
    content_type = rng.choice([None, "json", "<|constrain|>json", "code"])
    call = Message(
        Role.ASSISTANT, text(rng), channel=channel, recipient=tool, content_type=content_type
    )
    answer = Message(Role.TOOL, text(rng), name=tool, channel=channel, recipient="assistant")
    return [call, answer]


def turn(rng: random.Random, tokenizer: Tokenizer) -> list[int]:
    """A well-formed turn behind ``<|start|>assistant``, in any of the forms that the model writes.

    Reasoning, preambles, calls of tools and their answers, and at the end an answer or a call; or
    it is cut short.
    """
    control = tokenizer.control
    ids: list[int] = []
    for _ in range(rng.randrange(4)):
        header = rng.choice([_channel(rng), _call_header(rng)])
        ids += [*_spoken(rng, tokenizer, header), control["<|end|>"], control["<|start|>"]]
        if rng.random() < 0.2:
            ids += tokenizer.encode(rng.choice(["functions.x to=assistant", "user", "system"]))
            channel = rng.choice([(), ("<|channel|>", "commentary")])
            ids += [*_spoken(rng, tokenizer, channel), control["<|end|>"], control["<|start|>"]]
        ids += tokenizer.encode("assistant")
    last = _call_header(rng) if rng.random() < 0.4 else ("<|channel|>", "final")
    ids += _spoken(rng, tokenizer, last)
    end = "<|return|>" if last[-1] == "final" else "<|call|>"
    return ids if rng.random() < 0.1 else [*ids, control[end]]


def _channel(rng: random.Random) -> tuple[str, ...]:
    return ("<|channel|>", rng.choice(["analysis", "commentary", "final"]))


def _call_header(rng: random.Random) -> tuple[str, ...]:
    """A call's header in pieces: the recipient in either part, the type in each of its forms."""
    to = rng.choice([" to=functions.get_weather", " to=python", " to=browser.search"])
    channel = rng.choice(["analysis", "commentary"])
    kind = rng.choice([(), (" ", "<|constrain|>", "json"), ("<|constrain|>", "json"), (" code",)])
    if rng.random() < 0.5:
        return (to, "<|channel|>", channel, *kind)
    return ("<|channel|>", channel + to, *kind)


def _spoken(rng: random.Random, tokenizer: Tokenizer, header: tuple[str, ...]) -> list[int]:
    """A header, its control tokens by their text, and content behind it."""
    ids: list[int] = []
    for piece in header:
        known = tokenizer.control.get(piece)
        ids += tokenizer.encode(piece) if known is None else [known]
    return [*ids, tokenizer.control["<|message|>"], *tokenizer.encode(text(rng))]
