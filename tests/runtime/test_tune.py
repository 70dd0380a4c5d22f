"""``gptoss-run tune``: what is measured, kept, checked when it is read, and used by the plan."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from gptoss.runtime.engine import tune as measuring
from gptoss.runtime.engine.drafts import LONGEST, BatchCosts
from gptoss.runtime.engine.settings import EngineSettings
from gptoss.runtime.engine.tuning import Tuning
from gptoss.runtime.models import tune_profile
from gptoss.runtime.models.memory import Memory
from gptoss.runtime.models.plan import memory_plan
from gptoss.runtime.models.planner import Planner
from gptoss.runtime.models.sizes import LayerSize, ModelSizes
from gptoss.runtime.models.tune_command import tune_command
from gptoss.runtime.models.tune_profile import read_tuning, write_tuning
from support.checkpoints import GPT_OSS_20B

SIZES = ModelSizes(GPT_OSS_20B, (LayerSize(200, 100),) * 24, 1_800, 1_000)
TUNING = Tuning(3, 256, 7.2, 13.0, 1.25, BatchCosts((1, 2, 65), (1.0, 1.7, 36.0)))


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config" / "tune.json"
    monkeypatch.setattr(tune_profile, "default_path", lambda: path)
    return path


def test_what_is_written_is_read(profile: Path) -> None:
    assert read_tuning(SIZES) is None
    assert write_tuning(SIZES, TUNING) == profile
    assert read_tuning(SIZES) == TUNING
    other = replace(SIZES, output=5)
    assert read_tuning(other) is None
    write_tuning(other, replace(TUNING, n_threads=1))
    assert read_tuning(SIZES) == TUNING
    if os.name == "posix":
        assert profile.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_threads": 0},
        {"n_threads": 10**6},
        {"n_threads": "4"},
        {"n_batch": True},
        {"decode": -1.0},
        {"decode": "x"},
        {"repack_gain": 1e12},
        {"batch_costs": {"sizes": [1, 2], "costs": [1, -2]}},
        {"batch_costs": {"sizes": 5}},
        {"more": 1},
    ],
)
def test_an_impossible_profile_counts_as_missing(profile: Path, wrong: dict[str, Any]) -> None:
    write_tuning(SIZES, TUNING)
    kept = json.loads(profile.read_text())
    [key] = kept
    profile.write_text(json.dumps({key: kept[key] | wrong}))
    assert read_tuning(SIZES) is None


@pytest.mark.parametrize("raw", [b"", b"[1]", b"\xff", b"{" * 100_000, b" " * 1_000_001])
def test_a_damaged_file_is_ignored_and_replaced(
    profile: Path, raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    profile.parent.mkdir()
    profile.write_bytes(raw)
    assert read_tuning(SIZES) is None
    assert str(profile) in caplog.text
    write_tuning(SIZES, TUNING)
    assert read_tuning(SIZES) == TUNING


@pytest.mark.usefixtures("profile")
def test_only_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_profile, "MOST", 3)
    for i in range(5):
        write_tuning(replace(SIZES, output=i), TUNING)
    found = [read_tuning(replace(SIZES, output=i)) is not None for i in range(5)]
    assert found == [False, False, True, True, True]


def planned(tuning: Tuning | None, **options: Any) -> Any:
    roomy = Memory(10**12, 10**12, "machine")
    sizes = replace(SIZES, layers=(LayerSize(10**9, 100),) * 24)
    planner = Planner("m", sizes, roomy, can_repack=True, tuning=tuning, options=options)  # type: ignore[arg-type]
    from gptoss.runtime.models.estimate import estimate_buffers

    return planner.plan(lambda w: [estimate_buffers(GPT_OSS_20B, it) for it in w]).settings


def test_the_plan_uses_what_was_measured() -> None:
    found = planned(TUNING)
    assert (found.n_threads, found.n_batch, found.repack) == (3, 256, "later")
    assert found.draft_costs == TUNING.batch_costs
    assert planned(TUNING, n_threads=1).n_threads == 1
    assert planned(None).repack == "later"
    assert planned(replace(TUNING, repack_gain=1.01)).repack == "no"


class Meters:
    """Contexts with scripted seconds a token, for mapped and for repacked experts, and one
    interruption."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, speeds: Iterable[float]) -> None:
        self.opened: list[tuple[str, int | None]] = []
        self._speeds = iter(speeds)
        monkeypatch.setattr(measuring, "load", self._load)
        monkeypatch.setattr(measuring, "LlamaContext", lambda loaded: loaded)
        monkeypatch.setattr(measuring, "_batch_costs", lambda *_: TUNING.batch_costs)
        monkeypatch.setattr(measuring._Meter, "_decode", self._decode)
        monkeypatch.setattr(measuring._Meter, "set_threads", lambda *_: None)

    def _load(
        self, _: Path, settings: EngineSettings, __: object, *, n_vocab: int | None = None
    ) -> SimpleNamespace:
        self.opened.append((settings.repack, n_vocab))
        self._n, self._token = 0, next(self._speeds)
        return SimpleNamespace(context=0, free=lambda: None)

    def _decode(self, n: int) -> float:
        """Three of the first few decodes take ten times as long."""
        self._n += 1
        slow = 4 < self._n <= 7
        return self._token * n * (10 if slow else 1)


def test_repacked_experts_are_compared_over_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after, so that a machine that slows down meanwhile favours neither; and without a
    vocabulary, which no decode needs."""
    meters = Meters(monkeypatch, [0.10, 0.10, 0.14])
    said: list[str] = []
    found = measuring.tune(Path("m"), (2,), n_vocab=320, repack=True, say=said.append)
    assert meters.opened == [("no", 320), ("now", 320), ("no", 320)]
    assert found.repack_gain == pytest.approx(1.2)
    assert found.decode == pytest.approx(1 / 0.12, rel=0.01)
    assert said[-1].startswith("repacked experts: 10.00 tokens/s, 1.20 times as fast")


def test_the_command(random_gguf: Path, profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "BATCHES", (16, 32))
    done = CliRunner().invoke(tune_command, [str(random_gguf), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    found = read_tuning(ModelSizes.of(random_gguf))
    assert found is not None
    assert told["n_threads"] == found.n_threads >= 1
    assert found.n_batch in (16, 32)
    assert found.batch_costs.sizes[-1] == LONGEST + 1
    assert found.batch_costs.costs[0] == 1.0
    assert memory_plan(random_gguf).settings.n_batch == found.n_batch
    assert str(profile) in done.stderr
