"""What a turn may consist of, and that as a grammar for llguidance: pure text, nothing is run.

    turn      (thought next)* (preamble next (thought next)*){0,3} (answer | calls)
    thought   <|channel|>analysis<|message|> text <|end|>
    preamble  <|channel|>commentary<|message|> text <|end|>
    answer    <|channel|>final<|message|> text, or what was asked for <|return|>
    calls     a call <|call|>; several have <|end|> next in between
    call      <|channel|>commentary to=NAME <|constrain|>json<|message|> arguments
    next      <|start|>assistant

A call's recipient may stand in the role part too, and its type may come without the token or not
at all: the model was trained on each. The prompt has written the first ``<|start|>assistant``.

Free text is written in token ids, not in characters: at its beginning the grammar allows each text
token there is, which is how the sampler finds out that it need not ask again until a control token
comes. Each schema, and a grammar that somebody else wrote, is a grammar of its own beside the
turn's: none of its names means anything in the turn's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gptoss.runtime.harmony.errors import (
    HARMONY_NAME,
    ConstraintError,
    ConversationError,
    FieldPath,
)
from gptoss.runtime.harmony.messages import FUNCTIONS, Function, Namespace
from gptoss.runtime.sampling.schema_limits import MAX_REGEX_CHARACTERS, bounded_schema

MAX_GRAMMAR_CHARACTERS = 20_000
"""What is longer takes minutes to compile."""

MAX_DEPTH = 64
"""Of brackets in a grammar."""

MAX_PREAMBLES = 3
"""Messages to the person before a call in one generation."""

_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}

# A Lark text without what is quoted in it: comments, strings, regular expressions.
_QUOTED = re.compile(r'//[^\n]*|#[^\n]*|"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/')


class ToolChoice(StrEnum):
    """Whether the model calls; a function's name instead means that it must call that one."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"


class Closed(StrEnum):
    """Why reasoning was ended from outside."""

    BUDGET = "budget"
    """It had as many tokens as it may have."""
    LOOP = "loop"
    """It said the same over and over."""


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """The answer is JSON that the schema admits."""

    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Regex:
    """The answer matches a regular expression from its beginning to its end.

    In the syntax of Rust's regex: ``\\d`` is any digit of Unicode, nothing looks ahead or behind.
    """

    pattern: str


@dataclass(frozen=True, slots=True)
class Lark:
    """The answer follows a grammar in llguidance's variant of Lark, from its rule ``start``.

    Only text: special tokens, other grammars and ``%json`` are not for it to use.
    """

    text: str


JSON_OBJECT = JsonSchema({"type": "object"})
"""The answer is any JSON object."""

ResponseFormat = JsonSchema | Regex | Lark


@dataclass(frozen=True, slots=True)
class Rules:
    """What the model may do in its turn.

    ``parallel_calls`` is off unless asked for: the model was trained to wait for each call's
    result. ``response_format`` None is free text. Without ``reasoning`` the answer or a call comes
    at once, with no word before.
    """

    functions: tuple[Function, ...] = ()
    builtins: tuple[Namespace, ...] = ()
    tool_choice: str = ToolChoice.AUTO
    parallel_calls: bool = False
    response_format: ResponseFormat | None = None
    reasoning: bool = True


def closing(rules: Rules) -> tuple[str, ...]:
    """What ends the reasoning when it has to: control tokens and text, one after the other.

    Ending the message alone would have the model open the next one on the same channel.
    """
    opened = ("<|end|>", "<|start|>", "assistant", "<|channel|>")
    if _must_call(rules):
        return (*opened, "commentary to")
    return (*opened, "final", "<|message|>")


@dataclass(frozen=True, slots=True)
class Part:
    """A grammar beside the turn's own. ``field`` is what the caller knows it by."""

    name: str
    field: str
    grammar: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TurnGrammar:
    """The turn's grammar in Lark, and those that it refers to by ``@name``."""

    lark: str
    parts: tuple[Part, ...]

    def text(self) -> str:
        """All of it in llguidance's JSON form."""
        parts = [{"name": part.name, **part.grammar} for part in self.parts]
        return json.dumps({"grammars": [{"lark_grammar": self.lark}, *parts]})


def turn_grammar(rules: Rules, text_ids: Sequence[tuple[int, int]]) -> TurnGrammar:
    """What ``rules`` admit; raises ConstraintError.

    ``text_ids`` are the ids of text tokens as ranges, both ends included.
    """
    calls = _calls(rules)
    answer = _answer(rules.response_format)
    ranges = ",".join(f"{first}-{last}" for first, last in text_ids)
    lines = [
        _start(rules, bool(calls)),
        'next: <|start|> "assistant"',
        'thought: <|channel|> "analysis" <|message|> text <|end|>',
        'preamble: <|channel|> "commentary" <|message|> text <|end|>',
        f'answer: <|channel|> "final" <|message|> {"@answer" if answer else "text"} <|return|>',
        f"text: <[{ranges}]>*",
    ]
    if calls:
        lines += [
            f"calls: {'(call <|end|> next)* ' if rules.parallel_calls else ''}call <|call|>",
            f"call: {' | '.join(f'call_{i}' for i in range(len(calls)))}",
            'type: (" "? <|constrain|> "json" | " json" | " code")?',
            *(call.rule(i) for i, call in enumerate(calls)),
        ]
    parts = [
        Part(f"arguments_{i}", f"tools.{call.name}", {"json_schema": call.schema})
        for i, call in enumerate(calls)
        if call.schema is not None
    ]
    return TurnGrammar("\n".join(lines), (*parts, *answer))


def _start(rules: Rules, with_calls: bool) -> str:
    """The rule of the whole turn."""
    before = "(thought next)* " if rules.reasoning else ""
    if before and with_calls:
        before += f"(preamble next {before}){{0,{MAX_PREAMBLES}}} "
    end = "calls" if _must_call(rules) else "(answer | calls)" if with_calls else "answer"
    return f"start: {before}{end}"


def _must_call(rules: Rules) -> bool:
    return rules.tool_choice not in (ToolChoice.AUTO, ToolChoice.NONE)


@dataclass(frozen=True, slots=True)
class _Call:
    """A recipient: the channels it is called on, its arguments' schema or None for free text."""

    name: str
    recipient: str
    channels: tuple[str, ...]
    schema: Mapping[str, Any] | None

    def rule(self, i: int) -> str:
        """The rule of a call from its header to its arguments."""
        headers = []
        for channel in self.channels:
            headers.append(f'<|channel|> "{channel} to={self.recipient}" type')
            headers.append(f'" to={self.recipient}" <|channel|> "{channel}" type')
        body = "text" if self.schema is None else f"@arguments_{i}"
        return f"call_{i}: ({' | '.join(headers)}) <|message|> {body}"


def _calls(rules: Rules) -> list[_Call]:
    """Every recipient that may be called; raises ConstraintError."""
    choice = rules.tool_choice
    if choice == ToolChoice.NONE:
        return []
    calls = [_call(function, FUNCTIONS, ("commentary",)) for function in rules.functions]
    if choice not in (ToolChoice.AUTO, ToolChoice.REQUIRED):
        named = [call for call in calls if call.name == choice]
        if not named:
            known = ", ".join(call.name for call in calls) or "none"
            problem = f"{choice!r} is not none, auto, required or a tool; tools: {known}"
            raise ConstraintError("tool_choice", problem)
        return named
    for space in rules.builtins:
        channels = ("analysis", "commentary")
        calls += [_call(function, space.name, channels) for function in space.functions]
        if not space.functions:  # python takes text as it is
            calls.append(_Call(space.name, space.name, channels, None))
    if choice == ToolChoice.REQUIRED and not calls:
        raise ConstraintError("tool_choice", "a call is required, but there is no tool")
    return calls


def _call(function: Function, namespace: str, channels: tuple[str, ...]) -> _Call:
    field = f"tools.{function.name}"
    if not HARMONY_NAME.fullmatch(function.name):
        raise ConstraintError(field, "a name is 1 to 64 letters, digits, _ or -")
    schema = bounded_schema(function.parameters or _NO_PARAMETERS, field)
    return _Call(function.name, f"{namespace}.{function.name}", channels, schema)


def _answer(wanted: ResponseFormat | None) -> tuple[Part, ...]:
    """The answer's own grammar; none for free text."""
    field = "response_format"
    grammar: dict[str, Any]
    match wanted:
        case None:
            return ()
        case JsonSchema(schema):
            grammar = {"json_schema": bounded_schema(schema, field)}
        case Regex(pattern):
            grammar = {"lark_grammar": _regex(pattern, field)}
        case Lark(text):
            grammar = {"lark_grammar": _lark(text, field)}
    return (Part("answer", field, grammar),)


def _regex(pattern: str, field: str) -> str:
    """A Lark grammar of the one expression."""
    _check_text(pattern, "regex", MAX_REGEX_CHARACTERS, field)
    # In Lark an expression stands between slashes on one line.
    escaped = re.sub(r"\\.|[/\n]", _escaped, pattern, flags=re.DOTALL)
    return f"start: /{escaped or '()'}/"


def _escaped(match: re.Match[str]) -> str:
    return {"/": r"\/", "\n": r"\n", "\\\n": r"\n"}.get(match[0], match[0])


def _lark(text: str, field: str) -> str:
    """The grammar, unless it holds what could leave the answer's text or is not bounded."""
    _check_text(text, "grammar", MAX_GRAMMAR_CHARACTERS, field)
    bare = _QUOTED.sub(" ", text)
    refused: tuple[tuple[str, str], ...] = (
        ("<", "special tokens cannot be used in it"),
        ("@", "other grammars cannot be used in it"),
        ("%", "of directives only %ignore can be used in it"),
    )
    for sign, problem in refused:
        if sign in bare.replace("%ignore", ""):
            raise ConstraintError(field, f"{sign!r} in the grammar: {problem}")
    if _depth(bare, "([{", ")]}") > MAX_DEPTH:
        raise ConstraintError(field, f"the grammar is nested deeper than {MAX_DEPTH} levels")
    return text


def _depth(text: str, opening: str, ending: str) -> int:
    depth = deepest = 0
    for sign in text:
        depth += (sign in opening) - (sign in ending)
        deepest = max(deepest, depth)
    return deepest


def _check_text(text: object, what: str, most: int, field: str) -> None:
    """Raises ConstraintError for what is no text, or too long."""
    try:
        length = len(FieldPath(field, None).text(text))
    except ConversationError as error:
        raise ConstraintError(error.place, error.problem) from error
    if length > most:
        raise ConstraintError(field, f"the {what} has more than {most} characters")
