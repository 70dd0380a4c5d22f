"""Loading and leaving an engine: progress, files that cannot be loaded, threads, forks, exit."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gptoss.converter.convert import convert
from gptoss.runtime.engine import loader
from gptoss.runtime.engine.base import (
    EngineError,
)
from gptoss.runtime.engine.llama_cpp import LlamaEngine
from gptoss.runtime.engine.settings import EngineSettings
from gptoss.runtime.sampling.sampler import greedy
from support.checkpoints import random_checkpoint


def test_progress(random_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It moves while the file is read, not only when llama.cpp has it."""
    monkeypatch.setattr(loader, "_READ_CHUNK", 4096 * 16)
    calls: list[tuple[float, threading.Thread]] = []
    engine = LlamaEngine(
        random_gguf,
        EngineSettings(n_ctx=256),
        progress=lambda share: calls.append((share, threading.current_thread())),
    )
    engine.close()
    shares = [share for share, _ in calls]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert sum(share < 0.9 for share in shares) > 5
    assert {thread for _, thread in calls} == {threading.current_thread()}


@pytest.mark.parametrize("at", [0.0, 0.5, 0.99, 1.0])
def test_an_exception_of_the_progress_callback_ends_the_load(
    random_gguf: Path, monkeypatch: pytest.MonkeyPatch, at: float
) -> None:
    """It is raised as it is; this is how a load is cancelled."""
    monkeypatch.setattr(loader, "_READ_CHUNK", 4096 * 16)

    class CancelledError(Exception):
        pass

    def progress(share: float) -> None:
        if share >= at:
            raise CancelledError

    with pytest.raises(CancelledError):
        LlamaEngine(random_gguf, EngineSettings(n_ctx=256), progress=progress)
    LlamaEngine(random_gguf, EngineSettings(n_ctx=256)).close()


@pytest.mark.parametrize("hidden", [32, 128])
def test_q8_0_is_run_as_it_is_in_the_file(hidden: int, tmp_path: Path) -> None:
    """On a processor with AMX llama.cpp would repack it, and end the process when it decodes."""
    source = random_checkpoint(tmp_path / "source", hidden=hidden)
    [gguf] = convert(source, tmp_path / "model.gguf", dense="q8_0").files
    # Of its own: a crash fails this test, and not all of them.
    done = subprocess.run(
        [sys.executable, "-c", DECODE, gguf], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr


DECODE = """
import sys
from pathlib import Path
from gptoss.runtime.engine.llama_cpp import LlamaEngine
from gptoss.runtime.engine.saved_state import Snapshot
from gptoss.runtime.engine.settings import EngineSettings
from gptoss.runtime.sampling.sampler import greedy
engine = LlamaEngine(Path(sys.argv[1]), EngineSettings(n_ctx=64))
print(len(list(engine.generate([1, 2, 3], greedy, stop=set(), max_tokens=4))))
"""


def test_what_llama_cpp_cannot_load(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("GGUF, or is it?" * 10)
    with pytest.raises(EngineError, match=r"text\.gguf: llama\.cpp cannot load it: .*"):
        LlamaEngine(path, EngineSettings(n_ctx=256, n_threads=1))


def run_child(code: str, path: Path, *, code_expected: int = 0) -> str:
    """Run code in a process of its own, so that a signal that ends it is seen; its output."""
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code_expected, done.stderr
    return done.stdout


CLOSED_WHILE_READ = """
import sys, threading, time
from pathlib import Path
from gptoss.runtime.engine.base import EngineError
from gptoss.runtime.engine.llama_cpp import LlamaEngine
from gptoss.runtime.engine.saved_state import Snapshot
from gptoss.runtime.engine.settings import EngineSettings
from gptoss.runtime.sampling.sampler import greedy
for i in range(20):
    engine = LlamaEngine(Path(sys.argv[1]), EngineSettings(n_ctx=4096, n_sequences=2, n_threads=1))
    ended = []
    def read(n):
        try:
            list(engine.generate(list(range(1, n)), greedy, stop=set()))
        except EngineError as error:
            ended.append(str(error))
    readers = [threading.Thread(target=read, args=(n,)) for n in (4, 200, 250)]
    for reader in readers:
        reader.start()
    time.sleep(0.003 * i)
    engine.close()
    for reader in readers:
        reader.join(20)
    assert len(ended) == 3, ended
    assert all("closed" in it for it in ended), ended
print("done")
"""


def test_close_while_threads_read(random_gguf: Path) -> None:
    assert run_child(CLOSED_WHILE_READ, random_gguf) == "done\n"


DAEMON_AT_EXIT = """
import sys, threading, time
from pathlib import Path
from gptoss.runtime.engine.llama_cpp import LlamaEngine
from gptoss.runtime.engine.saved_state import Snapshot
from gptoss.runtime.engine.settings import EngineSettings
from gptoss.runtime.sampling.sampler import greedy
engine = LlamaEngine(Path(sys.argv[1]), EngineSettings(n_ctx=30000, n_threads=1))
def read():
    for prompt in ([1, 2, 3], list(range(1, 250)) * 100):
        list(engine.generate(prompt, greedy, stop=set(), max_tokens=300))
thread = threading.Thread(target=read, daemon=True)
thread.start()
time.sleep({delay})
print("leaving")
"""


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.5])
def test_a_daemon_thread_still_generates_at_exit(random_gguf: Path, delay: float) -> None:
    code = DAEMON_AT_EXIT.replace("{delay}", str(delay))
    assert run_child(code, random_gguf) == "leaving\n"


FORKED = """
import os, sys
from pathlib import Path
from gptoss.runtime.engine.base import ForkedProcessError
from gptoss.runtime.engine.llama_cpp import LlamaEngine
from gptoss.runtime.engine.saved_state import Snapshot
from gptoss.runtime.engine.settings import EngineSettings
from gptoss.runtime.sampling.sampler import greedy
path = Path(sys.argv[1])
engine = LlamaEngine(path, EngineSettings(n_ctx=256, n_threads=1))
running = engine.generate([1, 2, 3], greedy, stop=set())
next(running)
def refused(call):
    try:
        call()
    except ForkedProcessError as error:
        assert "spawn" in str(error)
        return True
    return False
child = os.fork()
if child == 0:
    tried = [
        refused(lambda: engine.generate([1], greedy, stop=set())),
        refused(lambda: LlamaEngine(path, EngineSettings(n_ctx=256, n_threads=1))),
        refused(lambda: list(running)),
    ]
    engine.close()
    running.close()
    sys.exit(0 if all(tried) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert len(list(running)) > 100
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_forked_child_is_refused(random_gguf: Path) -> None:
    assert run_child(FORKED, random_gguf) == "done\n"


def test_an_engine_that_is_dropped_gives_its_thread_back(random_gguf: Path) -> None:
    gc.collect()
    before = threading.active_count()
    for _ in range(5):
        engine = LlamaEngine(random_gguf, EngineSettings(n_ctx=256, n_threads=1))
        generation = engine.generate([1, 2, 3], greedy, stop=set())
        del engine
        assert next(generation) >= 0  # kept alive by what is read from it
        del generation
    gc.collect()
    assert threading.active_count() <= before


@pytest.mark.parametrize(("before", "expected"), [(None, "1"), ("0", "0")])
def test_a_failed_assertion_starts_no_debugger(before: str | None, expected: str) -> None:
    """ggml runs gdb on this process unless the variable is set when its library is loaded."""
    environment = {k: v for k, v in os.environ.items() if k != "GGML_NO_BACKTRACE"}
    if before is not None:
        environment["GGML_NO_BACKTRACE"] = before
    code = """
import builtins, os
real = builtins.__import__
def watch(name, *rest):
    if name.startswith("llama_cpp"):
        print(os.environ.get("GGML_NO_BACKTRACE"), flush=True)
        os._exit(0)
    return real(name, *rest)
builtins.__import__ = watch
import gptoss.runtime.engine.llama_cpp
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.split() == [expected]
