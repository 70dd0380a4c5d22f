"""The folder of the user's models, and the record of each.

    MODELS/openai/gpt-oss-20b/
        model.json                         what it is, from where, how it was checked
        gpt-oss-20b.gguf                   complete: written elsewhere first, then renamed
        gpt-oss-20b.gguf.manifest.json     what the converter made it from
        last-used                          empty; its time is when the model was last loaded

A model without ``model.json`` is not finished: what is there is used by the next attempt.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptoss.atomic import replace_file
from gptoss.errors import InvalidFileError, OptionError, OutputError
from gptoss.formats.bounded_json import read_json
from gptoss.library.names import did_you_mean

VARIABLE = "GPTOSS_MODELS"
RECORD, LAST_USED = "model.json", "last-used"
RECORD_LIMIT = 2**20
FORMAT = 1
_PART = re.compile(r"\w[\w.@%+-]*", re.ASCII)
"""A folder of a model's name; nothing that leads elsewhere."""


@dataclass(frozen=True, slots=True)
class Record:
    """What ``model.json`` holds. ``files`` has the size in bytes of each GGUF, the first one first.

    ``verdict`` says how they were checked, ``sha256`` has their hashes; ``stamp`` identifies a
    source on this machine.
    """

    source: str
    revision: str | None
    files: dict[str, int]
    verdict: str
    sha256: dict[str, str]
    stamp: str | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A complete model in the folder."""

    name: str
    folder: Path
    record: Record

    @property
    def gguf(self) -> Path:
        """Return the path of the stored model's GGUF, of several the first."""
        return self.folder / next(iter(self.record.files))

    @property
    def nbytes(self) -> int:
        """Return the size of the stored model's files in bytes."""
        return sum(self.record.files.values())

    @property
    def last_used(self) -> datetime.datetime | None:
        """Return when the stored model was last loaded, in UTC; None when it never was."""
        try:
            seconds = (self.folder / LAST_USED).stat().st_mtime
        except OSError:
            return None
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC)

    def touch(self) -> None:
        """Note that the stored model is loaded now; a folder that cannot be written is left."""
        with suppress(OSError):
            path = self.folder / LAST_USED
            path.touch()
            os.utime(path)


class ModelFolder:
    """The user's models at ``root``."""

    def __init__(self, root: Path | None = None) -> None:
        """Without ``root``: the folder in GPTOSS_MODELS, or the system's place for user data."""
        self.root = root or default_root()

    def folder(self, name: str) -> Path:
        """Return the folder of a model by its name, ``owner/name``; raises OptionError for a name
        that is none.
        """
        parts = name.split("/")
        if not 1 <= len(parts) <= 3 or not all(_PART.fullmatch(it) for it in parts):
            raise OptionError(f"{name!r} is not the name of a model")
        return self.root.joinpath(*parts)

    def get(self, name: str) -> Stored | None:
        """Return the stored model of this name; None unless it is complete."""
        folder = self.folder(name)
        record = read_record(folder)
        return None if record is None else Stored(name, folder, record)

    def all(self) -> Iterator[Stored]:
        """Return every complete model in the folder, by name."""
        for path in sorted(self.root.glob(f"*/*/{RECORD}")):
            name = path.parent.relative_to(self.root).as_posix()
            with suppress(OptionError):
                if (found := self.get(name)) is not None:
                    yield found

    def require(self, name: str) -> Stored:
        """Return the stored model of this name, or of this last part of a name; raises
        OptionError.
        """
        found = list(self.all())
        named = [it for it in found if it.name == name]
        named = named or [it for it in found if it.name.rpartition("/")[2] == name]
        if len(named) == 1:
            return named[0]
        if named:
            raise OptionError(f"{name}: several models: {', '.join(it.name for it in named)}")
        problem = did_you_mean(
            name,
            [it.name for it in found],
            published=False,
            otherwise="gptoss-run models lists them",
        )
        raise OptionError(f"{name}: no such model in {self.root}{problem}")

    def prepare(self, name: str) -> Path:
        """Create the folder of a model and return it; raises OutputError."""
        folder = self.folder(name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as reason:
            raise OutputError(f"{folder}: cannot be created: {reason.strerror}") from reason
        return folder

    def remove(self, stored: Stored) -> None:
        """Remove a stored model and its folder, the record first; raises OutputError."""
        try:
            (stored.folder / RECORD).unlink()  # from here on it is not complete
            shutil.rmtree(stored.folder)
            with suppress(OSError):
                stored.folder.parent.rmdir()  # unless its owner has other models
        except OSError as reason:
            raise OutputError(f"{stored.folder}: cannot be removed: {reason.strerror}") from reason


def default_root() -> Path:
    """Return where models are kept: GPTOSS_MODELS, or ``models`` in the user's data folder."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser()
    import platformdirs

    return platformdirs.user_data_path("gptoss", appauthor=False) / "models"


def write_record(folder: Path, record: Record) -> None:
    """Write ``model.json``: from now on the model in the folder counts as complete. Raises
    OutputError.
    """
    text = json.dumps({"format": FORMAT, **asdict(record)}, indent=1)
    try:
        replace_file(folder / RECORD, f"{text}\n".encode("ascii"))
    except OSError as reason:
        raise OutputError(f"{folder}: cannot be written: {reason.strerror}") from reason


def read_record(folder: Path) -> Record | None:
    """Read ``model.json`` in a model's folder; None unless it is valid and its files have the
    recorded sizes.
    """
    if not (folder / RECORD).is_file():
        return None
    try:
        found = read_json(folder / RECORD, InvalidFileError, limit=RECORD_LIMIT)
    except InvalidFileError:
        return None
    files = found.get("files")
    if found.get("format") != FORMAT or not isinstance(files, dict) or not files:
        return None
    if not all(_has_size(folder, name, size) for name, size in files.items()):
        return None
    sha256 = found.get("sha256")
    if not isinstance(sha256, dict) or not all(isinstance(it, str) for it in sha256.values()):
        return None
    texts = {key: _text(found.get(key)) for key in ("source", "revision", "verdict", "stamp")}
    return Record(
        texts["source"] or "",
        texts["revision"],
        files,
        texts["verdict"] or "",
        sha256,
        texts["stamp"],
    )


def _has_size(folder: Path, name: str, size: Any) -> bool:
    if Path(name).name != name or not name.endswith(".gguf"):
        return False
    try:
        return bool((folder / name).stat().st_size == size)
    except OSError:
        return False


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
