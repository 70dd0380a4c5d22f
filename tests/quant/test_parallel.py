"""Results of threads, and Ctrl-C at any moment while they are waited for."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from gptoss.quant.parallel import as_finished

INTERRUPTED = """
import random, signal, time
from concurrent.futures import ThreadPoolExecutor
from gptoss.quant.parallel import as_finished

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
rng = random.Random(0)
for _ in range(30):
    try:
        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(time.sleep, 0.0001) for _ in range(1500)]
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0005, 0.01))
                for future in as_finished(futures):
                    future.result()
            except KeyboardInterrupt:
                pool.shutdown(cancel_futures=True)
                raise
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_every_result_comes_once() -> None:
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(pow, 2, i) for i in range(100)]
        assert sorted(it.result() for it in as_finished(futures)) == [2**i for i in range(100)]
        failed = pool.submit(int, "x")
        with pytest.raises(ValueError, match="invalid literal"):
            next(as_finished([failed])).result()


@pytest.mark.skipif(os.name == "nt", reason="setitimer")
def test_ctrl_c_at_any_moment_disturbs_no_worker() -> None:
    """With concurrent.futures.as_completed it hangs, or a worker prints a traceback."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("interrupted") == 30
