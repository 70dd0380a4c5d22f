"""A turn held to its rules while it is sampled: the only module that imports llguidance.

A ``Vocabulary`` is made once a model, a ``Constrained`` sampler once a generation. It stands
between the engine and the sampler proper: tokens that may not come next lose their logits before
the draw. In free text the answer to "what may come next" is the same at every token, so that it
is asked once, where the text begins, and again only behind the control token that ends it.

Reasoning is watched on the way: when its budget is spent, or when it goes in circles, the tokens
that close it and open the answer are given out whatever the model would have drawn.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gptoss.errors import UnsupportedModelError
from gptoss.runtime.engine.base import EngineError, Logits, Sampler
from gptoss.runtime.harmony.errors import ConstraintError
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.sampling.grammar import Closed, Part, Rules, closing, turn_grammar
from gptoss.runtime.sampling.repetition import LoopDetector

try:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
except ImportError as error:
    raise EngineError(
        f"llguidance cannot be loaded ({error}); install it: pip install 'gptoss-toolkit[run]'"
    ) from error

T = TypeVar("T")
Words = NDArray[np.int32]
"""A mask: one bit a token, 32 tokens a word, the lowest first."""

Ids = NDArray[np.intp]


_LIMITS = LLParserLimits(verbose_errors=False)

_STACK_BYTES = 256 << 20
"""For compiling: it recurses along what refers to one another, and an overflow ends the process.
Only what is used of it is ever memory."""

_REMEMBERED = 256
"""Schemas and grammars known to be sound."""

_MASKS = 32
"""Masks whose ids are remembered; mostly 0.2 MB each, at most 0.9."""

_LONGEST_TOKEN = 512
"""Bytes; gpt-oss's has 128. llguidance does not survive much longer ones."""

_TRIED = 4
"""Tokens of a schema or grammar that are tried before it is used."""

_starting = threading.Lock()


class Vocabulary:
    """A model's tokens as llguidance knows them. Immutable; safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Takes most of a second with the full vocabulary. Raises UnsupportedModelError."""
        longest = max(len(tokenizer.token_bytes(i)) for i in range(tokenizer.n_vocab))
        if longest > _LONGEST_TOKEN:
            raise UnsupportedModelError(
                f"the vocabulary has a token of {longest} bytes, over {_LONGEST_TOKEN}: "
                "this is not a gpt-oss tokenizer"
            )
        self.tokenizer = tokenizer
        self.n_words = (tokenizer.n_vocab + 31) // 32
        is_text = np.zeros(tokenizer.n_vocab, np.bool_)
        is_text[list(tokenizer.text_ids)] = True
        self.other_ids: Ids = np.flatnonzero(~is_text)
        """Control tokens, and rows of the vocabulary that stand for nothing."""
        self.others = frozenset(self.other_ids.tolist())
        self._text_bits = _packed(is_text, self.n_words)
        self._text_ranges = _ranges(np.flatnonzero(is_text))
        self._sound: set[str] = set()
        self._llg = LLTokenizer(TokenizerWrapper(_Tokens(tokenizer, sorted(self.others))))

    def compile(self, rules: Rules) -> LLMatcher:
        """The rules' matcher, at the turn's beginning; raises ConstraintError."""
        grammar = turn_grammar(rules, self._text_ranges)
        for part in grammar.parts:
            self._check(part)
        matcher = self._matcher(grammar.text())
        if matcher.is_error():
            raise ConstraintError("tools", _reason(matcher.get_error()))
        return matcher

    def constrain(self, rules: Rules, sampler: Sampler, budget: int | None = None) -> Constrained:
        """``sampler`` held to the rules, for one generation; raises ConstraintError."""
        return Constrained(self, rules, sampler, budget=budget)

    def _check(self, part: Part) -> None:
        """A few tokens of each part by itself: much that is wrong is not seen before."""
        grammar = json.dumps({"grammars": [part.grammar]})
        if grammar in self._sound:
            return
        matcher = self._matcher(grammar)
        mask = np.zeros(self.n_words, np.int32)
        for _ in range(_TRIED):
            if matcher.is_stopped():  # also where it has failed
                break
            matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            allowed = np.flatnonzero(_unpacked(mask, self.tokenizer.n_vocab))
            if allowed.size == 0 or not matcher.consume_token(int(allowed[0])):
                break
        if matcher.is_error():
            raise ConstraintError(part.field, _reason(matcher.get_error()))
        if len(self._sound) >= _REMEMBERED:
            self._sound.clear()
        self._sound.add(grammar)

    def _matcher(self, grammar: str) -> LLMatcher:
        return _on_a_deep_stack(lambda: LLMatcher(self._llg, grammar, limits=_LIMITS, log_level=0))

    def is_free(self, mask: Words) -> bool:
        """Whether every text token may come next."""
        return bool(((mask & self._text_bits) == self._text_bits).all())

    def ids(self, texts: Sequence[str]) -> list[int]:
        """Control tokens by their texts, everything else encoded."""
        ids: list[int] = []
        for text in texts:
            control = self.tokenizer.control.get(text)
            ids += self.tokenizer.encode(text) if control is None else [control]
        return ids


@dataclass(frozen=True, slots=True)
class _FreeText:
    """A stretch of text without rules: what is no text and may not end it.

    ``is_reasoning`` when it is neither a call's nor the answer's.
    """

    forbidden: Ids
    is_reasoning: bool


class Constrained:
    """A sampler for one generation that gives nothing but what the rules admit.

    ``budget`` is the most tokens before reasoning is closed, preambles and headers counted.
    ``closed`` says that it was, and why.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        rules: Rules,
        sampler: Sampler,
        *,
        budget: int | None = None,
    ) -> None:
        """Raises ConstraintError: before a token is generated, the rules are known to compile."""
        self.closed: Closed | None = None
        self.reasoned = 0
        """Tokens up to the end of the last message of reasoning."""
        self._vocabulary = vocabulary
        self._sampler = sampler
        self._budget = budget
        self._matcher = vocabulary.compile(rules)
        self._closing = vocabulary.ids(closing(rules))
        control = vocabulary.tokenizer.control
        self._message, self._end, self._call = (
            control[text] for text in ("<|message|>", "<|end|>", "<|call|>")
        )
        self._mask: Words = np.zeros(vocabulary.n_words, np.int32)
        self._forced: deque[int] = deque()
        self._free: _FreeText | None = None
        self._loops = LoopDetector()
        self._looping = False
        self._n = 0

    def __call__(self, logits: Logits) -> int:
        """The next token; writes into ``logits``. Raises EngineError where nothing can come."""
        if self._free is not None and self._free.is_reasoning and self.closed is None:
            self._close_if_due()
        token = self._forced.popleft() if self._forced else self._draw(logits)
        self._accept(token)
        return token

    def _close_if_due(self) -> None:
        if self._budget is not None and self._n >= self._budget:
            self.closed = Closed.BUDGET
        elif self._looping:
            self.closed = Closed.LOOP
        if self.closed is not None:
            self._forced.extend(self._closing)

    def _draw(self, logits: Logits) -> int:
        ids = self._admitted(logits)
        if ids is None:
            return self._sampler(logits)
        return int(ids[0]) if ids.size == 1 else int(ids[self._sampler(logits[ids])])

    def _admitted(self, logits: Logits) -> Ids | None:
        """The ids that may come next; None when all others have lost their logits instead."""
        if self._free is not None:
            logits[self._free.forbidden] = -np.inf
            return None
        choice = _choice(self._compute_mask().tobytes(), logits.size)
        if not choice.admitted:
            logits[choice.ids] = -np.inf
            return None
        if choice.ids.size == 0:
            raise EngineError("no token can follow by the turn's rules")
        return choice.ids

    def _accept(self, token: int) -> None:
        self._n += 1
        self._looping |= self._loops.push(token)
        free = self._free
        if free is not None:
            if free.is_reasoning:
                self.reasoned = self._n
            if token not in self._vocabulary.others:
                return
        if not self._matcher.consume_token(token):
            raise self._failure()
        self._free = self._free_text() if token == self._message else None

    def _free_text(self) -> _FreeText | None:
        """Behind ``<|message|>``: whether any text may follow, and which tokens may end it."""
        mask = self._compute_mask()
        if not self._vocabulary.is_free(mask):
            return None
        allowed = _unpacked(mask, self._vocabulary.tokenizer.n_vocab)
        ids = self._vocabulary.other_ids
        is_reasoning = bool(allowed[self._end] and not allowed[self._call])
        return _FreeText(ids[~allowed[ids]], is_reasoning)

    def _compute_mask(self) -> Words:
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        if self._matcher.is_error():
            raise self._failure()
        return self._mask

    def _failure(self) -> EngineError:
        return EngineError(f"the turn's rules failed: {_reason(self._matcher.get_error())}")


class _Tokens:
    """What llguidance asks of a tokenizer; it wants to see that it can encode, and never does."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, special_token_ids: list[int]) -> None:
        self.eos_token_id = tokenizer.control["<|endoftext|>"]
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.n_vocab)]
        self.special_token_ids = special_token_ids
        self._encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))


def _on_a_deep_stack(call: Callable[[], T]) -> T:
    """The call's result, from a thread of its own. The stack's size is the whole process's."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        with _starting:
            before = threading.stack_size(_STACK_BYTES)
            try:
                future = executor.submit(call)
            finally:
                threading.stack_size(before)
        return future.result()


def _packed(flags: NDArray[np.bool_], n_words: int) -> Words:
    padded = np.zeros(n_words * 32, np.bool_)
    padded[: flags.size] = flags
    return np.packbits(padded, bitorder="little").view("<i4")


def _unpacked(mask: Words, n: int) -> NDArray[np.bool_]:
    return np.unpackbits(mask.view(np.uint8), count=n, bitorder="little").view(np.bool_)


@dataclass(frozen=True, slots=True)
class _Choice:
    """A mask by its ids, ascending: those ``admitted``, or where they are fewer the others."""

    ids: Ids
    admitted: bool


@lru_cache(_MASKS)
def _choice(mask: bytes, n: int) -> _Choice:
    """What a mask of ``n`` tokens says; most of a turn's masks come again and again in it."""
    allowed = _unpacked(np.frombuffer(mask, np.int32), n)
    admitted = bool(2 * np.count_nonzero(allowed) <= n)
    ids = _where(allowed if admitted else ~allowed)
    ids.setflags(write=False)  # it is everybody's
    return _Choice(ids, admitted)


def _where(flags: NDArray[np.bool_]) -> Ids:
    """Indices of the flags that are set, ascending.

    Where at most a tenth are, numpy jumps from each to the next, which takes twice as long as
    looking at all of them once they are thousands: set ones are put behind, to be cut off again.
    """
    n, n_set = flags.size, np.count_nonzero(flags)
    if not n // 25 < n_set <= n // 10:
        return np.flatnonzero(flags)
    filled = np.ones(n + n // 8, np.bool_)
    filled[:n] = flags
    return np.flatnonzero(filled)[:n_set]


def _ranges(ids: Ids) -> list[tuple[int, int]]:
    """Ascending ids as ranges, both ends included."""
    breaks = np.flatnonzero(np.diff(ids) > 1)
    first = ids[np.concatenate([[0], breaks + 1])]
    last = ids[np.concatenate([breaks, [-1]])]
    return list(zip(first.tolist(), last.tolist(), strict=True))


def _reason(said: str) -> str:
    """What llguidance says, on one line: its first, and where it quotes a pattern the verdict."""
    if said.startswith("NoExtension"):
        return "no text at all satisfies it"
    first, *more = said.splitlines() or ["llguidance gives no reason"]
    line = " ".join([first, *(line for line in more if line.startswith("error: "))])
    return line if len(line) <= 300 else f"{line[:299]}…"
