"""How many files one tensor of a checkpoint passes on its way to the GGUF, measured.

A file counts when one of its functions is called with the tensor: its name, its entry in a header,
what it is planned to become or the task that converts it, and everything that such a task calls.
"""

from __future__ import annotations

import re
import sys
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import gptoss
from gptoss import converter
from gptoss.converter.convert import convert
from gptoss.converter.output import TensorPlan
from gptoss.converter.write.tasks import Target, Task, run_task
from gptoss.formats.safetensors import TensorInfo
from gptoss.formats.tensor_map import HfTensor, NamedTensor
from support.checkpoints import random_checkpoint

TENSOR = "model.layers.0.mlp.experts.gate_up_proj_blocks"
MADE = ("blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight")
ROOT = Path(gptoss.__file__).parent
PATH = [
    "formats/safetensors",
    "formats/other_tools",
    "formats/checkpoint",
    "converter/plan",
    "converter/gguf/header",
    "converter/write/tasks",
    "formats/byte_source",
    "converter/transforms/mxfp4_experts",
    "quant/mxfp4/codec",
]
ONCE = (
    ("formats/safetensors", "_tensor"),
    ("formats/checkpoint", "_found"),
    ("converter/write/tasks", "__post_init__"),
    ("converter/write/tasks", "run_task"),
)
"""Functions that find out or decide something about the tensor."""


def _is_it(value: Any) -> bool:
    """Check whether an argument is the tensor, in any form it takes on its way."""
    match value:
        case str():
            return value == TENSOR
        case TensorInfo() | HfTensor():
            return value.name == TENSOR
        case NamedTensor():
            return value.gguf in MADE
        case TensorPlan():
            return value.name in MADE
        case Target():
            return value.tensor.name in MADE
        case Task():
            return value.targets[0].tensor.name in MADE
        case tuple():
            return len(value) < 3 and any(map(_is_it, value))
    return False


class _Calls:
    """Count the calls that concern the tensor, by file and function, in any thread."""

    def __init__(self) -> None:
        self.found: Counter[tuple[str, str]] = Counter()
        self._thread = threading.local()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        in_task = code is run_task.__code__
        if event == "return" and in_task:
            self._thread.inside = False
        if event != "call" or not code.co_filename.startswith(str(ROOT)):
            return
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        concerns = any(_is_it(frame.f_locals.get(name)) for name in names)
        if in_task:
            self._thread.inside = concerns
        if concerns or getattr(self._thread, "inside", False):
            file = Path(code.co_filename).relative_to(ROOT).with_suffix("").as_posix()
            self.found[file, code.co_name] += 1


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Counter[tuple[str, str]]:
    """Count the calls of a small conversion with the default options."""
    folder = tmp_path_factory.mktemp("path")
    checkpoint = random_checkpoint(folder / "checkpoint")
    counted, before = _Calls(), sys.getprofile()
    threading.setprofile(counted)
    sys.setprofile(counted)
    try:
        convert(checkpoint, folder / "out.gguf")
    finally:
        sys.setprofile(before)
        threading.setprofile(before)
    return counted.found


def test_a_tensor_passes_nine_files(calls: Counter[tuple[str, str]]) -> None:
    assert list(dict.fromkeys(file for file, _ in calls)) == PATH
    assert len(PATH) <= 9


def test_each_fact_is_found_out_once(calls: Counter[tuple[str, str]]) -> None:
    assert {it: calls[it] for it in ONCE} == dict.fromkeys(ONCE, 1)


def test_the_docstring_lists_the_files() -> None:
    _, _, listed = (converter.__doc__ or "").partition("gate_up_proj_blocks")
    assert re.findall(r"^    (\S+)  ", listed, re.MULTILINE) == PATH
