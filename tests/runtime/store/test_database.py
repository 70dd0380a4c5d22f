"""The store's file: bounded, shared, damaged, killed in the middle of a write."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from gptoss.runtime.harmony import messages as m
from gptoss.runtime.store import schema
from gptoss.runtime.store import store as store_module
from gptoss.runtime.store.conversations import Entry
from gptoss.runtime.store.database import Database, move_aside
from gptoss.runtime.store.errors import CorruptStoreError, StoreError, StoreFullError
from gptoss.runtime.store.owners import LOCAL_OWNER as ME
from gptoss.runtime.store.responses import StoredResponse
from gptoss.runtime.store.store import Store

WRITER = """
import sys
from pathlib import Path
from gptoss.runtime.harmony import messages as m
from gptoss.runtime.store.conversations import Entry
from gptoss.runtime.store.responses import StoredResponse
from gptoss.runtime.store.store import Store

store = Store(Path(sys.argv[1]))
name, count = sys.argv[2], int(sys.argv[3])
made = store.conversations.create("local", title=name)
print(made.id, flush=True)
for i in range(count):
    response = StoredResponse(f"resp_{name}_{i}", 1e12, None, {"text": "x" * (i * 37 % 5000)}, ())
    entry = Entry(m.user(f"{name} {i}"), id=f"msg_{i}")
    store.finish_response("local", response, conversation=made.id, entries=(entry,))
    print(i, flush=True)
"""


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    """Another process that writes, and reports what it was told to be written."""
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, path, name, str(count)], stdout=subprocess.PIPE, text=True
    )


def response(identity: str, size: int, created: float | None = None) -> StoredResponse:
    created = time.time() if created is None else created
    return StoredResponse(identity, created, None, {"text": "x" * size}, ())


def test_what_expires_and_what_does_not(tmp_path: Path) -> None:
    path, old = tmp_path / "store", time.time() - 31 * 24 * 3600
    with Store(path) as store:
        kept = store.conversations.create(ME, [Entry(m.user("a"), created=old)])
        store.responses.put(ME, response("resp_old", 10, old))
        store.responses.put(ME, response("resp_new", 10))
        store.rounds.remember(ME, [], [m.final("a")], ["call_1"])
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE rounds SET created = ?", (old,))
    with Store(path) as store:
        assert store.responses.get(ME, "resp_new")
        with pytest.raises(StoreError):
            store.responses.get(ME, "resp_old")
        assert store.rounds.of_call(ME, "call_1") is None
        assert store.conversations.load(ME, kept.id)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM round_keys").fetchone() == (0,)


def test_a_running_store_prunes_sometimes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = time.time() - 31 * 24 * 3600
    with Store(tmp_path / "store") as store:
        store.responses.put(ME, response("resp_old", 10, old))
        store.finish_response(ME, response("resp_1", 10))
        assert store.responses.get(ME, "resp_old")
        monkeypatch.setattr(store_module, "PRUNE_SECONDS", -1)
        store.finish_response(ME, response("resp_2", 10))
        with pytest.raises(StoreError):
            store.responses.get(ME, "resp_old")


@pytest.mark.parametrize("on_disk", [True, False])
def test_the_oldest_responses_make_room(tmp_path: Path, on_disk: bool) -> None:
    limit = 1 << 20
    with Store(tmp_path / "store" if on_disk else None, max_bytes=limit) as store:
        kept = store.conversations.create(ME, [Entry(m.user("a"))])
        for i in range(100):
            store.responses.put(ME, response(f"resp_{i}", 50_000, time.time() + i))
            assert store.used_bytes() <= limit
        assert store.responses.get(ME, "resp_99")
        with pytest.raises(StoreError):
            store.responses.get(ME, "resp_0")
        assert store.conversations.load(ME, kept.id).messages == (m.user("a"),)
    if on_disk:
        assert (tmp_path / "store").stat().st_size <= limit


def test_conversations_are_never_deleted_to_make_room(tmp_path: Path) -> None:
    with Store(tmp_path / "store", max_bytes=1 << 20) as store:
        made = store.conversations.create(ME)
        entry = m.user("x" * 50_000)
        written = 0
        with suppress(StoreFullError):
            for _ in range(100):
                store.conversations.append(ME, made.id, [Entry(entry)])
                written += 1
        with pytest.raises(StoreFullError, match="delete conversations"):
            store.conversations.append(ME, made.id, [Entry(entry)])
        assert 8 <= written <= 20
        assert len(store.conversations.load(ME, made.id).entries) == written
        store.conversations.delete(ME, made.id)
        store.conversations.create(ME, [Entry(m.user("x" * 50_000))])


def test_deleted_text_is_not_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Store(path) as store:
        made = store.conversations.create(ME, [Entry(m.user("a very private text " * 50))])
        store.conversations.delete(ME, made.id)
    assert b"private" not in path.read_bytes()


def test_threads_share_a_store(tmp_path: Path) -> None:
    with Store(tmp_path / "store") as store:
        made = store.conversations.create(ME)

        def write(name: str) -> None:
            for i in range(25):
                store.conversations.append(ME, made.id, [Entry(m.user(f"{name}{i}"))])
                store.conversations.recent(ME)

        threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        texts = [it.text for it in store.conversations.load(ME, made.id).messages]
        for name in "abcd":
            assert [it for it in texts if it[0] == name] == [f"{name}{i}" for i in range(25)]


def test_processes_share_a_store(tmp_path: Path) -> None:
    path = tmp_path / "store"
    writers = [writer(path, name, 20) for name in "ab"]  # the file is new: both create it
    outputs = [it.communicate(timeout=120)[0].split() for it in writers]
    with Store(path) as store:
        for name, (made, *written) in zip("ab", outputs, strict=True):
            assert written == [str(i) for i in range(20)]
            texts = [it.text for it in store.conversations.load(ME, made).messages]
            assert texts == [f"{name} {i}" for i in range(20)]


def check_after_kill(path: Path, seed: int) -> int:
    """Kill a writer at a random moment, the first one after it has written something; what it
    reported as written must be there.
    """
    process = writer(path, f"w{seed}", 100_000)
    assert process.stdout is not None
    made = process.stdout.readline().strip()
    first = [process.stdout.readline()] if seed == 0 else []
    time.sleep(random.Random(seed).random() * 0.3)
    process.kill()
    lines = [*first, *process.stdout.readlines()]
    written = [line.strip() for line in lines if line.endswith("\n")]
    process.wait()
    process.stdout.close()
    with Store(path) as store:
        entries = store.conversations.load(ME, made).entries
        assert [it.id for it in entries[: len(written)]] == [f"msg_{i}" for i in written]
        assert len(entries) - len(written) in (0, 1)  # written, not yet reported
        for i in range(len(entries)):
            body = store.responses.get(ME, f"resp_w{seed}_{i}").body
            assert len(body["text"]) == i * 37 % 5000
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return len(written)


def test_killed_in_the_middle_of_a_write(tmp_path: Path) -> None:
    assert sum(check_after_kill(tmp_path / "store", seed) for seed in range(3)) > 0


@pytest.mark.slow
def test_killed_at_fifty_random_moments(tmp_path: Path) -> None:
    assert sum(check_after_kill(tmp_path / "store", seed) for seed in range(50)) > 100


def test_a_damaged_file_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Store(path) as store:
        for i in range(50):
            store.responses.put(ME, response(f"resp_{i}", 5000))
    raw = path.read_bytes()
    rng = random.Random(1)
    reported = []
    for case in range(40):
        damaged = bytearray(raw)
        begin = rng.randrange(len(raw)) if case % 2 else rng.randrange(200)
        for i in range(begin, min(begin + rng.randrange(1, 3000), len(raw))):
            damaged[i] = rng.randrange(256)
        if case % 4 == 0:
            del damaged[rng.randrange(len(damaged)) :]
        path.write_bytes(damaged)
        try:
            with Store(path) as store:
                for i in range(50):
                    store.responses.get(ME, f"resp_{i}")
        except StoreError as error:
            reported.append(str(error))
    assert len(reported) > 20
    assert not any("\n" in line for line in reported)


@pytest.mark.parametrize("raw", [b"not a database at all" * 100, b"x", b"SQLite format 3\0" * 200])
def test_another_file_is_not_a_store(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "store"
    path.write_bytes(raw)
    with pytest.raises(CorruptStoreError, match="--reset-store"):
        Store(path)
    assert path.read_bytes() == raw
    moved = move_aside(path)
    assert moved.read_bytes() == raw
    with Store(path) as store:
        assert store.conversations.recent(ME) == []


def test_a_database_of_something_else_is_not_a_store(tmp_path: Path) -> None:
    path = tmp_path / "cookies.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE cookies (name)")
    raw = path.read_bytes()
    with pytest.raises(CorruptStoreError, match="not a store"):
        Store(path)
    assert path.read_bytes() == raw


def test_a_store_of_a_newer_version(tmp_path: Path) -> None:
    path = tmp_path / "store"
    Store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="newer version"):
        Store(path)


def test_an_older_store_is_migrated_and_keeps_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Store(path) as store:
        made = store.conversations.create(ME, [Entry(m.user("a"))])
    newer = (*schema.MIGRATIONS, ("ALTER TABLE conversations ADD COLUMN pinned INTEGER",))
    Database(path, max_bytes=1 << 20, migrations=newer).close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT id, pinned FROM conversations").fetchall() == [
            (made.id, None)
        ]
        assert connection.execute("PRAGMA user_version").fetchone() == (len(newer),)


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store"
    Store(path).close()
    broken = (*schema.MIGRATIONS, ("CREATE TABLE extra (a)", "no SQL"))
    with pytest.raises(StoreError, match="syntax"):
        Database(path, max_bytes=1 << 20, migrations=broken)
    with Store(path) as store:
        assert store.conversations.recent(ME) == []


def test_paths_that_cannot_hold_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a regular file"):
        Store(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(tmp_path / "file" / "store")


def test_a_closed_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.close()
    store.close()
    with pytest.raises(StoreError):
        store.conversations.recent(ME)
