"""What the command says, its exit codes, and input that is not sound enough to be audited."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import GGUFValueType, TokenType

from gptoss.converter.convert import convert
from gptoss.errors import CheckpointError, GgufError, UnsupportedModelError
from gptoss.quant.audit.auditor import audit
from gptoss.quant.audit.findings import FindingKind, Severity
from support import ggufs
from support.checkpoints import random_checkpoint
from support.commands import Command
from support.defects.experts import nan_scale
from support.defects.patient import Patient
from support.editing import regions
from support.forms import to_openai


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    random_checkpoint(folder / "checkpoint", shards=2)
    convert(folder / "checkpoint", folder / "model.gguf")
    return folder


@pytest.fixture
def checkpoint(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound / "checkpoint", tmp_path / "checkpoint")


@pytest.fixture
def gguf(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copyfile(sound / "model.gguf", tmp_path / "model.gguf"))


def test_a_sound_model(sound: Path, run: Command) -> None:
    done = run("audit", sound / "model.gguf")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == f"no errors, but 1 warning in {sound / 'model.gguf'}"
    assert lines[2].startswith("gate  1,024 blocks: scale bytes ")
    assert "warning: template-missing: " in "\n".join(lines)


def test_a_model_without_mxfp4_is_said_to_have_none(
    sound: Path, tmp_path: Path, run: Command
) -> None:
    convert(sound / "checkpoint", tmp_path / "model.gguf", experts="bf16")
    lines = run("audit", tmp_path / "model.gguf").out.splitlines()
    assert lines[2] == "no experts are in MXFP4: they were counted like all other tensors"


def test_a_model_with_an_error(checkpoint: Path, run: Command) -> None:
    expected = nan_scale(Patient(checkpoint, np.random.default_rng(0)))
    done = run("audit", checkpoint)
    assert done.code == 1
    text = done.out
    place = f"expert {expected.expert}, row {expected.row}, block {expected.block}"
    assert text.startswith(f"unsound: 1 error, 2 warnings in {checkpoint}\n")
    assert f"\n  {expected.tensor}, {place}: scale 255: 1 block in 1 expert" in text


@pytest.mark.filterwarnings("error")
def test_a_norm_of_nothing_but_nan_warns_of_nothing(checkpoint: Path) -> None:
    region = regions(checkpoint)["model.norm.weight"]
    region.write(np.full_like(region.read(), 0x7FC0))
    kinds = [it.kind.label for it in audit(checkpoint).findings if it.tensor == "model.norm.weight"]
    assert kinds == ["not-finite"]


def test_json(checkpoint: Path, run: Command) -> None:
    expected = nan_scale(Patient(checkpoint, np.random.default_rng(0)))
    done = run("audit", checkpoint, "--json")
    assert done.code == 1
    result = json.loads(done.out)
    assert result["sound"] is False
    assert len(result["experts"]) == 2 * 3
    assert all(sum(it["scales"].values()) == 4 * 64 * 2 for it in result["experts"])
    first = result["findings"][0]
    assert (first["kind"], first["severity"]) == ("scale-nan", "error")
    assert (first["tensor"], first["expert"]) == (expected.tensor, expected.expert)
    assert first["effect"]
    assert first["remedy"]


def test_openai_layout_counts_alike(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model" / "original"
    to_openai(sound / "checkpoint", folder)
    result, reference = audit(folder), audit(sound / "checkpoint")
    assert result.sound
    for one, other in zip(result.experts, reference.experts, strict=True):
        assert (one.scales == other.scales).all()
        assert (one.codes == other.codes).all()


def test_a_split_gguf(sound: Path, tmp_path: Path) -> None:
    convert(sound / "checkpoint", tmp_path / "model.gguf", split_max_size=150_000)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) > 1
    result, reference = audit(parts[0]), audit(sound / "model.gguf")
    assert result.sound
    assert result.nbytes == reference.nbytes


# --- bad input --------------------------------------------------------------------------------


def test_files_that_end_early(checkpoint: Path, gguf: Path) -> None:
    for path, error in (
        (gguf, GgufError),
        (sorted(checkpoint.glob("*.safe*"))[0], CheckpointError),
    ):
        os.truncate(path, path.stat().st_size - 100)
        with pytest.raises(error, match=r"cut short|truncated"):
            audit(path if path == gguf else checkpoint)


def test_another_architecture(checkpoint: Path, gguf: Path) -> None:
    config = checkpoint / "config.json"
    config.write_text(config.read_text().replace('"gpt_oss"', '"llama"'))
    with pytest.raises(UnsupportedModelError, match="'llama'"):
        audit(checkpoint)
    gguf.write_bytes(gguf.read_bytes().replace(b"gpt-oss", b"llama-7", 1))
    with pytest.raises((UnsupportedModelError, GgufError)):
        audit(gguf)


@pytest.mark.parametrize("how", ["cut", "touched", "removed"])
@pytest.mark.parametrize("which", ["checkpoint", "model.gguf"])
def test_a_model_that_changes_while_it_is_read(
    checkpoint: Path, gguf: Path, which: str, how: str
) -> None:
    path = gguf if which == "model.gguf" else checkpoint
    victim = gguf if path == gguf else sorted(checkpoint.glob("*.safetensors"))[-1]
    done = False

    def progress(finished: int, total: int) -> None:
        nonlocal done
        if done or finished == total:
            return
        done = True
        if how == "cut":
            os.truncate(victim, victim.stat().st_size // 2)
        elif how == "removed":
            victim.unlink()
        else:
            region = next(it for it in regions(path).values() if it.path == victim)
            region.write(region.read())
            stat = victim.stat()
            os.utime(victim, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))

    with pytest.raises(
        (GgufError, CheckpointError),
        match=r"(cut|modified|truncated) while|cannot be (read|opened)",
    ):
        audit(path, progress=progress)
    assert done


@pytest.mark.parametrize("name", ["*.safetensors", "config.json"])
def test_a_file_out_of_a_checkpoint(checkpoint: Path, run: Command, name: str) -> None:
    file = next(checkpoint.glob(name))
    done = run("audit", file)
    assert (done.code, done.out) == (2, "")
    assert (
        done.err == f"error: {file}: is one file of a checkpoint; give the folder that holds it\n"
    )


def test_a_json_file_that_is_no_part_of_a_checkpoint(tmp_path: Path, run: Command) -> None:
    file = tmp_path / "model.gguf.manifest.json"
    file.write_text('{"sha256": "of another file"}')
    assert "not a GGUF file" in run("audit", file).err


def test_command_on_bad_input(
    checkpoint: Path,
    gguf: Path,
    run: Command,
) -> None:
    gguf.write_bytes(gguf.read_bytes()[:1000])
    (checkpoint / "config.json").unlink()
    for path in (gguf, checkpoint, checkpoint / "nothing"):
        done = run("audit", path)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert done.err.startswith("error: ")


@pytest.mark.parametrize("content", [["<|call|>"], {"text": "<|call|>"}, None, 5, True])
def test_an_added_token_that_is_not_a_text(checkpoint: Path, content: object) -> None:
    path = checkpoint / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"][0]["content"] = content
    path.write_text(json.dumps(tokenizer))
    found = [it for it in audit(checkpoint).findings if it.tensor == "tokenizer.json"]
    assert [it.message for it in found][:1] == [
        "added_tokens is not a list of tokens with a text as content and a number as id"
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update(normalizer={"type": "Lowercase"}), "has a normalizer; gpt-oss takes"),
        (lambda t: t["model"].update(byte_fallback=True), "model.byte_fallback is True; gpt-oss"),
        (lambda t: t["model"].update(dropout=0.5), "model.dropout is 0.5; gpt-oss has none"),
        (lambda t: t["model"].update(type="Unigram"), "no BPE model; gpt-oss has"),
        (lambda t: t["model"]["vocab"].update(ab=1), "'\"' and 'ab' both have the id 1"),
        (lambda t: t["model"]["vocab"].update(ab=10**9), "token 'ab' has id 1000000000; the"),
        (lambda t: t["model"]["vocab"].update({"a\0": 300}), r"'a\x00' is the text of a token"),
        (lambda t: t["added_tokens"][0].update(content="!"), "'!' is the text of a token; expect"),
        (lambda t: t["model"]["vocab"].update(ab=300), "model.merges is empty; text could not"),
        (lambda t: t["model"].update(merges=[5]), "model.merges holds 5; expected a pair"),
    ],
)
def test_a_tokenizer_that_makes_other_tokens(
    checkpoint: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = checkpoint / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    change(tokenizer)
    path.write_text(json.dumps(tokenizer))
    found = [it for it in audit(checkpoint).findings if it.kind is FindingKind.VOCABULARY]
    assert found[0].message.startswith(message)
    assert found[0].severity is Severity.ERROR


def test_a_gguf_without_merges_for_its_words(gguf: Path) -> None:
    """llama.cpp loads it, and makes single bytes of every text."""
    text = ggufs.load(gguf).keys["tokenizer.ggml.tokens"][2]
    unused = next(i for i, token in enumerate(text) if token.startswith("[PAD"))

    def add_a_word(model: ggufs.Model) -> None:
        model.keys["tokenizer.ggml.tokens"][2][unused] = "ab"
        model.keys["tokenizer.ggml.token_type"][2][unused] = TokenType.NORMAL

    assert errors_of(gguf) == []
    assert errors_of(ggufs.edited(gguf, add_a_word)) == ["tokenizer.ggml.merges"]


def errors_of(path: Path) -> list[str | None]:
    return [it.tensor for it in audit(path).findings if it.severity is Severity.ERROR]


@pytest.mark.parametrize("role", ["eot", "eom"])
@pytest.mark.parametrize(("text", "harm"), [("!", True), ("<|end|>", False), ("<|call|>", False)])
def test_a_word_at_which_replies_would_end(gguf: Path, role: str, text: str, harm: bool) -> None:
    key = f"tokenizer.ggml.{role}_token_id"

    def end_at(model: ggufs.Model) -> None:
        tokens = model.keys["tokenizer.ggml.tokens"][2]
        model.set(key, GGUFValueType.UINT32, tokens.index(text))

    assert errors_of(ggufs.edited(gguf, end_at)) == [key] * harm
