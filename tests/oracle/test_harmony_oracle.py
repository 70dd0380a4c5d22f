"""Rendering and parsing against openai-harmony and the official chat template, full vocabulary."""

from __future__ import annotations

import json
import os
import random
from typing import Any

import pytest

from gptoss.converter import vocabulary
from gptoss.runtime.harmony import builtin
from gptoss.runtime.harmony.events import End, MessageEnded, TurnEnded
from gptoss.runtime.harmony.messages import (
    DeveloperContent,
    Message,
    Namespace,
    Role,
    SystemContent,
)
from gptoss.runtime.harmony.parser import Parser
from gptoss.runtime.harmony.render import (
    KeepReasoning,
    render_conversation,
    render_for_completion,
    render_message,
)
from gptoss.runtime.tokenizer import Tokenizer
from support import conversations, peers

pytestmark = pytest.mark.oracle

SEEDS = range(10_000)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    read = vocabulary.read(peers.tokenizer(), 201088)
    return Tokenizer.from_vocabulary(read.tokens, read.types)


@pytest.fixture(scope="module")
def harmony() -> Any:
    os.environ["TIKTOKEN_ENCODINGS_BASE"] = str(peers.FOLDER / "tiktoken")
    import openai_harmony

    return openai_harmony.load_harmony_encoding("HarmonyGptOss")


def theirs(message: Message) -> dict[str, Any]:
    """The message in openai-harmony's JSON form."""
    out: dict[str, Any] = {"role": str(message.role), "content": [_content(message.content)]}
    for key in ("name", "channel", "recipient", "content_type"):
        if getattr(message, key) is not None:
            out[key] = getattr(message, key)
    return out


def _content(content: str | SystemContent | DeveloperContent) -> dict[str, Any]:
    if isinstance(content, str):
        return {"type": "text", "text": content}
    tools = {space.name: _namespace(space) for space in content.tools}
    if isinstance(content, DeveloperContent):
        return _without_none(
            {"type": "developer_content", "instructions": content.instructions, "tools": tools}
        )
    return _without_none(
        {
            "type": "system_content",
            "model_identity": content.identity,
            "reasoning_effort": content.effort and content.effort.capitalize(),
            "conversation_start_date": content.date,
            "knowledge_cutoff": content.knowledge_cutoff,
            "channel_config": {"valid_channels": content.channels, "channel_required": True},
            "tools": tools,
        }
    )


def _namespace(space: Namespace) -> dict[str, Any]:
    functions = [
        _without_none({"name": f.name, "description": f.description, "parameters": f.parameters})
        for f in space.functions
    ]
    return _without_none({"name": space.name, "description": space.description, "tools": functions})


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def test_rendering_equals_openai_harmony(tokenizer: Tokenizer, harmony: Any) -> None:
    for seed in SEEDS:
        messages = conversations.conversation(random.Random(seed))
        drop = seed % 3 > 0
        expected = harmony._inner.render_conversation_for_completion(
            conversation_json=json.dumps({"messages": [theirs(m) for m in messages]}),
            next_turn_role="assistant",
            config={"auto_drop_analysis": drop},
        )
        keep = KeepReasoning.HARMONY if drop else KeepReasoning.ALL
        ours = render_for_completion(messages, tokenizer, keep=keep)
        if ours != expected:
            pytest.fail(
                f"seed {seed}\nours:   {tokenizer.decode(ours)!r}\n"
                f"theirs: {tokenizer.decode(expected)!r}"
            )


def test_builtin_tools_equal_openai_harmonys(tokenizer: Tokenizer, harmony: Any) -> None:
    import openai_harmony

    config = openai_harmony.ToolNamespaceConfig
    for ours, expected in ((builtin.BROWSER, config.browser()), (builtin.PYTHON, config.python())):
        # Their model calls a function without description None; ours has none such.
        assert _namespace(ours) == _without_none(expected.model_dump(exclude_none=True))
    for tools in ((builtin.BROWSER,), (builtin.PYTHON,), (builtin.PYTHON, builtin.BROWSER)):
        message = Message(Role.SYSTEM, SystemContent(date="2026-02-28", tools=tools))
        content = openai_harmony.SystemContent.new().with_conversation_start_date("2026-02-28")
        content = content.with_tools(config.browser()) if builtin.BROWSER in tools else content
        content = content.with_tools(config.python()) if builtin.PYTHON in tools else content
        expected = openai_harmony.Message.from_role_and_content("system", content)
        assert render_message(message, tokenizer) == harmony.render(expected)


def test_parsing_equals_openai_harmony(tokenizer: Tokenizer, harmony: Any) -> None:
    import openai_harmony

    parsed = 0
    for seed in SEEDS:
        messages = conversations.conversation(random.Random(seed))
        for message in (m for m in messages if m.role == "assistant"):
            ids = render_message(message, tokenizer)[2:]  # behind <|start|>assistant
            parser = Parser(tokenizer)
            events = [event for i in ids for event in parser.push(i)]
            [ended] = [event for event in events if isinstance(event, MessageEnded)]
            [expected] = harmony.parse_messages_from_completion_tokens(
                ids, openai_harmony.Role.ASSISTANT
            )
            assert theirs(ended.message) == _without_none(expected.to_dict())
            parsed += 1
    assert parsed > 1_000


def test_no_text_becomes_a_control_token(tokenizer: Tokenizer) -> None:
    """What a render of hostile text holds in control ids is what it holds with harmless text."""
    control = set(tokenizer.control.values())
    everything = "".join(tokenizer.control)
    assert not control.intersection(tokenizer.encode(everything))
    for seed in range(200):
        messages = conversations.conversation(random.Random(seed))
        ids = render_conversation(messages, tokenizer, keep=KeepReasoning.ALL)
        placed = [i for i in ids if i in control]
        assert len(placed) == sum(
            3 + (m.channel is not None) + ("<|constrain|>" in (m.content_type or ""))
            for m in messages
        )


def test_a_whole_turn_comes_back(tokenizer: Tokenizer) -> None:
    start, end = tokenizer.control["<|start|>"], tokenizer.control["<|return|>"]
    text = "".join(conversations.PIECES)
    ids = [
        *render_message(Message(Role.ASSISTANT, text, channel="analysis"), tokenizer)[2:],
        *render_message(Message(Role.ASSISTANT, text, channel="final"), tokenizer)[:-1],
        end,
    ]
    assert ids.count(start) == 1
    parser = Parser(tokenizer)
    events = [event for i in ids for event in parser.push(i)]
    assert [e.message.text for e in events if isinstance(e, MessageEnded)] == [text, text]
    assert events[-1] == TurnEnded(End.RETURN)
