"""The server in front of another server: every API works, and the other's errors become its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("httpcore")

from gptoss.errors import OptionError
from gptoss.runtime.chat.model import Model
from gptoss.runtime.engine.base import RemoteError
from gptoss.runtime.remote.address import Server
from gptoss.runtime.remote.engine import RemoteEngine
from gptoss.runtime.server.gguf_models import remote_model
from gptoss.runtime.server.serve_command import serve_command
from gptoss.runtime.store.store import Store
from support.live_server import live_server
from support.remote_servers import (
    LLAMA_SERVER,
    TOKENIZER,
    AnsweringServer,
    answering,
    event,
    own_server,
)
from support.server import KEY
from support.tokens import spell

THOUGHT = "<|channel|>analysis<|message|>2 + 2<|end|><|start|>assistant"
ANSWER = "<|channel|>final<|message|>It is 4.<|return|>"
CALL = '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>'
ADD = {"type": "object", "properties": {"a": {"type": "integer"}}}
QUESTION = [{"role": "user", "content": "2 + 2?"}]
SECRET = "-".join(["sk", "very", "secret"])


@contextmanager
def front_of(
    url: str, key: str | None = None, store: Store | None = None
) -> Iterator[httpx.Client]:
    """A client of this project's server in front of the server at a URL."""

    def load() -> Model:
        engine = RemoteEngine(Server(url, key), TOKENIZER)
        engine.connect()
        return Model(engine, TOKENIZER)

    headers = {"Authorization": f"Bearer {KEY}"}
    with (
        live_server(load, store=store) as front,
        httpx.Client(base_url=front, headers=headers, timeout=120) as client,
    ):
        yield client


@contextmanager
def front_of_script(*scripts: str) -> Iterator[httpx.Client]:
    with own_server(*scripts) as (model, _):
        assert isinstance(model.engine, RemoteEngine)
        server = model.engine.server
        with (
            live_server(lambda: Model(RemoteEngine(server, TOKENIZER, model.engine.connect()),  # type: ignore[attr-defined]
                                      TOKENIZER)) as front,
            httpx.Client(base_url=front, headers={"Authorization": f"Bearer {KEY}"},
                         timeout=120) as client,
        ):  # fmt: skip
            yield client


def test_the_three_apis() -> None:
    with front_of_script(THOUGHT + ANSWER, THOUGHT + ANSWER, THOUGHT + CALL) as client:
        chat = client.post("/v1/chat/completions", json={"messages": QUESTION}).json()
        message = chat["choices"][0]["message"]
        assert (message["content"], message["reasoning"]) == ("It is 4.", "2 + 2")
        assert chat["usage"]["completion_tokens"] == len(spell(THOUGHT + ANSWER))
        asked = {"messages": QUESTION, "model": "tiny", "max_tokens": 900}
        said = client.post("/v1/messages", json=asked).json()
        assert said["content"][-1]["text"] == "It is 4."
        tool = {"type": "function", "name": "add", "parameters": ADD}
        asked = {"input": "2 + 2?", "tools": [tool]}
        [*_, call] = client.post("/v1/responses", json=asked).json()["output"]
        assert (call["type"], call["name"], call["arguments"]) == (
            "function_call",
            "add",
            '{"a": 1}',
        )


def test_the_page_and_the_store() -> None:
    with front_of_script(THOUGHT + ANSWER) as client:
        made = client.post("/page/replies", json={"text": "2 + 2?", "effort": "low"}).json()
        events = client.get(f"/page/replies/{made['reply']}/events", params={"after": 0}).text
        assert '"type":"done"' in events.replace(" ", "")
        shown = client.get(f"/page/conversations/{made['conversation']['id']}").json()
        assert [it["kind"] for it in shown["parts"]] == ["user", "reasoning", "answer"]


@pytest.mark.parametrize(
    "asked",
    [
        {"tool_choice": "required", "tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "json_object"}},
        {"reasoning_budget": 5},
        {"logprobs": True},
    ],
)
def test_what_needs_a_model_in_this_process_is_refused(asked: dict[str, Any]) -> None:
    with front_of_script(ANSWER) as client:
        refused = client.post("/v1/chat/completions", json={"messages": QUESTION} | asked)
        assert refused.status_code == 400, refused.text
        assert client.post("/v1/chat/completions", json={"messages": QUESTION}).status_code == 200


def failing(server: AnsweringServer) -> tuple[httpx.Response, list[str]]:
    """A server in front of this one: the answer to a request, and the events of a streamed one.
    Afterwards the server is well, and so is the next request.
    """
    server.got = LLAMA_SERVER
    with front_of(server.url) as client:
        asked = {"messages": QUESTION}
        failed = client.post("/v1/chat/completions", json=asked)
        with client.stream("POST", "/v1/chat/completions", json=asked | {"stream": True}) as lines:
            streamed = list(lines.iter_lines())
        server.status, server.pause = 200, 0
        server.chunks = [event(content="", tokens=spell(ANSWER)), event(content="", stop=True)]
        again = client.post("/v1/chat/completions", json=asked)
        assert again.json()["choices"][0]["message"]["content"] == "It is 4."
        assert client.get("/health").status_code == 200
    return failed, streamed


BEGUN = event(content="", tokens=spell("<|channel|>final<|message|>It is"))
FAULTS: dict[str, tuple[list[bytes], int, int, str]] = {
    "closes in mid-reply": ([BEGUN], 200, 502, "closed the connection"),
    "sends garbage": ([BEGUN, b"data: \xff\xfe{\n\n"], 200, 502, "not a stream of JSON"),
    "sends no token ids": ([event(content="4")], 200, 502, "no token ids"),
    "sends a huge line": ([BEGUN, b"data: " + b"x" * 6_000_000], 200, 502, "without an end"),
    "wants a key": ([b"who are you?"], 401, 502, "wants a key"),
    "redirects": ([b""], 307, 502, "redirects"),
    "is busy": ([b"wait"], 429, 429, "status 429"),
    "fails": ([b"no memory"], 500, 502, "no memory"),
    "reports an error": ([BEGUN, event(error={"message": "no memory"})], 200, 502, "no memory"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_the_other_server(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    chunks, status, expected, said = FAULTS[fault]
    with answering(chunks, status=status) as server:
        failed, streamed = failing(server)
    assert failed.status_code == expected
    assert said in failed.json()["error"]["message"]
    assert ("Retry-After" in failed.headers) == (expected == 429)
    assert said in "".join(streamed)
    assert "Traceback" not in caplog.text, "a fault of another server is one line"


def test_a_server_that_comes_later(random_gguf: Path, caplog: pytest.LogCaptureFixture) -> None:
    with answering(
        [event(content="", tokens=spell(ANSWER)), event(content="", stop=True)]
    ) as later:
        later.got = LLAMA_SERVER
        url = ["http://127.0.0.1:1"]

        def load() -> Model:
            engine = RemoteEngine(Server(url[0]), TOKENIZER)
            engine.connect()
            return Model(engine, TOKENIZER)

        with (
            live_server(load) as front,
            httpx.Client(base_url=front, headers={"Authorization": f"Bearer {KEY}"}) as client,
        ):
            down = client.post("/v1/chat/completions", json={"messages": QUESTION})
            assert down.status_code == 503
            assert down.json()["error"]["message"] == "the model tiny cannot be reached"
            assert client.get("/health").status_code == 503
            url[0] = later.url
            assert client.post("/v1/chat/completions", json={"messages": QUESTION}).is_success
            assert client.get("/health").status_code == 200
    served = remote_model("http://127.0.0.1:1", random_gguf)
    assert (served.n_ctx, served.owned_by) == (0, "remote")
    assert "cannot be reached" in caplog.text


def test_what_is_listed_is_true_of_the_other_server(random_gguf: Path) -> None:
    with answering([b""]) as server:
        server.got = LLAMA_SERVER
        served = remote_model(server.url, random_gguf, ("my-name",))
        assert (served.id, served.n_ctx, served.aliases) == ("random", 1000, ("my-name",))
        with front_of(server.url) as client:
            client.post("/v1/chat/completions", json={"messages": QUESTION})
            [model, *_] = client.get("/v1/models").json()["data"]
            assert model["max_model_len"] == 1000
            assert "gptoss_model_loaded 1" in client.get("/metrics").text


def test_a_client_that_leaves_closes_the_connection_to_the_other_server() -> None:
    with answering([BEGUN], pause=60) as server:
        server.got = LLAMA_SERVER
        with front_of(server.url) as client:
            asked = {"messages": QUESTION, "stream": True}
            with client.stream("POST", "/v1/chat/completions", json=asked) as lines:
                next(it for it in lines.iter_lines() if '"content":"I' in it)
            assert server.gone.wait(60)


def test_the_key_is_in_no_answer_no_log_and_no_store(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with (
        answering([f"bad key {SECRET}".encode()], status=500) as server,
        Store(tmp_path / "store.db") as store,
    ):
        server.got = LLAMA_SERVER
        with front_of(server.url, SECRET, store) as client:
            failed = client.post("/v1/chat/completions", json={"messages": QUESTION})
            assert failed.status_code == 502
            made = client.post("/page/replies", json={"text": "2 + 2?", "effort": "low"}).json()
            events = client.get(f"/page/replies/{made['reply']}/events", params={"after": 0}).text
            assert "bad key" in events
            said = failed.text + events + client.get("/page/status").text
        assert server.requests[-1]["Authorization"] == f"Bearer {SECRET}"
    assert SECRET not in said
    assert SECRET not in caplog.text
    assert all(SECRET.encode() not in path.read_bytes() for path in tmp_path.iterdir())


# --- the command --------------------------------------------------------------------------------

Refused = Callable[..., str]


@pytest.fixture
def refused(random_gguf: Path) -> Refused:
    """The error of ``serve --base-url`` with these arguments."""

    def run(url: str, *options: str) -> str:
        with pytest.raises((OptionError, RemoteError)) as caught:
            serve_command.main(
                [str(random_gguf), "--base-url", url, "--port", "0", *options],
                standalone_mode=False,
            )
        return str(caught.value)

    return run


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--ctx", "100"], "omit --ctx"),
        (["--chats", "2"], "omit --chats"),
        (["--gpu-layers", "1", "--sleep-after", "9"], "omit --gpu-layers, --sleep-after"),
        (["--no-disk-cache"], "omit --no-disk-cache"),
        (["another.gguf"], "one MODEL"),
    ],
)
def test_options_that_are_the_other_servers(
    refused: Refused, options: list[str], named: str
) -> None:
    assert named in refused("http://127.0.0.1:1", *options)


def test_addresses_and_servers_that_can_never_work(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "not an address" in refused("nothing")
    listing = b'{"data": [{"id": "m"}], "choices": [{"text": "x"}]}'
    with answering([listing]) as server:
        assert "gives no token ids" in refused(server.url)
    with answering([b""], status=401) as server:
        assert "wants a key" in refused(server.url)
    monkeypatch.setenv("GPTOSS_REMOTE_KEY", SECRET)
    said = refused("http://example.org")
    assert "only over https" in said
    assert SECRET not in said


def test_the_command_serves(random_gguf: Path, tmp_path: Path) -> None:
    """Nothing of llama.cpp is loaded: the process stays small."""
    with answering([event(content="", tokens=[1]), event(content="", stop=True)]) as server:
        server.got = LLAMA_SERVER
        command = [sys.executable, "-c", "from gptoss.runtime.cli import main; main()", "serve",
                   str(random_gguf), "--base-url", server.url, "--port", "0", "--json",
                   "--no-store", "--no-auth"]  # fmt: skip
        root = str(Path(__file__).resolve().parents[3])
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": root},
        ) as process:  # fmt: skip
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            try:
                [model, *_] = httpx.get(f"{url}/v1/models", timeout=120).json()["data"]
                assert (model["id"], model["owned_by"]) == ("random", "remote")
                asked = {"messages": QUESTION}
                done = httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=120)
                assert done.status_code == 200, done.text
            finally:
                process.kill()
