"""Where the server listens: the socket, TLS, and whether that is safe."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from gptoss.errors import OptionError

BACKLOG = 128


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificate (with its chain) and private key, as PEM files."""

    certificate: Path
    key: Path


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket; raises OptionError for an address that cannot be used."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OptionError(f"cannot listen on {host}, port {port}: {reason}") from error


def require_safe(
    host: str, loopback: bool, *, no_auth: bool, with_tls: bool, insecure: bool
) -> None:
    """Raise OptionError for a server that others could use or listen to by accident."""
    if loopback:
        return
    if no_auth:
        raise OptionError(f"--no-auth is for loopback addresses only, not {host}")
    if not (with_tls or insecure):
        raise OptionError(
            f"others can reach {host}: give --tls-cert and --tls-key, or --insecure if the "
            "network encrypts"
        )


def read_tls(certificate: Path | None, key: Path | None) -> Tls | None:
    """Check the files of a certificate and its key; None without any. Raises OptionError."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise OptionError("--tls-cert and --tls-key must be given together")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise OptionError(f"{certificate}, {key}: not a PEM certificate and its key") from error
    return Tls(certificate, key)


def is_loopback(host: str) -> bool:
    """Report whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def url_of(host: str, port: int, *, with_tls: bool) -> str:
    """Return the URL under which clients on this machine reach the server."""
    name = f"[{host}]" if ":" in host else host
    return f"{'https' if with_tls else 'http'}://{name}:{port}"
