"""Planning: pure, complete, and by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gptoss.converter.convert import plan
from gptoss.converter.dense_types import Dense, DenseTypes
from gptoss.converter.gguf.split import NO_KEYS, lay_out
from gptoss.converter.load import Opened
from gptoss.converter.options import ConvertOptions
from gptoss.converter.plan import Plan, plan_tensors
from gptoss.errors import CheckpointError, OptionError
from gptoss.formats.byte_source import Buffer
from gptoss.formats.checkpoint import Checkpoint
from gptoss.formats.hparams import HParams
from gptoss.formats.safetensors import TensorInfo
from gptoss.formats.tensor_map import hf_tensors
from support.checkpoints import GPT_OSS_20B, random_checkpoint

Tensors = dict[str, TensorInfo]
BLOCKS = "model.layers.5.mlp.experts.down_proj_blocks"
DOWN = "model.layers.5.mlp.experts.down_proj"
SCALES = "model.layers.5.mlp.experts.down_proj_scales"


class Paper:
    """The bytes of no file: planning reads none."""

    name, size, stamp = "model.safetensors", 0, ""

    def __str__(self) -> str:
        return self.name

    def read_into(self, offset: int, out: Buffer) -> None:
        raise AssertionError(f"read at {offset} into {out!r}")

    def check_unchanged(self) -> None: ...
    def close(self) -> None: ...


PAPER = Paper()


def planned_of(checkpoint: Checkpoint, **options: Any) -> Plan:
    opened = Opened(checkpoint, checkpoint.check_tensors(), {}, {}, (), ())
    return plan_tensors(opened, ConvertOptions(**options))


def on_paper(hparams: HParams) -> Checkpoint:
    """A model as names and shapes: planning needs no bytes."""
    tensors, at = {}, 0
    for name, tensor in hf_tensors(hparams).items():
        nbytes = 2 if tensor.dtype == "BF16" else 1
        for n in tensor.shape:
            nbytes *= n
        tensors[name] = TensorInfo(name, tensor.dtype, tensor.shape, PAPER, at, nbytes)
        at += nbytes
    return Checkpoint(Path("gpt-oss"), Path("gpt-oss"), {}, hparams, tensors)


@pytest.fixture(scope="module")
def twenty() -> Checkpoint:
    return on_paper(GPT_OSS_20B)


def test_the_20b_model(twenty: Checkpoint) -> None:
    planned = planned_of(twenty)
    types = [tensor.dtype for tensor in planned.tensors]
    assert planned.dense == DenseTypes(Dense.Q8_0, Dense.Q8_0, Dense.Q8_0)
    assert types.count("MXFP4") == 3 * 24
    assert types.count("Q8_0") == 4 * 24 + 2
    assert types.count("F32") == 459 - 7 * 24 - 2
    # The published file has 12,109,566,624 bytes, 13 million of them header.
    assert 0 < 12_109_566_624 - planned.nbytes < 20_000_000


ODD_SIZED = replace(
    GPT_OSS_20B, num_attention_heads=3, num_key_value_heads=1, num_local_experts=5, vocab_size=7
)
"""Tensors whose bytes are no multiple of the alignment."""


@pytest.mark.parametrize("hparams", [GPT_OSS_20B, ODD_SIZED], ids=["20b", "odd"])
@pytest.mark.parametrize("dense", list(Dense))
def test_tensors_lie_aligned_one_after_the_other(hparams: HParams, dense: Dense) -> None:
    planned = planned_of(on_paper(hparams), dense=dense)
    [file] = lay_out(planned.tensors, NO_KEYS, "out.gguf")
    at = len(file.header)
    for tensor, offset in zip(file.tensors, file.offsets, strict=True):
        assert offset == at
        assert offset % 32 == 0
        at += -(-tensor.nbytes // 32) * 32
        units = tensor.nbytes // tensor.transform.writes
        assert units * tensor.transform.writes == tensor.nbytes
        for source, size in zip(tensor.sources, tensor.transform.reads, strict=True):
            assert units * size == source.nbytes
    assert at == file.nbytes == len(file.header) + planned.nbytes


def test_the_order_of_arrival_does_not_matter(twenty: Checkpoint) -> None:
    backwards = replace(twenty, tensors=dict(reversed(list(twenty.tensors.items()))))
    for a, b in zip(planned_of(twenty).tensors, planned_of(backwards).tensors, strict=True):
        assert (a.name, a.sources) == (b.name, b.sources)


def test_a_dense_type_that_is_none() -> None:
    for refused in ("q4", "Q8_0", "mxfp4", "", None):
        with pytest.raises(
            OptionError, match="there are q8_0, bf16, f16, f32, q5_1, q5_0, q4_1, q4"
        ):
            ConvertOptions(dense=refused)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no dense type is called 'q4'"):
        ConvertOptions(types={"output": "q4"})
    with pytest.raises(ValueError, match="called 'head'; attention, embedding, output are"):
        ConvertOptions(types={"head": "q4_0"})


def test_types_by_group(twenty: Checkpoint) -> None:
    planned = planned_of(twenty, dense="bf16", types={"embedding": "q4_0", "output": "q5_1"})
    types = {tensor.name: tensor.dtype for tensor in planned.tensors}
    assert [types[name] for name in ("token_embd.weight", "output.weight")] == ["Q4_0", "Q5_1"]
    assert {types[f"blk.7.attn_{x}.weight"] for x in ("q", "k", "v", "output")} == {"BF16"}
    assert types["blk.7.ffn_gate_exps.weight"] == "MXFP4"


def test_the_plan_of_a_folder(tmp_path: Path) -> None:
    folder = random_checkpoint(tmp_path / "source")
    names = [tensor.name for tensor in plan(folder).tensors]
    assert names == [tensor.name for tensor in plan(str(folder), ConvertOptions()).tensors]
    assert names == [tensor.name for tensor in planned_of(Checkpoint.open(folder)).tensors]


def without(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(name)


def changed(name: str, **fields: object) -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        tensors[name] = replace(tensors[name], **fields)  # type: ignore[arg-type]

    return change


def added(name: str) -> Callable[[Tensors], object]:
    def add(tensors: Tensors) -> None:
        tensors[name] = replace(tensors[BLOCKS], name=name)

    return add


def in_bf16(*without: str, **fields: object) -> Callable[[Tensors], object]:
    def add(tensors: Tensors) -> None:
        info = replace(tensors[BLOCKS], name=DOWN, dtype="BF16", shape=(32, 2880, 2880))
        tensors[DOWN] = replace(info, **fields)  # type: ignore[arg-type]
        for name in without:
            del tensors[name]

    return add


in_both_forms = in_bf16()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("lm_head.weight"), "missing tensor 'lm_head.weight'$"),
        (without(SCALES), f"missing tensor '{SCALES}', the partner of '{BLOCKS}'"),
        (without(BLOCKS), f"missing tensor '{BLOCKS}', the partner of '{SCALES}'"),
        (in_both_forms, f"holds both '{DOWN}' and '{BLOCKS}'; remove one"),
        (in_bf16(BLOCKS, SCALES, dtype="U8"), f"'{DOWN}' is U8; expected BF16"),
        (in_bf16(BLOCKS, SCALES, shape=(32, 2880, 90)), r"config.json implies \(32, 2880, 2880"),
        (added("model.layers.24.self_attn.sinks"), "unknown tensor 'model.layers.24.self_attn.si"),
        (added("model.rotary_emb.inv_freq"), "unknown tensor 'model.rotary_emb.inv_freq'"),
        (changed(BLOCKS, dtype="I8"), f"'{BLOCKS}' is I8; expected U8"),
        (changed("model.norm.weight", dtype="I16"), "'model.norm.weight' is I16; expected BF16"),
        (changed("model.norm.weight", shape=(2881,)), r"\(2881,\); config.json implies \(28"),
        (changed(BLOCKS, shape=(32, 2880, 1440)), r"config.json implies \(32, 2880, 90, 16"),
        (changed("lm_head.weight", shape=(2880, 201088)), "implies .201088, 2880"),
    ],
)
def test_checkpoints_that_do_not_fit(
    twenty: Checkpoint, damage: Callable[[Tensors], object], message: str
) -> None:
    tensors = dict(twenty.tensors)
    damage(tensors)
    with pytest.raises(CheckpointError, match=message):
        replace(twenty, tensors=tensors).check_tensors()
