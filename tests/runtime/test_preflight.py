"""No file ends the process: preflight refuses what llama.cpp cannot compute, as it is in fact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import gptoss
from gptoss.errors import GgufError
from gptoss.runtime.models.preflight import Model
from gptoss.runtime.sampling.sampler import greedy
from support.llama_child import Outcome, run_files
from support.variations import FAILS, HARMLESS, MOVES, Edit, base_gguf, varier

NOISE = 1e-3
"""Logits spread by 1; the same file gives the same logits."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_gguf(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def varied(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Edit], Path]:
    return varier(base, tmp_path_factory.mktemp("varied"))


def test_what_llama_cpp_makes_of_each_variation(varied: Callable[[Edit], Path]) -> None:
    """The table of variations is true: these change logits, those fail, the rest do nothing."""
    edits = [*HARMLESS.items(), *MOVES.items(), *FAILS.items()]
    outcomes = run_files([varied(edit) for _, edit in edits])
    reference = outcomes[0].logits
    assert reference is not None
    assert np.isfinite(reference).all()
    for (name, _), outcome in zip(edits, outcomes, strict=True):
        assert _class_of(outcome, reference) == (
            "fails" if name in FAILS else "moves" if name in MOVES else "same"
        ), name


def _class_of(outcome: Outcome, reference: np.ndarray) -> str:
    if outcome.logits is None:
        return "fails"
    return "moves" if np.abs(outcome.logits - reference).max() > NOISE else "same"


@pytest.mark.parametrize("name", HARMLESS)
def test_what_does_no_harm_is_accepted(name: str, varied: Callable[[Edit], Path]) -> None:
    Model.open(varied(HARMLESS[name]))


@pytest.mark.parametrize("name", FAILS)
def test_what_fails_is_refused(name: str, varied: Callable[[Edit], Path]) -> None:
    """In one line that names the file and the command that may repair it."""
    path = varied(FAILS[name])
    with pytest.raises(GgufError, match=r"cannot compute .* gptoss-convert .* -o ") as caught:
        Model.open(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FAILS)
def test_what_is_refused_is_not_loaded(name: str, varied: Callable[[Edit], Path]) -> None:
    """A vocabulary is checked while llama.cpp loads, which reads none of its texts."""
    with pytest.raises(GgufError, match=r"cannot compute .* gptoss-convert .* -o "):
        gptoss.open(varied(FAILS[name]), parallel=1, n_ctx=256)


def test_the_size_of_a_vocabulary_is_the_number_of_its_tokens(
    varied: Callable[[Edit], Path],
) -> None:
    path = varied(HARMLESS["vocabulary size"])
    with gptoss.open(path, parallel=1, n_ctx=256) as model:
        tokens = [model.tokenizer.n_vocab - 1]
        assert list(model.engine.generate(tokens, greedy, stop=set(), max_tokens=2))
