"""``gptoss-run cache``, and the option that turns the disk tier off."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from gptoss.errors import OutputError
from gptoss.runtime.chat.model import open as open_model
from gptoss.runtime.engine import cache_command as command_module
from gptoss.runtime.engine import cache_folder
from gptoss.runtime.engine.cache_command import cache_command
from gptoss.runtime.sampling.sampler import greedy
from support.forced_replies import N_CTX, Start, feed, random_tokens


def run_cache(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cache_command, [*arguments])
    return done.exit_code, done.output


def test_the_command_lists_and_clears(
    start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_module, "default_folder", lambda: folder)
    assert run_cache("list") == (0, f"0 files, 0.0 MB in {folder}\n")
    assert run_cache("clear") == (0, "removed 0 files, 0.0 MB\n")
    assert not folder.exists()
    engine = start()
    feed(engine, random_tokens(600))
    engine.close()
    cache = cache_folder.CacheFolder(folder)
    state = cache.read(cache.open_header(cache.files()[0].name), N_CTX)
    cache.write(replace(state, tokens=state.tokens[::-1].copy()), bytes(32), "\x1b[2Jevil.gguf")
    (folder / f"{'0' * 16}-{'1' * 32}.kv").write_text("garbage")
    (folder / "notes.txt").write_text("a user's own")
    code, text = run_cache("list")
    assert code == 0
    assert "600 tokens of random.gguf" in text
    assert "600 tokens of \\x1b[2Jevil.gguf" in text
    assert "not used: the file is truncated" in text
    assert "3 files" in text
    listed = json.loads(run_cache("list", "--json")[1])
    assert [it["tokens"] for it in listed["files"]].count(600) == 2
    assert listed["bytes"] == sum(it["bytes"] for it in listed["files"])
    code, text = run_cache("clear", "--json")
    assert (code, json.loads(text)["removed"], json.loads(text)["left"]) == (0, 3, 0)
    assert [it.name for it in folder.iterdir()] == ["notes.txt"]


def test_the_command_without_a_usable_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(command_module, "default_folder", lambda: tmp_path / "file")
    for name in ("list", "clear"):
        done = CliRunner().invoke(cache_command, [name])
        assert isinstance(done.exception, OutputError)


def test_an_option_turns_it_off(
    random_gguf: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of gptoss.open, for chats with more tokens than a file is worth."""
    monkeypatch.setenv("GPTOSS_CACHE", str(folder))
    for disk_cache, n_files in ((False, 0), (True, 1)):
        with open_model(random_gguf, n_ctx=2048, n_threads=1, disk_cache=disk_cache) as model:
            list(model.engine.generate(random_tokens(600), greedy, stop=set(), max_tokens=2))
        assert len(list(folder.glob("prefixes/*"))) == n_files
