"""What parent and child write to each other: one JSON object per line.

To the child's stdin, once: ``ChildOptions``. Nothing follows; its end means that the parent is
gone. From the child's stdout: the events below. The key is in no command line and no environment.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

CHILD_MODULE = "gptoss.runtime.embed.child"
MARK = "GPTOSS_SERVER_CHILD"
"""Set in the child's environment: a child never starts another."""

MAX_LINE = 1 << 16


@dataclass(frozen=True, slots=True)
class ChildOptions:
    """What the child is to serve. ``port`` 0 takes a free one."""

    path: str
    key: str
    port: int = 0
    n_ctx: int | None = None
    parallel: int = 1
    n_threads: int | None = None
    n_gpu_layers: int = -1

    def line(self) -> bytes:
        """Return the options as one line."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> ChildOptions:
        """Read ``line``; raises ValueError, TypeError."""
        return cls(**json.loads(line))


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
