"""Reading a file on the Hub by ranges, from a server that misbehaves."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path

import pytest

from gptoss.converter.hub import client as client_module
from gptoss.converter.hub import read_ahead, remote_file
from gptoss.converter.hub.client import Client, HubError
from gptoss.converter.hub.range_requests import HubFile, Ranges
from gptoss.converter.hub.read_ahead import ReadAhead, chunks
from gptoss.converter.hub.remote_file import Digest, HashMismatchError, RemoteFile
from gptoss.converter.hub.repository import HubId, resolve_revision
from gptoss.errors import CheckpointError
from gptoss.formats.byte_source import ByteSource, FileSource
from gptoss.formats.safetensors import read_header
from support.hub_server import REPOSITORY, Fault, HubServer, every

SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def client(hub: HubServer) -> Client:  # noqa: ARG001
    return Client()


@pytest.fixture
def file(hub: HubServer, client: Client) -> HubFile:
    """A shard as the listing has it; the requests so far are forgotten."""
    found = resolve_revision(client, HubId(REPOSITORY)).files[SHARD]
    hub.forget()
    return found


def read(ranges: Ranges, begin: int = 0, end: int | None = None) -> bytes:
    out = bytearray((ranges.file.size if end is None else end) - begin)
    ranges.read_into(begin, memoryview(out))
    return bytes(out)


def read_span(source: ByteSource, begin: int, end: int) -> bytes:
    out = bytearray(end - begin)
    source.read_into(begin, out)
    return bytes(out)


# --- faults that pass -------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["resolve", "cdn"])
@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=503),
        Fault(status=500),
        Fault(status=429, headers={"Retry-After": "0"}),
        Fault(cut_after=20_000),
        Fault(cut_after=0),
    ],
)
def test_faults_that_pass(
    hub: HubServer, client: Client, file: HubFile, published: Path, fault: Fault, place: str
) -> None:
    hub.misbehave = every(2, fault, place)
    assert read(Ranges(client, file)) == (published / SHARD).read_bytes()
    assert hub.sent == file.size, "bytes before a cut are not asked for again"


def test_cut_again_and_again(
    hub: HubServer, client: Client, file: HubFile, published: Path
) -> None:
    """As long as something comes, there is no limit to how often it may end."""
    hub.misbehave = every(1, Fault(cut_after=5000), "cdn")
    assert read(Ranges(client, file)) == (published / SHARD).read_bytes()
    assert len(hub.requests) > file.size / 5000 > 2 * client_module.ATTEMPTS
    assert hub.sent == file.size


def test_too_slow_is_a_cut(
    hub: HubServer,
    client: Client,
    file: HubFile,
    published: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "TIMEOUT", 0.1)
    hub.misbehave = every(2, Fault(pause=0.5), "cdn")
    assert read(Ranges(client, file)) == (published / SHARD).read_bytes()


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "30"},
        {"Retry-After": "DATE"},
        {"RateLimit": '"resolvers";r=0;t=30'},
    ],
)
def test_the_server_says_when(
    hub: HubServer, file: HubFile, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {
        key: value.replace("DATE", formatdate(time.time() + 31, usegmt=True))
        for key, value in headers.items()
    }
    hub.misbehave = every(100, Fault(status=429, headers=headers))
    said: list[str] = []
    waited: list[float] = []
    client = Client(said.append)
    monkeypatch.setattr(client.stop, "wait", waited.append)
    read(Ranges(client, file), 0, 100)
    (pause,) = waited
    assert 25 < pause <= 31
    assert said == [f"{file}: status 429; retrying in {pause:.0f} s"]


def test_an_address_that_expired(
    hub: HubServer, client: Client, file: HubFile, published: Path
) -> None:
    """Asked for once and kept; when it is good no longer, a new one is asked for."""
    ranges = Ranges(client, file)
    whole = (published / SHARD).read_bytes()
    for begin in range(0, 40_000, 10_000):
        if begin == 20_000:
            hub.misbehave = every(100, Fault(status=403), "cdn")
        assert read(ranges, begin, begin + 10_000) == whole[begin : begin + 10_000]
    assert [r.place for r in hub.requests].count("resolve") == 2


# --- faults that do not -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "place", "found"),
    [
        (Fault(status=503), None, "tried 8 times: status 503"),
        (Fault(cut_after=0), "cdn", "tried 8 times: "),
        (
            Fault(status=429, headers={"Retry-After": "3600"}),
            None,
            "asked to wait 3600 s (Retry-After)",
        ),
        (Fault(length=-1), "cdn", "99 bytes are announced instead of 100"),
        (Fault(length=1), "cdn", "101 bytes are announced instead of 100"),
        (Fault(total=1), "cdn", "was sent instead of 'bytes 1000-1099/"),
        (Fault(shift=1), "cdn", "'bytes 1001-1100/"),
        (Fault(whole=True), "cdn", "the server sends no byte ranges; leave out --stream"),
        (Fault(commit="f" * 40), "resolve", "the Hub now answers with commit ffff"),
        (Fault(listed=1), "resolve", "bytes now, and was listed with"),
        (Fault(hashed="e" * 64), "resolve", "has another hash, eeee"),
        (Fault(status=404, headers={"X-Error-Code": "RevisionNotFound"}), "resolve",
         "no such revision on"),
        (Fault(status=404, headers={"X-Error-Code": "EntryNotFound"}), "resolve", "no such file"),
        (Fault(status=302, headers={"Location": "ftp://elsewhere/x"}), "resolve", "is not safe"),
        (Fault(status=302, headers={"Location": "?again"}), "resolve", "too many redirects"),
        (Fault(status=418), "resolve", "responded with status 418"),
        (Fault(status=302), "cdn", "too many redirects"),
        (Fault(headers={"Content-Encoding": "gzip"}), "cdn", "is compressed"),
    ],
)  # fmt: skip
def test_faults_that_do_not_pass(
    hub: HubServer, client: Client, file: HubFile, fault: Fault, place: str | None, found: str
) -> None:
    hub.misbehave = every(1, fault, place)
    with pytest.raises(HubError) as error:
        read(Ranges(client, file), 1000, 1100)
    assert found in str(error.value)
    assert str(error.value).startswith(f"{REPOSITORY}@{file.commit[:12]}/{SHARD}: ")


def test_a_size_that_is_a_lie(client: Client, file: HubFile) -> None:
    larger = HubFile(file.repository, file.commit, file.name, 2**40, file.blob, file.sha256)
    with pytest.raises(HubError, match="bytes now, and was listed with 1099511627776"):
        read(Ranges(client, larger), 0, 100)


def test_the_token_goes_to_the_hub_alone(
    hub: HubServer, file: HubFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "secret"  # noqa: S105
    monkeypatch.setenv("HF_TOKEN", "secret")
    read(Ranges(Client(), file), 0, 100)
    assert [(r.place, r.token) for r in hub.requests] == [
        ("resolve", "Bearer secret"),
        ("cdn", None),
    ]


def test_stopping_ends_a_pause(hub: HubServer, client: Client, file: HubFile) -> None:
    hub.misbehave = every(1, Fault(status=429, headers={"Retry-After": "600"}))
    threading.Timer(0.2, client.stop.set).start()
    began = time.monotonic()
    with pytest.raises(HubError, match="interrupted"):
        read(Ranges(client, file), 0, 100)
    assert time.monotonic() - began < 60


# --- in the place of a file -------------------------------------------------------------------


def test_a_header_costs_its_bytes(
    hub: HubServer, client: Client, file: HubFile, published: Path
) -> None:
    here, there = (
        read_header(FileSource(published / SHARD)),
        read_header(RemoteFile(Ranges(client, file))),
    )
    assert [(t.name, t.dtype, t.shape, t.offset, t.nbytes) for t in here.values()] == [
        (t.name, t.dtype, t.shape, t.offset, t.nbytes) for t in there.values()
    ]
    assert hub.sent == min(t.offset for t in here.values())


@pytest.mark.parametrize("size", [100_000, 5000])
@pytest.mark.parametrize("held", [14, 2])
def test_random_reads_by_many_threads(
    client: Client,
    file: HubFile,
    published: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    held: int,
) -> None:
    """All is right in whatever order, told before or not, held or not."""
    monkeypatch.setattr(read_ahead, "CHUNK", size)
    monkeypatch.setattr(read_ahead, "HELD", held)
    whole = (published / SHARD).read_bytes()
    place = RemoteFile(Ranges(client, file))
    rng = random.Random(1)
    spans = [sorted(rng.choices(range(file.size + 1), k=2)) for _ in range(40)]
    told = [(place, (begin, end)) for begin, end in rng.sample(spans, 30) if end < 60_000]
    with (
        ReadAhead(told, client.stop),
        ThreadPoolExecutor(8) as pool,
    ):
        for (begin, end), got in zip(
            spans, pool.map(lambda s: read_span(place, *s), spans), strict=True
        ):
            assert got == whole[begin:end]


def test_what_is_told_before_comes_once_and_proves_the_file(
    hub: HubServer,
    client: Client,
    file: HubFile,
    published: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Read as a conversion does: blocks in their order, and with each some scales from the end."""
    monkeypatch.setattr(read_ahead, "CHUNK", 5000)
    whole = (published / SHARD).read_bytes()
    place = RemoteFile(Ranges(client, file))
    scales = file.size - 7000
    reads: list[tuple[int, int]] = []
    for k in range(10):
        reads.append((scales // 10 * k, scales if k == 9 else scales // 10 * (k + 1)))
        reads.append((scales + 700 * k, scales + 700 * (k + 1)))
    with ReadAhead([(place, span) for span in reads], client.stop) as ahead:
        for begin, end in reads:
            out = bytearray(end - begin)
            place.read_into(begin, memoryview(out))
            assert out == whole[begin:end]
            assert len(ahead._held) <= read_ahead.HELD
        assert not ahead._held
    assert hub.sent == file.size
    assert place.digest.verified


def test_one_bit_is_wrong(hub: HubServer, client: Client, file: HubFile) -> None:
    hub.misbehave = every(1, Fault(flip=file.size // 2), "cdn")
    place = RemoteFile(Ranges(client, file))
    with pytest.raises(HashMismatchError, match=r"but [0-9a-f]{64} is published"):
        place.read_into(0, memoryview(bytearray(file.size)))
    assert not place.digest.verified


def test_an_end_of_the_file_as_files_have_it(client: Client, file: HubFile) -> None:
    with pytest.raises(CheckpointError, match=f"ends at byte {file.size}; more bytes were expect"):
        read_span(RemoteFile(Ranges(client, file)), file.size - 1, file.size + 1)


def test_chunks() -> None:
    assert chunks([]) == []
    assert chunks([(30, 40), (0, 10), (10, 20)]) == [(0, 20), (30, 40)]
    big = read_ahead.CHUNK
    assert chunks([(5, 2 * big + 5), (2 * big + 5, 2 * big + 7)]) == [
        (5, big + 5), (big + 5, 2 * big + 5), (2 * big + 5, 2 * big + 7),
    ]  # fmt: skip


def test_a_hash_of_pieces_in_any_order(file: HubFile, published: Path) -> None:
    whole = (published / SHARD).read_bytes()
    pieces = [(at, whole[at : at + 10_000]) for at in range(0, len(whole), 10_000)]
    near = [pieces[i ^ 1] for i in range(len(pieces) & ~1)] + pieces[len(pieces) & ~1 :]
    for order, proven in ((pieces, True), (near, True), (near * 2, True), (pieces[:-1], False)):
        digest = Digest(file)
        for at, piece in order:
            digest.feed(at, piece)
        assert digest.verified == proven
    # Too far from the file's order, its pieces would fill the memory: given up, and said so.
    digest = Digest(file)
    small = [(at, whole[at : at + 1000]) for at in range(0, len(whole), 1000)]
    for at, piece in reversed(small):
        digest.feed(at, piece)
    assert not digest.verified
    assert len(digest._waiting) <= remote_file.WAITING


def test_requests_and_retries_are_logged(
    hub: HubServer, client: Client, file: HubFile, caplog: pytest.LogCaptureFixture
) -> None:
    """For a developer; addresses without their query, which may be a signature."""
    hub.misbehave = lambda request: Fault(status=503) if request.number == 0 else None
    with caplog.at_level("DEBUG", logger="gptoss"):
        read(Ranges(client, file), 0, 100)
    said = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("GET http") and line.endswith("bytes=0-99") for line in said)
    assert any("status 503; retrying in" in line for line in said)
    assert "signature" not in "".join(said)
