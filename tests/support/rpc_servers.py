"""llama.cpp's RPC servers on loopback, and the RPC module for the installed library.

``fetch_peers`` builds both from the source package of the installed llama-cpp-python: the module
is one library of two source files, linked against the installed libggml-base, so that it takes
seconds.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support import peers


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class RpcServerProcess:
    """One ``ggml-rpc-server`` with a CPU device of one thread."""

    def __init__(self) -> None:
        for _ in range(5):  # another process may take the port first
            self.port = free_port()
            self.process = subprocess.Popen(
                [peers.rpc() / "ggml-rpc-server", "-p", str(self.port), "-t", "1"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            if self._listens():
                return
        raise RuntimeError("ggml-rpc-server does not start")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _listens(self) -> bool:
        for _ in range(600):
            if self.process.poll() is not None:
                return False
            if _is_bound(self.port):
                return True
            time.sleep(0.05)
        return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def _is_bound(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@contextmanager
def rpc_servers(n: int) -> Iterator[list[RpcServerProcess]]:
    """Run ``n`` servers."""
    running: list[RpcServerProcess] = []
    try:
        for _ in range(n):
            running.append(RpcServerProcess())
        yield running
    finally:
        for it in running:
            it.kill()


def module() -> Path:
    """The RPC module for the installed library; ggml's variable GGML_BACKEND_PATH names it."""
    return peers.rpc() / "libggml-rpc.so"
