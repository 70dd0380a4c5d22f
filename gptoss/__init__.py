"""gpt-oss from the published checkpoint to a conversation.

The names below are the whole public API. They are resolved on first use, so that importing one
room (converter, quant, runtime) never loads another, nor llama.cpp.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptoss.converter.convert import convert as convert
    from gptoss.converter.plan import plan as plan
    from gptoss.files.errors import BadCheckpoint as BadCheckpoint
    from gptoss.files.errors import BadGguf as BadGguf
    from gptoss.files.errors import BadRequest as BadRequest
    from gptoss.files.errors import GptossError as GptossError
    from gptoss.files.errors import OutputError as OutputError
    from gptoss.files.errors import UnsupportedModel as UnsupportedModel
    from gptoss.quant.verify import verify as verify
    from gptoss.runtime.chat import load as load

_HOME = {
    "convert": "gptoss.converter.convert",
    "plan": "gptoss.converter.plan",
    "verify": "gptoss.quant.verify",
    "load": "gptoss.runtime.chat",
    "BadRequest": "gptoss.files.errors",
    "GptossError": "gptoss.files.errors",
    "OutputError": "gptoss.files.errors",
    "BadCheckpoint": "gptoss.files.errors",
    "BadGguf": "gptoss.files.errors",
    "UnsupportedModel": "gptoss.files.errors",
}

__all__ = [
    "BadCheckpoint",
    "BadGguf",
    "BadRequest",
    "GptossError",
    "OutputError",
    "UnsupportedModel",
    "convert",
    "load",
    "plan",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'gptoss' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
