"""llama.cpp's RPC backend: found or loaded, connected to servers, and what to do when one is lost.

llama.cpp ends the process when a server goes away. Here ggml's abort callback does not return in
that case: the thread that noticed it never goes on, nor does the thread that decodes, and everyone
else gets RpcServerLostError. Neither the threads nor the model's memory are given back before the
process ends, and it can use no RPC server any more; so a program that is to go on uses
``gptoss.spawn``, whose child process is replaced.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from gptoss.runtime.engine.base import EngineError, RpcServerLostError
from gptoss.runtime.engine.devices import Device
from gptoss.runtime.engine.ggml import device_functions
from gptoss.runtime.engine.library import ggml_library, library_folder
from gptoss.runtime.engine.rpc_address import MODULE_VARIABLE, RpcAddress, resolve_addresses
from gptoss.runtime.engine.rpc_server import RpcServer, is_listening, probe_server
from gptoss.runtime.engine.settings import EngineSettings
from gptoss.runtime.engine.threads import run_interruptibly
from gptoss.text import printable

_CLOSING_SECONDS = (0.1, 0.6)

_FILE_NAMES = ("libggml-rpc.so", "libggml-rpc.dylib", "ggml-rpc.dll")


def find_servers(rpc: Sequence[str], *, insecure: bool) -> tuple[RpcServer, ...]:
    """Resolve and ask each ``HOST:PORT``. Raises OptionError, EngineError: also where llama.cpp has
    no RPC backend.
    """
    if not rpc:
        return ()
    addresses = resolve_addresses(rpc, insecure=insecure)
    require_backend()
    LOSS.check()
    return tuple(probe_server(it) for it in addresses)


def devices_of(settings: EngineSettings) -> tuple[Device, ...]:
    """Return the devices of the RPC servers in the settings; see ``find_servers``."""
    servers = find_servers(settings.rpc, insecure=settings.rpc_insecure)
    return tuple(device for server in servers for device in server.devices)


def require_backend() -> int:
    """Return ggml's RPC backend, loaded from a module where it is not built in; raise EngineError
    where there is neither.
    """
    functions = device_functions()
    handle = functions.reg_by_name(b"RPC")
    if not handle:
        if (module := _module()) is None:
            raise EngineError(
                "this build of llama.cpp has no RPC; gptoss-run doctor prints the command that "
                "reinstalls it with RPC"
            )
        handle = functions.load(os.fsencode(module))
        if not handle:
            raise EngineError(
                f"{printable(str(module))}: llama.cpp cannot load it as a backend; it must be "
                "built from the same release"
            )
    return int(handle)


def has_backend() -> bool:
    """Report whether llama.cpp can use RPC servers."""
    try:
        require_backend()
    except EngineError:
        return False
    return True


def _module() -> Path | None:
    named = os.environ.get(MODULE_VARIABLE)
    if named is not None and "ggml-rpc" in Path(named).name:
        return Path(named).absolute()
    beside = (library_folder() / name for name in _FILE_NAMES)
    return next((path for path in beside if path.is_file()), None)


def connect(devices: Sequence[Device]) -> dict[str, int]:
    """Connect llama.cpp to the servers of these devices, and return ggml's handles by name.

    The devices are not put into ggml's list of devices: they are used by the model that names them.
    Raises EngineError where a server was lost since it was asked.
    """
    if not devices:
        return {}
    LOSS.watch()
    handles: dict[str, int] = {}
    for device in devices:
        LOSS.note(device.server)
        server = _add_server(device.server)
        handles[device.name] = int(device_functions().reg_dev_get(server, device.number))
    return handles


def ggml_names(devices: Sequence[Device]) -> dict[str, str]:
    """Return the names of connected devices by those that ggml gives them in this process."""
    name = device_functions().dev_name
    return {name(handle).decode(): mine for mine, handle in connect(devices).items()}


@cache
def _adding_function() -> Callable[[bytes], int | None]:
    address = device_functions().reg_get_proc_address(
        require_backend(), b"ggml_backend_rpc_add_server"
    )
    function: Callable[[bytes], int | None] = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(
        address
    )
    return function


def _add_server(endpoint: str) -> int:
    """Have ggml connect to a server that has just answered; raises EngineError."""
    add = _adding_function()
    found = run_interruptibly(
        lambda: add(endpoint.encode("ascii")), abort=lambda: None, stuck=LOSS.error_now
    )
    if not found:
        raise EngineError(f"the RPC server {endpoint} has no device")
    return found


class _Loss:
    """Whether a server was lost while llama.cpp was connected to it, in this process."""

    def __init__(self) -> None:
        self._error: RpcServerLostError | None = None
        self._addresses: list[RpcAddress] = []
        self._listeners: list[weakref.WeakMethod[Callable[[RpcServerLostError], None]]] = []
        self._lock = threading.Lock()
        self._callback: object = None

    def error_now(self) -> RpcServerLostError | None:
        """Return what to raise if a server was lost."""
        return self._error

    def check(self) -> None:
        """Raise RpcServerLostError if a server was lost."""
        if self._error is not None:
            raise self._error

    def listen(self, listener: Callable[[RpcServerLostError], None]) -> None:
        """Call a method when a server is lost, on a thread of llama.cpp's; it is not kept alive."""
        with self._lock:
            self._listeners.append(weakref.WeakMethod(listener))
        if self._error is not None:
            listener(self._error)

    def note(self, endpoint: str) -> None:
        """Remember the address of a server that llama.cpp is connected to."""
        host, _, port = endpoint.rpartition(":")
        address = RpcAddress(host, int(port))
        with self._lock:
            if address not in self._addresses:
                self._addresses.append(address)

    def watch(self) -> None:
        """Have ggml call here before it would end the process. Raises RpcServerLostError."""
        self.check()
        with self._lock:
            if self._callback is not None:
                return
            kind = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
            self._callback = callback = kind(self._on_abort)
            function = ggml_library("ggml-base").ggml_set_abort_callback
            function.restype, function.argtypes = ctypes.c_void_p, [kind]
            function(callback)

    def _on_abort(self, message: bytes) -> None:
        """Handle a failed assertion of ggml: return for one that does not concern RPC, and ggml
        ends the process.
        """
        text = printable(message.decode("utf-8", "replace"))
        if "ggml-rpc" not in text:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()
            return
        try:
            self._report()
        finally:
            while True:
                time.sleep(3600)

    def _report(self) -> None:
        with self._lock:
            connected, listeners = list(self._addresses), list(self._listeners)
        lost = _not_listening(connected) or connected
        named = " or ".join(map(str, lost))
        self._error = error = RpcServerLostError(
            f"the connection to the RPC server {named} was lost; start that server again, and then "
            "this program"
        )
        for reference in listeners:
            if (listener := reference()) is not None:
                listener(error)


def _not_listening(addresses: Sequence[RpcAddress]) -> list[RpcAddress]:
    """Return the servers that accept no connection; the system may close their sockets after the
    connections. Each is asked twice at most: a server keeps two connections waiting.
    """
    for seconds in _CLOSING_SECONDS:
        time.sleep(seconds)
        if lost := [it for it in addresses if not is_listening(it)]:
            return lost
    return []


LOSS = _Loss()
