"""Compare what programs take from a GGUF besides the model: the chat template, and defaults for
sampling.

llama-server and llama-cli render conversations with the template, and sample as
``general.sampling.*`` says. ``gptoss-run`` uses neither. So a difference is reported, and the
verdict does not depend on it: published GGUFs often have a corrected template.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from gptoss.errors import CheckpointError
from gptoss.formats.bounded_json import read_json
from gptoss.formats.byte_source import FileSource
from gptoss.formats.checkpoint import CONFIG_LIMIT, GENERATION, Checkpoint
from gptoss.formats.gguf import GgufFile
from gptoss.formats.llama_cpp_keys import ABSENT, show
from gptoss.formats.tokenizer_json import SETTINGS_LIMIT, TEMPLATE, read_settings
from gptoss.quant.verify.result import KeyDifference

_TEMPLATE = "tokenizer.chat_template"
_SAMPLING = "general.sampling."
_NAMES = {"temp": ("temperature",), "penalty_repeat": ("penalty_repeat", "repetition_penalty")}
"""The fields of generation_config.json where a key has another name; as in gguf's ``Metadata``."""


def compare_program_keys(checkpoint: Checkpoint, gguf: GgufFile) -> tuple[KeyDifference, ...]:
    """Compare a GGUF's chat templates and sampling defaults with the files of its checkpoint.

    Raises ``CheckpointError`` when one of these files is invalid.
    """
    return (*_templates(checkpoint.tokenizer, gguf), *_sampling(checkpoint.folder, gguf))


def _templates(folder: Path, gguf: GgufFile) -> Iterator[KeyDifference]:
    expected = _stated_templates(folder)
    found = {
        key: value
        for key, value in gguf.metadata.items()
        if key == _TEMPLATE or key.startswith(f"{_TEMPLATE}.")
    }
    for key in {**expected, **found}:
        if expected.get(key) != found.get(key):
            yield KeyDifference(key, _summary(expected.get(key)), _summary(found.get(key)))


def _stated_templates(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's templates by the keys that a GGUF has for them."""
    stated = read_settings(folder).get("chat_template")
    if isinstance(stated, list):
        named = {it.get("name"): it.get("template") for it in stated if isinstance(it, dict)}
        return {
            _TEMPLATE if name == "default" else f"{_TEMPLATE}.{name}": text
            for name, text in named.items()
        }
    path = folder / TEMPLATE
    if stated is None and path.is_file():
        with FileSource(path, CheckpointError) as source:
            if source.size > SETTINGS_LIMIT:
                raise CheckpointError(f"{path}: {source.size} bytes; too long for a chat template")
            stated = source.read(0, source.size).decode(errors="replace")
    return {_TEMPLATE: stated} if stated else {}


def _summary(template: object) -> str:
    if not isinstance(template, str):
        return show(template)
    digest = sha256(template.encode(errors="surrogatepass")).hexdigest()
    return f"{len(template):,} characters (SHA-256 {digest[:12]})"


def _sampling(folder: Path, gguf: GgufFile) -> Iterator[KeyDifference]:
    found = {key: value for key, value in gguf.metadata.items() if key.startswith(_SAMPLING)}
    path = folder / GENERATION
    if not found:
        return  # not every converter writes them
    config = read_json(path, CheckpointError, limit=CONFIG_LIMIT) if path.is_file() else {}
    for key, value in found.items():
        name = key.removeprefix(_SAMPLING)
        given = next((config[it] for it in _NAMES.get(name, (name,)) if it in config), None)
        if show(given) != show(value):
            yield KeyDifference(key, ABSENT if given is None else show(given), show(value))
