"""The loop of calls, results and answers where the model is noise and only the rules are sense."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Literal

import pytest

from gptoss.runtime.chat.chat import Chat
from gptoss.runtime.chat.events import ChatEvent, ReasoningClosed, Reply, ToolFinished, ToolStarted
from gptoss.runtime.chat.settings import Limits, Settings
from gptoss.runtime.harmony.errors import ConstraintError
from gptoss.runtime.harmony.events import End, MessageStarted
from gptoss.runtime.sampling.constrained import TokenMasks
from gptoss.runtime.sampling.grammar import JsonSchema, Lark, Regex
from gptoss.runtime.tools.toolbox import Toolbox
from support.random_engine import RandomEngine
from support.tokens import byte_tokenizer, spelled

TOKENIZER = byte_tokenizer()
VOCABULARY = TokenMasks(TOKENIZER)
ENDS = [TOKENIZER.control[text] for text in ("<|end|>", "<|return|>", "<|call|>")] + [ord('"')]


class Tools:
    """Two functions, one of them async, that write down what they were called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def functions(self) -> list[Callable[..., Any]]:
        def book(seats: int, berth: Literal["up", "down"], note: str | None = None) -> str:
            self.calls.append(("book", {"seats": seats, "berth": berth, "note": note}))
            return "booked"

        async def cancel(everything: bool) -> str:
            await asyncio.sleep(0)
            self.calls.append(("cancel", {"everything": everything}))
            raise ValueError("too late")

        return [book, cancel]


def chat_of(seed: int, tools: Tools, **settings: Any) -> tuple[Chat, RandomEngine]:
    settings.setdefault("limits", Limits(reasoning_budget=10, max_tokens=4000))
    engine = RandomEngine(TOKENIZER.n_vocab, seed, favoured=ENDS)
    toolbox = Toolbox(tools.functions())
    asked = Settings(seed=seed, date="2025-01-01", **settings)
    return Chat(engine, TOKENIZER, VOCABULARY, toolbox=toolbox, settings=asked), engine


def test_a_required_call_is_made_checked_answered_and_then_the_model_is_free() -> None:
    answered, reached = 0, set()
    for seed in range(30):
        tools = Tools()
        chat, engine = chat_of(seed, tools, tool_choice="required")
        reply = chat.ask("go")
        assert reply.calls, "one was required"
        assert not reply.diagnostics
        answered += reply.end == End.RETURN
        assert len(tools.calls) == len(reply.calls)
        seen = [spelled(prompt) for prompt in engine.prompts[1:]]
        for (name, values), call, prompt in zip(tools.calls, reply.calls, seen, strict=True):
            assert call.name == name
            reached.add(name)
            if name == "book":
                assert isinstance(values["seats"], int)
                assert values["berth"] in ("up", "down")
                assert call.result == "booked"
            else:
                assert isinstance(values["everything"], bool)
                assert (call.result, call.error) == ("error: ValueError: too late", True)
            assert f"<|start|>functions.{name} to=assistant<|channel|>commentary" in prompt
    assert answered > 20
    assert reached == {"book", "cancel"}


def test_the_reasoning_before_a_call_stays_until_the_answer_and_is_gone_then() -> None:
    for seed in range(20):
        limits = Limits(reasoning_budget=100, max_tokens=4000)
        chat, engine = chat_of(seed, Tools(), tool_choice="required", limits=limits)
        reply = chat.ask("go")
        if not reply.reasoning or reply.end != End.RETURN:
            continue
        first, second = engine.prompts[:2]
        assert second[: len(first)] == first, "the cache holds"
        assert spelled(second[len(first) :]).startswith("<|channel|>analysis<|message|>")
        chat.ask("again", tool_choice="none")
        assert "<|channel|>analysis" not in spelled(engine.prompts[-1])
        return
    pytest.fail("no seed reasoned, called and answered")


def test_the_named_tool_comes_first_and_only_first() -> None:
    later = set()
    for seed in range(30):
        reply = chat_of(seed, Tools(), tool_choice="book")[0].ask("go")
        assert reply.calls[0].name == "book"
        later |= {call.name for call in reply.calls[1:]}
    assert later == {"book", "cancel"}


def test_a_choice_for_one_turn() -> None:
    chat, _ = chat_of(0, Tools())
    assert chat.ask("go", tool_choice="none").calls == ()
    assert chat.ask("go", tool_choice="cancel").calls[0].name == "cancel"
    with pytest.raises(ConstraintError, match="tools: book, cancel"):
        chat.ask("go", tool_choice="nothing")


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_behind_the_last_round_the_model_answers(rounds: int) -> None:
    most = 0
    for seed in range(30):
        limits = Limits(reasoning_budget=0, max_rounds=rounds, max_tokens=9000)
        reply = chat_of(seed, Tools(), limits=limits)[0].ask("go")
        assert len(reply.calls) <= rounds
        assert (reply.end, reply.cut, reply.diagnostics) == (End.RETURN, None, ())
        most = max(most, len(reply.calls))
    assert most == rounds


def test_parallel_calls_are_each_run() -> None:
    limits = Limits(reasoning_budget=0, max_rounds=1, max_tokens=9000)
    counts = set()
    for seed in range(20):
        tools = Tools()
        chat, engine = chat_of(
            seed, tools, parallel_calls=True, tool_choice="required", limits=limits
        )
        reply = chat.ask("go")
        assert len(engine.prompts) == 2
        assert len(tools.calls) == len(reply.calls)
        counts.add(len(tools.calls))
    assert {1, 2} <= counts


def test_every_step_is_an_event() -> None:
    chat, _ = chat_of(1, Tools(), tool_choice="required")
    events: list[ChatEvent] = list(chat.send("go"))
    started = [e.name for e in events if isinstance(e, ToolStarted)]
    finished = [e.name for e in events if isinstance(e, ToolFinished)]
    assert started == finished != []


def test_the_budget_is_of_the_whole_turn() -> None:
    """What one round has spent, the next has not: once it is gone, nobody reasons any more."""
    later_rounds = 0
    for seed in range(40):
        limits = Limits(reasoning_budget=12, max_tokens=4000)
        chat, _ = chat_of(seed, Tools(), limits=limits, tool_choice="required")
        events: list[ChatEvent] = list(chat.send("go"))
        closed = [i for i, e in enumerate(events) if isinstance(e, ReasoningClosed)]
        assert len(closed) <= 1
        if closed:
            after = events[closed[0] + 1 :]
            started = [e for e in after if isinstance(e, MessageStarted)]
            assert all(e.channel == "final" or e.recipient is not None for e in started)
            later_rounds += sum(isinstance(e, ToolFinished) for e in after)
    assert later_rounds > 10


@pytest.mark.parametrize("bad", [Regex("("), Lark("start: x"), JsonSchema({"type": "no"})])
def test_a_request_that_cannot_be_compiled_costs_no_token(bad: Any) -> None:
    chat, engine = chat_of(0, Tools())
    chat.ask("go")
    before, prompts = chat.messages, len(engine.prompts)
    with pytest.raises(ConstraintError):
        chat.ask("go", response_format=bad)
    assert len(engine.prompts) == prompts
    assert chat.messages == before
    assert chat.ask("go").end == End.RETURN


def test_an_answer_to_a_schema_that_the_limit_cuts_says_so() -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 5}
    cut = whole = 0
    for seed in range(60):
        limits = Limits(reasoning_budget=0, max_tokens=30)
        chat, _ = chat_of(seed, Tools(), limits=limits, response_format=JsonSchema(schema))
        reply: Reply = chat.ask("go", tool_choice="none")
        if reply.cut is None:
            assert 3 <= len(json.loads(reply.text)) <= 5
            whole += 1
        else:
            assert reply.timings.generated_tokens == 30
            cut += 1
    assert cut > 5
    assert whole > 5
