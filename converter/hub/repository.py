"""Checkpoints on the Hub: which one is meant, at which commit, and what it holds.

A revision is pinned to a commit first, and everything is asked for by that commit. A stream keeps
no weights: only config, index and tokenizer come as files, compared with the hashes of the listing.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin

from gptoss.converter.hub.client import (
    REDIRECTS,
    Client,
    HubError,
    Patience,
    TransientError,
    origin,
)
from gptoss.converter.hub.range_requests import HubFile, Ranges
from gptoss.converter.hub.remote_file import HashMismatchError, ReadAhead, RemoteFile
from gptoss.converter.write.tasks import Job
from gptoss.formats.byte_source import AnyPath, parse_json
from gptoss.formats.checkpoint import CONFIG, CONFIG_LIMIT, INDEX, INDEX_LIMIT
from gptoss.formats.tokenizer_json import (
    SETTINGS,
    SETTINGS_LIMIT,
    TEMPLATE,
    TOKENIZER,
    TOKENIZER_LIMIT,
)

LISTING_LIMIT = 2**26
MAX_SIZE = 2**48
"""Bytes of a file that a listing is believed to speak of."""
SETUP = {CONFIG: CONFIG_LIMIT, INDEX: INDEX_LIMIT}
WORDS = {TOKENIZER: TOKENIZER_LIMIT, SETTINGS: SETTINGS_LIMIT, TEMPLATE: SETTINGS_LIMIT}
"""Files that come whole, with the bytes each may have."""

_ID = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[^\s@?#]+))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class HubId:
    """A repository and the revision of it that is meant: branch, tag or commit."""

    repository: str
    revision: str = "main"

    @property
    def name(self) -> str:
        """The repository's name without its owner's."""
        return self.repository.partition("/")[2]

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}"


def hub_id(source: str) -> HubId | None:
    """What ``owner/name`` or ``owner/name@revision`` means; None when it has another form."""
    found = _ID.fullmatch(source)
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


def pin(client: Client, wanted: HubId) -> Listing:
    """The commit that a revision is now, and its files. Raises ``HubError``."""
    path = f"/api/models/{wanted.repository}/revision/{quote(wanted.revision, safe='')}"
    raw = _answer(client, f"{client.endpoint}{path}?blobs=true", wanted)
    where = f"{wanted}: the Hub's listing"
    found = parse_json(raw, where, HubError)
    commit, entries = found.get("sha"), found.get("siblings")
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise HubError(f"{where} names no commit")
    if _COMMIT.fullmatch(wanted.revision) and commit != wanted.revision:
        raise HubError(f"{where} is that of another commit, {commit}")
    if not isinstance(entries, list):
        raise HubError(f"{where} names no files")
    files = [_listed(where, wanted.repository, commit, entry) for entry in entries]
    return Listing(wanted.repository, commit, {file.name: file for file in files})


def _listed(where: str, repository: str, commit: str, entry: Any) -> HubFile:
    """One file of a listing, checked."""
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
        raise HubError(f"{where} holds an entry without name, size or hash: {repr(entry)[:80]}")
    return HubFile(repository, commit, name, size, blob, sha256)


def _answer(client: Client, url: str, wanted: HubId) -> bytes:
    """The whole body of an answer of the Hub's API."""
    patience = Patience(client, str(wanted))
    while True:
        try:
            with client.get(url) as answer:
                if answer.status_code in REDIRECTS:  # the repository was renamed
                    to = urljoin(url, answer.headers.get("Location", ""))
                    if origin(to) != origin(url):
                        raise HubError(f"{wanted}: the Hub sends us to {to[:80]}")
                    url = to
                    raise TransientError("one redirect leads to another", after=0)
                if answer.status_code != 200:
                    raise client.refusal(answer, wanted.repository, str(wanted))
                body = bytearray()
                for piece in answer.iter_raw():
                    body += piece
                    if len(body) > LISTING_LIMIT:
                        raise HubError(f"{wanted}: the listing has over {LISTING_LIMIT} bytes")
                return bytes(body)
        except TransientError as error:
            patience.wait(error)


class Stream:
    """A checkpoint on the Hub whose weights are read by ranges; ``folder`` gets the small files."""

    def __init__(self, client: Client, listing: Listing, folder: Path) -> None:
        self._client = client
        self.listing = listing
        self.folder = folder
        self._weights: dict[str, RemoteFile] = {}

    def fetch(self, limits: Mapping[str, int]) -> None:
        """Put those of the files named that the repository has into the folder, each compared
        with its hash. Raises ``HubError``."""
        for name, limit in limits.items():
            file = self.listing.files.get(name)
            if file is None or (self.folder / name).exists():
                continue
            if file.size > limit:
                raise HubError(f"{file}: {file.size} bytes; such a file holds at most {limit}")
            data = bytearray(file.size)
            Ranges(self._client, file).read_into(0, memoryview(data))
            _check_hash(file, data)
            (self.folder / name).write_bytes(data)

    def weights(self, name: str) -> AnyPath:
        """The place of a file of weights; of one that is missing, a path where nothing is."""
        if name not in self.listing.files:
            return Path(str(self.listing)) / name
        if name not in self._weights:
            self._weights[name] = RemoteFile(Ranges(self._client, self.listing.files[name]))
        return self._weights[name]

    def reading(self, work: Sequence[Job], notes: Path) -> ReadAhead:
        """What brings the sources of ``work``, to be done in this order by one at a time.

        Files that pass whole and right are noted; of those an earlier run noted, the ones that
        nothing is read of any more count as verified here too.
        """
        reads = [
            (info.path, span)
            for job in work
            for info, span in job.spans()
            if isinstance(info.path, RemoteFile)
        ]
        again = {file for file, _ in reads}
        earlier = notes.read_text("utf-8").splitlines() if notes.exists() else []
        for file in self._weights.values():
            file.digest.note_in(notes)
            if file not in again and file.digest.line in earlier:
                file.digest.verified = True
        return ReadAhead(reads, self.stop)

    @contextmanager
    def again(self) -> Iterator[threading.Event]:
        """Lets weights be read once more after ``reading``, in any order; ends with the word
        that is yielded."""
        self.stop.clear()
        try:
            yield self.stop
        finally:
            self.stop.set()

    @property
    def stop(self) -> threading.Event:
        """The word to all who wait for the Hub."""
        return self._client.stop

    def verified(self) -> dict[str, str]:
        """The sha256 of each file of weights that passed whole and was what the Hub publishes."""
        return {
            name: file.file.sha256
            for name, file in self._weights.items()
            if file.digest.verified and file.file.sha256 is not None
        }

    def unverified(self) -> list[str]:
        """The names of the others."""
        return [name for name, file in self._weights.items() if not file.digest.verified]


def _check_hash(file: HubFile, data: bytearray) -> None:
    """Whether a small file's content is what the listing says: by git-lfs's hash, or by git's."""
    if file.sha256 is not None:
        found, expected = hashlib.sha256(data).hexdigest(), file.sha256
    else:
        git = hashlib.sha1(b"blob %d\0" % len(data), usedforsecurity=False)
        git.update(data)
        found, expected = git.hexdigest(), file.blob
    if found != expected:
        raise HashMismatchError(f"{file}: what came has the hash {found}, and {expected} is listed")
