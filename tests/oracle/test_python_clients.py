"""The official Python clients, unmodified: over a scripted engine, and over the tiny model."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import anthropic
import openai
import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from pydantic import BaseModel

import gptoss
from gptoss.converter.convert import convert
from gptoss.runtime.sampling.constrained import TokenMasks
from support.live_server import live_server
from support.responding_engine import (
    ENDLESS,
    ENDLESS_TOKENS,
    RespondingEngine,
    Script,
    answer,
    call,
    wait_until_idle,
)
from support.server import KEY, scripted
from support.tokens import byte_tokenizer

pytestmark = pytest.mark.oracle

CHECKPOINT = Path(__file__).parents[1] / "tiny" / "checkpoint"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
CHAT_TOOLS: Any = [{"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}]
TOOLS: Any = [{"name": "get_weather", "description": "The weather.", "input_schema": SCHEMA}]


class Person(BaseModel):
    """What structured outputs are parsed into."""

    name: str
    age: int


def say(text: str) -> Any:
    return [{"role": "user", "content": text}]


class Served:
    """A server over a scripted engine, and the clients for it."""

    def __init__(self, url: str, engine: RespondingEngine) -> None:
        self.engine = engine
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
        self.anthropic = anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0)
        self.stranger = anthropic.Anthropic(base_url=url, api_key="wrong", max_retries=0)

    def async_openai(self) -> openai.AsyncOpenAI:
        """A client of the test's own event loop."""
        url = self.openai.base_url
        return openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    script = Script(
        {
            "Weather in Oslo?": call("get_weather", {"city": "Oslo"}),
            "Invent a person.": answer('{"name": "Ada", "age": 36}'),
        }
    )
    engine = RespondingEngine(script)
    with live_server(lambda: scripted(engine, TokenMasks(byte_tokenizer()))) as url:
        yield Served(url, engine)


# OpenAI's


def test_chat(served: Served) -> None:
    completion = served.openai.chat.completions.create(model="tiny", messages=say("Hi"))
    message = completion.choices[0].message
    assert message.content == "Hello."
    assert message.model_extra is not None
    assert message.model_extra["reasoning"] == "Thinking about it."
    with served.openai.chat.completions.stream(model="tiny", messages=say("Hi")) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "content.delta" in kinds
    assert final.choices[0].message.content == "Hello."


def test_chat_tools_and_structured_outputs(served: Served) -> None:
    completion = served.openai.chat.completions.create(
        model="tiny", messages=say("Weather in Oslo?"), tools=CHAT_TOOLS
    )
    message = completion.choices[0].message
    assert message.tool_calls
    [called] = message.tool_calls
    assert called.type == "function"
    assert json.loads(called.function.arguments) == {"city": "Oslo"}
    result: Any = {"role": "tool", "tool_call_id": called.id, "content": "rain"}
    sent_back: Any = message.model_dump(exclude_none=True)
    again = served.openai.chat.completions.create(
        model="tiny", messages=[*say("Weather in Oslo?"), sent_back, result], tools=CHAT_TOOLS
    )
    assert again.choices[0].message.content == "The tool said so."
    parsed = served.openai.chat.completions.parse(
        model="tiny", messages=say("Invent a person."), response_format=Person
    )
    assert parsed.choices[0].message.parsed == Person(name="Ada", age=36)


def test_responses(served: Served) -> None:
    response = served.openai.responses.create(model="tiny", input="Hi")
    assert response.output_text == "Hello."
    assert [item.type for item in response.output] == ["reasoning", "message"]
    with served.openai.responses.stream(model="tiny", input="Hi") as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()
    assert {"response.reasoning_text.delta", "response.output_text.delta"} <= kinds
    assert final.output_text == "Hello."
    parsed = served.openai.responses.parse(
        model="tiny", input="Invent a person.", text_format=Person
    )
    assert parsed.output_parsed == Person(name="Ada", age=36)


async def test_async_streams_and_cancellation(served: Served) -> None:
    asked: Any = {"model": "tiny", "messages": say(ENDLESS), "stream": True}
    client = served.async_openai()
    stream = await client.chat.completions.create(**asked)
    async for _ in stream:
        break
    await stream.close()
    events = await client.responses.create(model="tiny", input=ENDLESS, stream=True)
    async for event in events:
        if event.type == "response.output_text.delta":
            break
    await events.close()
    wait_until_idle(served.engine)
    endless = [it.timings.generated_tokens for it in served.engine.generations[-2:]]
    assert all(n < ENDLESS_TOKENS for n in endless)
    completion = await client.chat.completions.create(model="tiny", messages=say("Hi"))
    assert completion.choices[0].message.content == "Hello."


def test_errors(served: Served) -> None:
    chat = served.openai.chat.completions
    with pytest.raises(openai.NotFoundError) as missing:
        chat.create(model="other", messages=say("Hi"))
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        chat.create(model="tiny", messages=say("Hi"), temperature=9)
    assert refused.value.param == "temperature"
    stranger = openai.OpenAI(base_url=served.openai.base_url, api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


# Anthropic's


def test_what_is_not_here(served: Served) -> None:
    """Other parts of OpenAI's API, and a base URL without /v1: the error says what to do."""
    with pytest.raises(openai.NotFoundError, match="gpt-oss gives no embeddings"):
        served.openai.embeddings.create(model="gpt-oss-20b", input="Hi")
    with pytest.raises(openai.NotFoundError, match="no sound and no pictures"):
        served.openai.images.generate(model="gpt-oss-20b", prompt="a cat")
    bare = served.openai.with_options(base_url=str(served.openai.base_url).removesuffix("v1/"))
    with pytest.raises(openai.NotFoundError, match="base URL must end in /v1"):
        bare.chat.completions.create(model="gpt-oss-20b", messages=say("Hi"))
    with pytest.raises(anthropic.NotFoundError, match="no such path"):
        served.anthropic.messages.batches.list()


def test_messages(served: Served) -> None:
    asked: Any = {"model": "tiny", "max_tokens": 500, "messages": say("Hi")}
    message = served.anthropic.messages.create(**asked)
    [block] = message.content
    assert block.type == "text"
    assert (block.text, message.stop_reason) == ("Hello.", "end_turn")
    thinking: Any = {"type": "adaptive"}
    with served.anthropic.messages.stream(**asked, thinking=thinking) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert {"thinking", "signature", "text"} <= set(kinds)
    assert [it.type for it in final.content] == ["thinking", "text"]
    assert final.usage.output_tokens > 0
    count = served.anthropic.messages.count_tokens(model="tiny", messages=say("Hi"))
    assert count.input_tokens == message.usage.input_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_messages_tools(served: Served, stream: bool) -> None:
    """A thinking block with its signature goes back, as the API demands of its clients."""
    conversation = say("Weather in Oslo?")
    asked: Any = {
        "model": "tiny",
        "max_tokens": 2000,
        "tools": TOOLS,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    if stream:
        with served.anthropic.messages.stream(messages=conversation, **asked) as events:
            message = events.get_final_message()
    else:
        message = served.anthropic.messages.create(messages=conversation, **asked)
    assert message.stop_reason == "tool_use"
    called = message.content[-1]
    assert called.type == "tool_use"
    assert called.input == {"city": "Oslo"}
    result = {"type": "tool_result", "tool_use_id": called.id, "content": "rain"}
    conversation += [
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result]},
    ]
    again = served.anthropic.messages.create(messages=conversation, **asked)
    text = again.content[-1]
    assert text.type == "text"
    assert text.text == "The tool said so."


def test_messages_structured_outputs(served: Served) -> None:
    parsed = served.anthropic.messages.parse(
        model="tiny", max_tokens=500, messages=say("Invent a person."), output_format=Person
    )
    assert parsed.parsed_output == Person(name="Ada", age=36)


def test_messages_errors_and_models(served: Served) -> None:
    create = served.anthropic.messages.create
    asked: Any = {"max_tokens": 500, "messages": say("Hi")}
    with pytest.raises(anthropic.NotFoundError):
        create(model="other", **asked)
    picture: Any = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}
    with pytest.raises(anthropic.BadRequestError, match="text only"):
        create(model="tiny", max_tokens=1, messages=[{"role": "user", "content": [picture]}])
    with pytest.raises(anthropic.AuthenticationError):
        served.stranger.messages.create(model="tiny", **asked)
    model, alias = served.anthropic.models.list().data
    assert (model.id, model.max_input_tokens) == ("tiny", 100_000)
    assert alias.id == "gpt-oss-20b"


def test_messages_request_ids(served: Served) -> None:
    """By the id that the client has, a request is found in the server's log."""
    message = served.anthropic.messages.create(model="tiny", max_tokens=500, messages=say("Hi"))
    assert (message._request_id or "").startswith("req_")
    with pytest.raises(anthropic.NotFoundError) as missing:
        served.anthropic.models.retrieve("other")
    assert (missing.value.request_id or "").startswith("req_")
    assert missing.value.type == "not_found_error"


def test_messages_tool_runner(served: Served) -> None:
    """The runner asks for a thread first; the error makes it send all messages instead."""
    seen = []

    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """Get the weather.

        Args:
            city: Where.
        """
        seen.append(city)
        return "rain"

    runner = served.anthropic.beta.messages.tool_runner(
        model="tiny", max_tokens=500, messages=say("Weather in Oslo?"), tools=[get_weather]
    )
    text = runner.until_done().content[-1]
    assert text.type == "text"
    assert (text.text, seen) == ("The tool said so.", ["Oslo"])


def test_messages_cancellation(served: Served) -> None:
    asked: Any = {"model": "tiny", "max_tokens": 1_000_000, "messages": say(ENDLESS)}
    with served.anthropic.messages.stream(**asked) as stream:
        for _ in stream.text_stream:
            break
    wait_until_idle(served.engine)
    assert served.engine.generations[-1].timings.generated_tokens < ENDLESS_TOKENS


# OpenAI's Agents SDK


@pytest.mark.parametrize("api", ["chat", "responses"])
@pytest.mark.parametrize("stream", [False, True])
async def test_agents(served: Served, api: str, stream: bool) -> None:
    set_tracing_disabled(True)
    seen = []

    @function_tool
    def get_weather(city: str) -> str:
        """Get the weather."""
        seen.append(city)
        return "rain"

    kind = OpenAIChatCompletionsModel if api == "chat" else OpenAIResponsesModel
    model: Any = kind(model="tiny", openai_client=served.async_openai())
    settings = ModelSettings(max_tokens=500)
    agent = Agent("tester", "Use the tool.", model=model, tools=[get_weather])
    agent.model_settings = settings
    if stream:
        streamed = Runner.run_streamed(agent, "Weather in Oslo?")
        kinds = {event.type async for event in streamed.stream_events()}
        assert "run_item_stream_event" in kinds
        output = streamed.final_output
    else:
        output = (await Runner.run(agent, "Weather in Oslo?")).final_output
    assert (output, seen) == ("The tool said so.", ["Oslo"])


# The tiny model itself: grammar and all


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gptoss.SpawnedServer]:
    [gguf] = convert(CHECKPOINT, tmp_path_factory.mktemp("clients") / "tiny.gguf").files
    with gptoss.spawn(gguf, n_ctx=2048, parallel=2) as server:
        yield server


class Opinion(BaseModel):
    """Without free text, which the tiny model may go on with until it is cut."""

    good: bool
    stars: Literal[1, 2, 3]


def test_the_tiny_model_through_openai(tiny: gptoss.SpawnedServer) -> None:
    client = tiny.openai()
    called = client.chat.completions.create(
        model=tiny.model,
        messages=say("What is the weather in Paris?"),
        tools=CHAT_TOOLS,
        tool_choice="required",
    )
    calls = called.choices[0].message.tool_calls
    assert calls
    assert calls[0].type == "function"
    assert set(json.loads(calls[0].function.arguments)) == {"city"}
    parsed = client.responses.parse(
        model=tiny.model, input="Hello!", text_format=Opinion, temperature=1.5
    )
    assert isinstance(parsed.output_parsed, Opinion)


def test_the_tiny_model_through_anthropic(tiny: gptoss.SpawnedServer) -> None:
    client = tiny.anthropic()
    message = client.messages.create(
        model=tiny.model,
        max_tokens=500,
        messages=say("What is the weather in Paris?"),
        tools=TOOLS,
        tool_choice={"type": "any"},
    )
    block = message.content[-1]
    assert block.type == "tool_use"
    assert set(block.input) == {"city"}
    disabled: Any = {"type": "disabled"}
    short = client.messages.create(
        model=tiny.model, max_tokens=200, messages=say("What is 17 + 25?"), thinking=disabled
    )
    [text] = short.content
    assert text.type == "text"
    assert text.text


def test_clients_at_the_same_time(tiny: gptoss.SpawnedServer) -> None:
    """Eight threads, both packages, more than there are sequences."""
    failed: list[BaseException] = []

    def ask(number: int) -> None:
        try:
            text = f"What is {number} + 25?"
            if number % 2:
                tiny.openai().chat.completions.create(model=tiny.model, messages=say(text))
            else:
                tiny.anthropic().messages.create(
                    model=tiny.model, max_tokens=300, messages=say(text)
                )
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=ask, args=(10 + i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
