"""A checkpoint or a GGUF behind one face, opened to be looked into whatever is wrong with it.

What makes a file unreadable (a damaged header, another architecture, sizes that contradict each
other) is an error. What a sound file may still get wrong is a finding: tensors that are missing,
unknown or misshapen, and positional settings that are left out, for which the published models'
are then taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gguf.constants import GGMLQuantizationType

from gptoss.errors import CheckpointError, GgufError, InvalidFileError
from gptoss.formats import openai_layout
from gptoss.formats.checkpoint import CONFIG, INDEX, Checkpoint, read_config
from gptoss.formats.gguf import GgufFile, GgufTensor
from gptoss.formats.hparams import HParams
from gptoss.formats.safetensors import TensorInfo
from gptoss.formats.tensor_map import NamedTensor, TensorRole, tensors
from gptoss.quant.audit.findings import Finding, FindingKind, Severity
from gptoss.quant.model.tensors import (
    GATE_UP_BIAS,
    DenseTensor,
    Encoding,
    ExpertTensor,
    Extent,
    Model,
    layer_of,
    part_of,
    role_of,
    stamp_of,
)


def open_model(path: Path) -> Model:
    """Open a checkpoint's folder or a GGUF file.

    Raises ``InvalidFileError`` when it is unreadable, ``UnsupportedModelError`` when it is no gpt-oss model.
    """
    if path.is_dir():
        return _open_checkpoint(path)
    if (path.suffix == ".safetensors" or path.name in (CONFIG, INDEX)) and path.is_file():
        raise CheckpointError(f"{path}: is one file of a checkpoint; name the folder it is in")
    return _open_gguf(path)


# --- a checkpoint -----------------------------------------------------------------------------


def _open_checkpoint(folder: Path) -> Model:
    config = read_config(folder)
    defaults = {} if openai_layout.is_config(config) else missing_rope(config)
    checkpoint = Checkpoint.open(folder, defaults=defaults)
    paths = {_extent(info).path for info in checkpoint.tensors.values()}
    stamps = _stamps(paths, CheckpointError)
    findings = [
        Finding(FindingKind.ROPE_MISSING, Severity.ERROR, f"{key} is missing", key)
        for key in defaults
    ]
    found = _Found(checkpoint.tensors)
    experts: list[ExpertTensor] = []
    dense: list[DenseTensor] = []
    for sharing in _by_source(checkpoint.hparams).values():
        if sharing[0].role is TensorRole.EXPERTS:
            experts += found.experts(sharing)
        else:
            dense += found.dense(sharing)
    return Model(
        folder,
        checkpoint.tokenizer,
        checkpoint.hparams,
        checkpoint.config,
        tuple(experts),
        tuple(dense),
        (*findings, *found.findings, *found.unknown()),
        tuple(found.unread),
        CheckpointError,
        stamps,
    )


def missing_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The positional settings that a config leaves out, with the published models' values."""
    given = [config.get(key) for key in ("rope_parameters", "rope_scaling")]
    missing: dict[str, Any] = {}
    if all(it is None for it in given):
        missing["rope_scaling"] = dict(_YARN)
    thetas = [config.get("rope_theta")]
    thetas += [it.get("rope_theta") for it in given if isinstance(it, Mapping)]
    if all(theta is None for theta in thetas):
        missing["rope_theta"] = 150000.0
    return missing


_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
}
"""The published models' ``rope_scaling``."""


def _by_source(hparams: HParams) -> dict[str, list[NamedTensor]]:
    """The model's tensors by the checkpoint's tensor that holds them; gate before up."""
    by_source: dict[str, list[NamedTensor]] = {}
    for named in tensors(hparams):
        by_source.setdefault(named.sources[0].name, []).append(named)
    return by_source


_FLOATS = {"BF16": Encoding.BF16, "F16": Encoding.F16, "F32": Encoding.F32}


class _Found:
    """A checkpoint's tensors as they are taken up, and what is wrong with them."""

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        self._tensors = tensors
        self._taken: set[str] = set()
        self.findings: list[Finding] = []
        self.unread: list[str] = []

    def experts(self, sharing: list[NamedTensor]) -> Iterator[ExpertTensor]:
        """The tensor of MXFP4 blocks, or of floats, that holds these parts."""
        first = sharing[0]
        layer = layer_of(first.gguf) or 0
        n_experts, rows, columns = first.shape
        rows *= len(sharing)
        parts = tuple(part_of(named.gguf) for named in sharing)
        base = first.sources[0].name.removesuffix("_blocks")
        if base in self._tensors:
            info = self._take(base, layer)
            if info is None:
                return
            encoding = _FLOATS.get(info.dtype, Encoding.OTHER)
            turned = info.shape == (n_experts, rows, columns) and rows != columns
            if turned:
                self.findings.append(
                    Finding(
                        FindingKind.EXPERTS_TRANSPOSED,
                        Severity.ERROR,
                        f"shape {info.shape}; {(n_experts, columns, rows)} is expected",
                        base,
                        layer,
                    )
                )
            elif not self._fits(info, (n_experts, columns, rows), layer):
                return
            if encoding is Encoding.OTHER:
                self.unread.append(base)
                return
            yield ExpertTensor(
                info.name,
                layer,
                parts,
                n_experts,
                rows,
                columns,
                encoding,
                (_extent(info),),
                not turned,
            )
            return
        infos = [self._take(source.name, layer) for source in first.sources]
        if None in infos:
            return
        whole = [info for info in infos if info is not None]
        if all(
            self._fits(info, source.shape, layer, source.dtype)
            for info, source in zip(whole, first.sources, strict=True)
        ):
            yield ExpertTensor(
                whole[0].name.removesuffix("_blocks").removesuffix(".blocks"),
                layer,
                parts,
                n_experts,
                rows,
                columns,
                Encoding.MXFP4_HF,
                tuple(_extent(info) for info in whole),
            )

    def dense(self, sharing: list[NamedTensor]) -> Iterator[DenseTensor]:
        """The tensor of floats that holds these."""
        source, layer = sharing[0].sources[0], layer_of(sharing[0].gguf)
        info = self._take(source.name, layer)
        if info is None or not self._fits(info, source.shape, layer):
            return
        encoding = _FLOATS.get(info.dtype)
        if encoding is None:
            self.unread.append(info.name)
            return
        role = role_of(sharing[0].gguf)
        if len(sharing) > 1:
            role = GATE_UP_BIAS
        yield DenseTensor(info.name, layer, role, info.shape, encoding, _extent(info))

    def unknown(self) -> Iterator[Finding]:
        """Tensors that nothing took up."""
        for name, info in self._tensors.items():
            if name not in self._taken:
                yield Finding(
                    FindingKind.TENSOR_UNKNOWN,
                    Severity.ERROR,
                    f"{info.dtype} {info.shape}",
                    name,
                    file=info.path.name,
                )

    def _take(self, name: str, layer: int | None) -> TensorInfo | None:
        self._taken.add(name)
        info = self._tensors.get(name)
        if info is None:
            self.findings.append(
                Finding(FindingKind.TENSOR_MISSING, Severity.ERROR, "not in any shard", name, layer)
            )
        return info

    def _fits(
        self, info: TensorInfo, shape: tuple[int, ...], layer: int | None, dtype: str | None = None
    ) -> bool:
        if info.shape == shape and (dtype is None or info.dtype == dtype):
            return True
        self.unread.append(info.name)
        wanted = f"{dtype or 'floats'} {shape}"
        self.findings.append(
            Finding(
                FindingKind.TENSOR_SHAPE,
                Severity.ERROR,
                f"{info.dtype} {info.shape}; {wanted} is expected",
                info.name,
                layer,
                file=info.path.name,
            )
        )
        return False


def _extent(info: TensorInfo) -> Extent:
    return Extent(Path(str(info.path)), info.offset, info.nbytes)


def _stamps(paths: set[Path], error: type[InvalidFileError]) -> dict[Path, tuple[int, int]]:
    return {path: stamp_of(path, error) for path in sorted(paths)}


# --- a GGUF -----------------------------------------------------------------------------------

ROPE_KEYS: dict[str, str | int | float] = {
    "gpt-oss.rope.freq_base": 150000.0,
    "gpt-oss.rope.scaling.type": "yarn",
    "gpt-oss.rope.scaling.factor": 32.0,
    "gpt-oss.rope.scaling.original_context_length": 4096,
}
"""Keys without which llama.cpp computes other positions, and the published models' values."""


def _encoding(kind: GGMLQuantizationType) -> Encoding:
    if kind is GGMLQuantizationType.MXFP4:
        return Encoding.MXFP4_GGML
    return Encoding(kind.name) if kind.name in [*Encoding] else Encoding.OTHER


def _open_gguf(path: Path) -> Model:
    file = GgufFile.open(path)
    stamps = _stamps(set(file.paths), GgufError)
    hparams = HParams.from_gguf(_completed(file), str(path))
    findings = list(_rope_findings(file.metadata))
    experts: list[ExpertTensor] = []
    dense: list[DenseTensor] = []
    unread: list[str] = []
    known = set()
    for named in tensors(hparams):
        known.add(named.gguf)
        tensor = file.tensors.get(named.gguf)
        problem = _problem(named, tensor)
        findings += problem
        if tensor is None:
            continue
        encoding = _encoding(tensor.type)
        if tensor.shape != named.ggml_shape or encoding is Encoding.OTHER:
            unread.append(tensor.name)
            continue
        extent = Extent(tensor.path, tensor.offset, tensor.nbytes)
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
    findings += [
        Finding(
            FindingKind.TENSOR_UNKNOWN, Severity.ERROR, f"{tensor.type.name} {tensor.shape}", name
        )
        for name, tensor in file.tensors.items()
        if name not in known
    ]
    return Model(
        path,
        None,
        hparams,
        file.metadata,
        tuple(experts),
        tuple(dense),
        tuple(findings),
        tuple(unread),
        GgufError,
        stamps,
    )


def _completed(file: GgufFile) -> dict[str, Any]:
    """The metadata with what can be told otherwise or taken from the published models."""
    metadata: dict[str, Any] = {**file.metadata, **ROPE_KEYS}
    embedding = file.tensors.get("token_embd.weight")
    if "tokenizer.ggml.tokens" not in metadata and embedding is not None:
        metadata["tokenizer.ggml.tokens"] = range(embedding.shape[-1])
    return metadata


def _rope_findings(metadata: Mapping[str, Any]) -> Iterator[Finding]:
    for key, published in ROPE_KEYS.items():
        found = metadata.get(key)
        if found is None:
            yield Finding(FindingKind.ROPE_MISSING, Severity.ERROR, "the key is missing", key)
        elif found != published:
            severity = Severity.ERROR if key.endswith(".type") else Severity.WARNING
            message = f"{found!r}; the published models have {published!r}"
            yield Finding(FindingKind.ROPE_UNUSUAL, severity, message, key)


def _problem(named: NamedTensor, tensor: GgufTensor | None) -> Iterator[Finding]:
    """What is wrong with a tensor's presence, shape or type."""
    layer = layer_of(named.gguf)
    if tensor is None:
        yield Finding(
            FindingKind.TENSOR_MISSING, Severity.ERROR, "not in the file", named.gguf, layer
        )
        return
    if tensor.shape != named.ggml_shape:
        message = f"shape {tensor.shape}; {named.ggml_shape} is expected"
        yield Finding(FindingKind.TENSOR_SHAPE, Severity.ERROR, message, named.gguf, layer)
    if named.role is TensorRole.EXPERTS and tensor.type is not GGMLQuantizationType.MXFP4:
        exact = tensor.type in (GGMLQuantizationType.BF16, GGMLQuantizationType.F32)
        severity = Severity.INFO if exact else Severity.WARNING
        message = f"{tensor.type.name}, not MXFP4"
        yield Finding(FindingKind.EXPERTS_REQUANTIZED, severity, message, named.gguf, layer)
