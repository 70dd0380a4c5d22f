"""What `make demo` runs: the way of `gptoss-run chat 20b`, with the small model in this repository.

The plan is shown, the checkpoint is converted and verified, and then there is a conversation. The
last lines say what to type next. Exit code 1 means that a step failed: the conversion is not proven
equal, a turn does not end well, or a tool is not called.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gptoss
from gptoss.library.finder import LibraryFinder
from gptoss.library.store import ModelFolder
from gptoss.runtime.chat.chat import Chat
from gptoss.runtime.chat.events import collect
from gptoss.runtime.harmony.events import End
from gptoss.runtime.harmony.messages import Effort
from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.terminal.printer import Printer

CHECKPOINT = Path(__file__).resolve().parent / "tiny" / "checkpoint"
MODELS = Path("build") / "models"
COMMANDS = Path(os.path.relpath(Path(sys.executable).parent))
NEXT = f"""
── what to type next
   talk with gpt-oss-20b, which is downloaded first (14 GB):
      {COMMANDS / "gptoss-run"} chat 20b
   talk with this small model, in the terminal or in the browser:
      {COMMANDS / "gptoss-run"} chat {os.path.relpath(CHECKPOINT)}
      {COMMANDS / "gptoss-run"} serve {os.path.relpath(CHECKPOINT)}"""


def get_weather(city: str) -> dict[str, object]:
    """Get the current weather in a city.

    Args:
        city: Name of the city
    """
    return {"temperature": 21 if city == "Paris" else 12, "sky": "sunny"}


@dataclass(frozen=True)
class Turn:
    """What is said, how long to reason, and what must happen."""

    text: str
    reasoning: str = "medium"
    must_contain: str = ""
    must_call: str | None = None


CONVERSATION = (
    Turn("Hello!"),
    Turn("What is 17 + 25?", must_contain="42"),
    Turn("What is 58 - 23?", reasoning="high", must_contain="35"),
    Turn("What is the weather in Paris?", must_call="get_weather", must_contain="21"),
    Turn("Write me a poem."),
    Turn("Thanks, bye!"),
)


@contextmanager
def step(title: str) -> Iterator[None]:
    """A title, and behind what is done the time it took."""
    print(f"\n── {title}", flush=True)
    begin = time.perf_counter()
    yield
    print(f"   took {time.perf_counter() - begin:.2f} s", flush=True)


def talk(chat: Chat, turn: Turn) -> Iterator[str]:
    """One turn, shown as it happens; yields what went wrong."""
    chat.effort = Effort(turn.reasoning)
    printer = Printer(sys.stdout)
    events = []
    for event in chat.send(turn.text):
        printer.show(event)
        events.append(event)
    reply = collect(events)
    if reply.end != End.RETURN or reply.diagnostics:
        yield f"{turn.text!r}: the turn was not well-formed: {reply.end}, {reply.diagnostics}"
    if turn.must_contain not in reply.text:
        yield f"{turn.text!r}: no {turn.must_contain!r} in {reply.text!r}"
    if turn.must_call is not None and turn.must_call not in [call.name for call in reply.calls]:
        yield f"{turn.text!r}: {turn.must_call} was not called"


def main() -> int:
    """Convert, verify, talk."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # into a file on Windows, not every sign exists
    failures = []
    with step("get the small model: convert it, and compare every tensor with the checkpoint"):
        gguf = LibraryFinder(ModelFolder(MODELS)).find(str(CHECKPOINT), yes=True)
        print(f"{gguf}: {gguf.stat().st_size:,} bytes", flush=True)
    with step("verify once more, as gptoss-quant verify does"):
        verdict = gptoss.verify(CHECKPOINT, gguf)
        print(f"{verdict.values:,} values: {verdict.first or 'proven equal'}")
        if not verdict.proven:
            failures.append("the GGUF is not proven equal to its source")
    with step("load it into llama.cpp"):
        chat = gptoss.load(gguf, tools=[get_weather], sampling=Sampling(temperature=0))
    with chat:
        for turn in CONVERSATION:
            with step(f"reasoning {turn.reasoning}> {turn.text}"):
                failures += talk(chat, turn)
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    if not failures:
        print(NEXT)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
