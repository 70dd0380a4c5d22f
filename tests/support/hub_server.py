"""A server on loopback with the Hub's manners, which misbehaves on request.

It serves folders as repositories of one commit each: the listing (``/api/models/ID/revision/REV``),
the tree (``/api/models/ID/tree/REV``) and the files (``/ID/resolve/REV/FILE``). As the Hub does,
it sends small text itself and redirects what git-lfs would keep, weights and tokenizer.json, to
another host that wants no token; there, a signature in the address stands for the right to read.

    with HubServer({"org/model": folder}) as hub:
        hub.misbehave = every(3, Fault(status=503))
        ...
        assert hub.sent < 1000
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

from gptoss.converter.hub import client

PIECE = 2**14
"""Bytes of a body sent at once; cuts and pauses fall between two."""

REPOSITORY = "someone/some-model"
"""A name for who needs one only."""

API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?")


@dataclass(frozen=True)
class Fault:
    """How one answer goes wrong; what is left at its default goes right."""

    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    """Bytes of the body after which the connection is closed."""
    pause: float = 0
    """Seconds before each piece of the body."""
    length: int = 0
    """Added to the Content-Length that is true."""
    total: int = 0
    """Added to the file's size in the Content-Range."""
    shift: int = 0
    """Bytes by which what is sent, and what Content-Range says, lies beyond what was asked for."""
    whole: bool = False
    """The range is ignored: 200 and the file from its start."""
    flip: int | None = None
    """The offset of a byte in the file that is sent wrong."""
    commit: str | None = None
    """Another commit in X-Repo-Commit than the one asked for."""
    listed: int = 0
    """Added to the size in X-Linked-Size."""
    hashed: str | None = None
    """Another hash in X-Linked-ETag than the file's."""


@dataclass(frozen=True)
class Request:
    """What was asked: ``place`` is "api", "resolve" or "cdn"; ``range`` as begin and end."""

    number: int
    method: str
    place: str
    file: str
    range: tuple[int, int] | None
    token: str | None


Misbehave = Callable[[Request], Fault | None]


def well(_: Request) -> None:
    """No fault."""


def every(n: int, fault: Fault, place: str | None = None) -> Misbehave:
    """Every ``n``-th request, of those to ``place`` if given, goes wrong, the first one too.

    With ``n`` above 1 a repeated request goes well: several readers take turns by chance, and else
    one of them might get all the faults until it gives up.
    """
    count = 0
    failed: set[tuple[str, str, tuple[int, int] | None]] = set()

    def misbehave(request: Request) -> Fault | None:
        nonlocal count
        if place not in (None, request.place):
            return None
        count += 1
        key = (request.place, request.file, request.range)
        if n > 1 and key in failed:
            failed.remove(key)
            return None
        if n > 1 and count % n != 1:
            return None
        failed.add(key)
        return fault

    return misbehave


@dataclass(frozen=True)
class Repository:
    """A folder served as one commit."""

    folder: Path
    commit: str
    gated: bool = False

    def file(self, name: str) -> Path | None:
        path = self.folder / name
        return path if path.is_file() and self.folder in path.parents else None


def in_lfs(path: Path) -> bool:
    return path.suffix in (".safetensors", ".gguf") or path.name == "tokenizer.json"


class HubServer:
    """The server; ``sent`` counts bytes of file bodies, ``requests`` holds all requests."""

    def __init__(self, folders: Mapping[str, Path], *, token: str | None = None) -> None:
        self.repositories: dict[str, Repository] = {}
        for name, folder in folders.items():
            self.add(name, folder)
        self.token = token
        """Who shows another is refused, and everyone is from a gated repository without one."""
        self.misbehave: Misbehave = well
        self.requests: list[Request] = []
        self.sent = 0
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def cdn(self) -> str:
        """The same server by another name: another host to whoever asks."""
        return f"http://localhost:{self._server.server_port}"

    def add(self, name: str, folder: Path) -> None:
        """Serve one more folder."""
        commit = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
        self.repositories[name] = Repository(folder, commit)

    def commit(self, name: str) -> str:
        return self.repositories[name].commit

    def forget(self) -> None:
        """Count from nothing again."""
        with self.lock:
            self.sent = 0
            self.requests.clear()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_raised: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def hub_in_use(
    folders: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubServer]:
    """The server as the Hub of this process: the cache is empty, no token is set, pauses are
    short."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(client, "LONGEST_PAUSE", 0.01)
    huggingface_hub.close_session()
    with HubServer(folders) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server
    huggingface_hub.close_session()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Whoever asked has gone; that is their affair."""


def digests(path: Path) -> tuple[str, str]:
    """A file's sha256, and the id that git gives it."""
    return _digests(path, path.stat().st_mtime_ns)


@cache
def _digests(path: Path, changed: int) -> tuple[str, str]:  # noqa: ARG001
    git = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(2**20):
            git.update(data)
            sha256.update(data)
    return sha256.hexdigest(), git.hexdigest()


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self.answer()

        def do_HEAD(self) -> None:
            self.answer()

        def log_message(self, *_: Any) -> None:
            pass

        # --- what is asked --------------------------------------------------------------------

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            try:
                if api := API.fullmatch(path):
                    self.api(api[1], api[2] or "revision", api[3] or "main")
                elif cdn := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
                    self.cdn(cdn[1], cdn[2])
                elif file := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                    self.resolve(file[1], file[2], file[3])
                else:
                    self.refuse(404, "")
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def api(self, name: str, kind: str, revision: str) -> None:
            fault = self.note("api", name)
            repository = self.repository(name, revision)
            if repository is None or self.fails(fault):
                return
            blobs = kind == "tree" or "blobs" in parse_qs(urlsplit(self.path).query)
            paths = sorted(p for p in repository.folder.rglob("*") if p.is_file())
            files = [self.listed(repository, path, kind, blobs=blobs) for path in paths]
            listing = {"id": name, "sha": repository.commit, "siblings": files}
            self.json(files if kind == "tree" else listing)

        def listed(
            self, repository: Repository, path: Path, kind: str, *, blobs: bool
        ) -> dict[str, Any]:
            name = path.relative_to(repository.folder).as_posix()
            entry: dict[str, Any] = {"path" if kind == "tree" else "rfilename": name}
            if not blobs:
                return entry
            size = path.stat().st_size
            sha256, git = digests(path)
            entry |= {"size": size, "oid" if kind == "tree" else "blobId": git}
            if in_lfs(path):
                key = "oid" if kind == "tree" else "sha256"
                entry["lfs"] = {key: sha256, "size": size, "pointerSize": 134}
            return entry | ({"type": "file"} if kind == "tree" else {})

        def resolve(self, name: str, revision: str, file: str) -> None:
            fault = self.note("resolve", file)
            repository = self.repository(name, revision)
            if repository is None:
                return
            path = repository.file(file)
            if path is None:
                self.refuse(404, "EntryNotFound", {"X-Repo-Commit": repository.commit})
                return
            sha256, git = digests(path)
            commit = (fault.commit if fault else None) or repository.commit
            headers = {"X-Repo-Commit": commit, "ETag": f'"{git}"'}
            if not in_lfs(path):
                self.send_file(path, headers, fault)
            elif not self.fails(fault):
                fault = fault or Fault()
                headers["X-Linked-Size"] = str(path.stat().st_size + fault.listed)
                headers["X-Linked-ETag"] = f'"{fault.hashed or sha256}"'
                headers["Location"] = f"{hub.cdn}/cdn/{name}/{file}?signature=1"
                self.head(302, headers, 0)

        def cdn(self, name: str, file: str) -> None:
            fault = self.note("cdn", file)
            path = hub.repositories[name].file(file)
            if path is None:
                self.refuse(404, "")
            elif "signature" not in parse_qs(urlsplit(self.path).query):
                self.refuse(403, "")
            else:
                self.send_file(path, {"ETag": '"of the cdn"'}, fault)

        # --- what is answered -----------------------------------------------------------------

        def note(self, place: str, file: str) -> Fault | None:
            token = self.headers.get("Authorization")
            with hub.lock:
                request = Request(len(hub.requests), self.command, place, file, self.range(), token)
                hub.requests.append(request)
                return hub.misbehave(request)

        def range(self) -> tuple[int, int] | None:
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            return (int(found[1]), int(found[2]) + 1) if found else None

        def repository(self, name: str, revision: str) -> Repository | None:
            """The repository if it is here and may be read; else the refusal is sent."""
            repository = hub.repositories.get(name)
            token = self.headers.get("Authorization")
            if repository is None:
                self.refuse(401 if token is None else 404, "RepoNotFound")
            elif token is not None and token != f"Bearer {hub.token}":
                self.refuse(401, "", {"X-Error-Message": "Invalid credentials"})
            elif repository.gated and token is None and "/resolve/" in self.path:
                self.refuse(401, "GatedRepo", {"X-Error-Message": "Access is restricted."})
            elif revision not in ("main", repository.commit):
                self.refuse(404, "RevisionNotFound")
            else:
                return repository
            return None

        def refuse(self, status: int, code: str, headers: Mapping[str, str] = {}) -> None:
            self.head(status, {"X-Error-Code": code, **headers}, 0)

        def fails(self, fault: Fault | None) -> bool:
            if fault is not None and fault.status:
                self.head(fault.status, fault.headers, 0)
            return bool(fault and fault.status)

        def json(self, value: Any) -> None:
            body = json.dumps(value).encode()
            self.head(200, {"Content-Type": "application/json"}, len(body))
            if self.command != "HEAD":
                self.wfile.write(body)

        def head(self, status: int, headers: Mapping[str, str], length: int) -> None:
            self.send_response(status)
            for key, value in ({"Content-Length": str(length)} | dict(headers)).items():
                self.send_header(key, value)
            self.end_headers()

        def send_file(self, path: Path, headers: Mapping[str, str], fault: Fault | None) -> None:
            fault = fault or Fault()
            if self.fails(fault):
                return
            size = path.stat().st_size
            begin, end = self.range() or (0, size)
            begin, end = begin + fault.shift, min(end + fault.shift, size)
            status, more = 206, {"Content-Range": f"bytes {begin}-{end - 1}/{size + fault.total}"}
            if self.range() is None or fault.whole:
                (begin, end), status, more = (0, size), 200, {}
            elif begin >= end:
                self.refuse(416, "", {"Content-Range": f"bytes */{size}"})
                return
            self.head(status, {**headers, **more, **fault.headers}, end - begin + fault.length)
            if self.command != "HEAD":
                self.send_body(path, begin, end, fault)

        def send_body(self, path: Path, begin: int, end: int, fault: Fault) -> None:
            stop = end if fault.cut_after is None else min(end, begin + fault.cut_after)
            with path.open("rb") as source:
                source.seek(begin)
                for at in range(begin, stop, PIECE):
                    piece = bytearray(source.read(min(PIECE, stop - at)))
                    if fault.flip is not None and at <= fault.flip < at + len(piece):
                        piece[fault.flip - at] ^= 1
                    time.sleep(fault.pause)
                    with hub.lock:  # before it is written, or who got it might see another count
                        hub.sent += len(piece)
                    self.wfile.write(piece)
            if stop < end or fault.length:
                self.close_connection = True

    return Handler
