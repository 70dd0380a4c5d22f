"""Stop strings and log probabilities in a chat's events."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import numpy as np
import pytest

from gptoss.runtime.chat.chat import Chat
from gptoss.runtime.chat.events import ChatEvent, ReplyEnded, StopReason, TextLogprobs
from gptoss.runtime.chat.model import Model, load
from gptoss.runtime.chat.options import ChatOptions, settings_of
from gptoss.runtime.chat.settings import Limits, Settings
from gptoss.runtime.harmony.events import End, MessageEnded, MessageStarted, RoundEnded, TextDelta
from gptoss.runtime.sampling.parameters import Sampling, SamplingError
from support.fake_engine import ScriptedEngine, engine_of
from support.generation import FakeGeneration
from support.tokens import byte_tokenizer

REPLY = "<|channel|>analysis<|message|>END?<|end|><|start|>assistant<|channel|>final<|message|>"


class ScoringEngine(ScriptedEngine):
    """As scripted, and each token goes through the sampler, which makes its log probabilities."""

    def generate(self, prompt: Any, sampler: Any, **options: Any) -> FakeGeneration:
        generation = super().generate(prompt, sampler, **options)
        tokens, n_vocab = generation._tokens, byte_tokenizer().n_vocab

        def scored() -> Any:
            for token in tokens:
                logits = np.zeros(n_vocab, np.float32)
                logits[token] = 5
                sampler(logits)
                yield token

        generation._tokens = scored()
        return generation


def chat_of(answer: str, *, engine: type[ScriptedEngine] = ScriptedEngine, **fields: Any) -> Chat:
    scripts = (f"{REPLY}{answer}<|return|>", f"{REPLY}again<|return|>")
    return Chat(engine(*scripts), byte_tokenizer(), settings=Settings(**fields))


def final_text(events: list[ChatEvent]) -> str:
    return "".join(it.text for it in events if isinstance(it, TextDelta) and it.channel == "final")


def test_a_stop_string_ends_the_answer_and_is_in_no_event() -> None:
    chat = chat_of("one END two", stop=["END"])
    events = list(chat.send("?"))
    assert final_text(events) == "one "
    ended = events[-1]
    assert isinstance(ended, ReplyEnded)
    assert (ended.end, ended.cut, ended.stop) == (End.RETURN, None, "END")
    assert [it.end for it in events if isinstance(it, RoundEnded)] == [End.RETURN]
    assert [it.message.text for it in events if isinstance(it, MessageEnded)] == ["END?", "one "]
    assert [m.text for m in chat.history] == ["?", "END?", "one "]
    assert chat.ask("more").text == "again"
    reply = chat_of("one END two", stop="END").ask("?")
    assert (reply.text, reply.reasoning, reply.stop) == ("one ", "END?", "END")


def test_the_generation_is_not_read_beyond_the_stop_string() -> None:
    chat = chat_of("one END two", stop=["END"])
    chat.ask("?")
    [generation] = engine_of(chat).generations
    assert generation.cancelled
    assert generation.timings.generated_tokens < 40


def test_text_that_may_be_a_stop_string_is_held_back_and_given_later() -> None:
    events = list(chat_of("an E, an EN, all", stop=["END"]).send("?"))
    assert final_text(events) == "an E, an EN, all"
    deltas = [it.text for it in events if isinstance(it, TextDelta) and it.channel == "final"]
    assert "E," in deltas
    assert "EN," in deltas
    assert not {"E", "N", "EN"} & set(deltas)


def test_what_is_held_back_at_the_end_is_given() -> None:
    events = list(chat_of("an EN", stop=["END"]).send("?"))
    assert final_text(events) == "an EN"
    last_text = max(i for i, it in enumerate(events) if isinstance(it, TextDelta))
    assert isinstance(events[last_text + 1], MessageEnded)
    reply = chat_of("an EN", stop=["END"], limits=Limits(max_tokens=35)).ask("?")
    assert reply.cut == StopReason.MAX_TOKENS
    assert "an EN".startswith(reply.text)


def test_logprobs_come_before_their_text() -> None:
    sampling = Sampling(temperature=0, top_logprobs=2)
    events = list(chat_of("Fo²r", engine=ScoringEngine, sampling=sampling).send("?"))
    begun = next(
        i for i, it in enumerate(events) if isinstance(it, MessageStarted) and it.channel == "final"
    )
    told = [(type(it).__name__, it) for it in events[begun + 1 : -2]]
    assert [name for name, _ in told] == ["TextLogprobs", "TextDelta"] * 4 + ["MessageEnded"]
    scores = [it for it in events if isinstance(it, TextLogprobs) and it.channel == "final"]
    assert [[bytes([e.token]) for e in it.logprobs] for it in scores] == [
        [b"F"], [b"o"], [b"\xc2", b"\xb2"], [b"r"]
    ]  # fmt: skip
    entry = scores[0].logprobs[0]
    assert entry.top[0].token == ord("F")
    assert entry.logprob == entry.top[0].logprob
    reply = chat_of("Four", engine=ScoringEngine, sampling=sampling).ask("?")
    assert bytes(it.token for it in reply.logprobs) == b"Four"


def test_logprobs_end_where_the_text_ends() -> None:
    sampling = Sampling(temperature=0, top_logprobs=0)
    chat = chat_of("one END two", engine=ScoringEngine, sampling=sampling, stop=["END"])
    reply = chat.ask("?")
    assert bytes(it.token for it in reply.logprobs) == b"one "
    assert all(it.top == () for it in reply.logprobs)


def test_a_bias_beyond_the_vocabulary_is_refused_before_anything_is_sent() -> None:
    sampling = Sampling(logit_bias={10_000: 1})
    with pytest.raises(SamplingError, match="token 10000"):
        chat_of("x", sampling=sampling)
    chat = chat_of("x")
    with pytest.raises(SamplingError, match="token 10000"):
        chat.settings = Settings(sampling=sampling)
    assert chat.settings.sampling == Sampling()


def test_sampling_by_single_options() -> None:
    settings = settings_of({"temperature": 0, "top_p": 0.5, "stop": "x", "max_tokens": 5})
    assert settings.sampling == Sampling(0, top_p=0.5)
    assert (settings.stop, settings.limits.max_tokens) == (("x",), 5)
    both = settings_of({"sampling": Sampling(0.5, 10), "temperature": 0})
    assert both.sampling == Sampling(0, 10)
    assert settings_of({}) == Settings()
    assert pickle.loads(pickle.dumps(settings)) == settings  # noqa: S301


@pytest.mark.parametrize("function", [load, Model.chat])
def test_a_wrong_name_is_a_type_error(function: Any) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
        function(Model(ScriptedEngine(), byte_tokenizer()), temprature=0)


@pytest.mark.parametrize("function", [load, Model.chat])
def test_help_shows_every_option_with_its_default(function: Any) -> None:
    shown = inspect.signature(function).parameters
    assert ChatOptions.__annotations__.keys() <= shown.keys()
    assert (shown["temperature"].default, shown["reasoning"].default) == (1.0, "medium")
    assert shown["max_rounds"].default == Limits().max_rounds
    assert shown["stop"].default == ()
    assert "tool_choice: 'str' = 'auto', parallel_calls: 'bool' = False" in str(
        inspect.signature(function)
    )
