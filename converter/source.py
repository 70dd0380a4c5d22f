"""Where a conversion reads from: a folder here, huggingface_hub's cache, or the Hub itself."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gptoss import console
from gptoss.converter.hub import cache
from gptoss.converter.hub.client import Client
from gptoss.converter.hub.repository import SETUP, WORDS, HubId, Stream, hub_id, pin
from gptoss.converter.manifest import Origin
from gptoss.errors import GptossError, OptionError
from gptoss.formats.checkpoint import Weights
from gptoss.progress import Say, silent


@dataclass(frozen=True, slots=True)
class Input:
    """A checkpoint's files: ``folder`` holds them, or all but the weights of a ``stream``.

    ``place`` is what to call it, and ``name`` the model when not by the folder's name. ``sha256``
    has what was compared with published hashes.
    """

    folder: Path
    place: str
    name: str | None = None
    revision: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    stream: Stream | None = None

    @property
    def weights(self) -> Weights | None:
        """Where the files of weights are, when not in the folder."""
        return self.stream.weights if self.stream else None

    def bring_words(self) -> None:
        """See to it that tokenizer and template are in the folder."""
        if self.stream:
            self.stream.fetch(WORDS)

    def origin(self) -> Origin:
        """What a manifest says of it, once everything was read."""
        sha256 = self.stream.verified() if self.stream else self.sha256
        return Origin(self.place, self.revision, sha256)


@contextmanager
def open_input(
    source: str | os.PathLike[str] | Input,
    *,
    stream: bool = False,
    headers_only: bool = False,
    shown: bool = False,
    say: Say | None = None,
) -> Iterator[Input]:
    """A folder, or with a string of the form ``owner/name[@revision]`` a repository on the Hub.

    What is an ``Input`` already stays what it is. A repository is downloaded to the cache, unless
    ``stream`` leaves it where it is or ``headers_only`` says that no weights are needed; ``shown``
    draws bars meanwhile. Raises ``HubError`` when the Hub does not do its part, ``HashMismatchError`` when
    what is in the cache is not what was published, ``OptionError`` when there is nothing to stream.
    """
    if isinstance(source, Input):
        yield source
        return
    say = say or silent
    if not os.fspath(source):
        raise OptionError("SOURCE is empty; name a checkpoint's folder, OWNER/NAME or a GGUF")
    if "://" in os.fspath(source):
        raise OptionError(f"{source}: a repository on the Hub is named as OWNER/NAME")
    wanted = hub_id(source) if isinstance(source, str) else None
    if wanted is not None and Path(source).exists():
        say(f"{source}: the folder here is meant, not the repository of that name on the Hub")
        wanted = None
    if wanted is None:
        if stream:
            raise OptionError(f"{source}: --stream is for a repository on the Hub, as owner/name")
        yield Input(Path(source), os.fspath(source))
    elif stream or headers_only:
        with tempfile.TemporaryDirectory(prefix="gptoss-") as folder, _said_of(wanted, folder):
            yield _streamed(wanted, Path(folder), say)
    else:
        yield _cached(wanted, shown, say)


@contextmanager
def _said_of(wanted: HubId, folder: str) -> Iterator[None]:
    """Errors name what was asked for, not a folder that is gone when they are read."""
    try:
        yield
    except GptossError as error:
        error.args = (str(error).replace(folder, str(wanted)),)
        raise


def _cached(wanted: HubId, shown: bool, say: Say) -> Input:
    folder = cache.download(wanted, shown=shown, say=say)
    with console.meter("checking", shown=shown) as progress:
        sha256 = cache.check(folder, progress)
    return Input(folder, wanted.repository, wanted.name, folder.name, sha256)


def _streamed(wanted: HubId, folder: Path, say: Say) -> Input:
    client = Client(say)
    listing = pin(client, wanted)
    stream = Stream(client, listing, folder)
    stream.fetch(SETUP)
    return Input(folder, wanted.repository, wanted.name, listing.commit, stream=stream)
