"""An event loop goes on while a model with the full vocabulary is loaded in a thread."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken

import gptoss
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.models.preflight import Model
from gptoss.runtime.sampling.constrained import TokenMasks
from support import peers
from support.checkpoints import random_checkpoint

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(
        sys.platform != "linux", reason="only Linux tells how long a thread waited for a processor"
    ),
]

TICK = 0.005
ATTEMPTS = 3
"""Of which the best counts: on a busy machine others have an influence."""


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    source = random_checkpoint(folder / "source", vocab=201088, tokenizer_folder=peers.tokenizer())
    gptoss.convert(source, folder / "full.gguf")
    return folder / "full.gguf"


@pytest.fixture(scope="module")
def whole_tables(gguf: Path) -> float:
    """Seconds for which tiktoken holds Python's lock while it makes an encoding of its own accord:
    what stalls are compared with, as machines differ. 0.17 s where loads stopped a loop for 0.05 s
    at most, and once for 0.46 s.
    """
    tokenizer = Model.open(gguf).tokenizer
    ranks = {tokenizer.token_bytes(i): i for i in tokenizer.text_ids}
    seconds = []
    for _ in range(ATTEMPTS):
        begun = time.thread_time()
        tiktoken.Encoding("whole", pat_str="x", mergeable_ranks=ranks, special_tokens={})
        seconds.append(time.thread_time() - begun)
    return min(seconds)


def clocks() -> tuple[float, float]:
    """Seconds so far without those in which this thread waited for a processor, and the processor
    time of the process's other threads: only what they use can stop this one.
    """
    waited = int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    return time.perf_counter() - waited, time.process_time() - time.thread_time()


async def longest_stall(call: Callable[[], object]) -> float:
    """Return the longest time, in seconds, that a call in a thread kept the event loop from its
    next tick.
    """
    done = asyncio.create_task(asyncio.to_thread(call))
    stalls, last = [], clocks()
    while not done.done():
        await asyncio.sleep(TICK)
        now = clocks()
        stalls.append(min(now[0] - last[0], now[1] - last[1]))
        last = now
    await done
    return max(stalls)


async def best_of(call: Callable[[], object]) -> float:
    return min([await longest_stall(call) for _ in range(ATTEMPTS)])


async def test_a_stall_is_measured() -> None:
    """A call that holds Python's lock for a tenth of a second, as one of them."""
    bits = list(range(5_000_000))
    assert await longest_stall(lambda: (bits + bits).sort()) > 0.03


async def test_loading_does_not_stop_an_event_loop(
    gguf: Path, whole_tables: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the tables of tiktoken, which are a call of their own."""
    monkeypatch.setattr(Tokenizer, "prepare", lambda _: None)
    opened: list[gptoss.Model] = []
    options: dict[str, Any] = {"parallel": 1, "disk_cache": False}
    stall = await best_of(lambda: opened.append(gptoss.open(gguf, **options)))
    for model in opened:
        model.close()
    assert stall < 0.5 * whole_tables


async def test_tiktokens_tables_stop_it_for_a_moment(gguf: Path, whole_tables: float) -> None:
    """With pauses while it reads the tokens, for 0.6 of the time."""
    tokenizers = iter([Model.open(gguf).tokenizer for _ in range(ATTEMPTS)])
    assert await best_of(lambda: next(tokenizers).prepare()) < 0.85 * whole_tables


async def test_the_masks_of_json_do_not_stop_it(gguf: Path, whole_tables: float) -> None:
    """They are made when the first schema is asked for, while others generate."""
    tokenizer = Model.open(gguf).tokenizer
    tokenizer.prepare()
    masks = [TokenMasks(tokenizer) for _ in range(ATTEMPTS)]
    compilers = iter([it._compiler for it in masks])
    assert await best_of(lambda: next(compilers)._sliced) < 0.5 * whole_tables
