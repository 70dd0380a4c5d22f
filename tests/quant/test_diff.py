"""What changed between two models is found, measured and summed up; what did not is not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from gptoss.converter.convert import convert
from gptoss.errors import CheckpointError, UnsupportedModelError
from gptoss.formats.checkpoint import Checkpoint
from gptoss.formats.tensor_map import tensors
from gptoss.quant import mxfp4
from gptoss.quant.diff import compare_tensors
from gptoss.quant.diff.differ import diff
from gptoss.quant.diff.result import Diff, TensorChange
from gptoss.quant.model import reader
from support import ggufs, safetensors_files
from support.checkpoints import bf16, random_checkpoint
from support.commands import Command
from support.editing import Region, regions

HIDDEN, INTERMEDIATE, LAYERS, EXPERTS = 96, 64, 3, 4
NAME = "model.layers.1.mlp.experts."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return random_checkpoint(folder, hidden=HIDDEN, intermediate=INTERMEDIATE, layers=LAYERS)


@pytest.fixture
def tuned(base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base, tmp_path / "tuned")


@pytest.fixture(params=[2**18, 500], ids=["large pieces", "small pieces"], autouse=True)
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "CHUNK", request.param)
    monkeypatch.setattr(compare_tensors, "CHUNK", request.param // 32 * 32)
    monkeypatch.setattr(compare_tensors, "TASK", 2**22 if request.param > 500 else 3 * 480)


def values(blocks: Region, scales: Region) -> mxfp4.Floats:
    """Decoded, ``[experts, rows, columns]``."""
    decoded = mxfp4.decode(mxfp4.codes_from_hf(blocks.read()), scales.read())
    return decoded.reshape(*decoded.shape[:2], -1).astype(np.float64)


def test_a_model_and_itself(base: Path, tuned: Path) -> None:
    result = diff(base, tuned)
    assert result.same
    assert result.headline.startswith("the same: all tensors are equal")
    assert result.equal == 3 + LAYERS * 19


@pytest.mark.parametrize(
    ("dense", "same"), [("bf16", True), ("f32", True), ("q8_0", False), ("q4_0", False)]
)
def test_a_model_and_its_conversion(base: Path, tmp_path: Path, dense: str, same: bool) -> None:
    convert(base, tmp_path / "model.gguf", dense=dense)
    for result in (diff(base, tmp_path / "model.gguf"), diff(tmp_path / "model.gguf", base)):
        assert result.same == same
        if not same:
            assert result.headline.startswith("the same model, 14 tensors rounded to another type")
            assert all(change.is_rounding and not change.is_expert for change in result.changes)


def test_two_conversions(base: Path, tmp_path: Path) -> None:
    convert(base, tmp_path / "one.gguf", dense="bf16")
    convert(base, tmp_path / "two.gguf", dense="f32")
    assert diff(tmp_path / "one.gguf", tmp_path / "two.gguf").same


@pytest.mark.parametrize("which", ["checkpoint", "gguf", "both ggufs"])
def test_changed_blocks_are_counted_and_measured(
    base: Path, tuned: Path, tmp_path: Path, which: str
) -> None:
    tensors = regions(tuned)
    blocks, scales = tensors[NAME + "gate_up_proj_blocks"], tensors[NAME + "gate_up_proj_scales"]
    before = values(blocks, scales)
    codes, sizes = blocks.read(), scales.read()
    codes[2, 9, 1, 3] ^= 0x16  # row 9 is of up, row 4 there
    codes[2, 9, 0, 0] ^= 0x40
    sizes[3, 127, 2] += 2
    blocks.write(codes)
    scales.write(sizes)
    after = values(blocks, scales)
    a, b = base, tuned
    if which != "checkpoint":
        convert(tuned, tmp_path / "b.gguf", dense="bf16")
        b = tmp_path / "b.gguf"
    if which == "both ggufs":
        convert(base, tmp_path / "a.gguf", dense="bf16")
        a = tmp_path / "a.gguf"
    result = diff(a, b)
    (change,) = result.changes
    assert change.tensor == "blk.1.ffn_up_exps.weight"
    assert (change.units, change.changed) == (EXPERTS * INTERMEDIATE * HIDDEN // 32, 3)
    assert [(it.expert, it.blocks) for it in change.experts] == [(2, 2), (3, 1)]
    old, new = before[:, 1::2], after[:, 1::2]
    norm = np.linalg.norm((new - old).ravel()) / np.linalg.norm(old.ravel())
    assert change.relative == pytest.approx(norm)
    assert change.largest == np.abs(new - old).max()
    each = np.linalg.norm((new - old)[2]) / np.linalg.norm(old[2])
    assert change.experts[0].relative == pytest.approx(each)
    assert result.headline.startswith("1 of 9 expert tensors changed, in 1 layer; nothing else")


def test_only_attention_changed(base: Path, tuned: Path) -> None:
    region = regions(tuned)["model.layers.0.self_attn.q_proj.weight"]
    bits = region.read()
    old = (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    bits[3, 5] ^= 0x8000
    bits[7, 1] = 0
    new = (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    region.write(bits)
    result = diff(base, tuned)
    (change,) = result.changes
    assert (change.tensor, change.changed) == ("blk.0.attn_q.weight", 2)
    assert change.relative == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old))
    assert change.largest == np.abs(new - old).max()
    assert result.headline == (
        "no expert tensor changed: if experts were trained, their adapter was not merged; "
        "1 other tensor changed (attn_q.weight)"
    )


def test_a_bias_of_gate_and_up(base: Path, tuned: Path, tmp_path: Path) -> None:
    region = regions(tuned)[NAME + "gate_up_proj_bias"]
    bits = region.read()
    bits[1, 5] ^= 0x8000
    region.write(bits)
    convert(base, tmp_path / "base.gguf", dense="bf16")
    for a in (base, tmp_path / "base.gguf"):
        (change,) = diff(a, tuned).changes
        assert (change.tensor, change.changed) == ("blk.1.ffn_up_exps.bias", 1)


def in_floats(folder: Path) -> None:
    """Store the experts as BF16, inputs first."""
    path = folder / "model.safetensors"
    contents = safetensors_files.load(path)
    tensors = regions(folder)
    for name in [name for name in contents if name.endswith("_blocks")]:
        name = name.removesuffix("_blocks")
        decoded = values(tensors[name + "_blocks"], tensors[name + "_scales"])
        turned = np.ascontiguousarray(decoded.transpose(0, 2, 1)).astype(np.float32)
        contents[name] = ("BF16", [*turned.shape], bf16(turned).tobytes())
        del contents[name + "_blocks"], contents[name + "_scales"]
    safetensors_files.save(path, contents)


def test_a_fine_tune_in_floats(base: Path, tuned: Path) -> None:
    in_floats(tuned)
    assert diff(base, tuned).same
    region = regions(tuned)[NAME + "down_proj"]
    bits = region.read()
    bits[1, 40, 7] ^= 0x8000  # of input 40, output 7: block 1 of row 7
    region.write(bits)
    for result in (diff(base, tuned), diff(tuned, base)):
        (change,) = result.changes
        assert change.tensor == "blk.1.ffn_down_exps.weight"
        assert [(it.expert, it.blocks) for it in change.experts] == [(1, 1)]
        assert change.largest == 2 * abs(float(np.uint32(int(bits[1, 40, 7]) << 16).view("f4")))


def test_unrelated_models(base: Path, tmp_path: Path) -> None:
    other = random_checkpoint(
        tmp_path / "other", hidden=HIDDEN, intermediate=INTERMEDIATE, layers=LAYERS, seed=1
    )
    result = diff(base, other)
    assert result.headline == "unrelated: neither was made from the other"
    assert len(result.changes) == 3 + LAYERS * 19
    assert all(1 < it.relative < 2 for it in result.changes if it.is_expert)


def test_other_sizes_and_settings(base: Path, tuned: Path, tmp_path: Path) -> None:
    other = random_checkpoint(tmp_path / "other", hidden=HIDDEN, intermediate=32, layers=LAYERS - 1)
    result = diff(base, other)
    assert result.headline.startswith("not the same model: ")
    assert "blk.2.attn_norm.weight: only in " + str(base) in result.apart
    assert "blk.0.ffn_gate_exps.weight: shape (4, 64, 96) and (4, 32, 96)" in result.apart
    config = tuned / "config.json"
    config.write_text(config.read_text().replace('"factor": 32.0', '"factor": 16.0'))
    result = diff(base, tuned)
    assert result.headline == "the same weights, but 1 setting differs"
    assert [it.key for it in result.keys] == ["gpt-oss.rope.scaling.factor"]


def test_nan_is_a_difference_but_not_from_itself(base: Path, tuned: Path, tmp_path: Path) -> None:
    region = regions(tuned)["model.norm.weight"]
    bits = region.read()
    bits[4] = 0x7FC0
    region.write(bits)
    (change,) = diff(base, tuned).changes
    assert (change.changed, change.relative, change.largest) == (1, float("inf"), float("inf"))
    assert diff(tuned, shutil.copytree(tuned, tmp_path / "copy")).same


@pytest.mark.filterwarnings("error")
def test_an_infinite_scale_warns_of_nothing(base: Path, tmp_path: Path) -> None:
    """numpy's own warnings would come between a person and the answer."""
    convert(base, tmp_path / "model.gguf")
    region = regions(tmp_path / "model.gguf")["output.weight"]
    blocks = region.read()
    blocks.reshape(-1, 34)[0, :3] = 0x00, 0x7C, 0  # a scale of infinity, a code of 0
    region.write(blocks)
    names = [it.tensor for it in diff(base, tmp_path / "model.gguf").changes if not it.is_rounding]
    assert names == ["output.weight"]


# --- bad input and the command ----------------------------------------------------------------


def test_bad_input(base: Path, tuned: Path) -> None:
    victim = tuned / "model.safetensors"

    def cut(finished: int, total: int) -> None:
        if finished < total:
            os.truncate(victim, 5000)

    with pytest.raises(CheckpointError, match=r"(truncated|modified) while"):
        diff(base, tuned, progress=cut)
    with pytest.raises(CheckpointError, match="file is truncated"):
        diff(base, tuned)
    config = tuned / "config.json"
    config.write_text(config.read_text().replace('"gpt_oss"', '"llama"'))
    with pytest.raises(UnsupportedModelError, match="'llama'"):
        diff(tuned, base)


def test_command(base: Path, tuned: Path, run: Command) -> None:
    done = run("diff", base, tuned)
    assert done.code == 0
    assert done.out.startswith("the same: ")
    region = regions(tuned)[NAME + "down_proj_scales"]
    region.write(region.read() + np.uint8(1))
    done = run("diff", base, tuned)
    assert done.code == 1
    lines = done.out.splitlines()
    assert lines[0] == "1 of 9 expert tensors changed, in 1 layer; nothing else changed"
    assert lines[2].startswith("  blk.1.ffn_down_exps.weight: 100.00% of 768 blocks in 4 of 4 ")
    assert "relative norm 1, " in lines[2]
    done = run("diff", base, tuned, "--json")
    assert done.code == 1
    result = json.loads(done.out)
    assert result["same"] is False
    assert result["changes"][0]["experts"][3] == {
        "expert": 3, "blocks": 192, "relative": 1.0,
        "largest": result["changes"][0]["experts"][3]["largest"],
    }  # fmt: skip
    done = run("diff", base, tuned / "nothing")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")


def test_verdict_of_nothing() -> None:
    assert Diff("a", "b", 0, 0, 0, (), (), (), ()).same


# --- the sign of zeros, rounding there and back -----------------------------------------------


def flip_zero_signs(folder: Path) -> int:
    """Change the sign of every zero of one expert tensor; the number of blocks that have some."""
    region = regions(folder)[NAME + "down_proj_blocks"]
    codes = mxfp4.codes_from_hf(region.read())
    zero = codes & 7 == 0
    codes[zero] ^= 8
    region.write(mxfp4.hf_from_codes(codes))
    return int(np.count_nonzero(zero.any(axis=-1)))


@pytest.mark.parametrize("floats", [False, True])
def test_the_sign_of_zeros_is_no_difference(
    base: Path, tuned: Path, tmp_path: Path, run: Command, *, floats: bool
) -> None:
    assert flip_zero_signs(tuned) > 0
    a = base
    if floats:
        a = shutil.copytree(base, tmp_path / "floats")
        in_floats(a)
    for sides in ((a, tuned), (tuned, a)):
        result = diff(*sides)
        assert result.same
        assert result.zero_signs == ("blk.1.ffn_down_exps.weight",)
        done = run("diff", *sides)
        assert done.code == 0
        said = "the same: all tensors are equal but for the sign of zeros in 1 tensor\n"
        assert done.out.startswith(said)
        assert "equal but for the sign of zeros:\n  blk.1.ffn_down_exps.weight" in done.out
    region = regions(tuned)[NAME + "down_proj_blocks"]
    codes = region.read()
    codes[0, 0, 0, 0] ^= 1
    region.write(codes)
    (change,) = diff(a, tuned).changes
    assert change.changed == 1


def test_which_blocks_hold_other_values() -> None:
    """Against decoded values, for codes and scales at random and near each other."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (2, 4000, 32), np.uint8)
    codes[0, :2000] = rng.choice(np.array([0, 8], np.uint8), (2000, 32))
    codes[1, 1000:] = codes[0, 1000:] ^ (8 * (codes[0, 1000:] & 7 == 0)).astype(np.uint8)
    codes[1, :1000] = rng.choice(np.array([0, 8], np.uint8), (1000, 32))
    codes[1, ::7, 5] = rng.integers(0, 16, len(codes[1, ::7]))
    scales = rng.integers(120, 122, (2, 4000)).astype(np.uint8)
    words = mxfp4.hf_from_codes(codes).view(np.uint64)
    values = mxfp4.decode(codes, scales)
    expected = (values[0] != values[1]).any(axis=-1)
    assert 0 < np.count_nonzero(expected) < 4000
    found = compare_tensors.values_differ(words[0], words[1], scales[0], scales[1])
    assert (found == expected).all()
    scales[1, :100] = 255
    found = compare_tensors.values_differ(words[0], words[1], scales[0], scales[1])
    assert found[:100].all()


@pytest.mark.parametrize("dense", ["q8_0", "q4_0"])
def test_rounding_there_and_back_is_not_taken_for_a_fine_tune(
    base: Path, tmp_path: Path, dense: str
) -> None:
    convert(base, tmp_path / "rounded.gguf", dense=dense)
    back = shutil.copytree(base, tmp_path / "back")
    theirs = ggufs.values_of(tmp_path / "rounded.gguf")
    named = {it.sources[0].name: it.gguf for it in tensors(Checkpoint.open(base).hparams)}
    for name, region in regions(back).items():
        if region.dtype == np.dtype("<u2") and len(region.shape) == 2 and "experts" not in name:
            gguf = named[name]
            if not gguf.endswith("ffn_gate_inp.weight"):
                region.write(bf16(np.ascontiguousarray(theirs[gguf])))
    headline = diff(base, back).headline
    assert "adapter" not in headline
    assert "as after rounding to another type and back" in headline


@pytest.mark.parametrize(("relative", "rounding"), [(0.12, True), (0.1201, False)])
def test_how_much_counts_as_rounding(relative: float, rounding: bool) -> None:
    change = TensorChange("output.weight", None, 10, 10, relative, 1.0, ("BF16", "Q4_0"))
    assert change.is_rounding is rounding
    verdict = Diff("a", "b", 0, 0, 0, (change,), (), (), ()).headline
    assert verdict.startswith("the same model") is rounding


@pytest.mark.parametrize(("relative", "unrelated"), [(0.9, True), (0.8999, False)])
def test_how_much_counts_as_unrelated(relative: float, unrelated: bool) -> None:
    change = TensorChange("output.weight", None, 10, 10, relative, 1.0, ("BF16", "BF16"))
    verdict = Diff("a", "b", 0, 0, 0, (change,), (), (), ()).headline
    assert verdict.startswith("unrelated") is unrelated
