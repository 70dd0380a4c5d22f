"""Replies a second, one and four at a time, beside llama.cpp's server.

    python tests/bench_parallel.py [--folder DIR] [--runs 5] [--llama-server PATH]

The same tiny model with the full vocabulary as in bench_engine.py, temperature 1, streamed. In
turns: a bare loop; this project's chats with constraint and parsing, drawn from the whole
vocabulary, read by a thread each; llama-server's /completion with four slots, drawn from the whole
vocabulary, and from the 40 likeliest tokens, which is its default and quicker. Exit code 1 when a
figure is missed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench_engine import Measure, bare_loop, full_vocabulary_model, measured_in_turns

import gptoss
from bench_harmony import Figure
from gptoss.runtime.engine.threads import physical_cores

N_TOKENS = 200
N_CTX = 2048
CLIENTS = 1, 4
TOP_K = 0, 40


def rate(read: Callable[[int], int], clients: int) -> float:
    """Tokens a second of so many readers at once; each reads a reply and returns its tokens."""
    with ThreadPoolExecutor(clients) as pool:
        begun = time.perf_counter()
        tokens = sum(pool.map(read, range(clients)))
        return tokens / (time.perf_counter() - begun)


def chats(gguf: Path, clients: int) -> Measure:
    """This project's chats on one model with four sequences."""
    model = gptoss.open(gguf, n_ctx=N_CTX, parallel=max(CLIENTS))
    talks = [model.chat(seed=i, max_tokens=N_TOKENS) for i in range(clients)]

    def read(i: int) -> int:
        talks[i].reset()
        *_, ended = talks[i].send("Tell me something long.")
        assert isinstance(ended, gptoss.ReplyEnded)
        return ended.timings.generated_tokens

    return lambda: rate(read, clients)


def bare(gguf: Path) -> Measure:
    """Tokens a second of the bare loop."""
    measure = bare_loop(gguf)
    return lambda: 1 / measure()


@contextmanager
def llama_server(binary: Path, gguf: Path) -> Iterator[int]:
    """llama.cpp's server with four slots; yields its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    command = (
        binary, "-m", gguf, "-np", max(CLIENTS), "-c", N_CTX * max(CLIENTS), "-t",
        physical_cores(), "--port", port, "--no-webui",
    )  # fmt: skip
    server = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not healthy(port):
            if server.poll() is not None:
                raise SystemExit(f"{binary} ended with {server.returncode}")
            time.sleep(0.2)
        yield port
    finally:
        server.terminate()
        server.wait()


def healthy(port: int) -> bool:
    """Whether llama-server is ready."""
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False


def complete(port: int, top_k: int, seed: int) -> int:
    """Read a streamed completion of llama-server; return its tokens."""
    wanted = {
        "prompt": "Tell me something long. " * 16, "n_predict": N_TOKENS, "stream": True,
        "temperature": 1.0, "top_k": top_k, "top_p": 1.0, "min_p": 0.0, "seed": seed,
        "ignore_eos": True, "cache_prompt": False,
    }  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request(
        "POST", "/completion", json.dumps(wanted), {"Content-Type": "application/json"}
    )
    tokens = 0
    for line in connection.getresponse():
        if line.startswith(b"data: "):
            event = json.loads(line[6:])
            tokens = event.get("tokens_predicted", tokens)
    return tokens


def figures(gguf: Path, runs: int, binary: Path | None) -> Iterator[Figure]:
    """Medians of runs in turns."""
    kinds: dict[str, Callable[[Path], Measure]] = {"bare": bare}
    kinds |= {f"{n} at a time": partial(chats, clients=n) for n in CLIENTS}
    if binary is None:
        yield from compared(measured_in_turns(kinds, gguf, runs))
        return
    with llama_server(binary, gguf) as port:
        others = {
            server_kind(n, top_k): partial(server_rate, port, n, top_k)
            for n in CLIENTS
            for top_k in TOP_K
        }
        yield from compared(measured_in_turns(kinds, gguf, runs, others))


def server_kind(clients: int, top_k: int) -> str:
    """What a measurement of llama-server is called."""
    return f"llama-server, {clients} at a time, top_k {top_k}"


def server_rate(port: int, clients: int, top_k: int) -> float:
    """Tokens a second of so many clients of llama-server."""
    return rate(partial(complete, port, top_k), clients)


def compared(found: dict[str, list[float]]) -> Iterator[Figure]:
    """Each of our rates beside what it must reach."""
    medians = {kind: statistics.median(rates) for kind, rates in found.items()}
    yield Figure("a bare loop", medians["bare"], "tokens/s", 0, at_least=True)
    for n in CLIENTS:
        bound = 0.0
        for kind in (server_kind(n, top_k) for top_k in TOP_K):
            if kind in medians:
                yield Figure(kind, medians[kind], "tokens/s", 0, at_least=True)
                bound = max(bound, medians[kind])
        ours = medians[f"{n} at a time"]
        yield Figure(f"chats, {n} at a time", ours, "tokens/s", bound, at_least=True)


def main() -> int:
    """Print each figure beside llama-server's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--llama-server", type=Path)
    options = parser.parse_args()
    if options.llama_server is None:
        print("llama-server: not measured, name it by --llama-server")
    kept = True
    with tempfile.TemporaryDirectory() as temporary:
        gguf = full_vocabulary_model(options.folder or Path(temporary))
        for figure in figures(gguf, options.runs, options.llama_server):
            print(figure, flush=True)
            kept &= figure.kept
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
