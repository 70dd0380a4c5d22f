"""Reads a request to ``/v1/responses``; pure.

Every field of OpenAI's API is known, and what other servers and clients add to it (``seed``,
``top_k``, ``min_p``, ``client_metadata`` of Codex). A field that is not known is refused, as
OpenAI's API does. What would change the answer and cannot be honoured is refused too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gptoss.runtime.chat.response_format import resolve_response_format
from gptoss.runtime.chat.settings import ChatError
from gptoss.runtime.harmony.messages import Effort
from gptoss.runtime.sampling.grammar import ResponseFormat, Rules
from gptoss.runtime.sampling.parameters import MAX_TOP_LOGPROBS, Sampling
from gptoss.runtime.server.chat_completions.request import (
    EFFORTS,
    read_effort,
    read_sampling,
    read_seed,
)
from gptoss.runtime.server.errors import invalid
from gptoss.runtime.server.fields import MAX_TOKENS, Fields
from gptoss.runtime.server.responses.server_tools import Turned
from gptoss.runtime.server.responses.tools import Tools, read_tool_choice, read_tools

MAX_ITEMS = 20_000
MAX_METADATA = 16

ENCRYPTED = "reasoning.encrypted_content"
LOGPROBS = "message.output_text.logprobs"
OUTPUTS = "code_interpreter_call.outputs"
SOURCES = "web_search_call.action.sources"
INCLUDABLE = (
    ENCRYPTED,
    OUTPUTS,
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    LOGPROBS,
    SOURCES,
    "web_search_call.results",
)
IGNORED = frozenset(
    [
        "access_programs",
        "background_options",
        "client_metadata",
        "image",
        "prompt_cache_options",
        "prompt_cache_retention",
        "service_tier",
    ]
)
IGNORED_WITHIN = (
    "reasoning.context",
    "reasoning.generate_summary",
    "reasoning.mode",
    "reasoning.summary",
    "stream_options.include_obfuscation",
    "text.verbosity",
)
"""Fields within others that change nothing either."""
REFUSED = {
    "context_management": "compaction is not supported; use truncation: auto",
    "moderation": "there is no moderation model here",
    "prompt": "prompt templates are not kept here; send the prompt itself",
}
ECHOED = ("prompt_cache_key", "safety_identifier", "user")
SUMMARIES = ("auto", "concise", "detailed")
_READ = frozenset(
    [
        "background",
        "conversation",
        "frequency_penalty",
        "include",
        "input",
        "instructions",
        "logit_bias",
        "max_output_tokens",
        "max_tool_calls",
        "metadata",
        "min_p",
        "model",
        "parallel_tool_calls",
        "presence_penalty",
        "previous_response_id",
        "reasoning",
        "reasoning_budget",
        "reasoning_effort",
        "repetition_penalty",
        "seed",
        "store",
        "stream",
        "stream_options",
        "temperature",
        "text",
        "tool_choice",
        "tools",
        "top_k",
        "top_logprobs",
        "top_p",
        "truncation",
    ]
)
KNOWN = _READ | IGNORED | frozenset(ECHOED) | REFUSED.keys()


@dataclass(frozen=True, slots=True)
class ResponsesRequest:
    """A checked request. ``items`` are as they came, a string as one user message.

    ``echo`` are the fields of the response that repeat the request.
    """

    model: str | None
    items: tuple[Mapping[str, Any], ...]
    tools: Tools
    rules: Rules
    """Those of the first generation."""
    later: Tools = field(default_factory=Tools)
    """The tools that may be called in a further one, after calls that this server has run."""
    max_tool_calls: int | None = None
    include: frozenset[str] = frozenset()
    effort: Effort = Effort.MEDIUM
    sampling: Sampling = field(default_factory=Sampling)
    instructions: str | None = None
    seed: int | None = None
    max_tokens: int | None = None
    reasoning_budget: int | None = None
    previous: str | None = None
    conversation: str | None = None
    store: bool = True
    background: bool = False
    stream: bool = False
    truncate: bool = False
    encrypted: bool = False
    echo: Mapping[str, Any] = field(default_factory=dict)


def read_request(data: Mapping[str, Any], turned: Turned | None = None) -> ResponsesRequest:
    """Read a request's JSON object; ``turned`` is what the operator turned on of the tools that
    this server runs. Raises ApiError, ConversationError, SamplingError.
    """
    fields = Fields(data)
    fields.refuse_unknown(KNOWN)
    fields.refuse_all(REFUSED)
    tools = read_tools(fields, turned)
    choice, allowed, reported_choice = read_tool_choice(fields, tools)
    effort = read_effort(fields)
    parallel = fields.boolean("parallel_tool_calls", True)
    text_format, text = _read_text(fields)
    rules = Rules(
        allowed.functions,
        allowed.callable,
        choice,
        parallel_calls=parallel,
        response_format=text_format,
        reasoning=effort != "none",
    )
    previous, conversation = _read_context(fields)
    store, background = fields.boolean("store", True), fields.boolean("background")
    if background and not store:
        raise fields.error("background", "needs store: true, to be retrieved later")
    include = _read_include(fields)
    top_logprobs = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS) or 0
    stream = fields.boolean("stream")
    if fields.mapping("stream_options") is not None and not stream:
        raise fields.error("stream_options", "is only allowed when stream is true")
    reasoning = fields.fields("reasoning") or Fields({}, "reasoning")
    truncation = fields.choice("truncation", ("auto", "disabled")) or "disabled"
    max_tokens = fields.integer("max_output_tokens", 1, MAX_TOKENS)
    sampling = read_sampling(fields, with_logprobs=False)
    if LOGPROBS in include:
        sampling = replace(sampling, top_logprobs=top_logprobs)
    max_tool_calls = fields.integer("max_tool_calls", 0, MAX_TOKENS)
    instructions = fields.text("instructions", 50_000_000)
    echo = {
        "background": background,
        "conversation": None if conversation is None else {"id": conversation},
        "instructions": instructions,
        "max_output_tokens": max_tokens,
        "max_tool_calls": max_tool_calls,
        "metadata": read_metadata(fields),
        "parallel_tool_calls": parallel,
        "previous_response_id": previous,
        "reasoning": {"effort": effort, "summary": reasoning.choice("summary", SUMMARIES)},
        "service_tier": "default",
        "store": store,
        "temperature": sampling.temperature,
        "text": text,
        "tool_choice": reported_choice,
        "tools": list(tools.given),
        "top_logprobs": top_logprobs,
        "top_p": sampling.top_p,
        "truncation": truncation,
    }
    echo |= {name: fields.text(name, 1000) for name in ECHOED}
    if tools.unsupported:
        echo["unsupported_tools"] = list(tools.unsupported)
    return ResponsesRequest(
        fields.text("model", 256),
        read_input(fields, "input"),
        tools,
        rules,
        tools if _is_one_tool(reported_choice) else allowed,
        max_tool_calls,
        frozenset(include),
        EFFORTS[effort],
        sampling,
        instructions,
        read_seed(fields),
        max_tokens,
        fields.integer("reasoning_budget", 0, MAX_TOKENS),
        previous,
        conversation,
        store,
        background,
        stream,
        truncation == "auto",
        ENCRYPTED in include,
        echo,
    )


def _is_one_tool(choice: object) -> bool:
    """Report whether a ``tool_choice`` demands one tool: that is done after its call."""
    return isinstance(choice, Mapping) and choice.get("type") != "allowed_tools"


def read_input(fields: Fields, name: str) -> tuple[Mapping[str, Any], ...]:
    """Read a field that is a string, or an array of items, which are only checked to be objects."""
    value = fields.data.get(name)
    if value is None:
        return ()
    if isinstance(value, str):
        return ({"type": "message", "role": "user", "content": value},)
    items = fields.sequence(name, MAX_ITEMS) or []
    return tuple(
        Fields({"item": item}, f"{name}[{i}]").mapping("item") or {} for i, item in enumerate(items)
    )


def read_metadata(fields: Fields) -> dict[str, str]:
    """Read ``metadata``: up to 16 texts by name."""
    given = fields.mapping("metadata") or {}
    if len(given) > MAX_METADATA:
        raise fields.error("metadata", f"has {len(given)} pairs; the maximum is {MAX_METADATA}")
    inner = Fields(given, "metadata")
    for key in given:
        if len(key) > 64:
            raise fields.error("metadata", "a key has more than 64 characters")
    return {key: inner.text(key, 512) or "" for key in given}


def _read_context(fields: Fields) -> tuple[str | None, str | None]:
    """Read from where the conversation goes on: ``previous_response_id`` or ``conversation``."""
    previous = fields.text("previous_response_id", 200)
    given = fields.data.get("conversation")
    if isinstance(given, Mapping):
        conversation = Fields(given, "conversation").text("id", 200)
    else:
        conversation = fields.text("conversation", 200)
    if previous is not None and conversation is not None:
        raise fields.error("previous_response_id", "cannot be used together with conversation")
    return previous, conversation


def _read_include(fields: Fields) -> list[str]:
    given = fields.sequence("include", 100) or []
    for i, name in enumerate(given):
        if name not in INCLUDABLE:
            raise invalid(
                f"include[{i}]: {str(name)[:80]!r} is not supported",
                f"include[{i}]",
                "unsupported_value",
            )
    return given


def _read_text(fields: Fields) -> tuple[ResponseFormat | None, dict[str, Any]]:
    """Read ``text``: the answer's format, and what the response reports."""
    given = fields.fields("text") or Fields({}, "text")
    verbosity = given.choice("verbosity", ("low", "medium", "high")) or "medium"
    wanted = given.fields("format")
    if wanted is None:
        return None, {"format": {"type": "text"}, "verbosity": verbosity}
    kind = wanted.choice("type", ("text", "json_object", "json_schema"))
    if kind is None:
        raise wanted.error("type", "is missing", "missing_required_parameter")
    if kind == "json_schema":
        wanted.required("name")
        if wanted.mapping("schema") is None:
            raise wanted.error("schema", "is missing", "missing_required_parameter")
    try:
        found = resolve_response_format(wanted.data)
    except ChatError as error:
        raise invalid(str(error), "text.format", "invalid_value") from error
    return found, {"format": dict(wanted.data), "verbosity": verbosity}
