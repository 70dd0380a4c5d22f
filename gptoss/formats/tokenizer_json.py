"""The files of a checkpoint's tokenizer: names, size limits and bounded reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptoss.errors import CheckpointError
from gptoss.formats.bounded_json import read_json

TOKENIZER = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"

TOKENIZER_LIMIT = 2**26
"""The maximum size of tokenizer.json in bytes; the published one has 28 million."""
SETTINGS_LIMIT = 2**22
"""The maximum size of the settings and of the template in bytes; the template has 17,000."""


def read_tokenizer(folder: Path) -> dict[str, Any]:
    """Read the tokenizer.json in ``folder``, of bounded size.

    Raises ``CheckpointError`` when there is none, when it is too large, or is not JSON.
    """
    path = folder / TOKENIZER
    if not path.exists():
        raise CheckpointError(f"{path}: missing; --tokenizer names another folder that holds one")
    return read_json(path, CheckpointError, limit=TOKENIZER_LIMIT)


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the tokenizer_config.json in ``folder``; empty when there is none."""
    path = folder / SETTINGS
    return read_json(path, CheckpointError, limit=SETTINGS_LIMIT) if path.exists() else {}
