"""Defects planted in a converted file: each must be found, counted, and named at its place."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType

from gptoss.converter.convert import convert
from gptoss.files.checkpoint import Checkpoint
from gptoss.files.errors import BadCheckpoint, BadGguf, UnsupportedModel
from gptoss.files.gguf import GgufFile
from gptoss.quant import cli, mxfp4
from gptoss.quant import verify as verify_module
from gptoss.quant.keys import compare_keys
from gptoss.quant.verdict import KeyDifference, Place, Problem, TensorDifference, Verdict
from gptoss.quant.verify import verify
from support.checkpoints import random_checkpoint

HIDDEN, INTERMEDIATE, EXPERTS = 96, 64, 4
DENSE = ("q8_0", "bf16", "f16", "f32")


@dataclass(frozen=True)
class Copy:
    """A converted file to do harm to, in place."""

    source: Path
    path: Path

    def offset(self, tensor: str) -> int:
        return GgufFile.open(self.path).tensors[tensor].offset

    def read(self, at: int, size: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(at)
            return file.read(size)

    def write(self, at: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(at)
            file.write(data)

    def tensor(self, name: str) -> bytes:
        info = GgufFile.open(self.path).tensors[name]
        return self.read(info.offset, info.nbytes)

    def xor(self, at: int, bits: int) -> None:
        self.write(at, bytes([self.read(at, 1)[0] ^ bits]))

    def replace(self, old: bytes, new: bytes, skip: int = 0) -> None:
        """Change the header where ``old`` stands, ``skip`` bytes after its start."""
        header = self.read(0, 2**16)
        assert header.count(old) == 1
        self.write(header.index(old) + skip, new)

    def verify(self) -> Verdict:
        return verify(self.source, self.path)

    def only(self) -> TensorDifference:
        """The single difference that must be found."""
        verdict = self.verify()
        assert not verdict.proven
        assert not verdict.keys
        (difference,) = verdict.differences
        assert verdict.first == difference
        return difference


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    return random_checkpoint(
        folder, hidden=HIDDEN, intermediate=INTERMEDIATE, experts=EXPERTS, shards=2
    )


@pytest.fixture(scope="module")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("converted")
    for dense in DENSE:
        convert(source, folder / f"{dense}.gguf", dense=dense)
    return {dense: folder / f"{dense}.gguf" for dense in DENSE}


Copying = Callable[..., Copy]


@pytest.fixture
def copy(source: Path, converted: dict[str, Path], tmp_path: Path) -> Copying:
    def make(dense: str = "bf16") -> Copy:
        path = tmp_path / "model.gguf"
        shutil.copyfile(converted[dense], path)
        return Copy(source, path)

    return make


@pytest.fixture(params=[2**21, 2**11], ids=["large pieces", "small pieces"], autouse=True)
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "PIECE", request.param)


@pytest.mark.parametrize("dense", DENSE)
def test_a_good_conversion_is_proven(source: Path, converted: dict[str, Path], dense: str) -> None:
    steps: list[tuple[int, int]] = []
    verdict = verify(source, converted[dense], progress=lambda *step: steps.append(step))
    assert verdict.proven
    assert verdict.first is None
    file = GgufFile.open(converted[dense])
    checkpoint = Checkpoint.open(source)
    nbytes = sum(tensor.nbytes for tensor in file.tensors.values())
    nbytes += sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    assert verdict.tensors == len(file.tensors)
    assert verdict.nbytes == nbytes
    assert steps[-1] == (nbytes, nbytes)
    assert verdict.values == sum(
        int(np.prod(tensor.shape, dtype=np.int64)) for tensor in file.tensors.values()
    )


# --- experts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", [0, 15, 16, 31])
@pytest.mark.parametrize(
    ("which", "rows", "columns"),
    [
        ("gate", INTERMEDIATE, HIDDEN),
        ("up", INTERMEDIATE, HIDDEN),
        ("down", HIDDEN, INTERMEDIATE),
    ],
)
def test_a_flipped_nibble(copy: Copying, which: str, rows: int, columns: int, lane: int) -> None:
    it, name = copy(), f"blk.1.ffn_{which}_exps.weight"
    place = Place(expert=2, row=rows - 1, block=1, lane=lane)
    block = (2 * rows + rows - 1) * (columns // 32) + 1
    it.xor(it.offset(name) + 17 * block + 1 + lane % 16, 8 if lane < 16 else 8 << 4)
    difference = it.only()
    assert (difference.tensor, difference.problem) == (name, Problem.VALUES)
    assert (difference.place, difference.values, difference.scales) == (place, 1, 0)
    expected, found = (float(text.split()[0]) for text in (difference.expected, difference.found))
    assert expected == -found  # the bit flipped is the sign
    assert str(place) == f"expert 2, row {rows - 1}, block 1, lane {lane}"
    assert str(difference).startswith(f"{name}: {place}: expected ")


def test_a_changed_scale(copy: Copying) -> None:
    it, name = copy(), "blk.0.ffn_up_exps.weight"
    at = it.offset(name) + 17 * (1 * INTERMEDIATE * 3 + 5 * 3 + 2)
    was = it.read(at, 1)[0]
    it.write(at, b"\xff")
    difference = it.only()
    assert difference.place == Place(expert=1, row=5, block=2)
    assert (difference.values, difference.scales) == (0, 1)
    assert (difference.expected, difference.found) == (f"scale {was}", "scale 255")


def test_swapped_experts(copy: Copying) -> None:
    it, name = copy(), "blk.0.ffn_down_exps.weight"
    data = bytearray(it.tensor(name))
    size = len(data) // EXPERTS
    data[size : 2 * size], data[3 * size :] = data[3 * size :], data[size : 2 * size]
    it.write(it.offset(name), bytes(data))
    difference = it.only()
    assert difference.place is not None
    assert (difference.place.expert, difference.place.row) == (1, 0)
    assert difference.values > HIDDEN * INTERMEDIATE  # of two experts, most codes


def test_gate_and_up_swapped(copy: Copying) -> None:
    it = copy()
    gate, up = "blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight"
    gate_data, up_data = it.tensor(gate), it.tensor(up)
    it.write(it.offset(gate), up_data)
    it.write(it.offset(up), gate_data)
    verdict = it.verify()
    assert [difference.tensor for difference in verdict.differences] == [gate, up]
    for difference in verdict.differences:
        assert difference.place is not None
        assert (difference.place.expert, difference.place.row) == (0, 0)


def test_halves_in_place_of_every_second_row(copy: Copying) -> None:
    it = copy()
    tensors = Checkpoint.open(it.source).tensors
    prefix = "model.layers.0.mlp.experts.gate_up_proj"
    arrays = []
    for ending in ("_blocks", "_scales"):
        info = tensors[prefix + ending]
        raw = np.fromfile(info.path, np.uint8, info.nbytes, offset=info.offset)
        arrays.append(raw.reshape(info.shape))
    blocks, scales = arrays
    for which, half in (("gate", 0), ("up", 1)):
        rows = slice(half * INTERMEDIATE, (half + 1) * INTERMEDIATE)
        out = np.empty((*scales[:, rows].shape, 17), np.uint8)
        mxfp4.repack(blocks[:, rows], scales[:, rows], out)
        it.write(it.offset(f"blk.0.ffn_{which}_exps.weight"), out.tobytes())
    gate, up = it.verify().differences
    assert gate.place is not None
    assert up.place is not None
    assert (gate.place.expert, gate.place.row) == (0, 1)  # row 0 is right either way
    assert (up.place.expert, up.place.row) == (0, 0)


def test_codes_in_the_order_of_the_checkpoint(copy: Copying) -> None:
    """What a forgotten repack looks like."""
    it, name = copy(), "blk.0.ffn_down_exps.weight"
    data = np.frombuffer(it.tensor(name), np.uint8).reshape(-1, 17).copy()
    blocks, scales = np.empty((len(data), 16), np.uint8), np.empty(len(data), np.uint8)
    mxfp4.unpack(data, blocks, scales)
    data[:, 1:] = blocks
    it.write(it.offset(name), data.tobytes())
    difference = it.only()
    assert difference.scales == 0
    assert difference.values > data.shape[0] * 32 // 2


# --- dense tensors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "at", "place"),
    [
        ("blk.1.attn_sinks.weight", 4, 1, Place(index=1)),
        ("blk.0.attn_norm.weight", 4, 95, Place(index=95)),
        ("output_norm.weight", 4, 0, Place(index=0)),
        ("blk.0.attn_k.bias", 4, 63, Place(index=63)),
        ("blk.1.ffn_gate_inp.weight", 4, 2 * HIDDEN + 7, Place(expert=2, index=7)),
        ("blk.1.ffn_gate_inp.bias", 4, 3, Place(index=3)),
        ("blk.1.ffn_gate_exps.bias", 4, 2 * INTERMEDIATE + 9, Place(expert=2, index=9)),
        ("blk.1.ffn_up_exps.bias", 4, 3 * INTERMEDIATE + 63, Place(expert=3, index=63)),
        ("blk.1.ffn_down_exps.bias", 4, HIDDEN + 1, Place(expert=1, index=1)),
        ("token_embd.weight", 2, 319 * HIDDEN + 95, Place(row=319, index=95)),
        ("output.weight", 2, 3 * HIDDEN, Place(row=3, index=0)),
        ("blk.0.attn_output.weight", 2, 5 * 128 + 127, Place(row=5, index=127)),
    ],
)
def test_a_changed_value(copy: Copying, name: str, size: int, at: int, place: Place) -> None:
    it = copy()
    it.xor(it.offset(name) + size * at, 1)
    difference = it.only()
    assert (difference.tensor, difference.place) == (name, place)
    assert (difference.values, difference.scales) == (1, 0)


@pytest.mark.parametrize(("dense", "size"), [("f16", 2), ("f32", 4)])
def test_a_changed_value_in_other_types(copy: Copying, dense: str, size: int) -> None:
    it = copy(dense)
    it.xor(it.offset("blk.0.attn_q.weight") + size * (7 * HIDDEN + 11), 1)
    assert it.only().place == Place(row=7, index=11)


def test_a_changed_q8_0_code_and_scale(copy: Copying) -> None:
    it, name = copy("q8_0"), "blk.1.attn_v.weight"
    block = it.offset(name) + 34 * (9 * HIDDEN // 32 + 2)
    it.xor(block + 2 + 21, 1)
    difference = it.only()
    assert difference.place == Place(row=9, block=2, lane=21)
    assert (difference.values, difference.scales) == (1, 0)
    it.xor(block, 1)
    difference = it.only()
    assert difference.place == Place(row=9, block=2)
    assert (difference.values, difference.scales) == (1, 1)
    assert difference.expected.startswith("scale ")


@pytest.mark.parametrize("dense", DENSE)
def test_any_byte_of_any_tensor_counts(copy: Copying, dense: str) -> None:
    it = copy(dense)
    rng = np.random.default_rng(3)
    tensors = list(GgufFile.open(it.path).tensors.values())
    for tensor in rng.choice(np.array(tensors, object), 12):
        at = tensor.offset + int(rng.integers(tensor.nbytes))
        bits = int(rng.integers(1, 256))
        it.xor(at, bits)
        difference = it.only()
        assert difference.tensor == tensor.name
        assert 1 <= difference.values + difference.scales <= 2
        it.xor(at, bits)
    assert it.verify().proven


def test_the_first_difference_is_the_first_in_the_model(copy: Copying) -> None:
    it = copy()
    names = ["token_embd.weight", "blk.0.attn_sinks.weight", "blk.1.attn_q.bias", "output.weight"]
    for name in reversed(names):
        it.xor(it.offset(name), 1)
        it.xor(it.offset(name) + 5, 1)
    verdict = it.verify()
    assert [difference.tensor for difference in verdict.differences] == names
    assert verdict.first == verdict.differences[0]
    assert verdict.differences[0].place == Place(row=0, index=0)
    assert verdict.differences[0].values == 2


# --- tensors that cannot be compared ----------------------------------------------------------


def test_a_missing_and_an_extra_tensor(copy: Copying) -> None:
    it = copy()
    it.replace(b"blk.1.ffn_up_exps.weight", b"blk.1.ffn_up_expz.weight")
    verdict = it.verify()
    missing, extra = verdict.differences
    assert (missing.tensor, missing.problem) == ("blk.1.ffn_up_exps.weight", Problem.MISSING)
    assert missing.expected == f"MXFP4 ({HIDDEN}, {INTERMEDIATE}, {EXPERTS})"
    assert (extra.tensor, extra.problem) == ("blk.1.ffn_up_expz.weight", Problem.EXTRA)
    assert verdict.first == missing
    # Its other half, of the same source tensor, is compared all the same.
    it.xor(it.offset("blk.1.ffn_gate_exps.weight") + 1, 1)
    assert it.verify().differences[0].place == Place(expert=0, row=0, block=0, lane=0)


def test_a_wrong_type(copy: Copying) -> None:
    it, name = copy(), b"blk.0.attn_sinks.weight"
    it.replace(name, struct.pack("<I", GGMLQuantizationType.I32), len(name) + 4 + 8)
    difference = it.only()
    assert difference.problem is Problem.TYPE
    assert (difference.expected, difference.found) == ("F32", "I32")


def test_a_wrong_shape(copy: Copying) -> None:
    it, name = copy(), b"blk.0.attn_q.weight"
    it.replace(name, struct.pack("<QQ", 128, HIDDEN), len(name) + 4)
    difference = it.only()
    assert difference.problem is Problem.SHAPE
    assert (difference.expected, difference.found) == (f"({HIDDEN}, 128)", f"(128, {HIDDEN})")


# --- metadata ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("gpt-oss.rope.scaling.type", "'yarn'"),
        ("gpt-oss.rope.scaling.factor", "32.0"),
        ("gpt-oss.rope.freq_base", "150000.0"),
        ("gpt-oss.rope.scaling.original_context_length", "4096"),
        ("gpt-oss.attention.sliding_window", "128"),
        ("gpt-oss.attention.value_length", "64"),
        ("tokenizer.ggml.tokens", "320 elements"),
        ("tokenizer.ggml.eos_token_id", "260"),
    ],
)
def test_a_missing_key(copy: Copying, key: str, expected: str) -> None:
    it = copy()
    name = struct.pack("<Q", len(key)) + key.encode()
    it.replace(name, name[:-1] + b"?")
    verdict = it.verify()
    assert not verdict.differences
    (difference,) = verdict.keys
    assert (difference.key, difference.expected, difference.found) == (key, expected, "nothing")
    assert verdict.first == difference


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("gpt-oss.rope.scaling.factor", struct.pack("<f", 31), "31.0"),
        ("gpt-oss.rope.scaling.yarn_beta_slow", struct.pack("<f", 2), "2.0"),
        ("gpt-oss.expert_used_count", struct.pack("<I", 3), "3"),
        ("gpt-oss.attention.layer_norm_rms_epsilon", struct.pack("<f", 0), "0.0"),
    ],
)
def test_a_changed_key(copy: Copying, key: str, value: bytes, found: str) -> None:
    it = copy()
    name = struct.pack("<Q", len(key)) + key.encode()
    it.replace(name, value, len(name) + 4)
    (difference,) = it.verify().keys
    assert (difference.key, difference.found) == (key, found)


def test_tokens_in_another_order(copy: Copying) -> None:
    it = copy()
    call, end = b"<|call|>", b"<|end|>"
    pair = struct.pack("<Q", 8) + call, struct.pack("<Q", 7) + end
    header = it.read(0, 2**16)
    a, b = sorted(header.index(token) for token in pair)
    between = header[a + 15 : b]
    it.write(a, pair[0] + between + pair[1])
    (difference,) = it.verify().keys
    assert (difference.key, difference.elements) == ("tokenizer.ggml.tokens", 2)
    assert (difference.expected, difference.found) == ("'<|end|>'", "'<|call|>'")
    assert str(difference) == (
        f"tokenizer.ggml.tokens[{difference.index}]: expected '<|end|>', found '<|call|>'"
    )


def test_a_control_token_that_is_none(copy: Copying) -> None:
    it, key = copy(), b"tokenizer.ggml.token_type"
    token = 256 + 5
    it.replace(key, struct.pack("<i", 1), len(key) + 4 + 4 + 8 + 4 * token)
    (difference,) = it.verify().keys
    assert (difference.key, difference.index) == ("tokenizer.ggml.token_type", token)
    assert (difference.expected, difference.found) == ("3", "1")


# --- bad input --------------------------------------------------------------------------------


def test_another_architecture(copy: Copying) -> None:
    it = copy()
    it.replace(b"general.architecture", b"gpt-osx", 20 + 4 + 8)
    with pytest.raises(UnsupportedModel, match="'gpt-osx'"):
        it.verify()


def test_a_truncated_gguf(copy: Copying) -> None:
    it = copy()
    with it.path.open("r+b") as file:
        file.truncate(it.path.stat().st_size - 100)
    with pytest.raises(BadGguf, match=r"model\.gguf"):
        it.verify()


@pytest.mark.parametrize("which", ["gguf", "shard"])
def test_a_file_cut_while_it_is_read(
    copy: Copying, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    it = copy()
    folder = tmp_path / "checkpoint"
    shutil.copytree(it.source, folder)
    victim = it.path if which == "gguf" else sorted(folder.glob("*.safetensors"))[-1]

    def cut(checkpoint: Checkpoint, gguf: GgufFile) -> tuple[KeyDifference, ...]:
        with victim.open("r+b") as file:
            file.truncate(victim.stat().st_size // 2)
        return compare_keys(checkpoint, gguf)

    monkeypatch.setattr(verify_module, "compare_keys", cut)
    with pytest.raises(BadGguf if which == "gguf" else BadCheckpoint, match="cut while"):
        verify(folder, it.path)


def test_a_checkpoint_without_one_of_its_tensors(copy: Copying, tmp_path: Path) -> None:
    it = copy()
    folder = tmp_path / "checkpoint"
    shutil.copytree(it.source, folder)
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"], config["layer_types"] = 3, [*config["layer_types"], "x"]
    config["layer_types"][2] = "sliding_attention"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadCheckpoint, match=r"'model\.layers\.2\..*' is missing"):
        verify(folder, it.path)


# --- the command ------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> object:
    monkeypatch.setattr(sys, "argv", ["gptoss-quant", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


def test_command_says_proven(
    copy: Copying, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    it = copy()
    assert run(monkeypatch, "verify", it.source, it.path) == 0
    assert capsys.readouterr().out.startswith(f"proven: {it.path} holds what {it.source} holds\n")


def test_command_names_the_first_difference(
    copy: Copying, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    it = copy()
    it.xor(it.offset("blk.1.ffn_up_exps.weight") + 17 + 1, 0x80)
    it.replace(b"gpt-oss.rope.freq_base", b"?", 21)
    assert run(monkeypatch, "verify", it.source, it.path) == 1
    lines = capsys.readouterr().out.splitlines()
    place = "expert 0, row 0, block 1, lane 16"
    assert lines[0].startswith(f"different: blk.1.ffn_up_exps.weight: {place}: expected ")
    assert lines[2] == (f"  blk.1.ffn_up_exps.weight: 1 values differ, the first at {place}")
    assert lines[3] == "  gpt-oss.rope.freq_base: expected 150000.0, found nothing"


def test_command_in_json(
    copy: Copying, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    it = copy()
    it.xor(it.offset("blk.1.attn_sinks.weight") + 3, 0x80)
    assert run(monkeypatch, "verify", it.source, it.path, "--json") == 1
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["proven"] is False
    assert verdict["first"].startswith("blk.1.attn_sinks.weight: index 0: expected ")
    (difference,) = verdict["differences"]
    assert difference["problem"] == "values"
    assert difference["place"] == {
        "expert": None, "row": None, "block": None, "lane": None, "index": 0,
    }  # fmt: skip


def test_command_on_bad_input(
    copy: Copying, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    it = copy()
    it.path.write_bytes(it.path.read_bytes()[:1000])
    for source, path in ((it.source, it.path), (it.source / "no", it.path), (it.path, it.path)):
        assert run(monkeypatch, "verify", source, path) == 2
        caught = capsys.readouterr()
        assert caught.out == ""
        assert caught.err.startswith("error: ")
        assert caught.err.count("\n") == 1
