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
    from gptoss.errors import CheckpointError as CheckpointError
    from gptoss.errors import GgufError as GgufError
    from gptoss.errors import GptossError as GptossError
    from gptoss.errors import OptionError as OptionError
    from gptoss.errors import OutputError as OutputError
    from gptoss.errors import UnsupportedModelError as UnsupportedModelError
    from gptoss.quant.verify.verifier import verify as verify
    from gptoss.runtime.chat.chat import load as load

_HOME = {
    "convert": "gptoss.converter.convert",
    "plan": "gptoss.converter.plan",
    "verify": "gptoss.quant.verify.verifier",
    "load": "gptoss.runtime.chat.chat",
    "OptionError": "gptoss.errors",
    "GptossError": "gptoss.errors",
    "OutputError": "gptoss.errors",
    "CheckpointError": "gptoss.errors",
    "GgufError": "gptoss.errors",
    "UnsupportedModelError": "gptoss.errors",
}

__all__ = [
    "CheckpointError",
    "GgufError",
    "GptossError",
    "OptionError",
    "OutputError",
    "UnsupportedModelError",
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
