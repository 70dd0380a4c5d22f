"""JSON schemas as the model is told of them, and what is no sound schema."""

from __future__ import annotations

import time
from typing import Any

import pytest

from gptoss.runtime.harmony.errors import ConversationError
from gptoss.runtime.harmony.fields import FieldPath
from gptoss.runtime.harmony.json_schema import MAX_FOLLOWED, check_parameters, check_schema, lookup
from gptoss.runtime.harmony.messages import Function, Namespace
from gptoss.runtime.harmony.tools_typescript import tools_section

PLACE = FieldPath("tools", 0, "parameters")
STRING, NULL = {"type": "string"}, {"type": "null"}
POINT = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}


def told(parameters: dict[str, Any]) -> str:
    """What stands between the parentheses of a function with these parameters."""
    check_parameters(PLACE, parameters)
    text = tools_section([Namespace("functions", (Function("f", "", parameters),))])
    return text.split("type f = (_: ", 1)[1].split(") => any;", 1)[0]


def property_told(schema: dict[str, Any], **definitions: Any) -> str:
    """The lines of one property ``p`` of such a schema."""
    text = told({"type": "object", "properties": {"p": schema}, "$defs": definitions})
    return text.removeprefix("{\n").removesuffix("\n}")


PROPERTIES: list[tuple[dict[str, Any], str]] = [
    # what openai-harmony knows too
    (STRING, "p?: string,"),
    ({"type": "string", "enum": ["a", "b"], "default": "a"}, 'p?: "a" | "b", // default: a'),
    ({"type": ["string", "null"]}, "p?: string | null,"),
    ({"type": "array", "items": STRING, "nullable": True}, "p?: string[] | null,"),
    ({"type": "object"}, "p?: {\n    },"),
    (POINT, "p?: {\n    x: number,\n    },"),
    # what it does not
    ({"anyOf": [STRING, NULL], "default": None, "description": "Name.", "title": "P"},
     "// P\n//\n// Name.\np?: string | null, // default: null"),
    ({"anyOf": [{"type": "integer"}, {"type": "number"}, STRING]}, "p?: number | string,"),
    ({"anyOf": [POINT, NULL]}, "p?: {\n    x: number,\n    } | null,"),
    ({"anyOf": [{"anyOf": [STRING, NULL]}, {"type": "boolean"}]}, "p?: string | null | boolean,"),
    ({"anyOf": [STRING, {"type": "number", "description": "Seconds."}]},
     "p?:\n | string\n | number // Seconds.\n,"),
    ({"anyOf": [STRING]}, "p?: string,"),
    ({"type": "string", "anyOf": [{"enum": ["a"]}, {"enum": ["b"]}]}, 'p?: "a" | "b",'),
    ({"anyOf": [{"required": ["x"]}, {"required": ["y"]}], **POINT},
     "p?: {\n    x: number,\n    },"),
    ({"type": "array", "items": {"anyOf": [STRING, NULL]}}, "p?: (string | null)[],"),
    ({"type": "array", "items": {"enum": [1, 2]}}, "p?: (1 | 2)[],"),
    ({"enum": ["a", 1, None, True, {"k": []}]}, 'p?: "a" | 1 | null | true | {"k":[]},'),
    ({"type": "integer", "enum": [1, 2]}, "p?: 1 | 2,"),
    ({"type": ["string", "null"], "enum": ["a", None]}, 'p?: "a" | null,'),
    ({"enum": ["a", "b"]}, 'p?: "a" | "b",'),
    ({"const": "a"}, 'p?: "a",'),
    ({"type": "integer", "const": 3}, "p?: 3,"),
    ({"type": ["array", "null"], "items": STRING}, "p?: string[] | null,"),
    ({"type": ["object", "string"], **{k: POINT[k] for k in ("properties", "required")}},
     "p?: {\n    x: number,\n    } | string,"),
    ({"properties": {"x": STRING}}, "p?: {\n    x?: string,\n    },"),
    ({"type": "object", "additionalProperties": {"type": "integer"}},
     "p?: {\n    [key: string]: number,\n    },"),
    ({"type": "object", "additionalProperties": False}, "p?: {\n    },"),
    ({"allOf": [POINT, {"properties": {"y": STRING}, "required": ["y", "x"]}]},
     "p?: {\n    x: number,\n    y: string,\n    },"),
    ({"type": "integer", "anyOf": [{"enum": [1]}, {"minimum": 5}]}, "p?: 1 | number,"),
    ({"type": "integer", "allOf": [{"enum": [1, 2]}]}, "p?: 1 | 2,"),
    ({"allOf": [{"enum": ["a", "b"]}, {"enum": ["b", "c"]}]}, 'p?: "b",'),
    ({"allOf": [{"$ref": "#/$defs/Point"}], "description": "Where."},
     "// Where.\np?:     // Where.\n{\n    x: number,\n    },"),
    ({"$ref": "#/$defs/Point"}, "p?: {\n    x: number,\n    },"),
    ({"$ref": "#/$defs/Name", "default": "Ada"}, 'p?: string, // default: "Ada"'),
    ({"$ref": "#/$defs/Alias"}, "p?: string,"),
    ({"$ref": "#/$defs/a~1b%20c"}, "p?: boolean,"),
    ({"$ref": "#/$defs/Any"}, "p?: any,"),
    ({"anyOf": [{"$ref": "#/$defs/Point"}, {"$ref": "#/$defs/Name"}]},
     "p?: {\n    x: number,\n    } | string,"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "text"), PROPERTIES, ids=lambda value: str(value)[:60])
def test_what_is_told_of_a_property(schema: dict[str, Any], text: str) -> None:
    definitions = {
        "Point": POINT,
        "Name": STRING,
        "Alias": {"$ref": "#/$defs/Name"},
        "a/b c": {"type": "boolean"},
        "Any": True,
    }
    assert property_told(schema, **definitions) == text


def test_a_schema_that_refers_to_itself_is_told_once() -> None:
    node = {
        "title": "Node",
        "type": "object",
        "properties": {
            "value": {"type": "integer"},
            "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
            "parent": {"$ref": "#/$defs/Node"},
        },
        "required": ["value"],
    }
    assert property_told({"$ref": "#/$defs/Node"}, Node=node) == (
        "// Node\n//\np?: {\n    value: number,\n    children?: any[],\n"
        "    // Node\n    //\n    parent?: any,\n    },"
    )
    assert told({"$ref": "#/$defs/Node", "$defs": {"Node": node}}).count("value: number") == 1
    whole = {"type": "object", "properties": {"again": {"$ref": "#"}, "x": STRING}}
    assert told(whole) == "{\nagain?: any,\nx?: string,\n}"
    for loop in ({"$ref": "#/$defs/A"}, {"allOf": [{"$ref": "#/$defs/A"}]}):
        assert property_told({"$ref": "#/$defs/A"}, A=loop) == "p?: any,"


def test_an_expansion_without_end_is_refused_at_once() -> None:
    """Thirty definitions, each of the next one twice: 2^30 schemas in 2 kB."""
    definitions: dict[str, Any] = {
        f"d{i}": {"properties": {key: {"$ref": f"#/$defs/d{i + 1}"} for key in "ab"}}
        for i in range(30)
    }
    definitions["d30"] = STRING
    bomb = {"type": "object", "properties": {"p": {"$ref": "#/$defs/d0"}}, "$defs": definitions}
    begun = time.process_time()
    with pytest.raises(ConversationError, match=f"over {MAX_FOLLOWED} characters"):
        check_parameters(PLACE, bomb)
    with pytest.raises(ConversationError, match=r"tools\.functions\.f\.parameters: has over"):
        tools_section([Namespace("functions", (Function("f", "", bomb),))])
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    "large",
    [
        {"enum": list(range(50_000))},
        {"type": "string", "description": "x" * 400_000},
        {"type": "object", "required": [f"k{i}" for i in range(50_000)]},
    ],
    ids=["enum", "description", "required"],
)
def test_what_is_large_is_not_brought_in_again_and_again(large: dict[str, Any]) -> None:
    """Once is fine, however large; a thousand references to it are not."""
    properties = {f"p{i}": {"$ref": "#/$defs/large"} for i in range(1_000)}
    schema = {"type": "object", "properties": properties, "$defs": {"large": large}}
    begun = time.process_time()
    with pytest.raises(ConversationError, match="once its references are followed"):
        check_parameters(PLACE, schema)
    check_parameters(PLACE, {"type": "object", "properties": {"p": large}})
    check_schema(PLACE, {"allOf": [large, large]})
    assert time.process_time() - begun < 3


def test_a_chain_of_references_too_deep_is_refused() -> None:
    definitions: dict[str, Any] = {
        f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(200)
    }
    schema = {"type": "object", "properties": {"p": {"$ref": "#/$defs/d0"}}, "$defs": definitions}
    schema["$defs"]["d200"] = STRING  # type: ignore[index]
    with pytest.raises(ConversationError, match="nested deeper than 64"):
        check_parameters(PLACE, schema)


BAD: list[tuple[Any, str, str]] = [
    ([], "", "not an array"),
    ({"type": "strin"}, "type", "'strin' is not a type"),
    ({"type": []}, "type", "is not a type"),
    ({"type": ["string", 3]}, "type", "3 is not a type"),
    ({"enum": []}, "enum", "is empty"),
    ({"enum": "a"}, "enum", "must be an array"),
    ({"required": "a"}, "required", "must be an array"),
    ({"required": [1]}, "required[0]", "must be a string"),
    ({"properties": {"x": {"items": 3}}}, "properties.x.items", "must be a schema, not a number"),
    ({"properties": {"x": {"anyOf": []}}}, "properties.x.anyOf", "is empty"),
    ({"anyOf": {}}, "anyOf", "must be an array"),
    ({"items": [{"type": "x"}]}, "items[0].type", "is not a type"),
    ({"allOf": [{"type": "object"}, 3]}, "allOf[1]", "must be a schema"),
    ({"$defs": []}, "$defs", "must be an object"),
    ({"$defs": {"a": None}}, "$defs.a", "must be a schema, not null"),
    ({"not": {"type": "x"}}, "not.type", "is not a type"),
    ({"$ref": 3}, "$ref", "must be a string"),
    ({"$ref": "#/$defs/None"}, "$ref", "points at no schema"),
    ({"$ref": "https://example.com/schema.json"}, "$ref", "points at no schema"),
    ({"additionalProperties": "yes"}, "additionalProperties", "must be a schema"),
    ({"properties": {"x": {"description": "\ud800"}}}, "properties.x.description", "surrogate"),
    ({"properties": {"x": {"enum": [{1, 2}]}}}, "properties.x.enum[0]", "must be JSON"),
]


@pytest.mark.parametrize(("schema", "field", "problem"), BAD, ids=lambda value: str(value)[:50])
def test_what_is_no_schema(schema: Any, field: str, problem: str) -> None:
    with pytest.raises(ConversationError) as caught:
        check_schema(FieldPath("tools", 2), schema)
    assert (caught.value.index, caught.value.field) == (2, field)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"anyOf": [POINT, STRING]},
        {"$ref": "#/$defs/S", "$defs": {"S": STRING}},
        {"enum": [{}]},
    ],
)
def test_parameters_must_be_an_object(schema: dict[str, Any]) -> None:
    check_schema(PLACE, schema)
    with pytest.raises(ConversationError, match="object"):
        check_parameters(PLACE, schema)


@pytest.mark.parametrize(
    "schema",
    [
        POINT,
        {"properties": {}},
        {"anyOf": [POINT, POINT]},
        {"$ref": "#/$defs/P", "$defs": {"P": POINT}},
        {"allOf": [POINT, {"required": ["x"]}]},
    ],
)
def test_parameters_that_are_an_object(schema: dict[str, Any]) -> None:
    assert check_parameters(PLACE, schema) is schema


def test_pointers() -> None:
    root = {"a": [{"b": {"c": STRING}}], "": {"d": True}, "n": 3}
    assert lookup(root, "#") is root
    assert lookup(root, "#/a/0/b/c") is STRING
    assert lookup(root, "#//d") is True
    for nowhere in ("", "#a", "x#/a", "#/a", "#/a/1", "#/a/x", "#/a/²", "#/n", "#/n/x", "#/z"):
        assert lookup(root, nowhere) is None
