"""The options with which a chat begins, in one place for ``load`` and ``Model.chat``.

A type checker and an editor see them as keyword arguments of both. At run time
``with_chat_options`` puts them into the signature that ``help`` and notebooks show, and wrong names
raise TypeError.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from enum import Enum
from typing import Any, TypedDict, TypeVar

from gptoss.runtime.chat.full_context import Summarise, WhenFull
from gptoss.runtime.chat.response_format import AnyResponseFormat, resolve_response_format
from gptoss.runtime.chat.settings import Limits, Settings
from gptoss.runtime.harmony.messages import Message
from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.sampling.sampler import RandomSampler
from gptoss.runtime.tools.approval import Approve
from gptoss.runtime.tools.toolbox import AnyTool, Toolbox

_F = TypeVar("_F", bound=Callable[..., Any])


class SamplingOptions(TypedDict, total=False):
    """The fields of ``Sampling``, each an option of its own."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[int, float]
    top_logprobs: int | None


class ChatOptions(SamplingOptions, total=False):
    """Everything that a chat can begin with.

    ``tools`` are functions the model may call, declared by their signatures and docstrings, and
    groups of tools (``PythonTool``, ``BrowserTool``, an MCP server). ``approve(recipient, text)``
    is asked before a call that a person has to agree to (see ``tools.approval``).
    ``reasoning`` is low, medium or high. ``date`` (YYYY-MM-DD, today unless given) is the date the
    model sees. ``max_tokens``, ``reasoning_budget``, ``max_rounds``, ``tool_seconds`` and
    ``reply_seconds`` limit a turn (see ``Limits``). ``tool_choice`` is none, auto, required, or the
    name of the tool to call first. ``response_format`` is what the answer must be (see
    ``chat.response_format``). ``stop`` are strings that end the answer. ``sampling`` and the single
    sampling options say how tokens are drawn; the single ones have precedence. The same ``seed``
    gives the same text only with the same prefix in memory. ``when_full`` is error, trim, or a
    function that summarises the turns that are left out (see ``WhenFull``). ``messages`` are an
    earlier conversation to continue.
    """

    tools: Iterable[AnyTool]
    approve: Approve | None
    instructions: str | None
    reasoning: str
    sampling: Sampling | None
    seed: int | None
    max_tokens: int | None
    reasoning_budget: int | None
    max_rounds: int
    tool_seconds: float | None
    reply_seconds: float | None
    tool_choice: str
    parallel_calls: bool
    response_format: AnyResponseFormat | None
    stop: str | Sequence[str] | None
    when_full: WhenFull | str | Summarise
    date: str | None
    messages: Iterable[Message]


_IN_LIMITS = tuple(field.name for field in fields(Limits))
_IN_SAMPLING = tuple(SamplingOptions.__annotations__)
_AS_THEY_ARE = (
    "instructions",
    "seed",
    "tool_choice",
    "parallel_calls",
    "stop",
    "when_full",
    "date",
)


def settings_of(options: ChatOptions) -> Settings:
    """Check the options with which a chat begins, and return its settings.

    Raises ChatError, SamplingError, TypeError for a name that is not an option.
    """
    given: dict[str, Any] = dict(options)
    unknown = sorted(given.keys() - ChatOptions.__annotations__.keys())
    if unknown:
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}")
    sampling = given.get("sampling") or Sampling()
    values = {name: given[name] for name in _AS_THEY_ARE if given.get(name) is not None}
    if "reasoning" in given:
        values["effort"] = given["reasoning"]
    settings = Settings(
        sampling=sampling,
        limits=Limits(**{name: given[name] for name in _IN_LIMITS if name in given}),
        response_format=resolve_response_format(given.get("response_format")),
        **values,
    )
    single = {name: given[name] for name in _IN_SAMPLING if name in given}
    settings = replace(settings, sampling=replace(sampling, **single)) if single else settings
    RandomSampler(settings.sampling, settings.seed)  # a wrong seed is refused before a load
    return settings


def toolbox_of(options: ChatOptions) -> Toolbox:
    """Return the tools with which a chat begins; raises ToolError."""
    return Toolbox(options.get("tools", ()), options.get("approve"))


def with_chat_options(function: _F) -> _F:
    """Show the chat options in the signature of a function that takes them as ``**options``."""
    signature = inspect.signature(function)
    own = [it for it in signature.parameters.values() if it.kind != it.VAR_KEYWORD]
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_default(name),
            annotation=_as_written(ChatOptions.__annotations__[name]),
        )
        for name in ChatOptions.__annotations__
    ]
    shown = signature.replace(parameters=[*own, *options])
    function.__signature__ = shown  # type: ignore[attr-defined]  # read by help()
    return function


def _as_written(annotation: Any) -> Any:
    """Return a type hint as its text in the source, where it is one that is not evaluated yet."""
    return getattr(annotation, "__forward_arg__", annotation)


def _default(name: str) -> Any:
    """Return the value of a chat option that is not given."""
    if name in ("tools", "messages"):
        return ()
    settings = Settings()
    if name in ("approve", "date", "sampling"):
        return None  # nothing is approved; today; a Sampling of defaults
    if name == "reasoning":
        return settings.effort.value
    for values in (settings, settings.limits, settings.sampling):
        if hasattr(values, name):
            value = getattr(values, name)
            return value.value if isinstance(value, Enum) else value
    raise AssertionError(f"{name} is an option without a default")
