"""What the terminal says about a reply: its end, its cost, how far its prompt has been read."""

from __future__ import annotations

from gptoss.runtime.chat.events import PromptProgress, ReplyEnded, StopReason
from gptoss.runtime.harmony.events import End
from gptoss.runtime.sampling.grammar import ReasoningStop

_CUT = {
    StopReason.MAX_TOKENS: "token limit reached",
    StopReason.CONTEXT: "the context is full",
    StopReason.MAX_ROUNDS: "tool-call limit reached",
    StopReason.TIME: "time limit reached",
    StopReason.CANCELLED: "it was cancelled",
}
CLOSED = {
    ReasoningStop.BUDGET: "budget used up",
    ReasoningStop.LOOP: "the model was repeating itself",
    ReasoningStop.ASKED: "the answer was asked for",
}
"""Why the model was made to stop reasoning."""

SHOWN_PROMPT = 256
"""Prompt tokens to be read from which on the progress is shown."""


class PromptClock:
    """How far a prompt has been read, and how long the rest will take."""

    def __init__(self) -> None:
        self._begun = 0.0

    def describe(self, event: PromptProgress, now: float) -> str:
        """Return the printed progress of the prompt, ``reading 2,100 of 6,000 tokens, 12 s left``;
        empty where there is little to read.
        """
        done, total = event.done - event.reused, event.total - event.reused
        if done == 0:
            self._begun = now
        if total < SHOWN_PROMPT or done == total:
            return ""
        left = ""
        if done:
            left = f", {(now - self._begun) * (total - done) / done:.0f} s left"
        return f"reading {done:,} of {total:,} tokens{left}"


def ending(event: ReplyEnded) -> str:
    """Return the printed reason why a reply was cut short; empty for a whole one."""
    if event.end != End.CUT:
        return ""
    return "reply stopped" + ("" if event.cut is None else f": {_CUT[event.cut]}")


def summary(event: ReplyEnded) -> str:
    """Return the printed token counts and speeds at the end of a reply."""
    timings = event.timings
    if not timings.prompt_tokens:  # another server, which does not say
        return f"{timings.prompt_seconds + timings.generate_seconds:.2f} s"
    return (
        f"{timings.prompt_tokens} prompt tokens, {timings.reused_tokens} of them reused, "
        f"{timings.prompt_seconds:.2f} s; {timings.generated_tokens} generated, "
        f"{timings.tokens_per_second:.1f} tokens/s"
    )
