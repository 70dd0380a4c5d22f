"""Whatever changes llama.cpp's logits is not proven, not sound and not the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from gguf.constants import GGMLQuantizationType, GGUFValueType

from gptoss.errors import InvalidFileError, UnsupportedModelError
from gptoss.quant.audit.auditor import audit
from gptoss.quant.diff.command import diff_command
from gptoss.quant.diff.differ import diff
from gptoss.quant.verify.verifier import verify
from support.ggufs import Model
from support.variations import FAILS, HARMLESS, MOVES, Edit, base_gguf, extra, key, tokens, varier

UNUSUAL = (
    "window 1", "rope base", "rope factor", "rope original context", "epsilon", "experts used",
)  # fmt: skip
"""Changes that leave a valid gpt-oss, if another one than the source: an audit cannot know."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_gguf(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def varied(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Edit], Path]:
    return varier(base, tmp_path_factory.mktemp("varied"))


def answers(base: Path, path: Path) -> dict[str, bool]:
    """The three verdicts; a refusal is not a good one."""
    calls: dict[str, Callable[[], bool]] = {
        "verify": lambda: verify(base.with_name("checkpoint"), path).proven,
        "audit": lambda: audit(path).sound,
        "diff": lambda: diff(base, path).same,
    }
    found = {}
    for name, call in calls.items():
        try:
            found[name] = call()
        except (InvalidFileError, UnsupportedModelError):
            found[name] = False
    return found


@pytest.mark.parametrize("name", [*MOVES, *FAILS])
def test_no_verdict_is_good(base: Path, varied: Callable[[Edit], Path], name: str) -> None:
    found = answers(base, varied((MOVES | FAILS)[name]))
    if name in UNUSUAL:
        del found["audit"]
    assert not any(found.values()), found


@pytest.mark.parametrize("name", HARMLESS)
def test_all_verdicts_are_good(base: Path, varied: Callable[[Edit], Path], name: str) -> None:
    assert all(answers(base, varied(HARMLESS[name])).values())


def test_an_extra_tensor_in_both_models_is_not_compared(varied: Callable[[Edit], Path]) -> None:
    one = varied(MOVES["scale of a matrix"])
    other = varied(extra("blk.0.attn_q.scale", GGMLQuantizationType.F32, b"\0\0\0\x41"))
    assert not diff(one, other).same
    assert diff(one, other).unread == ("blk.0.attn_q.scale",)


def test_two_ggufs_are_compared_exactly(base: Path, varied: Callable[[Edit], Path]) -> None:
    large = key("gpt-oss.context_length", GGUFValueType.UINT32, 2**24)
    larger = key("gpt-oss.context_length", GGUFValueType.UINT32, 2**24 + 1)
    [found] = diff(varied(large), varied(larger)).keys
    assert (found.key, found.expected, found.found) == (
        "gpt-oss.context_length", "16777216", "16777217"
    )  # fmt: skip
    end = key("tokenizer.ggml.eos_token_id", GGUFValueType.UINT32, 7)
    assert [it.key for it in diff(base, varied(end)).keys] == ["tokenizer.ggml.eos_token_id"]
    swapped = tokens(_300="[PAD301]", _301="[PAD300]")
    [found] = diff(base, varied(swapped)).keys
    assert (found.key, found.index, found.elements) == ("tokenizer.ggml.tokens", 300, 2)


@pytest.mark.parametrize("role", ["eot", "eom", "fim_pad", "fim_rep", "fim_sep"])
def test_a_word_that_would_end_a_reply(
    base: Path, varied: Callable[[Edit], Path], role: str
) -> None:
    path = varied(key(f"tokenizer.ggml.{role}_token_id", GGUFValueType.UINT32, 65))
    [found] = verify(base.with_name("checkpoint"), path).keys
    assert found.key == f"tokenizer.ggml.{role}_token_id"
    assert found.expected == "one of <|return|>, <|endoftext|>, <|call|>"
    assert not audit(path).sound
    for other in (base, base.with_name("checkpoint")):
        assert [it.key for it in diff(other, path).keys] == [found.key]
        assert [it.key for it in diff(path, other).keys] == [found.key]
    assert not diff(path, path).keys


@pytest.mark.parametrize("text", ["<|im_end|>", "<|fim_pad|>"])
def test_an_unused_token_that_would_end_a_reply(
    base: Path, varied: Callable[[Edit], Path], text: str
) -> None:
    path = varied(tokens(_300=text))
    [found] = verify(base.with_name("checkpoint"), path).keys
    assert (found.key, found.index) == ("tokenizer.ggml.tokens", 300)
    assert not audit(path).sound
    assert [it.key for it in diff(base.with_name("checkpoint"), path).keys] == [found.key]


def test_what_only_programs_use_is_reported(base: Path, varied: Callable[[Edit], Path]) -> None:
    """The template and the sampling defaults: proven all the same."""

    def edit(model: Model) -> None:
        model.set("tokenizer.chat_template", GGUFValueType.STRING, "{{ 'Obey.' }}")
        model.set("tokenizer.chat_template.tool_use", GGUFValueType.STRING, "x")
        model.set("general.sampling.temp", GGUFValueType.FLOAT32, 0.25)
        model.set("general.sampling.top_k", GGUFValueType.INT32, 40)
        model.set("general.sampling.penalty_repeat", GGUFValueType.FLOAT32, 1.5)

    verdict = verify(checkpoint := base.with_name("checkpoint"), varied(edit))
    assert verdict.proven
    assert [it.key.rpartition(".")[2] for it in verdict.program_keys] == [
        "chat_template", "tool_use", "temp", "top_k", "penalty_repeat"
    ]  # fmt: skip
    settings = checkpoint / "generation_config.json"
    stated = {"temperature": 0.25, "top_k": 40, "repetition_penalty": 1.25}
    settings.write_text(json.dumps(stated), encoding="utf-8")
    try:
        [*_, last] = found = verify(checkpoint, varied(edit)).program_keys
    finally:
        settings.unlink()
    assert (len(found), str(last)) == (
        3, "general.sampling.penalty_repeat: expected 1.25, found 1.5"
    )  # fmt: skip
    assert not verify(checkpoint, base).program_keys


def test_templates_of_a_checkpoint(base: Path, varied: Callable[[Edit], Path]) -> None:
    checkpoint = base.with_name("checkpoint")
    beside = checkpoint / "chat_template.jinja"
    beside.write_text("one", encoding="utf-8")
    try:
        [found] = verify(checkpoint, base).program_keys
        assert (found.expected[:12], found.found) == ("3 characters", "nothing")
        same = varied(key("tokenizer.chat_template", GGUFValueType.STRING, "one"))
        assert not verify(checkpoint, same).program_keys
    finally:
        beside.unlink()


def test_what_only_programs_use_differs_between_two_models(
    base: Path, varied: Callable[[Edit], Path]
) -> None:
    """`diff` names the same keys as `verify`, and its verdict does not depend on them either."""

    def edit(model: Model) -> None:
        model.set("tokenizer.chat_template", GGUFValueType.STRING, "{{ 'Obey.' }}")
        model.set("general.sampling.temp", GGUFValueType.FLOAT32, 0.25)

    other = varied(edit)
    for one in (base, base.with_name("checkpoint")):
        for result in (diff(one, other), diff(other, one)):
            assert result.same
            assert [it.key for it in result.program_keys] == [
                "tokenizer.chat_template", "general.sampling.temp"
            ]  # fmt: skip
    [template, temperature] = diff(base, other).program_keys
    assert (template.expected, template.found[:13]) == ("nothing", "13 characters")
    assert (temperature.expected, temperature.found) == ("nothing", "0.25")
    assert not diff(other, other).program_keys


def test_what_only_programs_use_differs_between_two_checkpoints(base: Path, tmp_path: Path) -> None:
    one = base.with_name("checkpoint")
    other = Path(shutil.copytree(one, tmp_path / "other"))
    stated = {"temperature": 0.5, "eos_token_id": [1, 2]}
    (other / "generation_config.json").write_text(json.dumps(stated), encoding="utf-8")
    (other / "chat_template.jinja").write_text("one", encoding="utf-8")
    result = diff(one, other)
    assert result.same
    assert [(it.key, it.found[:12]) for it in result.program_keys] == [
        ("tokenizer.chat_template", "3 characters"),
        ("general.sampling.temp", "0.5"),
    ]
    # A checkpoint's defaults are not in every GGUF; one without a tokenizer states no template.
    (other / "tokenizer.json").unlink()
    assert not diff(base, other).program_keys


def test_the_command_names_what_only_programs_use(
    base: Path, varied: Callable[[Edit], Path]
) -> None:
    other = varied(key("general.sampling.temp", GGUFValueType.FLOAT32, 0.25))
    done = CliRunner().invoke(diff_command, [str(base), str(other)])
    assert done.exit_code == 0
    assert done.output.splitlines()[-2:] == [
        "not part of the model, but llama-server uses it:",
        "  general.sampling.temp: nothing in A, 0.25 in B",
    ]
