"""No good verdict on tensors that could not be read: not from audit, diff or report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from gptoss.converter.convert import convert
from gptoss.quant.audit.auditor import Verdict, audit
from gptoss.quant.diff.differ import diff
from gptoss.quant.diff.result import Verdict as DiffVerdict
from gptoss.quant.model import loader
from gptoss.quant.model.dtypes import encoding_of
from gptoss.quant.model.tensors import Encoding
from gptoss.quant.verify.verifier import verify
from support import ggufs, safetensors_files
from support.checkpoints import random_checkpoint
from support.commands import Command
from support.editing import regions

EXPERT = "blk.0.ffn_down_exps.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    random_checkpoint(folder / "checkpoint", chat_template="x")
    convert(folder / "checkpoint", folder / "model.gguf", dense="bf16")
    return folder


def in_integers(path: Path, name: str) -> None:
    """Make a tensor's values bytes at random, of a type that holds no weights."""

    def edit(model: ggufs.Model) -> None:
        _, shape, _ = model.tensors[name]
        raw = np.random.default_rng(0).integers(0, 256, int(np.prod(shape)), np.uint8)
        model.tensors[name] = (GGMLQuantizationType.I8, shape, raw)

    ggufs.edited(path, edit)


@pytest.fixture(params=[EXPERT, "blk.1.attn_q.weight"])
def unread_gguf(request: pytest.FixtureRequest, base: Path, tmp_path: Path) -> Path:
    path = Path(shutil.copyfile(base / "model.gguf", tmp_path / "model.gguf"))
    in_integers(path, request.param)
    return path


@pytest.fixture
def unread_checkpoint(base: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(base / "checkpoint", tmp_path / "checkpoint")
    path = folder / "model.safetensors"
    contents = safetensors_files.load(path)
    name = "model.layers.0.self_attn.q_proj.weight"
    _, shape, raw = contents[name]
    contents[name] = ("F8_E4M3", shape, raw[: len(raw) // 2])
    safetensors_files.save(path, contents)
    return folder


@pytest.fixture
def later_type(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of a type that llama.cpp computes with and this version cannot decode."""
    convert(base / "checkpoint", tmp_path / "model.gguf", dense="bf16", types={"output": "q4_1"})
    monkeypatch.setattr(
        loader,
        "encoding_of",
        lambda kind: Encoding.OTHER if kind is GGMLQuantizationType.Q4_1 else encoding_of(kind),
    )
    return tmp_path / "model.gguf"


def test_audit_of_a_gguf(later_type: Path, run: Command) -> None:
    result = audit(later_type)
    assert result.verdict is Verdict.NOT_JUDGED
    assert not result.sound
    assert not result
    done = run("audit", later_type)
    assert done.code == 3
    assert done.out.startswith("not judged: 1 tensor could not be read; no errors in the rest, ")
    assert "\nwarning: tensor-unread: its values were not checked" in done.out
    done = run("audit", later_type, "--json")
    assert done.code == 3
    answer = json.loads(done.out)
    assert (answer["verdict"], answer["sound"]) == ("not judged", False)
    assert answer["unread"] == ["output.weight"]


def test_a_type_that_llama_cpp_cannot_compute_is_an_error(unread_gguf: Path, run: Command) -> None:
    done = run("audit", unread_gguf)
    assert done.code == 1
    assert done.out.startswith("unsound: ")


def test_report_of_a_gguf(later_type: Path, tmp_path: Path, run: Command) -> None:
    page = tmp_path / "page.html"
    done = run("report", later_type, "-o", page)
    assert done.code == 3
    assert f"{page}: not judged: 1 tensor could not be read" in done.out
    text = page.read_text("utf-8")
    assert "not judged: 1 tensor could not be read" in text
    assert "✓" not in text
    done = run("report", later_type, "--json")
    assert done.code == 3
    assert json.loads(done.out)["verdict"] == "not judged"


def test_diff_of_a_gguf(base: Path, later_type: Path, tmp_path: Path, run: Command) -> None:
    copy = shutil.copyfile(later_type, tmp_path / "copy.gguf")
    for other in (copy, base / "model.gguf", base / "checkpoint"):
        for sides in ((later_type, other), (other, later_type)):
            result = diff(*sides)
            assert result.verdict is DiffVerdict.NOT_JUDGED
            assert not result.same
            assert not result
            assert len(result.unread) == 1
            done = run("diff", *sides)
            assert done.code == 3
            expected = "not judged: 1 tensor could not be read; the rest is equal\n"
            assert done.out.startswith(expected)
            assert "the same" not in done.out
    answer = json.loads(run("diff", later_type, copy, "--json").out)
    assert (answer["verdict"], answer["same"]) == ("not judged", False)


def test_a_difference_outweighs_what_cannot_be_read(
    base: Path, later_type: Path, run: Command
) -> None:
    region = regions(base / "model.gguf")["blk.0.attn_k.bias"]
    data = later_type.read_bytes()
    at = data.index(region.read().tobytes())
    later_type.write_bytes(data[:at] + np.float32(2.5).tobytes() + data[at + 4 :])
    done = run("diff", base / "model.gguf", later_type)
    assert done.code == 1
    assert done.out.splitlines()[0].endswith("; 1 tensor could not be read")


def test_an_error_outweighs_what_cannot_be_read(later_type: Path, run: Command) -> None:
    ggufs.edited(later_type, lambda model: model.tensors.pop("blk.0.attn_k.bias"))
    done = run("audit", later_type)
    assert done.code == 1
    assert done.out.startswith("unsound: ")


def test_a_checkpoint(base: Path, unread_checkpoint: Path, run: Command) -> None:
    for other in (base / "checkpoint", base / "model.gguf"):
        result = diff(other, unread_checkpoint)
        assert result.verdict is DiffVerdict.NOT_JUDGED
        assert result.unread == ("blk.0.attn_q.weight",)
        assert result.apart == ()
    assert audit(unread_checkpoint).verdict is Verdict.NOT_JUDGED
    assert run("audit", unread_checkpoint).code == 3


def test_rounding_beside_what_cannot_be_read(
    base: Path, later_type: Path, tmp_path: Path, run: Command
) -> None:
    """Whether the models are the same but for rounding cannot be said."""
    convert(base / "checkpoint", tmp_path / "q8_0.gguf", dense="q8_0")
    done = run("diff", tmp_path / "q8_0.gguf", later_type)
    assert done.code == 3
    assert done.out.startswith("not judged: 1 tensor could not be read; the rest is equal but for")


def test_settings_beside_what_cannot_be_read(base: Path, unread_gguf: Path, run: Command) -> None:
    done = run("diff", base / "model.gguf", unread_gguf)
    assert done.code == 1
    assert done.out.startswith("the weights that could be read are equal, but 1 setting differs; 1")


@pytest.mark.parametrize("both", [False, True])
def test_a_tensor_that_gpt_oss_does_not_have(
    base: Path, tmp_path: Path, run: Command, *, both: bool
) -> None:
    """Of the same name in both it is not compared; in one only it is a difference."""

    def edit(model: ggufs.Model) -> None:
        scale = np.float32(2).reshape(1)
        model.tensors["blk.0.attn_q.scale"] = (GGMLQuantizationType.F32, (1,), scale.view("u1"))

    a, b = (Path(shutil.copyfile(base / "model.gguf", tmp_path / name)) for name in ("a", "b"))
    ggufs.edited(b, edit)
    if both:
        ggufs.edited(a, edit)
    done = run("diff", a, b)
    assert done.code == (3 if both else 1)
    assert "blk.0.attn_q.scale" in done.out


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        (EXPERT, "I8", "it cannot be decoded"),
        (EXPERT, "Q8_0", "experts can be in MXFP4 or F32 or F16 or BF16 only"),
        (EXPERT, "IQ4_NL", "its encoders are free to choose among roundings"),
        ("blk.0.attn_q.weight", "I8", "it cannot be decoded"),
        ("blk.0.attn_q.weight", "IQ4_NL", "its encoders are free to choose among roundings"),
    ],
)
def test_verify_says_why_a_type_cannot_be_proven(
    base: Path, tmp_path: Path, name: str, kind: str, reason: str
) -> None:
    values, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]

    def edit(model: ggufs.Model) -> None:
        _, shape, _ = model.tensors[name]
        raw = np.zeros(int(np.prod(shape)) // values * nbytes, np.uint8)
        model.tensors[name] = (GGMLQuantizationType[kind], shape, raw)

    path = Path(shutil.copyfile(base / "model.gguf", tmp_path / "model.gguf"))
    verdict = verify(base / "checkpoint", ggufs.edited(path, edit))
    assert [str(it) for it in verdict.unproven] == [f"{name}: {kind} cannot be proven: {reason}"]
