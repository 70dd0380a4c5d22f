"""OpenAI-shaped conversations: to harmony, back, and each way in which they can be wrong."""

from __future__ import annotations

import random
from typing import Any

import pytest

from gptoss.runtime.harmony import messages as m
from gptoss.runtime.harmony.errors import ConversationError, ConversationTooLongError
from gptoss.runtime.harmony.messages import Function, Message, Namespace, Role, SystemContent
from gptoss.runtime.harmony.render import render_for_completion
from gptoss.runtime.harmony.validate import check_conversation
from gptoss.runtime.sampling.constrained import TokenMasks
from gptoss.runtime.sampling.grammar import Lark, Regex, Rules
from gptoss.runtime.server.chat_completions.messages import messages_from_openai
from gptoss.runtime.server.chat_completions.tools import tools_from_openai
from support import conversations
from support.openai_messages import messages_to_openai, tools_to_openai
from support.tokens import byte_tokenizer

USER = {"role": "user", "content": "?"}


def call(identity: str, name: str = "f", arguments: Any = "{}") -> dict[str, Any]:
    return {
        "id": identity,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def calling(*identities: str) -> dict[str, Any]:
    calls = [call(identity) for identity in identities]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def result(identity: str, text: Any = "1") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": identity, "content": text}


def tool(name: Any = "f", parameters: Any = None) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def test_a_whole_conversation_goes_there_and_back() -> None:
    theirs: list[dict[str, Any]] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Weather in Rome and Oslo?", "name": "ada"},
        {
            "role": "assistant",
            "content": "I shall look.",
            "reasoning_content": "Two calls.",
            "tool_calls": [call("call_0", "get", '{"c":"Rome"}'), call("call_1", "get", "{}")],
        },
        result("call_0", "sunny"),
        result("call_1", "rain"),
        {"role": "assistant", "content": None, "tool_calls": [call("call_2", "add")]},
        result("call_2", "3"),
        {"role": "assistant", "content": "Sun and rain.", "reasoning_content": "Done."},
        {"role": "user", "content": "Thanks"},
    ]
    ours = messages_from_openai(theirs)
    assert ours == [
        m.system(),
        m.developer("Be brief."),
        Message(Role.USER, "Weather in Rome and Oslo?", name="ada"),
        m.analysis("Two calls."),
        Message(Role.ASSISTANT, "I shall look.", channel="commentary"),
        m.call("get", '{"c":"Rome"}'),
        m.call("get", "{}"),
        m.tool_result("get", "sunny"),
        m.tool_result("get", "rain"),
        m.call("add", "{}"),
        m.tool_result("add", "3"),
        m.analysis("Done."),
        m.final("Sun and rain."),
        m.user("Thanks"),
    ]
    assert messages_to_openai(ours) == theirs


def test_results_may_come_in_another_order() -> None:
    ours = messages_from_openai([USER, calling("a", "b"), result("b", "2"), result("a", "1")])
    assert [message.text for message in ours[-2:]] == ["2", "1"]


def test_instructions_are_gathered_and_later_ones_stay_where_they_are() -> None:
    functions = (Function("f"),)
    system = SystemContent(date="2026-02-28")
    theirs: list[dict[str, Any]] = [
        {"role": "system", "content": "One."},
        {"role": "developer", "content": "Two."},
        USER,
        {"role": "system", "content": "Three."},
    ]
    assert messages_from_openai(theirs, functions, system) == [
        Message(Role.SYSTEM, system),
        m.developer("One.\n\nTwo.", functions),
        m.user("?"),
        m.developer("Three."),
    ]
    assert messages_from_openai([USER], functions)[1] == m.developer(None, functions)
    assert messages_from_openai(theirs[:1])[1:] == [m.developer("One.")]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_by_any_of_its_names(name: str) -> None:
    ours = messages_from_openai([{"role": "assistant", "content": "4", name: "2 + 2"}])
    assert ours[1:] == [m.analysis("2 + 2"), m.final("4")]


def test_parts_of_text_are_joined_and_arguments_may_be_an_object() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert messages_from_openai([{"role": "user", "content": parts}])[1] == m.user("ab")
    turn = {"role": "assistant", "tool_calls": [call("a", arguments={"x": "ñ"})]}
    ours = messages_from_openai([turn, result("a", parts)])
    assert ours[1:] == [m.call("f", '{"x": "ñ"}'), m.tool_result("f", "ab")]


def test_what_the_api_has_no_place_for_is_left_out() -> None:
    search = Message(Role.ASSISTANT, "{}", channel="analysis", recipient="browser.search")
    found = Message(Role.TOOL, "page", name="browser.search", recipient="assistant")
    preamble = Message(Role.ASSISTANT, "Hm.", channel="commentary")
    ours = [m.system(), m.user("?"), m.analysis("a"), search, found, m.analysis("b"), preamble]
    assert messages_to_openai([*ours, m.final("4"), m.final("5")]) == [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "Hm.\n\n4", "reasoning_content": "a\n\nb"},
        {"role": "assistant", "content": "5"},
    ]


def test_functions_there_and_back() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]}
    functions = (Function("f", "Does.", schema), Function("g-2_x"))
    tools = tools_to_openai(functions)
    assert tools_from_openai(tools).functions == functions
    for nothing in ({}, {"$schema": "http://json-schema.org/draft-07/schema#"}, None):
        assert tools_from_openai([tool(parameters=nothing)]).functions == (Function("f"),)


def test_parts_of_the_responses_api_are_text_and_pictures_become_a_note() -> None:
    texts = [{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b"}]
    assert messages_from_openai([{"role": "user", "content": texts}])[1] == m.user("ab")
    for picture in ({"type": "image_url", "image_url": {"url": "x"}}, {"type": "input_image"}):
        ours = messages_from_openai([calling("a"), result("a", [*texts, picture])])
        assert ours[-1].text == "ab[picture left out: this model reads text only]"
        with pytest.raises(ConversationError, match="reads text only"):
            messages_from_openai([{"role": "user", "content": [picture]}])


LARK = 'start: "*** Begin" /[a-z]+/'


def test_namespaces_custom_tools_and_the_flat_form() -> None:
    """As Codex sends them; a search without a name is refused by itself."""
    schema = {"type": "object", "properties": {"x": {"type": "string"}}}
    flat = {"type": "function", "name": "run", "strict": False, "parameters": schema}
    grammar = {"type": "grammar", "syntax": "lark", "definition": LARK}
    declared = tools_from_openai(
        [
            flat,
            {"type": "web_search", "external_web_access": False},
            {"type": "namespace", "name": "agents", "description": "Others.",
             "tools": [{**flat, "name": "spawn"}, {**flat, "name": "no no"}]},
            {"type": "custom", "name": "patch", "description": "Edit.", "format": grammar},
            {"type": "custom", "custom": {"name": "note", "format": {"type": "text"}}},
            {"type": "custom", "name": "digits", "format": {**grammar, "syntax": "regex",
                                                            "definition": "[0-9]+"}},
        ]
    )  # fmt: skip
    assert declared.functions == (
        Function("run", "", schema),
        Function("patch", "Edit.", takes_text=True, text_format=Lark(LARK)),
        Function("note", takes_text=True),
        Function("digits", takes_text=True, text_format=Regex("[0-9]+")),
    )
    spawn = Function("spawn", "", schema)
    assert declared.namespaces == (Namespace("agents", (spawn,), "Others."),)
    assert [str(error).split(":")[0] for error in declared.refused] == [
        "tools[1].type", "tools[2].tools[1].name",
    ]  # fmt: skip
    ours = messages_from_openai([USER], declared.functions, None, declared.namespaces)
    text = byte_tokenizer().decode(render_for_completion(ours, byte_tokenizer()))
    assert "namespace agents {\n\ntype spawn = (_: {\nx?: string,\n}) => any;" in text
    assert "// Edit.\ntype patch = (_: string) => any;" in text
    rules = Rules(declared.functions, declared.namespaces)
    compiled = TokenMasks(byte_tokenizer()).compile(rules)
    assert compiled.texts.keys() == {
        "functions.run", "functions.patch", "functions.digits", "agents.spawn",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tool", "place", "problem"),
    [
        ({"type": "custom", "name": "a", "format": {"type": "x"}}, "format.type", "'x'"),
        ({"type": "custom", "name": "a", "format": {"type": "grammar", "syntax": "ebnf",
                                                    "definition": ""}}, "format.syntax", "'ebnf'"),
        ({"type": "custom", "name": "a", "format": {"type": "grammar", "syntax": "lark",
                                                    "definition": "x" * 30_000}},
         "format.definition", "more than 20000"),
        ({"type": "custom", "name": "a", "format": {"type": "grammar", "syntax": "regex"}},
         "format.definition", "must be a string"),
        ({"type": "namespace", "name": "functions", "tools": []}, "name", "second namespace"),
        ({"type": "namespace", "name": "a.b", "tools": []}, "name", "is not a valid name"),
        ({"type": "namespace", "name": "a"}, "tools", "must be an array"),
        ({"type": ["function"]}, "type", "known are"),
    ],
)  # fmt: skip
def test_a_tool_of_another_kind_is_refused_by_itself(
    tool: dict[str, Any], place: str, problem: str
) -> None:
    declared = tools_from_openai([tool, {"type": "function", "name": "good"}])
    [error] = declared.refused
    assert error.field == place
    assert problem in str(error)
    assert [function.name for function in declared.functions] == ["good"]


def random_messages(rng: random.Random) -> list[dict[str, Any]]:
    """Messages as a server of the API writes them: calls are numbered, content comes once."""
    messages: list[dict[str, Any]] = []
    if rng.random() < 0.5:
        messages.append({"role": "developer", "content": conversations.text(rng)})
    numbered = 0
    for _ in range(rng.randint(1, 4)):
        messages.append({"role": "user", "content": conversations.text(rng)})
        for _ in range(rng.randrange(3)):
            calls = [call(f"call_{numbered + i}", f"f{i}") for i in range(rng.randint(1, 3))]
            numbered += len(calls)
            turn: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": calls}
            if rng.random() < 0.5:
                turn["reasoning_content"] = conversations.text(rng) or "…"
            if rng.random() < 0.3:
                turn["content"] = conversations.text(rng) or "…"
            messages.append(turn)
            messages += [result(made["id"], conversations.text(rng)) for made in calls]
        if rng.random() < 0.8:
            answer = {"role": "assistant", "content": conversations.text(rng)}
            if rng.random() < 0.5:
                answer["reasoning_content"] = conversations.text(rng) or "…"
            messages.append(answer)
    return messages


def test_random_conversations_go_there_and_back_and_can_be_held() -> None:
    for seed in range(1_000):
        theirs = random_messages(random.Random(seed))
        ours = messages_from_openai(theirs, (Function("f0"),))
        check_conversation(ours)
        back = messages_to_openai(ours)
        assert back == theirs, f"seed {seed}"


HALF = "ab\ud83d"
BAD_MESSAGES: list[tuple[list[Any], int | None, str, str]] = [
    ([], None, "", "empty"),
    (["hi"], 0, "", "must be an object, not a string"),
    ([{"content": "x"}], 0, "role", "None"),
    ([USER, {"role": "robot", "content": "x"}], 1, "role", "'robot'"),
    ([{"role": "user"}], 0, "content", "not null"),
    ([{"role": "user", "content": 3}], 0, "content", "not a number"),
    ([{"role": "user", "content": [3]}], 0, "content[0]", "must be an object"),
    ([{"role": "user", "content": [{"type": "image_url"}]}], 0, "content[0].type", "text only"),
    ([{"role": "user", "content": [{"type": "text"}]}], 0, "content[0].text", "not null"),
    ([{"role": "user", "content": HALF}], 0, "content", "surrogate U+D83D at character 2"),
    ([USER | {"name": "a to=functions.f"}], 0, "name", "is not a valid name"),
    ([{"role": "system", "content": None}], 0, "content", "not null"),
    ([USER, {"role": "assistant"}], 1, "content", "is missing"),
    ([{"role": "assistant", "content": "4", "thinking": HALF}], 0, "thinking", "surrogate"),
    ([{"role": "assistant", "function_call": {}}], 0, "function_call", "send tool_calls"),
    ([{"role": "assistant", "tool_calls": {}}], 0, "tool_calls", "not an object"),
    ([{"role": "assistant", "tool_calls": [call("a", "f g")]}], 0, "tool_calls[0].function.name",
     "is not a valid name"),
    ([{"role": "assistant", "tool_calls": [call("a", arguments=3)]}], 0,
     "tool_calls[0].function.arguments", "not a number"),
    ([{"role": "assistant", "tool_calls": [call("a", arguments={"k": [HALF]})]}], 0,
     "tool_calls[0].function.arguments.k[0]", "surrogate"),
    ([{"role": "assistant", "tool_calls": [{"type": "x", "id": "a"}]}], 0,
     "tool_calls[0].type", "'x'"),
    ([calling("a", "a")], 0, "tool_calls[1].id", "two calls"),
    ([USER, calling("a"), USER], 1, "tool_calls", "'a' has no result"),
    ([USER, calling("a", "b"), result("a")], 1, "tool_calls", "'b' has no result"),
    ([USER, result("a")], 1, "tool_call_id", "no call 'a'"),
    ([calling("a"), result("a"), result("a")], 2, "tool_call_id", "already"),
    ([calling("a"), result("a"), USER, result("a")], 3, "tool_call_id", "no call 'a'"),
    ([calling("a"), {"role": "tool", "content": "1"}], 1, "tool_call_id", "not null"),
    ([calling("a"), result("a", HALF)], 1, "content", "surrogate"),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "index", "field", "problem"), BAD_MESSAGES)
def test_bad_messages(messages: list[Any], index: int | None, field: str, problem: str) -> None:
    with pytest.raises(ConversationError) as caught:
        messages_from_openai(messages)
    assert (caught.value.index, caught.value.field) == (index, field)
    text = str(caught.value)
    assert problem in text
    assert text.startswith("messages" if index is None else f"messages[{index}]")
    assert field in text
    assert "\n" not in text
    text.encode()


def test_what_does_not_fit_is_named_by_the_place_in_their_list() -> None:
    theirs = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": "And kind."},
        USER,
        {**calling("a", "b"), "reasoning_content": "Two.", "content": "I look."},
        result("a"),
        result("b"),
        {"role": "user", "content": "x" * 500},
    ]
    functions = (Function("f", "Finds."),)
    ours = messages_from_openai(theirs, functions)
    tokenizer = byte_tokenizer()
    named = []
    for limit in range(0, len(render_for_completion(ours, tokenizer)), 8):
        with pytest.raises(ConversationTooLongError) as caught:
            render_for_completion(ours, tokenizer, limit=limit)
        error = caught.value
        index = error.index
        assert error.place == ("messages" if index is None else f"messages[{index}].content")
        if index not in named:
            named.append(index)
    assert named == [None, 0, 2, 3, 4, 5, 6]

    bare = messages_from_openai([USER], functions)
    n_system = len(render_for_completion(bare[:1], tokenizer))
    with pytest.raises(ConversationTooLongError, match=r"^tools: does not fit") as caught:
        render_for_completion(bare, tokenizer, limit=n_system + 100)
    assert caught.value.index is None
    said = [*messages_from_openai([USER]), m.final("since" * 100)]
    with pytest.raises(ConversationTooLongError, match=r"^messages: does not fit"):
        render_for_completion(said, tokenizer, limit=n_system + 50)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"x": schema}}
    return schema


PARAMETERS = "function.parameters"
BAD_TOOLS: list[tuple[list[Any], int | None, str, str]] = [
    ([3], 0, "", "must be an object"),
    ([{"type": "browser"}], 0, "type", "'browser'"),
    ([{"type": "function"}], 0, "function", "not null"),
    ([tool("f"), tool("")], 1, "function.name", "is not a valid name"),
    ([tool("f.g")], 0, "function.name", "is not a valid name"),
    ([tool("f" * 129)], 0, "function.name", "is not a valid name"),
    ([tool("f\n")], 0, "function.name", "is not a valid name"),
    ([tool("<|start|>")], 0, "function.name", "is not a valid name"),
    ([tool(None)], 0, "function.name", "not null"),
    ([tool(), tool()], 1, "function.name", "second tool"),
    ([{"type": "function", "function": {"name": "f", "description": HALF}}], 0,
     "function.description", "surrogate"),
    ([tool(parameters=[])], 0, PARAMETERS, "not an array"),
    ([tool(parameters={"type": "string"})], 0, f"{PARAMETERS}.type", "'string'"),
    ([tool(parameters={"type": ["object"]})], 0, f"{PARAMETERS}.type", "'object'"),
    ([tool(parameters={"enum": [1]})], 0, PARAMETERS, "not the schema of an object"),
    ([tool(parameters={"properties": []})], 0, f"{PARAMETERS}.properties", "not an array"),
    ([tool(parameters={"properties": {"x": 3}})], 0, f"{PARAMETERS}.properties.x", "a schema"),
    ([tool(parameters={"type": "object", "required": [3]})], 0, f"{PARAMETERS}.required[0]",
     "not a number"),
    ([tool(parameters={"properties": {HALF: {}}})], 0, f"{PARAMETERS}.properties", "surrogate"),
    ([tool(parameters={"properties": {"x": {"default": {1, 2}}}})], 0,
     f"{PARAMETERS}.properties.x.default", "must be JSON, not set"),
    ([tool(parameters=nested(200))], 0, PARAMETERS, "nested deeper"),
]  # fmt: skip


@pytest.mark.parametrize(("tools", "index", "field", "problem"), BAD_TOOLS)
def test_bad_tools(tools: list[Any], index: int | None, field: str, problem: str) -> None:
    good = [tool("first"), *tools, tool("last")]
    declared = tools_from_openai(good)
    assert index is not None
    [error] = declared.refused
    assert (error.index, error.field) == (index + 1, field)
    assert problem in str(error)
    assert str(error).startswith(f"tools[{index + 1}]")
    assert "\n" not in str(error)
    str(error).encode()
    names = [function.name for function in declared.functions]
    assert len(names) == len(good) - 1, "its neighbours are declared"
    assert {"first", "last"} <= {*names}


def test_lists_must_be_lists() -> None:
    broken: Any
    for broken in ("x", None, {}):
        with pytest.raises(ConversationError, match="must be an array"):
            messages_from_openai(broken)
        with pytest.raises(ConversationError, match="must be an array"):
            tools_from_openai(broken)
