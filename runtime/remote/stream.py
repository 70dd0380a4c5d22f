"""An HTTP request whose answer is read line by line; any thread can end it."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import httpcore

from gptoss.runtime.engine.base import EngineError
from gptoss.text import printable

CONNECT_SECONDS = 10.0

SILENCE_SECONDS = 1_800.0
"""Between two pieces of an answer, at most: a long prompt is read in silence."""

MAX_LINE_BYTES = 16 << 20

MAX_ANSWER_BYTES = 64 << 20
"""Of an answer that is not a stream."""


@dataclass(frozen=True, slots=True)
class Server:
    """Another server: ``base_url`` without a path's last slash, and its key."""

    base_url: str
    key: str | None = None

    @property
    def headers(self) -> dict[bytes | str, bytes | str]:
        """Return the headers of every request to this server."""
        given: dict[bytes | str, bytes | str] = {"User-Agent": "gptoss-toolkit"}
        return given | ({"Authorization": f"Bearer {self.key}"} if self.key else {})

    def get(self, path: str) -> dict[str, Any] | None:
        """Ask this server for a JSON object; None where it has none at ``path``. Raises
        EngineError where it cannot be reached.
        """
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), CONNECT_SECONDS)
        try:
            with (
                httpcore.ConnectionPool() as pool,
                pool.stream("GET", self.base_url + path, headers=self.headers,
                            extensions={"timeout": timeouts}) as answer,
            ):  # fmt: skip
                body = bytearray()
                for chunk in answer.iter_stream():
                    body += chunk
                    if len(body) > MAX_ANSWER_BYTES:
                        raise EngineError(f"{self.base_url}{path} answers without an end")
                status = answer.status
        except _FAILURES as error:
            raise _unreachable(self.base_url, error) from error
        if status in (401, 403):
            raise EngineError(f"{self.base_url} refuses the key (status {status})")
        try:
            read = json.loads(body) if status == 200 else None
        except (ValueError, RecursionError):
            read = None
        return read if isinstance(read, dict) else None


_FAILURES = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
    OSError,
    ValueError,
)


def _unreachable(base_url: str, error: Exception) -> EngineError:
    reason = str(error) or type(error).__name__
    return EngineError(f"{base_url} cannot be reached: {printable(reason)[:200]}")


class EventLines:
    """The data of a stream of server-sent events, from a POST. One thread reads; any may cancel."""

    def __init__(self, server: Server, path: str, content: Mapping[str, Any]) -> None:
        """The request is sent at once, by a thread of its own."""
        self._server = server
        self._lines: SimpleQueue[str | EngineError | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._cancelled = False
        self._socket: socket.socket | None = None
        body = json.dumps(content).encode()
        threading.Thread(target=self._run, args=(path, body), name="gptoss-remote",
                         daemon=True).start()  # fmt: skip

    def next(self, timeout: float) -> str | None:
        """Return the next event's data, None at the end; raises Empty, EngineError."""
        item = self._lines.get(timeout=timeout)
        if item is None or isinstance(item, EngineError):
            self._lines.put(item)  # it stays the last
        if isinstance(item, EngineError):
            raise item
        return item

    def cancel(self) -> None:
        """Close the connection to the other server: it stops generating."""
        with self._lock:
            self._cancelled = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
        self._lines.put(None)

    def _run(self, path: str, body: bytes) -> None:
        end: EngineError | None = None
        try:
            self._read(path, body)
        except EngineError as error:
            end = error
        except _FAILURES as error:
            end = None if self._cancelled else _unreachable(self._server.base_url, error)
        self._lines.put(end)

    def _read(self, path: str, body: bytes) -> None:
        timeouts = {"connect": CONNECT_SECONDS, "write": 60.0, "pool": 60.0,
                    "read": SILENCE_SECONDS}  # fmt: skip
        headers = {**self._server.headers, "Content-Type": "application/json"}
        with (
            httpcore.ConnectionPool() as pool,
            pool.stream("POST", self._server.base_url + path, headers=headers, content=body,
                        extensions={"timeout": timeouts}) as answer,
        ):  # fmt: skip
            with self._lock:
                if self._cancelled:
                    return
                network = answer.extensions.get("network_stream")
                self._socket = network.get_extra_info("socket") if network else None
            if answer.status != 200:
                raise self._refusal(answer)
            self._split(answer)

    def _split(self, answer: httpcore.Response) -> None:
        rest = b""
        for chunk in answer.iter_stream():
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > MAX_LINE_BYTES:
                raise EngineError(f"{self._server.base_url} sends a line without an end")
            for line in lines:
                if line.startswith(b"data:"):
                    data = line[5:].strip().decode("utf-8", "replace")
                    if data == "[DONE]":
                        return
                    self._lines.put(data)

    def _refusal(self, answer: httpcore.Response) -> EngineError:
        text = b""
        for chunk in answer.iter_stream():
            text += chunk
            if len(text) > 4_096:
                break
        said = printable(text.decode("utf-8", "replace"))[:300]
        return EngineError(f"{self._server.base_url} answers with status {answer.status}: {said}")


__all__ = ["Empty", "EventLines", "Server"]
