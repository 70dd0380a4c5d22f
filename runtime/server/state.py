"""What all endpoints of one server share: models, store, counters."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import cast

from starlette.requests import Request

from gptoss.runtime.server.metrics import Metrics
from gptoss.runtime.server.model_host import ModelHost


@dataclass(slots=True)
class ServerState:
    """Made once by ``create_app``; handlers get it by ``state_of(request)``."""

    models: ModelHost
    metrics: Metrics = field(default_factory=Metrics)
    started: float = field(default_factory=time.time)


def state_of(request: Request) -> ServerState:
    """Return the server's state in a request's handler."""
    return cast(ServerState, request.scope["app"])
