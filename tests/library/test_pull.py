"""From a name to a model on the disk: fetched, converted, checked, never half."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gptoss.library import download, finder
from gptoss.library.download import sha256_of
from gptoss.library.sources import SPARE
from gptoss.quant.verify.verifier import verify
from support.commands import Command
from support.hub_server import Fault, HubServer, Request, every
from support.posix import SIGKILL

from .conftest import CHECKPOINT, GGUF

ONE = ("-p", "hi", "--regex", "[a-z]{4}", "--reasoning-budget", "0", "--json")


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def test_one_command_from_nothing(
    run: Command, hub: HubServer, models: Path, published: Path
) -> None:
    done = run("chat", "20b", "--yes", *ONE)
    assert done.code == 0, done.err
    assert json.loads(done.out.splitlines()[-1])["event"] == "reply_ended"
    gguf = models / CHECKPOINT / "gpt-oss-20b.gguf"
    assert verify(published, gguf).proven
    assert files_in(models) == [
        f"{CHECKPOINT}/gpt-oss-20b.gguf",
        f"{CHECKPOINT}/gpt-oss-20b.gguf.manifest.json",
        f"{CHECKPOINT}/model.json",
    ]
    for said in ("download ", "disk ", "memory ", "fits", "check "):
        assert said in done.err
    hub.forget()
    assert run("chat", "20b", *ONE).code == 0
    assert not hub.requests, "the second start asks nobody"


def test_weights_are_downloaded_once(run: Command, hub: HubServer, published: Path) -> None:
    assert run("pull", CHECKPOINT, "--yes").code == 0
    weights = sum(path.stat().st_size for path in published.glob("*.safetensors"))
    small = sum(path.stat().st_size for path in published.glob("*.json")) * 2
    assert hub.sent <= weights + small


def test_a_disk_without_room_for_both(
    run: Command,
    hub: HubServer,
    models: Path,
    published: Path,
    published_gguf: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is kept but the result; to verify, the weights are read twice."""
    weights = sum(path.stat().st_size for path in published.glob("*.safetensors"))
    room = (published_gguf / "gpt-oss-20b-mxfp4.gguf").stat().st_size + SPARE + weights // 2
    monkeypatch.setattr(finder, "_free", lambda _: room)
    done = run("pull", CHECKPOINT, "--yes")
    assert done.code == 0, done.err
    assert "the weights twice" in done.err
    assert hub.sent > 2 * weights
    assert verify(published, models / CHECKPOINT / "gpt-oss-20b.gguf").proven
    monkeypatch.setattr(finder, "_free", lambda _: 1000)
    refused = run("pull", f"{CHECKPOINT}@{hub.commit(CHECKPOINT)}", "--yes")
    assert refused.code == 2
    assert "are needed and 0.0 MB are free" in refused.err


@pytest.mark.usefixtures("hub")
def test_a_gguf_of_the_hub(run: Command, models: Path, published_gguf: Path) -> None:
    done = run("chat", f"https://huggingface.co/{GGUF}", "--yes", *ONE)
    assert done.code == 0, done.err
    name = "gpt-oss-20b-mxfp4.gguf"
    assert sha256_of(models / GGUF / name) == sha256_of(published_gguf / name)
    assert files_in(models) == [f"{GGUF}/{name}", f"{GGUF}/model.json"]
    listed = json.loads(run("models", "--json").out)
    assert [it["verdict"] for it in listed["models"]] == ["SHA-256 as published"]


def test_what_was_downloaded_of_another_commit_is_removed(
    run: Command,
    hub: HubServer,  # noqa: ARG001
    models: Path,
) -> None:
    for name in (".checkpoint-0123456789ab.part", "checkpoint-ba9876543210"):
        (models / CHECKPOINT / name).mkdir(parents=True)
        (models / CHECKPOINT / name / "model.safetensors").write_bytes(bytes(1000))
    assert run("pull", CHECKPOINT, "--yes").code == 0
    assert [path.name for path in (models / CHECKPOINT).iterdir() if path.is_dir()] == []


def test_nobody_can_be_asked(run: Command, hub: HubServer, models: Path) -> None:
    done = run("chat", "20b", *ONE)
    assert done.code == 2
    assert "add --yes" in done.err
    assert not models.exists()
    assert not any(it.place == "cdn" for it in hub.requests), "no weights"


class Keyboard(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("typed", "code", "said"),
    [
        ("n\n", 2, f"error: {CHECKPOINT} is not on this machine, and nothing was done\n"),
        ("", 130, "interrupted\n"),
    ],
)
def test_who_declines_gets_nothing(
    run: Command,
    hub: HubServer,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    typed: str,
    code: int,
    said: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", Keyboard(typed))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    done = run("chat", "20b")
    assert "Continue? [Y/n]: " in done.out + done.err
    assert (done.code, done.err[-len(said) :]) == (code, said)
    assert not models.exists()
    assert not any(it.place == "cdn" for it in hub.requests), "no weights"


@pytest.mark.usefixtures("hub")
def test_a_model_that_does_not_fit(
    run: Command, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptoss.runtime.models import memory
    from gptoss.runtime.models.memory import Memory

    monkeypatch.setattr(memory, "available_memory", lambda: Memory(1000, 1000, "machine"))
    done = run("chat", "20b", "--yes")
    assert done.code == 2
    assert "does not fit into this machine's memory; nothing was downloaded" in done.err
    assert not models.exists()


def test_wrong_bytes_are_never_kept(
    run: Command, hub: HubServer, models: Path, published_gguf: Path
) -> None:
    size = (published_gguf / "gpt-oss-20b-mxfp4.gguf").stat().st_size
    hub.misbehave = every(1, Fault(flip=size - 100), "cdn")
    done = run("pull", GGUF, "--yes")
    assert done.code == 2
    assert "is published; nothing is kept" in done.err
    assert files_in(models) == []


def test_a_gguf_that_cannot_run_is_refused_before_it_is_downloaded(
    run: Command, hub: HubServer, published_gguf: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    raw = (published_gguf / "gpt-oss-20b-mxfp4.gguf").read_bytes()
    raw = raw.replace(b"blk.1.attn_sinks", b"blk.1.attn_stink")
    (folder / "a.gguf").write_bytes(raw)
    hub.add("someone/other", folder)
    done = run("pull", "someone/other", "--yes")
    assert done.code == 2
    assert "someone/other: llama.cpp cannot compute this as gpt-oss" in done.err


def test_several_ggufs(run: Command, hub: HubServer, published_gguf: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    for name in ("m-MXFP4.gguf", "m-Q8_0.gguf", "m-Q4_K.gguf"):
        shutil.copy(published_gguf / "gpt-oss-20b-mxfp4.gguf", folder / name)
    hub.add("someone/several", folder)
    assert "m-MXFP4.gguf" in run("pull", "someone/several", "--yes").out
    assert "m-Q8_0.gguf" in run("pull", "someone/several:q8_0", "--yes").out
    refused = run("pull", "someone/several:Q", "--yes")
    assert (refused.code, refused.out) == (2, "")
    assert "name one of its GGUFs, someone/several:FILE: m-MXFP4.gguf, m-Q4_K.gguf" in refused.err


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("name", ["openai/gpt-oss-20", "gpt-oss-20", "./gpt-oss-20b.gguf"])
def test_a_name_that_is_nearly_right(run: Command, name: str) -> None:
    done = run("chat", name, "--yes")
    assert done.code == 2
    assert done.err.endswith("; did you mean openai/gpt-oss-20b?\n")
    assert done.err.count("\n") == 1


def test_a_checkpoint_folder(
    run: Command,
    models: Path,
    published: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = Path(shutil.copytree(published, tmp_path / "my tune"))
    assert run("chat", own, "--yes", *ONE).code == 0
    [record] = models.glob("local/*/model.json")
    before = record.stat().st_mtime_ns
    assert run("chat", own, *ONE).code == 0
    assert record.stat().st_mtime_ns == before, "converted once"
    monkeypatch.chdir(tmp_path)
    own.rename("20b")
    own = Path("20b")
    assert "20b: using what has this name here, not openai/gpt-oss-20b" in run("chat", own).err
    os.utime(own / "config.json", ns=(1, 1))
    refused = run("chat", own, *ONE)
    assert "is not on this machine; add --yes" in refused.err, "it may have changed"


def test_a_checkpoint_in_the_cache_is_not_downloaded(
    run: Command, hub: HubServer, published: Path, tmp_path: Path
) -> None:
    commit = hub.commit(CHECKPOINT)
    cache = tmp_path / "cache" / "models--openai--gpt-oss-20b"
    shutil.copytree(published, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    done = run("pull", "20b", "--yes")
    assert done.code == 0, done.err
    assert not hub.requests
    assert f"source     {cache}" in done.err


@pytest.mark.parametrize("damaged", [False, True])
def test_a_gguf_in_the_cache_is_not_downloaded(
    run: Command, hub: HubServer, models: Path, published_gguf: Path, tmp_path: Path, damaged: bool
) -> None:
    """Its hash is compared, and the cache stays as it is."""
    raw = bytearray((published_gguf / "gpt-oss-20b-mxfp4.gguf").read_bytes())
    blobs = tmp_path / "cache" / "models--ggml-org--gpt-oss-20b-GGUF" / "blobs"
    blobs.mkdir(parents=True)
    blob = blobs / sha256_of(published_gguf / "gpt-oss-20b-mxfp4.gguf")
    if damaged:
        raw[-100] ^= 1
    blob.write_bytes(raw)
    done = run("pull", GGUF, "--yes")
    assert done.code == (2 if damaged else 0), done.err
    assert ("is published; nothing is kept" in done.err) == damaged
    assert len(list(models.glob("*/*/*.gguf"))) == (not damaged)
    assert blob.read_bytes() == raw
    assert sum(it.place == "cdn" for it in hub.requests) == 1, "the header alone"


# --- killed on the way ------------------------------------------------------------------------

KILLED = """
import sys
from huggingface_hub import constants
from gptoss.library.cli import main
constants.ENDPOINT = {endpoint!r}
sys.argv = ["gptoss-run", "chat", {name!r}, "--yes", *{options!r}]
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("name", [CHECKPOINT, pytest.param(GGUF, marks=pytest.mark.slow)])
def test_killed_twice(
    hub: HubServer, models: Path, published: Path, name: str, run: Command
) -> None:
    """From nothing to the first answer in one command: a cut leaves no half file at its place, and
    what is there is not downloaded again.
    """
    hub.misbehave = lambda request: Fault(pause=0.03) if request.place == "cdn" else None
    code = KILLED.format(endpoint=hub.endpoint, name=name, options=ONE)
    for _ in range(2):
        child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        sent = hub.sent
        while hub.sent < sent + 200_000:
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(SIGKILL)
        child.wait()
        assert not list(models.glob("*/*/*.gguf")), "nothing at its place"
        assert not list(models.glob("*/*/model.json"))
    hub.misbehave = lambda _: None
    done = run("chat", name, "--yes", *ONE)
    assert done.code == 0, done.err
    assert json.loads(done.out.splitlines()[-1])["event"] == "reply_ended"
    [gguf] = models.glob("*/*/*.gguf")
    assert verify(published, gguf).proven
    hub.forget()
    assert run("chat", name, *ONE).code == 0
    assert not hub.requests, "the second start asks nobody"
    assert not [path for path in models.rglob("*") if path.name.endswith(".part")]


def test_a_cut_download_is_resumed(
    run: Command, hub: HubServer, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With chunks so small that the journal has several lines."""
    monkeypatch.setattr(download, "CHUNK", 2**14)
    monkeypatch.setattr(download, "FLUSHED", 2)

    def stop(request: Request) -> Fault | None:
        """Whichever order the chunks are asked for in, those before the third arrive."""
        is_later = request.range is not None and request.range[0] >= 2 * 2**14
        return Fault(status=418) if is_later and request.place == "cdn" else None

    monkeypatch.setattr("gptoss.converter.hub.read_ahead.CHUNK", 2**14)
    hub.misbehave = stop
    assert run("pull", GGUF, "--yes").code == 2
    assert [path.name for path in models.glob("*/*/.*")] == [".gpt-oss-20b-mxfp4.gguf.part"]
    while any(it.name == "fetch" for it in threading.enumerate()):  # what was asked for already
        time.sleep(0.01)
    hub.forget()
    hub.misbehave = lambda _: None
    monkeypatch.setattr("gptoss.library.hub.FIRST_READ", 2**15)
    done = run("pull", GGUF, "--yes")
    assert done.code == 0, done.err
    header, *ranges = [it.range for it in hub.requests if it.place == "cdn" and it.range]
    assert header[0] == 0
    assert min(begin for begin, _ in ranges) > 0
