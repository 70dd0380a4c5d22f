"""What holds the house together: the arrows between rooms, lazy imports, what a wheel holds."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

GROUND = {
    "__version__",
    "atomic",
    "console",
    "errors",
    "formats",
    "logs",
    "progress",
    "progress_bars",
    "text",
    "wrapping",
}
"""What lies in gptoss/ itself."""
MAY_IMPORT = {
    "formats": {"errors", "formats", "progress", "text"},
    "quant": GROUND | {"quant"},
    "converter": GROUND | {"quant", "converter"},
    "runtime": GROUND | {"runtime"},
    "library": GROUND | {"quant", "converter", "runtime", "library"},
}
INSIDE: dict[str, dict[str, set[str]]] = {
    "quant": {
        "mxfp4": set(),
        "model": {"mxfp4"},
        "info": {"model"},
        "verify": {"model", "mxfp4"},
        "audit": {"model", "mxfp4"},
        "diff": {"audit", "model", "mxfp4", "verify"},
        "report": {"audit", "diff", "model", "mxfp4"},
    },
    "converter": {
        "transforms": set(),
        "gguf": {"transforms"},
        "write": {"transforms"},
        "hub": set(),
        "lora": {"transforms"},
        "export": {"gguf", "transforms", "write"},
        "repair": {"export", "gguf", "transforms", "write"},
    },
    "runtime": {
        "harmony": set(),
        "engine": set(),
        "models": {"engine", "harmony"},
        "tools": {"harmony"},
        "sampling": {"engine", "harmony"},
        "store": {"harmony"},
        "chat": {"engine", "harmony", "models", "sampling", "tools"},
        "remote": {"chat", "engine", "harmony", "models", "sampling"},
        "server": {"chat", "engine", "harmony", "models", "remote", "sampling", "store", "tools"},
        "embed": {"chat", "engine", "harmony", "models", "server"},
        "launch": {"embed", "models", "server"},
        "terminal": {"chat", "engine", "harmony", "models", "remote", "sampling", "store", "tools"},
    },
}
"""What the folders of each room may import of their neighbours."""
FOLDERS = {
    "formats": ROOT / "gptoss" / "formats",
    "library": ROOT / "gptoss" / "library",
    "quant": ROOT / "quant",
    "converter": ROOT / "converter",
    "runtime": ROOT / "runtime",
}


@cache
def imported(path: Path) -> tuple[str, ...]:
    """Every module that a file imports, wherever in it."""
    return tuple(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_arrows(room: str) -> None:
    files = sorted(FOLDERS[room].rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "gptoss":
                assert parts[1] in MAY_IMPORT[room], f"{path} imports {name}"


def test_no_module_imports_itself_in_the_end() -> None:
    files = {}
    for room, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            below = path.relative_to(folder).with_suffix("").parts
            files[".".join(["gptoss", room, *below]).removesuffix(".__init__")] = path
    graph = {
        module: {name if name in files else name.rpartition(".")[0] for name in imported(path)}
        for module, path in files.items()
    }
    assert graph["gptoss.converter.convert"] & files.keys()
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("room", INSIDE)
def test_arrows_inside_a_room(room: str) -> None:
    """A folder imports only the folders named; files beside the folders may import any."""
    folders = {path.parent.name for path in FOLDERS[room].glob("*/__init__.py")}
    assert folders == INSIDE[room].keys()
    for folder, others in INSIDE[room].items():
        for path in (FOLDERS[room] / folder).rglob("*.py"):
            for name in imported(path):
                if name.startswith(f"gptoss.{room}.") and (to := name.split(".")[2]) in folders:
                    assert to in others | {folder}, f"{path} imports {name}"


@pytest.mark.parametrize(
    ("library", "users"),
    [
        ("llama_cpp", {"runtime/engine/library.py"}),
        # One in this process, one in the process that can be ended.
        (
            "llguidance",
            {f"runtime/sampling/{name}.py" for name in ("llguidance_calls", "compile_worker")},
        ),
    ],
)
def test_who_touches_a_library(library: str, users: set[str]) -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS.values()
        for path in folder.rglob("*.py")
        if any(name.split(".")[0] == library for name in imported(path))
    }
    assert found == users


def loaded_by(statement: str) -> set[str]:
    """Names of modules in a fresh interpreter after a statement."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd="/"
    )
    return set(result.stdout.split())


def test_importing_one_room_loads_no_other() -> None:
    assert not any(name.startswith("gptoss.") for name in loaded_by("import gptoss"))
    for statement in ("from gptoss import convert", "from gptoss import verify"):
        modules = loaded_by(statement)
        assert not any(name.startswith(("gptoss.runtime", "llama_cpp")) for name in modules)
    modules = loaded_by("from gptoss import load")
    assert not any(name.startswith(("gptoss.converter", "gptoss.quant")) for name in modules)
    late = modules & {"llama_cpp", "llguidance", "tiktoken"}
    assert not late, f"{late}: to be loaded with a model, not before"


@pytest.mark.parametrize("name", ["verify", "audit", "diff", "report"])
def test_checking_a_model_from_python_loads_no_console(name: str) -> None:
    modules = loaded_by(f"from gptoss import {name}")
    assert "gptoss.quant" in modules
    assert not modules & {"click", "rich", "gptoss.console"}


ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def test_the_architecture_names_files_that_exist() -> None:
    named = re.findall(r"`([\w./]+(?:\.py|/))`", ARCHITECTURE)
    bare = {"setup.py", "request.py"}
    assert {it for it in named if "/" not in it} <= bare
    assert [it for it in named if "/" in it and not (ROOT / it).exists()] == []


def test_the_architecture_names_every_folder() -> None:
    folders = {
        path.parent.relative_to(ROOT).as_posix()
        for room in ("quant", "converter", "runtime")
        for path in FOLDERS[room].glob("*/__init__.py")
    }
    assert [folder for folder in sorted(folders) if f"`{folder}/`" not in ARCHITECTURE] == []


def test_every_folder_is_a_package() -> None:
    """``setup.py`` finds packages by their __init__.py: a folder without it is not installed."""
    folders = {path.parent for folder in FOLDERS.values() for path in folder.rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


ORACLE_TESTS = sorted((ROOT / "tests/oracle").rglob("test_*.py"))


@pytest.mark.parametrize("path", ORACLE_TESTS, ids=lambda path: path.stem)
def test_what_needs_other_software_is_left_out_of_the_quick_tests(path: Path) -> None:
    """Their runs do not install it; a machine that has it would not notice a missing mark."""
    marks = [
        ast.unparse(node.value)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]
    assert "pytest.mark.oracle" in "".join(marks)


@pytest.mark.slow
def test_wheel_holds_every_module(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, ROOT],
        check=True,
    )
    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for room, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            assert f"gptoss/{room}/{path.relative_to(folder).as_posix()}" in names
    assert {"gptoss/__init__.py", "gptoss/console.py", "gptoss/py.typed"} <= names
    assert "gptoss/runtime/embed/pyinstaller/rthooks.dat" in names
    assert not any(
        name.startswith(("converter/", "quant/", "runtime/", "tests/")) for name in names
    )
