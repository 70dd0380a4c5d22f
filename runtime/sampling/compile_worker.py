"""The script of the child process that ``compile_guard`` starts: compiles grammars under a memory
limit.

Reads ``{"grammars": [...], "seconds": n, "bytes": n}`` from stdin. Writes ``"ready"``, then one
line of JSON per grammar: null, or its error. A grammar that takes longer than ``seconds`` ends the
process with exit code 1; one that takes more memory than ``bytes`` ends it with a signal (Linux).
The vocabulary is the 256 bytes: it has no control tokens that a grammar could name, and the cost of
compiling does not depend on the vocabulary.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
import threading
from pathlib import Path

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

STACK_BYTES = 256 << 20
"""llguidance recurses along references, and a stack overflow would end the process."""

TRIED_TOKENS = 4
"""Tokens generated from each grammar: many errors appear only then."""


class _Bytes:
    """A tokenizer with one token per byte."""

    bos_token_id = None
    eos_token_id = 256
    tokens = (*(bytes([i]) for i in range(256)), b"\xff[end]")
    special_token_ids = (256,)

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def problem_of(tokenizer: LLTokenizer, grammar: str) -> str | None:
    """Compile a grammar in this child process and return llguidance's error, None when there is
    none.
    """
    limits = LLParserLimits(verbose_errors=False)
    matcher = LLMatcher(tokenizer, grammar, limits=limits, log_level=0)
    for _ in range(TRIED_TOKENS):
        if matcher.is_stopped():  # at the end, or after an error
            break
        mask = matcher.compute_bitmask()
        token = next((i for i in range(256) if mask[i // 8] >> i % 8 & 1), None)
        if token is None or not matcher.consume_token(token):
            break
    return matcher.get_error() or None


def limit_memory(most: int) -> None:
    """Limit the address space of this child process to ``most`` bytes; an allocation beyond it
    fails.

    macOS accepts the limit but does not enforce it; Windows has none. There, only time is limited.
    """
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        with contextlib.suppress(ValueError, OSError):  # macOS may reject it
            if hard == resource.RLIM_INFINITY or most < hard:
                resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def main() -> None:
    """Read the grammars on stdin of this child process, and write the error of each to stdout."""
    request = json.load(sys.stdin)
    limit_memory(request["bytes"])
    tokenizer = LLTokenizer(TokenizerWrapper(_Bytes()))
    print(json.dumps("ready"), flush=True)  # noqa: T201
    with Path(os.devnull).open("w") as nowhere:
        for grammar in request["grammars"]:
            # The only time limit that works on every platform while llguidance computes.
            faulthandler.dump_traceback_later(request["seconds"], exit=True, file=nowhere)
            problem = problem_of(tokenizer, grammar)
            print(json.dumps(problem), flush=True)  # noqa: T201
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    threading.stack_size(STACK_BYTES)
    worker = threading.Thread(target=main)
    worker.start()
    worker.join()
