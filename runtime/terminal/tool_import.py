"""Imports the Python functions that ``gptoss-run chat --tools`` names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from gptoss.runtime.tools.functions import described


def import_function(spec: str) -> Callable[..., Any]:
    """Import the Python function that ``gptoss-run chat --tools`` names as ``module:function`` or
    ``path/to/file.py:function``.

    Modules in the current folder are found too. Raises BadParameter.
    """
    module_name, _, name = spec.rpartition(":")
    if not module_name or not name:
        raise click.BadParameter(
            f"{spec!r} is not MODULE:FUNCTION or FILE.py:FUNCTION", param_hint="--tools"
        )
    try:
        function = getattr(_import(module_name), name)
    except (Exception, SystemExit) as error:  # whatever the person's module raises in loading
        said = described(error)
        raise click.BadParameter(f"{spec}: {said}", param_hint="--tools") from error
    if not callable(function):
        raise click.BadParameter(f"{spec} is not a function", param_hint="--tools")
    return function  # type: ignore[no-any-return]


def _import(name: str) -> ModuleType:
    """Import the module that the option ``--tools`` of ``gptoss-run chat`` names, by module name or
    by the path of its file.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"no file {name}")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # for what it imports from beside it
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
