"""A server that is killed while it stores: what it acknowledged is there after a restart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gptoss.converter.convert import convert

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
CHECKPOINT = ROOT / "tests" / "tiny" / "checkpoint"
SERVE = (sys.executable, "-c", "from gptoss.library.cli import main; main()", "serve")
CLIENTS = 4
KILLS = 3


@contextmanager
def served(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, over the same store each time."""
    options = ["--port", "0", "--json", "--no-auth", "--store", str(folder / "store.sqlite3")]
    home = dict.fromkeys(
        ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"), str(folder)
    )
    with subprocess.Popen(
        [*SERVE, str(folder / "tiny.gguf"), *options, "--threads", "1", "--no-disk-cache"],
        env=os.environ | home | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())["url"]
        finally:
            process.kill()


def ask(url: str, begun: float, acknowledged: list[dict[str, Any]]) -> None:
    """Ask in one conversation after the other until the server is gone."""
    with httpx.Client(base_url=url, timeout=60) as client:
        try:
            while time.monotonic() - begun < 60:
                made = client.post("/v1/conversations", json={}).json()["id"]
                asked = {"input": "2 + 2?", "max_output_tokens": 3, "conversation": made}
                answer = client.post("/v1/responses", json=asked)
                assert answer.status_code == 200, answer.text
                acknowledged.append(answer.json())
        except httpx.TransportError:
            return
    raise AssertionError("the server was not killed")


def test_what_was_acknowledged_is_there(tmp_path: Path) -> None:
    convert(CHECKPOINT, tmp_path / "tiny.gguf")
    acknowledged: list[dict[str, Any]] = []
    for round_ in range(1, KILLS + 1):
        with served(tmp_path) as (process, url), ThreadPoolExecutor(CLIENTS) as pool:
            begun = time.monotonic()
            asking = [pool.submit(ask, url, begun, acknowledged) for _ in range(CLIENTS)]
            while len(acknowledged) < round_ * 10 and time.monotonic() - begun < 50:
                time.sleep(0.003 * round_)
            process.kill()
            for it in asking:
                it.result()
    assert len(acknowledged) >= KILLS * 10
    with served(tmp_path) as (_, url), httpx.Client(base_url=url, timeout=60) as client:
        for response in acknowledged:
            assert client.get(f"/v1/responses/{response['id']}").json() == response
            items = f"/v1/conversations/{response['conversation']['id']}/items"
            listed = client.get(items).json()["data"]
            assert {it["id"] for it in response["output"]} <= {it["id"] for it in listed}
        assert client.post("/v1/responses", json={"input": "Hi", "max_output_tokens": 1}).is_success
    print(f"{KILLS} kills, {len(acknowledged)} acknowledged responses, all there")
