"""HTTP written by hand: what no client library would send."""

from __future__ import annotations

import json
import socket
from typing import Any

from support.server import KEY

Address = tuple[str, int]


def exchange(address: Address, data: bytes, *, timeout: float = 30) -> bytes:
    """Send bytes and read until the server closes, or has sent a whole small response."""
    with socket.create_connection(address, timeout) as connection:
        connection.sendall(data)
        received = b""
        while part := connection.recv(65536):
            received += part
            head, gap, rest = received.partition(b"\r\n\r\n")
            length = [it for it in head.lower().split(b"\r\n") if it.startswith(b"content-length:")]
            if gap and length and len(rest) >= int(length[0].split(b":")[1]):
                break
        return received


def request(
    address: Address,
    path: str = "/v1/models",
    *headers: str,
    method: str = "GET",
    content: bytes = b"",
    key: str | None = KEY,
    host: str | None = None,
) -> tuple[int, dict[str, str], Any]:
    """One request, written by hand; status, headers and JSON body."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host or f'{address[0]}:{address[1]}'}"]
    lines += [f"Authorization: Bearer {key}"] if key else []
    lines += [f"Content-Length: {len(content)}"] if content else []
    lines += headers
    return parsed(exchange(address, "\r\n".join([*lines, "", ""]).encode() + content))


def parsed(response: bytes) -> tuple[int, dict[str, str], Any]:
    head, _, rest = response.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {
        name.lower(): value.strip() for name, _, value in (it.partition(":") for it in lines)
    }
    return int(first.split()[1]), headers, json.loads(rest) if rest.startswith(b"{") else rest
