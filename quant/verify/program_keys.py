"""Compare what programs take from two models besides the model: the chat template, and defaults for
sampling.

llama-server and llama-cli render conversations with the template, and sample as
``general.sampling.*`` says. ``gptoss-run`` uses neither. So a difference is reported, and the
verdict does not depend on it: published GGUFs often have a corrected template.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from gptoss.errors import CheckpointError
from gptoss.formats.bounded_json import read_json
from gptoss.formats.byte_source import FileSource
from gptoss.formats.checkpoint import CONFIG_LIMIT, GENERATION
from gptoss.formats.llama_cpp_keys import show
from gptoss.formats.tokenizer_json import SETTINGS_LIMIT, TEMPLATE, TOKENIZER, read_settings
from gptoss.quant.verify.result import KeyDifference

USED_BY_PROGRAMS = "not part of the model, but llama-server uses it"
"""What reports say of these keys."""

_TEMPLATE = "tokenizer.chat_template"
_SAMPLING = "general.sampling."
_FIELDS = {
    "sequence": ("sequence",),
    "top_k": ("top_k",),
    "top_p": ("top_p",),
    "min_p": ("min_p",),
    "xtc_probability": ("xtc_probability",),
    "xtc_threshold": ("xtc_threshold",),
    "temp": ("temperature",),
    "penalty_last_n": ("penalty_last_n",),
    "penalty_repeat": ("penalty_repeat", "repetition_penalty"),
    "mirostat": ("mirostat",),
    "mirostat_tau": ("mirostat_tau",),
    "mirostat_eta": ("mirostat_eta",),
}
"""Sampling keys that llama.cpp reads, and the fields of generation_config.json that state them; as
in gguf's ``Metadata``."""


@dataclass(frozen=True, slots=True)
class ProgramKeys:
    """What programs take from a model, by the keys of a GGUF.

    ``templates`` is None where there is no tokenizer that could state them. ``every_default`` says
    whether the model states its sampling defaults completely: a GGUF without any may come from a
    converter that writes none.
    """

    templates: Mapping[str, Any] | None
    sampling: Mapping[str, Any]
    every_default: bool = True


def compare_program_keys(a: ProgramKeys, b: ProgramKeys) -> tuple[KeyDifference, ...]:
    """Compare the chat templates and sampling defaults of two models."""
    differences: list[KeyDifference] = []
    if a.templates is not None and b.templates is not None:
        differences += _compare(a.templates, b.templates, _summary)
    if a.every_default == b.every_default:
        differences += _compare(a.sampling, b.sampling, show)
    else:
        stored = (b if a.every_default else a).sampling
        one, other = ({k: it.sampling.get(k) for k in stored} for it in (a, b))
        differences += _compare(one, other, show)
    return tuple(differences)


def _compare(
    a: Mapping[str, Any], b: Mapping[str, Any], shown: Callable[[Any], str]
) -> Iterator[KeyDifference]:
    for key in {**a, **b}:
        one, other = a.get(key), b.get(key)
        if one != other and not _same_float(one, other):
            yield KeyDifference(key, shown(one), shown(other))


def _same_float(one: object, other: object) -> bool:
    """Return whether two values are equal as float32, which is what a GGUF stores."""
    return isinstance(one, float) and isinstance(other, float) and show(one) == show(other)


def program_keys_of_gguf(metadata: Mapping[str, Any]) -> ProgramKeys:
    """Return the chat templates and sampling defaults in a GGUF's metadata."""
    templates = {
        key: value
        for key, value in metadata.items()
        if key == _TEMPLATE or key.startswith(f"{_TEMPLATE}.")
    }
    sampling = {key: value for key, value in metadata.items() if key.startswith(_SAMPLING)}
    return ProgramKeys(templates, sampling, every_default=False)


def program_keys_of_checkpoint(folder: Path, tokenizer: Path) -> ProgramKeys:
    """Return the chat templates beside a checkpoint's tokenizer and the sampling defaults in its
    folder.

    Raises ``CheckpointError`` when one of these files is invalid.
    """
    has_tokenizer = (tokenizer / TOKENIZER).exists()
    templates = _stated_templates(tokenizer) if has_tokenizer else None
    path = folder / GENERATION
    config = read_json(path, CheckpointError, limit=CONFIG_LIMIT) if path.is_file() else {}
    sampling = {
        _SAMPLING + name: config[stated[0]]
        for name, fields in _FIELDS.items()
        if (stated := [it for it in fields if config.get(it) is not None])
    }
    return ProgramKeys(templates, sampling)


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
