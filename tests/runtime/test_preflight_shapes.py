"""Whatever sizes the limits of the hyperparameters allow, llama.cpp computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType

from gptoss.converter.convert import convert
from gptoss.converter.gguf.metadata import model_keys
from gptoss.errors import GgufError
from gptoss.formats.tensor_map import tensors
from gptoss.runtime.models.preflight import Model
from support import ggufs
from support.checkpoints import random_checkpoint
from support.llama_child import run_files

TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
EXTREMES: tuple[dict[str, float], ...] = (
    {"num_hidden_layers": 1},
    {"num_local_experts": 1, "num_experts_per_tok": 1},
    {"num_local_experts": 1024, "num_experts_per_tok": 32},
    {"num_hidden_layers": 24, "num_local_experts": 32, "num_experts_per_tok": 32},
    {"head_dim": 2, "num_attention_heads": 16},
    {"head_dim": 1024},
    {"num_attention_heads": 128},
    {"sliding_window": 1},
    {"sliding_window": 2**24},
    {"rms_norm_eps": 1e-12},
    {"rope_theta": 10.0, "yarn_factor": 1.0, "yarn_original_context": 1},
    {"rope_theta": 1e10, "yarn_factor": 1e6, "yarn_original_context": 2**31 - 1},
    {"max_position_embeddings": 1},
)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mapping[str, float]], Path]:
    """Write a model of these hyperparameters; the others are those of a tiny one."""
    folder = tmp_path_factory.mktemp("shapes")
    base = convert(random_checkpoint(folder / "checkpoint"), folder / "base.gguf").out
    start = Model.open(base).hparams

    def write(sizes: Mapping[str, float]) -> Path:
        hparams = replace(start, **{**TINY, **sizes})  # type: ignore[arg-type]
        model = ggufs.Model(ggufs.load(base).keys)
        for entry in model_keys(hparams):
            model.keys[entry.key] = (entry.type, None, entry.value)
        rng = np.random.default_rng(0)
        for named in tensors(hparams):
            values = rng.standard_normal(named.shape, np.float32) / 8 + named.gguf.endswith(
                "norm.weight"
            )
            raw = values.astype("<f4").reshape(-1).view(np.uint8)
            model.tensors[named.gguf] = (GGMLQuantizationType.F32, named.shape, raw)
        return ggufs.save(folder / f"{len(list(folder.iterdir()))}.gguf", model)

    return write


def check(paths: list[Path]) -> None:
    for path in paths:
        Model.open(path)
    for path, outcome in zip(paths, run_files(paths), strict=True):
        assert outcome.logits is not None, (Model.open(path).hparams, outcome)
        assert np.isfinite(outcome.logits).all(), Model.open(path).hparams


def test_the_limits(make: Callable[[Mapping[str, float]], Path]) -> None:
    check([make(sizes) for sizes in EXTREMES])


@pytest.mark.parametrize("n", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_random_sizes(n: int, make: Callable[[Mapping[str, float]], Path]) -> None:
    rng = np.random.default_rng(n)
    paths: list[Path] = []
    while len(paths) < n:
        kv_heads = int(rng.integers(1, 5))
        experts = int(rng.integers(1, 17))
        sizes = {
            "num_hidden_layers": int(rng.integers(1, 5)),
            "hidden_size": 32 * int(rng.integers(1, 6)),
            "intermediate_size": 32 * int(rng.integers(1, 6)),
            "head_dim": 2 * int(rng.integers(1, 65)),
            "num_key_value_heads": kv_heads,
            "num_attention_heads": kv_heads * int(rng.integers(1, 9)),
            "num_local_experts": experts,
            "num_experts_per_tok": int(rng.integers(1, experts + 1)),
            "sliding_window": int(rng.integers(1, 300)),
        }
        path = make(sizes)
        if sizes["num_attention_heads"] * sizes["head_dim"] % 32:
            with pytest.raises(GgufError, match="expected a multiple of 32"):
                Model.open(path)
            path.unlink()
        else:
            paths.append(path)
    check(paths)


@pytest.mark.slow
def test_as_many_layers_as_can_be(make: Callable[[Mapping[str, float]], Path]) -> None:
    check([make({"num_hidden_layers": 512, "num_local_experts": 2, "num_experts_per_tok": 1})])


@pytest.mark.slow
def test_one_layer_more_ends_the_process(make: Callable[[Mapping[str, float]], Path]) -> None:
    """So that the limits are not lower than they have to be for no reason."""
    path = make({"num_hidden_layers": 513, "num_local_experts": 2, "num_experts_per_tok": 1})
    with pytest.raises(GgufError, match="block_count is 513, expected 1 to 512"):
        Model.open(path)
    [outcome] = run_files([path])
    assert outcome.signal is not None
