"""The response format and the logit bias that the options of ``gptoss-run chat`` name."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from gptoss.errors import quoted
from gptoss.runtime.sampling.grammar import (
    JSON_OBJECT,
    MAX_GRAMMAR_CHARACTERS,
    JsonSchema,
    Lark,
    Regex,
    ResponseFormat,
)
from gptoss.runtime.sampling.llguidance_schema import MAX_SCHEMA_CHARACTERS


def response_format(
    named: str | None, schema: Path | None, regex: str | None, grammar: Path | None
) -> ResponseFormat | None:
    """Return the response format that one of the command line's options names."""
    if sum(option is not None for option in (named, schema, regex, grammar)) > 1:
        raise click.UsageError(
            "--response-format, --schema, --regex and --grammar are mutually exclusive; "
            "give only one"
        )
    if schema is not None:
        return JsonSchema(_read_json(schema))
    if regex is not None:
        return Regex(regex)
    if grammar is not None:
        return Lark(_read_text(grammar, MAX_GRAMMAR_CHARACTERS))
    return JSON_OBJECT if named == "json" else None


def logit_bias(given: Iterable[str]) -> dict[int, float]:
    """Return what each ``TOKEN_ID=VALUE`` adds to which token's logit; the last one of a token
    counts. ``Sampling`` checks the ranges.
    """
    bias: dict[int, float] = {}
    for spec in given:
        token, _, value = spec.partition("=")
        try:
            bias[int(token)] = float(value)
        except ValueError:
            raise click.BadParameter(
                f"{quoted(spec)}; expected TOKEN_ID=VALUE, such as 200012=-100",
                param_hint="--logit-bias",
            ) from None
    return bias


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read_text(path, 4 * MAX_SCHEMA_CHARACTERS))
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(
            f"{path}: not valid JSON: {error}", param_hint="--schema"
        ) from error


def _read_text(path: Path, most: int) -> str:
    """Read the text file that a command-line option of ``gptoss-run`` names; one that is far too
    long is refused.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(most + 1)
    if len(text) > most:
        raise click.BadParameter(f"{path} has more than {most} characters")
    return text
