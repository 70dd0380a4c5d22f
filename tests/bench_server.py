"""The server under load beside llama.cpp's, and what HTTP adds to a chat in one process.

    python tests/bench_server.py [--folder DIR] [--requests 200] [--turns 4] [--runs 9]
                                 [--llama-server PATH]

The tiny model with the full vocabulary as in bench_engine.py, temperature 1, streamed.

**Overhead.** One client: a reply read over HTTP, as bytes, and the same reply of a chat in the same
process, in turns. Wall time a token, from the first text to the last.

**Load.** 16 clients send the requests of each turn: a shared system prompt, short questions of
which no two are equal, 100 tokens each. In turns: this project's ``/v1/chat/completions``, and
llama-server's ``/completion`` with the same token ids and the same number of slots, drawn from the
whole vocabulary, and from the 40 likeliest tokens, which is its default. All processes share the
processors with the clients. The servers' processor time is printed, too: it depends less on what
else the machine does. Exit code 1 when a figure is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import multiprocessing
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from bench_engine import full_vocabulary_model
from bench_parallel import CLIENTS, N_CTX, TOP_K, llama_server

import gptoss
from bench_harmony import Figure
from gptoss.runtime.harmony.render import render_for_completion
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.server.app import create_app
from gptoss.runtime.server.chat_completions.request import read_chat_request
from gptoss.runtime.server.model_host import ModelHost, ServedModel
from gptoss.runtime.server.security import Access
from gptoss.runtime.server.uvicorn_server import HttpServer

SERVE = (sys.executable, "-c", "from gptoss.library.cli import main; main()", "serve")
SLOTS = max(CLIENTS)
LOAD_CLIENTS = 16
LOAD_TOKENS = 100
PACED_TOKENS = 200
SYSTEM = "You answer the questions of visitors of a botanical garden, briefly. " * 20
QUESTION = "Tell me something long."
TEXT = re.compile(rb'"delta":{"(reasoning|content|tool_calls)":')
"""An event with text of the reply."""


@dataclass(frozen=True)
class Target:
    """A server: its port, the path that generates, and the body of the request of a number."""

    port: int
    path: str
    body: Callable[[int], dict[str, Any]]


@dataclass
class Load:
    """What a server has done: tokens a second of each turn, its processor time for a token, and
    failed requests."""

    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    errors: int = 0


@contextmanager
def our_server(gguf: Path) -> Iterator[int]:
    """``gptoss-run serve`` without a key, a store or states on disk; yields its port."""
    options = ("--port", 0, "--json", "--no-auth", "--no-store", "--no-disk-cache")
    engine = ("--context", N_CTX, "--chats", SLOTS)
    command = [*SERVE, *map(str, (gguf, *options, *engine))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        try:
            assert server.stdout is not None
            port = urlsplit(json.loads(server.stdout.readline())["url"]).port
            assert port is not None
            yield port
        finally:
            server.terminate()


def chat_body(number: int) -> dict[str, Any]:
    """A request of the load to this project's server."""
    return {
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"Where is plant {number}?"},
        ],
        "temperature": 1.0, "seed": number, "max_tokens": LOAD_TOKENS, "stream": True,
    }  # fmt: skip


def completion_body(tokenizer: Tokenizer, top_k: int, number: int) -> dict[str, Any]:
    """The same request to llama-server: the ids that this project's server renders."""
    messages = read_chat_request(chat_body(number)).of_choice(0).messages
    return {
        "prompt": render_for_completion(messages, tokenizer), "n_predict": LOAD_TOKENS,
        "temperature": 1.0, "top_k": top_k, "top_p": 1.0, "min_p": 0.0, "seed": number,
        "ignore_eos": True, "stream": True,
    }  # fmt: skip


def post(port: int, path: str, body: bytes) -> http.client.HTTPResponse:
    """Send a request; its answer is still to be read."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    return connection.getresponse()


def last_events(answer: bytes) -> list[dict[str, Any]]:
    """The last events of a stream, which say how many tokens there were."""
    lines = [line[6:] for line in answer.splitlines()[-12:] if line.startswith(b"data: {")]
    return [json.loads(line) for line in lines]


def generated(answer: bytes) -> int:
    """The tokens of a complete stream of either server; 0 of any other."""
    for event in last_events(answer):
        if "timings" in event:
            return int(event["timings"]["predicted_n"])
    return 0


def processor_seconds(port: int) -> float:
    """What the server on a port, a child of this process, has used so far."""
    for child in psutil.Process().children():
        if any(it.laddr.port == port for it in child.net_connections("tcp")):
            times = child.cpu_times()
            return float(times.user + times.system)
    raise SystemExit(f"the server on port {port} has ended")


def run_load(target: Target, numbers: Sequence[int], load: Load) -> None:
    """Send the requests of one turn from all clients at once, and note what came."""
    bodies = [json.dumps(target.body(number)).encode() for number in numbers]

    def ask(body: bytes) -> int:
        try:
            response = post(target.port, target.path, body)
            return generated(response.read()) if response.status == 200 else 0
        except (OSError, http.client.HTTPException):
            return 0

    with ThreadPoolExecutor(LOAD_CLIENTS) as pool:
        begun, used = time.perf_counter(), processor_seconds(target.port)
        tokens = list(pool.map(ask, bodies))
        load.rates.append(sum(tokens) / (time.perf_counter() - begun))
        load.cpu.append((processor_seconds(target.port) - used) / max(1, sum(tokens)))
    load.errors += tokens.count(0)  # random weights may draw the end of a turn before its limit


def load_figures(targets: dict[str, Target], ours: str, n: int, turns: int) -> Iterator[Figure]:
    """Medians of turns; each request is sent once to each server."""
    numbers = count()
    for target in targets.values():
        run_load(target, [next(numbers) for _ in range(SLOTS)], Load())  # prefixes are read
    loads = {name: Load() for name in targets}
    for _ in range(turns):
        asked = [next(numbers) for _ in range(n // turns)]
        for name, target in targets.items():
            run_load(target, asked, loads[name])
    bound = 0.0
    for name in sorted(targets, key=lambda name: name == ours):
        rate, cpu = statistics.median(loads[name].rates), statistics.median(loads[name].cpu)
        least, most_failed = (bound, 0) if name == ours else (0.0, n)
        bound = max(bound, rate)
        yield Figure(f"{name}, {LOAD_CLIENTS} clients", rate, "tokens/s", least, at_least=True)
        yield Figure("... processor time a token", cpu * 1e3, "ms", 100)
        yield Figure("... failed requests", loads[name].errors, "", most_failed)


def serve_and_chat(gguf: Path, parent: Connection) -> None:
    """A server, and a chat over the same model, in a process of their own: of two processes one
    decodes faster, by more than HTTP costs. Sends the port, then seconds a token of a reply that is
    read in this process, for each message from the parent; None ends it."""
    model = gptoss.open(gguf, n_ctx=N_CTX, parallel=SLOTS)
    models = ModelHost([ServedModel("full", lambda progress: model, N_CTX)])  # noqa: ARG005
    listener = socket.create_server(("127.0.0.1", 0))
    server = HttpServer(create_app(models, Access(None)), models)
    threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True).start()
    parent.send(listener.getsockname()[1])
    chat = model.chat(seed=1, max_tokens=PACED_TOKENS)
    while parent.recv() is not None:
        chat.reset()
        read = (
            time.perf_counter() for it in chat.send(QUESTION) if isinstance(it, gptoss.TextDelta)
        )
        times = list(read)
        parent.send((times[-1] - times[0]) / PACED_TOKENS)


def paced_over_http(port: int) -> float:
    """Seconds a token of a reply of this project's server, from its first text on. The client only
    reads bytes: what one makes of them is not the server's time."""
    body = {
        "messages": [{"role": "user", "content": QUESTION}], "temperature": 1.0, "seed": 1,
        "max_tokens": PACED_TOKENS, "stream": True,
    }  # fmt: skip
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
    arrived = []
    with socket.create_connection(("127.0.0.1", port), 120) as connection:
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        while part := connection.recv(1 << 18):
            arrived.append((time.perf_counter(), part))
    # The role comes before the prompt is read; the last event has no text.
    texts = [at for at, part in arrived if TEXT.search(part)]
    assert generated(b"".join(part for _, part in arrived)) == PACED_TOKENS, arrived[-1]
    return (texts[-1] - texts[0]) / PACED_TOKENS


def overhead_figures(gguf: Path, runs: int) -> Iterator[Figure]:
    """Medians of what a token takes in the process, and of what HTTP adds."""
    spawn = multiprocessing.get_context("spawn")
    pipe, theirs = spawn.Pipe()
    spawn.Process(target=serve_and_chat, args=(gguf, theirs), daemon=True).start()
    port = pipe.recv()
    inside, over = [], []
    for run in range(-1, runs):
        pipe.send(True)
        here, there = pipe.recv(), paced_over_http(port)
        if run >= 0:  # the first ones read the prompt
            inside.append(here)
            over.append(there - here)
    pipe.send(None)
    print("HTTP minus chat, ms a token:", [round(it * 1e3, 2) for it in sorted(over)])
    yield Figure("a chat in one process, a token", statistics.median(inside) * 1e3, "ms", 100)
    yield Figure("... over HTTP, more", statistics.median(over) * 1e3, "ms", 0.3)


def figures(gguf: Path, options: argparse.Namespace) -> Iterator[Figure]:
    """The overhead first, on a machine that does nothing else; then the load."""
    ours = "gptoss-run serve"
    with ExitStack() as servers:
        yield from overhead_figures(gguf, options.runs)
        port = servers.enter_context(our_server(gguf))
        targets = {ours: Target(port, "/v1/chat/completions", chat_body)}
        if options.llama_server is not None:
            theirs = servers.enter_context(llama_server(options.llama_server, gguf))
            tokenizer = gptoss.open(gguf, n_ctx=256).tokenizer
            for top_k in TOP_K:
                body = partial(completion_body, tokenizer, top_k)
                targets[f"llama-server, top_k {top_k}"] = Target(theirs, "/completion", body)
        yield from load_figures(targets, ours, options.requests, options.turns)


def main() -> int:
    """Print each figure beside its bound."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--llama-server", type=Path)
    options = parser.parse_args()
    if options.llama_server is None:
        print("llama-server: not measured, name it by --llama-server")
    kept = True
    with tempfile.TemporaryDirectory() as temporary:
        gguf = full_vocabulary_model(options.folder or Path(temporary))
        for figure in figures(gguf, options):
            print(figure, flush=True)
            kept &= figure.kept
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
