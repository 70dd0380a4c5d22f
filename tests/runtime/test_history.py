"""A conversation's history kept as JSON, counted, shortened, and tools changed between turns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from gptoss.runtime.chat.chat import Chat
from gptoss.runtime.chat.events import HistoryShortened
from gptoss.runtime.chat.full_context import SUMMARY_HEADING, shortened
from gptoss.runtime.chat.settings import ChatError, Limits, Settings
from gptoss.runtime.harmony.errors import ConversationError, ConversationTooLongError
from gptoss.runtime.harmony.message_json import messages_from_json, messages_to_json
from gptoss.runtime.harmony.messages import DeveloperContent, Message, Role, final, user
from gptoss.runtime.tools.toolbox import Toolbox
from gptoss.runtime.tools.type_specs import ToolError
from support.fake_engine import ScriptedEngine
from support.tokens import byte_tokenizer

FINAL = "<|channel|>final<|message|>Four.<|return|>"
CALL = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>"


def f() -> str:
    """Do it."""
    return "done"


def test_a_history_is_saved_and_goes_on_in_another_chat() -> None:
    chat = Chat(ScriptedEngine(CALL, FINAL), byte_tokenizer(), toolbox=Toolbox([f]))
    chat.ask("2+2?")
    text = messages_to_json(chat.history)
    again = messages_from_json(text)
    assert [(m.role, m.text, m.channel, m.recipient) for m in again] == [
        (m.role, m.text, m.channel, m.recipient) for m in chat.history
    ]
    engine = ScriptedEngine(FINAL)
    other = Chat(engine, byte_tokenizer(), toolbox=Toolbox([f]), messages=again)
    other.ask("and?")
    assert "2+2?" in engine.prompts[0]
    assert messages_from_json(text, with_tokens=True)[-1].tokens == chat.history[-1].tokens


@pytest.mark.parametrize(
    "text",
    ["", "{", "5", "{}", "[5]", '[{"role": "user"}]', '[{"role": "boss", "content": "x"}]',
     '[{"role": "user", "content": 5}]', '[{"role": "user", "content": "x", "tokens": ["a"]}]',
     "[" * 100_000],
)  # fmt: skip
def test_texts_without_messages(text: str) -> None:
    with pytest.raises(ConversationError, match="does not hold messages"):
        messages_from_json(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{", "Expecting property name"), ("{}", "it is not a list"),
     ('[{"role": "user"}]', "a message has no 'content'"), ("[" * 100_000, "nested too deeply"),
     ('[{"role": "user", "content": "x", "tokens": ["a"]}]', "not token ids"),
     ('[{"role": "boss", "content": "x"}]', "'boss' is not a valid Role")],
)  # fmt: skip
def test_what_is_wrong_with_such_a_text(text: str, problem: str) -> None:
    with pytest.raises(ConversationError, match=problem):
        messages_from_json(text)


@pytest.mark.parametrize(
    ("messages", "problem"),
    [(None, "None is not a list of gptoss.Message"), ("hi", r"messages\[0\]: is a str"),
     ([user("a"), {"role": "user", "content": "b"}], r"messages\[1\]: is a dict"),
     ([Message("user", "a")], r"messages\[0\].role: is 'user'")],  # type: ignore[arg-type]
)  # fmt: skip
def test_what_is_not_a_history(messages: Any, problem: str) -> None:
    chat = Chat(ScriptedEngine(FINAL), byte_tokenizer(), messages=[user("Hi.")])
    with pytest.raises(ConversationError, match=problem):
        chat.history = messages
    assert len(chat.history) == 1
    with pytest.raises(ConversationError, match=problem):
        Chat(ScriptedEngine(FINAL), byte_tokenizer(), messages=messages)


def test_usage_of_the_context() -> None:
    settings = Settings(instructions="Be brief.")
    chat = Chat(ScriptedEngine(FINAL, n_ctx=2000), byte_tokenizer(), settings=settings)
    empty = chat.context_usage()
    assert (empty.n_ctx, empty.history) == (2000, 0)
    assert empty.system + empty.developer == chat.count_tokens()
    assert empty.developer > len("Be brief.")
    chat.ask("2+2?")
    used = chat.context_usage()
    assert used.system + used.developer + used.history == chat.count_tokens()
    assert used.free == 2000 - chat.count_tokens()


def turns(n: int) -> list[Message]:
    return [message for i in range(n) for message in (user(f"q{i}"), final(f"a{i}"))]


@pytest.mark.parametrize(("room", "kept"), [(100, 10), (20, 10), (19, 7), (8, 3), (2, 1), (0, 1)])
def test_which_turns_are_left_out(room: int, kept: int) -> None:
    """With one token a message: nothing while it fits, then down to three quarters of the room."""
    history = turns(10)
    left_out, rest = shortened(history, len, room)
    assert [*left_out, *rest] == history
    assert len(rest) == 2 * kept
    assert rest[0].role == Role.USER


def long_chat(n_ctx: int, **fields: Any) -> tuple[Chat, ScriptedEngine]:
    engine = ScriptedEngine(*[FINAL] * 40, n_ctx=n_ctx)
    settings = Settings(limits=Limits(max_tokens=100), **fields)
    return Chat(engine, byte_tokenizer(), settings=settings), engine


def test_a_full_context_is_an_error_unless_asked_otherwise() -> None:
    chat, _ = long_chat(900)
    with pytest.raises(ConversationTooLongError):
        [chat.ask("x" * 40) for _ in range(40)]


def test_the_oldest_turns_make_room() -> None:
    chat, engine = long_chat(900, when_full="trim")
    cuts = []
    for i in range(30):
        for event in chat.send(f"<{i}>" + "x" * 40):
            if isinstance(event, HistoryShortened):
                cuts.append((i, event.messages))
    assert len(engine.prompts) == 30
    assert 2 < len(cuts) < 15  # not at every turn
    assert all(n > 0 and n % 2 == 0 for _, n in cuts)
    assert "<0>" not in engine.prompts[-1]
    assert "<28>" in engine.prompts[-1]
    assert chat.count_tokens() < 900


def test_a_summary_takes_their_place() -> None:
    seen: list[Sequence[Message]] = []

    def summarise(messages: Sequence[Message]) -> str:
        seen.append(messages)
        return f"{len(messages)} messages"

    chat, engine = long_chat(900, when_full=summarise)
    for i in range(20):
        chat.ask(f"<{i}>" + "x" * 40)
    assert seen
    assert seen[0][0].text.startswith("<0>")
    assert f"{SUMMARY_HEADING}{len(seen[-1])} messages" in engine.prompts[-1]
    assert seen[1][0].text.startswith(SUMMARY_HEADING)  # summaries are summarised


def test_a_wrong_policy() -> None:
    with pytest.raises(ChatError, match="when_full is 'forget'; it must be error, trim, or"):
        Settings(when_full="forget")


def test_tools_are_changed_between_turns() -> None:
    engine = ScriptedEngine(FINAL, CALL, FINAL)
    chat = Chat(engine, byte_tokenizer())
    chat.ask("?")
    chat.tools = [f]
    assert isinstance(chat.messages[1].content, DeveloperContent)
    assert chat.ask("?").calls[0].result == "done"
    with pytest.raises(ToolError):
        chat.tools = [f, f]
    assert len(chat.tools.declarations) == 1
    stream = chat.send("?")
    with pytest.raises(ChatError, match="still being read"):
        chat.tools = []
    stream.close()
    chat.tools = []
    assert len(json.loads(messages_to_json(chat.messages))) == len(chat.messages)
