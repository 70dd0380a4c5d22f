"""Fine-tunes in floats: proven in every form, and no code or scale escapes that should not be."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from gptoss.converter.convert import convert
from gptoss.formats.checkpoint import Checkpoint
from gptoss.formats.gguf import GgufFile
from gptoss.quant import mxfp4
from gptoss.quant.diff.differ import diff
from gptoss.quant.location import Location
from gptoss.quant.verify.pairing import pair_tensors
from gptoss.quant.verify.result import Outcome
from gptoss.quant.verify.verifier import verify
from support import forms, ggufs
from support.checkpoints import random_checkpoint
from support.commands import Command
from support.editing import regions, retype
from support.mxfp4_blocks import blocks_of
from support.mxfp4_twins import (
    twin_code,
)
from support.planted import Copy

in_pieces = pytest.mark.usefixtures("piece")
"""Once with files read in large pieces, once in small ones."""
Tuned = Callable[[str], Path]

GATE_UP, DOWN = (f"model.layers.1.mlp.experts.{name}_proj" for name in ("gate_up", "down"))
COLUMNS = {"gate": 96, "up": 96, "down": 64}
ROWS = {"gate": 64, "up": 64, "down": 96}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(
        tmp_path_factory.mktemp("published"), hidden=96, intermediate=64, heads=3, kv_heads=3
    )


@pytest.fixture(scope="module")
def tuned(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """A fine-tune saved in a dtype, made once; nobody changes it."""

    @cache
    def tuned(dtype: str) -> Path:
        return fine_tune(published, tmp_path_factory.mktemp(dtype) / "source", dtype)

    return tuned


def fine_tune(published: Path, folder: Path, dtype: str, **how: tuple[str, ...]) -> Path:
    """Of which the experts of one layer are no longer on MXFP4's grid."""
    made = forms.to_floats(published, folder, dtype, **how)
    rng = np.random.default_rng(0)

    def nudge(values: NDArray[np.float32]) -> None:
        values *= rng.uniform(0.8, 1.2, values.shape).astype(np.float32)

    for name in (GATE_UP, DOWN):
        forms.change(made, name, nudge)
    return made


@in_pieces
@pytest.mark.parametrize("experts", ["mxfp4", "bf16"])
@pytest.mark.parametrize(
    ("dtype", "dense"),
    [("BF16", "q8_0"), ("F16", "f16"), ("F16", "q8_0"), ("F32", "bf16"), ("F32", "f32"),
     ("F32", "q4_1"), ("F16", "bf16"), ("F32", "q8_0")],
)  # fmt: skip
def test_every_form_is_proven(
    tuned: Tuned, tmp_path: Path, dtype: str, dense: str, experts: str
) -> None:
    it = Copy(tuned(dtype), tmp_path / "model.gguf")
    convert(it.source, it.path, dense=dense, experts=experts)
    verdict = it.verify()
    assert verdict.proven, verdict.first
    last = it.offset("blk.0.attn_q.weight") + len(it.tensor("blk.0.attn_q.weight")) - 1
    it.xor(last, 0x40)
    assert it.only().tensor == "blk.0.attn_q.weight"


@in_pieces
def test_mxfp4_in_bf16_is_proven(published: Path, tmp_path: Path) -> None:
    it = Copy(published, tmp_path / "model.gguf")
    convert(published, it.path, experts="bf16")
    assert it.verify().proven
    it.xor(it.offset("blk.1.ffn_up_exps.weight") + 2 * (96 * (2 * 64 + 5) + 33), 1)
    assert it.only().place == Location(expert=2, row=5, block=1, lane=1)


@in_pieces
@pytest.mark.parametrize("which", ROWS)
def test_a_code_that_is_not_the_nearest(tuned: Tuned, tmp_path: Path, which: str) -> None:
    it = Copy(tuned("BF16"), tmp_path / "model.gguf")
    convert(it.source, it.path)
    rows, blocks = ROWS[which], COLUMNS[which] // 32
    at = it.offset(f"blk.1.ffn_{which}_exps.weight")
    at += 17 * ((2 * rows + rows - 1) * blocks + blocks - 1) + 1 + 13
    it.xor(at, 4 << 4)
    difference = it.only()
    assert difference.place == Location(expert=2, row=rows - 1, block=blocks - 1, lane=29)
    assert (difference.values, difference.scales) == (1, 0)
    assert difference.expected.startswith("the nearest to ")


@in_pieces
def test_a_scale_that_loses_more_than_the_standard_s(tuned: Tuned, tmp_path: Path) -> None:
    it = Copy(tuned("F32"), tmp_path / "model.gguf")
    convert(it.source, it.path)
    name = "blk.1.ffn_down_exps.weight"
    blocks = np.frombuffer(it.tensor(name), np.uint8).reshape(4, 96, 2, 17)
    values = mxfp4.decode(mxfp4.codes_from_ggml(blocks[1, 7, 1]), blocks[1, 7, 1, :1][0])
    scale = blocks[1, 7, 1, 0] + np.uint8(2)
    codes = [twin_code(float(value), int(scale)) for value in values]
    worse = bytes([int(scale), *(codes[j] | codes[j + 16] << 4 for j in range(16))])
    it.write(it.offset(name) + 17 * ((96 + 7) * 2 + 1), worse)
    difference = it.only()
    assert difference.place == Location(expert=1, row=7, block=1)
    assert difference.scales == 1
    assert difference.expected.startswith("squared error ")


@in_pieces
def test_bf16_experts_are_compared_by_row_and_column(tuned: Tuned, tmp_path: Path) -> None:
    it = Copy(tuned("F32"), tmp_path / "model.gguf")
    convert(it.source, it.path, experts="bf16")
    it.xor(it.offset("blk.1.ffn_gate_exps.weight") + 2 * (96 * (3 * 64 + 11) + 70), 1)
    difference = it.only()
    assert difference.place == Location(expert=3, row=11, index=70)
    assert difference.values == 1


@in_pieces
def test_square_experts_are_right_in_the_one_way_they_stand(tmp_path: Path) -> None:
    published = random_checkpoint(tmp_path / "published", hidden=64, layers=2)
    odd = fine_tune(published, tmp_path / "odd", "BF16", outputs_first=("down_proj",))
    it = Copy(odd, tmp_path / "model.gguf")
    convert(odd, it.path, base=published)
    verdict = it.verify()
    assert verdict.proven, verdict.first
    name = "blk.0.ffn_down_exps.weight"
    data = bytearray(it.tensor(name))
    size = len(data) // 4
    one, two = slice(size, 2 * size), slice(2 * size, 3 * size)
    data[one], data[two] = data[two], data[one]
    it.write(it.offset(name), bytes(data))
    place = it.only().place
    assert place is not None
    assert (place.expert, place.row) == (1, 0)


@pytest.fixture
def transposed(tmp_path: Path) -> Callable[..., Copy]:
    """A fine-tune with square experts, and a GGUF of it with every down_proj transposed.

    ``off_grid``: no layer's values are still those of MXFP4.
    """

    def make(off_grid: bool) -> Copy:
        published = random_checkpoint(tmp_path / "published", hidden=64, layers=2)
        source = fine_tune(published, tmp_path / "source", "BF16")
        if off_grid:
            noise = np.random.default_rng(1)

            def nudge(values: NDArray[np.float32]) -> None:
                values *= noise.uniform(0.8, 1.2, values.shape).astype(np.float32)

            forms.change(source, DOWN.replace("layers.1", "layers.0"), nudge)
        it = Copy(source, tmp_path / "model.gguf")
        convert(source, it.path, experts="bf16")
        assert it.verify().outcome is Outcome.PROVEN
        for layer in range(2):
            region = regions(it.path)[f"blk.{layer}.ffn_down_exps.weight"]
            region.write(region.read().transpose(0, 2, 1))
        return it

    return make


def test_a_transpose_is_different_where_the_values_show_the_orientation(
    transposed: Callable[..., Copy],
) -> None:
    """Layer 0 lies on MXFP4's grid along its inputs, and layer 1 was saved by the same tool."""
    verdict = transposed(off_grid=False).verify()
    assert verdict.outcome is Outcome.DIFFERENT
    names = [f"blk.{layer}.ffn_down_exps.weight" for layer in range(2)]
    assert [it.tensor for it in verdict.differences] == names


def test_a_transpose_is_not_judged_where_nothing_shows_the_orientation(
    transposed: Callable[..., Copy], run: Command
) -> None:
    it = transposed(off_grid=True)
    verdict = it.verify()
    assert (verdict.outcome, bool(verdict)) == (Outcome.NOT_JUDGED, False)
    names = [f"blk.{layer}.ffn_down_exps.weight" for layer in range(2)]
    assert [one.tensor for one in verdict.unproven] == names
    done = run("verify", it.source, it.path)
    assert done.code == 3
    assert "only if that is stored outputs first" in done.out
    downs = [DOWN, DOWN.replace("layers.1", "layers.0")]
    for inputs_first, outcome in ((True, Outcome.DIFFERENT), (False, Outcome.PROVEN)):
        known = dict.fromkeys(downs, inputs_first)
        assert verify(it.source, it.path, inputs_first=known).outcome is outcome


# --- what is rounded, what cannot be proven ---------------------------------------------------


@pytest.mark.parametrize("dense", ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "f16"])
def test_the_largest_error_of_what_was_rounded(
    published: Path, tmp_path: Path, dense: str, run: Command
) -> None:
    """Against decoding all of both sides."""
    it = Copy(published, tmp_path / "model.gguf")
    if dense == "f16":  # holds BF16 but for values that are subnormal in it
        it = Copy(shutil.copytree(published, tmp_path / "source"), it.path)
        region = regions(it.source)["lm_head.weight"]
        bits = region.read()
        bits[5, 3] = np.float32(2.0**-25 * 1.5).view(np.uint32) >> 16
        region.write(bits)
    convert(it.source, it.path, dense=dense)
    verdict = it.verify()
    (found,) = verdict.roundings
    worst: dict[str, float] = {}
    file = GgufFile.open(it.path)
    for name, region in regions(it.source).items():
        gguf = DENSE_NAMES.get(name.split(".", 3)[-1] if ".layers." in name else name)
        if gguf is not None:
            gguf = gguf.replace("{i}", name.split(".")[2] if ".layers." in name else "")
            exact = (region.read().astype(np.uint32) << 16).view(np.float32).astype(np.float64)
            raw = np.frombuffer(it.tensor(gguf), np.uint8)
            got = dequantize(raw.reshape(len(exact), -1), file.tensors[gguf].type)
            worst[gguf] = float(np.abs(exact - got).max())
    assert len(worst) == found.tensors == 10
    assert found.largest_error == pytest.approx(max(worst.values()), rel=1e-6)
    assert worst[found.tensor] == max(worst.values())
    assert found.type == dense.upper()
    done = run("verify", it.source, it.path)
    assert done.out.splitlines()[0].endswith(f", 10 tensors rounded to {dense.upper()}")


DENSE_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "lm_head.weight": "output.weight",
    **{
        f"self_attn.{hf}_proj.weight": f"blk.{{i}}.attn_{gguf}.weight"
        for hf, gguf in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "output"))
    },
}


def test_the_largest_error_of_encoded_experts(tuned: Tuned, tmp_path: Path) -> None:
    it = Copy(tuned("F32"), tmp_path / "model.gguf")
    convert(it.source, it.path, dense="f32")
    (found,) = it.verify().roundings
    errors = {}
    sources = Checkpoint.open(it.source).tensors
    for layer, which in itertools.product(range(2), ROWS):
        gguf = f"blk.{layer}.ffn_{which}_exps.weight"
        raw = np.frombuffer(it.tensor(gguf), np.uint8).reshape(4, ROWS[which], -1, 17)
        got = mxfp4.decode(mxfp4.codes_from_ggml(raw), raw[..., 0]).reshape(4, ROWS[which], -1)
        name = DOWN if which == "down" else GATE_UP
        source = sources[name.replace("layers.1", f"layers.{layer}")]
        exact = np.fromfile(
            str(source.file), "<f4", int(np.prod(source.shape)), offset=source.offset
        )
        rows = exact.reshape(source.shape).transpose(0, 2, 1)
        if which != "down":
            rows = rows[:, ("gate", "up").index(which) :: 2]
        errors[gguf] = float(np.abs(rows.astype(np.float64) - got).max())
    assert found.largest_error == pytest.approx(max(errors.values()))
    assert errors[found.tensor] == max(errors.values())
    assert (found.type, found.tensors) == ("MXFP4", 6)


def test_what_cannot_be_proven_is_not_called_different(
    published: Path, tmp_path: Path, run: Command
) -> None:
    """A type whose encoders choose among roundings; the rest is compared as ever."""
    it = Copy(published, tmp_path / "model.gguf")
    convert(published, it.path)
    retype(it.path, "blk.0.attn_output.weight", GGMLQuantizationType.IQ4_NL)
    verdict = it.verify()
    assert (verdict.outcome, verdict.proven, bool(verdict)) == (Outcome.NOT_JUDGED, False, False)
    (found,) = verdict.unproven
    assert (found.tensor, found.type) == ("blk.0.attn_output.weight", "IQ4_NL")
    assert verdict.equal == len(GgufFile.open(it.path).tensors) - 1
    done = run("verify", it.source, it.path)
    assert done.code == 3
    assert done.out.startswith("not judged: 1 tensor of ")
    assert "(IQ4_NL) cannot be proven; the other" in done.out
    answered = json.loads(run("verify", it.source, it.path, "--json").out)
    assert (answered["outcome"], answered["proven"]) == ("not judged", False)
    assert [one["tensor"] for one in answered["unproven"]] == ["blk.0.attn_output.weight"]
    it.xor(it.offset("blk.1.attn_sinks.weight"), 1)  # a difference counts first
    assert it.verify().outcome is Outcome.DIFFERENT
    assert run("verify", it.source, it.path).code == 1


def test_a_dense_matrix_in_mxfp4(published: Path, tmp_path: Path, run: Command) -> None:
    it = Copy(published, tmp_path / "model.gguf")
    convert(published, it.path)
    name = "blk.0.attn_output.weight"
    region = regions(it.source)["model.layers.0.self_attn.o_proj.weight"]
    values = (region.read().astype(np.uint32) << 16).view(np.float32)
    packed = blocks_of(values.reshape(-1, 32))

    def put(model: ggufs.Model) -> None:
        shape = model.tensors[name][1]
        model.tensors[name] = (GGMLQuantizationType.MXFP4, shape, packed.reshape(-1))

    ggufs.edited(it.path, put)
    verdict = it.verify()
    assert verdict.proven, verdict.first
    assert {one.type: one.tensors for one in verdict.roundings} == {"Q8_0": 9, "MXFP4": 1}
    for arguments, code in (
        (("audit", it.path), 0),
        (("diff", it.source, it.path), 1),
        (("report", it.path, "--base", it.source, "-o", tmp_path / "page.html"), 0),
    ):
        done = run(*arguments)
        assert (done.code, done.err) == (code, ""), arguments
    changes = {one.tensor: one for one in diff(it.source, it.path).changes}
    assert changes[name].stored == ("BF16", "MXFP4")
    assert 0.03 < changes[name].relative < 0.15
    it.xor(it.offset(name) + 1, 7)
    assert it.only().tensor == name


@in_pieces
def test_gate_is_compared_where_up_is_missing(tuned: Tuned, tmp_path: Path) -> None:
    it = Copy(tuned("BF16"), tmp_path / "model.gguf")
    convert(it.source, it.path, experts="bf16")
    verdict = it.verify()
    assert verdict.proven
    it.replace(b"blk.0.ffn_up_exps.weight", b"blk.0.ffn_up_expz.weight")
    it.xor(it.offset("blk.0.ffn_gate_exps.weight"), 1)
    gate, missing, extra = it.verify().differences
    assert gate.place == Location(expert=0, row=0, index=0)
    assert (missing.tensor, extra.tensor) == (
        "blk.0.ffn_up_exps.weight",
        "blk.0.ffn_up_expz.weight",
    )


@in_pieces
def test_gate_and_up_of_two_types_are_compared_apart(published: Path, tmp_path: Path) -> None:
    convert(published, tmp_path / "model.gguf")
    file = GgufFile.open(tmp_path / "model.gguf")
    name = "blk.0.ffn_up_exps.weight"
    other = replace(file.tensors[name], type=GGMLQuantizationType.BF16)
    pairing = pair_tensors(
        Checkpoint.open(published), replace(file, tensors={**file.tensors, name: other})
    )
    assert not pairing.differences
    source = "model.layers.0.mlp.experts.gate_up_proj_blocks"
    mixed = [group.targets for group in pairing.groups if group.sources[0].name == source]
    assert [[target and target.named.gguf for target in targets] for targets in mixed] == [
        ["blk.0.ffn_gate_exps.weight", None],
        [None, name],
    ]
