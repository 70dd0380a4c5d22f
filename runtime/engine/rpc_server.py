"""Asks an RPC server who it is before llama.cpp connects to it: llama.cpp's client ends the
process where a server cannot be reached, or speaks another version.

A request is a command (1 byte), the size of its data (8 bytes, little endian) and the data; an
answer is a size and data. Commands and sizes are those of ggml-rpc.cpp of the llama.cpp in
llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from dataclasses import dataclass

from gptoss.runtime.engine.base import EngineError
from gptoss.runtime.engine.devices import Device, Kind
from gptoss.runtime.engine.rpc_address import MAX_SERVERS, RpcAddress

PROTOCOL = (7, 0)
"""Major and minor version that llama.cpp's client speaks; the server's minor may be lower."""

TIMEOUT = 5.0
"""Seconds to connect, and for each answer."""

HELLO, DEVICE_COUNT, DEVICE_MEMORY = 14, 15, 11
"""Numbers of the commands."""

CAPABILITIES = 24
"""Bytes with which either side offers other transports; zeros offer none."""

_HELLO = struct.Struct(f"<3Bx{CAPABILITIES}x")
_COUNT = struct.Struct("<I")
_MEMORY = struct.Struct("<QQ")
_HEAD = struct.Struct("<BQ")
_SIZE = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class RpcServer:
    """A server that answered, and its devices with the memory that each had free."""

    address: RpcAddress
    devices: tuple[Device, ...]


def probe_server(address: RpcAddress, timeout: float = TIMEOUT) -> RpcServer:
    """Ask a server for its version, its devices and their memory, and leave it again.

    Raises EngineError: it cannot be reached, does not answer (it serves one client at a time), is
    not an RPC server, or speaks another version.
    """
    try:
        with socket.create_connection((address.host, address.port), timeout) as connection:
            return _greet(address, _Client(connection, timeout))
    except TimeoutError as error:
        raise EngineError(
            f"the RPC server {address} did not answer within {timeout:g} s: it serves another "
            "program, or is not an RPC server"
        ) from error
    except ConnectionRefusedError as error:
        raise EngineError(
            f"no RPC server listens on {address}; start llama.cpp's ggml-rpc-server there, or the "
            "tunnel to it"
        ) from error
    except (OSError, EOFError) as error:
        reason = str(error) or "it closed the connection"
        raise EngineError(f"the RPC server {address} cannot be used: {reason}") from error


def is_listening(address: RpcAddress, timeout: float = 1.0) -> bool:
    """Report whether a connection to a server is accepted."""
    with contextlib.suppress(OSError):
        socket.create_connection((address.host, address.port), timeout).close()
        return True
    return False


def _greet(address: RpcAddress, client: _Client) -> RpcServer:
    try:
        major, minor, patch = _HELLO.unpack(client.ask(HELLO, bytes(CAPABILITIES), _HELLO.size))
    except (EOFError, ConnectionResetError) as error:
        raise EngineError(
            f"{address} does not greet as an RPC server of this llama.cpp does; start a "
            "ggml-rpc-server of the same release there"
        ) from error
    if major != PROTOCOL[0] or minor > PROTOCOL[1]:
        raise EngineError(
            f"the RPC server {address} speaks version {major}.{minor}.{patch} of the protocol, "
            f"this llama.cpp {PROTOCOL[0]}.{PROTOCOL[1]}; start a ggml-rpc-server of the same "
            "release there"
        )
    [count] = _COUNT.unpack(client.ask(DEVICE_COUNT, b"", _COUNT.size))
    if not 1 <= count <= MAX_SERVERS:
        raise EngineError(
            f"the RPC server {address} reports {count} devices; expected 1 to {MAX_SERVERS}"
        )
    devices = []
    for i in range(count):
        free, total = _MEMORY.unpack(client.ask(DEVICE_MEMORY, _COUNT.pack(i), _MEMORY.size))
        name = str(address) if count == 1 else f"{address}/{i}"
        devices.append(Device(name, "RPC server", Kind.GPU, free, total, str(address), i))
    return RpcServer(address, tuple(devices))


class _Client:
    """Sends commands and reads answers of a known size; a timeout is for the whole answer."""

    def __init__(self, connection: socket.socket, timeout: float) -> None:
        self._connection = connection
        self._timeout = timeout

    def ask(self, command: int, data: bytes, answer_size: int) -> bytes:
        deadline = time.monotonic() + self._timeout
        self._connection.sendall(_HEAD.pack(command, len(data)) + data)
        [size] = _SIZE.unpack(self._receive(_SIZE.size, deadline))
        if size != answer_size:
            raise EOFError(f"its answer has {size} bytes; expected {answer_size}")
        return self._receive(size, deadline)

    def _receive(self, size: int, deadline: float) -> bytes:
        received = bytearray()
        while len(received) < size:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._connection.settimeout(left)
            chunk = self._connection.recv(size - len(received))
            if not chunk:
                raise EOFError
            received += chunk
        return bytes(received)
