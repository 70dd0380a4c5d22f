"""What parent and child write to each other: one JSON object per line.

To the child's stdin, once: ``ChildOptions``. Nothing follows; its end means that the parent is
gone. From the child's stdout: the events below. The key is in no command line and no environment.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from gptoss.runtime.engine.drafts import BatchCosts
from gptoss.runtime.engine.settings import EngineOptions, Lora

CHILD_MODULE = "gptoss.runtime.embed.child"
MARK = "GPTOSS_SERVER_CHILD"
"""Set in the child's environment: a child never starts another."""

MAX_LINE = 1 << 16


@dataclass(frozen=True, slots=True)
class ChildOptions:
    """What the child is to serve. ``port`` 0 takes a free one. The other fields are those of
    ``gptoss.open``.
    """

    path: str
    key: str
    port: int = 0
    parallel: int = 1
    disk_cache: bool = True
    force: bool = False
    engine: EngineOptions = field(default_factory=EngineOptions)

    def line(self) -> bytes:
        """Return the options as one line. Raises TypeError for a value that JSON does not have."""
        return json.dumps(asdict(self), default=_plain).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> ChildOptions:
        """Read ``line``; raises ValueError, TypeError."""
        fields = json.loads(line)
        return cls(**fields | {"engine": _engine_options(fields["engine"])})


def _plain(value: object) -> str:
    if isinstance(value, Path):
        return str(value.absolute())
    raise TypeError(f"{type(value).__name__} is not an engine option's type")


def _engine_options(fields: dict[str, Any]) -> EngineOptions:
    """Return the engine's options from what they are in JSON."""
    for name in ("gpus", "rpc"):
        if fields.get(name) is not None:
            fields[name] = tuple(fields[name])
    if fields.get("loras") is not None:
        fields["loras"] = tuple(Lora(Path(it["path"]), it["scale"]) for it in fields["loras"])
    if fields.get("draft_costs") is not None:
        fields["draft_costs"] = BatchCosts(*map(tuple, fields["draft_costs"].values()))
    return cast(EngineOptions, fields)


@dataclass(frozen=True, slots=True)
class Listening:
    """The child accepts connections on 127.0.0.1; requests wait for the model."""

    port: int
    model: str
    n_ctx: int


@dataclass(frozen=True, slots=True)
class Loading:
    """The share of the model that is loaded, 0 to 1."""

    share: float


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The child cannot serve the model, and ends. ``kind`` is the class of the error."""

    kind: str
    message: str


ChildEvent = Listening | Loading | Ready | Failed

_EVENTS = {cls.__name__: cls for cls in (Listening, Loading, Ready, Failed)}


def event_line(event: ChildEvent) -> bytes:
    """Return an event as one line."""
    return json.dumps({"event": type(event).__name__, **asdict(event)}).encode() + b"\n"


def read_event(line: bytes) -> ChildEvent | None:
    """Read a line of the child's; None for one that is not an event."""
    try:
        fields = json.loads(line)
        event: ChildEvent = _EVENTS[fields.pop("event")](**fields)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return event
