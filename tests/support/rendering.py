"""Conversations as ids, with every message in it: what the product never renders."""

from __future__ import annotations

from collections.abc import Sequence

from gptoss.runtime.harmony.messages import Message, Role
from gptoss.runtime.harmony.render import declares_functions, kept_messages, render_message
from gptoss.runtime.harmony.tokenizer import Tokenizer


def render_all(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """Each message, its reasoning too, ended."""
    with_functions = any(map(declares_functions, messages))
    return [
        token
        for message in messages
        for token in render_message(message, tokenizer, conversation_has_functions=with_functions)
    ]


def render_history(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """The messages that the model is shown, without what opens its turn."""
    with_functions = any(map(declares_functions, messages))
    return [
        token
        for i in kept_messages(messages)
        for token in render_message(
            messages[i], tokenizer, conversation_has_functions=with_functions
        )
    ]


def kept_by_openai_harmony(messages: Sequence[Message]) -> list[Message]:
    """What openai-harmony 0.0.8 keeps: when the last assistant message is final, the reasoning
    before the first final message goes; otherwise everything stays."""
    finals = [i for i, message in enumerate(messages) if message.channel == "final"]
    last = next((m for m in reversed(messages) if m.role == Role.ASSISTANT), None)
    horizon = finals[0] if finals and last is not None and last.channel == "final" else 0
    return [m for i, m in enumerate(messages) if m.channel != "analysis" or i >= horizon]


def completion_of(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """``render_all``, then what opens the assistant's turn."""
    opening = [tokenizer.control["<|start|>"], *tokenizer.encode(Role.ASSISTANT)]
    return [*render_all(messages, tokenizer), *opening]
