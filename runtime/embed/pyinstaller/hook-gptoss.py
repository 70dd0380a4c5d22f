"""PyInstaller's hook for programs that import gptoss: what it cannot see by itself.

The runtime's modules are imported on first use, by name. llama.cpp's libraries are loaded by path,
llguidance reads its own metadata. A program that converts models too has to name that itself:
``--collect-submodules gptoss.converter --collect-submodules gptoss.quant``.
"""

from __future__ import annotations

from importlib.util import find_spec

from PyInstaller.utils.hooks import (
    collect_data_files,
    collect_dynamic_libs,
    collect_submodules,
    copy_metadata,
)

_HOOKS = "gptoss.runtime.embed.pyinstaller"

hiddenimports = collect_submodules("gptoss.runtime", lambda name: not name.startswith(_HOOKS))
hiddenimports.append("webbrowser")  # run as a module by ``server.page.open_browser``
datas = collect_data_files("gptoss.runtime", excludes=["**/pyinstaller/**"])
binaries = []

if find_spec("llguidance") is not None:
    datas += copy_metadata("llguidance")
if find_spec("llama_cpp") is not None:
    binaries += collect_dynamic_libs("llama_cpp")
if find_spec("latex2mathml") is not None:
    datas += collect_data_files("latex2mathml")
