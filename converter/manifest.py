"""The manifest: a JSON file that records what a result was made from.

It is beside the GGUF, or in the folder of an exported checkpoint. It has the source and its
revision, this toolkit's version, and for each tensor its sources, its transform and the SHA-256 of
its bytes. Apart from the source's location, and a source GGUF's time of modification, nothing in it
depends on time or machine: the same conversion gives the same manifest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from gptoss import __version__
from gptoss.atomic import write_flushed
from gptoss.converter.output import OutputFile, describe_tensors
from gptoss.errors import DISTRIBUTION, GgufError
from gptoss.formats.gguf import GgufFile
from gptoss.quant.verify.result import Verdict

SUFFIX = ".manifest.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a checkpoint is from: a folder, or a repository at a revision.

    ``sha256`` has the digests of the files that were compared with published ones; ``stamps`` has
    the size in bytes and the time of modification in nanoseconds of files without published ones.
    """

    place: str
    revision: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    stamps: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of_gguf(cls, file: GgufFile) -> Self:
        """Describe a local GGUF as the manifest's source, as it is now. Raises ``GgufError`` when
        it is gone.
        """
        return cls(str(file.path), stamps={path.name: _stamp(path) for path in file.paths})


def path_of(out: Path) -> Path:
    """Return the path of a result's manifest, the JSON file beside it or in its folder."""
    return out.parent / (out.name + SUFFIX)  # of "." too, which has no name


def manifest(
    origin: Origin,
    dense: Mapping[str, str] | None,
    files: Sequence[OutputFile],
    sha256: Mapping[str, str],
    verdict: Verdict | None,
) -> dict[str, Any]:
    """Build the manifest as plain data: what a result was made from, with the SHA-256 of every
    tensor.

    ``dense`` has the requested type of each group, None if the source's types were kept; ``sha256``
    goes by the tensor's name.
    """
    return {
        "format": FORMAT,
        "tool": {"name": DISTRIBUTION, "version": __version__},
        "source": {
            "place": origin.place,
            "revision": origin.revision,
            "files": [_file(name, origin) for name in _sources(files)],
        },
        "dense": dense,
        "files": [{"name": file.name, "bytes": file.nbytes} for file in files],
        "tensors": [entry | {"sha256": sha256[entry["name"]]} for entry in describe_tensors(files)],
        "verify": verdict.to_json() if verdict else None,
    }


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Write a manifest's JSON and flush it to disk; in ASCII, for file names need not be valid
    Unicode.
    """
    write_flushed(path, f"{json.dumps(found, indent=1)}\n".encode("ascii"))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as reason:
        raise GgufError(f"{path}: cannot be read: {reason.strerror}") from reason
    return status.st_size, status.st_mtime_ns


def _file(name: str, origin: Origin) -> dict[str, Any]:
    """Describe one source file for the manifest: name, size, and SHA-256 where it is known."""
    entry: dict[str, Any] = {"name": name, "sha256": origin.sha256.get(name)}
    if stamp := origin.stamps.get(name):
        entry |= zip(("bytes", "modified_ns"), stamp, strict=True)
    return entry


def _sources(files: Sequence[OutputFile]) -> list[str]:
    """List, for the manifest, the names of the files that the tensors come from."""
    return sorted(
        {it.file.name for file in files for tensor in file.tensors for it in tensor.sources}
    )
