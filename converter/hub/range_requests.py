"""HTTP range requests for the bytes of one file on the Hub.

The Hub sends small files itself and redirects requests for git-lfs files to another host, with a
URL that expires. Each response is checked against the listing's commit, size and hash, and against
the requested range, so that a file read in many ranges is never assembled from two versions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from gptoss.converter.hub.client import (
    REDIRECTS,
    Client,
    HubError,
    Response,
    RetryPolicy,
    TransientError,
    origin,
)

MAX_REDIRECTS = 5
EXPIRED = frozenset({400, 401, 403, 404, 410})
"""Statuses with which the other host reports that the URL has expired."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file as a repository's listing has it at one commit.

    ``sha256`` is that of its content when git-lfs keeps it, else None; ``blob`` is git's id.
    """

    repository: str
    commit: str
    name: str
    size: int
    blob: str
    sha256: str | None

    def __str__(self) -> str:
        return f"{self.repository}@{self.commit[:12]}/{self.name}"


class Ranges:
    """Reads byte ranges of a file; shared by threads. ``received`` counts bytes of bodies."""

    def __init__(self, client: Client, file: HubFile) -> None:
        self.file = file
        self.received = 0
        self._client = client
        self._home = f"{client.endpoint}/{file.repository}/resolve/{file.commit}/{quote(file.name)}"
        self._address: str | None = None

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill ``out`` with a Hub file's bytes from ``offset`` on, by HTTP range requests repeated
        until all bytes are there.

        Bytes received before a connection is cut are not requested again. Raises ``HubError`` when
        the server refuses, is inconsistent, or fails too often.
        """
        retry = RetryPolicy(self._client, str(self.file))
        done = 0
        while done < len(out):
            try:
                for data in self._body(offset + done, offset + len(out)):
                    out[done : done + len(data)] = data
                    done += len(data)
                    retry.received(len(data))
                if done < len(out):
                    raise TransientError(f"the connection ended at byte {offset + done}")
            except TransientError as error:
                retry.wait(error)

    def _body(self, begin: int, end: int) -> Iterator[bytes]:
        """Yield the response body of one range request, bytes ``begin`` to ``end``, or fewer when
        the connection is cut.
        """
        url = self._address or self._home
        for _ in range(MAX_REDIRECTS + 1):
            with self._client.get(url, (begin, end)) as response:
                if origin(url) == origin(self._home):
                    self._check_version(response)
                if response.status_code in REDIRECTS:
                    url = self._address = self._redirected(url, response)
                    continue
                self._check_status(url, response, begin, end)
                left = end - begin
                for data in response.iter_raw():
                    if self._client.stop.is_set():
                        raise HubError(f"{self.file}: interrupted")
                    left -= len(data)
                    if left < 0:
                        raise self._inconsistent(f"sends more than the bytes {begin} to {end - 1}")
                    self.received += len(data)
                    yield data
                return
        raise self._inconsistent("has too many redirects")

    def _check_version(self, response: Response) -> None:
        """Check that the response to a range request is of the file version (ETag, commit, size)
        that the Hub listed.
        """
        commit = response.headers.get("X-Repo-Commit", self.file.commit)
        if commit != self.file.commit:
            raise HubError(
                f"{self.file}: the Hub now answers with commit {commit[:40]}; the revision moved, "
                "run the command again"
            )
        size = response.headers.get("X-Linked-Size", str(self.file.size))
        if size != str(self.file.size):
            raise self._inconsistent(
                f"has {size:.20} bytes now, and was listed with {self.file.size}"
            )
        etag = response.headers.get("X-Linked-ETag", "").strip('W/"')
        if etag and etag not in (self.file.sha256, self.file.blob):
            raise self._inconsistent(f"has another hash, {etag:.64}, than it was listed with")

    def _redirected(self, url: str, response: Response) -> str:
        to = urljoin(url, response.headers.get("Location", ""))
        if urlsplit(to).scheme not in ("https", urlsplit(self._home).scheme):
            raise self._inconsistent(f"is redirected to {to[:80]}, which is not safe")
        return to

    def _check_status(self, url: str, response: Response, begin: int, end: int) -> None:
        """Check that a response's status and Content-Range are those of the byte range that was
        requested.
        """
        status, size = response.status_code, self.file.size
        if origin(url) != origin(self._home) and status in EXPIRED:
            self._address = None
            raise TransientError(f"status {status} from {urlsplit(url).netloc}")
        if status == 416:
            raise self._inconsistent(
                f"has no bytes {begin} to {end - 1}, and was listed with {size} bytes"
            )
        if status == 200 and (begin, end) != (0, size):
            raise HubError(f"{self.file}: the server sends no byte ranges; leave out --stream")
        if status not in (200, 206):
            raise self._client.refusal(response, self.file.repository, str(self.file))
        expected = f"bytes {begin}-{end - 1}/{size}"
        found = response.headers.get("Content-Range", expected if status == 200 else "")
        if found != expected:
            raise self._inconsistent(
                f"{found[:80] or 'a range not named'!r} was sent instead of {expected!r}"
            )
        length = response.headers.get("Content-Length", str(end - begin))
        if length != str(end - begin):
            raise self._inconsistent(f"{length:.20} bytes are announced instead of {end - begin}")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise self._inconsistent("is compressed, which was not requested")

    def _inconsistent(self, what: str) -> HubError:
        return HubError(f"{self.file}: {what}; inconsistent response from the server")
