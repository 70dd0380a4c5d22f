"""Compiles grammars to llguidance matchers."""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from gptoss.errors import install_command
from gptoss.runtime.engine.base import EngineError
from gptoss.runtime.harmony.errors import ConstraintError, ConversationError
from gptoss.runtime.harmony.fields import FieldPath
from gptoss.runtime.harmony.schema_check import SchemaChecker, is_checkable
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.sampling.compile_guard import is_plain, problems_of
from gptoss.runtime.sampling.grammar import Part
from gptoss.runtime.sampling.llguidance_schema import (
    ANY_OBJECT,
    GrammarSchema,
    Keyword,
    grammar_schema,
    json_grammar,
)

try:
    from gptoss.runtime.sampling.llguidance_calls import (
        STRING_SLICES,
        Matcher,
        Tokens,
        Vocabulary,
        make_tokens,
    )
except ImportError as error:
    raise EngineError(
        f"llguidance cannot be loaded ({error}); install it: {install_command('run')}"
    ) from error

from gptoss.runtime.sampling.compile_worker import STACK_BYTES, TRIED_TOKENS

_log = logging.getLogger(__name__)

T = TypeVar("T")
Words = NDArray[np.int32]

_REMEMBERED = 256
"""Compiled schemas, expressions and grammars kept for later turns."""

_REMEMBERED_CHARACTERS = 500_000
"""Characters of what they were compiled from, together, unless the last alone has more. A compiled
one takes a quarter of a megabyte, and a hundred bytes more for each of them."""

_starting = threading.Lock()


@dataclass(frozen=True, slots=True)
class CompiledPart:
    """A part's matcher in its initial state, to be copied; None for free text. ``unenforced`` are
    the schema keywords that the matcher does not enforce."""

    matcher: Matcher | None
    unenforced: tuple[Keyword, ...] = ()


class Compiler:
    """Compiles the grammars of one vocabulary, each once. Safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer, special_ids: list[int], text_bits: Words) -> None:
        self._vocabulary = Vocabulary(
            tokenizer.all_bytes, tokenizer.control["<|endoftext|>"], special_ids, tokenizer.encode
        )
        self._tokens = make_tokens(self._vocabulary)
        self._text_bits = text_bits
        self._structures = _Remembered[Matcher]()
        self._parts = _Remembered[CompiledPart | ConstraintError]()

    def compile_structure(self, lark: str) -> Matcher:
        """Compile the grammar of a turn's structure, which this package wrote, to an llguidance
        matcher; raises ConstraintError.
        """
        matcher = self._structures.get(lark)
        if matcher is None:
            matcher = _matcher(self._tokens, {"lark_grammar": lark})
            if matcher.is_error():
                raise ConstraintError("tools", short_reason(matcher.get_error()))
            self._structures.put(lark, matcher)
        return matcher.deep_copy()

    def compile_parts(self, parts: Mapping[str, Part]) -> dict[str, CompiledPart]:
        """Compile the grammar of each tool's arguments and of the answer to a matcher; raises
        ConstraintError for one that is required and does not compile.

        A tool's schema that does not compile is replaced by any JSON object, a tool's grammar by
        free text, so that one bad tool does not disable the others.
        """
        keys = {name: _key(part) for name, part in parts.items()}
        found = {name: self._parts.get(key) for name, key in keys.items()}
        new = {keys[name]: parts[name] for name, known in found.items() if known is None}
        made = dict(zip(new, self._compile(list(new.values())), strict=True))
        for key, part in made.items():
            self._parts.put(key, part)
        compiled = {}
        for name, known in found.items():
            part = known or made[keys[name]]
            if isinstance(part, ConstraintError):
                raise ConstraintError(part.field, part.problem)
            compiled[name] = part
        return compiled

    def _compile(self, parts: Sequence[Part]) -> list[CompiledPart | ConstraintError]:
        """Compile the grammars that are not in the compiler's cache; those that may be expensive
        are tried in a child process first.
        """
        readings = [None if part.schema is None else _read(part) for part in parts]
        for part in parts:
            if part.required and part.schema is not None:
                _check_keywords(part.schema, part.field)
        grammars = [
            {"lark_grammar": part.lark} if reading is None else reading.grammar
            for part, reading in zip(parts, readings, strict=True)
        ]
        made: list[CompiledPart | ConstraintError] = []
        for part, reading, tried in zip(parts, readings, self._try(grammars), strict=True):
            if not isinstance(tried, str):
                made.append(CompiledPart(tried, reading.unenforced if reading else ()))
            elif reading is not None:
                made.append(self._compile_less(part, reading, tried))
            elif part.required:
                made.append(ConstraintError(part.field, tried))
            else:
                _log.warning("%s: free text instead of its grammar: %s", part.field, tried)
                made.append(CompiledPart(None, ((part.field, "format"),)))
        return made

    def _compile_less(
        self, part: Part, reading: GrammarSchema, problem: str
    ) -> CompiledPart | ConstraintError:
        """Compile a schema that failed again, without the keywords that llguidance does not compile
        even alone.
        """
        alone = self._try([json_grammar(schema) for schema in reading.hard.values()])
        tried_alone = dict(zip(reading.hard, alone, strict=True))
        bad = {keyword: why for keyword, why in tried_alone.items() if isinstance(why, str)}
        for (place, keyword), why in bad.items():
            if part.required and not is_checkable(reading.hard[place, keyword]):
                return ConstraintError(f"{place}.{keyword}", why)
        if bad:
            reading = _read(part, bad)
            [tried] = self._try([reading.grammar])
            if not isinstance(tried, str):
                _log.info("%s: checked afterwards, not while generated: %s", part.field, [*bad])
                return CompiledPart(tried, reading.unenforced)
            problem = tried
        if part.required:
            costly = ", ".join(f"{place}.{keyword}" for place, keyword in [*reading.hard][:3])
            return ConstraintError(part.field, f"{problem}{costly and f'; see {costly}'}")
        _log.warning("%s: any JSON object instead of its schema: %s", part.field, problem)
        [tried] = self._try([json_grammar(ANY_OBJECT)])
        matcher = tried if not isinstance(tried, str) else None
        return CompiledPart(matcher, ((part.field, "schema"),))

    def _try(self, grammars: Sequence[Mapping[str, Any]]) -> list[Matcher | str]:
        """Compile each grammar to an llguidance matcher, or return llguidance's error for it."""
        texts = [json.dumps({"grammars": [grammar]}) for grammar in grammars]
        risky = [t for t, grammar in zip(texts, grammars, strict=True) if not is_plain(grammar)]
        problems = dict(zip(risky, problems_of(risky), strict=True)) if risky else {}
        tried: list[Matcher | str] = []
        for text, grammar in zip(texts, grammars, strict=True):
            if (problem := problems.get(text)) is not None:
                tried.append(short_reason(problem))
                continue
            matcher = _matcher(self._sliced, grammar)
            problem = self._generate_some(matcher.deep_copy())
            tried.append(matcher if problem is None else short_reason(problem))
        return tried

    def _generate_some(self, matcher: Matcher) -> str | None:
        """Generate a few tokens with a freshly compiled matcher and return its error: many do not
        show before.
        """
        mask = np.zeros_like(self._text_bits)
        for _ in range(TRIED_TOKENS):
            if matcher.is_stopped():  # at the end, or after an error
                break
            matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            if matcher.is_error() or matcher.is_accepting():
                break
            allowed = np.flatnonzero(np.unpackbits((mask & self._text_bits).view(np.uint8),
                                                   bitorder="little"))  # fmt: skip
            if allowed.size == 0:
                return _NO_TEXT
            if not matcher.consume_token(int(allowed[0])):
                break
        return matcher.get_error() or None

    @cached_property
    def _sliced(self) -> Tokens:
        """Return the vocabulary with llguidance's precomputed masks of JSON's strings.

        They take as long as the rest of it, and a turn's structure uses none.
        """
        return make_tokens(self._vocabulary, STRING_SLICES)


def _matcher(tokens: Tokens, grammar: Mapping[str, Any]) -> Matcher:
    text = json.dumps({"grammars": [grammar]})
    return _on_a_deep_stack(lambda: tokens.compile(text))


V = TypeVar("V")


class _Remembered(Generic[V]):
    """A cache of the most recently used values, by a text that says how large they are. Safe to
    share between threads.
    """

    def __init__(self) -> None:
        self._values: OrderedDict[str, V] = OrderedDict()
        self._characters = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> V | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: str, value: V) -> None:
        with self._lock:
            if key not in self._values:
                self._characters += len(key)
            self._values[key] = value
            while len(self._values) > 1 and self._is_full():
                forgotten, _ = self._values.popitem(last=False)
                self._characters -= len(forgotten)

    def _is_full(self) -> bool:
        return len(self._values) > _REMEMBERED or self._characters > _REMEMBERED_CHARACTERS


def _check_keywords(schema: Mapping[str, Any], field: str) -> None:
    """Raise ConstraintError, before the compiler is called, for a schema keyword whose value cannot
    be compiled.
    """
    try:
        SchemaChecker(schema, FieldPath(field, None))
    except ConversationError as error:
        raise ConstraintError(error.place, error.problem) from error


def _key(part: Part) -> str:
    return json.dumps([part.field, part.schema, part.lark, part.required], default=repr)


def _read(part: Part, without: Iterable[Keyword] = ()) -> GrammarSchema:
    return grammar_schema(part.schema or {}, part.field, frozenset(without))


def _on_a_deep_stack(call: Callable[[], T]) -> T:
    """Call the llguidance compiler on a thread with a large stack. The stack's size is a setting of
    the whole process.
    """
    with ThreadPoolExecutor(max_workers=1) as executor:
        with _starting:
            before = threading.stack_size(STACK_BYTES)
            try:
                future = executor.submit(call)
            finally:
                threading.stack_size(before)
        return future.result()


_NO_TEXT = "no text at all satisfies it"


def short_reason(said: str) -> str:
    """Shorten llguidance's compile error to one line: its first, and where it quotes a pattern, the
    verdict.
    """
    if said.startswith("NoExtension"):
        return _NO_TEXT
    first, *more = said.splitlines() or ["llguidance gives no reason"]
    line = " ".join([first, *(line for line in more if line.startswith("error: "))])
    return line if len(line) <= 300 else f"{line[:299]}…"
