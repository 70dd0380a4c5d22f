"""Fine-tunes in floats: experts encoded or kept, recovered where they were left alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from gptoss.converter.convert import convert
from gptoss.converter.write import tasks
from gptoss.errors import CheckpointError, OptionError
from gptoss.formats.gguf import GgufFile
from gptoss.formats.hparams import HParams
from gptoss.formats.tensor_map import parameters
from gptoss.quant.verify.verifier import verify
from support import forms, safetensors_files
from support.checkpoints import random_checkpoint
from support.ggufs import tensors_of, values_of
from support.peak_memory import peak_memory

SHAPES: dict[str, dict[str, Any]] = {
    "square": {"hidden": 64, "layers": 2, "heads": 2},
    "oblong": {"hidden": 96, "intermediate": 64, "layers": 3, "heads": 3, "kv_heads": 3},
}
DOWN = "model.layers.1.mlp.experts.down_proj"
GATE_UP = "model.layers.1.mlp.experts.gate_up_proj"


@pytest.fixture(scope="module", params=SHAPES)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "base"
    return random_checkpoint(folder, **SHAPES[request.param])


@pytest.fixture(scope="module")
def square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("square") / "base", **SHAPES["square"])


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_with_its_base_an_unchanged_fine_tune_is_its_base(
    published: Path, tmp_path: Path, dtype: str
) -> None:
    """The same codes and scales, though the floats between have neither."""
    fine_tune = forms.to_floats(published, tmp_path / "fine-tune", dtype)
    done = convert(fine_tune, tmp_path / "ours.gguf", dense="bf16", base=published)
    if dtype != "F16":  # which does not hold all of BF16's dense values
        assert verify(published, tmp_path / "ours.gguf").proven
    convert(published, tmp_path / "theirs.gguf", dense="bf16")
    ours, theirs = tensors_of(tmp_path / "ours.gguf"), tensors_of(tmp_path / "theirs.gguf")
    assert {n: ours[n] for n in ours if "exps.weight" in n} == {
        n: theirs[n] for n in ours if "exps.weight" in n
    }
    assert all(r.relative_error == 0 and r.exact == r.blocks for r in done.roundings.values())
    assert len(done.roundings) == sum("exps.weight" in name for name in ours)


def test_without_its_base_every_value_is_recovered(published: Path, tmp_path: Path) -> None:
    """And codes and scales too, wherever a block has a magnitude of 4 or 6."""
    fine_tune = forms.to_floats(published, tmp_path / "fine-tune")
    done = convert(fine_tune, tmp_path / "ours.gguf")
    convert(published, tmp_path / "theirs.gguf")
    assert all(r.relative_error == 0 and r.exact == r.blocks for r in done.roundings.values())
    theirs = values_of(tmp_path / "theirs.gguf")
    for name, values in values_of(tmp_path / "ours.gguf").items():
        assert np.array_equal(values, theirs[name]), name
    largest = np.abs(theirs_codes(published)).max(axis=-1) >= 4
    assert largest.mean() > 0.99
    name = "blk.1.ffn_down_exps.weight"
    ours_raw, theirs_raw = (
        np.frombuffer(tensors_of(tmp_path / f"{x}.gguf")[name], np.uint8).reshape(-1, 17)
        for x in ("ours", "theirs")
    )
    assert np.array_equal(ours_raw[largest], theirs_raw[largest])


def theirs_codes(folder: Path) -> NDArray[np.float64]:
    found = forms.contents(folder)
    scales = ("U8", found[DOWN + "_scales"][1], b"\x7f" * len(found[DOWN + "_scales"][2]))
    return forms.decoded(found[DOWN + "_blocks"], scales).reshape(-1, 32)


@pytest.mark.parametrize("with_base", [True, False])
def test_one_expert_changed(square: Path, tmp_path: Path, with_base: bool) -> None:
    """Of all the file exactly that expert's blocks differ."""
    base = tmp_path / "base"
    shutil.copytree(square, base)
    give_every_block_a_six(base)
    fine_tune = forms.to_floats(base, tmp_path / "fine-tune")

    def nudge(values: NDArray[np.float32]) -> None:
        values[2] *= 1 + 0.3 * np.sin(np.arange(values[2].size).reshape(values[2].shape))

    forms.change(fine_tune, DOWN, nudge)
    convert(base, tmp_path / "base.gguf")
    done = convert(fine_tune, tmp_path / "ours.gguf", base=base if with_base else None)
    before, after = tensors_of(tmp_path / "base.gguf"), tensors_of(tmp_path / "ours.gguf")
    name = "blk.1.ffn_down_exps.weight"
    assert [it for it in before if before[it] != after[it]] == [name]
    blocks = [np.frombuffer(it[name], np.uint8).reshape(4, -1, 17) for it in (before, after)]
    differing = (blocks[0] != blocks[1]).any(axis=-1)
    assert differing[2].all()
    assert not differing[[0, 1, 3]].any()
    rounding = done.roundings[name]
    assert (rounding.blocks, rounding.exact) == (512, 384)
    assert 0.01 < rounding.relative_error < 0.1


def give_every_block_a_six(folder: Path) -> None:
    """So that the codes and scales of every block follow from its values."""
    path = folder / "model.safetensors"
    tensors = safetensors_files.load(path)
    for name, (dtype, shape, raw) in tensors.items():
        if name.endswith("_blocks"):
            blocks = np.frombuffer(raw, np.uint8).reshape(-1, 16).copy()
            blocks[:, 0] |= 7
            tensors[name] = (dtype, shape, blocks.tobytes())
    safetensors_files.save(path, tensors)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_experts_kept_as_bf16(published: Path, tmp_path: Path, dtype: str) -> None:
    """Whether they come in floats or in MXFP4."""
    fine_tune = forms.to_floats(published, tmp_path / "fine-tune", dtype)
    convert(fine_tune, tmp_path / "a.gguf", experts="bf16", dense="bf16")
    convert(published, tmp_path / "b.gguf", experts="bf16", dense="bf16")
    a, b = tensors_of(tmp_path / "a.gguf"), tensors_of(tmp_path / "b.gguf")
    experts = [name for name in a if "exps.weight" in name]
    assert all(a[name] == b[name] for name in experts)
    metadata = GgufFile.open(tmp_path / "a.gguf").metadata
    assert metadata["general.file_type"] == 32
    found = forms.contents(published)
    expected = forms.decoded(found[GATE_UP + "_blocks"], found[GATE_UP + "_scales"])
    up = values_of(tmp_path / "a.gguf")["blk.1.ffn_up_exps.weight"]
    assert np.array_equal(up, expected[:, 1::2])


@pytest.mark.parametrize("dtype", ["F16", "F32"])
@pytest.mark.parametrize("dense", ["f32", "f16", "bf16", "q8_0", "q5_1", "q4_0"])
def test_dense_parts_in_other_floats(square: Path, tmp_path: Path, dtype: str, dense: str) -> None:
    """As the gguf package rounds them, which llama.cpp's converter uses; all else to F32."""
    fine_tune = forms.to_floats(square, tmp_path / "fine-tune", dtype)
    out = tmp_path / "out.gguf"
    convert(fine_tune, out, dense=dense)
    found, made = forms.contents(fine_tune), tensors_of(out)
    embedding = forms.numbers(found["model.embed_tokens.weight"])
    kind = gguf.GGMLQuantizationType[dense.upper()]
    assert made["token_embd.weight"] == gguf.quants.quantize(embedding, kind).tobytes()
    norm = forms.numbers(found["model.layers.1.input_layernorm.weight"])
    assert made["blk.1.attn_norm.weight"] == norm.tobytes()
    bias = forms.numbers(found[GATE_UP + "_bias"])
    assert made["blk.1.ffn_gate_exps.bias"] == bias[:, 0::2].tobytes()
    assert made["blk.1.ffn_up_exps.bias"] == bias[:, 1::2].tobytes()


# --- which way square matrices stand ----------------------------------------------------------


def test_a_base_tells_a_transposed_square(square: Path, tmp_path: Path) -> None:
    declared = forms.to_floats(square, tmp_path / "declared")
    turned = forms.to_floats(square, tmp_path / "turned", outputs_first=("down_proj",))
    for folder in (declared, turned):  # a fine-tune resembles its base, no more
        forms.change(folder, DOWN, lambda it: np.multiply(it, 1.1, out=it))
    a = convert(declared, tmp_path / "a.gguf", base=square)
    b = convert(turned, tmp_path / "b.gguf", base=square)
    assert tensors_of(tmp_path / "a.gguf") == tensors_of(tmp_path / "b.gguf")
    assert a.notes == ()
    assert b.notes == ("2 of 2 square down_proj are outputs first, by the base",)


def leave_the_grid(folder: Path) -> None:
    """Scale every down_proj a little, so that its values no longer show MXFP4's blocks."""
    for layer in range(2):
        name = DOWN.replace("layers.1.", f"layers.{layer}.")
        forms.change(folder, name, lambda it: np.multiply(it, 1.02, out=it))


def test_without_a_base_the_layout_decides_and_is_named(square: Path, tmp_path: Path) -> None:
    turned = forms.to_floats(square, tmp_path / "turned", outputs_first=("down_proj",))
    leave_the_grid(turned)
    done = convert(turned, tmp_path / "out.gguf")
    (note,) = done.notes
    assert note.startswith("2 down_proj are square")
    assert "inputs first, as declared (--base FOLDER compares" in note
    found = forms.numbers(forms.contents(turned)[DOWN])
    made = values_of(tmp_path / "out.gguf")["blk.1.ffn_down_exps.weight"]
    error = np.linalg.norm(made - found.transpose(0, 2, 1)) / np.linalg.norm(found)
    assert 0 < error < 0.2


def test_shapes_that_tell_are_believed(tmp_path: Path) -> None:
    source = random_checkpoint(tmp_path / "base", **SHAPES["oblong"])
    turned = forms.to_floats(source, tmp_path / "turned", outputs_first=forms.EXPERTS)
    done = convert(turned, tmp_path / "a.gguf", base=source)
    convert(source, tmp_path / "b.gguf")
    assert done.notes == ()
    assert tensors_of(tmp_path / "a.gguf") == tensors_of(tmp_path / "b.gguf")


def test_a_layout_that_contradicts_itself(square: Path, tmp_path: Path) -> None:
    """MXFP4's grid or a base resolves it; without either it is refused."""
    turned = forms.to_floats(square, tmp_path / "turned", outputs_first=forms.EXPERTS)
    convert(square, tmp_path / "b.gguf")
    for base in (None, square):
        convert(turned, tmp_path / "a.gguf", base=base)
        assert tensors_of(tmp_path / "a.gguf") == tensors_of(tmp_path / "b.gguf")
    leave_the_grid(turned)
    with pytest.raises(
        CheckpointError, match="is stored outputs first, unlike the declared layout"
    ):
        convert(turned, tmp_path / "c.gguf")
    convert(turned, tmp_path / "c.gguf", base=square)


def test_bases_of_something_else(square: Path, tmp_path: Path) -> None:
    fine_tune = forms.to_floats(square, tmp_path / "fine-tune")
    other = random_checkpoint(tmp_path / "other", **SHAPES["square"], seed=1)
    deeper = random_checkpoint(tmp_path / "deeper", hidden=64, layers=3)
    out = tmp_path / "out.gguf"
    with pytest.raises(
        CheckpointError, match=r"resembles neither the one in .*other nor its transpose"
    ):
        convert(fine_tune, out, base=other)
    with pytest.raises(CheckpointError, match="its num_hidden_layers is 3, not 2"):
        convert(fine_tune, out, base=deeper)
    with pytest.raises(
        CheckpointError, match="its experts are floats; a base must have MXFP4 experts"
    ):
        convert(fine_tune, out, base=fine_tune)
    with pytest.raises(OptionError, match="its experts are in MXFP4 already; omit --base"):
        convert(square, out, base=square)


# --- what is not finite -----------------------------------------------------------------------


def put(value: float, *index: int) -> Callable[[NDArray[np.float32]], object]:
    return lambda values: values.__setitem__(index, value)


@pytest.mark.parametrize(
    ("name", "edit", "said"),
    [
        (
            "model.embed_tokens.weight",
            put(np.nan, 300, 5),
            r"holds nan at \[300, 5\]: repair it",
        ),
        ("lm_head.weight", put(-np.inf, 2, 63), r"holds -inf at \[2, 63\]: repair it, or conv"),
        ("model.layers.1.self_attn.sinks", put(np.inf, 1), r"holds inf at \[1\]: repair it, or "),
        (GATE_UP + "_bias", put(np.nan, 3, 77), r"holds nan at \[3, 77\]: repair it, or conv"),
        (DOWN, put(np.nan, 1, 0, 9), r"holds nan at \[1, 0, 9\]: MXFP4 cannot hold it; re"),
        (GATE_UP, put(np.inf, 3, 63, 127), r"holds inf at \[3, 63, 127\]: MXFP4 cannot hold it"),
    ],
)
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_not_finite(
    square: Path,
    tmp_path: Path,
    dtype: str,
    name: str,
    edit: Callable[[NDArray[np.float32]], object],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Named by its place, whichever piece of the tensor it is in."""
    monkeypatch.setattr(tasks, "CHUNK", 1000)
    folder = forms.to_floats(square, tmp_path / "fine-tune", dtype)
    forms.change(folder, name, edit)
    with pytest.raises(CheckpointError, match=said):
        convert(folder, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
    convert(folder, tmp_path / "out.gguf", experts="bf16", dense="bf16", allow_nonfinite=True)
    made = gguf.GGUFReader(tmp_path / "out.gguf").tensors
    bad = [t.name for t in made
           if not np.isfinite(gguf.quants.dequantize(t.data, t.tensor_type)).all()]  # fmt: skip
    assert len(bad) == 1


@pytest.mark.parametrize("dtype", ["F32"])
@pytest.mark.parametrize("dense", ["f16", "q8_0", "q4_1", "bf16"])
def test_values_beyond_the_types_range(
    square: Path, tmp_path: Path, dtype: str, dense: str
) -> None:
    folder = forms.to_floats(square, tmp_path / "fine-tune", dtype)
    forms.change(folder, "lm_head.weight", put(3.4e38, 2, 63))
    with pytest.raises(CheckpointError, match=f"lm_head.weight' holds 3.4e.38, beyond the range of "
                       f"{dense.upper()}; choose another type"):  # fmt: skip
        convert(folder, tmp_path / "out.gguf", dense=dense)


# --- the command ------------------------------------------------------------------------------


RUN = "from gptoss.converter.cli import main; main()"


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN, *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_command_says_what_rounding_cost(square: Path, tmp_path: Path) -> None:
    fine_tune = forms.to_floats(square, tmp_path / "fine-tune")
    forms.change(fine_tune, GATE_UP, lambda it: np.multiply(it, 1.1, out=it))
    leave_the_grid(fine_tune)
    done = command(fine_tune, "-o", tmp_path / "out.gguf")
    assert done.returncode == 0, done.stderr
    assert "note: 2 down_proj are square" in done.stderr
    assert "experts encoded to MXFP4: " in done.stdout
    as_json = json.loads(command(fine_tune, "-o", tmp_path / "out.gguf", "--json").stdout)
    worst = max(as_json["rounding"], key=lambda name: as_json["rounding"][name]["relative_error"])
    assert worst in ("blk.1.ffn_gate_exps.weight", "blk.1.ffn_up_exps.weight")
    assert worst in done.stdout
    assert as_json["rounding"]["blk.0.ffn_up_exps.weight"]["relative_error"] == 0
    assert as_json["notes"][0].startswith("2 down_proj")


def test_the_command_refuses_in_one_line(square: Path, tmp_path: Path) -> None:
    done = command(square, "-o", tmp_path / "out.gguf", "--base", square)
    assert done.returncode == 2
    assert done.stderr == f"error: {square}: its experts are in MXFP4 already; omit --base\n"


CONVERT = """
import sys
from gptoss.converter.convert import convert
convert(sys.argv[1], sys.argv[2], experts=sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="resource is not there")
@pytest.mark.parametrize("experts", ["mxfp4", "bf16"])
def test_memory_is_a_few_experts(tmp_path: Path, experts: str) -> None:
    """Experts of the published width, 16 of them: 0.8 GB, all zero, convert within 0.45."""
    folder = random_checkpoint(tmp_path / "source", layers=1, experts=16)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 2880, "intermediate_size": 2880}
    (folder / "config.json").write_text(json.dumps(config))
    weights = folder / "model.safetensors"
    header: dict[str, Any] = {}
    at = 0
    for name, tensor in parameters(HParams.from_config(config)).items():
        end = at + 2 * int(np.prod(tensor.shape))
        header[name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [at, end]}
        at = end
    safetensors_files.write(weights, header, b"")
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size + at)
    assert at > 790e6
    assert peak_memory(CONVERT, folder, tmp_path / "out.gguf", experts) < 450e6
