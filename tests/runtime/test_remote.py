"""The engine's interface over another server: this project's own, scripted ones, hostile ones."""

from __future__ import annotations

import threading
import time

import pytest

pytest.importorskip("httpcore")
pytest.importorskip("uvicorn")

from gptoss.runtime.chat.model import Model
from gptoss.runtime.engine.base import (
    EngineError,
    PromptTooLongError,
    QueueFullError,
    RemoteError,
    RemoteUnreachableError,
)
from gptoss.runtime.harmony.events import End
from gptoss.runtime.remote import http
from gptoss.runtime.remote.address import Server
from gptoss.runtime.remote.dialects import Asked, LlamaServer, Vllm, find_dialect
from gptoss.runtime.remote.engine import RemoteEngine
from gptoss.runtime.sampling.parameters import Sampling, SamplingError
from gptoss.runtime.sampling.sampler import RandomSampler
from support.fake_engine import ScriptedEngine
from support.malformed import MALFORMED
from support.remote_servers import TOKENIZER, answering, event, own_server
from support.tokens import spell

THOUGHT = "<|channel|>analysis<|message|>2 + 2<|end|><|start|>assistant"
ANSWER = "<|channel|>final<|message|>It is 4: 日本 \U0001f600.<|return|>"
CALL = '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>'


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
            find_dialect(Server(model.engine.server.base_url, "wrong"))
    with pytest.raises(EngineError, match="cannot be reached"):
        find_dialect(Server("http://127.0.0.1:1"))
    for url in ("nothing", "ftp://127.0.0.1", "http://", "http://[", "http://127.0.0.1:x"):
        with pytest.raises(EngineError):
            find_dialect(Server(url))


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
        engine = RemoteEngine(Server(server.url), TOKENIZER, LlamaServer(1_000))
        with pytest.raises(EngineError) as caught:
            list(engine.generate([1], lambda _: 0, stop=set()))
        assert len(str(caught.value)) < 500


def test_a_line_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_LINE_BYTES", 10_000)
    with answering([b"x" * 100_000] * 10) as server:
        engine = RemoteEngine(Server(server.url), TOKENIZER, LlamaServer(1_000))
        with pytest.raises(EngineError, match="without an end"):
            list(engine.generate([1], lambda _: 0, stop=set()))


def test_a_refusal() -> None:
    with answering([b"no \x1b[31mroom"], status=503) as server:
        engine = RemoteEngine(Server(server.url), TOKENIZER, LlamaServer(1_000))
        with pytest.raises(EngineError, match="status 503") as caught:
            list(engine.generate([1], lambda _: 0, stop=set()))
        assert "\x1b" not in str(caught.value)


def test_cancel_while_the_server_is_silent() -> None:
    with answering([event(content="a", tokens=spell("a")), b""], pause=60) as server:
        engine = RemoteEngine(Server(server.url), TOKENIZER, LlamaServer(1_000))
        generation = engine.generate([1], lambda _: 0, stop=set())
        assert next(generation) == spell("a")[0]
        threading.Timer(0.2, generation.cancel).start()
        begun = time.monotonic()
        assert list(generation) == []
        assert time.monotonic() - begun < 20


def test_a_connection_that_closes_in_mid_reply_is_an_error_and_the_next_request_works() -> None:
    chunks = [event(content="a", tokens=spell("a"))]
    with answering(chunks) as server:
        engine = RemoteEngine(Server(server.url), TOKENIZER, LlamaServer(1_000))
        generation = engine.generate([1], lambda _: 0, stop=set())
        assert next(generation) == spell("a")[0]
        with pytest.raises(RemoteError, match="closed the connection"):
            next(generation)
        chunks.append(event(content="", stop=True))
        engine = RemoteEngine(Server(server.url), TOKENIZER, LlamaServer(1_000))
        assert list(engine.generate([1], lambda _: 0, stop=set())) == spell("a")


def test_cancel_closes_the_connection_also_before_the_answer_begins() -> None:
    with answering([b""], pause=60) as server:  # the status comes, and then nothing
        engine = RemoteEngine(Server(server.url), TOKENIZER, LlamaServer(1_000))
        engine.generate([1], lambda _: 0, stop=set()).cancel()
        assert server.gone.wait(20)


def test_after_a_failure_the_server_is_asked_again_what_it_is() -> None:
    with own_server(ANSWER, ANSWER) as (model, _):
        engine = model.engine
        assert isinstance(engine, RemoteEngine)
        engine._dialect, engine._stale = Vllm("another", 50), False
        with pytest.raises(RemoteError, match="another"):
            engine.generate([1], lambda _: 0, stop=set())
        assert engine.n_ctx == 50  # as last known: asking would block
        assert len(list(engine.generate([1], lambda _: 0, stop=set(), max_tokens=2))) == 2
        assert engine.n_ctx == 100_000


def test_nothing_listens_any_more() -> None:
    engine = RemoteEngine(Server("http://127.0.0.1:1"), TOKENIZER, LlamaServer(1_000))
    with pytest.raises(RemoteUnreachableError):
        engine.generate([1], lambda _: 0, stop=set())
    assert not engine._running


def test_a_flood_waits_for_its_reader_and_ends_with_it() -> None:
    flood = [event(content="a", tokens=spell("a")) * 10_000] * 50
    with answering(flood) as server:
        engine = RemoteEngine(Server(server.url), TOKENIZER, LlamaServer(1_000))
        generation = engine.generate([1], lambda _: 0, stop=set())
        assert next(generation) == spell("a")[0]
        time.sleep(0.3)
        assert generation._lines._lines.qsize() <= 32
        generation.close()
        assert server.gone.wait(20)


def test_tokens_that_never_come(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptoss.runtime.remote import engine as module

    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.2)
    with answering([event(content="", tokens=[])] * 1_000, pause=0.05) as server:
        engine = RemoteEngine(Server(server.url), TOKENIZER, LlamaServer(1_000))
        with pytest.raises(RemoteError, match="no token for"):
            list(engine.generate([1], lambda _: 0, stop=set()))


def test_log_probabilities_are_refused() -> None:
    engine = RemoteEngine(Server("http://127.0.0.1:1"), TOKENIZER, LlamaServer(1_000))
    sampler = RandomSampler(Sampling(top_logprobs=1), None)
    with pytest.raises(SamplingError, match="log probabilities"):
        engine.generate([1], sampler, stop=set())


def test_a_server_without_token_ids_is_no_dialect() -> None:
    listing = b'{"data": [{"id": "m"}], "choices": [{"text": "x"}]}'
    with answering([listing]) as server:
        assert find_dialect(Server(server.url)) is None
        with pytest.raises(RemoteError, match="gives no token ids"):
            RemoteEngine(Server(server.url), TOKENIZER).connect()
        assert server.asked[-1]["return_token_ids"] is True


def test_of_several_models_the_named_one_is_asked() -> None:
    listing = (
        b'{"data": [{"id": "a"}, {"id": "b", "max_model_len": 99}], "choices": [{"token_ids": []}]}'
    )
    with answering([listing]) as server:
        assert find_dialect(Server(server.url), ["b"]) == Vllm("b", 99)
        assert find_dialect(Server(server.url), ["c"]) == Vllm("a", 4_096)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_not_taken_for_another_kind(status: int) -> None:
    with (
        answering([b"wait"], status=status) as server,
        pytest.raises(QueueFullError, match="wait"),
    ):
        find_dialect(Server(server.url))


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
