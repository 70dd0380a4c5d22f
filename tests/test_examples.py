"""The programs in ``examples`` run with the tiny model and say what they should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gptoss.converter.convert import convert

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
CHECKPOINT = ROOT / "tests" / "tiny" / "checkpoint"

SAID = {
    "asyncio_chat.py": ["stopped after a millisecond"],
    "in_process.py": ["first: ", "second: ", "[cancelled]", "first, again: "],
    "spawned_server.py": ["100%", "tiny at http://127.0.0.1:", "2048 tokens"],
    "structured_output.py": ["Sum(result="],
    "tools.py": ["calling get_weather({", "result: {", "('weather', "],
}
"""What each example must print."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("examples") / "tiny.gguf"
    convert(CHECKPOINT, path)
    return path


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == SAID.keys()
    listed = (EXAMPLES / "README.md").read_text("utf-8")
    assert all(f"`{name}`" in listed for name in SAID)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAID)
def test_example(name: str, tiny: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, tiny], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for text in SAID[name]:
        assert text in done.stdout
    assert "Traceback" not in done.stderr
