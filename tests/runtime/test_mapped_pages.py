"""Pages of a mapped model: at hand when it is loaded, and entered in small steps."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from gptoss.converter.convert import convert
from gptoss.runtime.engine import loader, mapped_pages
from gptoss.runtime.engine.loader import Loaded
from gptoss.runtime.engine.mapped_pages import Range, can_enter_pages, enter_pages, mapped_ranges
from gptoss.runtime.engine.settings import EngineSettings
from support.checkpoints import random_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux enters pages so")

SETTINGS = EngineSettings(n_ctx=256, n_threads=1)


def load(path: Path) -> Loaded:
    return loader.load(path, SETTINGS, lambda _: None)


def entered(path: Path) -> list[tuple[int, int, str]]:
    """Of each mapping of a file: its bytes, those whose pages are entered, and its flags."""
    found = []
    for entry in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        if str(path) in entry.partition("\n")[0]:
            size, rss = (
                int(re.search(rf"(?m)^{name}: +(\d+) kB", entry)[1]) << 10  # type: ignore[index]
                for name in ("Size", "Rss")
            )
            flags = re.search(r"(?m)^VmFlags:(.*)$", entry)
            found.append((size, rss, flags[1] if flags else ""))
    return found


@pytest.fixture
def gguf(random_gguf: Path, tmp_path: Path) -> Path:
    path = tmp_path / "a model.gguf"
    path.write_bytes(random_gguf.read_bytes())
    return path


def test_all_pages_are_entered_when_a_model_is_loaded(gguf: Path) -> None:
    loaded = load(gguf)
    [(size, rss, flags)] = entered(gguf)
    loaded.free()
    assert rss == size
    assert " rr" not in flags  # what is read from the disk later is read ahead


def test_llama_cpp_enters_none_itself(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a whole model is entered in one call, which stops threads that need memory."""
    monkeypatch.setattr(loader, "enter_pages", lambda *_: None)
    loaded = load(gguf)
    [(size, rss, _)] = entered(gguf)
    loaded.free()
    assert rss < size / 2


def test_a_model_that_is_copied_is_mapped_without_pages(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when its experts are repacked while it is used: the copying enters what it reads."""
    before: list[tuple[int, int, str]] = []

    def watched(ranges: Iterable[Range]) -> None:
        before.extend(entered(gguf))
        mapped_pages.read_ahead(ranges)

    monkeypatch.setattr(loader, "read_ahead", watched)
    monkeypatch.delattr(loader, "enter_pages")
    loaded = loader.load(gguf, replace(SETTINGS, repack="now"), lambda _: None)
    after = entered(gguf)
    loaded.free()
    [(size, rss, _)] = before
    assert rss < size / 2
    assert all(" rr" not in flags for _, _, flags in after)


def test_where_the_system_cannot_llama_cpp_enters_them(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "can_enter_pages", lambda: False)
    monkeypatch.delattr(loader, "enter_pages")
    loaded = load(gguf)
    [(size, rss, _)] = entered(gguf)
    loaded.free()
    assert rss == size


def test_only_a_mapping_that_is_new_is_entered(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(gguf)
    ranges: list[Range] = []
    monkeypatch.setattr(loader, "enter_pages", lambda new, *_: ranges.extend(new))
    second = load(gguf)
    assert len(ranges) == 1
    assert len(mapped_ranges(gguf)) == 2
    second.free()
    assert mapped_ranges(gguf).isdisjoint(ranges)
    first.free()
    assert not mapped_ranges(gguf)


def test_the_files_of_a_split_model_are_entered(tmp_path: Path) -> None:
    source = random_checkpoint(tmp_path / "source", layers=2, heads=2, experts=2)
    convert(source, tmp_path / "model.gguf", dense="f32", split_max_size=200_000)
    paths = sorted(tmp_path.glob("model-*.gguf"))
    assert len(paths) > 1
    (tmp_path / "model-x-00001-of-00002.gguf").write_bytes(b"another")
    loaded = load(paths[0])
    found = [it for path in paths for it in entered(path)]
    loaded.free()
    assert len(found) >= len(paths) - 1  # the first may have no tensors
    assert all(size == rss for size, rss, _ in found)


def test_progress_ends_and_a_stop_is_kept(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_enter_pages()
    monkeypatch.setattr(mapped_pages, "STEP", 64 << 10)
    monkeypatch.setattr(loader, "enter_pages", lambda *_: None)
    loaded = load(gguf)
    ranges = sorted(mapped_ranges(gguf))
    shares: list[float] = []
    enter_pages(ranges, shares.append, lambda: len(shares) >= 3)
    assert 3 <= len(shares) <= 4
    enter_pages(ranges, shares.append, lambda: False)
    [(size, rss, _)] = entered(gguf)
    loaded.free()
    assert max(shares) == 1.0
    assert size == rss
