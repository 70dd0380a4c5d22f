"""The program that ``gptoss.spawn`` starts: a server on a free port of 127.0.0.1, for its parent.

It ends at once when its stdin ends, which is when the parent is gone, however it went. On Linux the
kernel kills it too: a process forked from the parent may still hold the other end of stdin.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NoReturn

from gptoss.errors import GptossError
from gptoss.runtime.chat.model import Model
from gptoss.runtime.embed.wire import (
    MAX_LINE,
    ChildEvent,
    ChildOptions,
    Failed,
    Listening,
    Loading,
    Ready,
    event_line,
)

_PROGRESS_STEP = 0.01
_PR_SET_PDEATHSIG = 1


def main() -> NoReturn:
    """Read the options from stdin, serve until the parent is gone, and exit."""
    events = _Events(_claim_stdout())
    parent = os.getppid()
    with open(0, "rb", buffering=0, closefd=False) as stdin:  # sys.stdin may be None
        options = ChildOptions.from_line(stdin.readline(MAX_LINE))
    _die_with_thread_of(parent)
    threading.Thread(target=_die_at_end_of_stdin, name="gptoss-parent", daemon=True).start()
    logging.basicConfig(level=logging.WARNING)
    try:
        _serve(options, events)
    except (GptossError, OSError) as error:
        events.fail(error)
    os._exit(0)


class _Events:
    """Writes events to the parent, from any thread."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def put(self, event: ChildEvent) -> None:
        """Write one event; where the parent does not read any more, it is gone."""
        try:
            with self._lock:
                self._pipe.write(event_line(event))
                self._pipe.flush()
        except OSError:
            os._exit(1)

    def fail(self, error: BaseException) -> NoReturn:
        """Report why the model cannot be served, and end."""
        self.put(Failed(type(error).__name__, str(error)))
        os._exit(2)

    def end(self, error: BaseException) -> NoReturn:
        """End after an error that a new child may not meet; the parent reads it on stderr."""
        sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
        os._exit(1)


def _serve(options: ChildOptions, events: _Events) -> None:
    from gptoss.runtime.server.app import create_app
    from gptoss.runtime.server.gguf_models import served_model
    from gptoss.runtime.server.model_host import ModelHost
    from gptoss.runtime.server.security import Access
    from gptoss.runtime.server.uvicorn_server import HttpServer

    if options.engine.get("rpc"):
        from gptoss.runtime.engine.rpc import LOSS

        LOSS.listen(events.end)
    served = served_model(
        Path(options.path),
        parallel=options.parallel,
        options=options.engine,
        disk_cache=options.disk_cache,
        force=options.force,
        is_first=True,
    )
    load = served.load

    def load_and_tell(progress: Callable[[float], None]) -> Model:
        told = 0.0

        def advance(share: float) -> None:
            nonlocal told
            progress(share)
            if share >= told + _PROGRESS_STEP:
                told = share
                events.put(Loading(share))

        try:
            model = load(advance)
        except BaseException as error:
            events.fail(error)
        events.put(Ready())
        return model

    with _listen(options.port) as listener:
        port = listener.getsockname()[1]
        events.put(Listening(port, served.id, served.n_ctx))
        host = replace(served, load=load_and_tell)

        async def serve() -> None:
            models = ModelHost([host])
            await HttpServer(create_app(models, Access(options.key)), models).serve([listener])

        asyncio.run(serve())


def _listen(port: int) -> socket.socket:
    """Listen on the port, or on a free one where another process has taken it."""
    try:
        return socket.create_server(("127.0.0.1", port), backlog=128)
    except OSError:
        return socket.create_server(("127.0.0.1", 0), backlog=128)


def _claim_stdout() -> BinaryIO:
    """Take stdout for events; whatever else writes to it goes to stderr."""
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return pipe


def _die_at_end_of_stdin() -> NoReturn:
    while os.read(0, MAX_LINE):
        pass
    os._exit(0)


def _die_with_thread_of(parent: int) -> None:
    """Have Linux kill this process when the thread that started it ends: the supervisor's, which
    lives as long as the parent.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended meanwhile
        os._exit(0)


if __name__ == "__main__":
    main()
