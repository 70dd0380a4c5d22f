"""JSON objects read from files and responses: bounded size, no duplicate keys, one-line errors."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from gptoss.errors import GptossError, InvalidFileError, quoted
from gptoss.formats.byte_source import FileSource


def read_json(path: Path, error: type[InvalidFileError], *, limit: int) -> dict[str, Any]:
    """Read the JSON object in a file of at most ``limit`` bytes.

    Raises ``error`` when the file is missing, larger, not UTF-8, not JSON, or not an object.
    """
    with FileSource(path, error) as source:
        if source.size > limit:
            raise error(f"{path}: has {source.size} bytes; the limit is {limit}")
        return parse_json(source.read(0, source.size), str(path), error)


def parse_json(raw: bytes | bytearray, where: str, error: type[GptossError]) -> dict[str, Any]:
    """Parse ``raw`` bytes as a JSON object, and reject objects with duplicate keys.

    Two parsers may disagree on which of two equal keys counts, so no file may depend on it.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
            raise error(f"{where}: duplicate key {quoted(twice)}")
        return found

    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except UnicodeDecodeError as reason:
        raise error(f"{where}: not UTF-8 at byte {reason.start}") from reason
    except RecursionError as reason:
        raise error(f"{where}: JSON nested too deeply") from reason
    except ValueError as reason:
        raise error(f"{where}: not valid JSON: {reason}") from reason
    if not isinstance(found, dict):
        raise error(f"{where}: expected a JSON object, found {type(found).__name__}")
    return found
