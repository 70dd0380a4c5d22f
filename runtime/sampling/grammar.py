"""Writes the grammar of a whole turn (reasoning, tool calls, answer) in Lark, from the rules of the
turn; compiles nothing.

    turn      (thought next)* (preamble next (thought next)*){0,3} (answer | calls)
    thought   <|channel|>analysis<|message|> text <|end|>
    preamble  <|channel|>commentary<|message|> text <|end|>
    answer    <|channel|>final<|message|> text <|return|>
    calls     a call <|call|>; several have <|end|> next in between
    call      <|channel|>commentary to=NAME <|constrain|>json<|message|> text
    next      <|start|>assistant

A call's recipient may be in the role part too, and its type may come without the token or not
at all: the model was trained on each. The prompt has written the first ``<|start|>assistant``.

Text is written in token ids, not in characters: at its beginning the grammar allows each text token
there is, which is how the sampler finds out that it need not ask again until a control token comes.

A schema, or a grammar that somebody else wrote, is not in the turn's grammar. It is a ``Part``, a
grammar of its own for one text of the turn, and sees nothing of the turn but that text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gptoss.runtime.harmony.errors import ConstraintError, ConversationError
from gptoss.runtime.harmony.fields import HARMONY_NAME, FieldPath
from gptoss.runtime.harmony.messages import FUNCTIONS, Function, Namespace
from gptoss.runtime.harmony.text_formats import JsonSchema, Lark, Regex, ResponseFormat
from gptoss.runtime.sampling.llguidance_schema import MAX_REGEX_CHARACTERS

__all__ = [
    "JSON_OBJECT",
    "JsonSchema",
    "Lark",
    "Part",
    "ReasoningStop",
    "Regex",
    "ResponseFormat",
    "Rules",
    "ToolChoice",
    "TurnGrammar",
    "closing",
    "turn_grammar",
]

MAX_GRAMMAR_CHARACTERS = 20_000
"""Longer grammars take minutes to compile."""

MAX_DEPTH = 64
"""Of brackets in a grammar."""

MAX_PREAMBLES = 3
"""Messages to the person before a call in one generation."""

ANSWER = ""
"""Key of the answer's part; a call's is its recipient."""

_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}

# A Lark text without what is quoted in it: comments, strings, regular expressions.
_QUOTED = re.compile(r'//[^\n]*|#[^\n]*|"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/')


class ToolChoice(StrEnum):
    """Whether the model calls; a function's name instead means that it must call that one."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"


class ReasoningStop(StrEnum):
    """Why reasoning was ended from outside."""

    BUDGET = "budget"
    """It had as many tokens as it may have."""
    LOOP = "loop"
    """It repeated itself."""


JSON_OBJECT = JsonSchema({"type": "object"})
"""The answer is any JSON object."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the model may do in its turn.

    ``functions`` are the developer's. ``namespaces`` are further groups of tools; one without
    functions is called by its own name with free text. ``parallel_calls`` is off unless asked for:
    the model was trained to wait for each call's result. ``response_format`` None is free text.
    Without ``reasoning`` the answer or a call comes at once, with no word before.
    """

    functions: tuple[Function, ...] = ()
    namespaces: tuple[Namespace, ...] = ()
    tool_choice: str = ToolChoice.AUTO
    parallel_calls: bool = False
    response_format: ResponseFormat | None = None
    reasoning: bool = True


def closing(rules: Rules) -> tuple[str, ...]:
    """Return the control tokens and text that end the reasoning, when it has to end, so that a turn
    follows its grammar.

    Ending the message alone would have the model open the next one on the same channel.
    """
    opened = ("<|end|>", "<|start|>", "assistant", "<|channel|>")
    if _must_call(rules):
        return (*opened, "commentary to")
    return (*opened, "final", "<|message|>")


@dataclass(frozen=True, slots=True)
class Part:
    """What one text of the turn must be: a JSON schema, or else a grammar in Lark.

    ``field`` names it in errors. ``required`` says whether the text must be held to it
    while it is generated; else it is checked afterwards, and a looser grammar will do.
    """

    field: str
    schema: Mapping[str, Any] | None = None
    lark: str | None = None
    required: bool = False


@dataclass(frozen=True, slots=True)
class TurnGrammar:
    """The turn's grammar in Lark, and its parts: by recipient, the answer's by ``ANSWER``."""

    lark: str
    parts: Mapping[str, Part]


def turn_grammar(rules: Rules, text_ids: Sequence[tuple[int, int]]) -> TurnGrammar:
    """Write the Lark grammar of a turn that keeps to ``rules``; raises ConstraintError.

    ``text_ids`` are the ids of text tokens as ranges, both ends included.
    """
    calls = _calls(rules)
    ranges = ",".join(f"{first}-{last}" for first, last in text_ids)
    lines = [
        _start(rules, bool(calls)),
        'next: <|start|> "assistant"',
        'thought: <|channel|> "analysis" <|message|> text <|end|>',
        'preamble: <|channel|> "commentary" <|message|> text <|end|>',
        'answer: <|channel|> "final" <|message|> text <|return|>',
        f"text: <[{ranges}]>*",
    ]
    if calls:
        lines += [
            f"calls: {'(call <|end|> next)* ' if rules.parallel_calls else ''}call <|call|>",
            f"call: {' | '.join(f'call_{i}' for i in range(len(calls)))}",
            'type: (" "? <|constrain|> "json" | " json" | " code")?',
            *(call.rule(i) for i, call in enumerate(calls)),
        ]
    parts = {call.recipient: call.part for call in calls if call.part is not None}
    if rules.response_format is not None:
        parts[ANSWER] = part_of(rules.response_format, "response_format", required=True)
    return TurnGrammar("\n".join(lines), parts)


def _start(rules: Rules, with_calls: bool) -> str:
    """Write the Lark rule ``start`` of a turn's grammar: reasoning, preambles, calls or
    the answer.
    """
    before = "(thought next)* " if rules.reasoning else ""
    if before and with_calls:
        before += f"(preamble next {before}){{0,{MAX_PREAMBLES}}} "
    end = "calls" if _must_call(rules) else "(answer | calls)" if with_calls else "answer"
    return f"start: {before}{end}"


def _must_call(rules: Rules) -> bool:
    return rules.tool_choice not in (ToolChoice.AUTO, ToolChoice.NONE)


@dataclass(frozen=True, slots=True)
class _Call:
    """A recipient: the channels it is called on, what its text must be or None for free text."""

    name: str
    recipient: str
    channels: tuple[str, ...]
    part: Part | None

    def rule(self, i: int) -> str:
        """Write the Lark rule of a tool call in the turn's grammar, from its header to its
        arguments.
        """
        headers = []
        for channel in self.channels:
            headers.append(f'<|channel|> "{channel} to={self.recipient}" type')
            headers.append(f'" to={self.recipient}" <|channel|> "{channel}" type')
        return f"call_{i}: ({' | '.join(headers)}) <|message|> text"


def _calls(rules: Rules) -> list[_Call]:
    """List the recipients that a turn may call, with the grammar part of each; raises
    ConstraintError.
    """
    choice = rules.tool_choice
    if choice == ToolChoice.NONE:
        return []
    calls = [_call(function, FUNCTIONS, ("commentary",)) for function in rules.functions]
    for space in rules.namespaces:
        if not HARMONY_NAME.fullmatch(space.name):
            raise ConstraintError(f"tools.{space.name}", _NAME_RULE)
        channels = ("analysis", "commentary")
        calls += [_call(function, space.name, channels) for function in space.functions]
        if not space.functions:  # python takes text as it is
            calls.append(_Call(space.name, space.name, channels, None))
    if choice not in (ToolChoice.AUTO, ToolChoice.REQUIRED):
        named = [call for call in calls if call.name == choice]
        if not named:
            known = ", ".join(call.name for call in calls) or "none"
            problem = f"{choice!r} is not none, auto, required or a tool; tools: {known}"
            raise ConstraintError("tool_choice", problem)
        return named
    if choice == ToolChoice.REQUIRED and not calls:
        raise ConstraintError("tool_choice", "a call is required, but there is no tool")
    return calls


_NAME_RULE = "a name is 1 to 64 letters, digits, _ or -"


def _call(function: Function, namespace: str, channels: tuple[str, ...]) -> _Call:
    field = f"tools.{function.name}"
    if not HARMONY_NAME.fullmatch(function.name):
        raise ConstraintError(field, _NAME_RULE)
    recipient = f"{namespace}.{function.name}"
    if function.takes_text:
        wanted = function.text_format
        part = None if wanted is None else part_of(wanted, field, required=False)
        return _Call(function.name, recipient, channels, part)
    schema = function.parameters or _NO_PARAMETERS
    if "type" not in schema:
        schema = {"type": "object", **schema}  # arguments always are one
    return _Call(function.name, recipient, channels, Part(field, schema))


def part_of(wanted: ResponseFormat, field: str, *, required: bool) -> Part:
    """Convert a response format (JSON schema, regex or Lark) to its part of the turn's grammar;
    raises ConstraintError.
    """
    match wanted:
        case JsonSchema(schema):
            return Part(field, schema, required=required)
        case Regex(pattern):
            return Part(field, lark=_regex(pattern, field), required=required)
        case Lark(text):
            return Part(field, lark=_lark(text, field), required=required)


def _regex(pattern: str, field: str) -> str:
    """Write a Lark grammar that matches one regular expression."""
    _check_text(pattern, "regex", MAX_REGEX_CHARACTERS, field)
    # In Lark an expression is written between slashes, on one line.
    escaped = re.sub(r"\\.|[/\n]", _escaped, pattern, flags=re.DOTALL)
    return f"start: /{escaped or '()'}/"


def _escaped(match: re.Match[str]) -> str:
    return {"/": r"\/", "\n": r"\n", "\\\n": r"\n"}.get(match[0], match[0])


def _lark(text: str, field: str) -> str:
    """Check a user's Lark grammar for a turn: not too large, and without directives that include
    other languages.

    That it can leave the text it is of is prevented elsewhere, not by looking for control tokens.
    """
    _check_text(text, "grammar", MAX_GRAMMAR_CHARACTERS, field)
    bare = _QUOTED.sub(" ", text)
    if "%" in bare.replace("%ignore", ""):
        raise ConstraintError(field, "'%' in the grammar: of directives only %ignore can be used")
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
    """Raise ConstraintError unless a regular expression or Lark grammar is a string of allowed
    length.
    """
    try:
        length = len(FieldPath(field, None).text(text))
    except ConversationError as error:
        raise ConstraintError(error.place, error.problem) from error
    if length > most:
        raise ConstraintError(field, f"the {what} has more than {most} characters")
