"""gpt-oss models that other programs have on this machine; read, never changed.

huggingface_hub's cache, LM Studio's folders, and Ollama's blobs, which its manifests name.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from gptoss.errors import GptossError, InvalidFileError
from gptoss.formats.bounded_json import read_json
from gptoss.formats.checkpoint import CONFIG, CONFIG_LIMIT, Checkpoint
from gptoss.formats.gguf import GgufFile
from gptoss.runtime.models.preflight import check_computable

MAX_FOUND = 1000
"""Files that are looked at in each place."""
MANIFEST_LIMIT = 2**20
ARCHITECTURES = ("gpt-oss", "gptoss")
"""As llama.cpp and as Ollama write it."""
MODEL_LAYER = "application/vnd.ollama.image.model"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Found:
    """A model of another program. ``verdict`` says what this toolkit can do with it."""

    place: str
    name: str
    path: Path
    nbytes: int
    verdict: str
    last_used: datetime.datetime | None


def find_elsewhere() -> Iterator[Found]:
    """Search the folders of other programs for gpt-oss models; what cannot be read is left out."""
    yield from _hugging_face(_hub_cache())
    for folder in (Path.home() / ".lmstudio" / "models", Path.home() / ".cache/lm-studio/models"):
        yield from _ggufs("LM Studio", folder, "*/*/*.gguf")
    ollama = Path(os.environ.get("OLLAMA_MODELS") or Path.home() / ".ollama" / "models")
    yield from _ollama(ollama)


def _hub_cache() -> Path:
    from gptoss.converter.hub.client import importing

    with importing():
        from huggingface_hub import constants
    return Path(constants.HF_HUB_CACHE)


def _hugging_face(cache: Path) -> Iterator[Found]:
    """Find checkpoints and GGUFs in huggingface_hub's cache."""
    for snapshot in _some(cache, "models--*/snapshots/*"):
        name = snapshot.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        if (snapshot / CONFIG).exists():
            yield from _checkpoint("Hugging Face cache", name, snapshot)
        yield from _ggufs("Hugging Face cache", snapshot, "**/*.gguf", name)


def _checkpoint(place: str, name: str, folder: Path) -> Iterator[Found]:
    with suppress(GptossError, OSError):
        config = read_json(folder / CONFIG, InvalidFileError, limit=CONFIG_LIMIT)
        if config.get("model_type") != "gpt_oss":
            return
        files = list(folder.glob("*.safetensors"))
        nbytes = sum(path.stat().st_size for path in files)
        try:
            Checkpoint.open(folder).check_tensors()
            verdict = "checkpoint, can be converted"
        except GptossError as error:
            verdict = f"incomplete: {_short(error, folder)}"
        yield Found(place, name, folder, nbytes, verdict, _last_read(files))


def _ggufs(place: str, folder: Path, pattern: str, name: str | None = None) -> Iterator[Found]:
    for path in _some(folder, pattern):
        if "-of-" in path.name and "-00001-of-" not in path.name:
            continue
        yield from _gguf(place, name or path.relative_to(folder).parent.as_posix(), path)


def _gguf(place: str, name: str, path: Path) -> Iterator[Found]:
    with suppress(GptossError, OSError):
        file = GgufFile.open(path, ollama=True)
        architecture = file.metadata.get("general.architecture")
        if architecture not in ARCHITECTURES:
            return
        nbytes = sum(it.stat().st_size for it in file.paths)
        yield Found(place, name, path, nbytes, _verdict(path), _last_read(file.paths))


def _verdict(path: Path) -> str:
    try:
        file = GgufFile.open(path)
        if file.metadata.get("general.architecture") != ARCHITECTURES[0]:
            return "Ollama's form, gptoss-convert repairs it"
        check_computable(file)
    except GptossError as error:
        return f"cannot run: {_short(error, path)}"
    return "can run"


def _ollama(models: Path) -> Iterator[Found]:
    """Find the GGUF of each of Ollama's models by its manifest."""
    for manifest in _some(models / "manifests", "*/*/*/*"):
        with suppress(GptossError, OSError):
            found = read_json(manifest, InvalidFileError, limit=MANIFEST_LIMIT)
            for digest in _model_digests(found.get("layers")):
                name = f"{manifest.parent.name}:{manifest.name}"
                yield from _gguf("Ollama", name, models / "blobs" / f"sha256-{digest}")


def _model_digests(layers: object) -> Iterator[str]:
    """Return the SHA-256 of each GGUF in a manifest of Ollama, in hexadecimal: part of a path."""
    for layer in layers if isinstance(layers, list) else ():
        if isinstance(layer, dict) and layer.get("mediaType") == MODEL_LAYER:
            digest = _DIGEST.fullmatch(str(layer.get("digest")))
            if digest is not None:
                yield digest[1]


def _some(folder: Path, pattern: str) -> list[Path]:
    """List the first paths of a pattern; none where the folder cannot be read."""
    try:
        return sorted(islice(folder.glob(pattern), MAX_FOUND))
    except OSError:
        return []


def _last_read(files: Iterable[Path]) -> datetime.datetime | None:
    """Return when one of the files was last read, as far as the file system notes it, in UTC."""
    times = []
    for path in files:
        with suppress(OSError):
            times.append(path.stat().st_atime)
    return datetime.datetime.fromtimestamp(max(times), datetime.UTC) if times else None


def _short(error: GptossError, path: Path) -> str:
    """Return the first part of an error's message, without the path."""
    text = str(error).replace(str(path), path.name)
    return text.partition("; try to repair")[0][:120]
