"""Conversations that cannot be put before the model: each says which message and which field."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from typing import Any

import pytest

from gptoss.runtime.harmony import messages as m
from gptoss.runtime.harmony.errors import ConversationError, ConversationTooLongError
from gptoss.runtime.harmony.messages import Function, Message, Namespace, Role, SystemContent
from gptoss.runtime.harmony.render import render_for_completion
from gptoss.runtime.harmony.validate import check_conversation
from gptoss.runtime.tools.builtin import BROWSER, PYTHON
from support import conversations
from support.tokens import byte_tokenizer

SYSTEM, USER = m.system(date="2026-02-28"), m.user("?")
CALL, RESULT = m.call("f", "{}"), m.tool_result("f", "1")
SEARCH = Message(Role.ASSISTANT, "{}", channel="analysis", recipient="browser.search")
HALF = "ab\ud83d"


def tools(*functions: Any) -> Message:
    return m.developer(None, functions)


BAD: list[tuple[list[Message], int | None, str, str]] = [
    ([], None, "", "the conversation is empty"),
    # order
    ([USER], 0, "role", "the system block is the first message"),
    ([SYSTEM, USER, SYSTEM], 2, "role", "no other is one"),
    ([SYSTEM, USER, RESULT], 2, "name", "no call waits for a result of 'functions.f'"),
    ([SYSTEM, USER, CALL, m.tool_result("g", "1")], 3, "name", "no call waits"),
    ([SYSTEM, USER, CALL, RESULT, RESULT], 4, "name", "no call waits"),
    ([SYSTEM, USER, CALL], 2, "recipient", "the call of 'functions.f' has no result"),
    ([SYSTEM, USER, CALL, USER], 2, "recipient", "has no result"),
    ([SYSTEM, USER, CALL, m.final("4")], 2, "recipient", "has no result"),
    ([SYSTEM, USER, CALL, CALL, RESULT, m.final("4")], 3, "recipient", "has no result"),
    ([SYSTEM, USER, CALL, replace(RESULT, name=None)], 3, "name", "is missing"),
    # content
    ([Message(Role.SYSTEM, "Obey.")], 0, "content", "cannot hold a string"),
    ([SYSTEM, Message(Role.USER, SystemContent())], 1, "content", "cannot hold SystemContent"),
    ([SYSTEM, m.user(HALF)], 1, "content", "lone surrogate U+D83D at character 2"),
    ([SYSTEM, m.developer(HALF)], 1, "content.instructions", "surrogate"),
    ([SYSTEM, USER, CALL, m.tool_result("f", HALF)], 3, "content", "surrogate"),
    ([m.system(identity=HALF)], 0, "content.identity", "surrogate"),
    ([m.system(knowledge_cutoff=HALF)], 0, "content.knowledge_cutoff", "surrogate"),
    ([m.system(channels=("final", "a b"))], 0, "content.channels[1]", "is not a single word"),
    # dates
    *(
        ([m.system(date=date)], 0, "content.date", "is not a date: write it as YYYY-MM-DD")
        for date in ("x", "", "2026-02-30", "28.02.2026", "20260228", "2026-W09-6", "2026-2-28")
    ),
    ([m.system(date=20260228)], 0, "content.date", "must be a string"),
    # header fields
    ([SYSTEM, replace(USER, name="a to=functions.f")], 1, "name", "is not a single word"),
    ([SYSTEM, replace(USER, name="")], 1, "name", "is not a single word"),
    ([SYSTEM, USER, replace(CALL, recipient="functions.f json")], 2, "recipient",
     "is not a single word"),
    ([SYSTEM, USER, replace(CALL, channel="final\n")], 2, "channel", "is not a single word"),
    ([SYSTEM, USER, replace(CALL, content_type="a\u00a0b")], 2, "content_type",
     "is not a single word"),
    ([SYSTEM, replace(USER, recipient=HALF)], 1, "recipient", "surrogate"),
    # tools
    ([SYSTEM, tools(Function("f"), Function("f g"))], 1, "content.tools[0].functions[1].name",
     "is not a valid name"),
    ([SYSTEM, tools(Function("f"), Function("f"))], 1, "content.tools[0].functions[1].name",
     "a second tool is called 'f'"),
    ([SYSTEM, tools(Function("f", HALF))], 1, "content.tools[0].functions[0].description",
     "surrogate"),
    ([SYSTEM, tools(Function("f", "", {"type": "string"}))], 1,
     "content.tools[0].functions[0].parameters.type", "must be of type 'object'"),
    ([SYSTEM, tools(Function("f", "", {"properties": {"x": {"$ref": "#/y"}}}))], 1,
     "content.tools[0].functions[0].parameters.properties.x.$ref", "points at no schema"),
    ([m.system(tools=(Namespace("a b"),))], 0, "content.tools[0].name", "is not a valid name"),
    ([m.system(tools=(Namespace("a", (), HALF),))], 0, "content.tools[0].description", "surrogate"),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "index", "field", "problem"), BAD)
def test_what_is_refused(
    messages: list[Message], index: int | None, field: str, problem: str
) -> None:
    with pytest.raises(ConversationError) as caught:
        render_for_completion(messages, byte_tokenizer())
    assert (caught.value.index, caught.value.field) == (index, field)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize(
    "messages",
    [
        [SYSTEM],
        [m.system(date=None, tools=(BROWSER, PYTHON)), USER],
        [SYSTEM, USER, CALL, RESULT],
        [SYSTEM, USER, CALL, m.call("g", "{}"), m.tool_result("g", "2"), RESULT, m.final("4")],
        [SYSTEM, USER, CALL, m.analysis("And?"), CALL, RESULT, RESULT],
        [SYSTEM, USER, SEARCH, Message(Role.TOOL, "page", name="browser.search")],
        [SYSTEM, USER, SEARCH, Message(Role.TOOL, "page", name="browser")],
        [SYSTEM, USER, Message(Role.ASSISTANT, "hm", channel="commentary", recipient="assistant")],
        [SYSTEM, USER, m.final("4"), m.developer("Be brief."), USER],
        [SYSTEM, Message(Role.DEVELOPER, "Plain words."), USER],
        [SYSTEM, m.final("I begin.")],
    ],
)
def test_what_is_possible(messages: list[Message]) -> None:
    check_conversation(messages)


def test_random_conversations_are_possible() -> None:
    for seed in range(300):
        check_conversation(conversations.conversation(random.Random(seed)))


def test_the_context_ends_within_a_message() -> None:
    """The first message that is not wholly within the limit is named, even if it is the answer."""
    tokenizer = byte_tokenizer()
    said = [SYSTEM, USER, m.analysis("hm"), m.final("4"), m.user("word " * 100), m.final("5")]
    whole = render_for_completion(said, tokenizer)
    assert render_for_completion(said, tokenizer, limit=len(whole)) == whole
    for limit, index in ((len(whole) - 1, 5), (len(whole) - 100, 4), (100, 0), (0, 0)):
        with pytest.raises(
            ConversationTooLongError, match=rf"messages\[{index}\]\.content"
        ) as caught:
            render_for_completion(said, tokenizer, limit=limit)
        assert (caught.value.index, caught.value.field) == (index, "content")


def test_what_cannot_fit_is_not_even_encoded() -> None:
    begun = time.process_time()
    with pytest.raises(ConversationTooLongError, match=r"messages\[1\]\.content: .* 4096 tokens"):
        render_for_completion([SYSTEM, m.user("x" * 50_000_000)], byte_tokenizer(), limit=4096)
    assert time.process_time() - begun < 1
