"""A checkpoint's way through huggingface_hub's cache."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from gptoss.converter.hub.cache import check, download
from gptoss.converter.hub.remote_file import HashMismatchError
from gptoss.converter.hub.repository import HubId
from support.hub_server import REPOSITORY, Fault, HubServer, Repository, digests, every

WANTED = HubId(REPOSITORY)


def test_downloaded_once(
    hub: HubServer, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "repository"
    (other / "original").mkdir(parents=True)
    for path in published.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "README.md").write_text("not needed")
    (other / "original" / "model.safetensors").write_text("not needed either")
    hub.repositories[REPOSITORY] = Repository(other, hub.commit(REPOSITORY))
    folder = download(WANTED)
    assert folder.name == hub.commit(REPOSITORY)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in published.iterdir()
    }
    hub.forget()
    assert download(WANTED) == folder
    assert hub.sent == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download(WANTED) == folder


def test_downloaded_in_spite_of_faults(
    hub: HubServer, published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.misbehave = every(5, Fault(status=503))
    folder = download(WANTED)
    assert capsys.readouterr().err == ""
    assert {p.name for p in folder.iterdir()} == {p.name for p in published.iterdir()}


def test_hashes_are_compared(hub: HubServer, published: Path) -> None:  # noqa: ARG001
    folder = download(WANTED)
    told: list[tuple[int, int]] = []
    found = check(folder, lambda done, total: told.append((done, total)))
    shards = sorted(published.glob("*.safetensors"))
    assert found == {path.name: digests(path)[0] for path in shards}
    assert max(told) == (total := sum(path.stat().st_size for path in shards), total)
    blob = (folder / shards[1].name).resolve()
    raw = bytearray(blob.read_bytes())
    raw[1000] ^= 1
    blob.write_bytes(raw)
    with pytest.raises(
        HashMismatchError, match=f"{shards[1].name}: has the sha256 .* remove {blob} and"
    ):
        check(folder, lambda *_: None)
