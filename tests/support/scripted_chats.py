"""Chats over a scripted engine, with one tool: ``add``."""

from __future__ import annotations

from gptoss.runtime.chat.chat import Chat
from gptoss.runtime.chat.settings import Limits, Settings
from gptoss.runtime.tools.toolbox import Toolbox
from support.fake_engine import ScriptedEngine, engine_of
from support.tokens import byte_tokenizer

ANALYSIS = "<|channel|>analysis<|message|>Hm.<|end|>"
FINAL = "<|channel|>final<|message|>Four.<|return|>"
REASONED = ANALYSIS + "<|start|>assistant" + FINAL
CALL = (
    "<|start|>assistant<|channel|>commentary to=functions.add <|constrain|>json"
    '<|message|>{"a": 2, "b": 2}<|call|>'
)


def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


def chat_of(*scripts: str, n_ctx: int = 100_000, max_tokens: int | None = None) -> Chat:
    engine = ScriptedEngine(*scripts, n_ctx=n_ctx)
    return Chat(
        engine,
        byte_tokenizer(),
        toolbox=Toolbox([add]),
        settings=Settings(date="2025-01-01", limits=Limits(max_tokens)),
    )


def prompts(chat: Chat) -> list[str]:
    return engine_of(chat).prompts


def said(chat: Chat) -> list[tuple[str, str | None, str]]:
    return [(m.role.value, m.channel, m.text) for m in chat.messages[2:]]
