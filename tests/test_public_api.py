"""The public names: all of them resolve, and the three places that list them agree."""

from __future__ import annotations

import ast
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import gptoss

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("gptoss", "gptoss/formats", "quant", "converter", "runtime")


def test_public_names_resolve() -> None:
    for name in gptoss.__all__:
        assert getattr(gptoss, name) is not None
    assert dir(gptoss) == sorted(gptoss.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        gptoss.nothing  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(gptoss.__file__).read_text("utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen: dict[str, list[str]] = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.asname == alias.name  # else it would not be re-exported
            seen.setdefault(node.module or "", []).append(alias.name)
    assert {module: tuple(names) for module, names in seen.items()} == gptoss._NAMES
    assert {*gptoss._HOME, "__version__"} == set(gptoss.__all__)


def test_every_exception_is_public() -> None:
    """Whatever is raised on purpose can be caught by a name of ``gptoss``."""
    found: set[type[Exception]] = set()
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts if parts[0] == "gptoss" else ("gptoss", *parts))
        text = path.read_text("utf-8")
        if "Error(" in text and "\nclass " in text:
            module = import_module(name)
            found |= {
                item
                for item in vars(module).values()
                if isinstance(item, type) and issubclass(item, gptoss.GptossError)
            }
    assert len(found) > 10
    assert {error.__name__ for error in found} <= set(gptoss.__all__)


def test_the_commands_are_there() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    assert set(scripts) == {"gptoss-convert", "gptoss-quant", "gptoss-run"}
    for target in scripts.values():
        module, _, name = target.partition(":")
        assert callable(getattr(import_module(module), name))
