"""Addresses of RPC servers, and what is asked of a server before llama.cpp connects to it.

``tests/oracle/test_rpc_servers.py`` runs llama.cpp's own servers.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from gptoss.errors import OptionError
from gptoss.runtime.engine.base import EngineError
from gptoss.runtime.engine.rpc_address import RpcAddress, resolve_addresses
from gptoss.runtime.engine.rpc_server import is_listening, probe_server
from gptoss.runtime.engine.settings import EngineSettings


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Hosts and their addresses, instead of the machine's resolver."""
    known: dict[str, list[str]] = {}

    def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        if host not in known:
            raise socket.gaierror(-2, "Name or service not known")
        return [
            (socket.AF_INET6 if ":" in it else socket.AF_INET, 1, 6, "", (it, port))
            for it in known[host]
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("", "expected HOST:PORT"),
        ("host", "expected HOST:PORT"),
        (":50052", "expected HOST:PORT"),
        ("[]:50052", "expected HOST:PORT"),
        ("ho st:50052", "expected HOST:PORT"),
        ("host\x1b[2J:50052", "expected HOST:PORT"),
        ("127.0.0.1:", "expected HOST:PORT"),
        ("127.0.0.1:rpc", "expected HOST:PORT"),
        ("127.0.0.1:+1", "expected HOST:PORT"),
        ("127.0.0.1:٥", "expected HOST:PORT"),
        ("127.0.0.1:0", "a port is 1 to 65535"),
        ("127.0.0.1:65536", "a port is 1 to 65535"),
        ("::1:50052", "write an IPv6 address in brackets"),
        ("[::1]:50052", "has no IPv4 address"),
        ("192.168.1.5:50052", "which others can reach"),
        ("0.0.0.0:50052", "which others can reach"),
        ("[fe80::1]:50052", "which others can reach"),
        (7, "expected HOST:PORT"),
    ],
)
def test_an_address_that_is_refused(spec: object, complaint: str) -> None:
    with pytest.raises(OptionError, match="RPC") as caught:
        resolve_addresses([spec], insecure=False)  # type: ignore[list-item]
    assert complaint in str(caught.value)
    assert str(caught.value).isprintable()


def test_addresses_are_resolved(names: dict[str, list[str]]) -> None:
    names |= {"box": ["::1", "127.0.0.1"], "far": ["10.0.0.7"], "127.0.0.1": ["127.0.0.1"]}
    assert resolve_addresses(["box:50052"], insecure=False) == (RpcAddress("127.0.0.1", 50052),)
    assert resolve_addresses([" far:1"], insecure=True) == (RpcAddress("10.0.0.7", 1),)
    with pytest.raises(OptionError, match=r"far has the address 10\.0\.0\.7.*--rpc-insecure"):
        resolve_addresses(["box:50052", "far:50052"], insecure=False)
    with pytest.raises(OptionError, match="named twice"):
        resolve_addresses(["box:50052", "127.0.0.1:50052"], insecure=False)
    with pytest.raises(EngineError, match="unknown: the host cannot be resolved"):
        resolve_addresses(["unknown:50052"], insecure=False)


def test_every_address_of_a_name_is_checked(names: dict[str, list[str]]) -> None:
    names["two"] = ["127.0.0.1", "10.0.0.7"]
    with pytest.raises(OptionError, match=r"10\.0\.0\.7"):
        resolve_addresses(["two:50052"], insecure=False)
    names["mapped"] = ["::ffff:10.0.0.7", "127.0.0.1"]
    with pytest.raises(OptionError, match="others can reach"):
        resolve_addresses(["mapped:50052"], insecure=False)


def test_too_many_servers() -> None:
    with pytest.raises(OptionError, match="17 RPC servers; the maximum is 16"):
        resolve_addresses([f"127.0.0.1:{i}" for i in range(1, 18)], insecure=False)


def test_one_text_is_not_several_servers() -> None:
    with pytest.raises(OptionError, match="expected several"):
        resolve_addresses("127.0.0.1:50052", insecure=False)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"n_gpu_layers": 0}, "n_gpu_layers is 0 but rpc names servers"),
        ({"repack": "later"}, "repack is later, but RPC servers hold one model"),
    ],
)
def test_settings_that_contradict_rpc(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises(OptionError, match=complaint):
        EngineSettings(256, rpc=("127.0.0.1:1",), **settings)  # type: ignore[arg-type]


# A server


Answers = Callable[[socket.socket], None]


@contextmanager
def served(answer: Answers) -> Iterator[RpcAddress]:
    """A server whose connections are given to ``answer``, one after the other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        answer(connection)
                    except OSError:
                        continue

        threading.Thread(target=serve, daemon=True).start()
        yield RpcAddress("127.0.0.1", listener.getsockname()[1])
        with contextlib.suppress(OSError):  # not every system allows it
            listener.shutdown(socket.SHUT_RDWR)


def answer_of(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def hello(major: int = 7, minor: int = 0) -> bytes:
    return answer_of(bytes([major, minor, 3]) + bytes(25))


def speaking(*answers: bytes) -> Answers:
    """Give one answer to each request that is read whole; then close, what else comes being read:
    a connection that is closed before is reset.
    """

    def answer(connection: socket.socket) -> None:
        for data in answers:
            command, size = struct.unpack("<BQ", connection.recv(9, socket.MSG_WAITALL))
            assert command in (14, 15, 11)
            if size:
                connection.recv(size, socket.MSG_WAITALL)
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass

    return answer


def memory(free: int, total: int) -> bytes:
    return answer_of(struct.pack("<QQ", free, total))


def count(n: int) -> bytes:
    return answer_of(struct.pack("<I", n))


def test_a_server_tells_its_devices() -> None:
    with served(speaking(hello(), count(1), memory(5, 9))) as address:
        [device] = probe_server(address).devices
    assert (device.name, device.free, device.total) == (str(address), 5, 9)
    assert device.is_gpu
    with served(speaking(hello(), count(2), memory(5, 9), memory(6, 8))) as address:
        one, two = probe_server(address).devices
    assert (one.name, two.name) == (f"{address}/0", f"{address}/1")
    assert two.buffer_prefix == f"RPC1[{address}]"


@pytest.mark.parametrize(
    ("answers", "complaint"),
    [
        ([], "does not greet as an RPC server"),
        ([b""], "does not greet as an RPC server"),
        ([answer_of(b"\7\0\0")], "does not greet as an RPC server"),
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], "does not greet as an RPC server"),
        ([struct.pack("<Q", 2**63)], "does not greet as an RPC server"),
        ([hello(6, 1)], r"speaks version 6\.1\.3 of the protocol, this llama\.cpp 7\.0"),
        ([hello(7, 1)], r"speaks version 7\.1\.3"),
        ([hello(), count(0)], "reports 0 devices"),
        ([hello(), count(2**31)], "reports 2147483648 devices"),
        ([hello()], "cannot be used: it closed the connection"),
        ([hello(), count(1), answer_of(b"123")], "its answer has 3 bytes; expected 16"),
    ],
)
def test_what_is_not_such_a_server(answers: list[bytes], complaint: str) -> None:
    with served(speaking(*answers)) as address, pytest.raises(EngineError, match=complaint):
        probe_server(address)


def test_a_server_that_is_busy() -> None:
    """A server serves one client; another waits in its queue."""

    def wait(_: socket.socket) -> None:
        threading.Event().wait(3)

    with (
        served(wait) as address,
        pytest.raises(EngineError, match=r"did not answer within 0\.2 s: it serves another"),
    ):
        probe_server(address, timeout=0.2)


def test_an_answer_that_trickles_is_given_up() -> None:
    def trickle(connection: socket.socket) -> None:
        for byte in hello():
            connection.sendall(bytes([byte]))
            threading.Event().wait(0.05)

    with served(trickle) as address, pytest.raises(EngineError, match="did not answer"):
        probe_server(address, timeout=0.3)


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = RpcAddress("127.0.0.1", listener.getsockname()[1])
        assert is_listening(address)
    assert not is_listening(address)
    with pytest.raises(EngineError, match=f"no RPC server listens on {address}"):
        probe_server(address, timeout=0.5)
