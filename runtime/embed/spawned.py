"""``gptoss.spawn``: the server as a child process, and the object that an application holds."""

from __future__ import annotations

import os
import secrets
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from gptoss.errors import GptossError, MissingPackageError, require_packages
from gptoss.runtime.closing import Closing
from gptoss.runtime.embed.chat_stream import ChatStream
from gptoss.runtime.embed.supervisor import ProcessState, Supervisor
from gptoss.runtime.embed.wire import ChildOptions
from gptoss.runtime.engine.settings import EngineOptions, checked_loras

if TYPE_CHECKING:
    import anthropic
    import openai


def spawn(
    path: str | os.PathLike[str],
    *,
    parallel: int = 1,
    disk_cache: bool = True,
    force: bool = False,
    restart: bool = True,
    wait: bool = True,
    timeout: float | None = None,
    progress: Callable[[float], None] | None = None,
    **options: Unpack[EngineOptions],
) -> SpawnedServer:
    """Start a server for a gpt-oss GGUF as a child process: on a free port of 127.0.0.1, with a
    key of its own that only this process knows.

    The child ends with this process, however that ends, and is started again after a crash unless
    ``restart`` is false. A crash in llama.cpp, or the loss of an RPC server, does not touch this
    process. ``parallel``, ``disk_cache``, ``force`` and ``options`` are those of ``gptoss.open``.

    With ``wait`` this returns when the model is loaded, within ``timeout`` seconds if given, and
    calls ``progress`` on this thread with the share that is done, 0 to 1; an exception that it
    raises ends the child. Without, look at ``state`` and ``progress`` of what is returned.

    Raises GgufError, UnsupportedModelError, OptionError, EngineError, TimeoutError; TypeError for
    an option of another type.
    """
    require_packages("run", "llama_cpp", "llguidance", "tiktoken")
    require_packages("serve", "starlette", "uvicorn")
    unknown = sorted(options.keys() - EngineOptions.__annotations__.keys())
    if unknown:
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}")
    checked_loras(options.get("loras") or ())
    asked = ChildOptions(
        path=str(Path(path).absolute()),
        key=secrets.token_urlsafe(32),
        parallel=parallel,
        disk_cache=disk_cache,
        force=force,
        engine=options,
    )
    asked.line()  # raises here, not on the supervisor's thread
    server = SpawnedServer(Supervisor(asked, restart=restart), asked.key)
    if wait:
        try:
            server.wait_ready(timeout, progress)
        except BaseException:
            server.close()
            raise
    return server


class SpawnedServer(Closing):
    """A running child process that serves a model. Every method may be called from any thread.

    A context manager: leaving it ends the child, and with it gives all its memory back. So does
    dropping the object.
    """

    def __init__(self, supervisor: Supervisor, key: str) -> None:
        self.api_key = key
        self._supervisor = supervisor
        self._finalizer = weakref.finalize(self, supervisor.close)

    def __repr__(self) -> str:
        return f"<SpawnedServer {self.state.value} at {self.url}>"  # without the key

    @property
    def url(self) -> str:
        """Return the server's address, as Anthropic's client wants it; another one after a restart
        only if the port was taken meanwhile.
        """
        return f"http://127.0.0.1:{self._supervisor.port}"

    @property
    def base_url(self) -> str:
        """Return the address of OpenAI's API: ``url`` and ``/v1``."""
        return f"{self.url}/v1"

    @property
    def model(self) -> str:
        """Return the name by which requests ask for the model."""
        return self._supervisor.model

    @property
    def n_ctx(self) -> int:
        """Return how many tokens a conversation and its reply may have together."""
        return self._supervisor.n_ctx

    @property
    def pid(self) -> int | None:
        """Return the child's process id; None where it does not run."""
        return self._supervisor.pid

    @property
    def state(self) -> ProcessState:
        """Return whether the model is loading (also after a crash) or ready, or why neither."""
        return self._supervisor.state

    @property
    def progress(self) -> float:
        """Return the share of the model that is loaded, 0 to 1."""
        return self._supervisor.progress

    @property
    def error(self) -> GptossError | None:
        """Return why the state is FAILED."""
        return self._supervisor.error

    @property
    def restarts(self) -> int:
        """Return how many times the child was started again after a crash."""
        return self._supervisor.restarts

    def wait_ready(
        self, timeout: float | None = None, progress: Callable[[float], None] | None = None
    ) -> None:
        """Wait until the model is loaded, after a crash as well; see ``spawn`` for the rest."""
        self._supervisor.wait_ready(timeout, progress or (lambda _: None))

    def stream(self, messages: Sequence[Mapping[str, Any]], **fields: Any) -> ChatStream:
        """Ask for a reply to ``messages``, as OpenAI's chat completions have them, and stream it;
        ``fields`` are further ones of the request. Raises EngineError, also while a child that
        crashed is started again (see ``wait_ready``).
        """
        self._supervisor.require_running()
        body = {"model": self.model, "messages": list(messages), **fields}
        return ChatStream(self._supervisor.port, self.api_key, body)

    def openai(self, **options: Any) -> openai.OpenAI:
        """Return a client of the package ``openai`` for this server."""
        try:
            import openai
        except ImportError as error:
            raise _missing("openai") from error
        return openai.OpenAI(base_url=self.base_url, api_key=self.api_key, **options)

    def anthropic(self, **options: Any) -> anthropic.Anthropic:
        """Return a client of the package ``anthropic`` for this server."""
        try:
            import anthropic
        except ImportError as error:
            raise _missing("anthropic") from error
        return anthropic.Anthropic(base_url=self.url, api_key=self.api_key, **options)

    def close(self) -> None:
        """End the child and wait until it has ended. May be called twice."""
        self._finalizer()


def _missing(package: str) -> MissingPackageError:
    return MissingPackageError(
        f"Python package missing: {package}; install it: pip install {package}"
    )
