"""Checks a finished JSON value against its whole schema, with ``jsonschema``.

The grammar used for generation enforces most of a schema, but not all, and unconstrained sampling
uses none. The schema may be hostile: regular expressions are searched with a time limit (by
``regex``; Python's own ``re`` can take years), and the number of evaluated keywords is limited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from gptoss.runtime.harmony.fields import FieldPath
from gptoss.runtime.harmony.json_schema import Schema, check_schema

MAX_KEYWORDS = 50_000
"""Keywords that one check may look at, 1 to 2 s; a call's arguments take some hundreds."""

SEARCH_SECONDS = 0.25
"""For one regular expression on one string."""

MAX_PROBLEMS = 5
_MAX_CHARACTERS = 300

Keyword = Callable[..., Iterator[Any] | None]


class _TooExpensiveError(Exception):
    """The check takes more than its limits."""


class SchemaChecker:
    """Checks values against one schema. Immutable; safe to share between threads."""

    def __init__(self, schema: Mapping[str, Any], place: FieldPath | None = None) -> None:
        """Raises ConversationError for a schema that is not sound, by its dialect's own rules.

        The dialect is what ``$schema`` names, else draft 2020-12 with what older drafts had more.
        """
        from jsonschema.exceptions import SchemaError

        place = place or FieldPath("schema", None)
        self.schema: Schema = check_schema(place, schema)
        self._dialect = _dialect(self.schema)
        try:
            self._dialect.check_schema(self.schema)
        except SchemaError as error:
            at = place
            for part in error.absolute_path:
                at = at.at(f"[{part}]" if isinstance(part, int) else part)
            raise at.error(_shortened(error.message)) from error
        except RecursionError as error:
            raise place.error("is nested too deep") from error

    def problems(self, value: object) -> list[str]:
        """Validate a finished JSON value against its schema; return at most ``MAX_PROBLEMS``
        sentences, none if it is valid.
        """
        from jsonschema import validators
        from jsonschema.exceptions import UnknownType
        from referencing import Registry
        from referencing.exceptions import Unresolvable

        left = MAX_KEYWORDS

        def counted(keyword: Keyword) -> Keyword:
            def check(validator: Any, part: Any, instance: Any, schema: Any) -> Iterator[Any]:
                nonlocal left
                left -= 1
                if left < 0:
                    raise _TooExpensiveError
                yield from keyword(validator, part, instance, schema) or ()

            return check

        keywords = {name: counted(check) for name, check in self._dialect.VALIDATORS.items()}
        validator = validators.extend(self._dialect, keywords)(self.schema, registry=Registry())
        found = []
        try:
            for error in validator.iter_errors(value):
                found.append(_shortened(f"{error.json_path}: {error.message}"))
                if len(found) == MAX_PROBLEMS:
                    break
        except (_TooExpensiveError, TimeoutError):
            found.append("the schema takes too long to check")
        except RecursionError:
            found.append("the schema refers to itself without end")
        except (Unresolvable, UnknownType) as error:
            found.append(_shortened(f"the schema cannot be checked: {error}"))
        return found


def is_checkable(schema: Mapping[str, Any]) -> bool:
    """Report whether a finished value can be validated against a schema's regular expressions,
    those directly in it.
    """
    import regex

    patterns = [schema.get("pattern", ""), *schema.get("patternProperties", ())]
    try:
        for pattern in patterns:
            regex.compile(pattern)
    except (regex.error, RecursionError):
        return False
    return True


def _shortened(text: str) -> str:
    text = text.replace("\n", " ")
    return text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 1]}…"


def _dialect(schema: Schema) -> Any:
    """Return a ``jsonschema`` validator class whose regular expressions end after a time limit."""
    from jsonschema import Draft202012Validator, validators

    named = schema.get("$schema")
    known = validators.validator_for({"$schema": named}, default=None) if named else None
    return _safe(known or Draft202012Validator, known is None)


@lru_cache(16)
def _safe(dialect: Any, of_any_draft: bool) -> Any:
    from jsonschema import validators

    keywords: dict[str, Keyword] = {
        "additionalProperties": _additional_properties,
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
    }
    if of_any_draft:
        items = dialect.VALIDATORS["items"]

        def either_items(validator: Any, part: Any, instance: Any, schema: Any) -> Iterator[Any]:
            check = _tuple_items if isinstance(part, list) else items
            yield from check(validator, part, instance, schema) or ()

        keywords |= {"items": either_items, "dependencies": _dependencies}
    return validators.extend(dialect, keywords)


def _search(pattern: str, text: str) -> bool:
    """Search for a schema's ``pattern`` in a value being validated; a pattern that cannot be read
    matches everything. Raises TimeoutError.
    """
    import regex

    try:
        return regex.search(pattern, text, timeout=SEARCH_SECONDS) is not None
    except regex.error:
        return True


def _pattern(validator: Any, pattern: Any, instance: Any, schema: Any) -> Iterator[Any]:  # noqa: ARG001 jsonschema's
    if isinstance(instance, str) and not _search(pattern, instance):
        yield _error(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, named: Any, instance: Any, schema: Any) -> Iterator[Any]:  # noqa: ARG001 jsonschema's
    if isinstance(instance, dict):
        for pattern, inner in named.items():
            for key, value in instance.items():
                if _search(pattern, key):
                    yield from validator.descend(value, inner, path=key, schema_path=pattern)


def _additional_properties(
    validator: Any, allowed: Any, instance: Any, schema: Any
) -> Iterator[Any]:
    if not isinstance(instance, dict):
        return
    patterns = schema.get("patternProperties", {})
    for key, value in instance.items():
        if key in schema.get("properties", {}) or any(_search(p, key) for p in patterns):
            continue
        if allowed is False:
            yield _error(f"the property {key!r} is not allowed")
        elif allowed is not True:
            yield from validator.descend(value, allowed, path=key)


def _tuple_items(validator: Any, items: Any, instance: Any, schema: Any) -> Iterator[Any]:
    """Validate a value against ``items`` as a list, as JSON Schema had it until 2019."""
    if not isinstance(instance, list):
        return
    for i, (value, inner) in enumerate(zip(instance, items, strict=False)):
        yield from validator.descend(value, inner, path=i, schema_path=i)
    more = schema.get("additionalItems", True)
    for i, value in enumerate(instance[len(items) :], len(items)):
        if more is False:
            yield _error(f"at most {len(items)} items are allowed")
            return
        yield from validator.descend(value, more, path=i)


def _dependencies(validator: Any, named: Any, instance: Any, schema: Any) -> Iterator[Any]:  # noqa: ARG001 jsonschema's
    """Validate a value against ``dependencies``, as JSON Schema had it until 2019: what must be
    there, or hold, where a property is.
    """
    if not isinstance(instance, dict):
        return
    for key, needed in named.items():
        if key not in instance:
            continue
        if isinstance(needed, list):
            yield from (_error(f"{it!r} is missing beside {key!r}") for it in needed
                        if it not in instance)  # fmt: skip
        else:
            yield from validator.descend(instance, needed, schema_path=key)


def _error(message: str) -> Any:
    from jsonschema import ValidationError

    return ValidationError(message)
