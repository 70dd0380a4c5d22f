"""What a round does to its events where stop strings or log probabilities are asked for.

The text of the final channel ends before the first stop string; text that may be the beginning of
one is held back. Log probabilities come right before the text that their tokens are of, and only
with text that is given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable, Iterator, Sequence

from gptoss.runtime.chat.events import TextLogprobs
from gptoss.runtime.harmony.events import (
    End,
    Event,
    MessageEnded,
    MessageStarted,
    RoundEnded,
    TextDelta,
)
from gptoss.runtime.harmony.messages import Message
from gptoss.runtime.sampling.logprobs import TokenLogprob
from gptoss.runtime.sampling.stop_strings import StopFilter


class FinalText:
    """Applies stop strings to one round's events, and puts its log probabilities among them.

    ``found`` is the stop string that ended the round, None before. The events up to its
    ``RoundEnded`` have been given then, and no more follow.
    """

    def __init__(
        self,
        stop: Sequence[str],
        logprobs: deque[TokenLogprob] | None,
        text_ids: Container[int],
    ) -> None:
        """``logprobs`` are the recorded ones, one for each token. ``text_ids`` are the tokens of
        text, which no control token is among.
        """
        self.found: str | None = None
        self._stop = stop
        self._logprobs = logprobs
        self._text_ids = text_ids
        self._filter: StopFilter | None = None
        self._message: MessageStarted | None = None
        self._given: list[str] = []
        self._n_seen = self._n_given = 0
        self._waiting: deque[tuple[int, TokenLogprob]] = deque()

    def token(self, token: int) -> None:
        """Note the token whose events are filtered next."""
        if self._logprobs is not None:
            entry = self._logprobs.popleft()
            if self._message is not None and token in self._text_ids:
                self._waiting.append((self._n_seen, entry))

    def filtered(self, events: Iterable[Event]) -> Iterator[Event | TextLogprobs]:
        """Give the parser's events as they are to be seen; nothing after a stop string."""
        for event in events:
            if self.found is not None:
                return
            match event:
                case MessageStarted():
                    self._begin(event)
                    yield event
                case TextDelta():
                    yield from self._text(event)
                case MessageEnded():
                    if self._filter is not None:
                        yield from self._give(self._filter.finish())
                    yield from self._scores(None)
                    self._message = None
                    yield event
                case _:
                    yield event

    def _begin(self, message: MessageStarted) -> None:
        self._message = message
        self._given, self._n_seen, self._n_given = [], 0, 0
        is_answer = message.channel == "final" and message.recipient is None
        self._filter = StopFilter(self._stop) if self._stop and is_answer else None

    def _text(self, delta: TextDelta) -> Iterator[Event | TextLogprobs]:
        self._n_seen += len(delta.text)
        if self._filter is None or self._message is None:
            yield from self._give(delta.text)
            return
        yield from self._give(self._filter.push(delta.text))
        if self._filter.found is not None:
            self.found = self._filter.found
            yield MessageEnded(self._cut_message(self._message))
            yield RoundEnded(End.RETURN)

    def _give(self, text: str) -> Iterator[Event | TextLogprobs]:
        if not text or self._message is None:
            return
        self._n_given += len(text)
        self._given.append(text)
        yield from self._scores(self._n_given)
        yield TextDelta(text, self._message.channel)

    def _scores(self, end: int | None) -> Iterator[TextLogprobs]:
        """Give the log probabilities of the tokens that begin before the character ``end``; of all
        that wait where that is None.
        """
        scores = []
        while self._waiting and (end is None or self._waiting[0][0] < end):
            scores.append(self._waiting.popleft()[1])
        if scores and self._message is not None:
            yield TextLogprobs(tuple(scores), self._message.channel)

    def _cut_message(self, header: MessageStarted) -> Message:
        """Return the message up to the stop string; without token ids, as it may end inside one."""
        return Message(
            header.role,
            "".join(self._given),
            name=header.name,
            channel=header.channel,
            content_type=header.content_type,
        )
