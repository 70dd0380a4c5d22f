"""Files of saved states: whole or not used, whatever is in them and whoever else is there."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest

from gptoss.runtime.engine import cache_folder as module
from gptoss.runtime.engine import saved_state
from gptoss.runtime.engine.cache_folder import CacheFolder, CacheFolderError
from gptoss.runtime.engine.disk_tier import DiskTier
from gptoss.runtime.engine.saved_state import SavedState, Snapshot, StateFileError
from support.posix import IS_ROOT, change_owner, make_pipe
from support.stress import scaled

KEY = bytes(range(32))
AS_ROOT = pytest.mark.skipif(
    os.name == "nt" or not IS_ROOT, reason="needs root to give a file away or mount one"
)


def saved(n: int = 40, seed: int = 0, size: int = 1000) -> SavedState:
    """A state of ``n`` random tokens with two snapshots."""
    rng = np.random.default_rng(seed)

    def some(size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        return rng.integers(0, 256, size, np.uint8)

    return SavedState(
        rng.integers(0, 1000, n, np.int32),
        some(size),
        (Snapshot(n - 3, some(size // 3)), Snapshot(n, some(size // 5))),
    )


def same(a: SavedState, b: SavedState) -> bool:
    return (
        np.array_equal(a.tokens, b.tokens)
        and np.array_equal(a.attention, b.attention)
        and [it.position for it in a.snapshots] == [it.position for it in b.snapshots]
        and all(
            np.array_equal(x.state, y.state) for x, y in zip(a.snapshots, b.snapshots, strict=True)
        )
    )


def read_only(folder: CacheFolder, name: str) -> SavedState:
    return folder.read(folder.open_header(name), 10**6)


@pytest.fixture
def folder(tmp_path: Path) -> CacheFolder:
    return CacheFolder(tmp_path / "cache" / "prefixes")


@pytest.fixture
def path(folder: CacheFolder) -> Path:
    path = folder.write(saved(), KEY, "model.gguf")
    assert path is not None
    return path


def test_what_is_written_is_read(folder: CacheFolder, path: Path) -> None:
    cached = folder.open_header(path.name)
    assert (cached.header.key, cached.header.name) == (KEY, "model.gguf")
    assert cached.nbytes == path.stat().st_size
    assert same(folder.read(cached, 40), saved())
    assert [it.position for it in folder.read(cached, 38).snapshots] == [37]
    assert [it.name for it in path.parent.iterdir()] == [path.name]


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps others out of the user's profile")
def test_only_the_owner_can_read(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    path.parent.chmod(0o755)
    CacheFolder(path.parent)
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_every_changed_byte_is_noticed(folder: CacheFolder, path: Path) -> None:
    """Each byte of the head, and some of every state."""
    raw = path.read_bytes()
    cached = folder.open_header(path.name)
    head = cached.header.attention.offset
    for i in [*range(head), *range(head, len(raw), 7), len(raw) - 1]:
        path.write_bytes(raw[:i] + bytes([raw[i] ^ 1 << i % 8]) + raw[i + 1 :])
        with pytest.raises(StateFileError):
            read_only(folder, path.name)
    path.write_bytes(raw)
    assert same(read_only(folder, path.name), saved())


def test_every_length_but_its_own_is_refused(folder: CacheFolder, path: Path) -> None:
    raw = path.read_bytes()
    for n in [*range(0, 700, 3), *range(700, len(raw), 97), len(raw) - 1]:
        path.write_bytes(raw[:n])
        with pytest.raises(StateFileError):
            read_only(folder, path.name)
    path.write_bytes(raw + b"\0")
    with pytest.raises(StateFileError, match="its header describes"):
        read_only(folder, path.name)


def test_a_header_that_lies_about_sizes_takes_no_memory(folder: CacheFolder, path: Path) -> None:
    """Its checksum matches: whoever wrote it knew the format."""
    huge = saved()
    for tokens, positions in [([5], [2]), ([5], [0]), ([5, 6], [2, 1]), ([-1], [1]), ([5], [])]:
        state = SavedState(
            np.array(tokens, np.int32),
            huge.attention,
            tuple(Snapshot(it, huge.attention) for it in positions),
        )
        hostile = folder.write(state, KEY, "m")
        assert hostile is not None
        with pytest.raises(StateFileError):
            folder.open_header(hostile.name)
    raw = bytearray(path.read_bytes())
    raw[20:28] = (2**63).to_bytes(8, "little")
    _sign(raw, 2, 40)
    path.write_bytes(raw)
    with pytest.raises(StateFileError, match="its header describes"):
        folder.open_header(path.name)


def _sign(raw: bytearray, n_snapshots: int, n_tokens: int) -> None:
    """Make a head's checksum match what it says now."""
    end = saved_state._FIXED.size + n_snapshots * saved_state._ROW.size + 4 * n_tokens
    raw[end : end + 32] = hashlib.sha256(raw[:end]).digest()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
@pytest.mark.parametrize("kind", ["symlink", "fifo", "folder", "writable by others"])
def test_what_is_no_plain_file_of_the_users(folder: CacheFolder, path: Path, kind: str) -> None:
    if kind == "writable by others":
        path.chmod(0o620)
    else:
        moved = path.rename(path.with_name("elsewhere"))
        match kind:
            case "symlink":
                path.symlink_to(moved)
            case "fifo":
                make_pipe(path)
                path.chmod(0o600)
            case _:
                path.mkdir()
    with pytest.raises((CacheFolderError, OSError)):
        read_only(folder, path.name)


@AS_ROOT
def test_a_file_or_folder_of_another_user(folder: CacheFolder, path: Path) -> None:
    change_owner(path, 12345)
    with pytest.raises(CacheFolderError, match="it belongs to user 12345, not to 0"):
        read_only(folder, path.name)
    change_owner(path.parent, 12345)
    with pytest.raises(CacheFolderError, match="it belongs to user 12345"):
        CacheFolder(path.parent)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_folder_that_others_may_write_to(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o770)
    with pytest.raises(CacheFolderError, match=r"mode 770\); chmod go-w it"):
        CacheFolder(tmp_path / "shared")
    (tmp_path / "link").symlink_to(tmp_path / "shared")
    with pytest.raises(CacheFolderError, match="is not a folder"):
        CacheFolder(tmp_path / "link")


@pytest.mark.parametrize("kind", ["file", "broken link", "null character"])
def test_a_path_that_can_be_no_folder(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("\0" if kind == "null character" else "cache")
    if kind == "file":
        path.write_text("")
    elif kind == "broken link":
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(CacheFolderError, match=r"is not a folder|cannot be a path \(embedded null"):
        CacheFolder(path)


def test_the_scan_names_what_it_ignores_and_leaves_it(
    folder: CacheFolder, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = folder.write(saved(seed=1), KEY, "m")
    foreign = folder.write(saved(seed=2), bytes(32), "another model")
    assert other is not None
    assert foreign is not None
    other.write_bytes(b"GGUF")
    (path.parent / "notes.txt").write_text("a user's own")
    (path.parent / f"{KEY.hex()[:16]}\x1b[2J.kv").write_text("no such name")
    assert list(folder.scan(KEY) or ()) == [path]
    assert folder.scan(KEY) is None  # nothing has changed
    assert [it.message for it in caplog.records] == [f"{other} is ignored: the file is truncated"]
    again = folder.write(saved(seed=3), KEY, "m")
    assert set(folder.scan(KEY) or ()) == {path, again}
    assert len(caplog.records) == 1  # not named twice
    assert len(list(path.parent.iterdir())) == 6


def test_the_least_recently_used_give_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CacheFolder(tmp_path / "c", limit=8300)  # four states of 2,001 bytes
    (tmp_path / "c" / "notes.txt").write_text("x" * 10_000)
    paths = []
    for i in range(4):
        path = folder.write(saved(seed=i), KEY, "m")
        assert path is not None
        os.utime(path, (1000 + i, 1000 + i))
        paths.append(path)
    folder.read(folder.open_header(paths[0].name), 40)  # used now
    new = folder.write(saved(seed=9), KEY, "m")
    assert [it.exists() for it in paths] == [True, False, True, True]
    assert [it.name for it in folder.files()] == [it.name for it in (*paths[2:], paths[0], new)]  # type: ignore[union-attr]
    assert folder.write(saved(size=10_000), KEY, "m") is None
    assert len(folder.files()) == 4
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=4000))
    assert folder.write(saved(seed=10), KEY, "m")  # a quarter of 4,000 and what is there
    assert len(folder.files()) == 1


def test_half_written_files_of_the_killed_are_removed(folder: CacheFolder, path: Path) -> None:
    old, new = (path.with_name(f".{path.name}.{i:08x}.part") for i in range(2))
    mine = path.with_name(".mine.part")
    for it in (old, new, mine):
        it.write_bytes(b"x")
    for it in (old, mine):
        os.utime(it, (1000, 1000))
    assert folder.remove_stale() == 1
    assert [old.exists(), new.exists(), mine.exists(), path.exists()] == [False, True, True, True]


# --- when it cannot be written ----------------------------------------------------------------


def written(tier: DiskTier, state: SavedState) -> None:
    done = threading.Event()
    tier.write(state, done.set)
    assert done.wait(60)


def test_a_disk_that_is_full_is_one_warning(
    folder: CacheFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    tier = DiskTier(folder, KEY, "m")
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_state", fail)
        for i in range(3):
            written(tier, saved(seed=i))
    assert [it.levelno for it in caplog.records] == [logging.WARNING]
    assert "cannot be written (No space left on device)" in caplog.text
    assert list(folder.path.iterdir()) == []
    written(tier, saved())  # there is space again
    assert len(folder.files()) == 1
    tier.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


def _can_mount() -> bool:
    return sys.platform == "linux" and os.geteuid() == 0


@pytest.mark.skipif(not _can_mount(), reason="needs root and Linux to mount a small disk")
def test_a_real_disk_that_is_full(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = CacheFolder(small_disk / "cache")
    kept = folder.write(saved(), KEY, "m")
    assert kept is not None
    usage = shutil.disk_usage(Path("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)  # another has taken it meanwhile
    tier = DiskTier(folder, KEY, "m")
    written(tier, saved(seed=1, size=1 << 20))
    written(tier, saved(seed=2, size=1 << 20))
    assert [it.levelno for it in caplog.records] == [logging.WARNING]
    assert [it.name for it in folder.path.iterdir()] == [kept.name]
    assert same(read_only(folder, kept.name), saved())
    tier.close()


@pytest.mark.parametrize("error", [MemoryError("no memory"), ZeroDivisionError("a fault")])
def test_a_write_that_fails_ends_no_later_one(
    folder: CacheFolder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    """A caller that waits for the thread goes on, too."""
    failing = threading.Event()

    def fail(*_: object) -> None:
        assert failing.wait(60)
        raise error

    def wait() -> None:
        tier.wait()
        done.set()

    tier, done = DiskTier(folder, KEY, "m"), threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_state", fail)
        tier.write(saved(), lambda: None)
        threading.Thread(target=wait, daemon=True).start()
        failing.set()
        assert done.wait(60)
    assert str(error) in caplog.text
    written(tier, saved())
    assert len(folder.files()) == 1
    tier.close()


def test_a_folder_that_is_gone_is_one_warning(
    folder: CacheFolder, caplog: pytest.LogCaptureFixture
) -> None:
    tier = DiskTier(folder, KEY, "m")
    shutil.rmtree(folder.path)
    for i in range(3):
        written(tier, saved(seed=i))
        tier.scan()
    assert [it.levelno for it in caplog.records] == [logging.WARNING]
    tier.close()


def test_reading_what_is_gone_or_damaged(
    folder: CacheFolder, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tier = DiskTier(folder, KEY, "m")
    cached = folder.open_header(path.name)
    got: SimpleQueue[SavedState | None] = SimpleQueue()
    got_state = []
    raw = path.read_bytes()
    for change in (lambda: None, lambda: path.write_bytes(raw[:-1] + b"?"), path.unlink):
        change()
        tier.read(cached, 40, got.put)
        got_state.append(got.get(timeout=60))
    assert [it is not None for it in got_state] == [True, False, False]
    assert "is ignored: a state's checksum does not match" in caplog.text
    tier.close()


# --- several at a time ------------------------------------------------------------------------


def test_threads_that_write_read_and_evict(tmp_path: Path) -> None:
    """Whatever is read is what was written, and nothing else is ever seen."""
    states = {seed: saved(seed=seed, size=20_000) for seed in range(8)}
    expected = {state.tokens.tobytes(): state for state in states.values()}
    read = []

    def work(seed: int) -> None:
        folder = CacheFolder(tmp_path / "c", limit=120_000)  # four of them
        rng = np.random.default_rng(seed)
        for _ in range(60):
            folder.write(states[int(rng.integers(8))], KEY, "m")
            for cached in (folder.scan(KEY) or {}).values():
                try:
                    state = folder.read(cached, 40)
                except FileNotFoundError:
                    continue
                assert same(state, expected[state.tokens.tobytes()])
                read.append(state)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(read) > 100


CHILD = """
import sys, numpy as np
from pathlib import Path
from gptoss.runtime.engine.cache_folder import CacheFolder
from gptoss.runtime.engine.saved_state import SavedState, Snapshot
folder = CacheFolder(Path(sys.argv[1]), limit=60_000_000)
rng = np.random.default_rng(int(sys.argv[2]))
print("ready", flush=True)
while True:
    n = int(rng.integers(10, 1000))
    state = rng.integers(0, 256, 4_000_000, np.uint8)
    tokens = rng.integers(0, 1000, n, np.int32)
    folder.write(SavedState(tokens, state, (Snapshot(n, state[:1000]),)), bytes(range(32)), "m")
    print("written", flush=True)
"""


def _kill_at(tmp_path: Path, seed: int, delay: float) -> None:
    """Kill a writer some seconds after it began; the first one, after it has written a state."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, tmp_path, str(seed)], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert seed > 0 or child.stdout.readline() == b"written\n"
        time.sleep(delay)
        child.kill()


def _check_kills(tmp_path: Path, n: int) -> None:
    """Kill writers at random moments, two at a time; all that has a name is whole."""
    rng = np.random.default_rng(0)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda i: _kill_at(tmp_path, i, float(rng.uniform(0, 0.1))), range(n)))
    folder = CacheFolder(tmp_path)
    files = folder.files()
    assert files
    for it in files:
        read_only(folder, it.name)
    parts = [it for it in tmp_path.iterdir() if it.name.endswith(".part")]
    assert len(files) + len(parts) == len(list(tmp_path.iterdir()))
    assert folder.remove_stale(-1) == len(parts)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_writers_that_are_killed(tmp_path: Path) -> None:
    _check_kills(tmp_path, 6)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_many_writers_that_are_killed(tmp_path: Path) -> None:
    _check_kills(tmp_path, scaled(25))
