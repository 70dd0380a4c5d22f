"""What all endpoints of one server share: models, store, counters."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import cast

from starlette.requests import Request

from gptoss.runtime.server.metrics import Metrics
from gptoss.runtime.server.model_host import ModelHost
from gptoss.runtime.server.page.state import PageState
from gptoss.runtime.server.responses.state import ResponsesState
from gptoss.runtime.store.owners import LOCAL_OWNER
from gptoss.runtime.tools.tool_host import ToolHost


@dataclass(slots=True)
class ServerState:
    """Made once by ``create_app``; handlers get it by ``state_of(request)``."""

    models: ModelHost
    responses: ResponsesState = field(default_factory=ResponsesState)
    page: PageState = field(default_factory=PageState)
    tool_host: ToolHost = field(default_factory=ToolHost)
    """The tools that the server runs itself, if its operator turned any on."""
    metrics: Metrics = field(default_factory=Metrics)
    started: float = field(default_factory=time.time)


def state_of(request: Request) -> ServerState:
    """Return the server's state in a request's handler."""
    return cast(ServerState, request.scope["app"])


def owner_of(request: Request) -> str:
    """Return whose conversations a request may see. There is one key, the user's own."""
    return str(request.scope.get("owner", LOCAL_OWNER))
