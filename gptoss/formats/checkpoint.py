"""A checkpoint folder: its config, and the location of each tensor by Hugging Face name.

Only headers are read. Weights are in one ``model.safetensors`` or in the shards listed in
``model.safetensors.index.json``; index and shards must agree on every tensor. Folders in OpenAI's
own layout are recognised by their tensor names and mapped to Hugging Face's; they may lack an
index, and their tokenizer is in the parent folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gptoss.errors import CheckpointError, quoted
from gptoss.formats import openai_layout, other_tools
from gptoss.formats.bounded_json import read_json
from gptoss.formats.byte_source import ByteSource, FileSource
from gptoss.formats.expert_stack import stack_experts
from gptoss.formats.hparams import HParams
from gptoss.formats.safetensors import FLOATS, TensorInfo, read_header
from gptoss.formats.tensor_map import HfTensor, NamedTensor, hf_tensors, tensors
from gptoss.formats.tokenizer_json import TOKENIZER

CONFIG = "config.json"
GENERATION = "generation_config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG_LIMIT = 2**20
"""The maximum size of either config in bytes."""
INDEX_LIMIT = 2**22
SHARD_LIMIT = 4096
Weights = Callable[[str], ByteSource | None]
"""Finds a weights file by its name; None when there is no such file."""


StoredTensors = Mapping[str, tuple[TensorInfo, ...]]
"""The sources of each GGUF tensor, by its name: one tensor, or MXFP4 blocks and scales."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint; ``tensors`` maps each name to its location.

    ``tokenizer`` is the folder of tokenizer.json, if there is one. Config keys and tensor names are
    Hugging Face's, whatever the folder's layout.
    """

    folder: Path
    tokenizer: Path
    config: dict[str, Any]
    hparams: HParams
    tensors: Mapping[str, TensorInfo]

    @classmethod
    def open(
        cls,
        folder: Path,
        weights: Weights | None = None,
        tokenizer: Path | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> Checkpoint:
        """Open a checkpoint's folder: read its config and the headers of its shards.

        ``weights`` finds the weights files when they are not in the folder. ``tokenizer`` is the
        folder of tokenizer.json when it is neither in this folder nor above ``original/``.
        ``defaults`` replace keys that are missing from the config.

        Raises ``UnsupportedModelError`` when it is not a gpt-oss model, ``CheckpointError`` when
        something is missing or inconsistent.
        """
        if not folder.is_dir():
            found = "is not a folder" if folder.exists() else "does not exist"
            raise CheckpointError(
                f"{folder}: {found}; expected a checkpoint folder "
                f"({CONFIG}, {TOKENIZER}, *.safetensors)"
            )
        path = folder / CONFIG
        config = read_config(folder)
        if openai_layout.is_config(config):
            config = openai_layout.hf_config(config, str(path))
        hparams = HParams.from_config({**config, **(defaults or {})}, str(path))
        tensors = other_tools.standard_names(_tensors(folder, weights), folder)
        if openai_layout.is_layout(tensors):
            tensors = openai_layout.hf_view(tensors, hparams, folder)
            tokenizer = tokenizer or _tokenizer_of_original(folder)
        else:
            tensors = stack_experts(tensors, hparams, folder)
        return cls(folder, tokenizer or folder, config, hparams, tensors)

    @property
    def name(self) -> str:
        """Return the checkpoint's name: that of its folder, or for ``original/`` that of the folder
        above.
        """
        folder = self.folder.resolve()
        name = folder.parent.name if folder.name == "original" else folder.name
        # On some systems a folder's name is arbitrary bytes; a GGUF's strings are UTF-8.
        return os.fsencode(name).decode("utf-8", "replace")

    def check_tensors(self) -> StoredTensors:
        """Find every tensor of the checkpoint that its config asks for, keyed by GGUF name.

        Raises ``CheckpointError`` when one is missing, has another dtype or shape, or is unknown.
        """
        known = set(hf_tensors(self.hparams))
        found: dict[tuple[HfTensor, ...], tuple[TensorInfo, ...]] = {}
        stored: dict[str, tuple[TensorInfo, ...]] = {}
        for named in tensors(self.hparams):
            if named.sources not in found:  # gate and up share theirs
                found[named.sources] = self.stored(named)
            stored[named.gguf] = found[named.sources]
            known |= {named.floats.name} if named.floats else set()
        for name, info in self.tensors.items():
            if name not in known:
                raise CheckpointError(
                    f"{info.file}: unknown tensor {quoted(name)}; a gpt-oss model of "
                    f"{self.hparams.num_hidden_layers} layers does not have it"
                )
        return stored

    def stored(self, named: NamedTensor) -> tuple[TensorInfo, ...]:
        """Return the checkpoint's stored tensors for one model tensor: one, or blocks and scales
        for MXFP4 experts.

        Floats are BF16, F16 or F32. Experts in floats are inputs first; outputs first is accepted
        where the two sizes differ and so show it. Raises ``CheckpointError`` when a tensor is
        missing or has the wrong dtype or shape.
        """
        floats = named.floats
        if floats is None or floats.name not in self.tensors:
            return tuple(self._found(source, {source.shape}) for source in named.sources)
        both = [source.name for source in named.sources if source.name in self.tensors]
        if both:
            raise CheckpointError(
                f"{self.folder}: holds both {floats.name!r} and {both[0]!r}; remove one of them"
            )
        experts, inputs, outputs = floats.shape
        return (self._found(floats, {floats.shape, (experts, outputs, inputs)}),)

    def _found(self, expected: HfTensor, shapes: Container[tuple[int, ...]]) -> TensorInfo:
        found = self.tensors.get(expected.name)
        if found is None:
            raise CheckpointError(_missing(self, expected.name))
        problem = None
        if found.dtype not in (FLOATS if expected.dtype in FLOATS else (expected.dtype,)):
            problem = f"is {found.dtype}; expected {expected.dtype}"
        elif found.shape not in shapes:
            problem = f"has shape {found.shape}; config.json implies {expected.shape}"
        if problem:
            raise CheckpointError(f"{found.file}: tensor {quoted(found.name)} {problem}")
        return found


def read_config(folder: Path) -> dict[str, Any]:
    """Read a checkpoint folder's config.json. Raises ``CheckpointError``."""
    path = folder / CONFIG
    if not path.exists():
        raise CheckpointError(
            f"{folder}: has no {CONFIG}; give a checkpoint's folder, or a GGUF file"
        )
    return read_json(path, CheckpointError, limit=CONFIG_LIMIT)


def _tensors(folder: Path, weights: Weights | None) -> dict[str, TensorInfo]:
    weights = weights or partial(_weights_in, folder)
    single, index = weights(SINGLE), folder / INDEX
    if single is not None and index.exists():
        single.close()
        raise CheckpointError(
            f"{folder}: holds both {SINGLE} and {INDEX}; remove the one that is not in use"
        )
    if index.exists():
        return _sharded(index, weights)
    if single is not None:
        return read_header(single)
    tensors = _unindexed(folder)
    if not openai_layout.is_layout(tensors):
        raise CheckpointError(f"{folder}: holds neither {SINGLE} nor {INDEX}; download the weights")
    return tensors


def _weights_in(folder: Path, name: str) -> FileSource | None:
    path = folder / name
    return FileSource(path, CheckpointError) if path.is_file() else None


def _unindexed(folder: Path) -> dict[str, TensorInfo]:
    """Collect the tensors of all shards of a checkpoint without an index file, as OpenAI's layout
    has none.
    """
    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(folder.glob("*.safetensors"))[:SHARD_LIMIT]:
        for name, info in read_header(FileSource(shard, CheckpointError)).items():
            if name in tensors:
                raise CheckpointError(
                    f"{shard}: tensor {quoted(name)} is also in {tensors[name].file.name}"
                )
            tensors[name] = info
    return tensors


def _tokenizer_of_original(folder: Path) -> Path:
    """Return the folder of the tokenizer for a checkpoint in ``original/``: the published
    repositories have it one level up.
    """
    above = folder.resolve().parent
    return above if not (folder / TOKENIZER).exists() and (above / TOKENIZER).exists() else folder


def _sharded(index: Path, weights: Weights) -> dict[str, TensorInfo]:
    weight_map = read_json(index, CheckpointError, limit=INDEX_LIMIT).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is missing or empty")
    for name, shard in weight_map.items():
        _check_shard_name(index, name, shard)
    shards = sorted(set(weight_map.values()))
    if len(shards) > SHARD_LIMIT:
        raise CheckpointError(f"{index}: {len(shards)} shards; the maximum is {SHARD_LIMIT}")
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        file = weights(shard)
        if file is None:
            raise CheckpointError(
                f"{index.parent / shard}: missing shard, listed in {INDEX}; download it"
            )
        for name, info in read_header(file).items():
            if weight_map.get(name) != shard:
                other = f"puts it in {weight_map[name]}" if name in weight_map else "omits it"
                raise CheckpointError(f"{file}: holds tensor {quoted(name)}, but {INDEX} {other}")
            tensors[name] = info
    for name, shard in weight_map.items():
        if name not in tensors:
            raise CheckpointError(
                f"{index.parent / shard}: tensor {quoted(name)} is missing, but {INDEX} lists it"
            )
    return tensors


def _check_shard_name(index: Path, name: str, shard: Any) -> None:
    """Reject a shard name in a checkpoint's index that is not a plain file name: it could lead
    outside the folder.
    """
    plain = isinstance(shard, str) and shard.endswith(".safetensors")
    if not plain or any(sign in shard for sign in "/\\:\0"):
        raise CheckpointError(
            f"{index}: tensor {quoted(name)} is in {quoted(shard)}, which is not a valid shard name"
        )


def _missing(checkpoint: Checkpoint, name: str) -> str:
    """Format the error for a tensor missing from a checkpoint; it names the partner (blocks or
    scales) that exists.
    """
    message = f"{checkpoint.folder}: missing tensor {name!r}"
    for ending, other in (("_scales", "_blocks"), ("_blocks", "_scales")):
        base = name.removesuffix(ending)
        if base != name and base + other in checkpoint.tensors:
            return f"{message}, the partner of {base + other!r}"
    return message
