"""A conversation at the terminal over a scripted engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gptoss.runtime.chat.model import Model
from gptoss.runtime.chat.settings import Settings
from gptoss.runtime.terminal.session import Session
from support.fake_engine import ScriptedEngine
from support.tokens import byte_tokenizer

FINAL = "<|channel|>final<|message|>Four.<|return|>"

Talk = Callable[..., str]
"""Types lines in a session; gives what is printed."""


def final(text: str) -> str:
    return FINAL.replace("Four.", text)


def session(*scripts: str, **options: Any) -> Session:
    given = {name: options.pop(name) for name in ("n_ctx", "before_token") if name in options}
    model = Model(ScriptedEngine(*scripts, **given), byte_tokenizer())
    return Session(model, "scripted", Settings(date="2026-01-01"), **options)
