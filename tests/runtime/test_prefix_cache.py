"""The prefix cache behind the engine: what is reused gives the logits that a cold run gives."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from gptoss.errors import OutputError
from gptoss.formats.gguf import GgufFile
from gptoss.runtime.chat.model import open as open_model
from gptoss.runtime.engine import cache_command as command_module
from gptoss.runtime.engine import cache_folder, saved_state, stream_pool
from gptoss.runtime.engine.cache_command import cache_command
from gptoss.runtime.engine.drafts import BatchCosts
from gptoss.runtime.engine.kv_reuse import Stream, common_prefix
from gptoss.runtime.engine.llama_cpp import LlamaEngine
from gptoss.runtime.engine.model_key import ModelFiles
from gptoss.runtime.engine.prefix_cache import CacheSettings
from gptoss.runtime.engine.settings import EngineSettings
from gptoss.runtime.sampling.sampler import greedy
from support.forced_replies import (
    NOISE,
    Row,
    difference,
    feed,
    random_tokens,
)
from support.stress import scaled

N_CTX = 4096

CHEAP = BatchCosts((1, 65), (1, 1.5))
"""Drafts pay for themselves."""

Start = Callable[..., LlamaEngine]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def start(random_gguf: Path, folder: Path) -> Iterator[Start]:
    """Starts engines that share one cache folder."""
    engines = []

    def make(n_sequences: int = 1, memory: int = 64 << 20, **options: Any) -> LlamaEngine:
        cache = options.pop("cache", CacheSettings(memory, folder))
        standard: dict[str, Any] = {"n_ctx": N_CTX, "n_threads": 1, "n_sequences": n_sequences}
        engine = LlamaEngine(random_gguf, EngineSettings(**standard | options), cache=cache)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def scratch(random_gguf: Path) -> Iterator[Callable[[Sequence[int]], Row]]:
    """A function that gives the logits after a prompt, decoded with nothing in memory."""
    engine = LlamaEngine(
        random_gguf, EngineSettings(n_ctx=N_CTX, n_threads=1), cache=CacheSettings(memory=0)
    )

    def logits(prompt: Sequence[int]) -> Row:
        for stream in engine._scheduler._pool.streams:  # at rest between requests
            stream.clear()
        fed = feed(engine, prompt)
        assert fed.timings.reused_tokens == 0
        return fed.rows[0]

    yield logits
    engine.close()


Scratch = Callable[[Sequence[int]], Row]


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
from gptoss.runtime.engine.llama_cpp import LlamaEngine
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


# --- random steps -----------------------------------------------------------------------------


@dataclass
class Steps:
    """Conversations that are edited, regenerated, branched, continued, evicted and restarted; at
    each step the logits are compared with those of a cold run."""

    start: Start
    scratch: Scratch
    seed: int
    n_sequences: int = 2
    memory: int = 400_000
    restarts: float = 0.12
    before_restart: Callable[[], None] = lambda: None
    drafts: bool = False
    reused: int = 0
    worst: float = 0.0
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.common = random_tokens(300, seed=self.seed)
        self.chats: list[list[int]] = [list(self.common) for _ in range(self.n_sequences + 2)]
        self.ends: list[list[int]] = [[300] for _ in self.chats]
        self.engine = self.new_engine()

    def new_engine(self) -> LlamaEngine:
        """Start one, with drafts and without in turn."""
        self.drafts = not self.drafts
        costs = CHEAP if self.drafts else None
        return self.start(self.n_sequences, self.memory, draft_costs=costs)

    def run(self, n: int) -> None:
        for _ in range(n):
            if self.rng.random() < self.restarts:
                self.engine.close()
                self.before_restart()
                self.engine = self.new_engine()
            self.step()

    def step(self) -> None:
        """One prompt: from one of the last prompts' ends, the chat's end, or anywhere."""
        i = int(self.rng.integers(len(self.chats)))
        chat, ends = self.chats[i], self.ends[i]
        anywhere = int(self.rng.integers(len(chat) + 1))
        keep = int(self.rng.choice([len(chat), *ends[-2:], anywhere]))
        most = self.rng.choice([100, 800])  # more than the window layers' memory has
        new = random_tokens(int(self.rng.integers(1, most)), seed=int(self.rng.integers(1 << 30)))
        prompt = [*chat[: min(keep, 2000)], *new]
        reply = random_tokens(int(self.rng.integers(1, 200)), seed=int(self.rng.integers(1 << 30)))
        reply += prompt[:100]  # which can be drafted
        checkpoints = sorted({300, *(it for it in ends[-2:] if it < keep), keep} - {0})
        fed = feed(self.engine, prompt, reply, checkpoints=checkpoints)
        self.reused += fed.timings.reused_tokens
        for row, whole in ((fed.rows[0], prompt), (fed.rows[-1], [*prompt, *reply[:-1]])):
            self.worst = float(np.maximum(self.worst, difference(row, self.scratch(whole))))
        self.chats[i] = [*prompt, *reply]
        self.ends[i] = [*(it for it in ends if it < len(prompt)), len(prompt)]


def test_random_steps(start: Start, scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    drafted = []
    drop = Stream.drop_rejected

    def watched(stream: Stream, position: int) -> None:
        drafted.append(position)
        drop(stream, position)

    monkeypatch.setattr(Stream, "drop_rejected", watched)
    steps = Steps(start, scratch, 0)
    steps.run(16)
    assert drafted
    assert steps.worst < NOISE
    assert steps.reused > 3000


def damage(folder: Path) -> Callable[[], None]:
    """Return what changes bytes in the states of every file, as a bad disk would."""

    def change() -> None:
        for path in folder.iterdir():
            section = cache_folder.CacheFolder(folder).open_header(path.name).header.attention
            raw = np.fromfile(path, np.uint8)
            values = raw[section.offset + section.size // 2 : section.offset + section.size]
            values[2000::4001] ^= 0x7F  # llama.cpp reads what is between as numbers of its own
            raw.tofile(path)

    return change


def test_random_steps_over_damaged_files(start: Start, scratch: Scratch, folder: Path) -> None:
    steps = Steps(start, scratch, 2, restarts=0.4, before_restart=damage(folder))
    steps.run(12)
    assert steps.worst < NOISE


def unchecked(file: Any, section: saved_state.Section) -> saved_state.State:
    """``read_section`` without its checksum."""
    state = np.empty(section.size, np.uint8)
    file.seek(section.offset)
    file.readinto(state.data)
    return state


def rewind_without_snapshot(stream: Stream, prompt: Sequence[int]) -> int:
    """``Stream.rewind`` with the places to go back to, but not what was saved there."""
    position = stream.reach(prompt)
    stream._memory.truncate(stream.number, position)
    stream._forget_from(position)
    return position


def rewind_unchecked(stream: Stream, prompt: Sequence[int]) -> int:
    """``Stream.rewind`` as llama.cpp allows it."""
    position = min(common_prefix(stream.tokens, prompt), len(prompt) - 1)
    stream._memory.truncate(stream.number, position)
    stream._forget_from(position)
    return position


@pytest.mark.parametrize(
    ("left_out", "seed"), [("a snapshot", 3), ("a rewind's check", 3), ("a checksum", 12)]
)
def test_random_steps_would_see_what_is_left_out(
    start: Start,
    scratch: Scratch,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    left_out: str,
    seed: int,
) -> None:
    """Proof that the test can fail: the product broken in one place."""
    steps = Steps(start, scratch, seed, restarts=0.4, before_restart=damage(folder))
    match left_out:
        case "a snapshot":
            monkeypatch.setattr(Stream, "rewind", rewind_without_snapshot)
        case "a rewind's check":
            monkeypatch.setattr(Stream, "rewind", rewind_unchecked)
        case _:
            monkeypatch.setattr(cache_folder, "read_section", unchecked)
    for _ in range(30):
        steps.run(1)
        if not steps.worst < 3 * NOISE:  # damage may give NaN
            break
    else:
        pytest.fail(f"{steps.worst} at most")


@pytest.mark.slow
@pytest.mark.parametrize("n_sequences", [1, 2, 3])
def test_many_random_steps(start: Start, scratch: Scratch, n_sequences: int) -> None:
    steps = Steps(start, scratch, seed=n_sequences, n_sequences=n_sequences)
    steps.run(scaled(25))
    assert steps.worst < NOISE
    assert steps.reused > 3_000


# --- the command ------------------------------------------------------------------------------


def run_cache(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cache_command, [*arguments])
    return done.exit_code, done.output


def test_the_command_lists_and_clears(
    start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_module, "default_folder", lambda: folder)
    assert run_cache("list") == (0, f"0 files, 0.0 MB in {folder}\n")
    assert run_cache("clear") == (0, "removed 0 files, 0.0 MB\n")
    assert not folder.exists()
    engine = start()
    feed(engine, random_tokens(600))
    engine.close()
    cache = cache_folder.CacheFolder(folder)
    state = cache.read(cache.open_header(cache.files()[0].name), N_CTX)
    cache.write(replace(state, tokens=state.tokens[::-1].copy()), bytes(32), "\x1b[2Jevil.gguf")
    (folder / f"{'0' * 16}-{'1' * 32}.kv").write_text("garbage")
    (folder / "notes.txt").write_text("a user's own")
    code, text = run_cache("list")
    assert code == 0
    assert "600 tokens of random.gguf" in text
    assert "600 tokens of \\x1b[2Jevil.gguf" in text
    assert "not used: the file is truncated" in text
    assert "3 files" in text
    listed = json.loads(run_cache("list", "--json")[1])
    assert [it["tokens"] for it in listed["files"]].count(600) == 2
    assert listed["bytes"] == sum(it["bytes"] for it in listed["files"])
    code, text = run_cache("clear", "--json")
    assert (code, json.loads(text)["removed"], json.loads(text)["left"]) == (0, 3, 0)
    assert [it.name for it in folder.iterdir()] == ["notes.txt"]


def test_the_command_without_a_usable_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(command_module, "default_folder", lambda: tmp_path / "file")
    for name in ("list", "clear"):
        done = CliRunner().invoke(cache_command, [name])
        assert isinstance(done.exception, OutputError)


def test_an_option_turns_it_off(
    random_gguf: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of gptoss.open, for chats with more tokens than a file is worth."""
    monkeypatch.setenv("GPTOSS_CACHE", str(folder))
    for disk_cache, n_files in ((False, 0), (True, 1)):
        with open_model(random_gguf, n_ctx=2048, n_threads=1, disk_cache=disk_cache) as model:
            list(model.engine.generate(random_tokens(600), greedy, stop=set(), max_tokens=2))
        assert len(list(folder.glob("prefixes/*"))) == n_files
