"""llguidance through its C functions, which release Python's lock; where they are missing, through
its Python classes.

Its class ``LLTokenizer`` takes half a second for 201,088 tokens and holds the lock all the time: no
other thread of the program can run Python, so an event loop stops. The shared library of the same
package also exports llguidance's C interface. Calls that take long release the lock, the others, of
microseconds, do not.
"""

from __future__ import annotations

import ctypes
import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, cast

import llguidance
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

_log = logging.getLogger(__name__)

Encode = Callable[[str], list[int]]

STRING_SLICES: tuple[str, ...] = tuple(LLTokenizer.general_slices())
"""Expressions whose masks make those of JSON's strings fast."""

_MARKER = b"\xff"
"""llguidance's first byte of a token that text never has."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What llguidance needs of a tokenizer. ``special_ids`` are tokens that are not text."""

    tokens: Sequence[bytes]
    eos: int
    special_ids: Sequence[int]
    encode: Encode


class Matcher(Protocol):
    """llguidance's ``LLMatcher``: the state of one grammar. Used by one thread at a time."""

    def deep_copy(self) -> Matcher:
        """Return a copy in the same state."""
        ...

    def is_error(self) -> bool:
        """Report whether the grammar did not compile, or failed later."""
        ...

    def get_error(self) -> str:
        """Return the error, empty where there is none."""
        ...

    def is_stopped(self) -> bool:
        """Report whether nothing can follow, or an error occurred."""
        ...

    def is_accepting(self) -> bool:
        """Report whether what was consumed is complete."""
        ...

    def consume_token(self, token: int) -> bool:
        """Advance by a token; False where the grammar does not allow it."""
        ...

    def unsafe_compute_mask_ptr(self, address: int, nbytes: int) -> None:
        """Write the mask of the tokens that may follow, 32 a word, to an address."""
        ...


class Tokens(Protocol):
    """A vocabulary as llguidance has it. Safe to share between threads."""

    def compile(self, grammar: str) -> Matcher:
        """Compile a grammar in llguidance's JSON form; an error is the matcher's."""
        ...


def make_tokens(vocabulary: Vocabulary, slices: Sequence[str] = ()) -> Tokens:
    """Give llguidance a vocabulary. ``slices`` are expressions whose masks it computes beforehand.

    Half a second for 201,088 tokens, during which other threads go on.
    """
    library = _library()
    if library is None:
        return _PythonTokens(vocabulary, slices)
    return _NativeTokens(library, vocabulary, slices)


# Through C


class _TokenizerInit(ctypes.Structure):
    """``LlgTokenizerInitV2``; the library reads as many bytes as its first field has."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("vocab_size", ctypes.c_uint32),
        ("tok_eos", ctypes.c_uint32),
        ("token_lens", ctypes.c_void_p),
        ("token_bytes", ctypes.c_void_p),
        ("tokenizer_json", ctypes.c_void_p),
        ("tokenize_assumes_string", ctypes.c_bool),
        ("tokenize_fn", ctypes.c_void_p),
        ("use_approximate_greedy_tokenize_fn", ctypes.c_bool),
        ("tokenize_user_data", ctypes.c_void_p),
        ("slices", ctypes.c_void_p),
    )


class _MatcherInit(ctypes.Structure):
    """``LlgConstraintInit``. ``_library`` checks its defaults, and so this layout."""

    _fields_ = (
        ("tokenizer", ctypes.c_void_p),
        ("log_buffer_level", ctypes.c_uint32),
        ("log_stderr_level", ctypes.c_uint32),
        ("ff_tokens_ok", ctypes.c_bool),
        ("backtrack_ok", ctypes.c_bool),
        ("max_items_in_row", ctypes.c_size_t),
        ("initial_lexer_fuel", ctypes.c_uint64),
        ("step_lexer_fuel", ctypes.c_uint64),
        ("step_max_items", ctypes.c_size_t),
        ("max_lexer_states", ctypes.c_size_t),
        ("max_grammar_size", ctypes.c_size_t),
        ("precompute_large_lexemes", ctypes.c_bool),
        ("verbose_errors", ctypes.c_bool),
        ("room", ctypes.c_uint8 * 256),  # for fields of later versions
    )


_LIMITS = tuple(name for name, _ in _MatcherInit._fields_[5:-1])

_Tokenize = ctypes.CFUNCTYPE(
    ctypes.c_size_t,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_uint8),
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_uint32),
    ctypes.c_size_t,
)

_ADDRESS, _SIZE, _TEXT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p

_LONG: dict[str, tuple[Any, list[Any]]] = {
    "llg_new_tokenizer_v2": (_ADDRESS, [_ADDRESS, _TEXT, _SIZE]),
    "llg_new_matcher": (_ADDRESS, [_ADDRESS, _TEXT, _TEXT]),
    "llg_matcher_compute_mask_into": (ctypes.c_int32, [_ADDRESS, _ADDRESS, _SIZE]),
}
_SHORT: dict[str, tuple[Any, list[Any]]] = {
    "llg_constraint_init_set_defaults": (None, [_ADDRESS, _ADDRESS]),
    "llg_free_tokenizer": (None, [_ADDRESS]),
    "llg_clone_matcher": (_ADDRESS, [_ADDRESS]),
    "llg_free_matcher": (None, [_ADDRESS]),
    "llg_matcher_is_error": (ctypes.c_bool, [_ADDRESS]),
    "llg_matcher_get_error": (_TEXT, [_ADDRESS]),
    "llg_matcher_is_stopped": (ctypes.c_bool, [_ADDRESS]),
    "llg_matcher_is_accepting": (ctypes.c_bool, [_ADDRESS]),
    "llg_matcher_consume_token": (ctypes.c_int32, [_ADDRESS, ctypes.c_uint32]),
}


@cache
def _library() -> Any:
    """Return llguidance's C functions by name; None where this version's package lacks one, or
    lays its settings out differently than here.
    """
    found: dict[str, Any] = {}
    try:
        path = llguidance._lib.__file__
        for library, functions in ((ctypes.CDLL(path), _LONG), (ctypes.PyDLL(path), _SHORT)):
            for name, (result, arguments) in functions.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
                found[name] = staticmethod(function)
    except (AttributeError, OSError, TypeError) as error:
        _log.info("llguidance is called through its Python classes: %s", error)
        return None
    functions_ = type("Functions", (), found)
    init, limits = _MatcherInit(), LLParserLimits()
    functions_.llg_constraint_init_set_defaults(ctypes.addressof(init), 0)  # type: ignore[attr-defined]  # from the library
    if any(getattr(init, name) != getattr(limits, name) for name in _LIMITS):
        _log.info("llguidance is called through its Python classes: its settings have changed")
        return None
    return functions_


def _tokenize_by(encode: Encode) -> Any:
    """Return llguidance's callback that encodes a text, and writes as many of its ids as there is
    room for: it asks for the first token where the bytes that follow are certain.
    """

    def tokenize(_: object, text: Any, size: int, ids: Any, room: int) -> int:
        found = encode(ctypes.string_at(text, size).decode("utf-8", "replace"))
        for i, token in enumerate(found[:room]):
            ids[i] = token
        return len(found)

    return _Tokenize(tokenize)


class _NativeTokens:
    """A vocabulary in llguidance, through C. Freed with the last matcher that needs it."""

    def __init__(self, library: Any, vocabulary: Vocabulary, slices: Sequence[str]) -> None:
        self._library = library
        self.eos = vocabulary.eos
        self.n_bytes = (len(vocabulary.tokens) + 31) // 32 * 4
        self._tokenize = _tokenize_by(vocabulary.encode)  # called as long as this exists
        special = frozenset(vocabulary.special_ids)
        tokens = [
            _MARKER + it if i in special and not it.startswith(_MARKER) else it
            for i, it in enumerate(vocabulary.tokens)
        ]
        sizes = np.fromiter(map(len, tokens), np.uint32, len(tokens))
        raw = np.frombuffer(b"".join(tokens) or b"\0", np.uint8)
        names = (_TEXT * (len(slices) + 1))(*(it.encode() for it in slices), None)
        init = _TokenizerInit(
            struct_size=ctypes.sizeof(_TokenizerInit),
            vocab_size=len(tokens),
            tok_eos=self.eos,
            token_lens=sizes.ctypes.data,
            token_bytes=raw.ctypes.data,
            tokenize_assumes_string=True,
            # Not by a cast: that keeps the function, and so the tokenizer, in a cycle.
            tokenize_fn=_ADDRESS.from_buffer(self._tokenize).value,
            slices=ctypes.addressof(names),
        )
        problem = ctypes.create_string_buffer(1000)
        self.address = library.llg_new_tokenizer_v2(ctypes.addressof(init), problem, len(problem))
        if not self.address:
            raise ValueError(f"llguidance: {problem.value.decode('utf-8', 'replace')}")
        weakref.finalize(self, library.llg_free_tokenizer, self.address).atexit = False

    def compile(self, grammar: str) -> Matcher:
        """Compile a grammar; see ``Tokens``."""
        library, init = self._library, _MatcherInit()
        library.llg_constraint_init_set_defaults(ctypes.addressof(init), self.address)
        init.log_stderr_level, init.verbose_errors = 0, False
        text = grammar.encode()
        address = library.llg_new_matcher(ctypes.addressof(init), b"llguidance", text)
        return _NativeMatcher(library, self, address)


class _NativeMatcher:
    """A matcher of llguidance, through C; see ``Matcher``."""

    __slots__ = ("_address", "_library", "_tokens")

    def __init__(self, library: Any, tokens: _NativeTokens, address: int) -> None:
        self._library, self._tokens, self._address = library, tokens, address

    def __del__(self) -> None:
        self._library.llg_free_matcher(self._address)

    def deep_copy(self) -> Matcher:
        address = self._library.llg_clone_matcher(self._address)
        return _NativeMatcher(self._library, self._tokens, address)

    def is_error(self) -> bool:
        return cast(bool, self._library.llg_matcher_is_error(self._address))

    def get_error(self) -> str:
        found = cast("bytes | None", self._library.llg_matcher_get_error(self._address))
        return (found or b"").decode("utf-8", "replace")

    def is_stopped(self) -> bool:
        return cast(bool, self._library.llg_matcher_is_stopped(self._address))

    def is_accepting(self) -> bool:
        return cast(bool, self._library.llg_matcher_is_accepting(self._address))

    def consume_token(self, token: int) -> bool:
        if token == self._tokens.eos and self.is_stopped():
            return True
        return cast(int, self._library.llg_matcher_consume_token(self._address, token)) == 0

    def unsafe_compute_mask_ptr(self, address: int, nbytes: int) -> None:
        if nbytes != self._tokens.n_bytes:
            raise ValueError(f"a mask has {self._tokens.n_bytes} bytes, not {nbytes}")
        if self._library.llg_matcher_compute_mask_into(self._address, address, nbytes) != 0:
            eos = self._tokens.eos  # nothing was written: only the end may follow an error
            ctypes.memset(address, 0, nbytes)
            ctypes.c_uint32.from_address(address + eos // 32 * 4).value = 1 << eos % 32


# Through Python


class _Wrapped:
    """The tokenizer interface of llguidance's ``TokenizerWrapper``."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.eos_token_id = vocabulary.eos
        self.tokens = vocabulary.tokens
        self.special_token_ids = vocabulary.special_ids
        self._encode = vocabulary.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode("utf-8", "replace"))


class _PythonTokens:
    """A vocabulary in llguidance, through its Python class."""

    def __init__(self, vocabulary: Vocabulary, slices: Sequence[str]) -> None:
        self._tokens = LLTokenizer(TokenizerWrapper(_Wrapped(vocabulary)), slices=list(slices))

    def compile(self, grammar: str) -> Matcher:
        """Compile a grammar; see ``Tokens``."""
        limits = LLParserLimits(verbose_errors=False)
        return cast(Matcher, LLMatcher(self._tokens, grammar, limits=limits, log_level=0))
