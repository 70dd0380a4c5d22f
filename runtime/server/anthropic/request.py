"""Reads the body of a request to ``/v1/messages`` or ``/v1/messages/count_tokens``.

Fields that have no meaning here (``metadata``, ``context_management``, ``service_tier``, …) are
accepted. Unknown ones are refused, as by the API, unless the client asks for beta features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptoss.runtime.harmony.fields import FieldPath
from gptoss.runtime.harmony.json_schema import check_schema
from gptoss.runtime.harmony.messages import Message
from gptoss.runtime.harmony.schema_check import SchemaChecker
from gptoss.runtime.harmony.text_formats import JsonSchema, ResponseFormat
from gptoss.runtime.sampling.grammar import Rules
from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.server.anthropic.messages import read_conversation
from gptoss.runtime.server.anthropic.thinking import Thinking, read_thinking
from gptoss.runtime.server.anthropic.tools import read_tool_choice, read_tools
from gptoss.runtime.server.anthropic.values import read_boolean, read_integer, read_number

MAX_TOKENS = 1_000_000
"""Largest ``max_tokens``: clients send the limit of Anthropic's models, whatever the context is."""

MAX_STOP_SEQUENCES = 64
MAX_STOP_CHARACTERS = 1000

_FIELDS = frozenset({
    "cache_control", "container", "context_management", "diagnostics", "inference_geo",
    "max_tokens", "mcp_servers", "messages", "metadata", "model", "output_config",
    "output_format", "service_tier", "speed", "stop_sequences", "stream", "system",
    "temperature", "thinking", "tool_choice", "tools", "top_k", "top_p", "user_profile_id",
    "workspace_id",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads. ``messages`` are harmony's, without the system block."""

    model: str
    messages: tuple[Message, ...]
    rules: Rules
    thinking: Thinking


@dataclass(frozen=True, slots=True)
class MessagesRequest:
    """A checked request to generate a message."""

    prompt: Prompt
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]
    stream: bool


def read_request(body: object, *, beta: bool = False) -> MessagesRequest:
    """Read the decoded body of ``POST /v1/messages``; ``beta`` accepts unknown fields.

    Raises ConversationError, which names the field.
    """
    given = _fields(body, beta)
    max_tokens = read_integer(_field("max_tokens"), given.get("max_tokens"), 1, MAX_TOKENS)
    stream = given.get("stream")
    return MessagesRequest(
        prompt=_prompt(given, max_tokens),
        max_tokens=max_tokens,
        sampling=_sampling(given),
        stop=_stop(given),
        stream=False if stream is None else read_boolean(_field("stream"), stream),
    )


def read_prompt(body: object, *, beta: bool = False) -> Prompt:
    """Read the decoded body of ``POST /v1/messages/count_tokens``; as ``read_request``."""
    return _prompt(_fields(body, beta), None)


def _field(name: str) -> FieldPath:
    return FieldPath(name, None)


def _fields(body: object, beta: bool) -> Mapping[str, Any]:
    given = _field("body").mapping(body)
    unknown = sorted(given.keys() - _FIELDS)
    if unknown and not beta:
        raise _field(unknown[0][:80]).error("is not a field of this request")
    return given


def _prompt(given: Mapping[str, Any], max_tokens: int | None) -> Prompt:
    model = _field("model").text(given.get("model"))
    thinking = read_thinking(given, max_tokens)
    functions = read_tools(given.get("tools"))
    tool_choice, parallel_calls = read_tool_choice(given.get("tool_choice"), functions)
    rules = Rules(
        functions=functions,
        tool_choice=tool_choice,
        parallel_calls=parallel_calls,
        response_format=_response_format(given),
        reasoning=thinking.reasoning,
    )
    messages = read_conversation(given.get("system"), given.get("messages"), functions)
    return Prompt(model, messages, rules, thinking)


def _response_format(given: Mapping[str, Any]) -> ResponseFormat | None:
    """Read ``output_config.format``, or ``output_format`` of older clients."""
    place, value = _field("output_format"), given.get("output_format")
    config = given.get("output_config")
    if value is None and config is not None:
        above = _field("output_config")
        place, value = above.at("format"), above.mapping(config).get("format")
    if value is None:
        return None
    kind = place.mapping(value).get("type")
    if kind != "json_schema":
        raise place.at("type").error(f"{str(kind)[:80]!r}: only 'json_schema' is known")
    at = place.at("schema")
    schema = check_schema(at, at.mapping(value.get("schema")))
    SchemaChecker(schema, at)
    return JsonSchema(schema)


def _sampling(given: Mapping[str, Any]) -> Sampling:
    values: dict[str, Any] = {}
    for name in ("temperature", "top_p"):
        if (value := given.get(name)) is not None:
            values[name] = read_number(_field(name), value, 0, 1)
    if values.get("top_p") == 0:  # only the likeliest token
        values |= {"top_p": 1.0, "temperature": 0.0}
    if (value := given.get("top_k")) is not None:
        values["top_k"] = read_integer(_field("top_k"), value, 0, 2**31 - 1)
    return Sampling(**values)


def _stop(given: Mapping[str, Any]) -> tuple[str, ...]:
    value = given.get("stop_sequences")
    if value is None:
        return ()
    place = _field("stop_sequences")
    texts = [place.at(f"[{i}]").text(text) for i, text in enumerate(place.sequence(value))]
    if len(texts) > MAX_STOP_SEQUENCES:
        raise place.error(f"has {len(texts)} texts; the limit is {MAX_STOP_SEQUENCES}")
    for i, text in enumerate(texts):
        if not text.strip() or len(text) > MAX_STOP_CHARACTERS:
            raise place.at(f"[{i}]").error(
                f"must have 1 to {MAX_STOP_CHARACTERS:,} characters, and not only white space"
            )
    return tuple(dict.fromkeys(texts))
