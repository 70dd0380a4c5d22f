"""``gptoss-quant info``: what a model is, from its headers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

import gptoss
from gptoss.formats.checkpoint import Checkpoint
from gptoss.formats.gguf import GgufFile
from gptoss.quant.info.summary import TensorKind
from support.commands import Command
from support.planted import Copying


def test_a_checkpoint_and_its_gguf_have_the_same_shape(
    source: Path, converted: dict[str, Path]
) -> None:
    checkpoint, gguf = gptoss.info(source), gptoss.info(converted["q8_0"])
    assert (checkpoint.is_gguf, gguf.is_gguf) == (False, True)
    assert checkpoint.hparams == Checkpoint.open(source).hparams
    assert asdict(gguf.hparams) == pytest.approx(asdict(checkpoint.hparams))  # float32 there
    assert checkpoint.parameters == gguf.parameters
    assert (checkpoint.files, gguf.files) == (2, 1)
    assert gguf.nbytes == converted["q8_0"].stat().st_size
    assert (gguf.unread, gguf.defects) == ((), ())


@pytest.mark.parametrize("dense", ["bf16", "q8_0"])
def test_types_are_counted_by_group(converted: dict[str, Path], dense: str) -> None:
    found = {(use.group, use.type): use.tensors for use in gptoss.info(converted[dense]).types}
    layers = gptoss.info(converted[dense]).hparams.num_hidden_layers
    kind = dense.upper()
    assert found == {
        (TensorKind.EXPERTS, "MXFP4"): 3 * layers,
        (TensorKind.ATTENTION, kind): 4 * layers,
        (TensorKind.EMBEDDING, kind): 1,
        (TensorKind.OUTPUT, kind): 1,
        (TensorKind.OTHER, "F32"): len(GgufFile.open(converted[dense]).tensors) - 7 * layers - 2,
    }


def test_the_command(run: Command, converted: dict[str, Path]) -> None:
    code, out, err = run("info", converted["q8_0"])
    assert (code, err) == (0, "")
    assert f"{converted['q8_0']}: gpt-oss GGUF" in out
    for word in ("layers", "experts", "vocabulary", "context", "RoPE", "MXFP4", "Q8_0", "F32"):
        assert word in out
    code, out, err = run("info", converted["q8_0"], "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["hparams"]["rope_theta"] == 150000


def test_a_defect_points_to_audit(run: Command, copy: Copying) -> None:
    made = copy()
    data = made.path.read_bytes()
    made.path.write_bytes(data.replace(b"rope.freq_base", b"rope.freq_best"))
    code, out, _ = run("info", made.path)
    assert code == 0
    assert "rope.freq_base" in out
    assert "gptoss-quant audit" in out


def test_a_name_cannot_steer_the_terminal(run: Command, copy: Copying) -> None:
    made = copy()
    data = made.path.read_bytes()
    name = gptoss.info(made.path).name
    assert name is not None
    assert len(name) > 4
    made.path.write_bytes(data.replace(name.encode(), b"\x1b[2J".ljust(len(name), b"x"), 1))
    code, out, _ = run("info", made.path)
    assert code == 0
    assert "\x1b" not in out


def test_what_is_not_a_model(run: Command, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"not a model")
    code, out, err = run("info", tmp_path / "a.gguf")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
