"""A generation without harmony: tokens in, pieces of text with their tokens out.

Where the prompt's own log probabilities are wanted, all of it but its first token is generated too,
by a sampler that has no choice: the engine gives logits only for what it generates. That is slower
than reading a prompt, and needs no more memory.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from gptoss.formats.harmony_tokens import ENDS_OF_REPLY
from gptoss.runtime.chat.events import StopReason
from gptoss.runtime.chat.model import Model
from gptoss.runtime.engine.base import (
    Generation,
    Logits,
    PromptProgress,
    Sampler,
    Step,
    TimeLimitError,
    Timings,
)
from gptoss.runtime.sampling.generation import sampler_for_generation
from gptoss.runtime.sampling.logprobs import TokenLogprob, token_logprob
from gptoss.runtime.sampling.sampler import RandomSampler
from gptoss.runtime.sampling.stop_strings import StopFilter
from gptoss.runtime.server.completions.request import RawRequest
from gptoss.runtime.server.errors import ApiError, invalid
from gptoss.runtime.server.reply import Usage
from gptoss.runtime.server.reply_thread import ReplyThread


@dataclass(frozen=True, slots=True)
class RawText:
    """A token and the text that is certain after it, which may be empty or of earlier tokens."""

    text: str
    token: int | None = None
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True)
class PromptToken:
    """A token of the prompt and its log probability, which the first one has none of."""

    token: int
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True)
class RawDone:
    """The generation is over; always last. ``cut`` is None when it ended by itself, by a stop
    string, or by one of the stop ids."""

    timings: Timings
    usage: Usage
    cut: StopReason | None = None
    stop: str | None = None


RawEvent = PromptProgress | PromptToken | RawText | RawDone


class ScoringSampler:
    """A sampler that draws the tokens of a prompt, which are given, and then as ``draw`` does."""

    def __init__(
        self, rest: Sequence[int], draw: Sampler, logprobs: deque[TokenLogprob], n_top: int
    ) -> None:
        """``rest`` is the prompt after its first token; ``logprobs`` are those of ``draw``."""
        self._rest = deque(rest)
        self._draw = draw
        self._logprobs = logprobs
        self._n_top = n_top

    def __call__(self, logits: Logits) -> int:
        """The next token id; see ``GenerationSampler``."""
        if not self._rest:
            return self._draw(logits)
        token = self._rest.popleft()
        self._logprobs.append(token_logprob(logits, token, self._n_top))
        return token


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
            raise _too_long(f"has more than the {room} tokens that the context holds")
        request.sampling.require_vocabulary(n_vocab)
        self.prompt = model.tokenizer.encode(given) if isinstance(given, str) else list(given)
        if len(self.prompt) >= room:
            raise _too_long(f"has {len(self.prompt)} tokens; the context holds {room}")
        self._n_given = 1 if request.scored else len(self.prompt)
        """Tokens that the engine is given to read; the others are drawn."""
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
        drawn = self.prompt[self._n_given :]
        n_top = request.sampling.top_logprobs
        if self._logprobs is not None and n_top is not None and request.scored:
            sampler = ScoringSampler(drawn, sampler, self._logprobs, n_top)
        self._generation = model.engine.generate(
            self.prompt[: self._n_given],
            sampler,
            stop=frozenset() if drawn else self._stop_ids,  # the prompt may have any of them
            max_tokens=max(1, len(drawn) + request.max_tokens),
            time_limit=self.time_limit,
        )
        if self._cancelled:
            self._generation.cancel()

    @property
    def generation(self) -> Generation:
        """Return the generation that was submitted."""
        assert self._generation is not None  # noqa: S101 submitted before
        return self._generation

    def read(self, steps: Iterator[Step | None]) -> Generator[RawEvent | None]:
        """Read the generation to its end by its steps; a None of them is passed on."""
        generation = self.generation
        filter_ = StopFilter(self._request.stop)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        written: list[int] = []
        try:
            if self._request.scored:
                yield from self._read_prompt(steps)
            for step in steps:
                if step is None or isinstance(step, PromptProgress):
                    yield step
                    continue
                if len(written) == self._request.max_tokens:
                    break
                written.append(step)
                text = filter_.push(decoder.decode(self._bytes(step)))
                logprob = self._logprobs.popleft() if self._logprobs else None
                yield RawText(text, step, logprob)
                if filter_.found is not None or step in self._stop_ids:
                    break
            if filter_.found is None:
                rest = filter_.push(decoder.decode(b"", True))
                if rest := rest + filter_.finish():
                    yield RawText(rest)
        except TimeLimitError:
            self.timed_out = True
        finally:
            generation.close()
        yield self._done(generation.timings, written, filter_.found)

    def _read_prompt(self, steps: Iterator[Step | None]) -> Generator[RawEvent | None]:
        """Give the prompt's tokens as they are drawn. Raises ApiError if the engine draws others:
        one behind another server has a sampler of its own.
        """
        yield PromptToken(self.prompt[0])
        rest = deque(self.prompt[1:])
        for step in steps if rest else ():
            if step is None or isinstance(step, PromptProgress):
                yield step
                continue
            if step != rest.popleft() or not self._logprobs:
                raise invalid("logprobs: not computed for the prompt by this engine", "logprobs")
            yield PromptToken(step, self._logprobs.popleft())
            if not rest:
                return

    def _done(self, timings: Timings, written: list[int], stop: str | None) -> RawDone:
        ended = stop is not None or any(it in self._stop_ids for it in written[-1:])
        if ended:
            cut = None
        elif len(written) == self._request.max_tokens and not self._cancelled:
            cut = StopReason.MAX_TOKENS
        else:
            cut = self.why_cut(timings, None)
        return RawDone(
            timings, Usage(len(self.prompt), timings.reused_tokens, len(written)), cut, stop
        )

    def _bytes(self, token: int) -> bytes:
        if token in self._stop_ids or (self._request.skip_control and token in self._control):
            return b""
        return self.model.tokenizer.token_bytes(token)


def _too_long(problem: str) -> ApiError:
    return invalid(f"prompt: {problem}", "prompt", "context_length_exceeded")
