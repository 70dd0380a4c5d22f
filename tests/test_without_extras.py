"""What works, and what is said, where the packages of an extra are not installed."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from gptoss.errors import install_command

EXTRA_RUN = ("llama_cpp", "llguidance", "prompt_toolkit", "psutil", "tiktoken")


def without_extras(code: str, *arguments: str) -> tuple[int, str, str]:
    """Run code in an interpreter that cannot import the packages of the extra ``run``."""
    hide = f"import sys\nfor name in {EXTRA_RUN}: sys.modules[name] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", hide + code, *arguments], capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout, done.stderr


RUN = "from gptoss.library.cli import main; main()"
INSTALL = install_command("run")


@pytest.mark.parametrize("arguments", [["--help"], ["chat", "--help"], ["--version"]])
def test_help_works(arguments: list[str]) -> None:
    code, out, err = without_extras(RUN, *arguments)
    assert (code, err) == (0, "")
    assert out


def test_running_a_model_names_the_extra() -> None:
    code, out, err = without_extras(RUN, "chat", "model.gguf")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert INSTALL in err


def test_from_python_too() -> None:
    code, out, err = without_extras(
        "import gptoss\n"
        "try: gptoss.load('model.gguf')\n"
        "except ImportError as error: print(type(error).__name__, error)"
    )
    assert (code, err) == (0, "")
    assert out.startswith("MissingPackageError ")
    assert INSTALL in out


def test_the_metadata_of_a_checkout_hides_nothing(tmp_path: Path) -> None:
    metadata = tmp_path / "gptoss_toolkit.egg-info"
    metadata.mkdir()
    (metadata / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: gptoss-toolkit\nVersion: 0\n")
    code = "from gptoss.errors import install_command; print(install_command('run'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == INSTALL


@pytest.mark.parametrize("room", ["converter", "quant"])
def test_converting_and_checking_need_no_extra(room: str) -> None:
    code, out, _ = without_extras(f"from gptoss.{room}.cli import main; main()", "--version")
    assert (code, out.split()[-1][0]) == (0, "0")


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ('{"url": "file:///home/me/my%20code/gptoss", "dir_info": {"editable": true}}',
         'pip install -e "/home/me/my code/gptoss[mcp]"'),
        ('{"url": "file:///home/me/gptoss.whl", "archive_info": {}}',
         'pip install "gptoss-toolkit[mcp]"'),
        (None, 'pip install "gptoss-toolkit[mcp]"'),
        ("[1", 'pip install "gptoss-toolkit[mcp]"'),
        ('{"dir_info": {}}', 'pip install "gptoss-toolkit[mcp]"'),
    ],
)  # fmt: skip
@pytest.mark.skipif(sys.platform == "win32", reason="paths have drives there")
def test_an_extra_is_installed_from_where_the_toolkit_was(
    monkeypatch: pytest.MonkeyPatch, origin: str | None, command: str
) -> None:
    class Installed:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return origin

    monkeypatch.setattr(metadata, "distributions", lambda name: [Installed()])  # noqa: ARG005
    monkeypatch.setattr(sys, "prefix", "/home/me/.venv")
    monkeypatch.setenv("VIRTUAL_ENV", "/home/me/.venv")
    assert install_command("mcp") == command
    monkeypatch.delenv("VIRTUAL_ENV")  # not activated: another pip would be found
    monkeypatch.setattr(sys, "executable", "/home/me/.venv/bin/python")
    assert install_command("mcp") == f"/home/me/.venv/bin/python -m {command}"
