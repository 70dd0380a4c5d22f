"""A reply read over HTTP with nothing but the standard library, for ``SpawnedServer.stream``."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gptoss.runtime.closing import Closing
from gptoss.runtime.engine.base import EngineError

_MAX_LINE = 1 << 20


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """More of a reply: text of the answer, text of the reasoning, or why it ended."""

    content: str = ""
    reasoning: str = ""
    finish_reason: str | None = None


class ChatStream(Closing):
    """The deltas of one reply. ``close`` may be called from any thread: it ends the reply, on the
    server too. Also a context manager.
    """

    def __init__(self, port: int, key: str, body: Mapping[str, Any]) -> None:
        """Send the request, a body of ``/v1/chat/completions``. Raises EngineError."""
        self._closed = False
        self._finished = False
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        try:
            self._connection.request(
                "POST",
                "/v1/chat/completions",
                json.dumps({**body, "stream": True}),
                {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
            )
            self._response = self._connection.getresponse()
            if self._response.status != 200:
                raise EngineError(_refusal(self._response))
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise EngineError(f"the server's process does not answer: {error}") from error
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[ChatDelta]:
        """The deltas until the reply's end, or until ``close``. Raises EngineError where the
        server's process ends, or the model fails.
        """
        try:
            for event in self._events():
                if "error" in event:
                    raise EngineError(str(event["error"].get("message")))
                for choice in event.get("choices", ()):
                    yield _delta(choice)
        except (OSError, ValueError, AttributeError, http.client.HTTPException) as error:
            # AttributeError: http.client's own, where another thread has closed the connection.
            if not self._closed:
                raise EngineError("the server's process ended during the reply") from error
        if not (self._finished or self._closed):
            raise EngineError("the server's process ended during the reply")

    def _events(self) -> Iterator[dict[str, Any]]:
        while line := self._response.readline(_MAX_LINE):
            if not line.startswith(b"data: "):
                continue
            data = line[6:].strip()
            if data == b"[DONE]":
                self._finished = True
                return
            yield json.loads(data)

    def close(self) -> None:
        """End the reply."""
        self._closed = True
        if self._connection.sock is not None:
            with contextlib.suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def _delta(choice: Mapping[str, Any]) -> ChatDelta:
    delta = choice.get("delta", {})
    return ChatDelta(
        delta.get("content") or "", delta.get("reasoning") or "", choice.get("finish_reason")
    )


def _refusal(response: http.client.HTTPResponse) -> str:
    try:
        return str(json.loads(response.read(_MAX_LINE))["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the server answers with status {response.status}"
