"""What harmony costs on the full vocabulary: each figure beside what it must keep to.

    python tests/bench_harmony.py

Each work is timed several times, the quickest counts, and only what the processor spent on it:
others' load on the machine must not fail a test.
The vocabulary is the real one (`make oracle` fetches it). Exit code 1 when a figure is missed.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from gptoss.converter.gguf import vocab as vocabularies
from gptoss.runtime.engine.base import Logits
from gptoss.runtime.harmony import messages as m
from gptoss.runtime.harmony.messages import Function, Message
from gptoss.runtime.harmony.parser import Parser
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.sampling.constrained import Constrained, TokenMasks
from gptoss.runtime.sampling.grammar import JSON_OBJECT, JsonSchema, Lark, Regex, Rules
from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.sampling.sampler import RandomSampler
from support import conversations, peers
from support.rendering import render_all

WORDS = (
    "The weather in Rome is sunny today, twenty-one degrees; tomorrow it rains.\n",
    "def total(values: list[int]) -> int:\n    return sum(value for value in values)\n",
    '{"city": "Reykjavík", "days": [1, 2, 3], "unit": null}\n',
    "Das Wetter in Köln ist heute nass. 天気は晴れです。\n",
)
"""Prose, code, JSON, other languages; drawn together with the random conversations' pieces."""


@dataclass(frozen=True)
class Figure:
    """A measured figure and its bound; ``at_least`` when more is better."""

    what: str
    value: float
    unit: str
    bound: float
    at_least: bool = False

    @property
    def kept(self) -> bool:
        """Whether the figure is within its bound."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        missed = "" if self.kept else "   MISSED"
        return f"{self.what:<44} {self.value:9.3g} {self.unit:<9} {sign} {self.bound:g}{missed}"


def figures() -> Iterator[Figure]:
    """Everything that is measured, one after the other."""
    text_bytes, conversation = long_conversation(random.Random(0), 2_000_000)
    ids: list[int] = []

    def render() -> None:
        ids[:] = render_all(conversation, tokenizer())

    rate = text_bytes / quickest(render) / 1e6
    yield Figure("rendering a conversation of 2 MB", rate, "MB/s", 1, at_least=True)
    turn = reply(random.Random(0), 20_000)
    yield Figure("parsing a turn of text", per_token(turn), "µs/token", 10)
    rng = random.Random(0)
    headers = [token for _ in range(300) for token in conversations.turn(rng, tokenizer())]
    yield Figure("parsing turns of headers and hostile text", per_token(headers), "µs/token", 10)
    yield Figure("building the tokenizer object", quickest(build), "s", 1)
    built = build()
    yield Figure("... and the one that constrains", quickest(lambda: TokenMasks(built)), "s", 1)
    yield from mask_figures()


ALMOST_ALL_MASKS = "... at 99 of 100 of them"
SLOWEST_MASK = "... at the slowest of them"


def mask_figures() -> Iterator[Figure]:
    """What the constraint adds to a token: finding what may come next, taking the rest out of the
    logits, and following what came. The draw itself is not in it."""
    vocabulary = TokenMasks(tokenizer())
    spent = [mask_times(vocabulary, rules, text) for rules, text in constrained_turns()]
    bound = [time for times in spent for time in times]
    mean, slowest = sum(bound) / len(bound), max(bound)
    yield Figure("constraining, a token of structure, mean", mean * 1e6, "µs", 300)
    almost_all = float(np.percentile(bound, 99))
    yield Figure(ALMOST_ALL_MASKS, almost_all * 1e6, "µs", 300)
    yield Figure(SLOWEST_MASK, slowest * 1e6, "µs", 300)
    free = mask_times(vocabulary, Rules(), f"<|channel|>final<|message|>{''.join(WORDS) * 50}")
    # The first token begins the text; its mask is structure's.
    yield Figure("... a token of free text, mean", sum(free[4:]) / len(free[4:]) * 1e6, "µs", 10)
    rules = Rules(tuple(Function(f"tool_{i}", parameters=TRIP) for i in range(20)))
    compile_time = quickest(lambda: vocabulary.compile(rules))
    yield Figure("compiling the rules of 20 tools", compile_time * 1e3, "ms", 100)


def constrained_turns() -> Iterator[tuple[Rules, str]]:
    """Rules and a turn that keeps them: calls, and answers to a schema, a regex and a grammar."""
    trip = {
        "from": "Reykjavík", "to": "Ulm", "days": [1, 2, 30], "price": 1234.5, "class": "first",
        "note": "Window seat, please: and no \"quiet\" coach.\nThank you!",
        "guests": [{"name": "Ada Lovelace", "age": 36}, {"name": "Bo", "age": None}],
    }  # fmt: skip
    call = "<|channel|>commentary to=functions.book <|constrain|>json<|message|>{}<|call|>"
    book = Function("book", parameters=TRIP)
    others = tuple(Function(f"book_{i}", parameters=TRIP) for i in range(9))
    for indent in (None, 2):
        text = json.dumps(trip, indent=indent, ensure_ascii=False)
        yield Rules((book, *others)), call.replace("{}", text)
        yield Rules(response_format=JsonSchema(TRIP)), f"{ANSWER}{text}<|return|>"
        yield Rules(response_format=JSON_OBJECT), f"{ANSWER}{text}<|return|>"
    yield (
        Rules(response_format=Regex(r"[A-Z][a-z]+(, [A-Z][a-z]+)*\. [0-9]{4}-[0-9]{2}-[0-9]{2}")),
        f"{ANSWER}Oslo, Bergen, Trondheim, Ulm. 2026-11-25<|return|>",
    )
    sums = Lark('start: sum ("; " sum)*\nsum: INT (" + " INT)+ " = " INT\nINT: /[0-9]+/')
    yield Rules(response_format=sums), f"{ANSWER}17 + 25 = 42; 1 + 2 + 3 = 6<|return|>"


CONTROL = re.compile(r"(<\|[a-z]+\|>)")
ANSWER = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>"
TRIP = {
    "type": "object",
    "properties": {
        "from": {"type": "string"},
        "to": {"type": "string", "maxLength": 40},
        "days": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 31}},
        "price": {"type": "number"},
        "class": {"enum": ["first", "second"]},
        "note": {"type": ["string", "null"]},
        "guests": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "age": {"type": ["integer", "null"]}},
                "required": ["name"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["from", "to"],
    "additionalProperties": False,
}


def mask_times(vocabulary: TokenMasks, rules: Rules, text: str, runs: int = 5) -> list[float]:
    """Seconds that the constraint takes at each token of a turn, free text's left out where the
    rules bind it; of several runs the quickest."""
    ids = vocabulary.ids([piece for piece in CONTROL.split(text) if piece])
    zeros = np.zeros(vocabulary.tokenizer.n_vocab, np.float32)
    times = []
    for _ in range(runs):
        sampler = vocabulary.constrain(rules, RandomSampler(Sampling()))
        times.append([_mask_time(sampler, token, zeros.copy()) for token in ids])
    return [min(each) for each in zip(*times, strict=True)]


def _mask_time(sampler: Constrained, token: int, logits: Logits) -> float:
    begun = time.perf_counter()
    sampler._admitted(logits)
    sampler._accept(token)
    return time.perf_counter() - begun


@cache
def _read() -> vocabularies.Vocabulary:
    return vocabularies.read(peers.tokenizer(), 201088)


def build() -> Tokenizer:
    """The tokenizer from the token list that a GGUF holds, ready to encode."""
    built = Tokenizer.from_vocabulary(_read().tokens, _read().types)
    built.encode("Hello")
    return built


@cache
def tokenizer() -> Tokenizer:
    """One over the full vocabulary for everything but the building of one."""
    return build()


def long_conversation(rng: random.Random, size: int) -> tuple[int, list[Message]]:
    """Turns of a few kilobytes, tools and their answers among them, and their bytes of text."""
    messages = [m.system(date="2026-02-28"), m.developer("Be brief.")]
    total = 0
    while total < size:
        said = [some_text(rng, rng.randint(1, 100)) for _ in range(5)]
        total += sum(len(text.encode()) for text in said)
        messages += [m.user(said[0]), m.analysis(said[1]), m.call("f", said[2])]
        messages += [m.tool_result("f", said[3]), m.final(said[4])]
    return total, messages


def some_text(rng: random.Random, n_pieces: int) -> str:
    """Text of so many pieces, spellings of control tokens among them."""
    return "".join(rng.choices((*WORDS, *conversations.PIECES), k=n_pieces))


def reply(rng: random.Random, n_tokens: int) -> list[int]:
    """A turn of one message of so many tokens."""
    control, text = tokenizer().control, tokenizer().encode(some_text(rng, n_tokens))
    header = [control["<|channel|>"], *tokenizer().encode("final"), control["<|message|>"]]
    return [*header, *text[:n_tokens], control["<|return|>"]]


def per_token(ids: list[int]) -> float:
    """Microseconds to parse one id."""

    def parse() -> None:
        parser = Parser(tokenizer())
        for token in ids:
            if parser.ended:
                parser = Parser(tokenizer())
            parser.push(token)
        parser.finish()

    return quickest(parse) / len(ids) * 1e6


def quickest(work: Callable[[], object], runs: int = 5) -> float:
    """Seconds of the processor, in the quickest run."""
    times = []
    for _ in range(runs):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return min(times)


def main() -> int:
    """Print each figure as soon as it is known."""
    kept = True
    for figure in figures():
        print(figure, flush=True)
        kept &= figure.kept
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
