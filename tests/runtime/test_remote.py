"""The engine's interface over another server: this project's own, scripted ones, hostile ones."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

pytest.importorskip("httpcore")
pytest.importorskip("uvicorn")

import uvicorn

from gptoss.runtime.chat.model import Model
from gptoss.runtime.engine.base import EngineError, PromptTooLongError
from gptoss.runtime.harmony.events import End
from gptoss.runtime.remote.dialects import Asked, LlamaServer, Vllm, find_dialect
from gptoss.runtime.remote.engine import RemoteEngine
from gptoss.runtime.remote.stream import Server
from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.server.app import create_app
from gptoss.runtime.server.security import Access
from support.fake_engine import ScriptedEngine
from support.malformed import MALFORMED
from support.server import KEY, host_of, scripted
from support.tokens import byte_tokenizer, spell

TOKENIZER = byte_tokenizer()
THOUGHT = "<|channel|>analysis<|message|>2 + 2<|end|><|start|>assistant"
ANSWER = "<|channel|>final<|message|>It is 4: 日本 \U0001f600.<|return|>"
CALL = '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>'


@contextmanager
def own_server(*scripts: str) -> Iterator[tuple[Model, ScriptedEngine]]:
    """A chat's model over this project's server over a scripted engine."""
    engine = ScriptedEngine(*scripts)
    listener = socket.create_server(("127.0.0.1", 0))
    made: list[uvicorn.Server] = []

    async def run() -> None:
        app = create_app(host_of(lambda: scripted(engine)), Access(KEY))
        made.append(uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none")))
        await made[0].serve(sockets=[listener])

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    while not made or not made[0].started:
        time.sleep(0.01)
    server = Server(f"http://127.0.0.1:{listener.getsockname()[1]}", KEY)
    model = Model(RemoteEngine(server, find_dialect(server), TOKENIZER), TOKENIZER)
    try:
        yield model, engine
    finally:
        model.close()
        made[0].should_exit = True
        thread.join(20)


def add(a: int) -> int:
    """Add."""
    return a + 1


def test_a_conversation_with_a_tool() -> None:
    with own_server(THOUGHT + CALL, ANSWER, ANSWER) as (model, engine):
        chat = model.chat(tools=[add])
        reply = chat.ask("2 + 2?")
        assert (reply.text, reply.end) == ("It is 4: 日本 \U0001f600.", End.RETURN)
        assert [call.result for call in reply.calls] == ["2"]
        chat.ask("Again")
    assert '{"a": 1}' in engine.prompts[1]
    assert "日本 \U0001f600" in engine.prompts[2]


def test_malformed_turns_are_repaired_as_here() -> None:
    scripts = [it.turn for it in MALFORMED if not set(it.turn) & set("‹›␀")]
    assert len(scripts) > 50
    with own_server(*scripts) as (model, _):
        for script in scripts:
            here, there = (
                it.chat(max_rounds=0).ask("x")
                for it in (Model(ScriptedEngine(script), TOKENIZER), model)
            )
            assert (there.text, there.reasoning, there.end) == (here.text, here.reasoning, here.end)


def test_limits_and_errors() -> None:
    with own_server(ANSWER) as (model, _):
        engine = model.engine
        assert engine.n_ctx == 100_000
        with pytest.raises(PromptTooLongError):
            engine.generate([1] * 100_000, lambda _: 0, stop=set())
        for prompt in ([], [-1], [10**9]):
            with pytest.raises(EngineError):
                engine.generate(prompt, lambda _: 0, stop=set())
        assert len(list(engine.generate([1], lambda _: 0, stop=set(), max_tokens=3))) == 3
        model.close()
        with pytest.raises(EngineError, match="closed"):
            engine.generate([1], lambda _: 0, stop=set())


def test_a_wrong_key_and_no_server() -> None:
    with own_server(ANSWER) as (model, _):
        assert isinstance(model.engine, RemoteEngine)
        with pytest.raises(EngineError, match="key"):
            find_dialect(Server(model.engine._server.base_url, "wrong"))
    with pytest.raises(EngineError, match="cannot be reached"):
        find_dialect(Server("http://127.0.0.1:1"))
    for url in ("nothing", "ftp://127.0.0.1", "http://", "http://[", "http://127.0.0.1:x"):
        with pytest.raises(EngineError):
            find_dialect(Server(url))


@contextmanager
def answering(chunks: Sequence[bytes], status: int = 200, pause: float = 0) -> Iterator[Server]:
    """A server that answers every POST with these bytes."""
    leaving = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            try:
                for chunk in chunks:
                    self.wfile.write(chunk)
                    self.wfile.flush()
                    leaving.wait(pause)
            except OSError:
                pass

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield Server(f"http://127.0.0.1:{server.server_address[1]}")
    leaving.set()
    server.shutdown()
    server.server_close()
    thread.join()


def event(**data: Any) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


HOSTILE = {
    "not JSON": [b"data: {\n\n"],
    "a list": [b"data: []\n\n"],
    "deep": [b"data: " + b"[" * 100_000 + b"\n\n"],
    "no tokens": [event(content="x")],
    "text for tokens": [event(content="x", tokens="abc")],
    "negative": [event(content="", tokens=[-1])],
    "too high": [event(content="", tokens=[10**12])],
    "a boolean": [event(content="", tokens=[True])],
    "a fraction": [event(content="", tokens=[1.5])],
    "an error": [event(error={"message": "no \x1b[31m memory"})],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_answers(name: str) -> None:
    with answering(HOSTILE[name]) as server:
        engine = RemoteEngine(server, LlamaServer(1_000), TOKENIZER)
        with pytest.raises(EngineError) as caught:
            list(engine.generate([1], lambda _: 0, stop=set()))
        assert len(str(caught.value)) < 500


def test_a_line_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptoss.runtime.remote import stream

    monkeypatch.setattr(stream, "MAX_LINE_BYTES", 10_000)
    with answering([b"x" * 100_000] * 10) as server:
        engine = RemoteEngine(server, LlamaServer(1_000), TOKENIZER)
        with pytest.raises(EngineError, match="without an end"):
            list(engine.generate([1], lambda _: 0, stop=set()))


def test_a_refusal() -> None:
    with answering([b"no \x1b[31mroom"], status=503) as server:
        engine = RemoteEngine(server, LlamaServer(1_000), TOKENIZER)
        with pytest.raises(EngineError, match="status 503") as caught:
            list(engine.generate([1], lambda _: 0, stop=set()))
        assert "\x1b" not in str(caught.value)


def test_cancel_while_the_server_is_silent() -> None:
    with answering([event(content="a", tokens=spell("a")), b""], pause=60) as server:
        engine = RemoteEngine(server, LlamaServer(1_000), TOKENIZER)
        generation = engine.generate([1], lambda _: 0, stop=set())
        assert next(generation) == spell("a")[0]
        threading.Timer(0.2, generation.cancel).start()
        begun = time.monotonic()
        assert list(generation) == []
        assert time.monotonic() - begun < 20


def test_the_end_of_a_connection_ends_the_reply() -> None:
    with answering([event(content="a", tokens=spell("a"))]) as server:
        engine = RemoteEngine(server, LlamaServer(1_000), TOKENIZER)
        assert list(engine.generate([1], lambda _: 0, stop=set())) == spell("a")


def test_characters_of_several_tokens() -> None:
    """llama-server names only the last token of such a character."""
    tokens = spell("\U0001f600")
    piece = LlamaServer(100).read({"content": "\U0001f600", "tokens": tokens[-1:]}, TOKENIZER)
    assert list(piece.tokens) == tokens
    control = TOKENIZER.control["<|end|>"]
    assert LlamaServer(100).read({"content": "", "tokens": [control]}, TOKENIZER).tokens == (
        control,
    )


def test_what_is_asked() -> None:
    sampling = Sampling(0.5, 3, 0.9, 0.1, logit_bias={5: 1.5})
    asked = Asked([1, 2], sampling, 7, [9], 10)
    body = LlamaServer(100).body(asked)
    assert (body["prompt"], body["n_predict"], body["seed"]) == ([1, 2], 10, 7)
    assert (body["temperature"], body["top_k"], body["min_p"]) == (0.5, 3, 0.1)
    assert body["logit_bias"] == [[5, 1.5]]
    body = Vllm("m", 100).body(asked)
    assert (body["stop_token_ids"], body["logit_bias"], body["top_k"]) == ([9], {"5": 1.5}, 3)
    assert "repetition_penalty" not in body
