"""Repositories on the Hub: parse their names, resolve a revision to a commit, list the files.

A revision is resolved to a commit first, and everything is requested by that commit. A stream
stores no weights, only config, index and tokenizer, once their hashes match the listed ones.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin

from gptoss.converter.hub.client import (
    REDIRECTS,
    Client,
    HubError,
    RetryPolicy,
    TransientError,
    origin,
)
from gptoss.converter.hub.range_requests import HubFile, Ranges
from gptoss.converter.hub.read_ahead import ReadAhead
from gptoss.converter.hub.remote_file import HashMismatchError, RemoteFile
from gptoss.formats.bounded_json import parse_json
from gptoss.formats.byte_source import ByteSource, Span
from gptoss.formats.checkpoint import CONFIG, CONFIG_LIMIT, INDEX, INDEX_LIMIT
from gptoss.formats.tokenizer_json import (
    SETTINGS,
    SETTINGS_LIMIT,
    TEMPLATE,
    TOKENIZER,
    TOKENIZER_LIMIT,
)

LISTING_LIMIT = 2**23
"""The maximum size of a listing in bytes."""
MAX_SIZE = 2**48
"""The maximum size of a listed file in bytes."""
CONFIG_FILES = {CONFIG: CONFIG_LIMIT, INDEX: INDEX_LIMIT}
TOKENIZER_FILES = {TOKENIZER: TOKENIZER_LIMIT, SETTINGS: SETTINGS_LIMIT, TEMPLATE: SETTINGS_LIMIT}
"""Files that are stored whole, each with its greatest size in bytes."""

_ID = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[^\s@?#]+))?", re.ASCII)
_URL = re.compile(
    r"https?://(?:huggingface\.co|hf\.co)/(?P<repository>\w[\w.-]*/\w[\w.-]*)"
    r"(?:/(?:tree|blob|resolve)/(?P<revision>[^\s@?#/]+)(?:/[^\s?#]*)?)?/?(?:[?#]\S*)?",
    re.ASCII,
)
"""The page of a repository, or of a folder or file in it."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class HubId:
    """A repository and one of its revisions: a branch, a tag or a commit."""

    repository: str
    revision: str = "main"

    @property
    def name(self) -> str:
        """Return the repository's name without its owner's."""
        return self.repository.partition("/")[2]

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}"


def hub_id(source: str) -> HubId | None:
    """Parse a repository's id: ``owner/name``, ``owner/name@revision`` or its URL on the Hub; None
    for another form.
    """
    found = _ID.fullmatch(source) or _URL.fullmatch(source)
    if found is None:
        return None
    return HubId(found["repository"], found["revision"] or "main")


# --- a stream ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository holds at one commit, by name."""

    repository: str
    commit: str
    files: Mapping[str, HubFile]

    def __str__(self) -> str:
        return f"{self.repository}@{self.commit[:12]}"


def resolve_revision(client: Client, wanted: HubId) -> Listing:
    """Ask the Hub for the commit that a repository's revision is now, and the list of its files.
    Raises ``HubError``.
    """
    path = f"/api/models/{wanted.repository}/revision/{quote(wanted.revision, safe='')}"
    raw = _get(client, f"{client.endpoint}{path}?blobs=true", wanted)
    where = f"{wanted}: the Hub's listing"
    found = parse_json(raw, where, HubError)
    commit, entries = found.get("sha"), found.get("siblings")
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise HubError(f"{where} has no commit")
    if _COMMIT.fullmatch(wanted.revision) and commit != wanted.revision:
        raise HubError(f"{where} is for a different commit, {commit}")
    if not isinstance(entries, list):
        raise HubError(f"{where} has no list of files")
    files = [_listed(where, wanted.repository, commit, entry) for entry in entries]
    return Listing(wanted.repository, commit, {file.name: file for file in files})


def _listed(where: str, repository: str, commit: str, entry: Any) -> HubFile:
    """Check one entry of a repository's file listing: name, size and hashes."""
    try:
        name, size, blob = entry["rfilename"], entry["size"], entry["blobId"]
        sha256 = entry["lfs"]["sha256"] if entry.get("lfs") else None
        sound = (
            isinstance(name, str)
            and type(size) is int
            and 0 <= size <= MAX_SIZE
            and _COMMIT.fullmatch(blob)
            and (sha256 is None or _SHA256.fullmatch(sha256))
        )
    except (AttributeError, KeyError, TypeError):
        sound = None
    if not sound:
        raise HubError(f"{where} has an entry without name, size or hash: {repr(entry)[:80]}")
    return HubFile(repository, commit, name, size, blob, sha256)


def _get(client: Client, url: str, wanted: HubId) -> bytes:
    """Request a response of the Hub's API on a repository, and return its whole body."""
    retry = RetryPolicy(client, str(wanted))
    while True:
        try:
            with client.get(url) as response:
                if response.status_code in REDIRECTS:  # the repository was renamed
                    to = urljoin(url, response.headers.get("Location", ""))
                    if origin(to) != origin(url):
                        raise HubError(f"{wanted}: the Hub redirects to {to[:80]}")
                    url = to
                    raise TransientError("too many redirects", after=0)
                if response.status_code != 200:
                    raise client.refusal(response, wanted.repository, str(wanted))
                body = bytearray()
                for data in response.iter_raw():
                    body += data
                    retry.received(len(data))
                    if len(body) > LISTING_LIMIT:
                        raise HubError(
                            f"{wanted}: the listing exceeds the limit of {LISTING_LIMIT} bytes"
                        )
                return bytes(body)
        except TransientError as error:
            retry.wait(error)


class Stream:
    """A checkpoint on the Hub whose weights are read by ranges; small files go to ``folder``."""

    def __init__(self, client: Client, listing: Listing, folder: Path) -> None:
        self._client = client
        self.listing = listing
        self.folder = folder
        self._weights: dict[str, RemoteFile] = {}

    def fetch(self, limits: Mapping[str, int]) -> None:
        """Download small files of a repository by name (config, tokenizer) to a folder, and compare
        them with their hashes.

        ``limits`` has the greatest size of each, in bytes. Raises ``HubError``.
        """
        for name, limit in limits.items():
            file = self.listing.files.get(name)
            if file is None or (self.folder / name).exists():
                continue
            if file.size > limit:
                raise HubError(f"{file}: has {file.size} bytes; the limit is {limit}")
            data = bytearray(file.size)
            Ranges(self._client, file).read_into(0, memoryview(data))
            _check_hash(file, data)
            (self.folder / name).write_bytes(data)

    def weights(self, name: str) -> RemoteFile | None:
        """Find a weights file of the streamed repository by its name; None when the repository has
        none.
        """
        if name not in self.listing.files:
            return None
        if name not in self._weights:
            self._weights[name] = RemoteFile(Ranges(self._client, self.listing.files[name]))
        return self._weights[name]

    def reading(self, reads: Iterable[tuple[ByteSource, Span]], notes: Path) -> ReadAhead:
        """Read ahead, from the streamed repository, the spans that one reader will read, in this
        order.

        Files that pass whole with the right hash are noted in ``notes``. Files that an earlier run
        noted, and of which nothing is read any more, count as verified.
        """
        remote = [(file, span) for file, span in reads if isinstance(file, RemoteFile)]
        again = {file for file, _ in remote}
        earlier = notes.read_text("utf-8").splitlines() if notes.exists() else []
        for file in self._weights.values():
            file.digest.note_in(notes)
            if file not in again and file.digest.line in earlier:
                file.digest.verified = True
        return ReadAhead(remote, self.stop)

    @contextmanager
    def again(self) -> Iterator[threading.Event]:
        """Allow a streamed repository's weights to be read once more after ``reading``, in any
        order.

        Yields the event that stops it.
        """
        self.stop.clear()
        try:
            yield self.stop
        finally:
            self.stop.set()

    @property
    def stop(self) -> threading.Event:
        """Return the event that, once set, ends all waiting for the repository's server."""
        return self._client.stop

    def verified(self) -> dict[str, str]:
        """Return the SHA-256 of each of the repository's weights files that was read whole and is
        what the Hub publishes.
        """
        return {
            name: file.file.sha256
            for name, file in self._weights.items()
            if file.digest.verified and file.file.sha256 is not None
        }

    def unverified(self) -> list[str]:
        """List the names of the repository's weights files whose SHA-256 was not verified."""
        return [name for name, file in self._weights.items() if not file.digest.verified]


def _check_hash(file: HubFile, data: bytearray) -> None:
    """Compare a small repository file's content with its listed hash, git-lfs's SHA-256 or git's
    SHA-1.
    """
    if file.sha256 is not None:
        found, expected = hashlib.sha256(data).hexdigest(), file.sha256
    else:
        git = hashlib.sha1(b"blob %d\0" % len(data), usedforsecurity=False)
        git.update(data)
        found, expected = git.hexdigest(), file.blob
    if found != expected:
        raise HashMismatchError(
            f"{file}: the received bytes have the hash {found}, but {expected} is listed"
        )
