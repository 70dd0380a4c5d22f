"""Checks a finished answer against the JSON schema it was asked to follow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from gptoss.runtime.harmony.events import Diagnostic
from gptoss.runtime.harmony.fields import FieldPath
from gptoss.runtime.harmony.messages import Message, Role
from gptoss.runtime.harmony.schema_check import SchemaChecker
from gptoss.runtime.sampling.grammar import JsonSchema, ResponseFormat


def answer_diagnostics(
    wanted: ResponseFormat | None, messages: Sequence[Message]
) -> Iterator[Diagnostic]:
    """Check the finished answer among a reply's ``messages`` against its ``response_format``, and
    return a diagnostic ``answer-schema`` if it does not match.
    """
    answers = [m.text for m in messages if m.role == Role.ASSISTANT and m.channel == "final"]
    if not answers or not isinstance(wanted, JsonSchema):
        return
    try:
        value = json.loads(answers[-1])
    except (ValueError, RecursionError) as error:
        problems = [f"not JSON: {error}"]
    else:
        problems = SchemaChecker(wanted.schema, FieldPath("response_format", None)).problems(value)
    if problems:
        text = "; ".join(problems)
        yield Diagnostic("answer-schema", f"the answer is not what its schema admits: {text}")
