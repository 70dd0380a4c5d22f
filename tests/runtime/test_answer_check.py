"""An answer in JSON is held to its whole schema: by the grammar, or checked and reported."""

from __future__ import annotations

from typing import Any

import pytest

from gptoss.runtime.chat.chat import Chat
from gptoss.runtime.chat.settings import Settings
from gptoss.runtime.harmony.errors import ConstraintError
from gptoss.runtime.harmony.text_formats import JsonSchema
from gptoss.runtime.sampling.constrained import TokenMasks
from gptoss.runtime.sampling.grammar import Rules
from support.random_engine import RandomEngine
from support.tokens import byte_tokenizer, spell

TOKENIZER = byte_tokenizer()
MASKS = TokenMasks(TOKENIZER)


class Writing(RandomEngine):
    """An engine whose model wants to write one text."""

    def __init__(self, text: str) -> None:
        super().__init__(TOKENIZER.n_vocab, 0)
        self._wanted = spell(f"<|channel|>final<|message|>{text}<|return|>")

    def generate(self, prompt: Any, sampler: Any, **more: Any) -> Any:
        def wanting(logits: Any) -> int:
            n = len(asked)
            if n < len(self._wanted):
                logits[self._wanted[n]] += 100
            asked.append(n)
            return int(sampler(logits))

        asked: list[int] = []
        return super().generate(prompt, wanting, **more)


def diagnostics(schema: Any, text: str) -> list[str]:
    asked = Settings(date="2026-01-01", response_format=JsonSchema(schema))
    with Chat(Writing(text), TOKENIZER, MASKS, settings=asked) as chat:
        reply = chat.ask("go")
    assert reply.text == text
    return [d.detail for d in reply.diagnostics if d.code == "answer-schema"]


UNIQUE = {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "maxItems": 3}


def test_what_the_grammar_leaves_out_is_checked_and_reported() -> None:
    assert diagnostics(UNIQUE, "[1, 2]") == []
    [detail] = diagnostics(UNIQUE, "[1, 1]")
    assert detail.startswith("the answer is not what its schema admits: $: [1, 1] has non-unique")
    sentence = {"type": "string", "pattern": r"^(?=A).*\bend$"}
    assert diagnostics(sentence, '"A bitter end"') == []
    assert diagnostics(sentence, '"A bitterend"')


@pytest.mark.parametrize(
    "wrapped",
    [
        {"name": "n", "strict": True, "schema": UNIQUE},
        {"type": "json_schema", "name": "n", "schema": UNIQUE},
        {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": UNIQUE}},
    ],
)
def test_openai_s_wrapper_is_taken_off(wrapped: dict[str, Any]) -> None:
    assert JsonSchema(wrapped) == JsonSchema(UNIQUE)
    assert diagnostics(wrapped, "[2]") == []


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"schema": {"type": "string"}}},
        {"schema": {"type": "string"}, "properties": {}},
        {"schema": 3},
        {"description": "x", "type": "object"},
    ],
)
def test_a_schema_is_not_taken_for_a_wrapper(schema: dict[str, Any]) -> None:
    assert JsonSchema(schema).schema == schema


@pytest.mark.parametrize(
    ("schema", "place", "problem"),
    [
        ({"properties": {"a": {"minLength": "x"}}}, "properties.a.minLength", "'x'"),
        (
            {"properties": {"a": {"type": "string", "pattern": "("}}},
            "properties.a.pattern",
            "regex",
        ),
        ({"properties": {"a": {"multipleOf": 0}}}, "properties.a.multipleOf", "0"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_its_place(
    schema: dict[str, Any], place: str, problem: str
) -> None:
    with pytest.raises(ConstraintError) as refused:
        MASKS.compile(Rules(response_format=JsonSchema({"type": "object", **schema})))
    assert refused.value.field == f"response_format.{place}"
    assert problem in refused.value.problem


def test_a_costly_schema_names_what_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptoss.runtime.sampling.compile_guard.MAX_SECONDS", 1)
    numbers = [{"type": "integer", "multipleOf": n} for n in (997, 991, 983, 977)]
    schema = {"type": "object", "properties": {"n": {"anyOf": numbers}}, "required": ["n"]}
    with pytest.raises(
        ConstraintError, match=r"simpler; see response_format\.properties\.n\.anyOf"
    ):
        MASKS.compile(Rules(response_format=JsonSchema(schema)))
