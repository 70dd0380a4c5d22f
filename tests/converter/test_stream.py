"""Conversions of what is on the Hub: the same result as from a folder, whatever the server does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from gptoss.converter.convert import VerificationError, convert, plan
from gptoss.converter.hub import read_ahead
from gptoss.converter.hub.client import Client, HubError
from gptoss.converter.hub.remote_file import HashMismatchError
from gptoss.converter.hub.repository import HubId, Stream, resolve_revision
from gptoss.converter.write.tasks import Target, Task
from gptoss.errors import OptionError, UnsupportedModelError
from support.checkpoints import random_checkpoint
from support.commands import Command
from support.hub_server import REPOSITORY, Fault, HubServer, Misbehave, Repository, digests, every


@pytest.fixture(scope="module")
def whole(published: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a conversion of the same checkpoint from a folder of the same name gives."""
    folder = tmp_path_factory.mktemp("here") / "some-model"
    shutil.copytree(published, folder)
    out = folder.with_name("out.gguf")
    convert(folder, out)
    return out.read_bytes()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "out.gguf"


def needed(published: Path) -> int:
    """Bytes of all files: a conversion needs each of them once."""
    return sum(path.stat().st_size for path in published.iterdir())


def manifest(out: Path) -> Any:
    return json.loads(out.with_name(out.name + ".manifest.json").read_text("utf-8"))


def shards(published: Path) -> list[dict[str, str]]:
    return [
        {"name": path.name, "sha256": digests(path)[0]}
        for path in sorted(published.glob("*.safetensors"))
    ]


@pytest.mark.parametrize("source", [REPOSITORY, f"{REPOSITORY}@main", f"{REPOSITORY}@COMMIT"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_same_from_the_hub(
    hub: HubServer, published: Path, whole: bytes, out: Path, source: str, stream: bool
) -> None:
    done = convert(source.replace("COMMIT", hub.commit(REPOSITORY)), out, stream=stream)
    assert out.read_bytes() == whole
    assert (done.source, done.revision) == (REPOSITORY, hub.commit(REPOSITORY))
    assert done.checked == {file["name"]: file["sha256"] for file in shards(published)}
    assert manifest(out)["source"] == {
        "place": REPOSITORY,
        "revision": hub.commit(REPOSITORY),
        "files": shards(published),
    }
    assert hub.sent == needed(published)
    if stream:
        assert not Path(constants.HF_HUB_CACHE).exists(), "nothing of it is stored"


FAULTS: dict[str, Misbehave] = {
    "cuts": every(2, Fault(cut_after=10_000)),
    "nothing, then a cut": every(2, Fault(cut_after=0), "cdn"),
    "busy": every(3, Fault(status=429, headers={"Retry-After": "0"})),
    "broken": every(2, Fault(status=500)),
    "away": every(2, Fault(status=503)),
    "gateway": every(3, Fault(status=502)),
    "expired addresses": every(4, Fault(status=403), "cdn"),
    "slow": every(1, Fault(pause=0.002)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_that_pass(
    hub: HubServer,
    published: Path,
    whole: bytes,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    monkeypatch.setattr(read_ahead, "CHUNK", 30_000)
    hub.misbehave = FAULTS[fault]
    convert(REPOSITORY, out, stream=True)
    assert out.read_bytes() == whole
    assert hub.sent <= 1.05 * needed(published)
    assert manifest(out)["source"]["files"] == shards(published)


@pytest.mark.parametrize(
    ("fault", "place", "found"),
    [
        (Fault(length=-1), "cdn", "bytes are announced instead of"),
        (Fault(total=-1), "cdn", "inconsistent response from the server"),
        (Fault(whole=True), "cdn", "the server sends no byte ranges; leave out --stream"),
        (Fault(commit="f" * 40), "resolve", "the revision moved, run the command again"),
        (Fault(status=404, headers={"X-Error-Code": "RevisionNotFound"}), "resolve",
         "no such revision on"),
        (Fault(status=404), "resolve", "responded with status 404"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("begin", [0, 12])
def test_faults_that_do_not_pass(
    hub: HubServer, out: Path, fault: Fault, place: str, found: str, begin: int
) -> None:
    """At once, or in the midst: nothing stands at the output path."""
    bad = every(1, fault, place)
    hub.misbehave = lambda request: bad(request) if request.number >= begin else None
    with pytest.raises(HubError, match=found):
        convert(REPOSITORY, out, stream=True)
    assert not out.exists()


def test_a_wrong_bit_is_found_and_nothing_kept(hub: HubServer, out: Path, whole: bytes) -> None:
    """Every byte came, in answers without fault; the hash alone tells."""
    shard = "model-00001-of-00002.safetensors"
    wrong = Fault(flip=50_000)
    hub.misbehave = lambda request: wrong if request.file == shard else None
    with pytest.raises(HashMismatchError, match=f"{shard}: the received bytes have the sha256"):
        convert(REPOSITORY, out, stream=True)
    assert list(out.parent.iterdir()) == []
    hub.misbehave = lambda _: None
    convert(REPOSITORY, out, stream=True)
    assert out.read_bytes() == whole


def test_a_revision_that_moves_between_two_runs(hub: HubServer, out: Path, tmp_path: Path) -> None:
    """What was made of the one is not gone on with for the other."""

    class Cut(BaseException):
        pass

    def cut(done: int, total: int) -> None:
        if done > total / 2:
            raise Cut

    with pytest.raises(Cut):
        convert(REPOSITORY, out, stream=True, progress=cut)
    other = random_checkpoint(tmp_path / "some-model", shards=3, seed=1)
    hub.repositories[REPOSITORY] = Repository(other, "1" * 40)
    said: list[str] = []
    done = convert(REPOSITORY, out, stream=True, say=said.append)
    assert (done.revision, done.resumed) == ("1" * 40, 0)
    assert said[0].startswith("starting again: ")
    expected = out.with_name("expected.gguf")
    convert(other, expected)
    assert out.read_bytes() == expected.read_bytes()


def test_verified_against_a_stream(
    hub: HubServer, published: Path, whole: bytes, out: Path
) -> None:
    """What is compared is what stands in the file, with weights that came a second time."""
    said: list[str] = []
    done = convert(REPOSITORY, out, stream=True, verify=True, say=said.append)
    assert done.verdict is not None
    assert done.verdict.proven
    assert manifest(out)["verify"]["proven"] is True
    assert out.read_bytes() == whole
    weights = sum(path.stat().st_size for path in published.glob("*.safetensors"))
    assert needed(published) < hub.sent <= needed(published) + weights
    assert [line for line in said if "a second time" in line]
    assert done.checked == {file["name"]: file["sha256"] for file in shards(published)}


def test_a_stream_that_is_another_the_second_time_is_not_proven(hub: HubServer, out: Path) -> None:
    bad = Fault(flip=50_000)
    verifying = False

    def say(line: str) -> None:
        nonlocal verifying
        verifying |= "a second time" in line

    shard = "model-00001-of-00002.safetensors"
    hub.misbehave = lambda request: bad if verifying and request.file == shard else None
    with pytest.raises(VerificationError, match="verification failed: "):
        convert(REPOSITORY, out, stream=True, verify=True, dense="bf16", say=say)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("fault", ["cuts", "busy", "broken", "expired addresses"])
def test_faults_that_pass_while_verifying(hub: HubServer, out: Path, fault: str) -> None:
    hub.misbehave = FAULTS[fault]
    done = convert(REPOSITORY, out, stream=True, verify=True)
    assert done.verdict is not None
    assert done.verdict.proven


def test_a_request_that_cannot_be(hub: HubServer, published: Path, out: Path) -> None:
    with pytest.raises(OptionError, match="--stream needs a repository on the Hub"):
        convert(published, out, stream=True)
    assert hub.sent < 10_000


def test_verified_against_the_cache(hub: HubServer, out: Path) -> None:  # noqa: ARG001
    done = convert(REPOSITORY, out, verify=True)
    assert done.verdict is not None
    assert done.verdict.proven


def test_a_folder_of_that_name_wins(
    hub: HubServer, published: Path, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(published, REPOSITORY)
    said: list[str] = []
    convert(REPOSITORY, out, say=said.append)
    assert said == [
        f"{REPOSITORY}: using the local folder, not the Hub repository of the same name"
    ]
    assert not hub.requests


# --- killed -----------------------------------------------------------------------------------

PATIENCE = 300
"""Seconds after which a process hangs, however busy the machine."""
COMMAND = """
import sys
from gptoss.converter import cli
from gptoss.converter.write import tasks, writer
from gptoss.converter.hub import read_ahead
writer.JOURNAL_SECONDS, tasks.CHUNK, read_ahead.CHUNK = 0.02, 2**13, 2**12
cli.main()
"""


def started(hub: HubServer, out: Path, *more: str) -> subprocess.Popen[str]:
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(out.parent / "home")}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, REPOSITORY, "-o", str(out), "--stream", *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def test_killed_at_half_way(hub: HubServer, out: Path, tmp_path: Path) -> None:
    """The next run reads nothing of the finished tensors, and little of what was under way."""
    larger = random_checkpoint(tmp_path / "some-model", hidden=128, layers=3, experts=8, shards=4)
    hub.repositories[REPOSITORY] = Repository(larger, "2" * 40)
    hub.misbehave = every(1, Fault(pause=0.04), "cdn")
    process = started(hub, out)
    deadline = time.monotonic() + PATIENCE
    while hub.sent < needed(larger) * 0.5:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert not out.exists()
    time.sleep(0.2)  # what the server had under way
    hub.forget()
    hub.misbehave = lambda _: None
    again = started(hub, out, "--json")
    printed, said = again.communicate(timeout=60)
    assert said.startswith("resuming: ")
    checked = json.loads(printed)["checked_sha256"]
    missed = [file["name"] for file in shards(larger) if file["name"] not in checked]
    assert f"note: {missed[0]} was not read whole in one run" in said
    assert len(missed) == 1, "the others were whole in the run before or in this one"
    assert json.loads(printed)["resumed"] > 0
    assert hub.sent <= 0.6 * needed(larger)
    expected = out.with_name("expected.gguf")
    convert(larger, expected)
    assert out.read_bytes() == expected.read_bytes()


def test_interrupted_while_nothing_comes(hub: HubServer, out: Path) -> None:
    """A connection that hangs does not keep the command from ending at once."""
    hub.misbehave = lambda request: Fault(pause=40) if request.number > 40 else None
    process = started(hub, out)
    deadline = time.monotonic() + PATIENCE
    while len(hub.requests) < 46:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(0.5)  # by then it waits
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - began < 20
    assert process.returncode == 130
    assert said.endswith("the same command resumes it\ninterrupted\n")
    assert not out.exists()


def test_a_job_half_done_reads_the_other_half(published: Path) -> None:
    [up] = [t for t in plan(published).tensors if t.name == "blk.1.ffn_up_exps.weight"]
    units = up.nbytes // up.transform.writes
    job = Task(0, (Target(up, Path("out.gguf"), 0),), units, done=units // 2)
    spans = {
        info: [
            s
            for i, s in job.spans()
            if i is info.file and info.offset <= s[0] < info.offset + info.nbytes
        ]
        for info in up.sources
    }
    for info, size in zip(up.sources, up.transform.reads, strict=True):
        assert spans[info][0][0] == info.offset + units // 2 * size
        assert spans[info][-1][1] == info.offset + info.nbytes
        assert all(a[1] == b[0] for a, b in pairwise(spans[info]))


@pytest.mark.usefixtures("hub")
def test_what_an_earlier_run_verified_and_this_one_reads_again(
    published: Path, tmp_path: Path
) -> None:
    """Counts for nothing: of what is read again nobody knows."""
    client = Client()
    stream = Stream(client, resolve_revision(client, HubId(REPOSITORY)), tmp_path)
    names = [f"model-{k:05}-of-00002.safetensors" for k in range(3)]
    first = stream.weights(names[0])
    assert first is not None
    assert all(stream.weights(name) for name in names)
    lines = [f"{stream.listing.files[name].sha256}  {name}" for name in names[:2]]
    notes = tmp_path / "notes"
    notes.write_text("\n".join([*lines, f"{'0' * 64}  {names[2]}", "torn"]))
    tensor = plan(published).tensors[0]
    [source] = tensor.sources
    tensor = replace(tensor, sources=(replace(source, file=first),))
    task = Task(0, (Target(tensor, tmp_path / "out", 0),), 1)
    with stream.reading(task.spans(), notes):
        assert list(stream.verified()) == [names[1]]


# --- the command ------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("--stream",)])
def test_what_is_said(
    hub: HubServer,
    out: Path,
    more: tuple[str, ...],
    run: Command,
) -> None:
    done = run(REPOSITORY, "-o", out, *more)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1] == (
        f"{REPOSITORY} at commit {hub.commit(REPOSITORY)}; "
        "sha256 of 3 files equal to the published ones"
    )


@pytest.mark.parametrize("more", [(), ("--stream",)])
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("some/folder", "has no such repository, or it is private and HF_TOKEN does not give "
         "access to it; and there is no local folder some/folder"),
        (f"{REPOSITORY}@v9", "no such revision on"),
        ("nowhere", "does not exist; expected a checkpoint folder"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("hub")
def test_one_line_says_what_is_wrong(
    out: Path,
    source: str,
    said: str,
    more: tuple[str, ...],
    run: Command,
) -> None:
    done = run(source, "-o", out, *more)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    if source == "nowhere" and more:
        said = "--stream needs a repository on the Hub"
    assert said in done.err
    assert list(out.parent.iterdir()) == []


def test_an_error_names_the_repository(hub: HubServer, out: Path, tmp_path: Path) -> None:
    other = random_checkpoint(tmp_path / "other")
    (other / "config.json").write_text('{"model_type": "llama"}')
    hub.repositories[REPOSITORY] = Repository(other, "3" * 40)
    with pytest.raises(UnsupportedModelError, match=f"^{REPOSITORY}@main/config.json: "):
        convert(REPOSITORY, out, stream=True)
