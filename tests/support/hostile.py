"""Schemas, expressions and grammars that could cost minutes, gigabytes, or the whole process.

``python -m support.hostile`` compiles and samples each, on a small stack, and names it first: where
the process ends, the last name is whose doing it was.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from gptoss.runtime.engine.base import EngineError
from gptoss.runtime.harmony.errors import ConversationError
from gptoss.runtime.sampling.constrained import TokenMasks
from gptoss.runtime.sampling.grammar import JsonSchema, Lark, Regex, ResponseFormat, Rules
from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.sampling.sampler import RandomSampler
from support.random_engine import RandomEngine
from support.tokens import byte_tokenizer

SMALL_STACK = 512 << 10
"""What a second thread has on macOS."""


def nested(wrap: str, levels: int) -> JsonSchema:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        inner = {"items": schema, "properties": {"a": schema}, "anyOf": [{"type": "null"}, schema]}
        schema = {wrap: inner[wrap]}
    return JsonSchema(schema)


def chained(link: str, n: int) -> JsonSchema:
    """References one behind the other."""
    links = {}
    for i in range(n):
        to = {"$ref": f"#/$defs/a{i + 1}"}
        links[f"a{i}"] = {
            "": to,
            "items": {"type": "array", "items": to},
            "anyOf": {"anyOf": [{"type": "null"}, to]},
            "twice": {"type": "object", "properties": {"l": to, "r": to}},
        }[link]
    return JsonSchema({"$ref": "#/$defs/a0", "$defs": {**links, f"a{n}": {"type": "integer"}}})


def properties(n: int, **more: Any) -> JsonSchema:
    return JsonSchema({"type": "object", "properties": {f"p{i}": {} for i in range(n)}, **more})


def pattern(text: str) -> JsonSchema:
    return JsonSchema({"type": "string", "pattern": text})


def rules(n: int, rule: str) -> Lark:
    """A grammar of ``n`` rules that lead to one another; ``N`` is the next one's number."""
    lines = [f"{rule[0]}{i}: {rule[1:].replace('N', str(i + 1))}" for i in range(n)]
    return Lark("\n".join([f"start: {rule[0]}0", *lines, f'{rule[0]}{n}: "z"']))


CASES: dict[str, ResponseFormat] = {
    **{f"30 levels of {wrap}": nested(wrap, 30) for wrap in ("items", "properties", "anyOf")},
    **{f"{n} references, {link}": chained(link, n) for n in (50, 3000)
       for link in ("", "items", "anyOf", "twice")},
    "a reference to itself": JsonSchema({"$ref": "#"}),
    "references in a circle": JsonSchema(
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
    "recursion by allOf": JsonSchema({"allOf": [{"$ref": "#"}, {"$ref": "#"}]}),
    "recursion by items": JsonSchema({"type": "array", "items": {"$ref": "#"}}),
    "an enum of 40,000": JsonSchema({"enum": [f"v{i}x" for i in range(40_000)]}),
    "a constant of 80,000": JsonSchema({"const": [[i] * 10 for i in range(8000)]}),
    "4,000 optional properties": properties(4000),
    "4,000 required properties": properties(4000, required=[f"p{i}" for i in range(4000)]),
    "4,000 variants": JsonSchema({"anyOf": [{"const": [i]} for i in range(4000)]}),
    "a product of variants": JsonSchema({"allOf": [
        {"anyOf": [{"properties": {f"p{i}{j}": {}}} for j in range(4)]} for i in range(10)]}),
    "overlapping names": JsonSchema({"patternProperties": {f"a{i}.*b": {} for i in range(50)}}),
    "a huge length": JsonSchema({"type": "string", "maxLength": 10**9}),
    "a number of items too large": JsonSchema({"type": "array", "minItems": 10**30}),
    "items of items of items": JsonSchema({"type": "array", "minItems": 10**6, "items": {
        "type": "array", "minItems": 10**6, "items": {"type": "array", "minItems": 10**6}}}),
    "a range too large": JsonSchema({"type": "integer", "minimum": -(10**300)}),
    "a divisor of hundred millions": JsonSchema({"type": "integer", "multipleOf": 123456789}),
    "a prime divisor": JsonSchema({"type": "integer", "multipleOf": 9973}),
    "a divisor of nearly nothing": JsonSchema({"type": "number", "multipleOf": 1e-30}),
    "a million repetitions": pattern("^(a{1000}){1000}$"),
    "repetitions of repetitions": pattern("^((((a{9}){9}){9}){9}){9}$"),
    "states by the thousand": pattern("(.*a.{12}){3}$"),
    "alternatives that overlap": Regex("(a|a)*(b|b*)*(c+)+"),
    "240 groups": Regex("(" * 240 + "a" + ")" * 240),
    "4,000 groups": Regex("(" * 4000 + "a" + ")" * 4000),
    "4,000 stars": Regex("a*" * 4000),
    "nothing": Regex(r"[^\s\S]"),
    "900 rules": rules(900, 'a"x" | aN'),
    "1,000 terminals": rules(1000, 'A"x" | AN'),
    "rules that double": rules(60, "aaN aN"),
    "terminals that double": rules(60, "AAN AN"),
    "rules in a circle": Lark("start: a\na: b\nb: a"),
    "left recursion": Lark('start: start start | ""'),
    "everything may be empty": Lark('start: a*\na: b*\nb: "x"?'),
    "a billion repetitions": Lark("start: a{1000}\na: b{1000}\nb: C{1000}\nC: /x/"),
    "a negation": Lark("start: A\nA: ~/(.*a.{8}){3}/ & /(?s:.*)/"),
    "zeros": Lark("start: \0 ///"),
}  # fmt: skip


def outcome(vocabulary: TokenMasks, wanted: ResponseFormat) -> str:
    """What comes of a turn that is to answer so: sampled, or refused with a typed error."""
    inner = RandomSampler(Sampling(), 1)
    try:
        sampler = vocabulary.constrain(Rules(response_format=wanted, reasoning=False), inner)
        engine = RandomEngine(vocabulary.tokenizer.n_vocab, 1)
        ids = list(engine.generate([0], sampler, stop=frozenset(), max_tokens=60))
    except (ConversationError, EngineError) as error:
        return f"{type(error).__name__}: {error}"
    return f"{len(ids)} tokens"


def outcomes() -> Iterator[tuple[str, str, float]]:
    """Each case's name, outcome and seconds."""
    vocabulary = TokenMasks(byte_tokenizer())
    for name, wanted in CASES.items():
        print(f"{name}: ", end="", flush=True)
        begun = time.perf_counter()
        said = outcome(vocabulary, wanted)
        yield name, said, time.perf_counter() - begun


def main() -> None:
    slowest = 0.0
    for _, said, seconds in outcomes():
        print(f"{said[:100]} [{seconds:.2f} s]", flush=True)
        slowest = max(slowest, seconds)
    print(f"slowest {slowest:.2f} s")


if __name__ == "__main__":
    threading.stack_size(SMALL_STACK)
    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
    sys.exit(0)
