"""LoRA adapters in GGUF files: checked before llama.cpp sees them, and applied."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import gptoss
from gptoss.errors import GgufError, OptionError
from gptoss.formats.gguf import GgufFile
from gptoss.runtime.engine import loader
from gptoss.runtime.engine.base import Logits
from gptoss.runtime.engine.llama_cpp import LlamaEngine
from gptoss.runtime.engine.loader import Loaded
from gptoss.runtime.engine.prefix_cache import CacheSettings
from gptoss.runtime.engine.settings import EngineSettings, Lora
from gptoss.runtime.models.lora import check_lora
from gptoss.runtime.sampling.sampler import greedy

KEYS: dict[str, Any] = {
    "general.type": "adapter",
    "adapter.type": "lora",
    "adapter.lora.alpha": 16.0,
}
NAME = "blk.1.attn_q.weight"


def write_adapter(
    path: Path,
    model: Path,
    *,
    name: str = NAME,
    keys: dict[str, Any] | None = None,
    architecture: str = "gpt-oss",
    a_rows: int = 4,
    drop: str = "",
) -> Path:
    columns, rows = GgufFile.open(model).tensors[NAME].shape
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (KEYS | (keys or {})).items():
        if isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif value is not None:
            writer.add_string(key, value)
    matrices = {
        "lora_a": rng.standard_normal((a_rows, columns), np.float32),
        "lora_b": rng.standard_normal((rows, 4), np.float32),
    }
    for suffix, matrix in matrices.items():
        if suffix != drop:
            writer.add_tensor(f"{name}.{suffix}", matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits_with(model: Path, *loras: Lora) -> Logits:
    rows: list[Logits] = []

    def draw(logits: Logits) -> int:
        rows.append(logits.copy())
        return 7

    with gptoss.open(
        model, parallel=1, n_ctx=256, n_threads=1, constrained=False, loras=loras
    ) as loaded:
        list(loaded.engine.generate([1, 2, 3, 4], draw, stop=set(), max_tokens=1))
    return rows[0]


def test_an_adapter_changes_the_logits_by_its_scale(random_gguf: Path, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "lora.gguf", random_gguf)
    plain = logits_with(random_gguf)
    assert np.array_equal(plain, logits_with(random_gguf, Lora(path, 0.0)))
    full = np.abs(logits_with(random_gguf, Lora(path, 1.0)) - plain).max()
    little = np.abs(logits_with(random_gguf, Lora(path, 0.00001)) - plain).max()
    assert full > 10 * little > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"keys": {"general.type": "model"}}, r"general\.type is 'model'; a LoRA adapter has"),
        ({"keys": {"general.type": 7}}, r"general\.type is 7"),
        ({"keys": {"adapter.type": None}}, r"adapter\.type is None"),
        ({"keys": {"adapter.lora.alpha": "16"}}, "expected a number"),
        ({"keys": {"adapter.lora.alpha": float("nan")}}, "expected a number"),
        ({"keys": {"adapter.alora.invocation_tokens": 3}}, "aLoRA"),
        ({"architecture": "llama"}, "general.architecture is 'llama'"),
        ({"name": "blk.99.attn_q.weight"}, "the model has no such matrix"),
        ({"name": "blk.1.attn_norm.weight"}, "the model has no such matrix"),
        ({"name": "token_embd.weight"}, "the model has no such matrix"),
        ({"drop": "lora_b"}, "needs both"),
        ({"a_rows": 5}, "has matrices of"),
    ],
)
def test_what_is_refused(random_gguf: Path, tmp_path: Path, wrong: Any, message: str) -> None:
    path = write_adapter(tmp_path / "lora.gguf", random_gguf, **wrong)
    with pytest.raises(GgufError, match=message):
        gptoss.open(random_gguf, loras=(Lora(path),))


def test_a_scale_that_is_no_number(random_gguf: Path, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "lora.gguf", random_gguf)
    tensors = GgufFile.open(random_gguf).tensors
    check_lora(Lora(path, -2.0), tensors)
    with pytest.raises(OptionError, match="must be a finite number"):
        check_lora(Lora(path, float("inf")), tensors)


def test_a_file_that_is_not_there(random_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(GgufError, match=r"none\.gguf"):
        gptoss.open(random_gguf, loras=(Lora(tmp_path / "none.gguf"),))


def reused(model: Path, cache: CacheSettings, *loras: Lora) -> int:
    """Decode a prompt with adapters; return how many of its tokens a saved state had."""
    engine = LlamaEngine(model, EngineSettings(n_ctx=512, n_threads=1, loras=loras), cache=cache)
    prompt = np.random.default_rng(0).integers(0, 256, 300).tolist()
    generation = engine.generate(
        prompt, greedy, stop=set(), max_tokens=1, checkpoints=[len(prompt)]
    )
    list(generation)
    engine.close()
    return generation.timings.reused_tokens


def test_saved_states_are_those_of_the_same_adapters(random_gguf: Path, tmp_path: Path) -> None:
    """Neither without an adapter, nor with another one of the same size and time, at the same
    path, nor at another scale.
    """
    cache = CacheSettings(folder=tmp_path / "cache")
    path = write_adapter(tmp_path / "lora.gguf", random_gguf)
    assert reused(random_gguf, cache, Lora(path)) == 0
    assert reused(random_gguf, cache, Lora(path)) == 299
    assert reused(random_gguf, cache) == 0
    assert reused(random_gguf, cache, Lora(path, 0.5)) == 0
    assert reused(random_gguf, cache, Lora(path), Lora(path)) == 0
    found, raw = path.stat(), bytearray(path.read_bytes())
    raw[-1] ^= 1
    with path.open("r+b") as file:
        file.write(raw)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert reused(random_gguf, cache, Lora(path)) == 0
    moved = tmp_path / "moved.gguf"
    path.rename(moved)
    assert reused(random_gguf, cache, Lora(moved)) == 299


def test_an_adapter_that_is_replaced_during_the_load_saves_no_state(
    random_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is unknown which of the two the states are of."""
    cache = CacheSettings(folder=tmp_path / "cache")
    path = write_adapter(tmp_path / "lora.gguf", random_gguf)

    def load(*arguments: Any, **options: Any) -> Loaded:
        loaded = loader.load(*arguments, **options)
        os.utime(path, ns=(1, 1))
        return loaded

    with monkeypatch.context() as patched:
        patched.setattr("gptoss.runtime.engine.llama_cpp.load", load)
        assert reused(random_gguf, cache, Lora(path)) == 0
    assert reused(random_gguf, cache, Lora(path)) == 0


def test_open_keeps_states_of_adapters_too(
    random_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setattr("gptoss.runtime.models.cache_settings.default_folder", lambda: folder)
    path = write_adapter(tmp_path / "lora.gguf", random_gguf)
    prompt = np.random.default_rng(0).integers(0, 256, 300).tolist()
    found = []
    for _ in range(2):
        with gptoss.open(random_gguf, n_ctx=512, n_threads=1, loras=(Lora(path),)) as model:
            generation = model.engine.generate(
                prompt, greedy, stop=set(), max_tokens=1, checkpoints=[len(prompt)]
            )
            list(generation)
            found.append(generation.timings.reused_tokens)
    assert found == [0, 299]


def test_how_an_adapter_is_given(random_gguf: Path, tmp_path: Path) -> None:
    assert Lora("adapter.gguf").path == Path("adapter.gguf")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"adapter\.gguf: the scale is '2'"):
        Lora(Path("adapter.gguf"), "2")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="None is not the path of a LoRA adapter"):
        Lora(None)  # type: ignore[arg-type]
    adapter = write_adapter(tmp_path / "adapter.gguf", random_gguf)
    for loras in ((str(adapter),), str(adapter), adapter):
        for function in (gptoss.open, gptoss.memory_plan):
            with pytest.raises(OptionError, match=r"it must be a list of gptoss\.Lora"):
                function(random_gguf, loras=loras)  # type: ignore[arg-type]
