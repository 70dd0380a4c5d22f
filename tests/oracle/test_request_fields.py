"""Every field that the official packages can send, and what becomes of it.

A newer package with a new field, or a new event, fails here until it has its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

import pytest
from anthropic.types import (
    RawContentBlockDelta,
    RawMessageStreamEvent,
    message_count_tokens_params,
    message_create_params,
)
from anthropic.types.beta import message_count_tokens_params as beta_count_tokens_params
from anthropic.types.beta import message_create_params as beta_create_params
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import (
    ResponseStreamEvent,
    input_token_count_params,
    response_create_params,
)

from gptoss.runtime.server.anthropic.request import ignored_fields, read_prompt
from gptoss.runtime.server.anthropic.request import read_request as read_messages
from gptoss.runtime.server.chat_completions import request as chat
from gptoss.runtime.server.completions import request as completions
from gptoss.runtime.server.errors import ApiError
from gptoss.runtime.server.responses import request as responses
from gptoss.runtime.server.responses.server_tools import Turned
from gptoss.runtime.tools.builtin import BROWSER, PYTHON
from support.cells import cell
from support.fake_engine import ScriptedEngine
from support.responses import events_of
from support.server_tools import Server, browse, mcp_call, thought, tool_client, tools_of

pytestmark = pytest.mark.oracle

HONOURED, KEPT, IGNORED, REFUSED = "honoured", "kept", "ignored", "refused"
"""Changes what is generated or how it is sent; given back with the response; accepted and named in
``x-ignored-fields``; refused with its name."""

ASKED = [{"role": "user", "content": "Hi"}]
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}
NESTED = {"type": "function", "function": {"name": "f"}}
TURNED = Turned((BROWSER, PYTHON))

RESPONSES: dict[str, tuple[str, Any]] = {
    "access_programs": (IGNORED, {"a": "b"}),
    "background": (HONOURED, True),
    "background_options": (IGNORED, {"completion_window": "2h"}),
    "context_management": (REFUSED, [{"type": "compaction"}]),
    "conversation": (HONOURED, "conv_1"),
    "image": (IGNORED, {"detail": "low"}),
    "include": (HONOURED, ["reasoning.encrypted_content"]),
    "input": (HONOURED, "Ho"),
    "instructions": (HONOURED, "Be brief."),
    "max_output_tokens": (HONOURED, 5),
    "max_tool_calls": (HONOURED, 5),
    "metadata": (KEPT, {"a": "b"}),
    "model": (HONOURED, "tiny"),
    "moderation": (REFUSED, {"a": "b"}),
    "parallel_tool_calls": (HONOURED, False),
    "previous_response_id": (HONOURED, "resp_1"),
    "prompt": (REFUSED, {"id": "p"}),
    "prompt_cache_key": (KEPT, "a"),
    "prompt_cache_options": (IGNORED, {"mode": "explicit"}),
    "prompt_cache_retention": (IGNORED, "24h"),
    "reasoning": (HONOURED, {"effort": "high"}),
    "safety_identifier": (KEPT, "a"),
    "service_tier": (IGNORED, "flex"),
    "store": (HONOURED, False),
    "stream": (HONOURED, True),
    "temperature": (HONOURED, 0.5),
    "text": (HONOURED, {"format": {"type": "json_object"}}),
    "tool_choice": (HONOURED, "none"),
    "tools": (HONOURED, [FUNCTION]),
    "top_logprobs": (KEPT, 3),
    "top_p": (HONOURED, 0.5),
    "truncation": (HONOURED, "auto"),
    "user": (KEPT, "a"),
}
CHAT: dict[str, tuple[str, Any]] = {
    "audio": (REFUSED, {"voice": "a", "format": "wav"}),
    "frequency_penalty": (HONOURED, 0.5),
    "function_call": (REFUSED, "auto"),
    "functions": (REFUSED, [{"name": "f"}]),
    "logit_bias": (HONOURED, {"5": 5}),
    "logprobs": (HONOURED, True),
    "max_completion_tokens": (HONOURED, 5),
    "max_tokens": (HONOURED, 5),
    "messages": (HONOURED, [{"role": "user", "content": "Ho"}]),
    "metadata": (IGNORED, {"a": "b"}),
    "modalities": (REFUSED, ["text", "audio"]),
    "model": (HONOURED, "tiny"),
    "moderation": (REFUSED, {"a": "b"}),
    "n": (HONOURED, 2),
    "parallel_tool_calls": (HONOURED, True),
    "prediction": (REFUSED, {"type": "content", "content": "a"}),
    "presence_penalty": (HONOURED, 0.5),
    "prompt_cache_key": (IGNORED, "a"),
    "prompt_cache_options": (IGNORED, {"mode": "explicit"}),
    "prompt_cache_retention": (IGNORED, "24h"),
    "reasoning_effort": (HONOURED, "high"),
    "response_format": (HONOURED, {"type": "json_object"}),
    "safety_identifier": (IGNORED, "a"),
    "seed": (HONOURED, 5),
    "service_tier": (IGNORED, "flex"),
    "stop": (HONOURED, "a"),
    "store": (HONOURED, False),
    "stream": (HONOURED, True),
    "temperature": (HONOURED, 0.5),
    "tool_choice": (HONOURED, "none"),
    "tools": (HONOURED, [NESTED]),
    "top_p": (HONOURED, 0.5),
    "user": (IGNORED, "a"),
    "verbosity": (IGNORED, "low"),
    "web_search_options": (REFUSED, {"search_context_size": "low"}),
}
COMPLETIONS: dict[str, tuple[str, Any]] = {
    "best_of": (REFUSED, 2),
    "echo": (HONOURED, True),
    "frequency_penalty": (HONOURED, 0.5),
    "logit_bias": (HONOURED, {"5": 5}),
    "logprobs": (HONOURED, 2),
    "max_tokens": (HONOURED, 5),
    "model": (HONOURED, "tiny"),
    "n": (HONOURED, 2),
    "presence_penalty": (HONOURED, 0.5),
    "prompt": (HONOURED, "Ho"),
    "seed": (HONOURED, 5),
    "stop": (HONOURED, "a"),
    "stream": (HONOURED, True),
    "suffix": (REFUSED, "a"),
    "temperature": (HONOURED, 0.5),
    "top_p": (HONOURED, 0.5),
    "user": (IGNORED, "a"),
}
PROMPT: dict[str, tuple[str, Any]] = {
    "billing_policy": (IGNORED, {"type": "billing_policy", "bill_to": "self"}),
    "cache_control": (IGNORED, {"type": "ephemeral"}),
    "compaction": (REFUSED, {"type": "enabled"}),
    "context_management": (IGNORED, {"edits": []}),
    "mcp_servers": (REFUSED, [{"name": "a", "type": "url", "url": "https://a.example"}]),
    "messages": (HONOURED, [{"role": "user", "content": "Ho"}]),
    "model": (HONOURED, "tiny"),
    "output_config": (HONOURED, {"effort": "high"}),
    "speed": (IGNORED, "fast"),
    "system": (HONOURED, "Be brief."),
    "thinking": (HONOURED, {"type": "disabled"}),
    "tool_choice": (HONOURED, {"type": "none"}),
    "tools": (HONOURED, [{"name": "f", "input_schema": {"type": "object"}}]),
    "user_profile_id": (IGNORED, "a"),
    "workspace_id": (IGNORED, "a"),
}
MESSAGES: dict[str, tuple[str, Any]] = {
    **PROMPT,
    "container": (IGNORED, "a"),
    "diagnostics": (IGNORED, {"previous_message_id": "a"}),
    "fallback_credit_token": (IGNORED, "a"),
    "fallbacks": (IGNORED, [{"model": "a"}]),
    "inference_geo": (IGNORED, "eu"),
    "max_tokens": (HONOURED, 50),
    "metadata": (IGNORED, {"user_id": "a"}),
    "service_tier": (IGNORED, "auto"),
    "stop_sequences": (HONOURED, ["a"]),
    "stream": (HONOURED, True),
    "thread": (REFUSED, {"type": "create"}),
}
OPTIONS = {"stream_options", "top_logprobs"}
"""Need another field beside them."""
HEADERS = {"betas"}
"""The client sends them as headers."""

Read = Callable[[dict[str, Any]], Any]
Table = Mapping[str, tuple[str, Any]]


def given(*params: Any) -> set[str]:
    """The fields of the parameters of a call."""
    return {name for it in params for name in it.__annotations__} - HEADERS


def all_of(module: Any, name: str) -> set[str]:
    """The fields of a call that has parameters for streams and for whole answers."""
    kinds = (f"{name}Base", f"{name}Streaming", f"{name}NonStreaming")
    return given(*(getattr(module, it) for it in kinds))


def ignored_of(module: Any) -> Callable[[dict[str, Any]], list[str]]:
    return lambda data: [it for it in data if it in module.IGNORED]


MESSAGE = {"model": "a", "max_tokens": 99, "messages": ASKED}
COUNTED = {"model": "a", "messages": ASKED}
APIS: dict[str, tuple[set[str], Table, Read, Callable[[dict[str, Any]], list[str]], Any]] = {
    "responses": (
        all_of(response_create_params, "ResponseCreateParams"),
        RESPONSES,
        lambda it: responses.read_request(it, TURNED),
        ignored_of(responses),
        {"input": "Hi"},
    ),
    "chat": (
        all_of(chat_params, "CompletionCreateParams"),
        CHAT,
        chat.read_chat_request,
        ignored_of(chat),
        {"messages": ASKED},
    ),
    "completions": (
        all_of(completion_create_params, "CompletionCreateParams"),
        COMPLETIONS,
        completions.read_completion_request,
        ignored_of(completions),
        {"prompt": "Hi"},
    ),
    "messages": (
        all_of(message_create_params, "MessageCreateParams")
        | all_of(beta_create_params, "MessageCreateParams"),
        MESSAGES,
        read_messages,
        ignored_fields,
        MESSAGE,
    ),
    "count_tokens": (
        given(
            message_count_tokens_params.MessageCountTokensParams,
            beta_count_tokens_params.MessageCountTokensParams,
        ),
        PROMPT,
        read_prompt,
        lambda it: ignored_fields(it, counted=True),
        COUNTED,
    ),
}  # fmt: skip


@pytest.mark.parametrize("api", APIS)
def test_every_field_has_its_place(api: str) -> None:
    fields, table, *_ = APIS[api]
    assert fields - OPTIONS == table.keys() - OPTIONS


def cases() -> list[Any]:
    return [
        pytest.param(api, name, id=f"{api}-{name}")
        for api, (_, table, *_) in APIS.items()
        for name in table
    ]


@pytest.mark.parametrize(("api", "name"), cases())
def test_what_becomes_of_a_field(api: str, name: str) -> None:
    _, table, read, ignored, base = APIS[api]
    verdict, value = table[name]
    asked = base | {name: value}
    if verdict == REFUSED:
        with pytest.raises(ApiError) as refused:
            read(asked)
        assert (refused.value.status, refused.value.param) == (400, name)
        assert refused.value.code in ("unsupported_parameter", "unsupported_value", "invalid_value")
        return
    if name == "tool_choice":
        base = base | {"tools": table["tools"][1]}
        asked = base | {name: value}
    parsed, plain = read(asked), read(base)
    assert (parsed == plain) == (verdict == IGNORED)
    assert (name in ignored(asked)) == (verdict == IGNORED)
    if verdict == KEPT:
        assert parsed.echo[name] == value


def test_counting_takes_what_is_counted() -> None:
    known = given(input_token_count_params.InputTokenCountParams)
    assert known - responses.KNOWN == {"personality"}


# Events

SENT = {
    *("created", "queued", "in_progress", "completed", "incomplete", "failed"),
    *("output_item.added", "output_item.done", "content_part.added", "content_part.done"),
    *("output_text.delta", "output_text.done", "output_text.annotation.added"),
    *("reasoning_text.delta", "reasoning_text.done"),
    *("function_call_arguments.delta", "function_call_arguments.done"),
    *("custom_tool_call_input.delta", "custom_tool_call_input.done"),
    *("code_interpreter_call_code.delta", "code_interpreter_call_code.done"),
    *(f"code_interpreter_call.{it}" for it in ("in_progress", "interpreting", "completed")),
    *(f"web_search_call.{it}" for it in ("in_progress", "searching", "completed")),
    *("mcp_call_arguments.delta", "mcp_call_arguments.done"),
    *(f"mcp_call.{it}" for it in ("in_progress", "completed", "failed")),
    *(f"mcp_list_tools.{it}" for it in ("in_progress", "completed", "failed")),
}
NEVER = (
    *("audio.", "audio_transcript.", "image_generation_call.", "file_search_call."),
    *("shell_call_", "compaction.", "refusal.", "reasoning_summary_", "steer"),
    "error",
)
"""What gpt-oss or this server does not do: sound, pictures, files, shells, refusals as parts (the
model declines in its answer), summaries of reasoning (it is given whole). An error in a stream is
``response.failed``."""


def types_of(union: Any) -> set[str]:
    """The names of a union's events."""
    kinds = get_args(get_args(union)[0])
    return {get_args(it.model_fields["type"].annotation)[0] for it in kinds}


def test_every_event_has_its_place() -> None:
    names = {it.removeprefix("response.") for it in types_of(ResponseStreamEvent)}
    assert names >= SENT
    assert {it for it in names - SENT if not it.startswith(NEVER)} == set()
    assert types_of(RawMessageStreamEvent) == {
        "message_start", "message_delta", "message_stop",
        "content_block_start", "content_block_delta", "content_block_stop",
    }  # fmt: skip
    assert types_of(RawContentBlockDelta) == {
        "text_delta", "thinking_delta", "input_json_delta", "signature_delta",
        "citations_delta",  # never: citations are marks in the text
    }  # fmt: skip


async def test_every_event_is_sent() -> None:
    cites = "<|channel|>final<|message|>205 km【1†L2】.<|return|>"
    custom = "<|channel|>commentary to=functions.c code<|message|>abc<|call|>"
    function = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'
    engine = ScriptedEngine(
        thought("Hm.") + browse("search", query="fjords"), browse("open", id=0), cell("1"),
        mcp_call("mail_box.echo", text="Hi"), mcp_call("mail_box.fail"), cites,
        function, custom, cites, n_ctx=5_000,
    )  # fmt: skip
    own = [FUNCTION, {"type": "custom", "name": "c"}]
    here: list[dict[str, Any]] = [
        {"type": "code_interpreter", "container": {"type": "auto"}},
        {"type": "web_search"},
        {"type": "mcp", "server_label": "mail box", "require_approval": "never"},
        {"type": "mcp", "server_label": "dead"},
    ]
    sent: set[str] = set()
    with tools_of(Server(), Server("dead", is_running=False)) as tools:
        async with tool_client(engine, tools) as client:
            for more in (
                {"tools": here, "background": True},
                {"tools": own},
                {"tools": own},
                {"max_output_tokens": 5},
                {"input": "x" * 9_000},
            ):
                asked = {"input": "Hi", "stream": True} | more
                answer = await client.post("/v1/responses", json=asked)
                sent |= {it["type"].removeprefix("response.") for it in events_of(answer.text)}
    assert sent == SENT
