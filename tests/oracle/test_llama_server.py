"""llama.cpp's own server as the one that runs the model: by token ids, and by messages."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from remote_check import compared

import gptoss
from gptoss.converter.convert import convert
from gptoss.runtime.chat.chat import Chat
from gptoss.runtime.chat.events import StopReason
from gptoss.runtime.chat.settings import Limits, Settings
from gptoss.runtime.harmony.events import End, TextDelta
from gptoss.runtime.remote.engine import open_remote
from gptoss.runtime.remote.message_round import open_messages
from gptoss.runtime.tools.toolbox import Toolbox
from support import peers
from support.live_server import live_server
from support.server import KEY

pytestmark = pytest.mark.oracle

CHECKPOINT = Path(__file__).resolve().parents[1] / "tiny" / "checkpoint"
GREEDY = gptoss.Sampling(temperature=0)
SECONDS = 300


def get_weather(city: str) -> dict[str, object]:
    """Get the current weather in a city.

    Args:
        city: Name of the city
    """
    return {"temperature": 21 if city == "Paris" else 12, "sky": "sunny"}


@contextmanager
def llama_server(gguf: Path, log: Path) -> Iterator[str]:
    """llama-server's address. A port that another program takes meanwhile is tried again."""
    for _ in range(5):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [str(peers.llama_server()), "--model", str(gguf), "--port", str(port),
                   "--threads", "1", "--ctx-size", "4096", "--parallel", "2", "--jinja",
                   "--chat-template-file", str(peers.chat_template())]  # fmt: skip
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        try:
            if _is_ready(process, f"http://127.0.0.1:{port}"):
                yield f"http://127.0.0.1:{port}"
                return
        finally:
            process.terminate()
            process.wait()
    raise AssertionError(log.read_text("utf-8", "replace")[-2000:])


def _is_ready(process: subprocess.Popen[bytes], url: str) -> bool:
    end = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return True
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    return False


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    convert(CHECKPOINT, path)
    return path


@pytest.fixture(scope="module")
def url(gguf: Path) -> Iterator[str]:
    with llama_server(gguf, gguf.with_name("log")) as found:
        yield found


def test_greedy_replies_are_those_of_this_process(url: str, gguf: Path) -> None:
    replies = list(compared(url, gguf))
    assert len(replies) == 45
    assert [there for there, _ in replies] == [here for _, here in replies]
    assert len(set(replies)) > 5


def test_a_tool_is_called(url: str, gguf: Path) -> None:
    with open_remote(url, gguf) as model:
        chat = model.chat(tools=[get_weather], sampling=GREEDY, max_tokens=300)
        reply = chat.ask("What is the weather in Paris?")
    assert [(it.name, it.error) for it in reply.calls] == [("get_weather", False)]
    assert "21" in reply.text
    assert reply.timings.reused_tokens > 0


def test_a_cancelled_reply_leaves_the_server_free(url: str, gguf: Path) -> None:
    with open_remote(url, gguf) as model:
        chat = model.chat(sampling=GREEDY)
        with chat.send("What is 17 + 25?") as events:
            for event in events:
                if isinstance(event, TextDelta):
                    chat.cancel()
                    break
            ended = list(events)[-1]
        assert getattr(ended, "cut", None) == StopReason.CANCELLED
        assert chat.ask("Hello!").end == End.RETURN
    end = time.monotonic() + SECONDS
    while any(slot["is_processing"] for slot in httpx.get(f"{url}/slots", timeout=60).json()):
        assert time.monotonic() < end, "the cancelled request still runs"
        time.sleep(0.1)


def test_every_api_in_front_of_it(url: str, gguf: Path) -> None:
    question = [{"role": "user", "content": "What is 17 + 25?"}]
    with (
        live_server(lambda: open_remote(url, gguf)) as front,
        httpx.Client(
            base_url=f"{front}/v1", headers={"Authorization": f"Bearer {KEY}"}, timeout=SECONDS
        ) as client,
    ):
        asked = {"temperature": 0, "messages": question, "max_tokens": 200}
        chat = client.post("/chat/completions", json=asked).json()
        assert "42" in chat["choices"][0]["message"]["content"]
        assert chat["choices"][0]["message"]["reasoning"]
        answered = client.post("/responses", json={"input": question, "temperature": 0}).json()
        assert "42" in answered["output"][-1]["content"][0]["text"]
        message = client.post("/messages", json=asked | {"model": "tiny"}).json()
        assert "42" in message["content"][-1]["text"]
        refused = client.post("/chat/completions", json=asked | {"logprobs": True})
        assert refused.status_code == 400


def test_by_messages(url: str) -> None:
    """llama-server's own reading of harmony, over its chat completions."""
    with open_messages(url, "tiny") as model:
        settings = Settings(sampling=GREEDY, limits=Limits(max_tokens=300))
        chat = Chat.over(model.runner, toolbox=Toolbox([get_weather]), settings=settings)
        reply = chat.ask("What is 17 + 25?")
        assert "42" in reply.text
        assert reply.reasoning
        assert reply.timings.generated_tokens > 0
        reply = chat.ask("What is the weather in Paris?")
        assert [(it.name, it.error) for it in reply.calls] == [("get_weather", False)]
        assert "21" in reply.text
        stopping = Chat.over(model.runner, settings=replace(settings, stop=("42",)))
        assert "42" not in stopping.ask("What is 17 + 25?").text
