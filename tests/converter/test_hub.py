"""Which checkpoint on the Hub is meant, and what it holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from gptoss.converter.gguf import vocab
from gptoss.converter.hub import repository as hub_repository
from gptoss.converter.hub.cache import download
from gptoss.converter.hub.client import Client, HubError
from gptoss.converter.hub.remote_file import HashMismatchError
from gptoss.converter.hub.repository import (
    CONFIG_FILES,
    TOKENIZER_FILES,
    HubId,
    Stream,
    hub_id,
    resolve_revision,
)
from gptoss.formats.checkpoint import Checkpoint
from support.hub_server import REPOSITORY, Fault, HubServer, every

WANTED = HubId(REPOSITORY)


@pytest.mark.parametrize(
    ("source", "meant"),
    [
        ("openai/gpt-oss-20b", HubId("openai/gpt-oss-20b", "main")),
        ("openai/gpt-oss-20b@v1.0", HubId("openai/gpt-oss-20b", "v1.0")),
        ("openai/gpt-oss-20b@refs/pr/4", HubId("openai/gpt-oss-20b", "refs/pr/4")),
        ("gpt-oss-20b", None),
        ("./openai/gpt-oss-20b", None),
        ("/openai/gpt-oss-20b", None),
        ("../gpt-oss-20b", None),
        ("openai/gpt-oss-20b/", None),
        ("openai/gpt-oss-20b/original", None),
        ("openai/gpt-oss-20b@", None),
        ("openai/gpt oss", None),
        ("C:\\models\\gpt-oss-20b", None),
    ],
)
def test_what_is_an_id(source: str, meant: HubId | None) -> None:
    assert hub_id(source) == meant


# --- pinning ----------------------------------------------------------------------------------


def test_pinned(hub: HubServer, published: Path) -> None:
    found = resolve_revision(Client(), WANTED)
    assert found.commit == hub.commit(REPOSITORY)
    assert {name: file.size for name, file in found.files.items()} == {
        path.name: path.stat().st_size for path in published.iterdir()
    }
    assert found == resolve_revision(Client(), HubId(REPOSITORY, found.commit))


def test_pinned_after_faults(hub: HubServer) -> None:
    hub.misbehave = every(2, Fault(status=503))
    resolve_revision(Client(), WANTED)
    assert len(hub.requests) == 2


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (HubId("someone/else"), "someone/else@main: http://[^ ]+ has no such repository, or it"),
        (HubId(REPOSITORY, "gone"), f"{REPOSITORY}@gone: no such revision on http://[^ ]+"),
    ],
)
@pytest.mark.parametrize("way", ["pin", "download"])
@pytest.mark.usefixtures("hub")
def test_what_is_not_there(wanted: HubId, found: str, way: str) -> None:
    with pytest.raises(HubError, match=found):
        resolve_revision(Client(), wanted) if way == "pin" else download(wanted)


@pytest.mark.parametrize("way", ["pin", "download"])
def test_a_token_that_is_not_accepted(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    hub.token = "right"  # noqa: S105
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(HubError, match="rejected the token in HF_TOKEN"):
        resolve_revision(Client(), WANTED) if way == "pin" else download(WANTED)


@pytest.mark.parametrize("way", ["stream", "download"])
def test_a_gated_repository(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    repository = hub.repositories[REPOSITORY]
    hub.repositories[REPOSITORY] = dataclasses.replace(repository, gated=True)
    hub.token = "right"  # noqa: S105

    def bring() -> None:
        if way == "download":
            download(WANTED)
        else:
            client = Client()
            Stream(client, resolve_revision(client, WANTED), tmp_path).fetch(CONFIG_FILES)

    with pytest.raises(HubError, match=f"request it at {hub.endpoint}/{REPOSITORY}, then set HF_"):
        bring()
    monkeypatch.setenv("HF_TOKEN", "right")
    bring()


@pytest.mark.parametrize("way", ["pin", "download"])
@pytest.mark.usefixtures("hub")
def test_offline(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set; unset it"):
        resolve_revision(Client(), WANTED) if way == "pin" else download(WANTED)


@pytest.mark.parametrize(
    "bring", [lambda: resolve_revision(Client(), WANTED), lambda: download(WANTED)]
)
def test_nobody_answers(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, bring: Callable[[], object]
) -> None:
    hub.misbehave = every(1, Fault(status=502))
    with pytest.raises(HubError, match=f"^{REPOSITORY}@main: tried 8 times: status 502; run"):
        bring()
    nowhere = "http://127.0.0.1:1"
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    with pytest.raises(
        HubError, match=f"@main: tried 3 times: {nowhere} cannot be reached: .*refused"
    ):
        bring()


@pytest.mark.parametrize(
    ("listing", "found"),
    [
        ("[]", "expected a JSON object"),
        ("{", "not valid JSON"),
        ('{"sha": "main", "siblings": []}', "has no commit"),
        ('{"sha": "COMMIT"}', "has no list of files"),
        ('{"sha": "COMMIT", "siblings": [1]}', "without name, size or hash: 1"),
        ('{"sha": "COMMIT", "siblings": [{"rfilename": "a", "size": -1, "blobId": "COMMIT"}]}',
         "without name, size or hash"),
        ('{"sha": "COMMIT", "siblings": [{"rfilename": "a", "size": 1, "blobId": "x"}]}',
         "without name, size or hash"),
        ('{"sha": "COMMIT", "siblings": [{"rfilename": "a", "size": 1, "blobId": "COMMIT",'
         ' "lfs": {"sha256": "1"}}]}', "without name, size or hash"),
    ],
)  # fmt: skip
def test_listings_that_are_none(
    monkeypatch: pytest.MonkeyPatch, hub: HubServer, listing: str, found: str
) -> None:
    raw = listing.replace("COMMIT", hub.commit(REPOSITORY)).encode()
    monkeypatch.setattr(hub_repository, "_get", lambda *_: raw)
    with pytest.raises(HubError, match=found):
        resolve_revision(Client(), WANTED)


def test_a_listing_of_another_commit(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = json.dumps({"sha": "a" * 40, "siblings": []}).encode()
    monkeypatch.setattr(hub_repository, "_get", lambda *_: raw)
    with pytest.raises(HubError, match="is for a different commit, aaaa"):
        resolve_revision(Client(), HubId(REPOSITORY, hub.commit(REPOSITORY)))


# --- a stream's small files -------------------------------------------------------------------


def test_headers_are_all_that_opening_costs(
    hub: HubServer, published: Path, tmp_path: Path
) -> None:
    client = Client()
    stream = Stream(client, resolve_revision(client, WANTED), tmp_path)
    stream.fetch(CONFIG_FILES)
    found = Checkpoint.open(tmp_path, weights=stream.weights)
    here = Checkpoint.open(published)
    assert found.hparams == here.hparams
    assert {n: (t.shape, t.offset) for n, t in found.tensors.items()} == {
        n: (t.shape, t.offset) for n, t in here.tensors.items()
    }
    headers = {t.file: 0 for t in here.tensors.values()}
    for file in headers:
        headers[file] = min(t.offset for t in here.tensors.values() if t.file == file)
    small = sum((published / name).stat().st_size for name in CONFIG_FILES)
    assert hub.sent == small + sum(headers.values())
    stream.fetch(TOKENIZER_FILES)
    assert vocab.read(tmp_path) == vocab.read(published)


@pytest.mark.parametrize(("name", "place"), [("config.json", "resolve"), ("tokenizer.json", "cdn")])
def test_a_small_file_with_a_wrong_bit(
    hub: HubServer, tmp_path: Path, name: str, place: str
) -> None:
    """One that git keeps, and one of git-lfs."""
    client = Client()
    stream = Stream(client, resolve_revision(client, WANTED), tmp_path)
    hub.misbehave = every(1, Fault(flip=5), place)
    with pytest.raises(HashMismatchError, match=f"{name}: the received bytes have the hash"):
        stream.fetch(CONFIG_FILES | TOKENIZER_FILES)


def test_a_small_file_that_is_large(hub: HubServer, tmp_path: Path) -> None:
    client = Client()
    listing = resolve_revision(client, WANTED)
    files = dict(listing.files)
    files["config.json"] = dataclasses.replace(files["config.json"], size=2**40)
    hub.forget()
    with pytest.raises(HubError, match="has 1099511627776 bytes; the limit is 1048576"):
        Stream(client, dataclasses.replace(listing, files=files), tmp_path).fetch(CONFIG_FILES)
    assert not hub.requests
