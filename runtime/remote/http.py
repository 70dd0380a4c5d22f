"""HTTP requests to another server: whole answers, and streams of events that any thread can end.

Redirects are not followed: the key and the conversation go to the named address only.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from queue import Empty, Full, Queue
from typing import Any

import httpcore

from gptoss.runtime.engine.base import (
    EngineError,
    QueueFullError,
    RemoteError,
    RemoteUnreachableError,
)
from gptoss.runtime.remote.address import KEY_VARIABLE, Server

CONNECT_SECONDS = 10.0

ANSWER_SECONDS = 30.0
"""For the whole of an answer that is not a stream."""

SILENCE_SECONDS = 1_800.0
"""Between two pieces of a stream, at most: a long prompt is read in silence."""

MAX_LINE_BYTES = 4 << 20

MAX_ANSWER_BYTES = 64 << 20
"""Of an answer that is not a stream."""

_WAITING_LINES = 32
"""Events that are read before the reader wants them."""

_POLL_SECONDS = 0.2
_REFUSAL_BYTES = 4_096

_FAILURES = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
    OSError,
    ValueError,
)


def ask(server: Server, method: str, path: str, content: object = None) -> dict[str, Any] | None:
    """Ask another server for a JSON object; None where it has none at ``path``.

    Raises RemoteError where it cannot be reached, refuses the key or fails, QueueFullError where it
    is busy or still loading.
    """
    end = time.monotonic() + ANSWER_SECONDS
    body = bytearray()
    with _answer(server, method, path, content, ANSWER_SECONDS) as answer:
        for chunk in answer.iter_stream():
            body += chunk
            if len(body) > MAX_ANSWER_BYTES or time.monotonic() > end:
                raise RemoteError(f"{server.base_url}{path} answers without an end")
        status = answer.status
        if status in (401, 403, 429) or 300 <= status < 400 or status >= 500:
            raise _refusal(server, status, answer.headers, bytes(body))
    try:
        read = json.loads(body) if status == 200 else None
    except (ValueError, RecursionError):
        read = None
    return read if isinstance(read, dict) else None


@contextmanager
def _answer(
    server: Server,
    method: str,
    path: str,
    content: object,
    silence: float,
    trace: Any = None,
) -> Iterator[httpcore.Response]:
    """Send a request to another server and give its answer, whose body is not read yet."""
    timeouts = {"connect": CONNECT_SECONDS, "write": 60.0, "pool": 60.0, "read": silence}
    body = None if content is None else json.dumps(content).encode()
    headers = dict(server.headers)
    if body is not None:
        headers["Content-Type"] = "application/json"
    extensions: dict[str, Any] = {"timeout": timeouts} | ({"trace": trace} if trace else {})
    try:
        with (
            httpcore.ConnectionPool() as pool,
            pool.stream(method, server.base_url + path, headers=headers, content=body,
                        extensions=extensions) as answer,
        ):  # fmt: skip
            yield answer
    except _FAILURES as error:
        reason = server.shown(error) or type(error).__name__
        raise RemoteUnreachableError(f"{server.base_url} cannot be reached: {reason}") from error


def _refusal(
    server: Server, status: int, headers: list[tuple[bytes, bytes]], body: bytes
) -> EngineError:
    """Return the error for an answer of another server whose status is not 200."""
    where = server.base_url
    if status in (401, 403):
        advice = f"set {KEY_VARIABLE} or use `gptoss-run remote key set`"
        what = "refuses the key" if server.key else f"wants a key: {advice}"
        return RemoteError(f"{where} {what} (status {status})")
    if 300 <= status < 400:
        to = next((value for name, value in headers if name.lower() == b"location"), b"")
        there = server.shown(to.decode("ascii", "replace"))
        return RemoteError(f"{where} redirects to {there or 'nowhere'}; name that address instead")
    said = server.shown(body.decode("utf-8", "replace"))
    kind = QueueFullError if status in (429, 503) else RemoteError
    return kind(f"{where} answers with status {status}: {said}")


class EventLines:
    """The data of a stream of server-sent events, from a POST. One thread reads; any may cancel."""

    def __init__(self, server: Server, path: str, content: Mapping[str, Any]) -> None:
        """The request is sent at once, by a thread of its own."""
        self.whole = False
        """Whether the stream had its last event, ``[DONE]``."""
        self._server = server
        self._lines: Queue[str | EngineError | None] = Queue(_WAITING_LINES)
        self._end: EngineError | None = None
        self._over = False
        self._accepted = threading.Event()
        self._lock = threading.Lock()
        self._cancelled = False
        self._socket: socket.socket | None = None
        threading.Thread(target=self._run, args=(path, dict(content)), name="gptoss-remote",
                         daemon=True).start()  # fmt: skip

    def await_acceptance(self, seconds: float) -> None:
        """Wait until the other server has accepted the request, or ``seconds`` have passed; raises
        EngineError where it has refused, or cannot be reached.
        """
        self._accepted.wait(seconds)
        if self._end is not None:
            raise self._end

    def next(self, timeout: float) -> str | None:
        """Return the next event's data, None at the end; raises Empty, EngineError."""
        if self._cancelled:
            return None
        if not self._over:
            item = self._lines.get(timeout=timeout)
            if isinstance(item, str):
                return item
            self._over = True
        if self._end is not None and not self._cancelled:
            raise self._end
        return None

    def cancel(self) -> None:
        """Close the connection to the other server: it stops generating."""
        with self._lock:
            self._cancelled = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
        self._accepted.set()
        with contextlib.suppress(Full):
            self._lines.put_nowait(None)  # wakes the reader

    def _run(self, path: str, content: dict[str, Any]) -> None:
        try:
            with _answer(
                self._server, "POST", path, content, SILENCE_SECONDS, self._trace
            ) as answer:
                self._read(answer)
        except EngineError as error:
            self._end = error
        except RecursionError:
            self._end = RemoteError("the request is nested too deeply")
        self._accepted.set()
        self._put(None)

    def _trace(self, name: str, info: dict[str, Any]) -> None:
        """Note the socket as soon as there is one: a request can be cancelled before its answer."""
        if name in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            with self._lock:
                self._socket = info["return_value"].get_extra_info("socket")
                if self._cancelled:
                    raise RemoteError("the request was cancelled")

    def _read(self, answer: httpcore.Response) -> None:
        if answer.status != 200:
            body = b""
            for chunk in answer.iter_stream():
                body += chunk
                if len(body) > _REFUSAL_BYTES:
                    break
            raise _refusal(self._server, answer.status, answer.headers, body[:_REFUSAL_BYTES])
        self._accepted.set()
        rest = b""
        for chunk in answer.iter_stream():
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > MAX_LINE_BYTES:
                raise RemoteError(f"{self._server.base_url} sends a line without an end")
            for line in lines:
                if line.startswith(b"data:"):
                    data = line[5:].strip().decode("utf-8", "replace")
                    if data == "[DONE]":
                        self.whole = True
                        return
                    if not self._put(data):
                        return

    def _put(self, item: str | None) -> bool:
        """Hand an event to the reader, who may be slow; False when nobody wants it any more."""
        while not self._cancelled:
            with contextlib.suppress(Full):
                self._lines.put(item, timeout=_POLL_SECONDS)
                return True
        return False


__all__ = ["Empty", "EventLines", "ask"]
