"""A chat closed, reset and cancelled at any moment, from any thread: one end for each reply.

The random moments run in a process of their own, so that a signal that ends it fails one test.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gptoss.runtime.chat.chat import Chat
from gptoss.runtime.chat.events import ChatEvent, ReplyEnded, StopReason, ToolStarted
from gptoss.runtime.chat.reply_stream import ReplyStream
from gptoss.runtime.chat.settings import ChatError
from gptoss.runtime.harmony.events import End, TextDelta
from gptoss.runtime.tools.toolbox import Toolbox
from support.fake_engine import ScriptedEngine
from support.tokens import byte_tokenizer

FINAL = "<|channel|>final<|message|>Four.<|return|>"
CALL = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>"


def assert_cancelled(events: list[ChatEvent]) -> None:
    ends = [event for event in events if isinstance(event, ReplyEnded)]
    assert [(it.end, it.cut) for it in ends] == [(End.CUT, StopReason.CANCELLED)]
    assert events[-1] == ends[0]


def events_of(stream: ReplyStream) -> list[ChatEvent]:
    return list(stream)


@pytest.mark.parametrize("act", ["cancel", "reset", "close"])
def test_between_send_and_the_first_event(act: str) -> None:
    engine = ScriptedEngine(FINAL, FINAL)
    chat = Chat(engine, byte_tokenizer())
    stream = chat.send("2+2?")
    getattr(chat, act)()
    assert_cancelled(events_of(stream))
    assert len(chat.messages) == 1
    if act != "close":
        assert chat.ask("again").text == "Four."


@pytest.mark.parametrize("act", ["cancel", "reset", "close"])
@pytest.mark.parametrize("from_a_thread", [False, True])
def test_while_the_reply_is_read(act: str, from_a_thread: bool) -> None:
    chat = Chat(ScriptedEngine(FINAL, FINAL), byte_tokenizer())
    seen: list[ChatEvent] = []
    for event in chat.send("2+2?"):
        seen.append(event)
        if isinstance(event, TextDelta) and event.text == "o":
            if from_a_thread:
                thread = threading.Thread(target=getattr(chat, act))
                thread.start()
                thread.join()
            else:
                getattr(chat, act)()
    assert_cancelled(seen)
    kept = ["2+2?", "Fo"] if act == "cancel" else []
    assert [m.text for m in chat.messages[1:]] == kept
    if act != "close":
        assert chat.ask("again").text == "Four."


@pytest.mark.parametrize("act", ["cancel", "reset", "close"])
def test_by_the_tool_that_runs(act: str) -> None:
    def f() -> str:
        getattr(chat, act)()
        return "done"

    engine = ScriptedEngine(CALL, FINAL)
    chat = Chat(engine, byte_tokenizer(), toolbox=Toolbox([f]))
    assert_cancelled(events_of(chat.send("2+2?")))
    assert len(engine.prompts) == 1
    assert len(chat.messages) == 2
    if act != "close":
        assert chat.ask("again").text == "Four."


def test_a_tool_cannot_read_the_reply_that_called_it() -> None:
    def f() -> str:
        next(stream)
        return "?"

    chat = Chat(ScriptedEngine(CALL, FINAL), byte_tokenizer(), toolbox=Toolbox([f]))
    stream = chat.send("2+2?")
    events = events_of(stream)
    assert any(isinstance(event, ToolStarted) for event in events)
    assert "is being read already" in chat.messages[-2].text


def test_while_the_rules_compile() -> None:
    """The cancel comes inside ``send``'s first event, before anything was generated."""
    engine = ScriptedEngine(FINAL, FINAL)
    chat = Chat(engine, byte_tokenizer())
    stream = chat.send("2+2?")
    original = engine.generate

    def generate(*args: object, **kwargs: object) -> object:
        chat.cancel()
        return original(*args, **kwargs)  # type: ignore[arg-type]

    engine.generate = generate  # type: ignore[method-assign, assignment]
    assert_cancelled(events_of(stream))
    engine.generate = original  # type: ignore[method-assign]
    assert chat.ask("again").text == "Four."


def test_a_cancel_after_the_end_ends_no_later_reply() -> None:
    chat = Chat(ScriptedEngine(FINAL, FINAL), byte_tokenizer())
    first = chat.send("a")
    assert len(events_of(first)) > 2
    chat.cancel()
    first.cancel()
    assert chat.ask("b").end == End.RETURN


def test_a_stream_closed_by_another_thread_gives_its_end() -> None:
    chat = Chat(ScriptedEngine(FINAL, FINAL), byte_tokenizer())
    stream = chat.send("a")
    seen = [next(stream), next(stream)]
    thread = threading.Thread(target=stream.close)
    thread.start()
    thread.join()
    assert_cancelled([*seen, *stream])
    assert list(stream) == []


def test_closed() -> None:
    chat = Chat(ScriptedEngine(FINAL), byte_tokenizer())
    chat.close()
    chat.close()
    with pytest.raises(ChatError, match="closed"):
        chat.ask("?")


RANDOM_MOMENTS = """
import random, sys, threading, time
from pathlib import Path
from gptoss.runtime.chat.events import ReplyEnded, StopReason
from gptoss.runtime.chat.model import open
from gptoss.runtime.chat.settings import ChatError
from gptoss.runtime.engine.base import EngineError
from gptoss.runtime.harmony.events import TextDelta
path, moments, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
total = moments
rng = random.Random(seed)
failures, counts = [], {}

LIMITS = 12, 1000  # so few that a reply may be whole before it is cancelled, and many
AHEAD = 50  # more tokens than the engine may have sampled for a reader

def read(stream, acted):
    ends, late = [], 0
    begun = time.perf_counter()
    for event in stream:
        if isinstance(event, ReplyEnded):
            ends.append(event)
        late += acted.is_set() and isinstance(event, TextDelta)
    if len(ends) != 1:
        failures.append(f"{len(ends)} ends")
        return
    [end] = ends
    kind = "cancelled" if end.cut == StopReason.CANCELLED else "whole"
    counts[kind] = counts.get(kind, 0) + 1
    if late > AHEAD:
        failures.append(f"a cancel was lost: {late} tokens came after it")
    if time.perf_counter() - begun > 60:
        failures.append("a reply took 60 s")

def one_model(model, n):
    done = 0
    chats = [model.chat(max_tokens=limit, date="2026-01-01") for limit in LIMITS]
    while done < n:
        index = rng.randrange(len(chats))
        chat = chats[index]
        acted = threading.Event()
        try:
            stream = chat.send("Hello " * rng.randrange(1, 30))
        except ChatError as error:
            failures.append(f"send: {error}")
            return
        reader = threading.Thread(target=read, args=(stream, acted), daemon=True)
        act = rng.choice(["cancel", "cancel", "reset", "close", "drop", "send"])
        reader.start()
        time.sleep(rng.choice([0, 0, 0.0005, 0.002, 0.01]) * rng.random())
        if act == "drop":
            stream.close()
        elif act == "send":
            try:
                chat.send("too early").close()
            except ChatError:
                pass
            chat.cancel()
        else:
            getattr(chat, act)()
        acted.set()
        if act == "reset":
            chat.ask("after") if rng.random() < 0.2 and index == 0 else chat.send("never read")
            chat.cancel()
        reader.join(60)
        if reader.is_alive():
            failures.append(f"{act}: the reader hangs")
            return
        if act == "close":
            chats[index] = model.chat(max_tokens=LIMITS[index], date="2026-01-01")
        done += 1

while moments > 0 and not failures:
    n = min(moments, rng.randrange(50, 200))
    moments -= n
    model = open(path, n_ctx=2048, parallel=rng.randrange(1, 4), n_threads=1)
    one_model(model, n)
    # The last reply is under way when the model is closed.
    chat = model.chat(max_tokens=LIMITS[0])
    reader = threading.Thread(target=read, args=(chat.send("bye"), threading.Event()), daemon=True)
    reader.start()
    time.sleep(0.01 * rng.random())
    model.close()
    reader.join(60)
    if reader.is_alive():
        failures.append("model.close: the reader hangs")
    try:
        model.chat().ask("?")
        failures.append("a closed model answered")
    except EngineError:
        pass
assert not failures, failures
assert counts["cancelled"] > total / 10, counts
print("done", counts, file=sys.stderr)
print("done")
"""


def run_moments(path: Path, moments: int, seed: int) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", RANDOM_MOMENTS, path, str(moments), str(seed)],
        capture_output=True,
        text=True,
        timeout=60 + moments,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_random_moments(random_gguf: Path) -> None:
    run_moments(random_gguf, 300, seed=1)


@pytest.mark.slow
def test_ten_thousand_random_moments(random_gguf: Path) -> None:
    run_moments(random_gguf, 10_000, seed=2)
