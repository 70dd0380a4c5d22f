"""Metadata that differs, files that are not sound, and what the command says of each."""

from __future__ import annotations

import json
import os
import shutil
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptoss.converter.convert import convert
from gptoss.errors import CheckpointError, GgufError, UnsupportedModelError
from gptoss.formats.checkpoint import Checkpoint
from gptoss.formats.gguf import GgufFile
from gptoss.quant.verify import verifier as verify_module
from gptoss.quant.verify.metadata import compare_keys
from gptoss.quant.verify.result import KeyDifference
from gptoss.quant.verify.verifier import verify
from support import safetensors_files
from support.checkpoints import random_checkpoint
from support.commands import Command
from support.planted import Copying

# --- metadata ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("gpt-oss.rope.scaling.type", "'yarn'"),
        ("gpt-oss.rope.scaling.factor", "32.0"),
        ("gpt-oss.rope.freq_base", "150000.0"),
        ("gpt-oss.rope.scaling.original_context_length", "4096"),
        ("gpt-oss.attention.sliding_window", "128"),
        ("gpt-oss.attention.value_length", "as gpt-oss.attention.key_length"),
        ("tokenizer.ggml.tokens", "an array of 320"),
        ("tokenizer.ggml.eos_token_id", "260"),
    ],
)
def test_a_missing_key(copy: Copying, key: str, expected: str) -> None:
    it = copy()
    name = struct.pack("<Q", len(key)) + key.encode()
    it.replace(name, name[:8] + b"?" + name[9:])
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
    difference, merges = it.verify().keys
    assert (difference.key, difference.index) == ("tokenizer.ggml.token_type", token)
    assert (difference.expected, difference.found) == ("3", "1")
    assert merges.key == "tokenizer.ggml.merges"  # none, so no text can become the word


@pytest.mark.parametrize(
    ("token", "found", "expected"),
    [
        (65, 3, 1),  # text could not be encoded to it
        (300, 1, 5),  # text could be encoded to a row that no token has
    ],
)
def test_a_word_that_is_none(copy: Copying, token: int, found: int, expected: int) -> None:
    it, key = copy(), b"tokenizer.ggml.token_type"
    it.replace(key, struct.pack("<i", found), len(key) + 4 + 4 + 8 + 4 * token)
    difference, *others = it.verify().keys
    assert (difference.key, difference.index) == ("tokenizer.ggml.token_type", token)
    assert (difference.expected, difference.found) == (str(expected), str(found))
    assert [it.key for it in others] == ["tokenizer.ggml.merges"] * (found == 1)


# --- tokenizers as fine-tunes have them -------------------------------------------------------


@pytest.fixture
def edited(source: Path, tmp_path: Path) -> Callable[..., Path]:
    """``edited(name, change)``: a copy of the checkpoint with one of its JSON files changed."""

    def edit(name: str, change: Callable[[dict[str, Any]], object]) -> Path:
        folder = tmp_path / "edited"
        if not folder.exists():
            shutil.copytree(source, folder)
        found = json.loads((folder / name).read_text())
        change(found)
        (folder / name).write_text(json.dumps(found))
        return folder

    return edit


def without_marks(settings: dict[str, Any]) -> None:
    del settings["bos_token"], settings["eos_token"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tokenizer_config.json", without_marks),  # there are rows without a token, too
        ("tokenizer_config.json", lambda s: s.update({"bos_token": "a"})),  # is no added token
        ("tokenizer.json", lambda t: t["added_tokens"][2].update(special=False)),
        (
            "tokenizer.json",
            lambda t: t["added_tokens"].append({"id": 300, "content": "a▁b", "special": False}),
        ),
        ("tokenizer.json", lambda t: t["model"]["vocab"].update({"<|call|>": 270})),
    ],
)
def test_what_is_converted_is_proven(
    edited: Callable[..., Path],
    tmp_path: Path,
    name: str,
    change: Callable[[dict[str, Any]], object],
) -> None:
    folder = edited(name, change)
    convert(folder, tmp_path / "out.gguf")
    assert verify(folder, tmp_path / "out.gguf").first is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["model"].update(merges=[1, 2]), "model.merges holds 1"),
        (lambda t: t["model"].update(merges=[["a"]]), r"model.merges holds \['a'\]"),
        (lambda t: t["added_tokens"].append(5), "a token is None and its id None"),
        (lambda t: t["model"]["vocab"].update({"ab": 1}), "both have the id 1"),
        (lambda t: t.update(normalizer={"type": "NFC"}), "has a normalizer"),
        (lambda t: t["model"].update(byte_fallback=True), "model.byte_fallback is True"),
        (lambda t: t["model"].update(type="WordPiece"), "no BPE model"),
        (lambda t: t.update(pre_tokenizer=None), "does not split text as o200k does"),
    ],
)
def test_a_tokenizer_that_is_no_gpt_oss(
    copy: Copying,
    edited: Callable[..., Path],
    change: Callable[[dict[str, Any]], object],
    message: str,
) -> None:
    with pytest.raises(CheckpointError, match=message):
        verify(edited("tokenizer.json", change), copy().path)


# --- bad input --------------------------------------------------------------------------------


def test_another_architecture(copy: Copying) -> None:
    it = copy()
    it.replace(b"general.architecture", b"gpt-osx", 20 + 4 + 8)
    with pytest.raises(UnsupportedModelError, match="'gpt-osx'"):
        it.verify()


def test_a_truncated_gguf(copy: Copying) -> None:
    it = copy()
    with it.path.open("r+b") as file:
        file.truncate(it.path.stat().st_size - 100)
    with pytest.raises(GgufError, match=r"model\.gguf"):
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
    with pytest.raises(
        GgufError if which == "gguf" else CheckpointError, match=r"(cut|modified|truncated) while"
    ):
        verify(folder, it.path)


@pytest.mark.parametrize("which", ["gguf", "shard"])
def test_a_file_that_changes_while_it_is_read(copy: Copying, tmp_path: Path, which: str) -> None:
    """Of the same length still: what was compared is not what is there now."""
    it = copy()
    folder = tmp_path / "checkpoint"
    shutil.copytree(it.source, folder)
    victim = it.path if which == "gguf" else sorted(folder.glob("*.safetensors"))[-1]

    def touch(done: int, total: int) -> None:
        if done == total:
            os.utime(victim, ns=(1, 1))

    error = GgufError if which == "gguf" else CheckpointError
    with pytest.raises(error, match="was modified while being read"):
        verify(folder, it.path, progress=touch)


def test_a_checkpoint_without_one_of_its_tensors(copy: Copying, tmp_path: Path) -> None:
    it = copy()
    folder = tmp_path / "checkpoint"
    shutil.copytree(it.source, folder)
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"], config["layer_types"] = 3, [*config["layer_types"], "x"]
    config["layer_types"][2] = "sliding_attention"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"missing tensor 'model\.layers\.2\."):
        verify(folder, it.path)


# --- the command ------------------------------------------------------------------------------


def test_command_says_proven(copy: Copying, run: Command) -> None:
    it = copy()
    done = run("verify", it.source, it.path)
    assert done.code == 0
    assert done.out.startswith(f"proven: {it.path} holds what {it.source} holds\n")


def test_command_names_the_first_difference(copy: Copying, run: Command) -> None:
    it = copy()
    it.xor(it.offset("blk.1.ffn_up_exps.weight") + 17 + 1, 0x80)
    it.replace(b"gpt-oss.rope.freq_base", b"?")
    done = run("verify", it.source, it.path)
    assert done.code == 1
    lines = done.out.splitlines()
    place = "expert 0, row 0, block 1, lane 16"
    assert lines[0].startswith(f"different: blk.1.ffn_up_exps.weight: {place}: expected ")
    assert lines[2] == (f"  blk.1.ffn_up_exps.weight: 1 value differs, the first at {place}")
    assert lines[3] == "  gpt-oss.rope.freq_base: expected 150000.0, found nothing"


def test_command_in_json(copy: Copying, run: Command) -> None:
    it = copy()
    it.xor(it.offset("blk.1.attn_sinks.weight") + 3, 0x80)
    done = run("verify", it.source, it.path, "--json")
    assert done.code == 1
    verdict = json.loads(done.out)
    assert verdict["proven"] is False
    assert verdict["first"].startswith("blk.1.attn_sinks.weight: index 0: expected ")
    (difference,) = verdict["differences"]
    assert difference["problem"] == "values"
    assert difference["place"] == {
        "expert": None, "row": None, "block": None, "lane": None, "index": 0,
    }  # fmt: skip


def test_command_on_bad_input(copy: Copying, run: Command) -> None:
    it = copy()
    it.path.write_bytes(it.path.read_bytes()[:1000])
    for source, path in ((it.source, it.path), (it.source / "no", it.path)):
        done = run("verify", source, path)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert done.err.startswith("error: ")


def test_command_on_arguments_that_are_swapped_or_of_one_kind(copy: Copying, run: Command) -> None:
    it = copy()
    for source, path, said in (
        (it.path, it.source, f"{it.path}: is a file; name the checkpoint's folder first"),
        (it.path, it.path, f"{it.path}: is a file; name the checkpoint's folder first"),
        (it.source, it.source, f"{it.source}: is a folder; name the GGUF second"),
    ):
        done = run("verify", source, path)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert said in done.err
        assert done.err.endswith("to compare two GGUFs or two checkpoints: gptoss-quant diff\n")


def test_names_steer_no_terminal(copy: Copying, tmp_path: Path, run: Command) -> None:
    """A name that would move the cursor up and write "proven" there: of a file, of a tensor."""
    it = copy()
    escapes = "\x1b[1F\x1b[2Kproven\u202e"
    path = tmp_path / f"{escapes}.gguf"
    shutil.copyfile(it.path, path)
    folder = random_checkpoint(tmp_path / "checkpoint", hidden=96, intermediate=64)
    (shard,) = folder.glob("*.safetensors")
    tensors = safetensors_files.load(shard)
    tensors[escapes] = ("BF16", [1], b"\0\0")
    safetensors_files.save(shard, tensors)
    for arguments in (
        ("verify", it.source, path), ("verify", it.source, tmp_path / f"no{escapes}"),
        ("verify", folder, it.path), ("audit", path), ("audit", folder), ("diff", folder, path),
        (escapes,), ("audit", f"--{escapes}"),
        ("report", folder, "-o", tmp_path / f"{escapes}.html"),
    ):  # fmt: skip
        done = run(*arguments)
        for text in (done.out, done.err):
            assert all(line.isprintable() for line in text.split("\n")), arguments
    assert "\\x1b[1F\\x1b[2Kproven\\u202e, in " in run("audit", folder).out


def test_a_mistake_of_ours_is_not_the_answer_no(
    copy: Copying, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the system lets no more threads begin: ``ulimit -v``."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    it = copy()
    for arguments in (
        ("verify", it.source, it.path),
        ("audit", it.path),
        ("diff", it.path, it.path),
    ):
        done = run(*arguments)
        assert (done.code, done.out, done.err.count("\n")) == (70, "", 1)
        assert done.err.startswith("internal error: RuntimeError at ")


def test_a_file_that_may_not_be_read_is_one_line(
    copy: Copying, tmp_path: Path, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the option parser's usage text: the reader says it, as of any other file."""
    it = copy()
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    for arguments in (
        ("verify", it.source, it.path),
        ("audit", it.path),
        ("diff", it.path, it.path),
        ("report", it.path, "-o", tmp_path / "page.html"),
    ):
        assert run(*arguments).code == 0, arguments[0]
