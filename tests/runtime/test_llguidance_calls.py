"""llguidance through C and through its Python classes: the same masks, errors and ends."""

from __future__ import annotations

import gc
import json
import random
import threading
import weakref
from typing import Any

import llguidance
import numpy as np
import pytest

from gptoss.runtime.sampling import llguidance_calls
from gptoss.runtime.sampling.constrained import TokenMasks
from gptoss.runtime.sampling.llguidance_calls import (
    STRING_SLICES,
    Matcher,
    Tokens,
    Vocabulary,
    _NativeTokens,
    _PythonTokens,
    make_tokens,
)
from support.tokens import byte_tokenizer

TOKENIZER = byte_tokenizer()
TEXT = frozenset(TOKENIZER.text_ids)
EOS = TOKENIZER.control["<|endoftext|>"]
VOCABULARY = Vocabulary(
    TOKENIZER.all_bytes,
    EOS,
    [i for i in range(TOKENIZER.n_vocab) if i not in TEXT],
    TOKENIZER.encode,
)
N_WORDS = (TOKENIZER.n_vocab + 31) // 32

GRAMMARS = {
    "regex": {"lark_grammar": "start: /(yes|no)(, (yes|no))*/"},
    "control": {"lark_grammar": 'start: "a" <|end|> "naïve" <|return|>'},
    "schema": {
        "json_schema": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "n": {"type": "integer"}},
            "required": ["city"],
        }
    },
    "forced": {"json_schema": {"const": {"the only": "answer"}}},
    "broken": {"lark_grammar": "start: nothing"},
    "no schema": {"json_schema": {"type": "what"}},
    "no regex": {"lark_grammar": "start: /(/"},
}


@pytest.fixture(scope="module", params=[(), STRING_SLICES], ids=["plain", "sliced"])
def both(request: pytest.FixtureRequest) -> tuple[Tokens, Tokens]:
    native = make_tokens(VOCABULARY, request.param)
    assert isinstance(native, _NativeTokens)  # else the C functions of this version have changed
    return native, _PythonTokens(VOCABULARY, request.param)


def mask(matcher: Matcher) -> list[int]:
    words = np.zeros(N_WORDS, np.int32)
    matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    found: list[int] = np.flatnonzero(bits).tolist()
    return found


def state(matcher: Matcher) -> tuple[Any, ...]:
    allowed = mask(matcher)
    return (
        allowed,
        matcher.is_error(),
        matcher.get_error(),
        matcher.is_stopped(),
        matcher.is_accepting(),
    )


@pytest.mark.parametrize("name", GRAMMARS)
def test_every_step_is_that_of_the_python_classes(both: tuple[Tokens, Tokens], name: str) -> None:
    text = json.dumps({"grammars": [GRAMMARS[name]]})
    rng = random.Random(name)
    templates = [tokens.compile(text) for tokens in both]
    assert templates[0].is_error() == (name in ("broken", "no schema", "no regex"))
    for walk in range(8):
        mine, theirs = (template.deep_copy() for template in templates)
        for _ in range(40):
            found = state(mine)
            assert found == state(theirs)
            token = rng.choice(found[0] or [EOS])
            if walk % 4 == 3 and rng.random() < 0.1:  # what the grammar does not allow
                token = rng.randrange(TOKENIZER.n_vocab)
            assert mine.consume_token(token) == theirs.consume_token(token)
        assert state(mine) == state(theirs)


def test_a_copy_goes_its_own_way(both: tuple[Tokens, Tokens]) -> None:
    first = both[0].compile(json.dumps({"grammars": [GRAMMARS["regex"]]}))
    before = mask(first)
    copy = first.deep_copy()
    assert copy.consume_token(ord("y"))
    assert mask(first) == before
    del first
    assert mask(copy) == [ord("e")]


def test_a_mask_of_another_size_is_refused(both: tuple[Tokens, Tokens]) -> None:
    matcher = both[0].compile(json.dumps({"grammars": [GRAMMARS["regex"]]}))
    with pytest.raises(ValueError, match="bytes"):
        matcher.unsafe_compute_mask_ptr(np.zeros(1, np.int32).ctypes.data, 4)


def test_without_the_c_functions_the_python_classes_are_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A later package may not export them, or lay its settings out differently."""
    library = llguidance_calls._library.__wrapped__
    assert library() is not None
    with monkeypatch.context() as patch:
        patch.setitem(llguidance_calls._LONG, "llg_not_there", (None, []))
        assert library() is None
    with monkeypatch.context() as patch:
        patch.setattr(llguidance_calls, "_LIMITS", ("max_grammar_size", "step_max_items"))
        patch.setattr(llguidance_calls, "LLParserLimits", lambda: llguidance.LLParserLimits(
            max_grammar_size=7))  # fmt: skip
        assert library() is None
    monkeypatch.setattr(llguidance_calls, "_library", lambda: None)
    assert isinstance(make_tokens(VOCABULARY), _PythonTokens)


def test_matchers_in_threads_share_one_vocabulary(both: tuple[Tokens, Tokens]) -> None:
    template = both[0].compile(json.dumps({"grammars": [GRAMMARS["schema"]]}))
    expected = mask(template.deep_copy())
    wrong: list[object] = []

    def use(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(30):
            matcher = template.deep_copy()
            if mask(matcher) != expected:
                wrong.append(seed)
            for _ in range(20):
                if not matcher.consume_token(rng.choice(mask(matcher) or [EOS])):
                    wrong.append(matcher.get_error())

    threads = [threading.Thread(target=use, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_tokenizer_is_freed_with_its_tokens() -> None:
    """At once, not when Python looks for cycles: one of the full vocabulary has 100 MB."""
    tokenizer = byte_tokenizer.__wrapped__()
    left = weakref.ref(tokenizer)
    gc.disable()
    try:
        masks = TokenMasks(tokenizer)
        del tokenizer, masks
        assert left() is None
    finally:
        gc.enable()


def test_memory_is_given_back() -> None:
    """Vocabularies and matchers are freed."""
    psutil = pytest.importorskip("psutil")
    process = psutil.Process()
    text = json.dumps({"grammars": [GRAMMARS["schema"]]})
    sizes = []
    for _ in range(6):
        for _ in range(30):
            matcher = make_tokens(VOCABULARY).compile(text)
            for _ in range(20):
                mask(matcher.deep_copy())
        sizes.append(process.memory_info().rss)
    assert sizes[-1] - sizes[2] < 8e6
