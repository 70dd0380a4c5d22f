"""Sources that change meanwhile, results resumed with something else, files of others."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptoss.converter.convert import convert
from gptoss.converter.export.export import export
from gptoss.converter.repair.repair import repair
from gptoss.converter.write import staging, tasks, writer
from gptoss.converter.write.staging import folder_of
from gptoss.errors import CheckpointError, GgufError, GptossError, OutputError
from support import adapters, ggufs
from support.adapters import Lora
from support.checkpoints import random_checkpoint
from support.posix import make_pipe

EXPERTS = tuple(f"model.layers.1.mlp.experts.{name}" for name in adapters.EXPERTS)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return random_checkpoint(tmp_path / "source", hidden=128, layers=3)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.gguf"


def overwrite(path: Path) -> None:
    """Other bytes at the end, of the same size and time."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(bytes(1000))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path: Path) -> None:
    """Another file of the same size and time takes its place."""
    before, other = path.stat(), path.with_name("other")
    shutil.copyfile(path, other)
    overwrite(other)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


CHANGES = [pytest.param(overwrite, id="overwritten"), pytest.param(replace, id="replaced")]


def after_half(change: Callable[[], None]) -> Callable[[int, int], None]:
    done = False

    def progress(written: int, total: int) -> None:
        nonlocal done
        if written > total / 2 and not done:
            done = True
            change()

    return progress


@pytest.mark.skipif(sys.platform == "win32", reason="no file of the same time can be told there")
@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changes_while_it_is_read(
    source: Path, out: Path, change: Callable[[Path], None]
) -> None:
    weights = source / "model.safetensors"
    convert(source, out, dense="bf16")
    whole = out.read_bytes()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: was modified while being read"):
        convert(source, out, progress=after_half(lambda: change(weights)))
    assert out.read_bytes() == whole
    assert not folder_of(out).exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no file of the same time can be told there")
@pytest.mark.parametrize("change", CHANGES)
def test_a_gguf_that_changes_while_it_is_read(
    source: Path, out: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    convert(source, out, dense="bf16")
    progress = after_half(lambda: change(out))
    with pytest.raises(GgufError, match=r"out\.gguf: was modified while being read"):
        export(out, tmp_path / "back", progress=progress)
    broken = ggufs.edited(out, lambda m: m.keys.pop("gpt-oss.rope.freq_base") and None)
    with pytest.raises(GgufError, match="was modified while being read"):
        repair(broken, tmp_path / "new.gguf", progress=after_half(lambda: change(broken)))
    assert not (tmp_path / "back").exists()
    assert not (tmp_path / "new.gguf").exists()


# --- resumed with something else --------------------------------------------------------------


class Stopped(BaseException):
    pass


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """So slow that a small conversion has a middle."""
    write = tasks.write_all

    def slowly(*args: Any) -> None:
        time.sleep(0.001)
        write(*args)

    monkeypatch.setattr(tasks, "write_all", slowly)
    monkeypatch.setattr(writer, "TICK_SECONDS", 0.001)
    monkeypatch.setattr(tasks, "CHUNK", 2**12)


def stop_half_way(source: Path, out: Path, **options: Any) -> None:
    def stop() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        convert(source, out, progress=after_half(stop), **options)
    assert folder_of(out).is_dir()


def set_alpha(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] * 2}))


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda _, lora: set_alpha(lora), id="alpha"),
        pytest.param(lambda _, lora: replace(lora / "adapter_model.safetensors"), id="adapter"),
        pytest.param(lambda source, _: replace(source / "model.safetensors"), id="weights"),
        pytest.param(lambda source, _: overwrite(source / "model.safetensors"), id="bytes"),
        pytest.param(lambda *_: None, id="nothing"),
    ],
)
def test_resuming_never_mixes_two_requests(
    source: Path, out: Path, tmp_path: Path, change: Callable[[Path, Path], None], request: Any
) -> None:
    lora = tmp_path / "lora"
    adapters.write(lora, source, Lora(EXPERTS))
    stop_half_way(source, out, lora=lora)
    change(source, lora)
    done = convert(source, out, lora=lora)
    assert bool(done.resumed) is (request.node.callspec.id == "nothing")
    convert(source, tmp_path / "fresh.gguf", lora=lora)
    assert out.read_bytes() == (tmp_path / "fresh.gguf").read_bytes()


# --- the staging folder -----------------------------------------------------------------------


def lock_alone(folder: Path) -> None:
    (folder / "lock").touch()


def damaged_journal(folder: Path) -> None:
    lock_alone(folder)
    (folder / "journal").write_bytes(b"\xff")


def our_journal(folder: Path) -> None:
    lock_alone(folder)
    head = {"format": staging.FORMAT, "fingerprint": "0", "files": ["old.gguf"]}
    (folder / "journal").write_text(json.dumps(head) + "\n")


@pytest.mark.parametrize("begun", [lock_alone, damaged_journal, our_journal])
@pytest.mark.parametrize("kind", ["file", "folder", "link", "in whole"])
def test_files_of_others_are_never_removed(
    source: Path, out: Path, begun: Callable[[Path], None], kind: str
) -> None:
    folder = folder_of(out)
    mine = folder / "whole" / "mine" if kind == "in whole" else folder / "mine"
    mine.parent.mkdir(parents=True)
    begun(folder)
    if kind == "folder":
        mine.mkdir()
        (mine / "deep").write_text("keep me")
    elif kind == "link":
        (folder.parent / "elsewhere").write_text("keep me")
        mine.symlink_to(folder.parent / "elsewhere")
    else:
        mine.write_text("keep me")
    with pytest.raises(OutputError, match="is not a staging folder; move its files elsewhere"):
        convert(source, out)
    kept = mine / "deep" if kind == "folder" else mine
    assert kept.read_text() == "keep me"


def test_an_old_runs_files_are_removed(source: Path, out: Path) -> None:
    folder = folder_of(out)
    folder.mkdir()
    our_journal(folder)
    (folder / "old.gguf").write_bytes(b"old")
    convert(source, out)
    assert not folder.exists()


def test_a_file_that_comes_meanwhile_is_kept(source: Path, out: Path) -> None:
    mine = folder_of(out) / "mine"

    def progress(_done: int, _total: int) -> None:
        mine.write_text("keep me")

    convert(source, out, progress=progress)
    assert out.exists()
    assert mine.read_text() == "keep me"


DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    "lines",
    [
        DEEP + b"\n",
        b'{"format": 2, "fingerprint": "", "files": ["../../x"]}\n',
        b'{"format": 2, "fingerprint": "", "files": 7}\n',
        b'{"format": 2}\n',
        b"null\n",
        b"9" * 5000 + b"\n",
        b"",
    ],
)
def test_journals_of_any_content(source: Path, out: Path, lines: bytes) -> None:
    folder = folder_of(out)
    folder.mkdir()
    lock_alone(folder)
    (folder / "journal").write_bytes(lines)
    convert(source, out)
    assert out.exists()


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize(
    "line",
    [
        DEEP,
        b'{"task": 0, "units": 1.5, "sha256": []}',
        b'{"task": 0, "units": -1, "sha256": []}',
        b'{"task": 0, "units": 99999999, "sha256": []}',
        b'{"task": "0", "units": 1, "sha256": []}',
        b'{"task": 0, "units": 1, "sha256": ["x"]}',
        b'{"task": 0, "units": true, "sha256": {}}',
        b'{"task": [], "units": 1, "sha256": []}',
    ],
)
def test_lines_of_any_content(source: Path, out: Path, tmp_path: Path, line: bytes) -> None:
    stop_half_way(source, out)
    with (folder_of(out) / "journal").open("ab") as file:
        file.write(line + b"\n")
    convert(source, out)
    convert(source, tmp_path / "fresh.gguf")
    assert out.read_bytes() == (tmp_path / "fresh.gguf").read_bytes()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files on Windows")
@pytest.mark.parametrize("name", ["journal", "lock", "out.gguf"])
def test_a_pipe_in_the_staging_folder(source: Path, out: Path, name: str) -> None:
    folder = folder_of(out)
    folder.mkdir()
    lock_alone(folder)
    (folder / name).unlink(missing_ok=True)
    make_pipe(folder / name)
    raised: list[BaseException] = []

    def run() -> None:
        try:
            convert(source, out)
        except GptossError as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits for a writer"
    [error] = raised
    assert isinstance(error, OutputError)


def test_an_output_that_is_a_link(source: Path, out: Path, tmp_path: Path) -> None:
    """Renaming would replace the link; what it names stays as it is, too."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("keep me")
    for target in (elsewhere, tmp_path / "gone"):
        out.unlink(missing_ok=True)
        out.symlink_to(target)
        with pytest.raises(OutputError, match=r"is a symbolic link to .*; name that file"):
            convert(source, out)
        assert out.is_symlink()
    assert elsewhere.read_text() == "keep me"
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "back").symlink_to(empty, target_is_directory=True)
    convert(source, tmp_path / "m.gguf")
    with pytest.raises(OutputError, match="exists already; choose a new folder"):
        export(tmp_path / "m.gguf", tmp_path / "back")
