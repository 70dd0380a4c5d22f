"""Writes the grammar of a whole turn (reasoning, tool calls, answer) in Lark, from the rules of the
turn; compiles nothing.

    turn      (thought next)* (preamble next (thought next)*){0,3} (answer | calls)
    thought   <|channel|>analysis<|message|> text <|end|>
    preamble  <|channel|>commentary<|message|> text <|end|>
    answer    <|channel|>final<|message|> text <|return|>
    calls     a call <|call|>; several have <|end|> next in between
    call      <|channel|>commentary to=NAME <|constrain|>json<|message|> text
    next      <|start|>assistant

A call's recipient may also be in the role part, and its type may lack the token or be absent: the
model was trained on all of these. The prompt ends with the first ``<|start|>assistant``.

Text is defined by token ids, not characters: at its beginning the grammar allows every text token,
from which the sampler knows that nothing changes until a control token comes.

A schema or grammar from outside is not in the turn's grammar. It is a ``Part``, a separate grammar
for one text of the turn, and is applied only to that text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gptoss.runtime.harmony.errors import ConstraintError, ConversationError
from gptoss.runtime.harmony.fields import HARMONY_NAME, NAME_RULE, FieldPath
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
"""Limit of nested brackets in a grammar."""

MAX_PREAMBLES = 3
"""The most messages to the user before a call in one generation."""

ANSWER = ""
"""The key of the answer's part; a call's key is its recipient."""

_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}

# Quoted parts of a Lark text: comments, strings, regular expressions.
_QUOTED = re.compile(r'//[^\n]*|#[^\n]*|"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/')


class ToolChoice(StrEnum):
    """Whether the model calls tools; a function's name instead requires a call of that one."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"


class ReasoningStop(StrEnum):
    """Why reasoning was closed by the sampler."""

    BUDGET = "budget"
    """It reached its token limit."""
    LOOP = "loop"
    """It repeated itself."""
    ASKED = "asked"
    """The person asked for the answer now."""


JSON_OBJECT = JsonSchema({"type": "object"})
"""The answer is any JSON object."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the model may do in its turn.

    ``functions`` are the developer's. ``namespaces`` are further groups of tools; one without
    functions is called by its own name with free text. ``parallel_calls`` is off by default: the
    model was trained to wait for each call's result. ``response_format`` None means free text.
    Without ``reasoning`` the turn begins with the answer or a call.
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

    If only the message were ended, the model would open the next one on the same channel.
    """
    opened = ("<|end|>", "<|start|>", "assistant", "<|channel|>")
    if _must_call(rules):
        return (*opened, "commentary to")
    return (*opened, "final", "<|message|>")


@dataclass(frozen=True, slots=True)
class Part:
    """The required format of one text of the turn: a JSON schema or a Lark grammar.

    ``field`` names it in errors. If ``required``, it must be enforced during generation; otherwise
    the text is checked afterwards, and a looser grammar may be used.
    """

    field: str
    schema: Mapping[str, Any] | None = None
    lark: str | None = None
    required: bool = False


@dataclass(frozen=True, slots=True)
class TurnGrammar:
    """The turn's Lark grammar, and its parts by recipient (``ANSWER`` for the answer)."""

    lark: str
    parts: Mapping[str, Part]


def turn_grammar(rules: Rules, text_ids: Sequence[tuple[int, int]]) -> TurnGrammar:
    """Write the Lark grammar of a turn that keeps to ``rules``; raises ConstraintError.

    ``text_ids`` are the ids of text tokens as inclusive ranges.
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
    """A recipient: the channels on which it is called, and its text's format (None: free text)."""

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
            raise ConstraintError(f"tools.{space.name}", f"not a valid name: {NAME_RULE}")
        channels = ("analysis", "commentary")
        calls += [_call(function, space.name, channels) for function in space.functions]
        if not space.functions:  # like python, which takes plain text
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


def _call(function: Function, namespace: str, channels: tuple[str, ...]) -> _Call:
    field = f"tools.{function.name}"
    if not HARMONY_NAME.fullmatch(function.name):
        raise ConstraintError(field, f"not a valid name: {NAME_RULE}")
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

    Control tokens in it need no check here: a part's grammar can only allow text tokens.
    """
    _check_text(text, "grammar", MAX_GRAMMAR_CHARACTERS, field)
    bare = _QUOTED.sub(" ", text)
    if "%" in bare.replace("%ignore", ""):
        raise ConstraintError(field, "the grammar uses '%'; the only directive allowed is %ignore")
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
