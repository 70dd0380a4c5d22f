"""What callers may give as ``response_format``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

import pytest

from gptoss.runtime.chat.chat import Chat
from gptoss.runtime.chat.response_format import resolve_response_format
from gptoss.runtime.chat.settings import ChatError
from gptoss.runtime.sampling.grammar import JSON_OBJECT, JsonSchema, Lark, Regex
from support.fake_engine import ScriptedEngine
from support.tokens import byte_tokenizer

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@dataclass
class Person:
    name: str
    age: int


class PersonDict(TypedDict):
    name: str
    age: int


class LikePydantic:
    """A class as pydantic makes them, so far as it matters here."""

    schema: ClassVar[Any] = SCHEMA

    @classmethod
    def model_json_schema(cls) -> Any:
        return cls.schema


class Failing(LikePydantic):
    @classmethod
    def model_json_schema(cls) -> Any:
        raise KeyError("no schema\nfor this")


class Wrong(LikePydantic):
    schema = "string"


@pytest.mark.parametrize(
    "given",
    [
        SCHEMA,
        Person,
        PersonDict,
        LikePydantic,
        {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}},
        {"type": "json_schema", "name": "person", "schema": SCHEMA},
    ],
)
def test_forms_of_a_schema(given: Any) -> None:
    assert resolve_response_format(given) == JsonSchema(SCHEMA)


@pytest.mark.parametrize("given", [JsonSchema(SCHEMA), Regex("a"), Lark("start: A"), JSON_OBJECT])
def test_forms_as_they_are(given: Any) -> None:
    assert resolve_response_format(given) is given


@pytest.mark.parametrize("given", [None, "text", {"type": "text"}])
def test_free_text(given: Any) -> None:
    assert resolve_response_format(given) is None


def test_any_object() -> None:
    assert resolve_response_format({"type": "json_object"}) == JSON_OBJECT


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("json", "response_format is a str; it must be"),
        (7, "response_format is a int; it must be"),
        ([SCHEMA], "response_format is a list; it must be"),
        (Person("a", 1), "response_format is a Person; it must be"),
        (str, "response_format is the class str; it must be"),
        (Failing, "Failing gives no JSON schema: KeyError"),
        (Wrong, "Wrong gives no JSON schema; it must be"),
        ({"type": "json_schema"}, 'has the type "json_schema" but no schema'),
        ({"type": "json_schema", "json_schema": 1}, 'has the type "json_schema" but no schema'),
    ],
)
def test_anything_else_is_refused_before_the_turn_begins(given: Any, message: str) -> None:
    chat = Chat(ScriptedEngine("<|channel|>final<|message|>4<|return|>"), byte_tokenizer())
    with pytest.raises(ChatError) as caught:
        chat.ask("?", response_format=given)
    assert message in str(caught.value)
    assert len(chat.messages) == 1
    assert chat.ask("?").text == "4"
