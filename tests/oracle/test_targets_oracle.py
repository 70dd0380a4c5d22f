"""What the converter writes beyond llama.cpp's converter, against llama.cpp itself."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES
from numpy.typing import NDArray

from gptoss.converter.convert import convert
from gptoss.converter.dense_types import Dense
from gptoss.converter.transforms import floats
from gptoss.formats.gguf import GgufFile, GgufTensor
from support import peers
from support.checkpoints import random_checkpoint

pytestmark = pytest.mark.oracle

QUANTIZE = Path(__file__).with_name("run_llama_cpp_quantize.py")
IDS = [5, 60, 7, 200, 90, 31, 8, 77]
BLOCK_TYPES = (Dense.Q8_0, Dense.Q5_1, Dense.Q5_0, Dense.Q4_1, Dense.Q4_0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("source") / "model", hidden=128, layers=3)


@pytest.fixture(autouse=True)
def plain_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights as they are in the file: repacked for AMX, matrices this small crash llama.cpp."""
    from llama_cpp import llama_cpp

    default = llama_cpp.llama_model_default_params

    def params() -> Any:
        found = default()
        found.use_extra_bufts = False
        return found

    monkeypatch.setattr(llama_cpp, "llama_model_default_params", params)


def logits(gguf: Path) -> NDArray[np.float32]:
    """Of every token, by llama-cpp-python's own class."""
    from llama_cpp import Llama

    model = Llama(str(gguf), n_ctx=64, logits_all=True, verbose=False)
    model.eval(IDS)
    found = np.array(model.scores[: len(IDS)], np.float32)
    model.close()
    return found


def test_llama_cpp_joins_the_parts(checkpoint: Path, tmp_path: Path) -> None:
    whole = convert(checkpoint, tmp_path / "whole.gguf").files
    split = convert(checkpoint, tmp_path / "split.gguf", split_max_size=200_000).files
    assert (len(whole), len(split) > 3) == (1, True)
    expected = logits(whole[0])
    assert expected.std() > 0.1
    assert np.array_equal(logits(split[0]), expected)
    with pytest.raises(ValueError, match="Failed to load model"):
        logits(split[1])


@pytest.mark.parametrize("dense", list(Dense))
def test_llama_cpp_runs_every_type(checkpoint: Path, tmp_path: Path, dense: str) -> None:
    """Each near to what BF16 gives, the smaller the farther."""
    exact = logits(convert(checkpoint, tmp_path / "exact.gguf", dense="f32").files[0])
    types = {"attention": dense, "embedding": dense, "output": dense}
    found = logits(convert(checkpoint, tmp_path / "m.gguf", dense="bf16", types=types).files[0])
    error = float(np.sqrt(np.square(found - exact).mean() / np.square(exact).mean()))
    print(f"{dense}: relative error of the logits {error:.4f}")
    bounds = {"f32": 1e-6, "f16": 0.02, "bf16": 0.02, "q8_0": 0.05}
    assert error <= bounds.get(dense, 0.8)


def ggml_quantize(dense: Dense, values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """ggml's own reference quantizer, in C."""
    import llama_cpp

    names = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")
    folder = Path(llama_cpp.__file__).parent / "lib"
    [path] = [folder / name for name in names if (folder / name).exists()]
    library: Any = ctypes.CDLL(str(path))
    n_values, n_bytes = GGML_QUANT_SIZES[dense.ggml]
    out = np.zeros(values.size // n_values * n_bytes, np.uint8)
    quantize = getattr(library, f"quantize_row_{dense.value}_ref")
    quantize.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    quantize.restype = None
    quantize(values.ctypes.data, out.ctypes.data, values.size)
    return out.reshape(-1, n_bytes)


@pytest.mark.parametrize("dense", BLOCK_TYPES)
def test_block_types_against_ggml(dense: Dense) -> None:
    """Blocks of many scales and shapes, among them zeros, ties and lone outliers."""
    rng = np.random.default_rng(7)
    blocks = rng.standard_normal((60_000, 32)) * 2.0 ** rng.integers(-20, 8, (60_000, 1))
    blocks[:100] = 0
    blocks[100:1100] = rng.integers(-8, 8, (1000, 32))
    blocks[1100:2100, 1:] = 0
    blocks[2100:3100] = np.abs(blocks[2100:3100])
    words = (blocks.astype(np.float32).view(np.uint32) >> 16).astype("<u2")
    values = (words.astype(np.uint32) << 16).view(np.float32)
    transform = floats.dense("BF16", dense)
    made = np.empty(words.nbytes // transform.reads[0] * transform.writes, np.uint8)
    transform.apply([words.reshape(-1).view(np.uint8)], made)
    expected = ggml_quantize(dense, values)
    differing = (made.reshape(expected.shape) != expected).any(axis=1)
    assert not differing.any(), f"{differing.sum()} of {len(differing)} blocks differ"


def test_the_full_vocabulary_in_three_seconds(tmp_path: Path) -> None:
    """Processor time of the whole process: that of a clock on the wall is make bench's to tell."""
    folder = random_checkpoint(
        tmp_path / "source", vocab=201088, tokenizer_folder=peers.tokenizer()
    )
    script = (
        "import sys, time; from gptoss.converter.convert import convert; "
        "convert(sys.argv[1], sys.argv[2]); print(time.process_time())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, folder, tmp_path / "m.gguf"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(done.stdout) < 3


def test_llama_cpp_quantizer_gives_the_same_file(tmp_path: Path) -> None:
    """Our bf16 file quantized by llama.cpp, tensor by tensor against our q8_0 file."""
    source = random_checkpoint(
        tmp_path / "source", hidden=288, layers=2, experts=3, heads=6, kv_heads=3, vocab=1000
    )
    bf16 = convert(source, tmp_path / "bf16.gguf", dense="bf16").files[0]
    q8_0 = convert(source, tmp_path / "q8_0.gguf").files[0]
    theirs = tmp_path / "theirs.gguf"
    done = subprocess.run(
        [sys.executable, QUANTIZE, bf16, theirs], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    mine, other = GgufFile.open(q8_0), GgufFile.open(theirs)
    assert mine.tensors.keys() == other.tensors.keys()
    for name, tensor in mine.tensors.items():
        found = other.tensors[name]
        assert (found.type, found.shape) == (tensor.type, tensor.shape), name
        assert read(found) == read(tensor), f"{name} has other bytes"


def read(tensor: GgufTensor) -> bytes:
    """A tensor's bytes."""
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        return file.read(tensor.nbytes)
