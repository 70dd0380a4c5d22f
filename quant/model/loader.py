"""Load a checkpoint or a GGUF into one ``Model``; recoverable defects are listed in it.

A file that cannot be read (a corrupt header, another architecture, contradictory sizes) is an
error. What can be wrong in a readable file is a ``Defect``: tensors that are missing, unknown or
misshapen, and missing RoPE settings, for which the published models' values are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gptoss.errors import CheckpointError
from gptoss.formats import llama_cpp_keys, llama_cpp_types, openai_layout, published
from gptoss.formats.byte_source import ByteSource
from gptoss.formats.checkpoint import CONFIG, INDEX, Checkpoint, read_config
from gptoss.formats.fused_qkv import split_fused_qkv
from gptoss.formats.gguf import GgufFile, GgufTensor
from gptoss.formats.hparams import HParams
from gptoss.formats.safetensors import TensorInfo
from gptoss.formats.tensor_map import NamedTensor, TensorRole, group_by_source, tensors
from gptoss.quant.model.defects import Defect, DefectKind
from gptoss.quant.model.dtypes import FLOATS, encoding_of
from gptoss.quant.model.tensors import (
    GATE_UP_BIAS,
    DenseTensor,
    Encoding,
    ExpertTensor,
    Extent,
    Model,
    Part,
    layer_of,
    part_of,
    role_of,
)


def open_model(path: Path) -> Model:
    """Load a checkpoint's folder or a GGUF file into a ``Model``, which lists its recoverable
    defects.

    Raises ``InvalidFileError`` when it cannot be read, ``UnsupportedModelError`` when it is not a
    gpt-oss model.
    """
    if path.is_dir():
        return _open_checkpoint(path)
    if (path.suffix == ".safetensors" or path.name in (CONFIG, INDEX)) and path.is_file():
        raise CheckpointError(f"{path}: is one file of a checkpoint; give the folder that holds it")
    return _open_gguf(path)


# --- a checkpoint -----------------------------------------------------------------------------


def _open_checkpoint(folder: Path) -> Model:
    config = read_config(folder)
    defaults = {} if openai_layout.is_config(config) else missing_rope(config)
    checkpoint = Checkpoint.open(folder, defaults=defaults)
    defects = [Defect(DefectKind.ROPE_MISSING, f"{key} is missing", key) for key in defaults]
    loader = _CheckpointLoader(checkpoint.tensors)
    experts: list[ExpertTensor] = []
    dense: list[DenseTensor] = []
    for sharing in group_by_source(checkpoint.hparams).values():
        if sharing[0].role is TensorRole.EXPERTS:
            experts += loader.experts(sharing)
        else:
            dense += loader.dense(sharing)
    return Model(
        folder,
        checkpoint.tokenizer,
        checkpoint.hparams,
        checkpoint.config,
        tuple(experts),
        tuple(dense),
        (*defects, *loader.defects, *loader.unknown()),
        tuple(loader.unread),
        _files(checkpoint.tensors.values()),
    )


def missing_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the RoPE settings that a checkpoint's config lacks, with the published models' values,
    so that it can be loaded all the same.
    """
    given = [config.get(key) for key in ("rope_parameters", "rope_scaling")]
    missing: dict[str, Any] = {}
    if all(it is None for it in given):
        missing["rope_scaling"] = dict(published.ROPE_SCALING)
    thetas = [config.get("rope_theta")]
    thetas += [it.get("rope_theta") for it in given if isinstance(it, Mapping)]
    if all(theta is None for theta in thetas):
        missing["rope_theta"] = published.HPARAMS["rope_theta"]
    return missing


def _float_encoding(dtype: str) -> Encoding:
    """Return the encoding of a dtype in the checkpoint being loaded; ``Encoding.OTHER`` when it is
    not a float.
    """
    return Encoding(dtype) if dtype in FLOATS else Encoding.OTHER


class _CheckpointLoader:
    """Collects a checkpoint's tensors, and the defects of their entries."""

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        self._tensors = tensors
        self._taken: set[str] = set()
        self.defects: list[Defect] = []
        self.unread: list[str] = []

    def experts(self, sharing: list[NamedTensor]) -> Iterator[ExpertTensor]:
        """Load the checkpoint's expert tensor, in MXFP4 blocks or floats, that holds these parts,
        and note defects of its entry.
        """
        base = sharing[0].sources[0].name.removesuffix("_blocks")
        info = self._tensors.get(base)
        if info is None:
            yield from self._mxfp4_experts(sharing)
        else:
            self._taken.add(base)
            yield from self._float_experts(sharing, info, base)

    def _mxfp4_experts(self, sharing: list[NamedTensor]) -> Iterator[ExpertTensor]:
        first = sharing[0]
        layer = layer_of(first.gguf) or 0
        infos = [self._take(source.name, layer) for source in first.sources]
        found = [info for info in infos if info is not None]
        if len(found) == len(first.sources) and all(
            self._fits(info, source.shape, layer, source.dtype)
            for info, source in zip(found, first.sources, strict=True)
        ):
            yield ExpertTensor(
                found[0].name.removesuffix("_blocks").removesuffix(".blocks"),
                layer,
                _parts(sharing),
                *_expert_shape(sharing),
                Encoding.MXFP4_HF,
                tuple(_extent(info) for info in found),
            )

    def _float_experts(
        self, sharing: list[NamedTensor], info: TensorInfo, name: str
    ) -> Iterator[ExpertTensor]:
        layer = layer_of(sharing[0].gguf) or 0
        n_experts, rows, columns = _expert_shape(sharing)
        expected = (n_experts, columns, rows)
        transposed = info.shape == (n_experts, rows, columns) and rows != columns
        if transposed:
            message = f"shape {info.shape}; {expected} is expected"
            self.defects.append(Defect(DefectKind.EXPERTS_TRANSPOSED, message, name, layer))
        elif not self._fits(info, expected, layer):
            return
        encoding = _float_encoding(info.dtype)
        if encoding is Encoding.OTHER:
            self.unread.append(name)
            return
        yield ExpertTensor(
            info.name,
            layer,
            _parts(sharing),
            n_experts,
            rows,
            columns,
            encoding,
            (_extent(info),),
            not transposed,
        )

    def dense(self, sharing: list[NamedTensor]) -> Iterator[DenseTensor]:
        """Load the checkpoint's dense tensor that holds these named tensors, and note defects of
        its entry.
        """
        source, layer = sharing[0].sources[0], layer_of(sharing[0].gguf)
        info = self._take(source.name, layer)
        if info is None or not self._fits(info, source.shape, layer):
            return
        encoding = _float_encoding(info.dtype)
        if encoding is Encoding.OTHER:
            self.unread.append(info.name)
            return
        role = role_of(sharing[0].gguf)
        if len(sharing) > 1:
            role = GATE_UP_BIAS
        yield DenseTensor(info.name, layer, role, info.shape, encoding, _extent(info))

    def unknown(self) -> Iterator[Defect]:
        """List, once the checkpoint is loaded, the tensors that the loader did not use, each as a
        defect.
        """
        for name, info in self._tensors.items():
            if name not in self._taken:
                yield Defect(
                    DefectKind.TENSOR_UNKNOWN,
                    f"{info.dtype} {info.shape}",
                    name,
                    file=info.file.name,
                )

    def _take(self, name: str, layer: int | None) -> TensorInfo | None:
        self._taken.add(name)
        info = self._tensors.get(name)
        if info is None:
            self.defects.append(Defect(DefectKind.TENSOR_MISSING, "not in any shard", name, layer))
        return info

    def _fits(
        self, info: TensorInfo, shape: tuple[int, ...], layer: int | None, dtype: str | None = None
    ) -> bool:
        if info.shape == shape and (dtype is None or info.dtype == dtype):
            return True
        self.unread.append(info.name)
        wanted = f"{dtype or 'floats'} {shape}"
        self.defects.append(
            Defect(
                DefectKind.TENSOR_SHAPE,
                f"{info.dtype} {info.shape}; {wanted} is expected",
                info.name,
                layer,
                file=info.file.name,
            )
        )
        return False


def _parts(sharing: list[NamedTensor]) -> tuple[Part, ...]:
    return tuple(part_of(named.gguf) for named in sharing)


def _expert_shape(sharing: list[NamedTensor]) -> tuple[int, int, int]:
    """Return experts, rows and columns of the tensor that holds these parts, one row per output."""
    n_experts, rows, columns = sharing[0].shape
    return n_experts, rows * len(sharing), columns


def _files(located: Iterable[TensorInfo] | Iterable[GgufTensor]) -> tuple[ByteSource, ...]:
    return tuple(dict.fromkeys(it.file for it in located))


def _extent(info: TensorInfo) -> Extent:
    return Extent(info.file, info.offset, info.nbytes)


# --- a GGUF -----------------------------------------------------------------------------------


def _open_gguf(path: Path) -> Model:
    file = GgufFile.open(path)
    hparams = HParams.from_gguf(_completed(file), str(path))
    stored = split_fused_qkv(file.tensors, hparams)
    defects = list(_key_defects(file))
    experts: list[ExpertTensor] = []
    dense: list[DenseTensor] = []
    unread: list[str] = []
    known = set()
    for named in tensors(hparams):
        known.add(named.gguf)
        tensor = stored.get(named.gguf)
        defects += _defects(named, tensor)
        if tensor is None:
            continue
        encoding = encoding_of(tensor.type)
        if tensor.shape != named.ggml_shape or encoding is Encoding.OTHER:
            unread.append(tensor.name)
            continue
        extent = Extent(tensor.file, tensor.offset, tensor.nbytes)
        layer = layer_of(named.gguf)
        if named.role is TensorRole.EXPERTS:
            n, rows, columns = named.shape
            parts = (part_of(named.gguf),)
            experts.append(
                ExpertTensor(tensor.name, layer or 0, parts, n, rows, columns, encoding, (extent,))
            )
        else:
            role = role_of(named.gguf)
            dense.append(DenseTensor(tensor.name, layer, role, named.shape, encoding, extent))
    defects += [
        Defect(DefectKind.TENSOR_UNKNOWN, f"{tensor.type.name} {tensor.shape}", name)
        for name, tensor in stored.items()
        if name not in known
    ]
    return Model(
        path,
        None,
        hparams,
        file.metadata,
        tuple(experts),
        tuple(dense),
        tuple(defects),
        tuple(unread),
        _files(file.tensors.values()),
    )


def _completed(file: GgufFile) -> dict[str, Any]:
    """Complete a GGUF's metadata for loading: keys that are missing or wrong get the published or
    only possible value.

    Each such key is reported as a defect elsewhere.
    """
    only = {
        key: rule.only
        for key, rule in llama_cpp_keys.KEYS.items()
        if rule.only is not None and key != "general.architecture"
    }
    metadata: dict[str, Any] = {**published.ROPE_KEYS, **file.metadata, **only}
    embedding = file.tensors.get("token_embd.weight")
    if "tokenizer.ggml.tokens" not in metadata and embedding is not None:
        metadata["tokenizer.ggml.tokens"] = range(embedding.shape[-1])
    return metadata


def _key_defects(file: GgufFile) -> Iterator[Defect]:
    """Check the metadata keys of the GGUF that is being loaded, against the published models and
    llama.cpp's rules, and yield a defect for each that is wrong.
    """
    problems = {problem.key: problem for problem in llama_cpp_keys.find_problems(file)}
    for key, value in published.ROPE_KEYS.items():
        found = file.metadata.get(key)
        if found is None:
            yield Defect(DefectKind.ROPE_MISSING, "the key is missing", key)
        elif found != value:
            kind = DefectKind.ROPE_TYPE if key in problems else DefectKind.ROPE_UNUSUAL
            shown = llama_cpp_keys.show(found)
            yield Defect(kind, f"{shown}; the published models have {value!r}", key)
        else:
            continue
        problems.pop(key, None)
    for key, problem in problems.items():
        of_vocabulary = key.startswith("tokenizer.")
        kind = DefectKind.VOCABULARY if of_vocabulary else DefectKind.KEY_UNUSABLE
        yield Defect(kind, f"{problem.found}; expected {problem.expected}", key)


def _defects(named: NamedTensor, tensor: GgufTensor | None) -> Iterator[Defect]:
    """Check one tensor of the GGUF that is being loaded, and yield a defect if it is missing, has
    another shape, or cannot be computed by llama.cpp.
    """
    layer = layer_of(named.gguf)
    if tensor is None:
        yield Defect(DefectKind.TENSOR_MISSING, "not in the file", named.gguf, layer)
        return
    if tensor.shape != named.ggml_shape:
        message = f"shape {tensor.shape}; expected {named.ggml_shape}"
        yield Defect(DefectKind.TENSOR_SHAPE, message, named.gguf, layer)
    if tensor.type not in llama_cpp_types.computable_types(named):
        yield Defect(DefectKind.TENSOR_UNUSABLE, f"type {tensor.type.name}", named.gguf, layer)
    if tensor.gap:
        message = f"{tensor.gap} unused bytes before it"
        yield Defect(DefectKind.TENSOR_UNUSABLE, message, named.gguf, layer)
