"""What was made of what: a JSON file beside the GGUF, or in the folder of an exported checkpoint.

It names the source and its revision, the version of this toolkit, and for each tensor where its
values come from, what was done to them, and the sha256 of the bytes it became. Nothing in it
depends on the time or the machine but the source's place and, of a GGUF, when it was last changed,
so that the same conversion gives the same manifest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from gptoss.converter.gguf.split import Part, listed
from gptoss.converter.write.staging import write_flushed
from gptoss.errors import GgufError
from gptoss.formats.gguf import GgufFile
from gptoss.quant.model.tensors import stamp_of
from gptoss.quant.verify.result import Verdict

SUFFIX = ".manifest.json"
FORMAT = 1
PACKAGE = "gptoss-toolkit"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a checkpoint is from: a folder, or a repository at a revision.

    ``sha256`` has the digests of those of its files that were checked against published ones;
    ``stamps`` the size in bytes and the time of the last change in nanoseconds of those for which
    nothing is published.
    """

    place: str
    revision: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    stamps: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of_gguf(cls, file: GgufFile) -> Self:
        """A GGUF on this machine, as it is now. Raises ``GgufError`` when it is gone."""
        stamps = {path.name: stamp_of(path, GgufError) for path in file.paths}
        return cls(str(file.path), stamps=stamps)


def path_of(out: Path) -> Path:
    """Where the manifest of a result stands."""
    return out.parent / (out.name + SUFFIX)  # of "." too, which has no name


def tool_version() -> str:
    """This toolkit's version."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"


def manifest(
    origin: Origin,
    dense: Mapping[str, str] | None,
    parts: Sequence[Part],
    sha256: Mapping[str, str],
    verdict: Verdict | None,
) -> dict[str, Any]:
    """The manifest as plain data.

    ``dense`` is the type asked for by the group's name, None where the source's were kept;
    ``sha256`` by the tensor's name.
    """
    return {
        "format": FORMAT,
        "tool": {"name": PACKAGE, "version": tool_version()},
        "source": {
            "place": origin.place,
            "revision": origin.revision,
            "files": [_file(name, origin) for name in _sources(parts)],
        },
        "dense": dense,
        "files": [{"name": part.name, "bytes": part.nbytes} for part in parts],
        "tensors": [entry | {"sha256": sha256[entry["name"]]} for entry in listed(parts)],
        "verify": verdict.to_json() if verdict else None,
    }


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Write a manifest to a new file; in ASCII, for names of files need not be text."""
    write_flushed(path, f"{json.dumps(found, indent=1)}\n".encode("ascii"))


def _file(name: str, origin: Origin) -> dict[str, Any]:
    """What is known of a file of the source."""
    entry: dict[str, Any] = {"name": name, "sha256": origin.sha256.get(name)}
    if stamp := origin.stamps.get(name):
        entry |= zip(("bytes", "modified_ns"), stamp, strict=True)
    return entry


def _sources(parts: Sequence[Part]) -> list[str]:
    """The names of the files that the tensors come from."""
    return sorted(
        {s.path.name for part in parts for tensor in part.tensors for s in tensor.sources}
    )
