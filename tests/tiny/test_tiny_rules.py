"""The tiny trained model under a turn's rules: it calls, is stopped, answers in a given form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import gptoss
from gptoss.converter.convert import convert
from gptoss.runtime.chat.chat import Chat
from gptoss.runtime.chat.events import Reply
from gptoss.runtime.harmony.events import End
from gptoss.runtime.harmony.messages import Effort
from gptoss.runtime.sampling.grammar import JsonSchema, ReasoningStop, Regex
from gptoss.runtime.sampling.parameters import Sampling

CHECKPOINT = Path(__file__).parent / "checkpoint"
SUMS = {"What is 17 + 25?": "17 + 25 = 42.", "What is 58 - 23?": "58 - 23 = 35."}


async def get_weather(city: str) -> dict[str, object]:
    """Get the current weather in a city.

    Args:
        city: Name of the city
    """
    if city == "Oslo":
        raise RuntimeError("the station does not answer")
    return {"temperature": 21, "sky": "sunny"}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    convert(CHECKPOINT, path)
    return path


def chat_of(gguf: Path, budget: int | None = None) -> Chat:
    return gptoss.load(
        gguf,
        tools=[get_weather],
        reasoning="high",
        reasoning_budget=budget,
        sampling=Sampling(temperature=0),
        date="2026-11-25",
        max_tokens=500,
        n_threads=1,  # for so little, two are slower
    )


@pytest.fixture(scope="module")
def loaded(gguf: Path) -> Iterator[Chat]:
    with chat_of(gguf) as chat:
        yield chat


@pytest.fixture
def chat(loaded: Chat) -> Chat:
    loaded.reset()
    return loaded


def assert_whole(reply: Reply) -> None:
    assert (reply.end, reply.cut, reply.diagnostics) == (End.RETURN, None, ())


def test_a_call_its_result_and_the_answer_from_it(chat: Chat) -> None:
    reply = chat.ask("What is the weather in Paris?")
    assert_whole(reply)
    [call] = reply.calls
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    assert json.loads(call.result) == {"temperature": 21, "sky": "sunny"}
    assert "21 degrees" in reply.text
    assert "get_weather" in reply.reasoning
    after = chat.ask("Thanks!")
    assert_whole(after)
    assert not after.calls


def test_a_tool_that_raises_is_told_of(chat: Chat) -> None:
    reply = chat.ask("What is the weather in Oslo?")
    assert_whole(reply)
    assert reply.calls[0].error
    assert reply.calls[0].result == "error: RuntimeError: the station does not answer"
    assert "degrees" not in reply.text


@pytest.mark.parametrize("question", SUMS)
def test_an_answer_in_the_form_asked_for_after_free_reasoning(chat: Chat, question: str) -> None:
    free = chat.ask(question)
    assert free.text == SUMS[question]
    chat.reset()
    bound = chat.ask(question, response_format=Regex(r"[0-9]+ [+-] [0-9]+ = [0-9]+\."))
    assert_whole(bound)
    assert (bound.reasoning, bound.text) == (free.reasoning, free.text)
    chat.reset()
    schema = {
        "type": "object",
        "properties": {"sure": {"type": "boolean"}, "result": {"type": "integer", "minimum": 0}},
        "required": ["sure", "result"],
        "additionalProperties": False,
    }
    answer = chat.ask(question, response_format=JsonSchema(schema))
    assert_whole(answer)
    assert answer.reasoning == free.reasoning, "the schema binds the answer alone"
    value = json.loads(answer.text)
    assert set(value) == {"sure", "result"}
    assert type(value["sure"]) is bool
    assert type(value["result"]) is int


@pytest.mark.parametrize("budget", [0, 10, 40])
def test_high_effort_against_a_budget(gguf: Path, chat: Chat, budget: int) -> None:
    question = "What is 58 - 23?"
    chat.effort = Effort.HIGH
    free = chat.ask(question)
    with chat_of(gguf, budget) as held:
        reply = held.ask(question)
    assert_whole(reply)
    assert reply.text
    assert free.reasoning.startswith(reply.reasoning)
    assert len(reply.reasoning) < len(free.reasoning) / 2
    assert reply.closed is (ReasoningStop.BUDGET if budget else None)
    assert reply.timings.generated_tokens < free.timings.generated_tokens
