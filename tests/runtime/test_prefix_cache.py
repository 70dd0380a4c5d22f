"""The prefix cache behind the engine: what is reused gives the logits that a cold run gives."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gptoss.formats.gguf import GgufFile
from gptoss.runtime.engine import cache_folder, prefix_cache, saved_state, stream_pool
from gptoss.runtime.engine.llama_cpp import LlamaContext, LlamaEngine
from gptoss.runtime.engine.model_key import ModelFiles
from gptoss.runtime.engine.prefix_cache import CacheSettings
from gptoss.runtime.engine.settings import EngineSettings
from support.forced_replies import (
    N_CTX,
    NOISE,
    Scratch,
    Start,
    difference,
    feed,
    random_tokens,
)

# --- after a restart --------------------------------------------------------------------------


def test_a_conversation_goes_on_after_a_restart(start: Start, scratch: Scratch) -> None:
    """A turn with reasoning, then the next turn without it: only the new tokens are decoded."""
    prompt, reply = random_tokens(900), random_tokens(300, seed=1)
    engine = start()
    feed(engine, prompt, reply, checkpoints=[500])
    engine.close()
    following = [*prompt, *random_tokens(40, seed=2)]
    fed = feed(start(), following)
    assert fed.timings.reused_tokens == len(prompt)
    assert difference(fed.rows[0], scratch(following)) < NOISE


@pytest.mark.parametrize(
    ("kept", "reused"),
    [(1199, 1199), (900, 900), (899, 899), (700, 600), (600, 600), (450, 300)],
)
def test_all_places_to_go_back_to_survive(
    start: Start, scratch: Scratch, kept: int, reused: int
) -> None:
    """The turn's end, the same prompt again, an edit of each of the last messages."""
    prompt, reply = random_tokens(900), random_tokens(300, seed=1)
    engine = start()
    feed(engine, prompt, reply, checkpoints=[300, 600])
    engine.close()
    other = [*[*prompt, *reply][:kept], 7, 7]
    fed = feed(start(), other)
    assert fed.timings.reused_tokens == reused
    assert difference(fed.rows[0], scratch(other)) < NOISE


def test_what_conversations_share_is_on_disk_at_once(start: Start, scratch: Scratch) -> None:
    """The engine that decoded it is still running, or was killed."""
    shared = random_tokens(700)
    first, second = start(), start()
    feed(first, [*shared, 1, 2, 3], random_tokens(50), checkpoints=[700])
    until_written(first)
    other = [*shared, *random_tokens(30, seed=3)]
    fed = feed(second, other)
    assert fed.timings.reused_tokens == len(shared)
    assert difference(fed.rows[0], scratch(other)) < NOISE


PROCESS = """
import sys
from pathlib import Path
from gptoss.runtime.engine.llama_cpp import LlamaContext, LlamaEngine
from gptoss.runtime.engine.prefix_cache import CacheSettings
from gptoss.runtime.engine.settings import EngineSettings
from gptoss.runtime.sampling.sampler import greedy
path, folder, *prompt = sys.argv[1:]
settings = EngineSettings(n_ctx=4096, n_threads=1)
engine = LlamaEngine(Path(path), settings, cache=CacheSettings(folder=Path(folder)))
prompt = [int(it) for it in prompt]
generation = engine.generate(prompt, greedy, stop=set(), max_tokens=3, checkpoints=[600])
said = list(generation)
print(generation.timings.reused_tokens, *said)
"""


def test_processes_one_after_the_other_and_at_once(random_gguf: Path, folder: Path) -> None:
    """The interpreter's exit closes the engine."""
    prompt = [*random_tokens(600), 1, 2, 3]

    def run() -> list[str]:
        command = [sys.executable, "-c", PROCESS, *map(str, (random_gguf, folder, *prompt))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split()

    first = run()
    with ThreadPoolExecutor() as pool:
        later = [it.result() for it in [pool.submit(run) for _ in range(3)]]
    assert first[0] == "0"
    assert [it[0] for it in later] == ["600"] * 3
    assert [it[1:] for it in later] == [first[1:]] * 3


def until_written(engine: LlamaEngine) -> None:
    cache = engine._scheduler._pool._cache
    assert cache is not None
    assert cache._disk is not None
    cache._disk.wait()


def test_an_idle_engine_writes_its_conversations(
    start: Start, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(stream_pool, "IDLE_SECONDS", 0.05)
    written = threading.Event()
    write_idle = stream_pool.StreamPool.write_idle

    def watched(pool: stream_pool.StreamPool) -> None:
        write_idle(pool)
        written.set()

    monkeypatch.setattr(stream_pool.StreamPool, "write_idle", watched)
    engine = start()
    feed(engine, random_tokens(600), random_tokens(20))
    assert written.wait(60)
    until_written(engine)
    assert len(list(folder.iterdir())) == 1
    engine.close()
    assert len(list(folder.iterdir())) == 1  # nothing new


def test_what_is_not_worth_it_is_not_written(start: Start, folder: Path) -> None:
    engine = start()
    feed(engine, random_tokens(200), random_tokens(20), checkpoints=[190])
    engine.close()
    assert list(folder.iterdir()) == []


def test_without_a_folder_nothing_is_written(start: Start, folder: Path) -> None:
    engine = start(cache=CacheSettings())
    feed(engine, random_tokens(900), checkpoints=[800])
    engine.close()
    assert not folder.exists()


def test_a_longer_file_replaces_what_it_contains(start: Start, folder: Path) -> None:
    prompt = random_tokens(400)
    engine = start()
    feed(engine, prompt, checkpoints=[380])
    until_written(engine)
    feed(engine, [*prompt, *random_tokens(300, seed=1)])
    engine.close()
    engine = start()
    feed(engine, [1, 2])
    engine.close()
    [file] = folder.iterdir()
    assert cache_folder.CacheFolder(folder).open_header(file.name).header.positions >= {380, 700}


# --- conversations that were evicted ----------------------------------------------------------


def test_an_evicted_conversation_comes_back_from_memory(start: Start, scratch: Scratch) -> None:
    engine = start(cache=CacheSettings())
    chats = [random_tokens(400, seed=i) for i in range(5)]
    for chat in chats:
        assert feed(engine, chat, random_tokens(200, seed=9)).timings.reused_tokens == 0
    for i, chat in enumerate(chats):
        following = [*chat, *random_tokens(20, seed=10 + i)]
        fed = feed(engine, following)
        assert fed.timings.reused_tokens == len(chat)
        assert difference(fed.rows[0], scratch(following)) < NOISE


def test_memory_has_a_limit(start: Start) -> None:
    """Each takes 400 × 512 bytes and two windows of 64 KiB."""
    engine = start(memory=1_100_000, cache=CacheSettings(1_100_000))
    chats = [random_tokens(400, seed=i) for i in range(6)]
    for chat in chats:
        feed(engine, chat)
        cache = engine._scheduler._pool._cache
        assert cache is not None
        assert cache.kept_bytes <= 1_100_000
    reused = [feed(engine, [*chat, 1]).timings.reused_tokens for chat in reversed(chats)]
    assert reused[:3] == [400, 400, 400]
    assert reused[-1] == 0


def test_what_memory_has_no_room_for_goes_to_disk(start: Start, scratch: Scratch) -> None:
    engine = start(memory=1_100_000)
    chats = [random_tokens(400, seed=i) for i in range(6)]
    for chat in chats:
        feed(engine, chat)
    until_written(engine)
    for chat in chats:
        fed = feed(engine, [*chat, 1])
        until_written(engine)
        assert fed.timings.reused_tokens == 400
        assert difference(fed.rows[0], scratch([*chat, 1])) < NOISE


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_may_not_be_kept_is_not_copied(
    start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch, on_disk: bool
) -> None:
    """A copy of a long conversation takes gigabytes, which nobody has planned."""
    monkeypatch.setattr(prefix_cache, "IN_TRANSIT", 400_000)
    copied = []
    copy = LlamaContext.save_attention

    def watched(context: LlamaContext, stream: int) -> saved_state.State | None:
        state = copy(context, stream)
        copied.append(None if state is None else state.nbytes)
        return state

    monkeypatch.setattr(LlamaContext, "save_attention", watched)
    engine = start(cache=CacheSettings(400_000, folder if on_disk else None))
    feed(engine, random_tokens(1000), checkpoints=[900])  # 512,000 bytes
    feed(engine, random_tokens(300, seed=1))  # takes its place
    feed(engine, random_tokens(1000, seed=2))
    engine.close()
    assert [it is not None and it < 200_000 for it in copied] == [True]


def test_a_branch_in_the_only_stream_keeps_what_it_leaves(start: Start, scratch: Scratch) -> None:
    engine = start()
    trunk = random_tokens(600)
    feed(engine, trunk, checkpoints=[300])
    feed(engine, [*trunk[:300], *random_tokens(200, seed=1)])
    fed = feed(engine, [*trunk, 1, 2])
    assert fed.timings.reused_tokens == 600
    assert difference(fed.rows[0], scratch([*trunk, 1, 2])) < NOISE


# --- what must not be used --------------------------------------------------------------------


def test_another_model_or_setting_does_not_use_a_state(
    start: Start, random_gguf: Path, tmp_path: Path, folder: Path
) -> None:
    prompt = random_tokens(600)
    engine = start()
    feed(engine, prompt)
    engine.close()
    copied = tmp_path / "copy.gguf"
    copied.write_bytes(random_gguf.read_bytes())
    settings = CacheSettings(folder=folder)
    for path, n in ((copied, 1), (random_gguf, 2)):
        other = LlamaEngine(
            path, EngineSettings(n_ctx=N_CTX, n_sequences=n, n_threads=1), cache=settings
        )
        assert feed(other, prompt).timings.reused_tokens == 0
        other.close()
    assert feed(start(n_ctx=2048), prompt).timings.reused_tokens == 599  # any that it fits into


def test_a_model_key_covers_every_tensor(random_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    raw = random_gguf.read_bytes()
    path.write_bytes(raw)
    found = path.stat()

    def key(settings: str = "settings") -> bytes:
        return ModelFiles(GgufFile.open(path)).key(settings)

    def key_of(changed: bytes) -> bytes:
        with path.open("r+b") as file:
            file.write(changed)
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
        return key()

    first = key_of(raw)
    for tensor in GgufFile.open(path).tensors.values():
        for at in (tensor.offset, tensor.offset + tensor.nbytes - 1):
            assert key_of(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]) != first
    assert key_of(raw) == first
    assert key("other settings") != first
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    assert key() != first


def test_a_damaged_file_is_named_and_decoded_anew(
    start: Start, scratch: Scratch, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = random_tokens(900)
    engine = start()
    feed(engine, prompt)
    engine.close()
    [path] = folder.iterdir()
    raw = bytearray(path.read_bytes())
    raw[-70_000] ^= 1
    path.write_bytes(raw)
    engine = start()
    fed = feed(engine, [*prompt, 1])
    assert fed.timings.reused_tokens == 0
    assert difference(fed.rows[0], scratch([*prompt, 1])) < NOISE
    named = [it for it in caplog.records if it.levelno == logging.WARNING]
    assert [it.message for it in named] == [f"{path} is ignored: a state's checksum does not match"]
    assert feed(engine, random_tokens(900)).timings.reused_tokens == 899
    engine.close()
    assert feed(start(), [*prompt, 1]).timings.reused_tokens == 900  # written again at the close


def test_a_state_that_llama_cpp_refuses(start: Start, scratch: Scratch, folder: Path) -> None:
    """Of another shape, though all checksums match: whoever wrote it knew the format."""
    prompt = random_tokens(600)
    engine = start()
    feed(engine, prompt)
    engine.close()
    [path] = folder.iterdir()
    cache = cache_folder.CacheFolder(folder)
    cached = cache.open_header(path.name)
    state = cache.read(cached, N_CTX)
    for attention in (state.attention[:-100], state.attention[::-1].copy(), state.attention[:0]):
        for written in folder.iterdir():  # by the engine before, when it was closed
            written.unlink()
        hostile = saved_state.SavedState(state.tokens, attention, state.snapshots)
        cache.write(hostile, cached.header.key, "m")
        engine = start()
        fed = feed(engine, [*prompt, 1])
        assert fed.timings.reused_tokens == 0
        assert difference(fed.rows[0], scratch([*prompt, 1])) < NOISE
        engine.close()


@pytest.mark.parametrize("problem", ["a file", "another's"])
def test_a_cache_folder_that_cannot_be_used(
    start: Start, folder: Path, caplog: pytest.LogCaptureFixture, problem: str
) -> None:
    if problem == "a file":
        folder.write_text("")
    elif os.name == "nt":
        pytest.skip("Windows has no such modes")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    engine = start()
    assert len(feed(engine, random_tokens(600), random_tokens(5)).rows) == 5
    assert [it.levelno for it in caplog.records] == [logging.WARNING]
    assert "no cache of prompts on disk" in caplog.text
