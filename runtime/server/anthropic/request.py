"""Reads the body of a request to ``/v1/messages`` or ``/v1/messages/count_tokens``; pure.

Fields that have no meaning here (``metadata``, ``context_management``, ``service_tier``, …) are
accepted, and reported. Unknown ones are refused, as by the API, unless the client asks for beta
features: then they are reported too.
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
from gptoss.runtime.server.errors import ApiError
from gptoss.runtime.server.fields import MAX_TOKENS, Fields
from gptoss.runtime.server.reply import ReplyRequest

MAX_STOP_SEQUENCES = 64
MAX_STOP_CHARACTERS = 1000

IGNORED = frozenset({
    "billing_policy", "cache_control", "container", "context_management", "diagnostics",
    "fallback_credit_token", "fallbacks", "inference_geo", "metadata", "service_tier", "speed",
    "user_profile_id", "workspace_id",
})  # fmt: skip
REFUSED = {
    "compaction": "conversations are not summarised here; send the messages",
    "mcp_servers": "MCP servers are called in /v1/responses only",
    "thread": "no threads are kept here; send all messages",
}
"""They would change the answer."""
_READ = {
    *("max_tokens", "messages", "model", "output_config", "output_format", "stop_sequences"),
    *("stream", "system", "temperature", "thinking", "tool_choice", "tools", "top_k", "top_p"),
}
_ONLY_OF_REPLIES = {"max_tokens", "stop_sequences", "stream", "temperature", "top_k", "top_p"}
_FIELDS = IGNORED | REFUSED.keys() | _READ


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads, and what it may write. ``messages`` are without the system block;
    ``call_ids`` are the ids of calls by the call's index in them.
    """

    model: str
    messages: tuple[Message, ...]
    call_ids: Mapping[int, str]
    rules: Rules
    thinking: Thinking


@dataclass(frozen=True, slots=True)
class MessagesRequest:
    """A checked request to generate a message; with ``max_tokens`` 0 to read its prompt only, so
    that it is in memory when it is asked again.
    """

    prompt: Prompt
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]
    stream: bool

    def reply(self, messages: tuple[Message, ...]) -> ReplyRequest:
        """Return what to ask of the model, given all messages that it reads."""
        return ReplyRequest(
            messages=messages,
            rules=self.prompt.rules,
            sampling=self.sampling,
            stop=self.stop,
            max_tokens=max(1, self.max_tokens),
            reasoning_budget=self.prompt.thinking.budget,
            budget_is_wish=True,
        )


def read_request(body: Mapping[str, Any], *, beta: bool = False) -> MessagesRequest:
    """Read the decoded body of ``POST /v1/messages``; ``beta`` accepts unknown fields.

    Raises ApiError and ConversationError, which name the field.
    """
    fields = _fields(body, beta)
    fields.required("max_tokens")
    max_tokens = fields.integer("max_tokens", 0, MAX_TOKENS) or 0
    return MessagesRequest(
        prompt=_prompt(fields, max_tokens),
        max_tokens=max_tokens,
        sampling=_sampling(fields),
        stop=_stop(fields),
        stream=fields.boolean("stream"),
    )


def read_prompt(body: Mapping[str, Any], *, beta: bool = False) -> Prompt:
    """Read the decoded body of ``POST /v1/messages/count_tokens``; as ``read_request``."""
    return _prompt(_fields(body, beta), None)


def _fields(body: Mapping[str, Any], beta: bool) -> Fields:
    fields = Fields(body)
    if not beta:
        fields.refuse_unknown(_FIELDS)
    _refuse_thread(fields)
    fields.refuse_all(REFUSED)
    return fields


def _refuse_thread(fields: Fields) -> None:
    """Refuse ``thread`` with the code upon which the official client's tool runner, which asks for
    one, sends all messages instead.
    """
    try:
        fields.refuse("thread", REFUSED["thread"])
    except ApiError as error:
        error.details = {"error_code": "thread_unsupported_request"}
        raise


def ignored_fields(body: Mapping[str, Any], *, counted: bool = False) -> list[str]:
    """Return the fields of a request that change nothing; ``counted``: where the prompt is only
    counted.
    """
    read = _READ - _ONLY_OF_REPLIES if counted else _READ
    return [name for name in body if name not in read]


def _prompt(fields: Fields, max_tokens: int | None) -> Prompt:
    fields.required("model")
    model = fields.text("model", 256) or ""
    thinking = read_thinking(fields, max_tokens)
    functions = read_tools(fields)
    choice = read_tool_choice(fields, functions)
    rules = Rules(
        functions=choice.allowed,
        tool_choice=choice.mode,
        parallel_calls=choice.parallel,
        response_format=_response_format(fields),
        reasoning=thinking.reasoning,
    )
    fields.required("messages")
    given = read_conversation(fields.data.get("system"), fields.data["messages"], functions)
    return Prompt(model, given.messages, given.call_ids, rules, thinking)


def _response_format(fields: Fields) -> ResponseFormat | None:
    """Read ``output_config.format``, or ``output_format`` of older clients."""
    config = fields.fields("output_config")
    given = None if config is None else config.fields("format")
    given = given or fields.fields("output_format")
    if given is None:
        return None
    given.required("type")
    given.choice("type", ("json_schema",))
    given.required("schema")
    place = FieldPath(given.path, None).at("schema")
    schema = check_schema(place, given.mapping("schema"))
    SchemaChecker(schema, place)
    return JsonSchema(schema)


def _sampling(fields: Fields) -> Sampling:
    given: dict[str, Any] = {
        "temperature": fields.number("temperature", 0, 1),
        "top_p": fields.number("top_p", 0, 1),
        "top_k": fields.integer("top_k", 0, MAX_TOKENS),
    }
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("top_p") == 0:  # the likeliest token alone
        given |= {"top_p": 1.0, "temperature": 0.0}
    return Sampling(**given)


def _stop(fields: Fields) -> tuple[str, ...]:
    texts = fields.sequence("stop_sequences", MAX_STOP_SEQUENCES) or []
    for text in texts:
        if not isinstance(text, str) or not text.strip() or len(text) > MAX_STOP_CHARACTERS:
            raise fields.error(
                "stop_sequences",
                f"each must be a string of 1 to {MAX_STOP_CHARACTERS:,} characters, and not only "
                "white space",
            )
    return tuple(dict.fromkeys(texts))
