"""One turn of a chat: rounds of generation and tool calls, until an answer or a limit.

A turn has its own list of messages. The conversation takes them over when the turn is settled; one
that was cancelled by ``reset`` or ``close`` is never taken over, whatever its reader still does.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import replace

from gptoss.runtime.chat.answer_check import answer_diagnostics
from gptoss.runtime.chat.events import (
    ChatEvent,
    HistoryShortened,
    ReplyEnded,
    StopReason,
)
from gptoss.runtime.chat.runner import ChatRound, ChatRunner
from gptoss.runtime.chat.settings import Limits
from gptoss.runtime.chat.tool_runs import ToolRuns
from gptoss.runtime.engine.base import EngineError, Timings
from gptoss.runtime.harmony.errors import ConversationTooLongError
from gptoss.runtime.harmony.events import Diagnostic, End
from gptoss.runtime.harmony.messages import Message, Role, final
from gptoss.runtime.sampling.grammar import Rules, ToolChoice
from gptoss.runtime.sampling.sampler import RandomSampler
from gptoss.runtime.tools.toolbox import Toolbox

_MOMENT = 0.001


class TurnUsage:
    """What a turn has cost so far, against what it may."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._timings = Timings()
        self._reasoned = 0
        self._begun = time.monotonic()

    def add(self, timings: Timings, reasoned: int) -> None:
        """Add one generation's cost to the turn's, with how many of its tokens were reasoning."""
        self._timings += timings
        self._reasoned += reasoned

    @property
    def tokens_left(self) -> int | None:
        """Return how many tokens the turn may still generate; None where there is no limit."""
        most = self._limits.max_tokens
        return None if most is None else most - self._timings.generated_tokens

    @property
    def reasoning_left(self) -> int | None:
        """Return how many reasoning tokens the turn may still generate; None where there is no
        limit.
        """
        budget = self._limits.reasoning_budget
        return None if budget is None else max(0, budget - self._reasoned)

    @property
    def seconds_left(self) -> float | None:
        """Return how many seconds the turn may still take, a moment at least; None where there is
        no limit.
        """
        most = self._limits.reply_seconds
        return None if most is None else max(_MOMENT, most - (time.monotonic() - self._begun))

    def ended(self, end: End, cut: StopReason, stop: str | None = None) -> ReplyEnded:
        """Build ``ReplyEnded`` from the turn's usage; ``cut`` is used only if the turn was cut
        short, ``stop`` is the stop string that ended it.
        """
        return ReplyEnded(end, self._timings, cut if end == End.CUT else None, stop)


class Turn:
    """One message and the reply to it. One thread runs it; ``cancel`` may be called from any."""

    def __init__(
        self,
        runner: ChatRunner,
        toolbox: Toolbox,
        before: Sequence[Message],
        question: Message,
        rules: Rules,
        limits: Limits,
        sampler: RandomSampler,
        stop: Sequence[str] = (),
        shortened: HistoryShortened | None = None,
    ) -> None:
        """``before`` is the conversation so far, system and developer message first; ``stop`` are
        strings that end the answer; ``shortened`` is what was done to make room for it.
        """
        self.messages: list[Message] = [question]
        self._runner = runner
        self._toolbox = toolbox
        self._tool_runs = ToolRuns(toolbox, limits.tool_seconds, runner.shortened)
        self._before = tuple(before)
        self._rules = rules
        self._max_rounds = limits.max_rounds
        self._usage = TurnUsage(limits)
        self._sampler = sampler
        self._stop = stop
        self._shortened_history = shortened
        self._round: ChatRound | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """Cancel this turn as soon as possible, in generation or in a tool call."""
        # In this order, as ``_generate`` has it the other way round: no cancel is lost.
        self._cancelled = True
        if self._round is not None:
            self._round.cancel()
        self._tool_runs.cancel()

    def answer_now(self) -> bool:
        """End the reasoning of this turn's round before its next token. Returns False where none
        is under way, or nothing is constrained.
        """
        return self._round is not None and self._round.close_reasoning()

    @property
    def cancelled(self) -> ReplyEnded:
        """Return the ``ReplyEnded`` of this turn if it is cancelled now."""
        return self._usage.ended(End.CUT, StopReason.CANCELLED)

    def remains(self, end: End) -> list[Message]:
        """Return the messages of this turn that the chat keeps, given how the turn ended.

        All of a whole one. Of another: the question and what of the answer was given, or, where
        no answer was begun, nothing.
        """
        if end == End.RETURN and _is_whole(self.messages):
            return self.messages
        answers = (m for m in self.messages if m.role == Role.ASSISTANT and m.channel == "final")
        given = "".join(m.text for m in answers)
        return [self.messages[0], final(given)] if given else []

    def run(self) -> Generator[ChatEvent, None, ReplyEnded]:
        """Run the turn's rounds of generation and tool calls until the model calls no more tools;
        return how it ended and what it cost.
        """
        rules = self._rules
        if self._shortened_history is not None:
            yield self._shortened_history
        for calls_left in range(self._max_rounds, -1, -1):
            if calls_left == 0:
                rules = replace(rules, tool_choice=ToolChoice.NONE)
            start = len(self.messages)
            if self._cancelled:
                return self.cancelled
            try:
                end = yield from self._generate(rules)
            except EngineError:
                if self._cancelled:  # the engine was closed too
                    return self.cancelled
                raise
            except ConversationTooLongError as error:
                if start == 1:  # the question itself does not fit
                    error.args = (f"the conversation {error.problem}",)  # no place in a list
                    raise
                return self._usage.ended(End.CUT, StopReason.CONTEXT)
            calls = [m for m in self.messages[start:] if m.recipient is not None]
            if end != End.CALL or not calls:
                if end == End.RETURN:
                    yield from answer_diagnostics(rules.response_format, self.messages[start:])
                whole = End.RETURN if end == End.CALL else end
                stop = None if self._round is None else self._round.stop
                return self._usage.ended(whole, self._why_cut(), stop)
            if calls_left == 0:
                break
            yield from self._run_tools(calls)
            if self._usage.tokens_left == 0:
                return self._usage.ended(End.CUT, self._why_cut())
            if rules.tool_choice != ToolChoice.NONE:
                rules = replace(rules, tool_choice=ToolChoice.AUTO)  # what was asked for is done
        yield Diagnostic("too-many-calls", f"ended after {self._max_rounds} rounds of tool calls")
        return self._usage.ended(End.CUT, StopReason.MAX_ROUNDS)

    def _why_cut(self) -> StopReason:
        """Return the reason why this turn was cut: cancelled, token or time limit reached, or
        context full.
        """
        if self._cancelled:
            return StopReason.CANCELLED
        if self._round is not None and self._round.timed_out:
            return StopReason.TIME
        return StopReason.MAX_TOKENS if self._usage.tokens_left == 0 else StopReason.CONTEXT

    def _generate(self, rules: Rules) -> Generator[ChatEvent, None, End]:
        """Run one generation of the turn, up to an answer or a tool call, and add its messages to
        the turn.
        """
        usage = self._usage
        generation = self._round = self._runner.new_round(
            rules,
            self._sampler,
            stop=self._stop,
            max_tokens=usage.tokens_left,
            reasoning_budget=usage.reasoning_left,
        )
        if self._cancelled:
            generation.cancel()
        generation.start((*self._before, *self.messages), usage.seconds_left)
        try:
            return (yield from generation.events())
        finally:
            self.messages += generation.messages
            usage.add(generation.timings, generation.reasoned)

    def _run_tools(self, calls: list[Message]) -> Generator[ChatEvent, None, None]:
        """Run the round's calls, and add their results to the turn in the order of the calls."""
        outcomes = yield from self._tool_runs.run(calls)
        for call, outcome in zip(calls, outcomes, strict=True):
            if outcome is not None:
                self.messages.append(self._result(call.recipient or "", outcome.text))

    def _result(self, recipient: str, text: str) -> Message:
        builtin = self._toolbox.is_builtin(recipient)
        channel = "analysis" if builtin else "commentary"
        return Message(
            Role.TOOL, text, name=recipient, channel=channel, recipient=Role.ASSISTANT.value
        )


def _is_whole(turn: list[Message]) -> bool:
    """Report whether a turn's messages end with a final message and have a result for each tool
    call.
    """
    calls = sum(m.role == Role.ASSISTANT and m.recipient is not None for m in turn)
    results = sum(m.role == Role.TOOL for m in turn)
    return turn[-1].channel == "final" and calls == results
