"""Conversions that are cut short: nothing at the output path, and the next one goes on."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from gptoss.converter.convert import convert
from gptoss.converter.export.export import export
from gptoss.converter.write import tasks, writer
from gptoss.converter.write.staging import folder_of
from gptoss.errors import OutputError
from gptoss.formats.byte_source import FileSource
from support.checkpoints import random_checkpoint
from support.posix import SIGKILL

SLOWLY = """
import sys, time
from gptoss.converter import cli
from gptoss.converter.write import tasks, writer
write, seconds = tasks.write_all, float(sys.argv.pop(1))
def slowly(*args):
    time.sleep(seconds)
    write(*args)
tasks.write_all = writer.write_all = slowly
writer.JOURNAL_SECONDS, tasks.CHUNK = 0.05, 2**14
cli.main()
"""
"""The command, slow enough for the moment of a signal to matter; its first argument says how."""
PATIENCE = 300
"""Seconds after which a process hangs, however busy the machine."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("source") / "model", hidden=128, layers=3)


@pytest.fixture(scope="module")
def whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What an undisturbed conversion gives."""
    out = tmp_path_factory.mktemp("whole") / "out.gguf"
    convert(checkpoint, out)
    return out.read_bytes()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.gguf"


def started(checkpoint: Path, out: Path, seconds: float, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SLOWLY, str(seconds), str(checkpoint), "-o", str(out), *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def journal_lines(out: Path) -> int:
    try:
        return (folder_of(out) / "journal").read_bytes().count(b"\n")
    except OSError:
        return 0


def wait_for_notes(process: subprocess.Popen[str], out: Path, lines: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while journal_lines(out) < lines:
        assert time.monotonic() < deadline, "the journal does not grow"
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "code", "last"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "")],
)
def test_an_interrupt_keeps_what_is_done(
    checkpoint: Path, out: Path, whole: bytes, number: int, code: int, last: str
) -> None:
    process = started(checkpoint, out, 0.02)
    wait_for_notes(process, out, 5)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    said = f"what is done is kept in {folder_of(out)}; the same command resumes it\n"
    assert (process.returncode, errors.strip()) == (code, (said + last).strip())
    assert list(out.parent.iterdir()) == [folder_of(out)]

    again = started(checkpoint, out, 0, "--json")
    printed, errors = again.communicate(timeout=60)
    resumed = json.loads(printed)["resumed"]
    assert 0 < resumed < len(whole)
    assert errors == (f"resuming: {resumed:,} of {len(whole):,} bytes already written\n")
    assert out.read_bytes() == whole
    assert sorted(p.name for p in out.parent.iterdir()) == ["out.gguf", "out.gguf.manifest.json"]


def patch_writes(monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    """Replace what writes headers and chunks."""
    monkeypatch.setattr(tasks, "write_all", write)
    monkeypatch.setattr(writer, "write_all", write)


class Cut(BaseException):
    """Ends a conversion in the midst, as an interrupt does."""


def cut_short(checkpoint: Path, out: Path, **request: Any) -> None:
    """A conversion that is interrupted at about half of its way."""

    def progress(done: int, total: int) -> None:
        if done > total / 2:
            raise Cut

    with pytest.raises(Cut):
        convert(checkpoint, out, progress=progress, **request)
    assert not out.exists()
    assert folder_of(out).is_dir()


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many and so slow that a tiny conversion has a middle."""
    write = tasks.write_all

    def slowly(*args: Any) -> None:
        time.sleep(0.001)
        write(*args)

    patch_writes(monkeypatch, slowly)
    monkeypatch.setattr(writer, "TICK_SECONDS", 0.001)
    monkeypatch.setattr(tasks, "CHUNK", 2**12)


@pytest.fixture
def sentences() -> list[str]:
    return []


@pytest.mark.usefixtures("small_steps")
def test_what_is_done_is_not_read_again(
    checkpoint: Path, out: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    read_into = FileSource.read_into

    def counting(self: FileSource, offset: int, out: Any) -> None:
        read.append(memoryview(out).nbytes)
        read_into(self, offset, out)

    cut_short(checkpoint, out)
    with monkeypatch.context() as patch:
        patch.setattr(FileSource, "read_into", counting)
        done = convert(checkpoint, out)
    assert out.read_bytes() == whole
    assert done.resumed > len(whole) * 0.4
    weights = (checkpoint / "model.safetensors").stat().st_size
    metadata = sum(p.stat().st_size for p in checkpoint.iterdir() if p.suffix == ".json")
    assert sum(read) < 0.6 * weights + 4 * metadata


def test_what_takes_its_name_is_on_the_disk(
    checkpoint: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut soon after could leave the name with nothing behind it."""
    flushed: dict[int, int] = {}
    taken: list[str] = []
    replace = os.replace

    def flushing(file: int) -> None:
        stat = os.fstat(file)
        flushed[stat.st_ino] = stat.st_mtime_ns

    def taking(source: Path, target: Path) -> None:
        stat = Path(source).stat()
        assert flushed.get(stat.st_ino) == stat.st_mtime_ns, f"{source} was not flushed last"
        taken.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flushing)
    monkeypatch.setattr(os, "replace", taking)
    done = convert(checkpoint, out)
    assert taken == [out.name, done.manifest.name]
    assert out.parent.stat().st_ino in flushed or os.name == "nt"
    taken.clear()
    exported = export(out, tmp_path / "back")
    assert {*taken} == {path.name for path in exported.files} >= {"config.json"}


def change_nothing(_: Path, out: Path) -> None:
    with (folder_of(out) / "journal").open("ab") as file:
        file.write(b'{"task": 3, "uni')  # torn when the power failed


def another_type(_: Path, out: Path) -> dict[str, str]:  # noqa: ARG001
    return {"dense": "bf16"}


def touch_source(folder: Path, _: Path) -> None:
    os.utime(folder / "model.safetensors", (1, 1))


def damage_journal(_: Path, out: Path) -> None:
    (folder_of(out) / "journal").write_bytes(b"\xff\n\n{}\n")


def shorten_file(_: Path, out: Path) -> None:
    os.truncate(folder_of(out) / "out.gguf", 1000)


AGAIN = "starting again: the unfinished result found there has another source or options"


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_nothing, "resuming: "),
        (another_type, AGAIN),
        (touch_source, AGAIN),
        (damage_journal, AGAIN),
        (shorten_file, AGAIN),
    ],
)
def test_going_on_or_starting_again(
    tmp_path: Path, checkpoint: Path, out: Path, sentences: list[str], change: Any, said: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    cut_short(folder, out)
    request = change(folder, out) or {}
    done = convert(folder, out, say=sentences.append, **request)
    assert len(sentences) == 1
    assert sentences[0].startswith(said)
    assert bool(done.resumed) is (said != AGAIN)
    fresh = out.with_name("fresh.gguf")
    convert(folder, fresh, **request)
    assert out.read_bytes() == fresh.read_bytes()
    assert not folder_of(out).exists()


@pytest.mark.usefixtures("small_steps")
def test_two_cannot_write_the_same_file(checkpoint: Path, out: Path, whole: bytes) -> None:
    refused: list[str] = []

    def another(*_: int) -> None:
        if not refused:
            with pytest.raises(OutputError) as caught:
                convert(checkpoint, out)
            refused.append(str(caught.value))

    convert(checkpoint, out, progress=another)
    assert refused == [f"{out}: another process is writing it; wait for it to end"]
    assert out.read_bytes() == whole


@pytest.mark.parametrize("length", [240, 241, 242, 255, 300])
def test_long_names(checkpoint: Path, tmp_path: Path, whole: bytes, length: int) -> None:
    """The manifest's name is 14 bytes longer, and 255 are possible."""
    out = tmp_path / ("ö" * ((length - 5) // 2) + "n" * ((length - 5) % 2) + ".gguf")
    assert len(os.fsencode(out.name)) == length
    if length <= 241:
        convert(checkpoint, out)
        assert out.read_bytes() == whole
    else:
        with pytest.raises(OutputError, match=f"is {length + 14} bytes long; the limit is 255"):
            convert(checkpoint, out)
        assert list(tmp_path.iterdir()) == []


def test_a_link_in_place_of_the_folder(checkpoint: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder_of(out).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="is a symbolic link; remove it"):
        convert(checkpoint, out)
    assert list((tmp_path / "elsewhere").iterdir()) == []


# --- full disks -------------------------------------------------------------------------------


def test_a_disk_that_fills_up_at_any_moment(
    checkpoint: Path, out: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every write in turn is the one that fails; what stood there stays."""
    monkeypatch.setattr(tasks, "CHUNK", 2**17)
    write, lock = tasks.write_all, threading.Lock()
    may = count = 0

    def until_full(*args: Any) -> None:
        nonlocal count
        with lock:
            count += 1
            if count > may:
                raise OSError(28, "No space left on device")
        write(*args)

    patch_writes(monkeypatch, until_full)
    out.write_bytes(b"older")
    for n in range(0, 40, 3):
        may, count = n, 0
        with pytest.raises(OutputError, match="No space left on device; nothing was left there"):
            convert(checkpoint, out)
        assert out.read_bytes() == b"older"
        assert list(out.parent.iterdir()) == [out]
    may, count = 10**6, 0
    convert(checkpoint, out)
    assert count > 40
    assert out.read_bytes() == whole


LIMITED = """
import resource, sys
from gptoss.converter import cli
from gptoss.converter.write import staging
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
cli.main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
def test_a_file_that_cannot_grow_any_more(checkpoint: Path, out: Path) -> None:
    """The system itself refuses, as a full disk would."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(checkpoint), "-o", str(out)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {out}: cannot be written: ")
    assert done.stderr.count("\n") == 1
    assert list(out.parent.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, check=False).returncode:
        pytest.skip("only root on Linux can make a small disk; the tests above do without")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(file: FileIO) -> None:
    """Write until nothing more fits."""
    with suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_disk_that_is_full(checkpoint: Path, small_disk: Path, whole: bytes) -> None:
    """Room for the file to begin with, until someone else takes it."""
    assert len(whole) < 2**20
    out = small_disk / "out.gguf"
    process = started(checkpoint, out, 0.01)
    wait_for_notes(process, out, 3)
    with (small_disk / "other").open("wb", 0) as other:
        fill(other)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.startswith(f"error: {out}: cannot be written: No space left on device")
    assert [p.name for p in small_disk.iterdir()] == ["other"]
    (small_disk / "other").unlink()
    convert(checkpoint, out)
    assert out.read_bytes() == whole


# --- kills ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_a_hundred_kills(checkpoint: Path, out: Path, whole: bytes) -> None:
    """SIGKILL at random moments: a file that is there is whole, and the next run goes on."""
    rng = random.Random(3)
    kills = attempts = resumed = again = whole_files = 0
    published = False  # and killed before the staging folder was removed: nothing to resume
    while kills < 100:
        process = started(checkpoint, out, 0.002, "--json")
        left = (folder_of(out) / "journal").exists()
        lines = journal_lines(out)
        limit: float | None = rng.uniform(0.1, 0.9)  # at any moment, while Python starts too
        attempts += 1
        if attempts % 10 == 0:  # not at all, however busy the machine is
            limit = None
        elif kills % 2 == 0:  # while tensors are written
            wanted, limit = lines + rng.randrange(1, 50), 0.0
            while process.poll() is None and journal_lines(out) < wanted:
                time.sleep(0.002)
        try:
            printed, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.send_signal(SIGKILL)
            _, errors = process.communicate()
            kills += 1
        else:
            assert process.returncode == 0, errors
            assert published or bool(json.loads(printed)["resumed"]) is (lines > 1)
            whole_files += 1
        resumed += errors.startswith("resuming")
        again += errors.startswith("starting again")
        assert lines > 1 or "resuming" not in errors
        published = out.exists()
        if published:
            assert out.read_bytes() == whole
            out.unlink()
        assert left or "starting again" not in errors
    convert(checkpoint, out)
    assert out.read_bytes() == whole
    assert resumed > 10
    assert whole_files > 3
