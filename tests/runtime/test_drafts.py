"""Drafts: the same tokens by the same calls of the sampler, in fewer batches where text repeats."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss.converter.convert import convert
from gptoss.runtime.chat.chat import Chat
from gptoss.runtime.chat.settings import Settings
from gptoss.runtime.engine.base import EngineError, Logits
from gptoss.runtime.engine.context import Chunk
from gptoss.runtime.engine.drafts import (
    LENGTHS,
    LONGEST,
    MATCH,
    SHARE,
    STAKE,
    BatchCosts,
    DraftAccount,
    Drafter,
    measure_batch_costs,
)
from gptoss.runtime.engine.llama_cpp import LlamaEngine
from gptoss.runtime.engine.scheduler import Scheduler
from gptoss.runtime.engine.settings import EngineSettings
from gptoss.runtime.models.preflight import Model as CheckedFile
from gptoss.runtime.sampling.constrained import TokenMasks
from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.sampling.sampler import greedy
from support.fake_context import FakeContext

CPU = BatchCosts((1, 2, 4, 8, 16, 32, 65), (1, 1.7, 2.9, 5.0, 9.3, 18.0, 36.0))
"""A 20b model where prompts are read 1.8 times as fast as replies are written."""
CHEAP = BatchCosts((1, 65), (1, 1.5))
FILE = [int(x) for x in np.random.default_rng(0).integers(0, 900, 1000)]
"""A text that does not repeat."""
CHANGED = [*FILE[:500], 7, 8, 9, *FILE[503:]]
ASKED = 901


def rewrites(answer: Sequence[int]) -> FakeContext:
    """A model that writes ``answer`` after a prompt that ends with ``ASKED``."""

    def next_token(held: list[int]) -> int:
        """The token of the answer at this place; another where a draft went astray."""
        said = held[len(held) - held[::-1].index(ASKED) :]
        return answer[len(said)] if said == list(answer[: len(said)]) else 900

    context = FakeContext(n_ctx=8192, next_token=next_token)
    context.n_batch = 512
    return context


class Counting:
    """Greedy, and how often it was called."""

    calls = 0

    def __call__(self, logits: Logits) -> int:
        self.calls += 1
        return greedy(logits)


def cost(context: FakeContext, costs: BatchCosts, n_prompt: int) -> float:
    """The time of a reply's batches, in single tokens."""
    return sum(costs.of(len(b[0].tokens)) for b in context.batches if b[0].position >= n_prompt)


@pytest.mark.parametrize("costs", [CPU, CHEAP])
def test_a_rewritten_file_takes_less_time(costs: BatchCosts) -> None:
    context, sampler = rewrites(CHANGED), Counting()
    scheduler = Scheduler(context, context.n_ctx, costs)
    prompt = [*FILE, ASKED]
    generation = scheduler.submit(prompt, sampler, stop=set(), max_tokens=len(CHANGED))
    assert list(generation) == CHANGED
    assert sampler.calls == len(CHANGED), "once for each token, never after a mismatch"
    scheduler.close()
    assert len(CHANGED) / cost(context, costs, len(prompt)) > 1.3


def test_text_that_does_not_repeat_is_not_slowed() -> None:
    """Also where runs of ``MATCH`` tokens occur again and something else follows."""
    rng = np.random.default_rng(1)
    run = FILE[100 : 100 + MATCH + 1]
    answer = [int(x) for x in rng.integers(0, 900, 1000)]
    for place in range(10, 950, 60):
        answer[place : place + len(run)] = run
    context = rewrites(answer)
    scheduler = Scheduler(context, context.n_ctx, CPU)
    prompt = [*FILE, ASKED]
    generation = scheduler.submit(prompt, greedy, stop=set(), max_tokens=len(answer))
    assert list(generation) == answer
    scheduler.close()
    assert any(len(b[0].tokens) > 1 for b in context.batches if b[0].position >= len(prompt))
    assert len(answer) / cost(context, CPU, len(prompt)) > 0.97


@given(st.lists(st.integers(0, LONGEST), max_size=300))
@settings(max_examples=50)
def test_an_account_never_loses_more_than_it_may(outcomes: list[int]) -> None:
    account, spent, tokens, singles = DraftAccount(CPU), 0.0, 0, 0
    for accepted in outcomes:
        length = account.best_length(LONGEST)
        if length == 0:
            account.add_single()
            spent, tokens, singles = spent + 1, tokens + 1, singles + 1
            continue
        account.add_draft(length, min(accepted, length))
        spent += CPU.of(length + 1)
        tokens += 1 + min(accepted, length)
        assert spent - tokens <= STAKE + SHARE * singles + 1e-6


def test_lengths_follow_what_was_accepted() -> None:
    account = DraftAccount(CPU)
    first = account.best_length(LONGEST)
    assert 0 < first < 8
    while (length := account.best_length(LONGEST)) < LONGEST:
        account.add_draft(length, length)
    account.add_draft(LONGEST, 0)
    assert account.best_length(LONGEST) < LONGEST
    for _ in range(5):
        account.add_draft(8, 0)
    assert account.best_length(LONGEST) == 0
    dear = DraftAccount(BatchCosts((1, 65), (1, 100)))
    assert dear.best_length(LONGEST) == 0


def test_a_draft_is_what_followed_the_same_tokens_before() -> None:
    drafter = Drafter(CHEAP)
    assert drafter.draft(FILE[:200], 64) == []
    tokens = [*FILE[:200], *FILE[50 : 50 + MATCH - 1]]
    assert drafter.draft(tokens, 64) == []
    tokens.append(FILE[50 + MATCH - 1])
    assert drafter.draft(tokens, 64) == FILE[50 + MATCH : 50 + MATCH + 64]
    assert drafter.draft(tokens, 5) == FILE[50 + MATCH : 50 + MATCH + 4]  # of LENGTHS
    assert drafter.draft(tokens, 1) == []


def test_a_draft_goes_on_where_the_last_one_was_taken_from() -> None:
    """Not at a later place where the same run of tokens occurs."""
    head, run = FILE[:100], FILE[100 : 100 + MATCH]
    one, other = [1] * 70, [2] * 70
    source = [*head, *run, *one, *FILE[300:400], *run, *other]
    tokens = [*source, *head[-MATCH:]]
    drafter = Drafter(CHEAP)
    found = drafter.draft(tokens, 8)
    assert found == run[:8]
    drafter.record(8, 8)
    tokens += run[:9]
    found = drafter.draft(tokens, 64)
    assert found[: MATCH - 9 + 10] == [*run[9:], *one[:10]]


@pytest.mark.parametrize("n", [1, 2, 3, 17, 64, 65, 66, 100])
def test_limits_within_a_draft(n: int) -> None:
    context = rewrites(CHANGED)
    scheduler = Scheduler(context, context.n_ctx, CHEAP)
    got = list(scheduler.submit([*FILE, *CHANGED[:40], ASKED], greedy, stop=set(), max_tokens=n))
    assert got == CHANGED[:n]
    stop = {CHANGED[n]}
    got = list(scheduler.submit([*FILE, *CHANGED[:40], ASKED], greedy, stop=stop))
    assert got == CHANGED[: CHANGED.index(CHANGED[n]) + 1]
    again = scheduler.submit([*FILE, *CHANGED[:40], ASKED, *got], greedy, stop=set(), max_tokens=9)
    assert list(again) == CHANGED[len(got) : len(got) + 9]
    assert again.timings.reused_tokens >= 1000 + 40 + len(got)
    scheduler.close()


def test_what_a_sampler_raises_within_a_draft() -> None:
    class Failing(Counting):
        def __call__(self, logits: Logits) -> int:
            if self.calls == 50:
                raise ValueError("no token")
            return super().__call__(logits)

    context = rewrites(CHANGED)
    scheduler = Scheduler(context, context.n_ctx, CHEAP)
    got: list[int] = []
    with pytest.raises(ValueError, match="no token"):
        got.extend(scheduler.submit([*FILE, ASKED], Failing(), stop=set()))
    assert list(scheduler.submit([*FILE, ASKED], greedy, stop=set(), max_tokens=80)) == CHANGED[:80]
    scheduler.close()


def test_a_draft_is_aborted_by_a_cancel() -> None:
    """A batch of a whole draft takes seconds on a slow machine."""
    sizes: list[int] = []

    def slow(chunks: Sequence[Chunk]) -> None:
        sizes.append(len(chunks[0].tokens))
        if chunks[0].position > len(FILE) and sizes[-1] > LENGTHS[-1]:
            generation.cancel()
            assert context.aborted.is_set()

    context = rewrites(CHANGED)
    context._before_decode = slow
    scheduler = Scheduler(context, context.n_ctx, CHEAP)
    generation = scheduler.submit([*FILE, ASKED], greedy, stop=set())
    got = list(generation)
    assert got == CHANGED[: len(got)]
    assert sizes[-1] > LENGTHS[-1]
    assert list(scheduler.submit([*FILE, ASKED], greedy, stop=set(), max_tokens=5)) == CHANGED[:5]
    scheduler.close()


def test_nothing_is_drafted_beside_others() -> None:
    context = FakeContext(n_ctx=8192, before_decode=lambda _: time.sleep(1e-4))
    scheduler = Scheduler(context, context.n_ctx, CHEAP)
    prompt = list(range(300)) * 2
    asked = [scheduler.submit([i, *prompt], greedy, stop=set(), max_tokens=100) for i in (1, 2)]
    for generation in asked:
        assert len(list(generation)) == 100
    scheduler.close()
    both = [batch for batch in context.batches if len(batch) == 2]
    assert both
    assert all(it.n_logits <= 1 for batch in both for it in batch)


@pytest.mark.parametrize(
    "wrong", [((1,), (1.0,)), ((2, 4), (1.0, 2.0)), ((1, 1), (1.0, 2.0)), ((1, 2), (1.0, 0.0))]
)
def test_costs_that_are_none(wrong: tuple[tuple[int, ...], tuple[float, ...]]) -> None:
    with pytest.raises(EngineError, match=r"^batch costs: "):
        BatchCosts(*wrong)


def test_costs_between_and_beyond_those_measured() -> None:
    costs = BatchCosts((1, 2, 4), (1, 2, 3))
    assert [costs.of(n) for n in (1, 2, 3, 4, 6)] == [1, 2, 2.5, 3, 4]


# --- in llama.cpp -----------------------------------------------------------------------------


def count_batches(engine: LlamaEngine) -> list[Sequence[Chunk]]:
    """The batches that llama.cpp decodes from now on."""
    batches: list[Sequence[Chunk]] = []
    context = engine._scheduler._context
    decode = context.decode

    def counted(chunks: Sequence[Chunk]) -> bool:
        batches.append(chunks)
        return decode(chunks)

    context.decode = counted  # type: ignore[method-assign]
    return batches


def forced(gguf: Path, costs: BatchCosts | None, answer: Sequence[int]) -> tuple[int, list[Logits]]:
    """How many batches llama.cpp decoded for a reply, and the logits before each of its tokens."""
    engine = LlamaEngine(gguf, EngineSettings(n_ctx=4096, n_threads=1, draft_costs=costs))
    batches, tokens = count_batches(engine), iter(answer)
    rows: list[Logits] = []

    def sample(logits: Logits) -> int:
        rows.append(logits.copy())
        return next(tokens)

    prompt = [int(x) for x in np.random.default_rng(3).integers(0, 250, 700)]
    assert list(engine.generate(prompt, sample, stop=set(), max_tokens=len(answer))) == answer
    engine.close()
    return len(batches), rows


def test_logits_are_the_same_with_and_without(random_gguf: Path) -> None:
    """Up to the noise of another split into batches; also after rejected tokens, and where the
    window has moved on."""
    prompt = [int(x) for x in np.random.default_rng(3).integers(0, 250, 700)]
    answer = [*prompt[100:300], 1, 2, 3, *prompt[300:420], *prompt[:300]]
    n, plain = forced(random_gguf, None, answer)
    n_drafted, drafted = forced(random_gguf, CHEAP, answer)
    assert n == 2 + len(answer) - 1
    assert n_drafted < n / 4
    for one, other in zip(plain, drafted, strict=True):
        assert np.linalg.norm(one - other) / np.linalg.norm(one) < 0.06


@pytest.mark.parametrize("temperature", [0, 1])
def test_the_tiny_model_says_the_same(tmp_path: Path, temperature: float) -> None:
    """Greedy, and drawn with the same random numbers; with the constraint, which must be asked once
    for each token."""
    checkpoint = Path(__file__).parents[1] / "tiny" / "checkpoint"
    [gguf] = convert(checkpoint, tmp_path / "tiny.gguf").files
    file = CheckedFile.open(gguf)
    masks = TokenMasks(file.tokenizer)
    settings = Settings(sampling=Sampling(temperature=temperature), seed=5)
    replies, batches = [], []
    for costs in (None, CHEAP):
        engine = LlamaEngine(gguf, EngineSettings(n_ctx=4096, n_threads=1, draft_costs=costs))
        with Chat(engine, file.tokenizer, masks, settings=settings) as chat:
            decoded = count_batches(engine)
            replies.append([chat.ask("What is 17 + 25?") for _ in range(3)])
            batches.append(len(decoded))
    assert [it.text for it in replies[0]] == [it.text for it in replies[1]]
    assert [it.reasoning for it in replies[0]] == [it.reasoning for it in replies[1]]
    assert batches[1] < batches[0]


def test_measured_costs(random_gguf: Path) -> None:
    engine = LlamaEngine(random_gguf, EngineSettings(n_ctx=1024, n_threads=1, draft_costs=CHEAP))
    costs = measure_batch_costs(engine._scheduler._context, runs=2)
    assert costs.costs[0] == 1
    assert costs.of(65) > 1
    assert len(list(engine.generate([1, 2], greedy, stop=set(), max_tokens=3))) == 3
    engine.close()
