"""``gptoss-run serve``: what it refuses, the key's file, and a real server with the tiny model."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gptoss.converter.convert import convert
from gptoss.errors import OptionError
from gptoss.runtime.cli import main
from gptoss.runtime.server.api_key import key_in
from gptoss.runtime.server.listening import is_loopback, listen, read_tls, require_safe, url_of
from support.commands import Command, command

CHECKPOINT = Path(__file__).resolve().parents[2] / "tiny" / "checkpoint"
COMMAND = [sys.executable, "-c", "from gptoss.runtime.cli import main; main()", "serve"]
QUESTION = {"messages": [{"role": "user", "content": "What is 17 + 25?"}], "temperature": 0}


def test_the_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "server-key"
    key = key_in(path)
    assert key_in(path) == key
    assert len(key) > 32
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o640)
        with pytest.raises(OptionError, match="chmod 600"):
            key_in(path)


@pytest.mark.parametrize("content", ["", "short", "a b" * 10, "é" * 20, "x" * 1000])
def test_a_file_that_holds_no_key(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content, "utf-8")
    path.chmod(0o600)
    with pytest.raises(OptionError, match="holds no key"):
        key_in(path)


def test_what_is_not_safe_is_refused() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.1.2.3", "::1")))
    assert not any(map(is_loopback, ("10.0.0.1", "example.org", "::", "localhost.example.org")))
    for options in (
        {"no_auth": True, "with_tls": True, "insecure": True},
        {"no_auth": False, "with_tls": False, "insecure": False},
    ):
        with pytest.raises(OptionError):
            require_safe("10.0.0.1", False, **options)
        require_safe("127.0.0.1", True, **options)
    require_safe("10.0.0.1", False, no_auth=False, with_tls=True, insecure=False)
    require_safe("10.0.0.1", False, no_auth=False, with_tls=False, insecure=True)


def test_where_nothing_can_listen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OptionError, match=f"cannot listen on 127.0.0.1, port {port}: "):
            listen("127.0.0.1", port)
    for host in ("192.0.2.1", "no such host", "a" * 300):
        with pytest.raises(OptionError, match="cannot listen on"):
            listen(host, 0)
    assert url_of("::1", 80, with_tls=True) == "https://[::1]:80"


def test_tls_needs_both_files(tmp_path: Path) -> None:
    assert read_tls(None, None) is None
    (tmp_path / "a.pem").write_text("no certificate", "utf-8")
    with pytest.raises(OptionError, match="together"):
        read_tls(tmp_path / "a.pem", None)
    with pytest.raises(OptionError, match="not a PEM certificate"):
        read_tls(tmp_path / "a.pem", tmp_path / "none.pem")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = str(tmp_path_factory.mktemp("home"))
    root = str(Path(__file__).resolve().parents[3])
    return os.environ | {"HOME": home, "XDG_CONFIG_HOME": home, "XDG_DATA_HOME": home,
                         "APPDATA": home, "LOCALAPPDATA": home, "PYTHONPATH": root}  # fmt: skip


@pytest.fixture
def run(
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """``gptoss-run`` in this process, with the folders of another user."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return command("gptoss-run", main, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["missing.gguf"], "missing.gguf"),
        (["missing.gguf", "--host", "0.0.0.0"], "--tls-cert"),  # noqa: S104 it is refused
        (["missing.gguf", "--host", "10.0.0.1", "--no-auth"], "--no-auth"),
        (["missing.gguf", "--port", "70000"], "--port"),
    ],
)
def test_errors_are_one_line(options: list[str], said: str, run: Command) -> None:
    done = run("serve", *options)
    assert done.code == 2
    assert said in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


def test_the_process_ends_with_one_line_too(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [*COMMAND, "missing.gguf"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "missing.gguf" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]
) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A real server in a process of its own: process, URL and key."""
    folder = tmp_path_factory.mktemp("served")
    convert(CHECKPOINT, folder / "tiny.gguf")
    key = folder / "key"
    options = ["--port", "0", "--json", "--key-file", str(key), "--threads", "1", "--no-store"]
    with subprocess.Popen(
        [*COMMAND, str(folder / "tiny.gguf"), *options],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr and process.stderr.read()
        try:
            yield process, json.loads(line)["url"], key.read_text("ascii").strip()
        finally:
            process.kill()


def test_a_real_server(served: tuple[subprocess.Popen[str], str, str]) -> None:
    process, url, key = served
    with httpx.Client(base_url=url, timeout=120) as client:
        deadline = time.monotonic() + 120
        while client.get("/health").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert client.get("/v1/models").status_code == 401
        headers = {"Authorization": f"Bearer {key}"}
        answers = [
            client.post("/v1/chat/completions", json=QUESTION, headers=headers) for _ in range(2)
        ]
        message = answers[0].json()["choices"][0]["message"]
        assert "42" in message["content"]
        assert message["reasoning"]
        again = answers[1].json()
        assert again["choices"][0]["message"]["content"] == message["content"]
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    if os.name == "posix":
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
