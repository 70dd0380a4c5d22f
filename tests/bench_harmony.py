"""What harmony costs on the full vocabulary: each figure beside what it must keep to.

    python tests/bench_harmony.py

Each work is timed several times, the quickest counts: others' load on the machine only ever adds.
The vocabulary is the real one (`make oracle` fetches it). Exit code 1 when a figure is missed.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from gptoss.converter import vocabulary
from gptoss.runtime.constraint import Vocabulary
from gptoss.runtime.harmony import messages as m
from gptoss.runtime.harmony.messages import Message
from gptoss.runtime.harmony.parser import Parser
from gptoss.runtime.harmony.render import KeepReasoning, render_for_completion
from gptoss.runtime.tokenizer import Tokenizer
from support import conversations, peers

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
        ids[:] = render_for_completion(conversation, tokenizer(), keep=KeepReasoning.ALL)

    rate = text_bytes / quickest(render) / 1e6
    yield Figure("rendering a conversation of 2 MB", rate, "MB/s", 1, at_least=True)
    turn = reply(random.Random(0), 20_000)
    yield Figure("parsing a turn of text", per_token(turn), "µs/token", 10)
    rng = random.Random(0)
    headers = [token for _ in range(300) for token in conversations.turn(rng, tokenizer())]
    yield Figure("parsing turns of headers and hostile text", per_token(headers), "µs/token", 10)
    yield Figure("building the tokenizer object", quickest(build), "s", 1)
    built = build()
    yield Figure("... and the one that constrains", quickest(lambda: Vocabulary(built)), "s", 1)


@cache
def _read() -> vocabulary.Vocabulary:
    return vocabulary.read(peers.tokenizer(), 201088)


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
    """Seconds of the quickest run."""
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
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
