"""Scores the tiny model through the runtime, on questions that were held out of training.

    python -m tiny.training.score [MODEL] [--questions N] [--wrong]      (from tests/)

``MODEL`` is a GGUF, or a checkpoint folder, which is converted first (default: the one bundled with
these tests). Every reply is generated at temperature 0 by llama.cpp, prompted and parsed by the runtime.
A turn is *well formed* when nothing had to be repaired, every message is on its channel, and it
ends as it must: an answer in ``<|return|>``, a call in ``<|call|>``. It is *right* when the calls
are the expected ones, argument for argument, and the answer is one of those accepted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from gptoss.converter.convert import convert
from gptoss.runtime.engine.base import Engine
from gptoss.runtime.engine.llama_cpp import LlamaEngine
from gptoss.runtime.harmony.events import Diagnostic, End, MessageEnded, TurnEnded
from gptoss.runtime.harmony.messages import Effort, Message, Role
from gptoss.runtime.harmony.parser import Parser
from gptoss.runtime.harmony.render import render_for_completion
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.models.preflight import Model
from gptoss.runtime.sampling.sampler import RandomSampler, Sampling
from tiny.training.scene import Session, Split
from tiny.training.world import draw_scene, draw_session

SEED = 1
QUESTIONS = 1000
MAX_TOKENS = 400
CHECKPOINT = Path(__file__).parent.parent / "checkpoint"


@dataclass(frozen=True, slots=True)
class Turn:
    """One generation: the model's messages, what was repaired, how it ended."""

    messages: tuple[Message, ...]
    diagnostics: tuple[Diagnostic, ...]
    end: End

    @property
    def well_formed(self) -> bool:
        """Reasoning, if any, then exactly one answer or one call, ended as such."""
        if self.diagnostics or not self.messages:
            return False
        *before, last = self.messages
        reasoned = all(m.channel == "analysis" and m.recipient is None for m in before)
        if last.recipient is None:
            return reasoned and last.channel == "final" and self.end is End.RETURN
        return reasoned and last.channel == "commentary" and self.end is End.CALL


@dataclass(frozen=True, slots=True)
class Answer:
    """How a held-out exchange went."""

    session: Session
    turns: tuple[Turn, ...]
    right: bool

    @property
    def well_formed(self) -> int:
        return sum(turn.well_formed for turn in self.turns)

    @property
    def reasoning(self) -> int:
        """Characters of reasoning."""
        said = (m for turn in self.turns for m in turn.messages)
        return sum(len(m.text) for m in said if m.channel == "analysis")


def questions(count: int, seed: int = SEED) -> list[Session]:
    """Conversations whose last question is on the test side of the split."""
    rng = Random(seed)
    return [draw_session(rng, draw_scene(rng), Split.TEST) for _ in range(count)]


def generate(engine: Engine, tokenizer: Tokenizer, messages: Sequence[Message]) -> Turn:
    """The model's next turn at temperature 0."""
    stop = frozenset(tokenizer.control[t] for t in ("<|return|>", "<|call|>", "<|endoftext|>"))
    sampler = RandomSampler(Sampling(temperature=0), seed=0)
    prompt = render_for_completion(messages, tokenizer)
    parser = Parser(tokenizer)
    events = []
    for token in engine.generate(prompt, sampler, stop=stop, max_tokens=MAX_TOKENS):
        events += parser.push(token)
    events += parser.finish()
    return Turn(
        tuple(event.message for event in events if isinstance(event, MessageEnded)),
        tuple(event for event in events if isinstance(event, Diagnostic)),
        next((event.end for event in events if isinstance(event, TurnEnded)), End.CUT),
    )


def answer(engine: Engine, tokenizer: Tokenizer, session: Session) -> Answer:
    """Hold the last exchange: where a call is expected and made, the tool's message follows."""
    asked, *expected = session.last.messages
    messages = [*session.history, asked]
    turns: list[Turn] = []
    for wanted in (m for m in expected if m.channel == "final" or m.recipient is not None):
        if wanted.role is Role.TOOL:
            messages.append(wanted)
            continue
        turn = generate(engine, tokenizer, messages)
        turns.append(turn)
        messages += turn.messages
        if not turn.messages or not _as_wanted(turn.messages[-1], wanted, session.last.accepted):
            return Answer(session, tuple(turns), right=False)
    return Answer(session, tuple(turns), right=True)


def _as_wanted(said: Message, wanted: Message, accepted: frozenset[str]) -> bool:
    if wanted.recipient is None:
        return said.recipient is None and said.channel == "final" and said.text in accepted
    return said.recipient == wanted.recipient and _json(said.text) == _json(wanted.text)


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def shares(answers: Sequence[Answer]) -> tuple[float, float]:
    """Of turns that are well formed, and of questions that are answered right."""
    turns = sum(len(a.turns) for a in answers)
    well_formed = sum(a.well_formed for a in answers)
    return well_formed / turns, sum(a.right for a in answers) / len(answers)


def report(answers: Sequence[Answer]) -> Iterator[str]:
    """Lines of text: the two shares, each category's, and the length of reasoning by effort."""
    turns = sum(len(a.turns) for a in answers)
    yield f"well formed {_share(sum(a.well_formed for a in answers), turns)} of turns"
    yield f"right       {_share(sum(a.right for a in answers), len(answers))} of questions"
    for category in sorted({a.session.last.category for a in answers}):
        of = [a for a in answers if a.session.last.category == category]
        yield f"  {category:16} {_share(sum(a.right for a in of), len(of))}"
    for effort in Effort:
        lengths = [a.reasoning for a in answers if a.session.scene.effort is effort]
        mean = sum(lengths) / max(1, len(lengths))
        yield f"reasoning at {effort:6} effort: {mean:.0f} characters on average"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):5.1f}% ({part} of {whole})"


def wrong(answers: Sequence[Answer]) -> Iterator[str]:
    """What was asked, said and wanted where the two differ."""
    for a in answers:
        if a.right and a.well_formed == len(a.turns):
            continue
        yield f"[{a.session.last.category}, {a.session.scene.effort}]"
        yield f"  asked   {a.session.last.messages[0].text}"
        for turn in a.turns:
            for m in turn.messages:
                yield f"  said    {m.channel} {m.recipient or ''} {m.text}"
            yield f"          {turn.end} {' '.join(d.code for d in turn.diagnostics)}"
        for m in a.session.last.messages[1:]:
            yield f"  wanted  {m.channel} {m.recipient or ''} {m.text}"


def score(path: Path, count: int) -> list[Answer]:
    """The answers of the model at ``path`` to ``count`` held-out questions."""
    model = Model.open(path)
    engine = LlamaEngine(path, n_ctx=2048, n_threads=1)  # for so little, two are slower
    try:
        return [answer(engine, model.tokenizer, session) for session in questions(count)]
    finally:
        engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Score the tiny gpt-oss.")
    parser.add_argument("model", type=Path, nargs="?", default=CHECKPOINT)
    parser.add_argument("--questions", type=int, default=QUESTIONS)
    parser.add_argument("--wrong", action="store_true", help="show what went wrong")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path: Path = options.model
        if path.is_dir():
            path = Path(folder) / "tiny.gguf"
            convert(options.model, path)
        answers = score(path, options.questions)
    for line in report(answers):
        print(line)
    if options.wrong:
        for line in wrong(answers):
            print(line)


if __name__ == "__main__":
    main()
