"""What the page keeps beside a tool's result in the store, and the API reads there too.

Beside a result are ``about`` (a JSON object: ``error``, ``seconds``, ``figures``, their number,
``page``, the cursor and address of what the browser has shown), ``figure-0`` and so on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from gptoss.runtime.store.conversations import Entry

ABOUT = "about"

About = Mapping[str, Any]


def figure_name(number: int) -> str:
    """Return the name of an entry's figure in the store."""
    return f"figure-{number}"


def read_abouts(entries: Iterable[Entry], stored: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Return what is known beside each entry; empty where nothing is, or it cannot be read."""
    return [_read(stored.get(entry.id)) for entry in entries]


def shown_page(about: About) -> tuple[int, str] | None:
    """Return cursor and address of the page that the browser has shown by a call."""
    match about.get("page"):
        case [int(cursor), str(url)]:
            return cursor, url
    return None


def n_figures_of(about: About) -> int:
    """Return how many figures a call made that were kept."""
    number = about.get("figures")
    return number if type(number) is int else 0


def _read(data: bytes | None) -> dict[str, Any]:
    try:
        read = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}
