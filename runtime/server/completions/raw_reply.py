"""A generation without harmony: tokens in, pieces of text with their tokens out."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass

from gptoss.formats.harmony_tokens import ENDS_OF_REPLY
from gptoss.runtime.chat.events import StopReason
from gptoss.runtime.chat.model import Model
from gptoss.runtime.engine.base import (
    Generation,
    PromptProgress,
    PromptTooLongError,
    TimeLimitError,
    Timings,
)
from gptoss.runtime.sampling.generation import sampler_for_generation
from gptoss.runtime.sampling.logprobs import TokenLogprob
from gptoss.runtime.sampling.sampler import RandomSampler
from gptoss.runtime.sampling.stop_strings import StopFilter
from gptoss.runtime.server.completions.request import RawRequest
from gptoss.runtime.server.errors import invalid
from gptoss.runtime.server.reply_thread import ReplyThread


@dataclass(frozen=True, slots=True)
class RawText:
    """A token and the text that is certain after it, which may be empty or of earlier tokens."""

    text: str
    token: int | None = None
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True)
class RawDone:
    """The generation is over; always last. ``cut`` is None when it ended by itself, by a stop
    string, or by one of the stop ids."""

    timings: Timings
    cut: StopReason | None = None
    stop: str | None = None


RawEvent = PromptProgress | RawText | RawDone


class RawReply(ReplyThread[RawEvent]):
    """See ``ReplyThread``. ``prompt`` are its token ids."""

    def __init__(self, model: Model, request: RawRequest) -> None:
        """Raises ApiError for a token that is not in the vocabulary, SamplingError."""
        super().__init__(model)
        given, n_vocab = request.prompt, model.tokenizer.n_vocab
        if not isinstance(given, str) and max(given) >= n_vocab:
            raise invalid(f"prompt: token {max(given)}; the vocabulary has {n_vocab}", "prompt")
        room = model.engine.n_ctx
        if isinstance(given, str) and len(given) > room * model.tokenizer.longest:
            raise PromptTooLongError(f"the prompt has more than {room} tokens")
        request.sampling.require_vocabulary(n_vocab)
        self.prompt = model.tokenizer.encode(given) if isinstance(given, str) else list(given)
        self._request = request
        self._stop_ids = request.stop_ids | {model.tokenizer.control[it] for it in ENDS_OF_REPLY}
        self._control = frozenset(model.tokenizer.control.values())
        self._generation: Generation | None = None
        self._logprobs: deque[TokenLogprob] | None = None

    def cancel(self) -> None:
        """End the generation as soon as possible."""
        super().cancel()
        if self._generation is not None:
            self._generation.cancel()

    def submit(self) -> None:
        """Put the request in the engine's queue."""
        request, model = self._request, self.model
        sampler, self._logprobs = sampler_for_generation(
            request.sampling,
            RandomSampler(request.sampling, request.seed),
            model.tokenizer.text_id_set,
        )
        self._generation = model.engine.generate(
            self.prompt,
            sampler,
            stop=self._stop_ids,
            max_tokens=request.max_tokens,
            time_limit=self.time_limit,
        )
        if self._cancelled:
            self._generation.cancel()

    def events(self) -> Generator[RawEvent]:
        """Read the generation to its end."""
        generation = self._generation
        assert generation is not None  # noqa: S101 submitted before
        filter_ = StopFilter(self._request.stop)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        last = -1
        try:
            for step in generation.steps():
                if isinstance(step, PromptProgress):
                    yield step
                    continue
                last = step
                text = filter_.push(decoder.decode(self._bytes(step)))
                logprob = self._logprobs.popleft() if self._logprobs else None
                yield RawText(text, step, logprob)
                if filter_.found is not None:
                    break
            if filter_.found is None:
                rest = filter_.push(decoder.decode(b"", True))
                if rest := rest + filter_.finish():
                    yield RawText(rest)
        except TimeLimitError:
            self.timed_out = True
        finally:
            generation.close()
        timings = generation.timings
        ended = filter_.found is not None or last in self._stop_ids
        cut = None if ended else self.why_cut(timings, self._request.max_tokens)
        yield RawDone(timings, cut, filter_.found)

    def _bytes(self, token: int) -> bytes:
        if token in self._stop_ids or (self._request.skip_control and token in self._control):
            return b""
        return self.model.tokenizer.token_bytes(token)
