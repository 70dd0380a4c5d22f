"""Finds the model that a command names, and gets it where it is not there yet."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from gptoss import console, progress_bars
from gptoss.errors import (
    CheckpointError,
    MissingPackageError,
    OptionError,
    OutputError,
    require_packages,
)
from gptoss.library.names import ALIASES, ANY_NAME, HubModel, did_you_mean, hub_model
from gptoss.library.store import ModelFolder, Stored

if TYPE_CHECKING:
    # With the converter, which a chat with a model that is there starts without.
    from gptoss.library.sources import Cost, Source, Steps

    # Without psutil it cannot be imported, and nothing is planned.
    from gptoss.runtime.models.memory_plan import MemoryPlan


LISTED = 5
"""Models that a message lists."""

NEEDED_TO_RUN = ("llama_cpp", "llguidance", "psutil", "tiktoken")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model that is to be got: its name in the folder, and its source."""

    name: str
    source: Source


class LibraryFinder:
    """Finds models by name in the user's folder, on the Hub and on the disk."""

    def __init__(self, folder: ModelFolder) -> None:
        self._folder = folder

    def find(self, name: str, *, yes: bool) -> Path:
        """Return the GGUF of the model that a command names; ask, and get it, where it is not
        there.

        Raises GptossError, also where the person declines, and KeyboardInterrupt.
        """
        require_packages("run", *NEEDED_TO_RUN)  # before anything is downloaded
        found = self._on_disk(name)
        if isinstance(found, Path):
            return found
        stored = found if isinstance(found, Stored) else self.pull(found, yes=yes)
        stored.touch()
        return stored.gguf

    def headers(self, name: str) -> AbstractContextManager[Path]:
        """Return a GGUF or the folder of a checkpoint to plan the memory of the named model with.

        Raises GptossError.
        """
        found = self._on_disk(name, headers_only=True)
        if isinstance(found, Path):
            return nullcontext(found)
        return nullcontext(found.gguf) if isinstance(found, Stored) else found.source.headers()

    def vocabulary(self, name: str) -> AbstractContextManager[Path]:
        """Return a GGUF with the vocabulary of the named model. Raises GptossError."""
        found = self._on_disk(name)
        if isinstance(found, Path):
            return nullcontext(found)
        return nullcontext(found.gguf) if isinstance(found, Stored) else found.source.vocabulary()

    def pull(self, wanted: Wanted, *, yes: bool, must_run: bool = True) -> Stored:
        """Get a model: show what that takes, ask, get it. Raises GptossError, KeyboardInterrupt.

        ``must_run`` refuses a model that does not fit into this machine's memory.
        """
        folder = self._folder.folder(wanted.name)
        free = _free(folder)
        cost = wanted.source.cost(folder, free)
        with wanted.source.headers() as headers:
            memory = _memory(headers)
        _print_plan([*plan_lines(wanted.name, cost, memory, self._folder.root, free)])
        if must_run and memory is not None and memory.short:
            raise OptionError(
                f"{wanted.name} does not fit into this machine's memory; nothing was downloaded"
            )
        if cost.disk > free:
            raise OutputError(
                f"{self._folder.root}: {_gb(cost.disk)} are needed and {_gb(free)} are free; free "
                "some space, or name another folder in GPTOSS_MODELS"
            )
        _confirm(wanted.name, yes=yes)
        with steps() as shown:
            record = wanted.source.get(self._folder.prepare(wanted.name), cost, shown)
        return Stored(wanted.name, folder, record)

    def wanted(self, name: str) -> Wanted:
        """Return where the named model can be got from, whether or not it is here already. Raises
        GptossError.
        """
        from gptoss.library.sources import hub_source

        model = hub_model(name)
        if model is None and Path(name).exists():
            raise OptionError(
                f"{name}: is on this machine; gptoss-run chat {name} uses it from here"
            )
        if model is None:
            problem = did_you_mean(name, otherwise="name 20b, 120b, or OWNER/NAME on the Hub")
            raise OptionError(f"{name}: is not on the Hub{problem}")
        return Wanted(key(model), hub_source(model, console.say))

    def stored(self, name: str) -> Stored | None:
        """Return the complete model of this name in the folder; None where there is none."""
        model = hub_model(name)
        try:
            return self._folder.get(key(model) if model else name)
        except OptionError:
            return None

    def _on_disk(self, name: str, *, headers_only: bool = False) -> Path | Stored | Wanted:
        """Return the file or model that a name means; where it must be got first, from where."""
        path = Path(name)
        if path.exists() and name in ALIASES:
            console.say(f"{name}: using what has this name here, not {ALIASES[name]}")
        if path.is_dir():
            return path if headers_only else self._in_folder(path)
        if path.exists():
            return path
        if stored := self.stored(name):
            return stored
        if hub_model(name) is None:
            known = list(self._folder.all())
            named = [it for it in known if it.name.rpartition("/")[2] == name]
            if len(named) == 1:
                return named[0]
            problem = did_you_mean(name, [it.name for it in known], otherwise=_what_is_here(known))
            raise OptionError(f"{name}: no such file, folder or model{problem}")
        return self.wanted(name)

    def _in_folder(self, path: Path) -> Path | Stored | Wanted:
        """Return the GGUF in a folder, or the checkpoint there to be converted."""
        from gptoss.library.sources import LocalCheckpoint, checkpoint_problem

        if problem := checkpoint_problem(path):
            ggufs = [it for it in sorted(path.glob("*.gguf")) if _is_first_part(it)]
            if len(ggufs) == 1:
                return ggufs[0]
            if ggufs:
                names = ", ".join(it.name for it in ggufs[:8])
                raise OptionError(f"{path}: holds several models; name one file: {names}")
            if (path / "config.json").exists():
                raise CheckpointError(problem)
            raise OptionError(
                f"{path}: is a folder without a model; expected a GGUF, or a checkpoint's "
                "config.json and .safetensors files"
            )
        source = LocalCheckpoint(path)
        digest = sha256(str(path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:8]
        name = f"local/{quote(path.resolve().name.lstrip('.-') or 'model', safe='')}-{digest}"
        stored = self._folder.get(name)
        if stored is not None and stored.record.stamp == source.stamp:
            return stored
        return Wanted(name, source)


def key(model: HubModel) -> str:
    """Return the name under which a model of the Hub is kept: ``owner/name``, with revision and
    file where they were named.
    """
    revision = "" if model.revision == "main" else f"@{quote(model.revision, safe='')}"
    file = f"+{quote(model.file, safe='')}" if model.file else ""
    return f"{model.repository}{revision}{file}"


def plan_lines(
    name: str, cost: Cost, memory: MemoryPlan | None, root: Path, free: int
) -> Iterator[str]:
    """Return the lines that tell a person what getting a model takes."""
    yield name
    if cost.download:
        twice = " (the weights twice: the disk has no room to keep them)" if cost.twice else ""
        yield f"  download   {_gb(cost.download)} of {cost.origin}{twice}"
    else:
        yield f"  source     {cost.origin}"
    most = f", {_gb(cost.disk)} meanwhile" if cost.temporary else ""
    yield f"  disk       {_gb(cost.written)}{most}; {_gb(free)} are free"
    yield f"  folder     {root}"
    if memory is not None:
        yield f"  memory     {memory}"
    yield f"  check      {cost.check}"


def _print_plan(lines: Sequence[str]) -> None:
    """Print the plan on stderr; wrapped lines go on below the texts beside the titles."""
    for line in lines:
        console.say(line, indent=11)


@contextmanager
def steps(*, shown: bool = True) -> Iterator[Steps]:
    """Draw the progress bars of downloading, converting and verifying."""
    from gptoss.library.sources import Steps

    titles = ("downloading", "converting", "verifying")
    with progress_bars.meters(*titles, shown=shown) as meters:
        yield Steps(meters[0], meters[1], meters[2], console.say)


def _confirm(name: str, *, yes: bool) -> None:
    """Ask whether to go on; raises OptionError for no, and without a terminal."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise OptionError(f"{name} is not on this machine; add --yes to get it without being asked")
    if not console.confirm("Continue?", default=True):
        raise OptionError(f"{name} is not on this machine, and nothing was done")


def _memory(headers: Path) -> MemoryPlan | None:
    """Plan the memory of a model; None where the packages that run it are not installed."""
    try:
        require_packages("run", "llama_cpp", "psutil")
    except MissingPackageError:
        return None
    from gptoss.runtime.models.plan import memory_plan

    return memory_plan(headers)


def _free(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which need not exist yet."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError as reason:
        raise OutputError(f"{folder}: {reason.strerror}") from reason


def _what_is_here(known: Sequence[Stored]) -> str:
    """Return what a command can be given, first the last used models on this machine."""
    if not known:
        return ANY_NAME
    used = sorted(known, key=lambda it: it.last_used.timestamp() if it.last_used else 0.0)
    names = ", ".join(it.name for it in used[: -LISTED - 1 : -1])
    return f"on this machine: {names}; or {ANY_NAME}"


def _is_first_part(path: Path) -> bool:
    return "-of-" not in path.name or "-00001-of-" in path.name


def _gb(n: int) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 10**8 else f"{n / 1e6:.1f} MB"
