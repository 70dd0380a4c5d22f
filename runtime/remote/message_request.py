"""Writes a request to ``/v1/chat/completions`` of another server; pure.

The developer message's instructions become a message of role ``system``, which all servers know.
Reasoning is sent back between a call and its answer only, under the name that the server gave it.
Calls are numbered in the order of the conversation. What is not asked for is left out, so that a
server that does not know a field is not troubled with it: ``temperature`` and ``top_p`` excepted,
for which servers have defaults of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gptoss.runtime.chat.settings import ChatError
from gptoss.runtime.harmony.messages import (
    FUNCTIONS,
    DeveloperContent,
    Effort,
    Function,
    Message,
    Role,
    SystemContent,
)
from gptoss.runtime.harmony.text_formats import JsonSchema, ResponseFormat
from gptoss.runtime.sampling.grammar import JSON_OBJECT, Rules, ToolChoice
from gptoss.runtime.sampling.parameters import Sampling

MAX_NAME = 64
"""Characters of a function's name that OpenAI's API takes."""

_NO_PARAMETERS = {"type": "object", "properties": {}}
_BUILTINS = ("browser", "python")


@dataclass(frozen=True, slots=True)
class MessagesAsked:
    """What another server is asked for, by messages."""

    model: str
    messages: Sequence[Message]
    rules: Rules
    sampling: Sampling
    seed: int | None = None
    stop: Sequence[str] = ()
    max_tokens: int | None = None
    reasoning_field: str | None = None
    """The name under which the server gave reasoning before."""


def function_names(rules: Rules) -> dict[str, str]:
    """Return the recipients of a turn's tools by the names that they are declared under: those of
    a group are called ``GROUP__NAME``. Raises ChatError for what cannot be declared.
    """
    names: dict[str, str] = {}
    for recipient, _ in _declared(rules):
        space, _, name = recipient.partition(".")
        plain = name if space == FUNCTIONS else f"{space}__{name}"
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", plain)[:MAX_NAME]
        if plain in names:
            raise ChatError(f"two tools would be called {plain!r}; rename one")
        names[plain] = recipient
    return names


def check_request(rules: Rules, sampling: Sampling) -> None:
    """Raise ChatError for what a request by messages cannot ask for."""
    function_names(rules)
    form = rules.response_format
    if form is not None and not isinstance(form, JsonSchema):
        raise ChatError("a regular expression or a grammar needs a model in this process")
    if sampling.top_logprobs is not None or sampling.logit_bias:
        raise ChatError("log probabilities and logit biases need a server that gives token ids")


def request_body(asked: MessagesAsked) -> dict[str, Any]:
    """Return the JSON of a request to ``/v1/chat/completions``; raises ChatError."""
    names = {recipient: name for name, recipient in function_names(asked.rules).items()}
    sampling = asked.sampling
    effort = _effort(asked.messages)
    optional: tuple[tuple[str, object, object], ...] = (
        ("reasoning_effort", effort.value, Effort.MEDIUM.value),
        ("top_k", sampling.top_k, 0),
        ("min_p", sampling.min_p, 0.0),
        ("presence_penalty", sampling.presence_penalty, 0.0),
        ("frequency_penalty", sampling.frequency_penalty, 0.0),
        ("repetition_penalty", sampling.repetition_penalty, 1.0),
        ("seed", asked.seed, None),
        ("max_tokens", asked.max_tokens, None),
        ("stop", list(asked.stop), []),
        ("response_format", _response_format(asked.rules.response_format), None),
        ("tools", _tools(asked.rules, names), []),
        ("tool_choice", _tool_choice(asked.rules, names), None),
        ("parallel_tool_calls", asked.rules.parallel_calls and bool(names), False),
    )
    return {
        "model": asked.model,
        "messages": _messages(asked.messages, names, asked.reasoning_field),
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    } | {name: value for name, value, default in optional if value != default}


def _declared(rules: Rules) -> list[tuple[str, Function]]:
    """List the functions of a turn by their recipients."""
    declared = [(f"{FUNCTIONS}.{it.name}", it) for it in rules.functions]
    for space in rules.namespaces:
        if space.name in _BUILTINS:
            raise ChatError(
                f"the built-in {space.name} needs a server that gives token ids; omit it"
            )
        declared += [(f"{space.name}.{it.name}", it) for it in space.functions]
    return declared


def _tools(rules: Rules, names: Mapping[str, str]) -> list[dict[str, Any]]:
    tools = []
    for recipient, function in _declared(rules):
        declared: dict[str, Any] = {"name": names[recipient]}
        if function.description:
            declared["description"] = function.description
        declared["parameters"] = dict(function.parameters or _NO_PARAMETERS)
        tools.append({"type": "function", "function": declared})
    return tools


def _tool_choice(rules: Rules, names: Mapping[str, str]) -> object:
    choice = rules.tool_choice
    if choice == ToolChoice.AUTO or not names:
        return None
    if choice in (ToolChoice.NONE, ToolChoice.REQUIRED):
        return str(choice)
    name = names.get(f"{FUNCTIONS}.{choice}") or names.get(choice)
    if name is None:
        raise ChatError(f"tool choice is {choice!r}; known: none, auto, required, a tool's name")
    return {"type": "function", "function": {"name": name}}


def _response_format(form: ResponseFormat | None) -> dict[str, Any] | None:
    if not isinstance(form, JsonSchema):
        return None
    if form == JSON_OBJECT:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(form.schema)}}


def _effort(messages: Sequence[Message]) -> Effort:
    first = messages[0].content if messages else None
    effort = first.effort if isinstance(first, SystemContent) else None
    return effort or Effort.MEDIUM


def _messages(
    messages: Sequence[Message], names: Mapping[str, str], reasoning_field: str | None
) -> list[dict[str, Any]]:
    last_question = max((i for i, m in enumerate(messages) if m.role == Role.USER), default=0)
    writer = _Writer(names)
    for i, message in enumerate(messages):
        writer.reasoning_field = reasoning_field if i > last_question else None
        writer.write(message)
    return writer.messages


@dataclass(slots=True)
class _Writer:
    """Gathers each round of the assistant into one message; a result answers the oldest open call
    of its name.
    """

    names: Mapping[str, str]
    messages: list[dict[str, Any]] = field(default_factory=list)
    reasoning_field: str | None = None
    _round: dict[str, Any] | None = None
    _open: list[tuple[str, str]] = field(default_factory=list)
    """Calls without result: recipient and id."""
    _numbered: int = 0

    def write(self, message: Message) -> None:
        """Add one harmony message to the request."""
        if message.role == Role.ASSISTANT:
            self._assistant(message)
            return
        self._round = None
        if message.role == Role.TOOL:
            self._result(message)
        elif isinstance(message.content, DeveloperContent):
            if message.content.instructions is not None:
                self._say("system", message.content.instructions)
        elif isinstance(message.content, str):
            self._say(message.role.value, message.content)

    def _say(self, role: str, text: str) -> None:
        self.messages.append({"role": role, "content": text})

    def _assistant(self, message: Message) -> None:
        if message.channel == "analysis" and message.recipient is None:
            if self.reasoning_field is not None:
                self._add(self.reasoning_field, message.text)
        elif message.recipient is None:
            self._add("content", message.text)
        else:
            self._call(message.recipient, message.text)

    def _call(self, recipient: str, arguments: str) -> None:
        identity = f"call{self._numbered:05}"  # nine letters and digits: what the strictest take
        self._numbered += 1
        self._open.append((recipient, identity))
        plain = recipient.removeprefix(f"{FUNCTIONS}.")
        name = self.names.get(recipient, re.sub(r"[^A-Za-z0-9_-]", "_", plain)[:MAX_NAME])
        function = {"name": name, "arguments": arguments}
        call = {"id": identity, "type": "function", "function": function}
        self._growing().setdefault("tool_calls", []).append(call)

    def _result(self, message: Message) -> None:
        found = next((it for it in self._open if it[0] == message.name), None)
        if found is None:
            return
        self._open.remove(found)
        self.messages.append({"role": "tool", "tool_call_id": found[1], "content": message.text})

    def _growing(self) -> dict[str, Any]:
        if self._round is None:
            self._round = {"role": "assistant", "content": None}
            self.messages.append(self._round)
        return self._round

    def _add(self, key: str, text: str) -> None:
        growing = self._growing()
        before = growing.get(key)
        growing[key] = text if before is None else f"{before}\n\n{text}"
