"""A GGUF put right: every defect by itself, several files, a base, and what needs nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf.constants import GGUFValueType, TokenType

from gptoss.converter.repair.repair import Repair, repair
from gptoss.errors import CheckpointError, GgufError, OptionError, OutputError
from support import ggufs
from support.checkpoints import random_checkpoint
from support.commands import Command
from support.ggufs import Model
from support.repairs import ROPE, same, with_key, without

STRING, U32, F32 = GGUFValueType.STRING, GGUFValueType.UINT32, GGUFValueType.FLOAT32


def plain_control_tokens(model: Model) -> None:
    *kinds, types = model.keys["tokenizer.ggml.token_type"]
    other = [
        int(TokenType.USER_DEFINED) if kind in (TokenType.CONTROL, TokenType.UNUSED) else kind
        for kind in types
    ]
    model.keys["tokenizer.ggml.token_type"] = (kinds[0], kinds[1], other)


def too_few_tokens(model: Model) -> None:
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type"):
        *kinds, values = model.keys[key]
        model.keys[key] = (kinds[0], kinds[1], values[:-20])


def another_model_s_end(model: Model) -> None:
    kind, element, texts = model.keys["tokenizer.ggml.tokens"]
    *kinds, types = model.keys["tokenizer.ggml.token_type"]
    model.keys["tokenizer.ggml.tokens"] = (kind, element, [*texts[:-1], "<|im_end|>"])
    model.keys["tokenizer.ggml.token_type"] = (kinds[0], kinds[1], [*types[:-1], 5])


def another_name(model: Model) -> None:
    model.rename(lambda name: name.replace("attn_output", "attn_out"))


DEFECTS: dict[str, tuple[Callable[[Model], None], tuple[str, ...]]] = {
    "no rope": (
        without(ROPE + "freq_base", ROPE + "scaling.type", ROPE + "scaling.factor",
                ROPE + "scaling.original_context_length"),
        ("rope.freq_base: 150000, was missing (as in every published gpt-oss)",
         "rope.scaling.type: yarn, was missing", "rope.scaling.factor: 32, was missing",
         "rope.scaling.original_context_length: 4096, was missing"),
    ),
    "another scaling": (
        with_key(ROPE + "scaling.type", STRING, "linear"), ("scaling.type: linear → yarn",)
    ),
    "no sizes": (
        without("gpt-oss.attention.key_length", "gpt-oss.attention.value_length",
                "gpt-oss.expert_count", "gpt-oss.expert_feed_forward_length",
                "gpt-oss.attention.head_count_kv", "gpt-oss.block_count"),
        ("key_length: 64, was missing (by the tensors' shapes)", "value_length: 64",
         "expert_count: 6", "expert_feed_forward_length: 160", "head_count_kv: 3",
         "block_count: 2"),
    ),
    "no window": (without("gpt-oss.attention.sliding_window"), ("sliding_window: 128",)),
    "another splitter": (
        with_key("tokenizer.ggml.pre", STRING, "default"), ("pre: default → gpt-4o",)
    ),
    "no splitter": (without("tokenizer.ggml.pre"), ("pre: gpt-4o, was missing",)),
    "another end": (
        with_key("tokenizer.ggml.eos_token_id", U32, 257), ("eos_token_id: 257 → 260",)
    ),
    "no end": (without("tokenizer.ggml.eos_token_id"), ("eos_token_id: 260, was missing",)),
    "an end too many": (
        with_key("tokenizer.ggml.eot_token_id", U32, 265), ("eot_token_id: 265 → removed",)
    ),
    "an end of another kind": (
        with_key("tokenizer.ggml.fim_sep_token_id", U32, 65), ("fim_sep_token_id: 65 → removed",)
    ),
    "an end of another model": (another_model_s_end, ("tokens: 320 values → 320 values",)),
    "a bos of its own": (
        with_key("tokenizer.ggml.add_bos_token", GGUFValueType.BOOL, True),
        ("add_bos_token: True → False",),
    ),
    "control tokens as text": (plain_control_tokens, ("token_type: 320 values → 320 values",)),
    "too few tokens": (too_few_tokens, ("tokens: 300 values → 320 values", "token_type: 300")),
    "other names": (another_name, ("2 tensors: attn_out.weight renamed to attn_output.weight",
                                   "2 tensors: attn_out.bias renamed to attn_output.bias")),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFECTS)
def test_each_defect(name: str, repaired: Callable[..., Repair], good: Path) -> None:
    """It is told, and what comes of it is the file that was never damaged."""
    damage, told = DEFECTS[name]
    done = repaired(damage)
    assert len(done.changes) == len(told)
    for part in told:
        assert any(part in change for change in done.changes), (part, done.changes)
    assert same(done.out, good)
    again = repair(done.out, done.out.with_name("again.gguf"))
    assert again.changes == ()


def test_a_file_that_needs_nothing(good: Path) -> None:
    """It is written as well, the same to the byte."""
    done = repair(good, good.with_name("repaired.gguf"))
    assert (done.changes, done.notes, done.files) == ((), (), (done.out,))
    assert done.out.read_bytes() == good.read_bytes()
    assert done.nbytes == good.stat().st_size


@pytest.mark.parametrize(
    "key", ["gpt-oss.rope.scaling.yarn_beta_fast", "tokenizer.ggml.padding_token_id",
            "tokenizer.ggml.add_bos_token", "general.file_type"],
)  # fmt: skip
def test_what_is_of_no_effect_is_left_alone(repaired: Callable[..., Repair], key: str) -> None:
    assert repaired(without(key)).changes == ()


def test_keys_of_others_are_kept(repaired: Callable[..., Repair]) -> None:
    """Of every type that there is."""
    values: dict[str, tuple[GGUFValueType, Any]] = {
        "a.u8": (GGUFValueType.UINT8, 255), "a.i8": (GGUFValueType.INT8, -128),
        "a.u16": (GGUFValueType.UINT16, 65535), "a.i16": (GGUFValueType.INT16, -3),
        "a.u32": (U32, 2**32 - 1), "a.i32": (GGUFValueType.INT32, -5),
        "a.u64": (GGUFValueType.UINT64, 2**64 - 1), "a.i64": (GGUFValueType.INT64, -(2**63)),
        "a.f32": (F32, 0.5), "a.f64": (GGUFValueType.FLOAT64, 0.1),
        "a.yes": (GGUFValueType.BOOL, True), "a.text": (STRING, "ünï"),
    }  # fmt: skip

    def damage(model: Model) -> None:
        del model.keys[ROPE + "freq_base"]
        for key, (kind, value) in values.items():
            model.set(key, kind, value)
        model.keys["a.array"] = (GGUFValueType.ARRAY, F32, [0.5, -1.5])

    found = ggufs.load(repaired(damage).out).keys
    for key, (kind, value) in values.items():
        assert found[key] == (kind, None, value)
    assert found["a.array"] == (GGUFValueType.ARRAY, F32, [0.5, -1.5])


# --- several files ----------------------------------------------------------------------------


def test_cut_and_joined_again(good: Path, tmp_path: Path) -> None:
    """Each file within the size asked for; joined they are what they were, to the byte."""
    before = good.read_bytes()
    cut = repair(good, tmp_path / "cut.gguf", split_max_size=100_000)
    assert cut.changes == (f"files: 1 → {len(cut.files)}",)
    assert len(cut.files) > 2
    assert all(path.stat().st_size <= 100_000 for path in cut.files)
    assert sorted(tmp_path.glob("cut*.gguf")) == list(cut.files)
    finer = repair(cut.files[0], tmp_path / "finer.gguf", split_max_size=80_000)
    assert len(finer.files) > len(cut.files)
    joined = repair(finer.files[0], tmp_path / "joined.gguf")
    assert joined.files == (joined.out,)
    assert joined.changes == (f"files: {len(finer.files)} → 1",)
    assert joined.out.read_bytes() == before


def test_the_size_asked_for_is_that_of_the_files_already(good: Path, tmp_path: Path) -> None:
    done = repair(good, tmp_path / "whole.gguf", split_max_size=10**9)
    assert (done.changes, done.files) == ((), (tmp_path / "whole.gguf",))
    assert done.out.read_bytes() == good.read_bytes()


def test_what_cannot_be_cut(good: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="the limit of 1,000 is too small"):
        repair(good, tmp_path / "cut.gguf", split_max_size=1000)


def test_parts_are_not_written_over_themselves(good: Path, tmp_path: Path) -> None:
    cut = repair(good, tmp_path / "cut.gguf", split_max_size=100_000)
    lacking = ggufs.edited(cut.files[0], without(ROPE + "freq_base"))
    before = [path.read_bytes() for path in cut.files]
    with pytest.raises(OutputError, match="is the file to be repaired"):
        repair(lacking, cut.out, split_max_size=100_000)
    assert [path.read_bytes() for path in cut.files] == before


# --- a base -----------------------------------------------------------------------------------


def test_a_base_knows_better(repaired: Callable[..., Repair], checkpoint: Path, good: Path) -> None:
    def damage(model: Model) -> None:
        model.set(ROPE + "freq_base", F32, 10000.0)
        model.set("gpt-oss.context_length", U32, 8192)
        *kinds, tokens = model.keys["tokenizer.ggml.tokens"]
        model.keys["tokenizer.ggml.tokens"] = (kinds[0], kinds[1], tokens[::-1])
        del model.keys["tokenizer.ggml.merges"], model.keys["tokenizer.chat_template"]

    for path in checkpoint.glob("*.safetensors"):
        path.unlink()  # of a base, config and tokenizer are enough
    done = repaired(damage, base=checkpoint)
    assert same(done.out, good)
    assert any("freq_base: 10000 → 150000 (as the base has it)" in it for it in done.changes)


def test_without_a_base_what_the_file_says_is_believed(repaired: Callable[..., Repair]) -> None:
    """It may be a fine-tune with a context of its own; what it lacks is told."""

    def damage(model: Model) -> None:
        model.set("gpt-oss.context_length", U32, 8192)
        del model.keys["tokenizer.chat_template"]

    done = repaired(damage)
    assert done.changes == ()
    assert "no chat template" in done.notes[0]


def test_a_base_of_another_size(repaired: Callable[..., Repair], tmp_path: Path) -> None:
    other = random_checkpoint(tmp_path / "other", hidden=64)
    with pytest.raises(GgufError, match="has shape"):
        repaired(without(), base=other)
    with pytest.raises(CheckpointError, match="gone"):
        repaired(without(), base=tmp_path / "gone")


# --- the command ------------------------------------------------------------------------------


def test_the_command_lists_what_it_changed(good: Path, checkpoint: Path, run: Command) -> None:
    out = good.with_name("repaired.gguf")
    code, said, errors = run(good, "-o", out)
    assert (code, errors) == (0, "")
    lines = said.splitlines()
    assert lines[0] == f"{good}: no repair needed"
    assert lines[1].startswith(f"{out}: 41 tensors")
    assert out.read_bytes() == good.read_bytes()
    ggufs.edited(good, without(ROPE + "freq_base", "tokenizer.chat_template"))
    code, said, errors = run(good, "-o", out)
    assert (code, errors) == (0, "")
    first, change, last, note = said.splitlines()
    assert first == f"{good}: 1 change:"
    assert "rope.freq_base: 150000, was missing (as in every published gpt-oss)" in change
    assert last.startswith(f"{out}: 41 tensors")
    assert note.startswith("note: there is no chat template")
    manifest = json.loads(out.with_name("repaired.gguf.manifest.json").read_text())
    assert manifest["changes"] == [change.strip()]
    code, said, errors = run(good, "-o", out, "--base", checkpoint, "--json")
    assert (code, errors) == (0, "")
    summary = json.loads(said)
    assert len(summary["changes"]) == 2
    assert summary["bytes"] == out.stat().st_size
