"""Waits for what a tool does: with a time limit, for async functions, until it is cancelled.

A Python function cannot be ended from outside. One that runs over its time is left to itself on a
thread of its own; its cancel token is set, and its result is dropped.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import inspect
import threading
from collections.abc import Callable
from typing import Any

from gptoss.runtime.tools.cancel import CancelToken

TOOL_LOOP: contextvars.ContextVar[asyncio.AbstractEventLoop | None] = contextvars.ContextVar(
    "TOOL_LOOP", default=None
)
"""The event loop, of another thread, in which async tools run; None for one of their own."""

_POLL_SECONDS = 0.02


class ToolTimeoutError(Exception):
    """A tool took longer than it may."""


class ToolCancelledError(Exception):
    """The reply that called the tool was cancelled."""


def run_limited(work: Callable[[], Any], token: CancelToken, seconds: float | None) -> Any:
    """Run a tool's work and return its result: on this thread without a limit of ``seconds``, else
    on one of its own.

    Raises ToolTimeoutError when the time is over, ToolCancelledError when the token is set before
    work on another thread is done, and what the work raises.
    """
    if seconds is None:
        return work()
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()  # it cannot be cancelled from here on, only left
    context = contextvars.copy_context()
    is_over = threading.Event()

    def run() -> None:
        try:
            future.set_result(context.run(work))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="gptoss-tool", daemon=True).start()

    def end() -> None:
        is_over.set()
        token.event.set()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        result = _result(future, token)
    except Exception:
        if not is_over.is_set():
            raise
    finally:
        timer.cancel()
    if is_over.is_set():  # also where the tool has noticed, and returned or raised something
        raise ToolTimeoutError(f"the tool took more than {seconds:g} s and was ended")
    return result


def _result(future: concurrent.futures.Future[Any], token: CancelToken) -> Any:
    """Wait for the result of a tool that runs elsewhere, or until its token is set."""
    while True:
        try:
            return future.result(_POLL_SECONDS)
        except concurrent.futures.TimeoutError:
            if future.done():  # the tool's own TimeoutError
                return future.result()
            if token.cancelled:
                future.cancel()
                raise ToolCancelledError("the reply was cancelled") from None


def awaited(result: Any, token: CancelToken) -> Any:
    """Await an async tool function's result: on ``TOOL_LOOP``, else on a loop of its own, which
    inside a running one needs a thread of its own too. A cancelled token cancels it.
    """
    if not inspect.isawaitable(result):
        return result

    async def wait() -> Any:
        return await result

    loop = TOOL_LOOP.get()
    if loop is not None:
        return _result(asyncio.run_coroutine_threadsafe(wait(), loop), token)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_watched(wait(), token))
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(asyncio.run, _watched(wait(), token)).result()


async def _watched(work: Any, token: CancelToken) -> Any:
    """Await a tool's coroutine, and cancel it when its token is set."""
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.wait({task}, timeout=_POLL_SECONDS)
        if token.cancelled and not task.done():
            task.cancel()
            await asyncio.wait({task})
            raise ToolCancelledError("the reply was cancelled")
    return task.result()
