"""Reads a request to ``/v1/chat/completions``; pure.

Every field of OpenAI's API is known, and what other servers and clients add to it: ``top_k``,
``min_p``, ``repetition_penalty``, ``reasoning_budget``. A field that is not known is refused, as
OpenAI's API does. What cannot be honoured (sound, pictures, web search) is refused too;
what changes nothing here (``user``, ``metadata``, …) is accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gptoss.runtime.chat.response_format import resolve_response_format
from gptoss.runtime.chat.settings import ChatError
from gptoss.runtime.harmony.messages import Effort, SystemContent
from gptoss.runtime.sampling.grammar import ResponseFormat, Rules, ToolChoice
from gptoss.runtime.sampling.parameters import MAX_TOP_LOGPROBS, Sampling, SamplingError
from gptoss.runtime.sampling.stop_strings import checked_stop
from gptoss.runtime.server.chat_completions.messages import conversation_from_openai
from gptoss.runtime.server.chat_completions.tools import tools_from_openai
from gptoss.runtime.server.errors import invalid
from gptoss.runtime.server.fields import MAX_TOKENS, Fields
from gptoss.runtime.server.reply import ReplyRequest
from gptoss.runtime.server.responses.tools import MAX_TOOLS, Tools, named_tool

MAX_CHOICES = 16
"""The most choices (``n``) of one request."""

EFFORTS = {
    "none": Effort.LOW,
    "minimal": Effort.LOW,
    "low": Effort.LOW,
    "medium": Effort.MEDIUM,
    "high": Effort.HIGH,
    "xhigh": Effort.HIGH,
    "max": Effort.HIGH,
}
"""Names of efforts in OpenAI's API, as the three that the model knows. With ``none`` it does not
reason at all."""

_MAX_BIASED = 1024

IGNORED = {
    *("metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    *("safety_identifier", "service_tier", "user", "verbosity"),
}
IGNORED_WITHIN = ("stream_options.include_obfuscation",)
"""Fields within others that change nothing either."""
REFUSED = {
    "audio": "this model does not speak",
    "functions": "is no longer used; send tools",
    "function_call": "is no longer used; send tool_choice",
    "moderation": "there is no moderation model here",
    "prediction": "predicted outputs are not supported",
    "web_search_options": "this server does not search the web",
}
SAMPLING_FIELDS = {
    *("frequency_penalty", "logit_bias", "min_p", "presence_penalty", "repetition_penalty"),
    *("seed", "stop", "temperature", "top_k", "top_p"),
}
_KNOWN = {
    *("logprobs", "max_completion_tokens", "max_tokens", "messages", "modalities", "model", "n"),
    *("parallel_tool_calls", "reasoning", "reasoning_budget", "reasoning_effort"),
    *(
        "response_format",
        "store",
        "stream",
        "stream_options",
        "tool_choice",
        "tools",
        "top_logprobs",
    ),
    *SAMPLING_FIELDS,
    *IGNORED,
    *REFUSED,
}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A checked request: what to generate, and how to send it."""

    model: str | None
    reply: ReplyRequest
    tools: Tools
    call_ids: Mapping[int, str] = field(default_factory=dict)
    """Ids of the conversation's calls, by the call's index in ``reply.messages``."""
    stored: bool = True
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    logprobs: bool = False

    def of_choice(self, index: int) -> ReplyRequest:
        """Return the request for one of the ``n`` choices: each has random numbers of its own."""
        if self.reply.seed is None or index == 0:
            return self.reply
        return replace(self.reply, seed=self.reply.seed + index)


def read_chat_request(data: Mapping[str, Any]) -> ChatRequest:
    """Read a request's JSON object; the system block is still without a date.

    Raises ApiError, ConversationError, SamplingError.
    """
    fields = Fields(data)
    fields.refuse_unknown(_KNOWN)
    fields.refuse_all(REFUSED)
    if fields.sequence("modalities") not in (None, [], ["text"]):
        raise fields.error("modalities", "this model gives text only", "unsupported_value")
    effort = read_effort(fields)
    tools = read_tools(fields)
    system = SystemContent(effort=EFFORTS[effort])
    conversation = conversation_from_openai(
        fields.required("messages"), tools.functions, system, tools.namespaces
    )
    stream = fields.boolean("stream")
    options = fields.fields("stream_options")
    if options is not None and not stream:
        raise fields.error("stream_options", "is only allowed when stream is true")
    logprobs = fields.boolean("logprobs")
    reply = ReplyRequest(
        messages=conversation.messages,
        rules=read_rules(fields, tools, reasoning=effort != "none"),
        sampling=read_sampling(fields),
        seed=read_seed(fields),
        stop=read_stop(fields),
        max_tokens=_read_max_tokens(fields),
        reasoning_budget=fields.integer("reasoning_budget", 0, MAX_TOKENS),
        with_tokens=logprobs,
    )
    return ChatRequest(
        fields.text("model", 256),
        reply,
        tools,
        conversation.call_ids,
        fields.boolean("store", True),
        fields.integer("n", 1, MAX_CHOICES) or 1,
        stream,
        options is not None and options.boolean("include_usage"),
        logprobs,
    )


def _read_max_tokens(fields: Fields) -> int | None:
    """Read the limit of tokens, which has an older name too."""
    most = fields.integer("max_completion_tokens", 1, MAX_TOKENS)
    older = fields.integer("max_tokens", 1, MAX_TOKENS)
    if most is not None and older is not None and most != older:
        raise fields.error("max_tokens", "contradicts max_completion_tokens; give one of them")
    return most or older


def read_effort(fields: Fields) -> str:
    """Read the reasoning effort, from ``reasoning_effort`` or ``reasoning.effort``; a key of
    ``EFFORTS``.
    """
    nested = fields.fields("reasoning")
    named = nested.choice("effort", EFFORTS) if nested is not None else None
    return fields.choice("reasoning_effort", EFFORTS) or named or "medium"


def read_tools(fields: Fields) -> Tools:
    """Read ``tools``; one that cannot be declared refuses the request."""
    given = tools_from_openai(fields.sequence("tools", MAX_TOOLS) or [])
    if given.refused:
        raise given.refused[0]
    return Tools(given.functions, given.namespaces)


def read_sampling(fields: Fields, *, with_logprobs: bool = True) -> Sampling:
    """Read how tokens are drawn; OpenAI's ranges."""
    given: dict[str, Any] = {
        "temperature": fields.number("temperature", 0, 2),
        "top_p": fields.number("top_p", 0, 1),
        "top_k": fields.integer("top_k", -1, MAX_TOKENS),
        "min_p": fields.number("min_p", 0, 1),
        "presence_penalty": fields.number("presence_penalty", -2, 2),
        "frequency_penalty": fields.number("frequency_penalty", -2, 2),
        "repetition_penalty": fields.number("repetition_penalty", 0.1, 10),
        "logit_bias": _logit_bias(fields),
        "top_logprobs": _top_logprobs(fields) if with_logprobs else None,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("top_k") == -1:  # vLLM's word for all
        del given["top_k"]
    if given.get("top_p") == 0:  # OpenAI allows it: the likeliest token alone
        given |= {"top_p": 1.0, "temperature": 0.0}
    return Sampling(**given)


def read_seed(fields: Fields) -> int | None:
    """Read ``seed``; a negative one is allowed in the API, and is a seed like any other."""
    seed = fields.integer("seed", -(2**63), 2**63 - 1)
    return None if seed is None else seed % 2**64


def _top_logprobs(fields: Fields) -> int | None:
    number = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if fields.boolean("logprobs"):
        return number or 0
    if number is not None:
        raise fields.error("top_logprobs", "is only allowed when logprobs is true")
    return None


def _logit_bias(fields: Fields) -> dict[int, float] | None:
    given = fields.fields("logit_bias")
    if given is None:
        return None
    if len(given.data) > _MAX_BIASED:
        raise fields.error("logit_bias", f"has more than {_MAX_BIASED} tokens")
    bias = {}
    for key in given.data:
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise fields.error("logit_bias", f"{key[:80]!r} is not a token id")
        bias[int(key)] = given.number(key, -100, 100) or 0.0
    return bias


def read_stop(fields: Fields) -> tuple[str, ...]:
    """Read ``stop``: a string, or several."""
    try:
        return checked_stop(fields.data.get("stop"))
    except SamplingError as error:
        raise invalid(str(error), "stop", "invalid_value") from error


def read_rules(fields: Fields, tools: Tools, *, reasoning: bool) -> Rules:
    """Read what the model may do: ``tool_choice``, ``parallel_tool_calls``, ``response_format``.

    Several calls at a time are allowed only where the request says so: the model was trained to
    wait for each result.
    """
    choice, allowed = read_tool_choice(fields, tools)
    return Rules(
        functions=allowed.functions,
        namespaces=allowed.namespaces,
        tool_choice=choice,
        parallel_calls=fields.boolean("parallel_tool_calls"),
        response_format=_response_format(fields),
        reasoning=reasoning,
    )


def read_tool_choice(fields: Fields, tools: Tools) -> tuple[ToolChoice, Tools]:
    """Read ``tool_choice``: whether to call, and the tools that may be called."""
    given = fields.data.get("tool_choice")
    if given is None:
        return ToolChoice.AUTO, tools
    if isinstance(given, str):
        choice = ToolChoice(fields.choice("tool_choice", [it.value for it in ToolChoice]) or "auto")
        if choice == ToolChoice.REQUIRED and not tools.all():
            raise fields.error("tool_choice", "is required, but there are no tools")
        return choice, tools
    inner = Fields(fields.mapping("tool_choice") or {}, "tool_choice")
    kind = inner.choice("type", ("function", "custom", "allowed_tools"))
    if kind == "allowed_tools":
        allowed = Fields(inner.mapping("allowed_tools") or inner.data, "tool_choice.allowed_tools")
        mode = ToolChoice(allowed.choice("mode", ("auto", "required")) or "auto")
        named = [named_tool(allowed, tools, it) for it in allowed.sequence("tools") or []]
        if not named:
            raise fields.error("tool_choice", "allows no tools; use none")
        return mode, tools.only(named)
    return ToolChoice.REQUIRED, tools.only([named_tool(inner, tools, inner.data)])


def _response_format(fields: Fields) -> ResponseFormat | None:
    given = fields.fields("response_format")
    if given is None:
        return None
    kind = given.choice("type", ("text", "json_object", "json_schema"))
    if kind is None:
        raise given.error("type", "is missing", "missing_required_parameter")
    try:
        return resolve_response_format(given.data)
    except ChatError as error:
        raise invalid(str(error), "response_format", "invalid_value") from error
