"""Drafts by prompt lookup: text that repeats is decoded many tokens at once.

Where the last ``MATCH`` tokens have occurred before, those that followed them there are likely to
follow again. They are decoded in one batch with the last token, and the request's own sampler draws
from each position's logits as long as it draws what was drafted. So every token is drawn from the
logits that belong to it, by the same calls in the same order: the output has the same distribution.

A mixture of experts reads more weights for more tokens, so a batch of 64 may take as long as 36
single tokens, and a draft that fails is dear. Hence ``DraftAccount``: a draft is taken only where
the expected gain is positive, and its possible loss is covered by what earlier drafts have earned
and by a small share of the time so far. Text that does not repeat is slowed by that share at most.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from gptoss.runtime.engine.base import EngineError
from gptoss.runtime.engine.context import Chunk, Context

MATCH = 12
"""Tokens that must have occurred before in the same order."""

LONGEST = 64
"""Tokens drafted at once, at most."""

LENGTHS = (LONGEST, 48, 32, 16, 8, 4, 2)
"""Lengths tried, the longest first."""

STAKE = 3.0
"""What a request may lose on drafts at its beginning, in the time of single tokens."""

SHARE = 0.01
"""What it may lose later, as a share of the tokens without a draft."""

SAVINGS = 100.0
"""What is kept of earlier gains, at most, in the time of single tokens."""

LEAST_GAIN = 1.05
"""Expected speed of a draft against single tokens, at least."""

_HOPE = 0.9
"""Share of a draft that is expected to be accepted, before anything is known."""


@dataclass(frozen=True, slots=True)
class BatchCosts:
    """What decoding a batch of ``sizes[i]`` tokens of one sequence takes, with the logits of each,
    in the time of one token: ``costs[i]``. Measured once for a machine and a model."""

    sizes: tuple[int, ...]
    costs: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.costs) or self.sizes[:1] != (1,) or len(self.sizes) < 2:
            raise EngineError("batch costs: expected as many costs as sizes, from a size of 1 on")
        if any(after <= before for before, after in pairwise(self.sizes)):
            raise EngineError("batch costs: sizes must ascend")
        if not all(0 < cost < math.inf for cost in self.costs):
            raise EngineError("batch costs: each cost must be a positive number")

    def of(self, size: int) -> float:
        """Return the cost of a batch of ``size`` tokens, interpolated between those measured."""
        last = len(self.sizes) - 1
        upper = next((i for i in range(1, last) if size <= self.sizes[i]), last)
        (x0, x1), (y0, y1) = self.sizes[upper - 1 : upper + 1], self.costs[upper - 1 : upper + 1]
        return y0 + (y1 - y0) * (size - x0) / (x1 - x0)


class DraftAccount:
    """Decides how long a request's drafts are, from their costs and from how they went so far."""

    def __init__(self, costs: BatchCosts) -> None:
        self._costs = costs
        self._balance = STAKE
        self._accepted = _HOPE
        """Running share of drafted tokens that were accepted."""

    def best_length(self, most: int) -> int:
        """Return how many of ``most`` tokens to draft; 0 when single tokens are expected to be as
        fast, or when the loss might be more than the account holds.
        """
        best, best_gain = 0, LEAST_GAIN
        for length in LENGTHS:
            cost = self._costs.of(length + 1)
            gain = (1 + self._accepted * length) / cost
            if length <= most and cost - 1 <= self._balance and gain > best_gain:
                best, best_gain = length, gain
        return best

    def add_single(self) -> None:
        """Record one token that was decoded without a draft."""
        self._balance = min(SAVINGS, self._balance + SHARE)
        self._accepted += SHARE * (_HOPE - self._accepted)

    def add_draft(self, drafted: int, accepted: int) -> None:
        """Record that the first ``accepted`` tokens of a draft were drawn, and one more."""
        self._balance = min(SAVINGS, self._balance + 1 + accepted - self._costs.of(drafted + 1))
        self._accepted += 0.3 * (accepted / drafted - self._accepted)


class Drafter:
    """Looks up drafts in one request's own tokens."""

    def __init__(self, costs: BatchCosts) -> None:
        self._account = DraftAccount(costs)
        self._ends: dict[int, int] = {}
        """Where a run of ``MATCH`` tokens was last seen to end, by its hash."""
        self._indexed = MATCH - 1
        self._follows = 0
        """Where the source of the last draft goes on."""

    def draft(self, tokens: list[int], most: int) -> list[int]:
        """Return at most ``most`` tokens that are likely to follow; none when none are, or when
        drafting does not pay.
        """
        end = self._find(tokens)
        length = 0 if end is None else self._account.best_length(min(most, len(tokens) - end))
        if end is None or length == 0:
            self._account.add_single()
            return []
        self._follows = end
        return tokens[end : end + length]

    def record(self, drafted: int, accepted: int) -> None:
        """Record how many tokens of the last draft were drawn."""
        self._account.add_draft(drafted, accepted)
        self._follows += accepted + 1

    def _find(self, tokens: list[int]) -> int | None:
        """Return the place after an earlier occurrence of the last ``MATCH`` tokens: where the last
        draft was taken from if that goes on, else the latest.
        """
        for end in range(self._indexed + 1, len(tokens)):
            self._ends[hash(tuple(tokens[end - MATCH : end]))] = end
        self._indexed = max(self._indexed, len(tokens) - 1)
        last = tokens[-MATCH:]
        for found in (self._follows, self._ends.get(hash(tuple(last)), 0)):
            if MATCH <= found < len(tokens) and tokens[found - MATCH : found] == last:
                return found
        return None


def measure_batch_costs(
    context: Context, *, depth: int = 256, runs: int = 3, sizes: Sequence[int] = ()
) -> BatchCosts:
    """Measure what batches of several tokens take on this machine, in a context that nothing else
    uses; its first stream is emptied. Takes about ``runs`` × 200 single tokens.

    The tokens are spread over the vocabulary, so that they use different experts. Raises
    EngineError.
    """
    sizes = tuple(sizes) or (1, 2, 4, 8, 16, 32, LONGEST + 1)
    tokens = [i * 7919 % context.n_vocab for i in range(depth + max(sizes))]
    context.clear_abort()
    context.truncate(0, 0)
    for start in range(0, depth, context.n_batch):
        end = min(depth, start + context.n_batch)
        context.decode([Chunk(0, start, tokens[start:end], 0)])
    seconds = []
    for size in sizes:
        taken = []
        for _ in range(runs):
            begun = time.perf_counter()
            context.decode([Chunk(0, depth, tokens[depth : depth + size], size)])
            taken.append(time.perf_counter() - begun)
            context.truncate(0, depth)
        seconds.append(min(taken))
    context.truncate(0, 0)
    return BatchCosts(sizes, tuple(it / seconds[0] for it in seconds))
