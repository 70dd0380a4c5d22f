"""Errors by whose fault it is.

    GptossError                  base of everything this toolkit raises on purpose
    ├── BadFile                  a file is not what it must be
    │   ├── BadCheckpoint        ... a checkpoint: header, shard, tensor, config, tokenizer
    │   └── BadGguf              ... a GGUF file
    ├── UnsupportedModel         the file is sound, but not a gpt-oss model this toolkit knows
    ├── BadRequest               what was asked for is none of the choices; also a ValueError
    └── OutputError              the result cannot be written: folder missing, disk full, no right

The rooms add their own below ``GptossError``. A message is one line: what was found, where, and
what to do about it. The commands print it and exit with code 2.
"""

from __future__ import annotations

from reprlib import Repr

_short = Repr()
_short.maxstring = 100
_short.maxlong = 40
_short.maxlist = _short.maxtuple = 8
_short.maxdict = 4
_short.maxlevel = 3  # deeper, ``repr`` itself could run out of stack


def quoted(value: object) -> str:
    """A value out of a file as messages show it: on one line, and short whatever it holds."""
    return _short.repr(value)


class GptossError(Exception):
    """Base of everything raised on purpose."""


class BadFile(GptossError):
    """A file is not what it must be; the message names the file and the place in it."""


class BadCheckpoint(BadFile):
    """A checkpoint's header, shard, tensor, config or tokenizer is wrong."""


class BadGguf(BadFile):
    """A GGUF file's header or data is wrong."""


class UnsupportedModel(GptossError):
    """The file is sound but holds a model this toolkit does not know."""


class BadRequest(GptossError, ValueError):
    """What was asked for is none of the choices; the message lists them."""


class OutputError(GptossError):
    """The result cannot be written where it was asked for."""
