"""Where a conversion reads from: a local folder, huggingface_hub's cache, or the Hub itself."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gptoss import progress_bars
from gptoss.converter.hub import cache
from gptoss.converter.hub.client import Client
from gptoss.converter.hub.repository import (
    CONFIG_FILES,
    TOKENIZER_FILES,
    HubId,
    Stream,
    hub_id,
    resolve_revision,
)
from gptoss.converter.manifest import Origin
from gptoss.errors import GptossError, OptionError
from gptoss.formats.checkpoint import Weights
from gptoss.progress import Say, silent

PUBLISHED = {f"gpt-oss-{size}": f"openai/gpt-oss-{size}" for size in ("20b", "120b")}
"""The repositories of the published models, by their names alone."""


@dataclass(frozen=True, slots=True)
class Input:
    """A checkpoint's files: all in ``folder``, or all but the weights when there is a ``stream``.

    ``place`` is the folder or repository as messages and manifests show it; ``name`` is the model's
    name if it is not the folder's. ``sha256`` has the files compared with published hashes.
    """

    folder: Path
    place: str
    name: str | None = None
    revision: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    stream: Stream | None = None

    @property
    def weights(self) -> Weights | None:
        """Return what finds the source's weights files when they are not in its folder, but
        streamed from the Hub.
        """
        return self.stream.weights if self.stream else None

    def fetch_tokenizer(self) -> None:
        """Download tokenizer and chat template of a source on the Hub to its folder, unless they
        are there.
        """
        if self.stream:
            self.stream.fetch(TOKENIZER_FILES)

    def origin(self) -> Origin:
        """Return the origin of this input: its local folder, or its repository and commit on the
        Hub; complete once everything was read.
        """
        sha256 = self.stream.verified() if self.stream else self.sha256
        return Origin(self.place, self.revision, sha256)


@contextmanager
def open_input(
    source: str | os.PathLike[str],
    *,
    stream: bool = False,
    headers_only: bool = False,
    shown: bool = False,
    say: Say | None = None,
) -> Iterator[Input]:
    """Open the conversion's source: a local folder, or for a string ``owner/name[@revision]`` a
    repository on the Hub, downloaded or streamed.

    A repository is downloaded to the cache, unless ``stream`` reads it from the Hub or only headers
    are needed; ``shown`` draws progress bars. Raises ``HubError`` when the Hub cannot be used,
    ``HashMismatchError`` when the cache does not hold what was published, ``OptionError`` when
    there is nothing to stream.
    """
    say = say or silent
    if not os.fspath(source):
        raise OptionError("SOURCE is empty; expected a checkpoint folder, OWNER/NAME or a GGUF")
    wanted = hub_id(source) if isinstance(source, str) else None
    if wanted is None and "://" in os.fspath(source):
        raise OptionError(f"{source}: expected OWNER/NAME, or a repository's URL on huggingface.co")
    if wanted is not None and Path(source).exists():
        say(f"{source}: using the local folder, not the Hub repository of the same name")
        wanted = None
    if wanted is None:
        if (name := Path(source).name) in PUBLISHED and not Path(source).exists():
            raise OptionError(f"{source}: no such folder; did you mean {PUBLISHED[name]}?")
        if stream:
            raise OptionError(f"{source}: --stream needs a repository on the Hub, OWNER/NAME")
        yield Input(Path(source), os.fspath(source))
    elif stream or headers_only:
        with (
            tempfile.TemporaryDirectory(prefix="gptoss-") as folder,
            _errors_naming(wanted, folder),
        ):
            yield _streamed(wanted, Path(folder), say)
    else:
        yield _cached(wanted, shown, say)


@contextmanager
def _errors_naming(wanted: HubId, folder: str) -> Iterator[None]:
    """Make errors name the source repository on the Hub instead of the temporary folder of its
    small files.
    """
    try:
        yield
    except GptossError as error:
        error.args = (str(error).replace(folder, str(wanted)),)
        raise


def _cached(wanted: HubId, shown: bool, say: Say) -> Input:
    folder = cache.download(wanted, shown=shown, say=say)
    with progress_bars.meter("checking", shown=shown) as progress:
        sha256 = cache.check(folder, progress)
    return Input(folder, wanted.repository, wanted.name, folder.name, sha256)


def _streamed(wanted: HubId, folder: Path, say: Say) -> Input:
    client = Client(say)
    listing = resolve_revision(client, wanted)
    stream = Stream(client, listing, folder)
    stream.fetch(CONFIG_FILES)
    return Input(folder, wanted.repository, wanted.name, listing.commit, stream=stream)
