"""``gptoss-run launch`` and ``serve --print-config``: what clients are told, and how they run."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gptoss.errors import OptionError
from gptoss.runtime.cli import cli
from gptoss.runtime.launch.command import run_client
from gptoss.runtime.launch.programs import PROGRAMS, Launch, Target
from gptoss.runtime.launch.running_server import ask_server
from gptoss.runtime.server.client_configs import CONFIGS, ServerSettings, print_config
from support.fake_engine import ScriptedEngine
from support.live_server import live_server
from support.posix import SIGHUP, signal_group
from support.server import KEY, scripted

SETTINGS = ServerSettings("http://127.0.0.1:8080", 'odd "name"', 32_768)
POSIX = pytest.mark.skipif(os.name != "posix", reason="a shell script stands in for the client")


def target(folder: Path) -> Target:
    return Target(SETTINGS, KEY, folder)


# What clients are told


def test_codex_is_told_the_true_context(tmp_path: Path) -> None:
    launch = PROGRAMS["codex"].plan(target(tmp_path), ["exec", "hi"])
    options = launch.command[1:-2]
    assert set(options[::2]) == {"-c"}
    told = tomllib.loads("\n".join(options[1::2]))  # Codex reads each value as TOML
    assert told["model"] == SETTINGS.model
    assert told["model_context_window"] == 32_768
    assert told["model_auto_compact_token_limit"] < 32_768
    provider = told["model_providers"]["gptoss"]
    assert provider["base_url"] == "http://127.0.0.1:8080/v1"
    assert launch.environment[provider["env_key"]] == KEY
    assert launch.command[-2:] == ("exec", "hi")


def test_claude_is_told_all_models(tmp_path: Path) -> None:
    launch = PROGRAMS["claude"].plan(target(tmp_path), [])
    told = launch.environment
    models = {value for name, value in told.items() if "MODEL" in name}
    assert models == {SETTINGS.model}
    assert told["ANTHROPIC_BASE_URL"] == SETTINGS.url
    assert told["ANTHROPIC_AUTH_TOKEN"] == KEY
    assert told["CLAUDE_CODE_AUTO_COMPACT_WINDOW"] == "32768"
    assert launch.removed == ("ANTHROPIC_API_KEY",)


def test_opencode_gets_a_file(tmp_path: Path) -> None:
    launch = PROGRAMS["opencode"].plan(target(tmp_path), [])
    [(name, text)] = launch.files.items()
    assert launch.environment["OPENCODE_CONFIG"] == str(tmp_path / name)
    config = json.loads(text)
    provider = config["provider"]["gptoss"]
    assert provider["options"]["baseURL"] == SETTINGS.base_url
    assert provider["models"][SETTINGS.model]["limit"]["context"] == 32_768
    assert config["model"] == f"gptoss/{SETTINGS.model}"


@pytest.mark.parametrize("client", sorted(PROGRAMS))
def test_the_key_is_on_no_command_line_and_in_no_file(client: str, tmp_path: Path) -> None:
    launch = PROGRAMS[client].plan(target(tmp_path), [])
    assert KEY not in " ".join(launch.command)
    assert KEY not in " ".join(launch.files.values())
    assert KEY in launch.environment.values()


@pytest.mark.parametrize("client", sorted(CONFIGS))
def test_printed_configurations(client: str) -> None:
    text = print_config(client, SETTINGS, Path("/home/o'brien/server-key"))
    assert SETTINGS.url in text
    assert "odd" in text
    if "export" in text:  # the shell reads the key from its file
        line = next(line for line in text.splitlines() if "$(cat" in line)
        assert shlex.split(line.lstrip("/ "))[-1].endswith("$(cat '/home/o'\\''brien/server-key')")
    assert "unused" in print_config(client, SETTINGS, None) or client == "continue"


def test_printed_codex_configuration_is_toml() -> None:
    config = tomllib.loads(print_config("codex", SETTINGS, None).partition("# in the shell")[0])
    assert config["model_context_window"] == 32_768
    assert config["model_providers"]["gptoss"]["wire_api"] == "responses"


def test_printing_starts_no_server(random_gguf: Path, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    command = ["serve", str(random_gguf), "--print-config", "claude", "--context", "2048"]
    done = CliRunner().invoke(cli, [*command, "--key-file", str(key_file)])
    assert done.exit_code == 0, done.output
    assert 'ANTHROPIC_MODEL="random"' in done.output
    assert 'CLAUDE_CODE_AUTO_COMPACT_WINDOW="2048"' in done.output
    assert str(key_file) in done.output
    assert not key_file.exists()


# The running server


def test_a_running_server_is_asked() -> None:
    with live_server(lambda: scripted(ScriptedEngine())) as url:
        assert ask_server(url, KEY) == ServerSettings(url, "tiny", 100_000)
        with pytest.raises(OptionError, match="another key"):
            ask_server(url, "wrong-key-wrong-key")
        with pytest.raises(OptionError, match="it serves tiny"):
            ask_server(url, KEY, "other")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:1", "no server answers"),
        ("127.0.0.1:8080", "not the address"),
        ("ftp://127.0.0.1", "not the address"),
        ("http://127.0.0.1:99999999", "no server answers"),
    ],
)
def test_no_server(url: str, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        ask_server(url, KEY)


# The client


def client_script(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n", "utf-8")
    path.chmod(0o755)
    return path


@POSIX
def test_the_command_runs_the_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(KEY, "utf-8")
    key_file.chmod(0o600)
    out = tmp_path / "out"
    script = f'echo "$ANTHROPIC_MODEL|$ANTHROPIC_AUTH_TOKEN|$ANTHROPIC_API_KEY|$*" > {out}; exit 7'
    client_script(tmp_path, "claude", script)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "the user's own")
    with live_server(lambda: scripted(ScriptedEngine())) as url:
        command = ["launch", "claude", "--url", f"{url}/v1", "--key-file", str(key_file)]
        done = CliRunner().invoke(cli, [*command, "--", "-p", "hi"])
    assert done.exit_code == 7, done.output
    assert out.read_text("utf-8") == f"tiny|{KEY}||-p hi\n"


def test_a_client_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = CliRunner().invoke(cli, ["launch", "codex"])
    assert isinstance(done.exception, OptionError)
    assert "npm install -g @openai/codex" in str(done.exception)


RUN = """
import sys
from pathlib import Path
from gptoss.runtime.launch.command import run_client
from gptoss.runtime.launch.programs import Launch
sys.exit(run_client(Launch(tuple(sys.argv[1:]), {}), Path(".")))
"""


@POSIX
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 5), (signal.SIGTERM, 143), (SIGHUP, 129)]
)
def test_signals_are_the_clients(tmp_path: Path, number: int, code: int) -> None:
    """Ctrl-C reaches the whole process group; the client decides what it means."""
    started = tmp_path / "started"
    script = f"trap 'exit 5' INT; touch {started}; while :; do sleep 0.05; done"
    client = client_script(tmp_path, "client", script)
    process = subprocess.Popen([sys.executable, "-c", RUN, client], start_new_session=True)
    deadline = time.monotonic() + 60
    while not started.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if number == signal.SIGINT:
        signal_group(process.pid, number)
    else:
        process.send_signal(number)
    assert process.wait(60) == code


@POSIX
def test_files_are_written_for_the_client(tmp_path: Path) -> None:
    client = client_script(tmp_path, "client", f'grep -q "hello" {tmp_path}/a.json')
    launch: Any = Launch((str(client),), {}, files={"a.json": "hello"})
    assert run_client(launch, tmp_path) == 0
