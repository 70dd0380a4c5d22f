"""The models that a server serves: one is loaded at a time, in a thread, when it is asked for.

Requests take turns in the order they came: one for another model waits until the loaded one is
idle, and those after it wait too, so none waits without an end. A model that nobody has used for
``sleep_after`` seconds is unloaded; the next request loads it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from gptoss.errors import GptossError, OptionError
from gptoss.runtime.chat.model import Model
from gptoss.runtime.engine.base import RemoteError
from gptoss.runtime.server.errors import not_found, retry_later, stopping
from gptoss.text import printable

_log = logging.getLogger(__name__)

Load = Callable[[Callable[[float], None]], Model]
"""Loads a model, in a thread; is given a function to call with the share that is done, 0 to 1."""


class RunningReply(Protocol):
    """What may be done to a reply from outside; see ``reply.Reply``."""

    @property
    def id(self) -> str:
        """Return the reply's id."""
        ...

    def cancel(self) -> None:
        """End the reply as soon as possible."""
        ...

    def answer_now(self) -> bool:
        """End the model's reasoning."""
        ...


@dataclass(eq=False, slots=True)
class ServedModel:
    """A model as clients name it: by its ``id`` or one of ``aliases``.

    ``n_ctx`` is the context in tokens, 0 until it is known; ``created`` a Unix time. A model that
    another server runs is ``owned_by`` "remote". ``plan`` tells a person what the model takes of
    this machine's memory; empty where another server runs it.
    """

    id: str
    load: Load
    n_ctx: int
    aliases: tuple[str, ...] = ()
    created: int = 0
    owned_by: str = "local"
    plan: str = ""


class HostState(StrEnum):
    """What ``/health`` reports."""

    READY = "ready"
    LOADING = "loading"
    SLEEPING = "sleeping"
    """Unloaded; the next request loads it."""
    FAILED = "failed"
    CLOSED = "closed"


@dataclass(slots=True)
class Lease:
    """The use of a loaded model, until ``release``, which is called once, in the event loop."""

    model: Model
    release: Callable[[], None] = field(repr=False)


def require_own_names(served: Sequence[ServedModel]) -> None:
    """Raise OptionError for two models of one name: requests could not tell them apart."""
    ids = [model.id for model in served]
    for name in ids:
        if ids.count(name) > 1:
            raise OptionError(f"two models are called {printable(name)}; rename one of the files")


def _names(served: Sequence[ServedModel]) -> dict[str, ServedModel]:
    """Map names to models; the first model that has a name keeps it, its own before any alias."""
    names: dict[str, ServedModel] = {}
    for model in served:
        names.setdefault(model.id, model)
    for model in served:
        for alias in model.aliases:
            names.setdefault(alias, model)
    return names


class ModelHost:
    """Loads, lends and unloads models. All of it belongs to one event loop."""

    def __init__(
        self,
        served: Sequence[ServedModel],
        sleep_after: float | None = None,
        time_limit: float | None = None,
    ) -> None:
        """The first model is the one that ``start`` loads. ``sleep_after`` is in seconds, as is
        ``time_limit``: the longest that a reply may take, waiting included.
        """
        self.time_limit = time_limit
        self.served = tuple(served)
        self.running: dict[str, RunningReply] = {}
        """Replies under way, by id."""
        self.progress = 0.0
        """How much of the model is loaded, 0 to 1."""
        self.error: str | None = None
        """Why the last load failed."""
        self.names = _names(self.served)
        """Every name under which clients may ask for a model, the models' own first."""
        self._sleep_after = sleep_after
        self._turn = asyncio.Lock()
        self._idle = asyncio.Event()
        self._idle.set()
        self._users = 0
        self._current: ServedModel | None = None
        self._model: Model | None = None
        self._loading: asyncio.Task[None] | None = None
        self._unloading: asyncio.Future[None] | None = None
        self._sleep: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def state(self) -> HostState:
        """Return whether a model is loaded, being loaded, or unloaded."""
        if self._closed:
            return HostState.CLOSED
        if self._model is not None:
            return HostState.READY
        if self._loading is not None:
            return HostState.LOADING
        return HostState.FAILED if self.error else HostState.SLEEPING

    @property
    def loaded(self) -> ServedModel | None:
        """Return the model that is loaded or being loaded."""
        return self._current

    def find(self, name: str | None) -> ServedModel:
        """Return the model that clients call ``name``, the first for None; raises ApiError 404."""
        if name is None:
            return self.served[0]
        found = self.names.get(name)
        if found is None:
            known = ", ".join(model.id for model in self.served)
            raise not_found(
                f"the model {printable(name[:80])!r} is not served here; served: {known}",
                "model_not_found",
                "model",
            )
        return found

    async def acquire(self, name: str | None) -> Lease:
        """Wait until the model called ``name`` is loaded, and lend it. Raises ApiError: not known,
        cannot be loaded, or the server is stopping.
        """
        served = self.find(name)
        if self._closed:
            raise stopping("the server is stopping")
        async with self._turn:
            if self._current is not served or self._model is None:
                await self._idle.wait()
                await self._switch(served)
            if self._model is None or self._closed:
                raise stopping("the server is stopping")
            self._users += 1
            self._idle.clear()
            self._stay_awake()
            return Lease(self._model, self._release)

    @asynccontextmanager
    async def lease(self, name: str | None) -> AsyncIterator[Model]:
        """Lend the model for the time of a ``with`` block; see ``acquire``."""
        lease = await self.acquire(name)
        try:
            yield lease.model
        finally:
            lease.release()

    def forget(self, model: Model) -> None:
        """Unload a model that has failed, so that the next request loads it again."""
        if self._model is model:
            self._unload()

    def stop_lending(self) -> None:
        """Refuse new requests from now on; replies under way go on."""
        self._closed = True

    def cancel_all(self) -> None:
        """Cancel every reply under way; its client is given the reason."""
        for reply in list(self.running.values()):
            reply.cancel()

    async def close(self) -> None:
        """End every reply under way, and unload. May be called twice."""
        self.stop_lending()
        self._stay_awake()
        self.cancel_all()
        if self._loading is not None:
            await asyncio.wait([self._loading])
        self._unload()
        if self._unloading is not None:
            await self._unloading

    def _release(self) -> None:
        self._users -= 1
        if self._users == 0:
            self._idle.set()
            if self._sleep_after is not None:
                loop = asyncio.get_running_loop()
                self._sleep = loop.call_later(self._sleep_after, self._fall_asleep)

    def _stay_awake(self) -> None:
        if self._sleep is not None:
            self._sleep.cancel()
            self._sleep = None

    def _fall_asleep(self) -> None:
        if self._users == 0 and self._model is not None:
            _log.info("unloaded after %g idle seconds", self._sleep_after)
            self._unload()

    async def _switch(self, served: ServedModel) -> None:
        """Unload the idle model and load another. A waiting request that is cancelled does not end
        the load.
        """
        if self._loading is not None:
            await asyncio.wait([self._loading])
        if self._current is served and self._model is not None:
            return
        self._loading = asyncio.create_task(self._load(served))
        await asyncio.shield(self._loading)

    async def _load(self, served: ServedModel) -> None:
        self._unload()
        if self._unloading is not None:
            await self._unloading  # its memory is needed
        self._current, self.progress, self.error = served, 0.0, None
        try:
            model = await asyncio.to_thread(served.load, self._note_progress)
        except GptossError as error:
            self.error = str(error)
            _log.error("cannot load %s: %s", served.id, error)
            what = "reached" if isinstance(error, RemoteError) else "loaded"
            raise retry_later(f"the model {served.id} cannot be {what}") from error
        finally:
            self._loading = None
        if self._closed:
            await asyncio.to_thread(model.close)
        else:
            self._model = model
            served.n_ctx = model.engine.n_ctx

    def _unload(self) -> None:
        """Take the model away at once, and free its memory in a thread."""
        model, self._model, self._current = self._model, None, None
        if model is not None:
            self._unloading = asyncio.ensure_future(asyncio.to_thread(model.close))

    def _note_progress(self, share: float) -> None:
        self.progress = share
