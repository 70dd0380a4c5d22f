"""Exception hierarchy, by cause.

    GptossError                     base of everything this toolkit raises on purpose
    ├── InvalidFileError            a file's content is invalid
    │   ├── CheckpointError         ... a checkpoint: header, shard, tensor, config, tokenizer
    │   │   └── HashMismatchError   ... its bytes differ from the SHA-256 that the Hub publishes
    │   ├── GgufError               ... a GGUF file
    │   ├── StateFileError          ... a file of the prefix cache
    │   └── CacheFolderError        ... the prefix cache's folder is not the user's alone
    ├── UnsupportedModelError       the file is valid, but not a gpt-oss model this toolkit supports
    ├── OptionError                 an argument or option has a value that is not allowed
    ├── OutputError                 the result cannot be written: folder missing, disk full, ...
    │   └── VerificationError       the result differed from its source and was discarded
    ├── MissingPackageError         a Python package of an optional extra is not installed
    ├── HubError                    the Hub cannot be reached, or refuses
    ├── EngineError                 llama.cpp cannot load or run the model
    │   ├── OutOfMemoryError        ... the model or its context does not fit into memory
    │   ├── ModelFileChangedError   ... its file was written to while it is in use
    │   ├── PromptTooLongError      ... the prompt does not fit into the context
    │   ├── TimeLimitError          ... the request took longer than its time limit
    │   ├── QueueFullError          ... too many requests are waiting
    │   ├── EngineClosedError       ... it was closed, or has failed before
    │   │   └── RpcServerLostError  ... an RPC server that holds a part of the model went away
    │   ├── ForkedProcessError      ... it was loaded before this process was forked
    │   └── RemoteError             ... another server, which runs it, fails or refuses
    │       └── RemoteUnreachableError  ... cannot be reached, or the connection broke
    ├── ChatError                   a chat was used in a way it does not allow
    ├── ConversationError           a conversation that harmony cannot express
    │   ├── ConversationTooLongError
    │   └── ConstraintError         ... a schema, grammar or regular expression that cannot be used
    ├── ToolError                   a function that cannot be offered to the model
    ├── PythonToolError             the built-in python cannot start
    ├── FetchError                  the built-in browser cannot or must not fetch a page
    ├── SamplingError               sampling settings out of range
    └── StoreError                  the store of conversations cannot be opened, read or written
        ├── CorruptStoreError       ... it is damaged
        ├── StoreFullError          ... it is full
        ├── NotFoundError           ... it has no such conversation, or it is another owner's
        └── ConflictError           ... the conversation was continued elsewhere

A message is one line: what was found, where, and what to do. The commands print it and exit with
code 2.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from reprlib import Repr

DISTRIBUTION = "gptoss-toolkit"
"""The name under which pip knows this toolkit."""

_short = Repr()
_short.maxstring = 100
_short.maxlong = 40
_short.maxlist = _short.maxtuple = 8
_short.maxdict = 4
_short.maxlevel = 3  # deeper, ``repr`` itself could run out of stack


def quoted(value: object) -> str:
    """Format a value from a file for an error message: printable, short, on one line."""
    return _short.repr(value)


class GptossError(Exception):
    """Base of all errors that this toolkit raises on purpose."""


class InvalidFileError(GptossError):
    """A file's content is invalid; the message names the file and the place in it."""


class CheckpointError(InvalidFileError):
    """A checkpoint's header, shard, tensor, config or tokenizer is invalid."""


class GgufError(InvalidFileError):
    """A GGUF file's header or data is invalid, or llama.cpp cannot compute it."""


class UnsupportedModelError(GptossError):
    """The file is valid, but its model is not a gpt-oss that this toolkit supports."""


class OptionError(GptossError, ValueError):
    """An argument or option has a value that is not allowed; the message lists what is."""


class OutputError(GptossError):
    """The result cannot be written to the requested path."""


class MissingPackageError(GptossError, ImportError):
    """A package of an optional extra is not installed; the message is the command to install it."""


def require_packages(extra: str, *names: str) -> None:
    """Raise ``MissingPackageError`` unless all packages of an optional extra are installed.

    They are looked for, not imported: importing llama.cpp takes a while.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"Python packages missing: {', '.join(missing)}; install them: {install_command(extra)}"
        )


def install_command(extra: str) -> str:
    """Return the command that installs an optional extra: from the folder that this toolkit was
    installed from, where it was one (PEP 610).
    """
    # Every command imports this module; these modules take longer than all of it.
    import json
    from importlib.metadata import distributions
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        # In a checkout its own metadata may come first, which does not say where it is from.
        texts = (it.read_text("direct_url.json") for it in distributions(name=DISTRIBUTION))
        origin = json.loads(next(filter(None, texts), "{}"))
        folder = url2pathname(urlsplit(origin["url"]).path) if "dir_info" in origin else None
    except (KeyError, TypeError, ValueError):
        folder = None
    if folder is None:
        return f'{_pip()} install "{DISTRIBUTION}[{extra}]"'
    return f'{_pip()} install -e "{folder}[{extra}]"'


def _pip() -> str:
    """Return how pip is called for the environment that runs this program: a command that was
    started by its path runs in one that is not activated.
    """
    if sys.prefix == sys.base_prefix or os.environ.get("VIRTUAL_ENV") == sys.prefix:
        return "pip"
    return f'"{sys.executable}" -m pip' if " " in sys.executable else f"{sys.executable} -m pip"
