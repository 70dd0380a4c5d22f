"""Finds the file of the model that a command names.

Alone, the runtime knows files. What looks models up by name, or fetches and converts them, lies
above it (``gptoss.library``) and is handed to the commands as click's context object.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import click


class ModelFinder(Protocol):
    """Finds models for commands."""

    def find(self, name: str, *, yes: bool) -> Path:
        """Return the GGUF of the model that a command names, a file that is there and complete.

        It may have to be downloaded and converted; the person is asked first, unless ``yes``.
        Raises GptossError where there is none, also where the person declines.
        """
        ...

    def headers(self, name: str) -> AbstractContextManager[Path]:
        """Return a GGUF, or the folder of a checkpoint, to plan the memory of a named model with.

        Its header or config is complete; weights may be missing. Nothing is downloaded but these.
        Raises GptossError.
        """
        ...

    def vocabulary(self, name: str) -> AbstractContextManager[Path]:
        """Return a GGUF with the vocabulary of a named model that another server runs.

        Its weights may be missing, and nothing is downloaded but what comes before them. Raises
        GptossError.
        """
        ...


class LocalFiles:
    """Takes each name as the path of a file or folder."""

    def find(self, name: str, *, yes: bool) -> Path:  # noqa: ARG002 as in ModelFinder
        """Return the path that was named."""
        return Path(name)

    def headers(self, name: str) -> AbstractContextManager[Path]:
        """Return the path that was named."""
        return nullcontext(Path(name))

    def vocabulary(self, name: str) -> AbstractContextManager[Path]:
        """Return the path that was named."""
        return nullcontext(Path(name))


def model_finder(context: click.Context) -> ModelFinder:
    """Return what finds models for a running command: its program's finder, or files alone."""
    finder: ModelFinder | None = context.obj
    return LocalFiles() if finder is None else finder
