"""GGUFs that cannot be exported: incomplete, inconsistent, or to a form that does not exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf.constants import GGUFValueType

from gptoss.converter.export.export import export
from gptoss.errors import GgufError, GptossError, OptionError, UnsupportedModelError
from support import ggufs


def drop(name: str) -> Any:
    return lambda model: model.tensors.pop(name)


def add_tensor(model: ggufs.Model) -> None:
    model.tensors["rope_freqs.weight"] = model.tensors["output_norm.weight"]


def another_shape(model: ggufs.Model) -> None:
    kind, shape, raw = model.tensors["output.weight"]
    model.tensors["output.weight"] = (kind, shape[::-1], raw)


def another_splitter(model: ggufs.Model) -> None:
    model.set("tokenizer.ggml.pre", GGUFValueType.STRING, "default")


def no_yarn(model: ggufs.Model) -> None:
    del model.keys["gpt-oss.rope.scaling.type"]


def token_twice(model: ggufs.Model) -> None:
    tokens = model.keys["tokenizer.ggml.tokens"][2]
    tokens[7] = tokens[8]


def empty_merge(model: ggufs.Model) -> None:
    kinds = GGUFValueType.ARRAY, GGUFValueType.STRING
    model.keys["tokenizer.ggml.merges"] = (*kinds, ["a b", "a zz"])


def end_outside(model: ggufs.Model) -> None:
    model.set("tokenizer.ggml.eos_token_id", GGUFValueType.UINT32, 5000)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (drop("blk.1.attn_sinks.weight"), GgufError, "has no tensor blk.1.attn_sinks.weight; "),
        (add_tensor, GgufError, "unknown tensor 'rope_freqs.weight'"),
        (another_shape, GgufError, r"output.weight has shape \(320, 64\); expected \(64, 320\)"),
        (another_splitter, UnsupportedModelError, "pre-tokenizer 'default'; gpt-oss has .*"),
        (no_yarn, GgufError, "rope.scaling.type is None"),
        (token_twice, GgufError, r"tokens\[8\] is .*, expected another text than token 7 has"),
        (empty_merge, GgufError, r"merges\[0\] is 'a b', which makes no token"),
        (end_outside, GgufError, "eos_token_id is 5000; expected a token's id"),
    ],
)
def test_what_is_no_whole_model(
    gguf: Path, tmp_path: Path, damage: Any, error: type[GptossError], message: str
) -> None:
    ggufs.edited(gguf, damage)
    with pytest.raises(error, match=message):
        export(gguf, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_form_that_does_not_exist(gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="unknown form 'onnx'; choose one of hf, hf-bf16"):
        export(gguf, tmp_path / "out", to="onnx")
