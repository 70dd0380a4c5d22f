"""Damaged GGUFs through repairing and export: put right, exported, or refused; never a crash.

What was made of one is whole: it opens, and repairing finds nothing more to do.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time

import pytest
from gguf.constants import GGUFValueType

from gptoss.converter.convert import convert
from gptoss.converter.export.export import export
from gptoss.converter.repair.repair import repair
from gptoss.errors import GptossError
from gptoss.formats.checkpoint import Checkpoint
from gptoss.formats.gguf import GgufFile
from support import ggufs
from support.checkpoints import random_checkpoint
from support.damage import damaged
from support.ggufs import Key

SECONDS = 2.0
MESSAGE = 600


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """A small model's file, and the size of its header."""
    folder = tmp_path_factory.mktemp("real")
    source = random_checkpoint(folder / "model", hidden=32, layers=1, experts=4, top_k=4)
    convert(source, folder / "model.gguf", dense="bf16")
    start = min(t.offset for t in GgufFile.open(folder / "model.gguf").tensors.values())
    return (folder / "model.gguf").read_bytes(), start


def try_both(raw: bytes, folder: Path) -> tuple[str, str]:
    """How repairing and export ended."""
    source = folder / "damaged.gguf"
    source.write_bytes(raw)
    return outcome(lambda: repaired(source, folder)), outcome(lambda: exported(source, folder))


def repaired(source: Path, folder: Path) -> str:
    done = repair(source, folder / "repaired.gguf")
    if not done.changes:
        return "nothing"
    again = repair(folder / "repaired.gguf", folder / "again.gguf")
    assert again.changes == ()
    return "repaired"


def exported(source: Path, folder: Path) -> str:
    export(source, folder / "out")
    Checkpoint.open(folder / "out").check_tensors()
    return "exported"


def outcome(run: Callable[[], str]) -> str:
    began = process_time()
    message = ""
    try:
        said = run()
    except GptossError as error:
        said, message = "refused", str(error)
    assert process_time() - began < SECONDS
    assert len(message) <= MESSAGE, message
    assert message.isprintable(), message
    return said


def fuzz(real: tuple[bytes, int], folder: Path, cases: int, seed: int) -> Counter[str]:
    raw, head = real
    rng = random.Random(seed)
    found: Counter[str] = Counter()
    for i in range(cases):
        place = folder / str(i)
        place.mkdir()
        found.update(try_both(damaged(raw, raw, head, rng), place))
        assert not list(place.glob(".*")), "something was left"
        shutil.rmtree(place)
    return found


def test_damaged_files(real: tuple[bytes, int], tmp_path: Path) -> None:
    found = fuzz(real, tmp_path, 150, seed=1)
    assert found["refused"] > 50
    assert found["exported"] > 3
    assert found["nothing"] > 3


ODD: tuple[Key, ...] = (
    (GGUFValueType.STRING, None, ""),
    (GGUFValueType.STRING, None, "\x1b[2J\n" * 999),
    (GGUFValueType.UINT32, None, 2**32 - 1),
    (GGUFValueType.INT64, None, -1),
    (GGUFValueType.FLOAT32, None, float("nan")),
    (GGUFValueType.BOOL, None, True),
    (GGUFValueType.ARRAY, GGUFValueType.STRING, ["gpt-oss", "<|end|>"]),
    (GGUFValueType.ARRAY, GGUFValueType.STRING, []),
    (GGUFValueType.ARRAY, GGUFValueType.INT32, [1, -2, 3]),
    (GGUFValueType.ARRAY, GGUFValueType.FLOAT64, [0.5]),
)


def test_each_key_with_a_value_that_it_cannot_have(real: tuple[bytes, int], tmp_path: Path) -> None:
    assert odd_values(real, tmp_path, lambda n: [ODD[n % len(ODD)]])["refused"] > 10


@pytest.mark.slow
def test_every_key_with_every_odd_value(real: tuple[bytes, int], tmp_path: Path) -> None:
    found = odd_values(real, tmp_path, lambda _: ODD)
    assert min(found[how] for how in ("refused", "exported", "nothing", "repaired")) > 10


def odd_values(
    real: tuple[bytes, int], tmp_path: Path, of: Callable[[int], Sequence[Key]]
) -> Counter[str]:
    """Every key with some values, ``of`` its number; how often it ended how."""
    source = tmp_path / "real.gguf"
    source.write_bytes(real[0])
    model = ggufs.load(source)
    found: Counter[str] = Counter()
    more = "general.alignment", "split.count", "tokenizer.ggml.eot_token_id"
    for n, key in enumerate([*model.keys, *more]):
        for i, value in enumerate(of(n)):
            if key == "general.architecture" and value[0] is not GGUFValueType.STRING:
                continue  # the gguf package writes no such file
            place = tmp_path / f"{key} {i}"
            place.mkdir()
            changed = ggufs.Model(model.keys | {key: value}, model.tensors)
            raw = ggufs.save(place / "written.gguf", changed).read_bytes()
            found.update(try_both(raw, place))
            shutil.rmtree(place)
    return found


@pytest.mark.slow
def test_thousands_of_damaged_files(real: tuple[bytes, int], tmp_path: Path) -> None:
    found = fuzz(real, tmp_path, 3000, seed=2)
    assert min(found[how] for how in ("refused", "exported", "nothing", "repaired")) > 10
