"""Tries grammars in a child process with limits of time and memory before they are compiled here.

llguidance's own limits bound the parser and the lexer's states, but not all of the compiler: an
``anyOf`` of four ``multipleOf`` of three digits takes minutes and gigabytes even with low limits,
and cannot be interrupted. So grammars that are not plain (see ``is_plain``) are first compiled in a
process that can be killed. A new one is started each time (0.3 s); it imports next to
nothing of gptoss, and the caller caches its answers.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from gptoss.runtime.child_process import can_run_modules, child_environment, module_command
from gptoss.runtime.engine.base import EngineError

MAX_SECONDS = 10
"""Time limit per grammar; common ones take milliseconds."""

MAX_BYTES = 1 << 30
"""Limit of the process's address space, including its stack of 256 MiB. Enforced on Linux only."""

_MAX_ENDED = 3
"""The most processes killed within one call; grammars left after that are not tried."""

_ANNOTATIONS = {
    "$comment", "$schema", "default", "deprecated", "description", "examples", "readOnly", "title",
    "writeOnly", "x-guidance",
}  # fmt: skip
_PLAIN = _ANNOTATIONS | {
    "$defs", "$ref", "additionalProperties", "anyOf", "const", "definitions", "enum",
    "exclusiveMaximum", "exclusiveMinimum", "format", "items", "maxItems", "maxLength", "maximum",
    "minItems", "minLength", "minimum", "properties", "required", "type",
}  # fmt: skip
_COUNTS = ("maxItems", "maxLength", "minItems", "minLength")
_MAX_PLAIN_COUNT = 1000
_MAX_PLAIN_CHARACTERS = 20_000
_MAX_PLAIN_VARIANTS = 16


def is_plain(grammar: Mapping[str, Any]) -> bool:
    """Report whether a grammar needs no trial compile in the child process: a small JSON schema of
    keywords that compile in milliseconds.

    Plain keywords do not build products of automata, which are what takes time and memory.
    """
    schema = grammar.get("json_schema")
    if schema is None or len(json.dumps(schema)) > _MAX_PLAIN_CHARACTERS:
        return False
    return _is_plain_schema(schema)


def _is_plain_schema(schema: object) -> bool:
    if not isinstance(schema, Mapping):
        return isinstance(schema, bool)
    if not schema.keys() <= _PLAIN or len(schema.get("anyOf", ())) > _MAX_PLAIN_VARIANTS:
        return False
    counts = [schema[count] for count in _COUNTS if count in schema]
    if any(not isinstance(count, int) or count > _MAX_PLAIN_COUNT for count in counts):
        return False
    inner = [schema[key] for key in ("additionalProperties", "items") if key in schema]
    for key in ("$defs", "definitions", "properties"):
        inner += schema.get(key, {}).values()
    return all(map(_is_plain_schema, [*inner, *schema.get("anyOf", ())]))


def problems_of(grammars: Sequence[str]) -> list[str | None]:
    """Try to compile each grammar (llguidance's JSON form) in a limited child process; return its
    error for each, None for one that compiles.

    Raises EngineError if the process cannot be started. Where there is nothing to start, as in a
    frozen program without gptoss's hook, only llguidance's own limits apply.
    """
    if not can_run_modules():
        return [None] * len(grammars)
    problems: list[str | None] = []
    for _ in range(_MAX_ENDED):
        answers, ended = _try(grammars[len(problems) :])
        problems += answers
        if ended is None:
            return problems
        problems.append(ended)
    return problems + ["not compiled: others with it took too much"] * (
        len(grammars) - len(problems)
    )


def _try(grammars: Sequence[str]) -> tuple[list[str | None], str | None]:
    """Send grammars to the limited child process; return its answers, and why it ended if it died
    before the last.
    """
    request = {"grammars": list(grammars), "seconds": MAX_SECONDS, "bytes": MAX_BYTES}
    try:
        done = subprocess.run(
            module_command("gptoss.runtime.sampling.compile_worker"),
            input=json.dumps(request),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=child_environment(),
            encoding="utf-8",
            check=False,
            timeout=(MAX_SECONDS + 1) * len(grammars) + 60,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"the process that compiles grammars does not work: {error}") from error
    if not done.stdout:
        raise EngineError(f"the process that compiles grammars ended with code {done.returncode}")
    answers = [json.loads(line) for line in done.stdout.splitlines()[1:]]
    if len(answers) == len(grammars):
        return answers, None
    if done.returncode == 1:
        return answers, f"takes more than {MAX_SECONDS} s to compile; make it simpler"
    return answers, f"takes more than {MAX_BYTES >> 20} MiB to compile; make it simpler"
