"""From a GGUF back to a checkpoint: the very bytes that the GGUF was made of."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import quants
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from gptoss.converter.convert import convert
from gptoss.converter.export.export import Export, export
from gptoss.converter.write import tasks
from gptoss.errors import OutputError, UnsupportedModelError
from gptoss.formats.checkpoint import Checkpoint
from gptoss.formats.gguf import GgufFile
from gptoss.quant.mxfp4 import E2M1
from gptoss.quant.verify.verifier import verify
from support import checkpoints, forms, ggufs, safetensors_files
from support.checkpoints import random_checkpoint
from support.commands import Command

SHAPES: dict[str, dict[str, Any]] = {
    "square": {},
    "oblong": {"hidden": 96, "intermediate": 160, "layers": 3, "experts": 5, "heads": 6,
               "kv_heads": 3, "shards": 3, "chat_template": "{{ messages }} ≠\n"},
    "old rope keys": {"hidden": 160, "intermediate": 32, "rope_schema": "rope_scaling"},
}  # fmt: skip


MATRICES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "lm_head.weight": "output.weight",
    **{
        f"model.layers.{i}.self_attn.{hf}_proj.weight": f"blk.{i}.attn_{ours}.weight"
        for i in range(2)
        for hf, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "output"))
    },
}


@pytest.fixture(params=SHAPES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return random_checkpoint(tmp_path / "model", **SHAPES[request.param])


def tokenizer(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text())
    found["post_processor"]["add_prefix_space"] = None  # of no effect: no Python code reads it
    found["decoder"]["add_prefix_space"] = None
    return found


def test_round_trip(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "model.gguf", dense="bf16")
    done = export(tmp_path / "model.gguf", tmp_path / "out")
    assert forms.contents(tmp_path / "out") == forms.contents(source)
    assert tokenizer(tmp_path / "out") == tokenizer(source)
    assert Checkpoint.open(tmp_path / "out").hparams == Checkpoint.open(source).hparams
    template = source / "chat_template.jinja"
    assert template.exists() == (tmp_path / "out" / template.name).exists()
    assert sorted(done.files) == sorted((tmp_path / "out").iterdir())
    assert done.nbytes == sum(path.stat().st_size for path in done.files)
    assert (done.inexact, done.rounded) == ((), ())
    assert verify(tmp_path / "out", tmp_path / "model.gguf").proven


@pytest.mark.parametrize("to", ["hf", "hf-bf16"])
def test_the_manifest(gguf: Path, tmp_path: Path, to: str) -> None:
    """Of every tensor what it is made of; digests are those of safetensors' own reading."""
    done = export(gguf, tmp_path / "out", to=to, shard_bytes=60_000)
    found = json.loads((tmp_path / "out" / "gptoss.manifest.json").read_text())
    status = gguf.stat()
    assert found["source"] == {
        "place": str(gguf),
        "revision": None,
        "files": [
            {"name": gguf.name, "sha256": None, "bytes": status.st_size,
             "modified_ns": status.st_mtime_ns}
        ],
    }  # fmt: skip
    held = forms.contents(tmp_path / "out")
    assert {it["name"]: (it["type"], it["shape"], it["sha256"]) for it in found["tensors"]} == {
        name: (dtype, list(shape), hashlib.sha256(raw).hexdigest())
        for name, (dtype, shape, raw) in held.items()
    }
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert {it["name"]: it["file"] for it in found["tensors"]} == index["weight_map"]
    assert {source for it in found["tensors"] for source in it["sources"]} == set(
        GgufFile.open(gguf).tensors
    )
    assert len(found["tensors"]) == done.tensors


def test_there_and_back_again_is_the_same_file(source: Path, tmp_path: Path) -> None:
    """Nothing is lost on the way: what comes back makes the same GGUF, keys and all."""
    convert(source, tmp_path / "first.gguf", dense="bf16")
    (tmp_path / "back").mkdir()
    export(tmp_path / "first.gguf", tmp_path / "back" / source.name)
    convert(tmp_path / "back" / source.name, tmp_path / "second.gguf", dense="bf16")
    assert (tmp_path / "first.gguf").read_bytes() == (tmp_path / "second.gguf").read_bytes()


def test_shards_and_their_index(gguf: Path, tmp_path: Path) -> None:
    done = export(gguf, tmp_path / "out", shard_bytes=40_000)
    names = [path.name for path in done.files if path.suffix == ".safetensors"]
    n = len(names)
    assert n > 3
    assert names == [f"model-{i:05}-of-{n:05}.safetensors" for i in range(1, n + 1)]
    opened = Checkpoint.open(tmp_path / "out")  # which holds index and shards against each other
    opened.check_tensors()
    assert forms.contents(tmp_path / "out") == forms.contents(tmp_path / "model")


def test_a_split_file(model: Path, tmp_path: Path) -> None:
    convert(model, tmp_path / "cut.gguf", dense="bf16", split_max_size=70_000)
    [first] = tmp_path.glob("cut-00001-of-*.gguf")
    export(first, tmp_path / "out")
    assert forms.contents(tmp_path / "out") == forms.contents(model)


@pytest.mark.parametrize("dense", ["f32", "f16", "q8_0", "q4_0"])
def test_other_dense_types(model: Path, tmp_path: Path, dense: str) -> None:
    """BF16 of what the type holds, by the gguf package; F32 holds it all."""
    convert(model, tmp_path / "dense.gguf", dense=dense)
    done = export(tmp_path / "dense.gguf", tmp_path / "out")
    assert done.inexact == (() if dense in ("f32", "f16") else (dense.upper(),))
    assert done.rounded == ()  # F16 of a BF16 value never has more than its eight digits
    expected = dict(forms.contents(model))
    held = ggufs.load(tmp_path / "dense.gguf").tensors
    for hf, ours in MATRICES.items():
        kind, _, raw = held[ours]
        values = quants.dequantize(raw, kind).astype(np.float32).reshape(-1)
        dtype, shape, before = expected[hf]
        expected[hf] = (dtype, shape, checkpoints.bf16(values).tobytes())
        if dense != "f16":  # which holds all but the smallest
            assert (expected[hf][2] == before) == (dense == "f32")
    assert forms.contents(tmp_path / "out") == expected


def test_experts_in_bf16(tmp_path: Path) -> None:
    """Each value from its definition; input dimension first, gate and up in turn."""
    source = random_checkpoint(tmp_path / "model", hidden=64, intermediate=96, experts=3)
    convert(source, tmp_path / "model.gguf", dense="bf16")
    done = export(tmp_path / "model.gguf", tmp_path / "out", to="hf-bf16")
    assert (done.inexact, done.rounded) == ((), ())
    found, packed = forms.contents(tmp_path / "out"), forms.contents(source)
    for layer in range(2):
        for name in ("gate_up_proj", "down_proj"):
            prefix = f"model.layers.{layer}.mlp.experts.{name}"
            dtype, shape, raw = found.pop(prefix)
            values = defined_values(packed.pop(prefix + "_blocks"), packed.pop(prefix + "_scales"))
            assert (dtype, shape) == ("BF16", list(values.transpose(0, 2, 1).shape))
            turned = np.ascontiguousarray(values.transpose(0, 2, 1))
            assert raw == checkpoints.bf16(turned.reshape(-1)).tobytes()
    assert found == packed
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config


def defined_values(blocks: Any, scales: Any) -> NDArray[np.float32]:
    """Values ``[experts, rows, columns]`` of Hugging Face's blocks: low nibble first."""
    _, (experts, rows, n, _), raw = blocks
    octets = np.frombuffer(raw, np.uint8).reshape(experts, rows, n, 16)
    codes = np.stack([octets & 15, octets >> 4], axis=-1).reshape(experts, rows, n, 32)
    exponents = np.frombuffer(scales[2], np.uint8).astype(int).reshape(experts, rows, n, 1) - 127
    values = np.ldexp(np.array(E2M1)[codes], exponents)
    found: NDArray[np.float32] = values.astype(np.float32).reshape(experts, rows, -1)
    return found


def floats(bf16: bytes) -> NDArray[np.float32]:
    return (np.frombuffer(bf16, np.uint16).astype(np.uint32) << 16).view(np.float32)


def test_experts_in_bf16_of_a_gguf_that_has_them_so(tmp_path: Path) -> None:
    """As other tools write them; there is no MXFP4 to give back then."""
    source = random_checkpoint(tmp_path / "model", layers=1)
    convert(source, tmp_path / "a.gguf", dense="bf16")
    export(tmp_path / "a.gguf", tmp_path / "expected", to="hf-bf16")

    def widen(model: ggufs.Model) -> None:
        for name, (kind, shape, raw) in model.tensors.items():
            if kind is GGMLQuantizationType.MXFP4:
                words = checkpoints.bf16(quants.dequantize(raw, kind).astype(np.float32))
                wide = (GGMLQuantizationType.BF16, shape, words.view(np.uint8))
                model.tensors[name] = wide

    ggufs.edited(tmp_path / "a.gguf", widen)
    with pytest.raises(
        UnsupportedModelError, match=r"ffn_gate_exps.weight is BF16, not MXFP4; .*hf-bf16"
    ):
        export(tmp_path / "a.gguf", tmp_path / "out")
    export(tmp_path / "a.gguf", tmp_path / "out", to="hf-bf16")
    found, expected = (forms.contents(tmp_path / name) for name in ("out", "expected"))
    for name in found.keys() | expected.keys():
        assert found[name][:2] == expected[name][:2]
        # As numbers: the gguf package has MXFP4's second zero without its sign.
        one, other = (floats(contents[name][2]) for contents in (found, expected))
        assert (one == other).all()


def test_gate_and_up_in_different_types(tmp_path: Path) -> None:
    """As other tools mix them: the values that each type holds, interleaved."""
    source = random_checkpoint(tmp_path / "model", layers=1, hidden=64, intermediate=96)
    convert(source, tmp_path / "a.gguf", dense="bf16")

    def mix(model: ggufs.Model) -> None:
        for name, kind in (
            ("gate_exps.weight", GGMLQuantizationType.F16),
            ("down_exps.weight", GGMLQuantizationType.Q8_0),
            ("up_exps.bias", GGMLQuantizationType.F16),
        ):
            full = f"blk.0.ffn_{name}"
            old, shape, raw = model.tensors[full]
            values = quants.dequantize(raw, old).astype(np.float32)
            model.tensors[full] = (
                kind,
                shape,
                quants.quantize(values, kind).reshape(-1).view(np.uint8),
            )

    ggufs.edited(tmp_path / "a.gguf", mix)
    held = {
        name: quants.dequantize(raw, kind).astype(np.float32).reshape(shape)
        for name, (kind, shape, raw) in ggufs.load(tmp_path / "a.gguf").tensors.items()
    }
    done = export(tmp_path / "a.gguf", tmp_path / "out", to="hf-bf16")
    assert (done.inexact, done.rounded) == (("Q8_0",), ())
    found = forms.contents(tmp_path / "out")
    prefix = "model.layers.0.mlp.experts."
    both = [held[f"blk.0.ffn_{x}_exps.weight"] for x in ("gate", "up")]
    whole = np.stack(both, axis=-1).transpose(0, 2, 1, 3).reshape(4, 64, 192)
    _, shape, raw = found[prefix + "gate_up_proj"]
    assert shape == [4, 64, 192]
    assert (floats(raw) == whole.reshape(-1)).all()  # MXFP4's values are exact in F16 and BF16
    biases = np.stack([held[f"blk.0.ffn_{x}_exps.bias"] for x in ("gate", "up")], axis=-1)
    expected = checkpoints.bf16(np.ascontiguousarray(biases.reshape(-1))).tobytes()
    assert found[prefix + "gate_up_proj_bias"][2] == expected
    with pytest.raises(UnsupportedModelError, match=r"ffn_gate_exps\.weight is F16, not MXFP4"):
        export(tmp_path / "a.gguf", tmp_path / "mxfp4")


@pytest.mark.parametrize("shard_bytes", [10**9, 60_000])
def test_tensors_are_in_the_order_of_the_safetensors_package(
    gguf: Path, tmp_path: Path, shard_bytes: int
) -> None:
    export(gguf, tmp_path / "out", shard_bytes=shard_bytes)
    for path in (tmp_path / "out").glob("*.safetensors"):
        found = [
            (dtype == "U8", name) for name, (dtype, _, _) in safetensors_files.load(path).items()
        ]
        assert found == sorted(found)


def test_f16_values_that_bf16_cannot_hold(gguf: Path, tmp_path: Path) -> None:
    def refine(model: ggufs.Model) -> None:
        _, shape, _ = model.tensors["output.weight"]
        values = np.zeros(shape, "<f2")
        values[3, 5] = 1.001
        model.tensors["output.weight"] = (
            GGMLQuantizationType.F16,
            shape,
            values.reshape(-1).view(np.uint8),
        )

    done = export(ggufs.edited(gguf, refine), tmp_path / "out")
    assert (done.inexact, done.rounded) == ((), ("output.weight",))


def test_what_bf16_cannot_hold_is_said(gguf: Path, tmp_path: Path) -> None:
    def refine(model: ggufs.Model) -> None:
        model.tensors["blk.1.attn_norm.weight"][2].view("<f4")[5] = 1.0001

    done = export(ggufs.edited(gguf, refine), tmp_path / "out")
    assert done.rounded == ("blk.1.attn_norm.weight",)


# --- whole, or not at all ---------------------------------------------------------------------


def test_what_is_there_is_never_written_over(gguf: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export(gguf, out)  # an empty folder is as good as none
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for target in (out, gguf):
        with pytest.raises(OutputError, match="exists already"):
            export(gguf, target)
    with pytest.raises(OutputError, match="no such folder"):
        export(gguf, tmp_path / "gone" / "out")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_an_interrupt_leaves_no_folder_and_the_next_run_goes_on(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tasks._convert
    calls = 0

    def interrupted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 20:
            raise KeyboardInterrupt
        return made(*args)

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "_convert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(gguf, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert done_right(export(gguf, tmp_path / "out"), tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_a_run_that_ended_while_it_gathered_the_files(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step are two: the files into a folder, and the folder to its place."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            export(gguf, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert done_right(export(gguf, tmp_path / "out"), tmp_path)


def done_right(done: Export, folder: Path) -> bool:
    return forms.contents(done.out) == forms.contents(folder / "model")


# --- the command ------------------------------------------------------------------------------


def test_the_command_says_what_is_exact(
    model: Path, gguf: Path, tmp_path: Path, run: Command
) -> None:
    code, said, errors = run(gguf, "-o", tmp_path / "exact", "--to", "hf")
    assert (code, errors) == (0, "")
    assert "every value is exactly the GGUF's" in said
    convert(model, gguf, dense="q8_0")
    code, said, _ = run(gguf, "-o", tmp_path / "inexact", "--to", "hf-bf16")
    assert "tensors in Q8_0 were decoded and rounded to BF16" in said
    code, said, errors = run(gguf, "-o", tmp_path / "json", "--to", "hf", "--json")
    assert (code, errors) == (0, "")
    summary = json.loads(said)
    assert summary["inexact_types"] == ["Q8_0"]
    assert str(tmp_path / "json" / "config.json") in summary["files"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model", "--to", "hf"), "--to hf takes a GGUF file"),
        (("gone.gguf", "--to", "hf"), "gone.gguf: cannot be opened"),
        (("model.gguf", "--to", "hf", "--dense", "bf16"), "--dense is for checkpoints"),
        (("model.gguf", "--to", "hf", "--base", "model"), "--base does not go with --to"),
        (("model/model.safetensors", "--to", "hf"), "not a GGUF file"),
    ],
)
def test_requests_that_make_no_sense(
    gguf: Path,
    tmp_path: Path,
    run: Command,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    source, *options = arguments
    code, said, errors = run(gguf.parent / source, "-o", tmp_path / "out", *options)
    assert (code, said, errors.count("\n")) == (2, "", 1)
    assert message in errors
    assert not (tmp_path / "out").exists()
