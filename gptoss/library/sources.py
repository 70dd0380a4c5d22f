"""Where a model comes from: a repository on the Hub, or a checkpoint on this machine.

Each source says what getting the model costs before anything is done (``Cost``) and then gets it
into the model's folder (``get``). The converter is imported when it is used: a chat with a GGUF on
this machine would wait for it too.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gptoss.converter.hub import cache
from gptoss.converter.hub.client import Client
from gptoss.converter.hub.range_requests import HubFile
from gptoss.converter.hub.repository import Stream
from gptoss.converter.write.staging import Staging, folder_of
from gptoss.errors import GptossError
from gptoss.formats.checkpoint import Checkpoint
from gptoss.formats.gguf import GgufFile
from gptoss.library import download, hub
from gptoss.library.names import HubModel
from gptoss.library.store import RECORD, Record, write_record
from gptoss.progress import Progress, Say
from gptoss.runtime.models.preflight import check_computable
from gptoss.runtime.models.sizes import ModelSizes

if TYPE_CHECKING:
    from gptoss.converter.source import Input

SPARE = 2**28
"""Bytes that stay free on the disk: 256 MiB."""


@dataclass(frozen=True, slots=True)
class Steps:
    """How a caller follows the steps: each progress in bytes, and sentences."""

    download: Progress
    convert: Progress
    verify: Progress
    say: Say


@dataclass(frozen=True, slots=True)
class Cost:
    """What getting a model takes, in bytes: downloaded, written for good, and written meanwhile.

    ``twice`` is whether the weights are downloaded a second time, to verify, since the disk has no
    room to keep them. ``check`` says how the result is checked.
    """

    origin: str
    download: int
    written: int
    temporary: int
    check: str
    twice: bool = False

    @property
    def disk(self) -> int:
        """Return how many bytes the disk must have room for."""
        return self.written + self.temporary + SPARE


class Source(Protocol):
    """A place that has a model."""

    def headers(self) -> AbstractContextManager[Path]:
        """Return a GGUF whose weights may be missing, or the folder of a checkpoint."""
        ...

    def vocabulary(self) -> AbstractContextManager[Path]:
        """Return a GGUF with the model's vocabulary, whose weights may be missing."""
        ...

    def cost(self, folder: Path, free: int) -> Cost:
        """Return what getting the model into ``folder`` takes, with ``free`` bytes on its disk."""
        ...

    def get(self, folder: Path, cost: Cost, steps: Steps) -> Record:
        """Get the model into ``folder``, and write its record. Raises GptossError."""
        ...


@dataclass(frozen=True, slots=True)
class HubCheckpoint:
    """A checkpoint on the Hub: downloaded or streamed, converted, compared with its source."""

    offer: hub.Offer
    client: Client

    def headers(self) -> AbstractContextManager[Path]:
        return hub.headers(self.offer, self.client)

    def vocabulary(self) -> AbstractContextManager[Path]:
        return hub.headers(self.offer, self.client, vocabulary=True)

    def cost(self, folder: Path, free: int) -> Cost:
        with self.headers() as stand_in:
            written = stand_in.stat().st_size
        kept = _downloaded(self._folder(folder)) or _downloaded(folder_of(self._folder(folder)))
        left = self.offer.nbytes - kept
        cost = Cost(
            str(self.offer.listing),
            left,
            written,
            left,
            "every tensor is compared with the checkpoint before the model is used",
        )
        if cost.disk <= free or kept:
            return cost
        return replace(cost, temporary=0, twice=True, download=2 * self.offer.nbytes)

    def get(self, folder: Path, cost: Cost, steps: Steps) -> Record:
        from gptoss.converter.source import Input, open_input

        commit = self.offer.listing.commit
        if cost.twice:
            place = f"{self.offer.listing.repository}@{commit}"
            with open_input(place, stream=True, say=steps.say) as given:
                return _convert(given, folder, steps)
        kept = self._folder(folder)
        _remove_other_commits(folder, kept)
        if not kept.is_dir():
            self._download(kept, steps)
        place = self.offer.listing.repository
        sha256 = {file.name: file.sha256 or "" for file in self.offer.weights}
        given = Input(kept, place, place.rpartition("/")[2], commit, sha256)
        record = _convert(given, folder, steps)
        shutil.rmtree(kept, ignore_errors=True)
        return record

    def _folder(self, folder: Path) -> Path:
        return folder / f"checkpoint-{self.offer.listing.commit[:12]}"

    def _download(self, out: Path, steps: Steps) -> None:
        small = [name for name in self.offer.small if name in self.offer.listing.files]
        weights = self.offer.weights
        sizes = {file.name: file.size for file in weights}
        with Staging(out, sizes, small, download.fingerprint(weights)) as staging:
            Stream(self.client, self.offer.listing, staging.folder).fetch(self.offer.small)
            download.download(weights, self.client, staging, steps.download)
            staging.publish_folder([*sizes, *small])


@dataclass(frozen=True, slots=True)
class HubGguf:
    """A finished GGUF on the Hub: downloaded, compared with its SHA-256, checked for llama.cpp."""

    offer: hub.Offer
    client: Client

    @contextmanager
    def headers(self) -> Iterator[Path]:
        with hub.headers(self.offer, self.client) as path:
            try:
                check_computable(GgufFile.open(path))  # before gigabytes are downloaded
            except GptossError as error:
                error.args = (str(error).replace(str(path), str(self.offer.wanted)),)
                raise
            yield path

    def vocabulary(self) -> AbstractContextManager[Path]:
        return self.headers()

    def cost(self, folder: Path, free: int) -> Cost:  # noqa: ARG002 as in Source
        first = folder / hub.basename(self.offer.weights[0])
        left = self.offer.nbytes - _downloaded(folder_of(first))
        download = 0 if cached_files(self.offer) else left
        origin = str(self.offer.listing) if download else "huggingface_hub's cache"
        check = "the file's SHA-256 is compared with the published one"
        return Cost(origin, download, left, 0, check)

    def get(self, folder: Path, cost: Cost, steps: Steps) -> Record:  # noqa: ARG002 as in Source
        weights = self.offer.weights
        sizes = {hub.basename(file): file.size for file in weights}
        out = folder / next(iter(sizes))
        with Staging(out, sizes, (RECORD,), download.fingerprint(weights)) as staging:
            if cached := cached_files(self.offer):
                _take(cached, weights, staging, steps.download)
            else:
                download.download(weights, self.client, staging, steps.download)
            check_computable(GgufFile.open(staging.path(out.name)))
            record = Record(
                self.offer.listing.repository,
                self.offer.listing.commit,
                sizes,
                "SHA-256 as published",
                {hub.basename(file): file.sha256 or "" for file in weights},
            )
            write_record(staging.folder, record)
            staging.publish(list(sizes), folder / RECORD)
        return record


@dataclass(frozen=True, slots=True)
class LocalCheckpoint:
    """A checkpoint on this machine: a folder, or huggingface_hub's cache (then with its id)."""

    path: Path
    repository: str | None = None

    def headers(self) -> AbstractContextManager[Path]:
        return nullcontext(self.path)

    @contextmanager
    def vocabulary(self) -> Iterator[Path]:
        with hub.checkpoint_header(self.path, vocabulary=True) as made:
            yield made.rename(made.with_name(self.path.resolve().name))

    def cost(self, folder: Path, free: int) -> Cost:  # noqa: ARG002 as in Source
        sizes = ModelSizes.of(self.path)
        from gptoss.converter.estimate import KEYS_BYTES, TOKEN_BYTES

        written = sizes.file + KEYS_BYTES + TOKEN_BYTES * sizes.hparams.vocab_size
        check = "every tensor is compared with the checkpoint before the model is used"
        return Cost(str(self.path), 0, written, 0, check)

    def get(self, folder: Path, cost: Cost, steps: Steps) -> Record:  # noqa: ARG002 as in Source
        from gptoss.converter.source import Input

        if self.repository is None:
            given = Input(self.path, str(self.path), self.path.name)
        else:
            name = self.repository.rpartition("/")[2]
            sha256 = cache.check(self.path, steps.download)
            given = Input(self.path, self.repository, name, self.path.name, sha256)
        return _convert(given, folder, steps, self.stamp)

    @property
    def stamp(self) -> str:
        """Return a digest of the checkpoint's files, by name, size and time of modification."""
        lines = "".join(
            f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}\n"
            for path in sorted(self.path.iterdir())
            if path.is_file()
        )
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def hub_source(wanted: HubModel, say: Say) -> Source:
    """Look a model up: in huggingface_hub's cache, else on the Hub. Raises HubError."""
    cached = cached_checkpoint(wanted)
    if cached is not None:
        return LocalCheckpoint(cached, wanted.repository)
    client = Client(say)
    offer = hub.look_up(wanted, client)
    return (HubCheckpoint if offer.kind is hub.Kind.CHECKPOINT else HubGguf)(offer, client)


def cached_checkpoint(wanted: HubModel) -> Path | None:
    """Return the folder of a complete checkpoint in huggingface_hub's cache; None otherwise."""
    from huggingface_hub import constants

    if wanted.file is not None:
        return None
    entry = f"models--{wanted.repository.replace('/', '--')}"
    folder = Path(constants.HF_HUB_CACHE) / entry
    try:
        commit = (folder / "refs" / wanted.revision).read_text("utf-8").strip()
    except (OSError, ValueError):
        commit = wanted.revision
    if not commit.isalnum():
        return None
    snapshot = folder / "snapshots" / commit
    return None if checkpoint_problem(snapshot) else snapshot


def cached_files(offer: hub.Offer) -> list[Path]:
    """Return the offered files in huggingface_hub's cache, where it names them by their SHA-256;
    none unless all are there.
    """
    from huggingface_hub import constants

    entry = f"models--{offer.listing.repository.replace('/', '--')}"
    blobs = Path(constants.HF_HUB_CACHE) / entry / "blobs"
    paths = [blobs / (file.sha256 or "none") for file in offer.weights]
    try:
        sizes = [path.stat().st_size for path in paths]
    except OSError:
        return []
    return paths if sizes == [file.size for file in offer.weights] else []


def _take(
    cached: Sequence[Path], files: Sequence[HubFile], staging: Staging, progress: Progress
) -> None:
    """Take files from huggingface_hub's cache into a staging folder, and check their hashes.

    On the same disk they are linked, which takes no room. Raises HashMismatchError.
    """
    done, total = 0, sum(file.size for file in files)

    def advance(n: int) -> None:
        nonlocal done
        done += n
        progress(done, total)

    for path, file in zip(cached, files, strict=True):
        target = staging.path(hub.basename(file))
        target.unlink()
        try:
            target.hardlink_to(path)
        except OSError:
            shutil.copyfile(path, target)
        download.check_sha256(target, file.sha256 or "", advance)


def checkpoint_problem(folder: Path) -> str | None:
    """Return why a folder holds no whole gpt-oss checkpoint with tokenizer, as its headers show;
    None where it does.
    """
    try:
        found = Checkpoint.open(folder)
        found.check_tensors()
    except GptossError as error:
        return str(error)
    except OSError as error:
        return f"{folder}: {error.strerror}"
    if (found.tokenizer / "tokenizer.json").is_file():
        return None
    return f"{folder}: tokenizer.json is missing"


def _convert(given: Input, folder: Path, steps: Steps, stamp: str | None = None) -> Record:
    """Convert an opened checkpoint to a GGUF in the model's folder, verify it, and record it."""
    from gptoss.converter.convert import Watch, convert_input
    from gptoss.converter.options import ConvertOptions

    out = folder / f"{given.name or folder.name}.gguf"
    watch = Watch(progress=steps.convert, verify_progress=steps.verify, say=steps.say)
    done = convert_input(
        given, out, ConvertOptions(), split_max_size=None, verify=True, watch=watch
    )
    sizes = {path.name: path.stat().st_size for path in done.files}
    sha256: Mapping[str, str] = {path.name: download.sha256_of(path) for path in done.files}
    record = Record(
        done.source, done.revision, sizes, "proven equal to its source", dict(sha256), stamp
    )
    write_record(folder, record)
    return record


def _remove_other_commits(folder: Path, kept: Path) -> None:
    """Remove what was downloaded of a checkpoint's other commits; it will not be used."""
    for path in (*folder.glob("checkpoint-*"), *folder.glob(".checkpoint-*.part")):
        if path not in (kept, folder_of(kept)):
            shutil.rmtree(path, ignore_errors=True)


def _downloaded(folder: Path) -> int:
    """Return how many bytes of weights a folder has on disk; 0 where it is not there."""
    if not folder.is_dir():
        return 0
    files = (path.stat() for path in folder.iterdir() if path.is_file())
    return sum(min(it.st_size, getattr(it, "st_blocks", 0) * 512) for it in files)
