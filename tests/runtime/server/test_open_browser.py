"""``serve`` opens the page only where a person sees it; no command line shows the login link."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx
import pytest

from gptoss.converter.convert import convert
from gptoss.runtime.server.page.open_browser import has_desktop, opened_in_browser

ROOT = Path(__file__).resolve().parents[3]
COMMAND = [sys.executable, "-c", "from gptoss.runtime.cli import main; main()", "serve"]
BROWSER = """
import json, pathlib, sys
out = pathlib.Path(sys.argv[0]).with_name("argv.json")
out.with_suffix(".part").write_text(json.dumps(sys.argv))
out.with_suffix(".part").rename(out)
print("what browsers print")
"""


@pytest.mark.parametrize(
    ("environment", "platform", "expected"),
    [
        ({"DISPLAY": ":0"}, "linux", True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True),
        ({}, "linux", False),
        ({"DISPLAY": ""}, "linux", False),
        ({"DISPLAY": ":10", "SSH_CONNECTION": "1 2 3 4"}, "linux", False),
        ({"DISPLAY": ":0", "CI": "true"}, "linux", False),
        ({"DISPLAY": ":0", "container": "podman"}, "linux", False),
        ({}, "darwin", True),
        ({"SSH_TTY": "/dev/ttys1"}, "darwin", False),
        ({}, "win32", True),
        ({"CI": "1"}, "win32", False),
    ],
)
def test_where_a_browser_is_seen(
    environment: dict[str, str], platform: str, expected: bool
) -> None:
    assert has_desktop(environment, platform, in_container=False) == expected
    in_container = has_desktop(environment, platform, in_container=True)
    assert in_container == (expected and platform != "linux")


@pytest.fixture
def browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set a script as the browser, and return the file that it writes its arguments to."""
    program = tmp_path / "browser.py"
    program.write_text(BROWSER)
    monkeypatch.setenv("BROWSER", f"'{sys.executable}' '{program}' %s")
    return tmp_path / "argv.json"


def opened(browser: Path) -> Path:
    """The file that the browser was given."""
    end = time.monotonic() + 60
    while not browser.exists():
        assert time.monotonic() < end, "no browser was started"
        time.sleep(0.02)
    [_, url] = json.loads(browser.read_text())
    assert urlsplit(url).scheme == "file"
    return Path(url2pathname(urlsplit(url).path))


@pytest.mark.skipif(sys.platform == "win32", reason="BROWSER is not used there")
def test_the_link_is_in_a_file_of_its_owner(
    browser: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    url = 'http://127.0.0.1:8080/#login="a&b'
    with opened_in_browser(url):
        file = opened(browser)
        assert "login" not in browser.read_text(), "others see a command line"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        assert file.read_text("utf-8").count('"http://127.0.0.1:8080/#login=&quot;a&amp;b"') == 1
    assert not file.parent.exists()
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    convert(ROOT / "tests" / "tiny" / "checkpoint", path)
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="BROWSER is not used there")
@pytest.mark.parametrize(
    "option", ["--open", None, pytest.param("--no-open", marks=pytest.mark.slow)]
)
def test_serving_opens_the_page(
    browser: Path, tiny: Path, tmp_path: Path, option: str | None
) -> None:
    """Two links, each of which works once: the printed one is for another browser."""
    options = ["--port", "0", "--no-store", "--threads", "1", *([option] if option else [])]
    environment = os.environ | {"DISPLAY": ":0", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path),
                                "XDG_CONFIG_HOME": str(tmp_path)}  # fmt: skip
    with subprocess.Popen(
        [*COMMAND, str(tiny), *options], env=environment, stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        assert server.stderr is not None
        try:
            printed = next(it for it in server.stderr if it.startswith("page, with a link"))
            url, token = re.findall(r"(http://[^ ]+/)#login=(\S+)", printed)[0]
            tokens = [token]
            if option == "--open":
                text = opened(browser).read_text("utf-8")
                tokens += re.findall(rf'url={re.escape(url)}#login=([^"]+)"', text)
                assert len(tokens) == 2
            for each in tokens:
                login = [
                    httpx.post(f"{url}page/login", json={"token": each}, timeout=60)
                    for _ in range(2)
                ]
                assert [it.status_code for it in login] == [200, 403]
            assert browser.exists() == (option == "--open"), "no person, no browser"
        finally:
            server.terminate()
