"""Defects to plant in a model, each with what an audit must say of it and where.

A planter changes the files and returns where the finding must be: part of the tensor's name, and
of its place what is known. Positions are drawn at random.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gptoss.quant import mxfp4
from gptoss.quant.findings import Kind, Severity
from support import safetensors_files
from support.editing import Region, regions

Words = np.ndarray


@dataclass(frozen=True)
class Expected:
    """Where a finding must be; None: anywhere."""

    tensor: str | None = None
    expert: int | None = None
    row: int | None = None
    block: int | None = None
    lane: int | None = None
    index: int | None = None
    file: str | None = None
    offset: range | None = None


@dataclass
class Patient:
    """A model on disk, a checkpoint's folder or a GGUF, and where in it chance points to."""

    path: Path
    rng: np.random.Generator
    layer: int = 0
    tensors: dict[str, Region] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tensors = regions(self.path)

    def pick(self, ending: str) -> tuple[str, Region]:
        """A tensor of a random layer, by the end of its name."""
        names = [name for name in self.tensors if name.endswith(ending)]
        name = names[self.rng.integers(len(names))]
        return name, self.tensors[name]

    def experts(self) -> tuple[str, Region, Region]:
        """A random expert tensor of a checkpoint: its name, blocks and scales."""
        name, blocks = self.pick("_blocks")
        name = name.removesuffix("_blocks")
        return name, blocks, self.tensors[name + "_scales"]

    def all_experts(self) -> list[tuple[Region, Region]]:
        return [
            (region, self.tensors[name.removesuffix("_blocks") + "_scales"])
            for name, region in self.tensors.items()
            if name.endswith("_blocks")
        ]


Plant = Callable[[Patient], Expected]


@dataclass(frozen=True)
class Defect:
    """A way to harm a model, and the finding that must name it."""

    kind: Kind
    severity: Severity
    plant: Plant
    gguf: bool = False
    also: tuple[Kind, ...] = ()
    """What else may be said of it."""

    @property
    def name(self) -> str:
        """For the test's own."""
        return f"{self.plant.__name__}{' in a GGUF' if self.gguf else ''}"


# --- scales -----------------------------------------------------------------------------------


def _one_scale(patient: Patient, byte: int) -> Expected:
    name, blocks, region = patient.experts()
    scales = region.read()
    expert, row, block = (int(patient.rng.integers(n)) for n in scales.shape)
    scales[expert, row, block] = byte
    region.write(scales)
    codes = blocks.read()
    codes[expert, row, block, 0] |= 0x11
    blocks.write(codes)
    return Expected(name, expert, row, block)


def nan_scale(patient: Patient) -> Expected:
    return _one_scale(patient, 255)


def overflowing_scale(patient: Patient) -> Expected:
    return _one_scale(patient, 254)


def subnormal_scale(patient: Patient) -> Expected:
    return _one_scale(patient, int(patient.rng.integers(2)))


def outlying_scale(patient: Patient) -> Expected:
    return _one_scale(patient, 150)


def constant_scales(patient: Patient) -> Expected:
    name, _, region = patient.experts()
    region.write(np.full(region.shape, 121, np.uint8))
    return Expected(name)


def biased_scales(patient: Patient) -> Expected:
    for _, region in patient.all_experts():
        region.write(region.read() + np.uint8(8))
    return Expected()


def numbers_quantized_again(patient: Patient) -> Expected:
    """Decoded as code × byte, then encoded by the standard's rule."""
    for blocks, region in patient.all_experts():
        largest = np.abs(np.array(mxfp4.E2M1))[mxfp4.codes_from_hf(blocks.read())].max(axis=-1)
        exponent = np.floor(np.log2(np.maximum(largest, 0.5) * region.read())) - 2
        region.write((exponent + 127).astype(np.uint8))
    return Expected("_proj")


def scales_as_numbers(patient: Patient) -> Expected:
    """Linear, the largest 254: as other formats have their scales."""
    name, _, region = patient.experts()
    sizes = patient.rng.lognormal(0, 0.4, region.shape)
    region.write((sizes / sizes.max() * 254).astype(np.uint8))
    return Expected(name)


# --- codes ------------------------------------------------------------------------------------


def dead_expert(patient: Patient) -> Expected:
    name, region, _ = patient.experts()
    blocks = region.read()
    expert = int(patient.rng.integers(len(blocks)))
    blocks[expert] = 0
    region.write(blocks)
    return Expected(name, expert)


def zero_rows(patient: Patient) -> Expected:
    name, region, _ = patient.experts()
    blocks = region.read()
    expert = int(patient.rng.integers(len(blocks)))
    blocks[expert, int(patient.rng.integers(blocks.shape[1]))] = 0x80
    region.write(blocks)
    return Expected(name, expert)


def zero_blocks(patient: Patient) -> Expected:
    name, region, _ = patient.experts()
    blocks = region.read()
    mask = patient.rng.random(blocks.shape[:3]) < 0.02
    mask[1:, :, 0] = False
    blocks[mask] = 0
    region.write(blocks)
    return Expected(name)


def saturated_blocks(patient: Patient) -> Expected:
    name, region, _ = patient.experts()
    blocks = region.read()
    mask = patient.rng.random(blocks.shape[:3]) < 0.5
    blocks[mask] |= 0x77
    region.write(blocks)
    return Expected(name)


def _recode(patient: Patient, table: np.ndarray) -> Expected:
    """Replace every code by ``table[code]``."""
    name, region, _ = patient.experts()
    region.write(mxfp4.hf_from_codes(table[mxfp4.codes_from_hf(region.read())]))
    return Expected(name)


def largest_code_lost(patient: Patient) -> Expected:
    table = np.arange(16, dtype=np.uint8)
    table[[7, 15]] = 6, 14
    return _recode(patient, table)


def negative_bias(patient: Patient) -> Expected:
    name, region, _ = patient.experts()
    blocks = region.read()
    mask = patient.rng.random(blocks.shape) < 0.9
    blocks[mask] |= 0x88
    region.write(blocks)
    return Expected(name)


def integers_for_floats(patient: Patient) -> Expected:
    name, region, _ = patient.experts()
    numbers = np.clip(patient.rng.normal(0, 2.5, (*region.shape[:3], 32)).round(), -8, 7)
    region.write(mxfp4.hf_from_codes((numbers.astype(np.int8) & 15).astype(np.uint8)))
    return Expected(name)


def stuck_lane(patient: Patient) -> Expected:
    name, region, _ = patient.experts()
    codes = mxfp4.codes_from_hf(region.read())
    lane = int(patient.rng.integers(32))
    codes[..., lane] &= 0b1110
    region.write(mxfp4.hf_from_codes(codes))
    return Expected(name, lane=lane)


def upper_nibbles_lost(patient: Patient) -> Expected:
    name, region, _ = patient.experts()
    region.write(region.read() & np.uint8(15))
    return Expected(name, lane=1)


# --- tensors against each other ---------------------------------------------------------------


def outlying_layer(patient: Patient) -> Expected:
    name, _, region = patient.experts()
    region.write(region.read() + np.uint8(4))
    return Expected(name)


def outlying_expert(patient: Patient) -> Expected:
    name, _, region = patient.experts()
    scales = region.read()
    expert = int(patient.rng.integers(len(scales)))
    scales[expert] -= np.uint8(4)
    region.write(scales)
    return Expected(name, expert)


def duplicated_expert(patient: Patient) -> Expected:
    name, *both = patient.experts()
    a, b = sorted(patient.rng.choice(both[0].shape[0], 2, replace=False).tolist())
    for region in both:
        array = region.read()
        array[b] = array[a]
        region.write(array)
    return Expected(name, b)


def expert_of_another_layer(patient: Patient) -> Expected:
    names = sorted(name for name in patient.tensors if name.endswith("down_proj_blocks"))
    for ending in ("_blocks", "_scales"):
        source = patient.tensors[names[0].removesuffix("_blocks") + ending].read()
        region = patient.tensors[names[1].removesuffix("_blocks") + ending]
        array = region.read()
        array[2] = source[1]
        region.write(array)
    return Expected(names[1].removesuffix("_blocks"), 2)


# --- corrupt or misread -----------------------------------------------------------------------


def _stretch(patient: Patient, region: Region, data: bytes) -> Expected:
    """Overwrite a stretch of a tensor at whole sectors of the file."""
    nbytes = region.dtype.itemsize * int(np.prod(region.shape))
    first = -(-region.offset // 512)
    last = (region.offset + nbytes - len(data)) // 512
    at = 512 * int(patient.rng.integers(first, last + 1))
    with region.path.open("r+b") as file:
        file.seek(at)
        file.write(data)
    return Expected(file=region.path.name, offset=range(at - 64, at + 64))


def hole(patient: Patient) -> Expected:
    name, region = patient.pick("gate_up_proj_blocks")
    expected = _stretch(patient, region, bytes(2048))
    return Expected(name.removesuffix("_blocks"), file=expected.file, offset=expected.offset)


def hole_of_ones(patient: Patient) -> Expected:
    name, region = patient.pick("gate_up_proj_blocks")
    expected = _stretch(patient, region, b"\xff" * 2048)
    return Expected(name.removesuffix("_blocks"), file=expected.file, offset=expected.offset)


def hole_in_dense(patient: Patient) -> Expected:
    name, region = patient.pick("q_proj.weight")
    expected = _stretch(patient, region, bytes(1024))
    return Expected(name, file=expected.file, offset=expected.offset)


def garbage_in_scales(patient: Patient) -> Expected:
    name, _, region = patient.experts()
    raw = region.read().reshape(-1)
    n = len(raw) // 8
    at = int(patient.rng.integers(len(raw) - n))
    raw[at : at + n] = patient.rng.integers(0, 256, n)
    region.write(raw)
    offset = region.offset + at
    return Expected(name, file=region.path.name, offset=range(offset, offset + 64))


def garbage_in_odd_rows(patient: Patient) -> Expected:
    name, _, region = patient.experts()
    scales = region.read()
    odd = scales[:, 1::2]
    scales[:, 1::2] = patient.rng.integers(0, 256, odd.shape)
    region.write(scales)
    return Expected(name)


def garbage_in_odd_rows_of_an_expert(patient: Patient) -> Expected:
    name, _, region = patient.experts()
    scales = region.read()
    expert = int(patient.rng.integers(len(scales)))
    odd = scales[expert, 1::2]
    odd[:] = patient.rng.integers(0, 256, odd.shape)
    region.write(scales)
    return Expected(name, expert)


def garbage_in_gguf(patient: Patient) -> Expected:
    name, region = patient.pick("_exps.weight")
    expected = _stretch(patient, region, patient.rng.bytes(2048))
    return Expected(name, file=expected.file, offset=expected.offset)


def hole_in_gguf(patient: Patient) -> Expected:
    name, region = patient.pick("_exps.weight")
    expected = _stretch(patient, region, bytes(2048))
    return Expected(name, file=expected.file, offset=expected.offset)


def wrong_stride(patient: Patient) -> Expected:
    """Written as 16 bytes of codes and then the scale: read, a code stands for each scale."""
    name, region = patient.pick("_exps.weight")
    blocks = region.read()
    region.write(np.concatenate([blocks[..., 1:], blocks[..., :1]], axis=-1))
    return Expected(name)


# --- what is not in MXFP4 ---------------------------------------------------------------------


def _bf16(value: float) -> int:
    return int(np.float32(value).view(np.uint32)) >> 16


def _one_value(patient: Patient, ending: str, value: float) -> Expected:
    name, region = patient.pick(ending)
    bits = region.read()
    at = tuple(int(patient.rng.integers(n)) for n in bits.shape)
    bits[at] = _bf16(value)
    region.write(bits)
    row = at[0] if len(at) == 2 else None
    return Expected(name, row=row, index=at[-1])


def infinite_weight(patient: Patient) -> Expected:
    return _one_value(patient, "self_attn.k_proj.weight", float("inf"))


def nan_in_norm(patient: Patient) -> Expected:
    return _one_value(patient, "input_layernorm.weight", float("nan"))


def nan_in_sinks(patient: Patient) -> Expected:
    return _one_value(patient, "self_attn.sinks", float("nan"))


def huge_weight(patient: Patient) -> Expected:
    expected = _one_value(patient, "lm_head.weight", 1e20)
    return Expected(expected.tensor)


def zero_matrix(patient: Patient) -> Expected:
    name, region = patient.pick("o_proj.weight")
    region.write(np.zeros(region.shape, region.dtype))
    return Expected(name)


def silent_norm(patient: Patient) -> Expected:
    name, region = patient.pick("post_attention_layernorm.weight")
    region.write(np.full(region.shape, _bf16(1e-6), region.dtype))
    return Expected(name)


def greedy_sink(patient: Patient) -> Expected:
    return _one_value(patient, "self_attn.sinks", 5000)


def loud_router(patient: Patient) -> Expected:
    name, region = patient.pick("router.weight")
    bits = region.read()
    expert = int(patient.rng.integers(len(bits)))
    bits[expert] = _bf16(2000)
    region.write(bits)
    return Expected(name, expert)


def router_that_forgot_an_expert(patient: Patient) -> Expected:
    name, region = patient.pick("router.weight")
    bits = region.read()
    expert = int(patient.rng.integers(len(bits)))
    bits[expert] = 0
    region.write(bits)
    return Expected(name, expert)


def router_that_shuns_an_expert(patient: Patient) -> Expected:
    name, region = patient.pick("router.bias")
    bits = region.read()
    expert = int(patient.rng.integers(len(bits)))
    bits[expert] = _bf16(-1000)
    region.write(bits)
    return Expected(name, expert)


def router_with_two_rows_alike(patient: Patient) -> Expected:
    name, region = patient.pick("router.weight")
    bits = region.read()
    bits[3] = bits[1]
    region.write(bits)
    return Expected(name, 3)


# --- tensors and keys as a whole --------------------------------------------------------------


def missing_tensor(patient: Patient) -> Expected:
    name, region = patient.pick("self_attn.sinks")
    contents = safetensors_files.load(region.path)
    del contents[name]
    safetensors_files.save(region.path, contents)
    return Expected(name)


def unmerged_adapter(patient: Patient) -> Expected:
    _, region = patient.pick("q_proj.weight")
    contents = safetensors_files.load(region.path)
    name = "base_model.model.layers.0.self_attn.q_proj.lora_A.weight"
    contents[name] = ("BF16", [2, 4], bytes(16))
    safetensors_files.save(region.path, contents)
    return Expected(name)


def misshapen_tensor(patient: Patient) -> Expected:
    name, region = patient.pick("k_proj.weight")
    contents = safetensors_files.load(region.path)
    dtype, shape, raw = contents[name]
    contents[name] = (dtype, shape[::-1], raw)
    safetensors_files.save(region.path, contents)
    return Expected(name)


def _config(patient: Patient, change: Callable[[dict[str, object]], object]) -> None:
    path = patient.path / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def config_without_rope(patient: Patient) -> Expected:
    _config(patient, lambda config: config.pop("rope_parameters"))
    return Expected("rope_scaling")


def ends_without_return(patient: Patient) -> Expected:
    path = patient.path / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [3, 4]}))
    return Expected("generation_config.json")


def another_split(patient: Patient) -> Expected:
    path = patient.path / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\s+"
    path.write_text(json.dumps(tokenizer))
    return Expected("tokenizer.json")


def _header(patient: Patient, old: bytes, new: bytes) -> None:
    raw = patient.path.read_bytes()
    assert raw.count(old) == 1
    patient.path.write_bytes(raw.replace(old, new))


def key_lost(patient: Patient) -> Expected:
    keys = ("freq_base", "scaling.factor", "scaling.type", "scaling.original_context_length")
    key = "gpt-oss.rope." + keys[patient.rng.integers(len(keys))]
    name = len(key).to_bytes(8, "little") + key.encode()
    _header(patient, name, name[:-1] + b"?")
    return Expected(key)


def template_lost(patient: Patient) -> Expected:
    _header(patient, b"tokenizer.chat_template", b"tokenizer.chat_templatX")
    return Expected("tokenizer.chat_template")


def end_token_lost(patient: Patient) -> Expected:
    _header(patient, b"<|return|>", b"<|returX|>")
    return Expected("tokenizer.ggml.tokens")


def another_end(patient: Patient) -> Expected:
    """The file says that a reply ends at another token."""
    key = b"tokenizer.ggml.eos_token_id"
    raw = patient.path.read_bytes()
    at = raw.index(key) + len(key) + 4
    patient.path.write_bytes(raw[:at] + (263).to_bytes(4, "little") + raw[at + 4 :])
    return Expected(key.decode())


def controls_as_words(patient: Patient) -> Expected:
    """All tokens are said to be words, so a text can spell a turn."""
    key = b"tokenizer.ggml.token_type"
    raw = patient.path.read_bytes()
    at = raw.index(key) + len(key) + 8
    n = int.from_bytes(raw[at : at + 8], "little")
    types = np.ones(n, "<i4").tobytes()
    patient.path.write_bytes(raw[: at + 8] + types + raw[at + 8 + len(types) :])
    return Expected(key.decode())


def another_pre_tokenizer(patient: Patient) -> Expected:
    _header(patient, b"gpt-4o", b"llama3")
    return Expected("tokenizer.ggml.pre")


_E, _W = Severity.ERROR, Severity.WARNING
_OUTLIERS = (Kind.EXPERT_OUTLIER, Kind.LAYER_OUTLIER)
_GARBAGE = (
    *_OUTLIERS,
    Kind.SCALE_NAN,
    Kind.SCALE_OVERFLOW,
    Kind.SCALE_OUTLIER,
    Kind.SCALE_SUBNORMAL,
    Kind.STUCK_LANE,
    Kind.SATURATED_BLOCKS,
)

DEFECTS = (
    Defect(Kind.SCALE_NAN, _E, nan_scale),
    Defect(Kind.SCALE_OVERFLOW, _E, overflowing_scale, also=_OUTLIERS),
    Defect(Kind.SCALE_SUBNORMAL, _W, subnormal_scale),
    Defect(Kind.SCALE_OUTLIER, _E, outlying_scale, also=_OUTLIERS),
    Defect(Kind.SCALE_CONSTANT, _E, constant_scales),
    Defect(Kind.SCALE_BIAS, _E, biased_scales),
    Defect(Kind.SCALE_LINEAR, _E, numbers_quantized_again, also=(Kind.SCALE_BIAS,)),
    Defect(Kind.SCALE_LINEAR, _E, scales_as_numbers, also=_OUTLIERS),
    Defect(Kind.DEAD_EXPERT, _E, dead_expert),
    Defect(Kind.ZERO_ROWS, _W, zero_rows),
    Defect(Kind.ZERO_BLOCKS, _W, zero_blocks),
    Defect(Kind.SATURATED_BLOCKS, _E, saturated_blocks),
    Defect(Kind.CODE_UNUSED, _E, largest_code_lost),
    Defect(Kind.CODE_SKEW, _E, negative_bias),
    Defect(Kind.CODE_INT4, _E, integers_for_floats),
    Defect(Kind.STUCK_LANE, _E, stuck_lane),
    Defect(Kind.STUCK_LANE, _E, upper_nibbles_lost),
    Defect(Kind.LAYER_OUTLIER, _W, outlying_layer),
    Defect(Kind.EXPERT_OUTLIER, _W, outlying_expert),
    Defect(Kind.DUPLICATE_EXPERT, _E, duplicated_expert),
    Defect(Kind.DUPLICATE_EXPERT, _E, expert_of_another_layer),
    Defect(Kind.HOLE, _E, hole, also=(Kind.ZERO_ROWS,)),
    Defect(Kind.HOLE, _E, hole_of_ones, also=(Kind.SATURATED_BLOCKS,)),
    Defect(Kind.HOLE, _E, hole_in_dense),
    Defect(Kind.HOLE, _E, hole_in_gguf, gguf=True, also=(Kind.ZERO_ROWS, Kind.SCALE_SUBNORMAL)),
    Defect(Kind.CORRUPT_REGION, _E, garbage_in_scales, also=_GARBAGE),
    Defect(Kind.CORRUPT_REGION, _E, garbage_in_gguf, gguf=True, also=_GARBAGE),
    Defect(Kind.MISREAD, _E, garbage_in_odd_rows, also=_GARBAGE),
    Defect(Kind.MISREAD, _E, garbage_in_odd_rows_of_an_expert, also=_GARBAGE),
    Defect(Kind.MISREAD, _E, wrong_stride, gguf=True, also=_GARBAGE),
    Defect(Kind.NOT_FINITE, _E, infinite_weight),
    Defect(Kind.NOT_FINITE, _E, nan_in_norm),
    Defect(Kind.NOT_FINITE, _E, nan_in_sinks),
    Defect(Kind.DENSE_HUGE, _E, huge_weight),
    Defect(Kind.DENSE_ZERO, _E, zero_matrix),
    Defect(Kind.NORM_RANGE, _W, silent_norm),
    Defect(Kind.SINK_RANGE, _E, greedy_sink),
    Defect(Kind.ROUTER_RANGE, _E, loud_router),
    Defect(Kind.DEAD_ROUTE, _W, router_that_forgot_an_expert),
    Defect(Kind.DEAD_ROUTE, _W, router_that_shuns_an_expert),
    Defect(Kind.DUPLICATE_ROUTE, _W, router_with_two_rows_alike),
    Defect(Kind.TENSOR_MISSING, _E, missing_tensor),
    Defect(Kind.TENSOR_UNKNOWN, _E, unmerged_adapter),
    Defect(Kind.TENSOR_SHAPE, _E, misshapen_tensor),
    Defect(Kind.ROPE_MISSING, _E, config_without_rope),
    Defect(Kind.ROPE_MISSING, _E, key_lost, gguf=True),
    Defect(Kind.TEMPLATE_MISSING, _W, template_lost, gguf=True),
    Defect(Kind.EOG_MISSING, _E, ends_without_return),
    Defect(Kind.EOG_MISSING, _E, end_token_lost, gguf=True),
    Defect(Kind.EOG_MISSING, _E, another_end, gguf=True),
    Defect(Kind.VOCABULARY, _E, another_split),
    Defect(Kind.VOCABULARY, _E, controls_as_words, gguf=True),
    Defect(Kind.VOCABULARY, _E, another_pre_tokenizer, gguf=True),
)
