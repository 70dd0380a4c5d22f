"""Constrained decoding: masks the logits at each step so that a turn keeps to its grammar.

There is one ``TokenMasks`` per model and one ``Constrained`` sampler per generation. The latter is
between the engine and the actual sampler: tokens that are not allowed next get a logit of −∞.

One grammar describes the turn's structure. A text with a required format (a call's arguments, an
answer in JSON) has a separate grammar. While such a text is generated, only its grammar is used,
only text tokens are accepted from it, and the tokens that end the text are allowed once it is
complete. So a schema, expression or grammar from outside can never produce a control token, and
the rest of the turn depends only on the structure's grammar.

In free text the allowed tokens are the same at every step, so they are computed once, at the start
of the text, and again only after the control token that ends it.

Reasoning is monitored: if its budget is used up, or it repeats itself, the tokens that close it and
open the answer are forced, whatever the model would have drawn.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gptoss.errors import UnsupportedModelError
from gptoss.runtime.engine.base import EngineError, Logits, Sampler
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.sampling.compiler import Compiler, short_reason
from gptoss.runtime.sampling.grammar import ANSWER, ReasoningStop, Rules, closing, turn_grammar
from gptoss.runtime.sampling.llguidance_calls import Matcher
from gptoss.runtime.sampling.llguidance_schema import Keyword
from gptoss.runtime.sampling.repetition import LoopDetector

Words = NDArray[np.int32]
"""A mask: one bit per token, 32 tokens per word, lowest bit first."""

Ids = NDArray[np.intp]

_MASKS = 32
"""Masks whose ids are cached; mostly 0.2 MB each, at most 0.9."""

_LONGEST_TOKEN = 512
"""The longest token in bytes; gpt-oss's longest has 128. Much longer ones crash llguidance."""

_RECIPIENT = re.compile(r"to=([A-Za-z0-9_.-]+)")


@dataclass(frozen=True, slots=True)
class CompiledRules:
    """A turn's compiled rules: the matcher of the structure, and those of the texts by recipient
    (``ANSWER`` for the answer). ``unenforced`` are schema keywords of tools and of the answer that
    the grammar omits; they must be checked on the finished text."""

    structure: Matcher
    texts: dict[str, Matcher]
    unenforced: dict[str, tuple[Keyword, ...]]


class TokenMasks:
    """A model's tokens in llguidance's form. Safe to share between threads."""

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
        """Control tokens and unused rows of the vocabulary."""
        self.others = frozenset(self.other_ids.tolist())
        self.text_bits = self.bits(np.flatnonzero(is_text))
        self.eos = tokenizer.control["<|endoftext|>"]
        self._text_ranges = _ranges(np.flatnonzero(is_text))
        self._compiler = Compiler(tokenizer, sorted(self.others), self.text_bits)

    def compile(self, rules: Rules) -> CompiledRules:
        """Compile the rules of a turn into matchers that can mask logits; raises
        ConstraintError.
        """
        grammar = turn_grammar(rules, self._text_ranges)
        parts = self._compiler.compile_parts(grammar.parts)
        return CompiledRules(
            self._compiler.compile_structure(grammar.lark),
            {key: part.matcher for key, part in parts.items() if part.matcher is not None},
            {key: part.unenforced for key, part in parts.items() if part.unenforced},
        )

    def constrain(self, rules: Rules, sampler: Sampler, budget: int | None = None) -> Constrained:
        """Wrap ``sampler`` so that each token it draws in one generation is allowed by the rules;
        raises ConstraintError.
        """
        return Constrained(self, rules, sampler, budget=budget)

    def bits(self, ids: Ids | Sequence[int]) -> Words:
        """Return the token mask (a bit for each id, in 32-bit words) in which these ids are set."""
        flags = np.zeros(self.n_words * 32, np.bool_)
        flags[ids] = True
        return np.packbits(flags, bitorder="little").view("<i4")

    def ids(self, texts: Iterable[str]) -> list[int]:
        """Encode a text to ids for constrained decoding: control tokens by their names, everything
        else as plain text.
        """
        ids: list[int] = []
        for text in texts:
            control = self.tokenizer.control.get(text)
            ids += self.tokenizer.encode(text) if control is None else [control]
        return ids


@dataclass(frozen=True, slots=True)
class _Text:
    """The text of the message being generated.

    ``ends`` masks the tokens that may end it, ``forbidden`` all other tokens that are not text.
    ``matcher`` has the required format, None for free text. ``is_reasoning`` is true if the text is
    neither a call's nor the answer's.
    """

    ends: Words
    forbidden: Ids
    matcher: Matcher | None
    is_reasoning: bool


class Constrained:
    """A sampler for one generation that produces only what the rules allow.

    ``budget`` is the number of tokens, including preambles and headers, after which reasoning is
    closed. ``closed`` is the reason if that happened.
    """

    def __init__(
        self,
        masks: TokenMasks,
        rules: Rules,
        sampler: Sampler,
        *,
        budget: int | None = None,
    ) -> None:
        """Raises ConstraintError: the rules are compiled before a token is generated."""
        self.closed: ReasoningStop | None = None
        self.closed_at = 0
        """Tokens before reasoning was closed; a separate count, since the reader may lag behind."""
        self.reasoned = 0
        """Tokens up to the end of the last message of reasoning."""
        self._masks = masks
        self._sampler = sampler
        self._budget = budget
        compiled = masks.compile(rules)
        self._structure, self._texts = compiled.structure, compiled.texts
        self._closing = masks.ids(closing(rules))
        control = masks.tokenizer.control
        self._start, self._message, self._end, self._call = (
            control[text] for text in ("<|start|>", "<|message|>", "<|end|>", "<|call|>")
        )
        self._mask: Words = np.zeros(masks.n_words, np.int32)
        self._forced: deque[int] = deque()
        self._header: list[int] = []
        self._text: _Text | None = None
        self._loops = LoopDetector()
        self._looping = False
        self._closing_asked = False
        self._n = 0

    def __call__(self, logits: Logits) -> int:
        """The next token; modifies ``logits``. Raises EngineError if no token is allowed."""
        if self._text is not None and self._text.is_reasoning and self.closed is None:
            self._close_if_due()
        token = self._forced.popleft() if self._forced else self._draw(logits)
        self._accept(token)
        return token

    def close_reasoning(self) -> None:
        """Close the reasoning before the next token, now or as soon as some begins. Callable from
        any thread.
        """
        self._closing_asked = True

    def _close_if_due(self) -> None:
        if self._budget is not None and self._n >= self._budget:
            self.closed = ReasoningStop.BUDGET
        elif self._looping:
            self.closed = ReasoningStop.LOOP
        elif self._closing_asked:
            self.closed = ReasoningStop.ASKED
        if self.closed is not None:
            self.closed_at = self._n
            self._forced.extend(self._closing)

    def _draw(self, logits: Logits) -> int:
        ids = self._admitted(logits)
        if ids is None:
            return self._sampler(logits)
        return int(ids[0]) if ids.size == 1 else int(ids[self._sampler(logits[ids])])

    def _admitted(self, logits: Logits) -> Ids | None:
        """Return the ids that constrained decoding allows next, ascending; None when it has set the
        logits of all others to −∞ instead.
        """
        text = self._text
        if text is None:
            mask = self._computed(self._structure)
        elif text.matcher is None:
            logits[text.forbidden] = -np.inf
            return None
        else:
            mask = self._text_mask(text, text.matcher)
        choice = _choice(mask.tobytes(), logits.size)
        if not choice.admitted:
            logits[choice.ids] = -np.inf
            return None
        if choice.ids.size == 0:
            raise EngineError("no token satisfies the output constraints")
        return choice.ids

    def _text_mask(self, text: _Text, matcher: Matcher) -> Words:
        """Compute the token mask inside a message with a grammar: text tokens, and the end tokens
        where the text is complete.
        """
        mask = self._computed(matcher)
        may_end = int(mask[self._masks.eos >> 5]) >> (self._masks.eos & 31) & 1
        mask &= self._masks.text_bits
        if may_end and matcher.is_accepting():
            mask |= text.ends
        return mask

    def _accept(self, token: int) -> None:
        self._n += 1
        self._looping |= self._loops.push(token)
        text = self._text
        if text is not None:
            if text.is_reasoning:
                self.reasoned = self._n
            if token not in self._masks.others:
                if text.matcher is not None:
                    self._consume(text.matcher, token)
                return
        self._consume(self._structure, token)
        self._header = [] if token == self._start else [*self._header, token]
        self._text = self._begin_text() if token == self._message else None

    def _begin_text(self) -> _Text:
        """Begin the mask of a message's text after ``<|message|>``: which grammar it must match,
        and which tokens may end it.
        """
        mask = self._computed(self._structure)
        allowed = _unpacked(mask, self._masks.tokenizer.n_vocab)
        others = self._masks.other_ids
        ends = others[allowed[others]]
        is_call = bool(allowed[self._call])
        header = self._masks.tokenizer.decode(self._header)
        recipient = _RECIPIENT.search(header)
        matcher = None
        if recipient is not None:
            matcher = self._texts.get(recipient[1])
        elif not (is_call or allowed[self._end]):
            matcher = self._texts.get(ANSWER)
        return _Text(
            self._masks.bits(ends),
            others[~allowed[others]],
            None if matcher is None else matcher.deep_copy(),
            is_reasoning=bool(allowed[self._end]) and not is_call,
        )

    def _computed(self, matcher: Matcher) -> Words:
        matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        if matcher.is_error():
            raise _failure(matcher)
        return self._mask

    def _consume(self, matcher: Matcher, token: int) -> None:
        if not matcher.consume_token(token):
            raise _failure(matcher)


def _failure(matcher: Matcher) -> EngineError:
    return EngineError(f"the output constraints failed: {short_reason(matcher.get_error())}")


def _unpacked(mask: Words, n: int) -> NDArray[np.bool_]:
    return np.unpackbits(mask.view(np.uint8), count=n, bitorder="little").view(np.bool_)


@dataclass(frozen=True, slots=True)
class _Choice:
    """A mask as ascending ids: the ``admitted`` ones or, if fewer, the others."""

    ids: Ids
    admitted: bool


@lru_cache(_MASKS)
def _choice(mask: bytes, n: int) -> _Choice:
    """Convert a token mask over ``n`` ids to the ascending ids; cached, as most of a turn's masks
    occur many times in it.
    """
    allowed = _unpacked(np.frombuffer(mask, np.int32), n)
    admitted = bool(2 * np.count_nonzero(allowed) <= n)
    ids = _where(allowed if admitted else ~allowed)
    ids.setflags(write=False)  # the cached array is shared
    return _Choice(ids, admitted)


def _where(flags: NDArray[np.bool_]) -> Ids:
    """Return the indices of the set flags of a token mask, ascending.

    If at most a tenth are set, numpy searches from one to the next, which for thousands of them
    takes twice as long as examining all. So set flags are appended, and their indices dropped.
    """
    n, n_set = flags.size, np.count_nonzero(flags)
    if not n // 25 < n_set <= n // 10:
        return np.flatnonzero(flags)
    filled = np.ones(n + n // 8, np.bool_)
    filled[:n] = flags
    return np.flatnonzero(filled)[:n_set]


def _ranges(ids: Ids) -> list[tuple[int, int]]:
    """Convert ascending token ids of a mask to ranges (first, last), both included."""
    breaks = np.flatnonzero(np.diff(ids) > 1)
    first = ids[np.concatenate([[0], breaks + 1])]
    last = ids[np.concatenate([breaks, [-1]])]
    return list(zip(first.tolist(), last.tolist(), strict=True))
