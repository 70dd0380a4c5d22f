"""What a person may call a model: ``20b``, ``owner/name``, its page on the Hub, a path."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from urllib.parse import unquote

from gptoss.errors import OptionError, quoted

_PUBLISHED = {size: f"openai/gpt-oss-{size}" for size in ("20b", "120b")}
ALIASES = {
    form.format(size): repository
    for size, repository in _PUBLISHED.items()
    for form in ("{}", "gpt-oss-{}", "gpt-oss:{}", "openai/gpt-oss-{}")
}
"""Short names of the published models, as this toolkit, the Hub and Ollama have them."""

_OWNER_NAME = r"(?P<repository>\w[\w.-]{0,95}/\w[\w.-]{0,95})"
_ID = re.compile(rf"{_OWNER_NAME}(?:@(?P<revision>[^\s@:?#]+))?(?::(?P<file>[^\s:?#]+))?", re.ASCII)
_URL = re.compile(
    rf"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/{_OWNER_NAME}"
    r"(?:/(?:tree|blob|resolve|raw)/(?P<revision>[^\s?#/]+)(?:/(?P<path>[^\s?#]*))?|:(?P<file>[^\s:?#]+))?"
    r"/?(?:[?#]\S*)?",
    re.ASCII,
)
"""The page of a repository, or of a folder or file in it; with ``:FILE`` as Ollama has it."""


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model in a repository on the Hub.

    ``file`` names one GGUF of several: its name, or a part of it such as ``Q8_0``.
    """

    repository: str
    revision: str = "main"
    file: str | None = None

    def __str__(self) -> str:
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"{self.repository}{revision}{f':{self.file}' if self.file else ''}"


def hub_model(name: str) -> HubModel | None:
    """Parse a model's short name, Hub id or Hub URL; None for any other text.

    Raises OptionError for the URL of another site.
    """
    if name.casefold() in ALIASES:
        return HubModel(ALIASES[name.casefold()])
    if found := _URL.fullmatch(name):
        path = unquote(found["path"] or "")
        in_path = path.rpartition("/")[2] if path.endswith(".gguf") else None
        revision = unquote(found["revision"] or "main")
        return HubModel(found["repository"], revision, found["file"] or in_path)
    if "://" in name:
        raise OptionError(
            f"{quoted(name)}: expected a repository's page on huggingface.co, such as "
            "https://huggingface.co/openai/gpt-oss-20b"
        )
    if found := _ID.fullmatch(name):
        return HubModel(found["repository"], found["revision"] or "main", found["file"])
    return None


ANY_NAME = "name a GGUF, a checkpoint folder, 20b, 120b, or OWNER/NAME on the Hub"


def did_you_mean(
    name: str,
    known: Collection[str] = (),
    *,
    published: bool = True,
    otherwise: str = ANY_NAME,
) -> str:
    """Return ``; did you mean openai/gpt-oss-20b?`` for a name that is close to a known one, with
    or without its owner; ``otherwise`` where none is. ``published`` adds the published models to
    the known ones.
    """
    names = {it.casefold(): it for it in known}
    if published:
        names = ALIASES | names
    names |= {it.rpartition("/")[2].casefold(): it for it in known}
    whole = name.rstrip("/").casefold()
    for text in (whole, whole.rpartition("/")[2].removesuffix(".gguf")):
        if close := get_close_matches(text, names, n=1, cutoff=0.7):
            return f"; did you mean {names[close[0]]}?"
    return f"; {otherwise}"
