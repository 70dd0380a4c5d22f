"""Addresses of llama.cpp's RPC servers, checked before anything connects to them.

The protocol has neither authentication nor encryption: any program that reaches a server can use
it, and the network between can read and change all that is computed. So only loopback addresses are
allowed, where a tunnel ends, unless the caller declares the network safe.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from gptoss.errors import OptionError, quoted
from gptoss.runtime.engine.base import EngineError
from gptoss.text import printable

MAX_SERVERS = 16
"""llama.cpp's limit of devices."""

MODULE_VARIABLE = "GGML_BACKEND_PATH"
"""ggml's environment variable with the path of a backend that is not among its own libraries."""

_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class RpcAddress:
    """A server's IPv4 address and port; llama.cpp's client has no IPv6."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def resolve_addresses(specs: Iterable[str], *, insecure: bool) -> tuple[RpcAddress, ...]:
    """Resolve each ``HOST:PORT`` once, and check every address that it resolves to.

    Raises OptionError for one that is malformed, named twice, or not a loopback address although
    ``insecure`` is false; EngineError for a host that cannot be resolved.
    """
    if isinstance(specs, str):
        raise OptionError(f'rpc is {quoted(specs)}; expected several, such as ("HOST:PORT",)')
    found: list[RpcAddress] = []
    for spec in specs:
        address = _resolve(spec, insecure=insecure)
        if address in found:
            raise OptionError(f"the RPC server {address} is named twice")
        found.append(address)
    if len(found) > MAX_SERVERS:
        raise OptionError(f"{len(found)} RPC servers; the maximum is {MAX_SERVERS}")
    return tuple(found)


def _resolve(spec: object, *, insecure: bool) -> RpcAddress:
    host, port = split_address(spec)
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise EngineError(f"{printable(host)}: the host cannot be resolved: {error}") from error
    addresses = [ipaddress.ip_address(str(it[4][0]).partition("%")[0]) for it in answers]
    for it in addresses:
        if not (insecure or _is_loopback(it)):
            raise OptionError(
                f"the RPC server {printable(host)} has the address {it}, which others can reach; "
                "llama.cpp's RPC has no authentication and no encryption: use a tunnel to it "
                "(docs/machines.md), or --rpc-insecure (rpc_insecure=True) on a network of your own"
            )
    host_v4 = next((str(it) for it in addresses if it.version == 4), None)
    if host_v4 is None:
        raise OptionError(
            f"{printable(host)} has no IPv4 address, and llama.cpp's RPC uses no other; "
            "give an IPv4 address, or the end of a tunnel"
        )
    return RpcAddress(host_v4, port)


def split_address(spec: object) -> tuple[str, int]:
    """Split ``HOST:PORT`` or ``[IPV6]:PORT``; raises OptionError."""
    wrong = OptionError(f"the RPC server is {quoted(spec)}; expected HOST:PORT")
    if not isinstance(spec, str):
        raise wrong
    host, colon, port = spec.strip().rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    elif ":" in host:
        raise OptionError(
            f"the RPC server is {quoted(spec)}; write an IPv6 address in brackets: [ADDRESS]:PORT"
        )
    if not colon or not host or any(not c.isprintable() or c.isspace() for c in host):
        raise wrong
    if not (port.isascii() and port.isdecimal() and len(port) <= 5):
        raise wrong
    if not 1 <= int(port) <= _MAX_PORT:
        raise OptionError(f"the RPC server is {quoted(spec)}; a port is 1 to {_MAX_PORT}")
    return host, int(port)


def _is_loopback(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback
