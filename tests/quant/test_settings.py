"""Whatever changes llama.cpp's logits is not proven, not sound and not the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from gguf.constants import GGMLQuantizationType, GGUFValueType

from gptoss.errors import InvalidFileError, UnsupportedModelError
from gptoss.quant.audit.auditor import audit
from gptoss.quant.diff.differ import diff
from gptoss.quant.verify.verifier import verify
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


def test_a_word_that_would_end_a_reply(base: Path, varied: Callable[[Edit], Path]) -> None:
    path = varied(key("tokenizer.ggml.eot_token_id", GGUFValueType.UINT32, 65))
    [found] = verify(base.with_name("checkpoint"), path).keys
    assert found.key == "tokenizer.ggml.eot_token_id"
    assert found.expected == "one of <|return|>, <|endoftext|>, <|call|>"
