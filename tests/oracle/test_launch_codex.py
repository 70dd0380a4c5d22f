"""``gptoss-run launch codex`` with Codex CLI from npm, against a scripted engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.live_server import live_server
from support.peers import FOLDER
from support.responding_engine import RespondingEngine, Script, answer
from support.server import KEY, scripted

pytestmark = pytest.mark.oracle

OWN = 'model = "the-users-own"\n'
MAIN = "from gptoss.runtime.cli import main; main()"


def test_codex_answers_and_its_configuration_stays(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text(OWN, "utf-8")
    key_file = tmp_path / "key"
    key_file.write_text(KEY, "utf-8")
    key_file.chmod(0o600)
    binaries = FOLDER / "clients" / "node_modules" / ".bin"
    environment = os.environ | {
        "CODEX_HOME": str(home),
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
    }
    engine = RespondingEngine(Script({"Say hello.": answer("Hello from the local model.")}))
    with live_server(lambda: scripted(engine)) as url:
        done = subprocess.run(
            [
                sys.executable, "-c", MAIN, "launch", "codex", "--url", url,
                "--key-file", key_file, "--", "exec", "--skip-git-repo-check", "Say hello.",
            ],
            cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Hello from the local model." in done.stdout
    assert (home / "config.toml").read_text("utf-8") == OWN
    assert any("Say hello." in prompt for prompt in engine.prompts)
