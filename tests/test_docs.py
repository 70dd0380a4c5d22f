"""README and docs: every command and every block of Python in them is run.

The tiny model stands in for gpt-oss-20b. A server on loopback stands in for the Hub.
"""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from gptoss.converter.convert import convert
from gptoss.runtime.chat.events import ChatEvent
from gptoss.runtime.harmony.events import MessageEnded
from support import adapters, forms, ggufs
from support.adapters import Lora
from support.documents import DOCUMENTS, ROOT, RUN, SHOWN, blocks, commands
from support.hub_server import HubServer

CHECKPOINT = ROOT / "tests" / "tiny" / "checkpoint"
QUICK = ROOT / "docs" / "clients.md"
"""The document with the fewest commands; the others take half a minute each."""
NOT_RUN = 8
"""Blocks that are not run, each for a reason that its marker states."""
MAY_BE_1 = re.compile(r"gptoss-quant (diff|audit|report)\b")
"""Commands whose exit code 1 is an answer: the models differ, or something was found."""

TOOLS = '''
def get_weather(city: str) -> dict[str, object]:
    """Get the current weather in a city.

    Args:
        city: Name of the city
    """
    return {"temperature": 21, "sky": "sunny"}
'''
SCHEMA = """
{"type": "object", "properties": {"name": {"type": "string", "maxLength": 20},
 "age": {"type": "integer", "minimum": 0, "maximum": 150}},
 "required": ["name", "age"], "additionalProperties": false}
"""


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the documents name."""
    folder = tmp_path_factory.mktemp("documents")
    base = folder / "gpt-oss-20b"
    shutil.copytree(CHECKPOINT, base)
    convert(base, folder / "gpt-oss-20b.gguf")
    forms.to_floats(base, folder / "my-finetune")
    forms.change(
        folder / "my-finetune",
        "model.layers.0.mlp.experts.down_proj",
        lambda values: values.__imul__(1.5),
    )
    adapters.write(folder / "my-adapter", base, Lora(("model.layers.0.self_attn.q_proj.weight",)))
    shutil.copyfile(folder / "gpt-oss-20b.gguf", folder / "old.gguf")
    ggufs.edited(folder / "old.gguf", lambda model: model.keys.pop("gpt-oss.rope.scaling.type"))
    (folder / "mytools.py").write_text(TOOLS, "utf-8")
    (folder / "person.json").write_text(SCHEMA, "utf-8")
    (folder / "notes.txt").write_text("17 + 25\n", "utf-8")
    return folder


@pytest.fixture(scope="session")
def hub() -> Iterator[str]:
    with HubServer({"openai/gpt-oss-20b": CHECKPOINT}) as server:
        yield server.endpoint


@pytest.fixture
def environment(hub: str, tmp_path: Path) -> dict[str, str]:
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {
        "PATH": beside,
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": hub,
        "HF_HOME": str(tmp_path / "hub"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "NO_COLOR": "1",
    }


def said(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


RUNNABLE = [
    document
    for document in DOCUMENTS
    if any(block.language in RUN and block.reason is None for block in blocks(document))
]


@pytest.mark.parametrize(
    "document",
    [pytest.param(it, marks=() if it == QUICK else pytest.mark.slow) for it in RUNNABLE],
    ids=said,
)
def test_what_a_document_shows_works(
    document: Path, prepared: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "work"
    shutil.copytree(prepared, folder)
    python = ""
    for block in blocks(document):
        if block.reason is not None or block.language not in RUN:
            continue
        if block.language == "python":
            python += block.text + "\n\n"
            continue
        for command in commands(block):
            where = f"{said(document)}:{block.line}: {command}"
            run(["bash", "-o", "pipefail", "-c", command], folder, environment, where)
    if python:
        (folder / "example.py").write_text(python, "utf-8")
        run([sys.executable, "example.py"], folder, environment, f"Python of {said(document)}")


def run(command: list[str], folder: Path, environment: dict[str, str], where: str) -> None:
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    fine = {0, 1} if MAY_BE_1.search(where) else {0}
    assert done.returncode in fine, f"{where}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, f"{where}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_python_in_the_documents_is_typed(checker: str, tmp_path: Path) -> None:
    """As a user's project in strict mode sees it."""
    for document in RUNNABLE:
        code = "\n\n".join(block.text for block in blocks(document) if block.language == "python")
        name = document.stem.replace("-", "_").lower()
        (tmp_path / f"{name}.py").write_text(f"# pyright: strict\n{code}\n", "utf-8")
    options: dict[str, list[str | Path]] = {
        "mypy": ["--config-file", ROOT / "pyproject.toml", "--cache-dir", ROOT / ".mypy_cache"],
        "pyright": ["--pythonpath", sys.executable],
    }
    files = sorted(path.name for path in tmp_path.glob("*.py"))
    done = subprocess.run(
        [sys.executable, "-m", checker, *options[checker], *files], cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


# --- what cannot be run is held otherwise -----------------------------------------------------


def test_every_block_is_run_or_says_why_not() -> None:
    skipped = []
    for document in DOCUMENTS:
        for block in blocks(document):
            where = f"{said(document)}:{block.line}"
            assert block.language in RUN | SHOWN, f"{where}: language {block.language!r}"
            if block.reason is not None:
                skipped.append(where)
    assert len(skipped) == NOT_RUN, skipped


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for document in DOCUMENTS:
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)", document.read_text("utf-8"), re.MULTILINE))
        assert named <= targets, f"{said(document)}: {named - targets}"


def test_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text("utf-8")):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{said(document)}: {target}"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def test_the_events_are_documented() -> None:
    """Names and fields of the JSON events, as ``--json`` prints them."""
    text = (ROOT / "docs" / "run.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (`.+`) \|", text, re.MULTILINE)
    documented = {name: set(re.findall(r"`(\w+)`", fields)) for name, fields in rows}
    message = {"role", "channel", "recipient", "content_type", "text"}
    for kind in get_args(ChatEvent):
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()
        fields = {field.name for field in dataclasses.fields(kind)}
        assert documented.pop(name) == (message if kind is MessageEnded else fields), name
    assert not documented


def test_messages_that_are_explained_are_real() -> None:
    """Each heading of the troubleshooting page is a message of the code, `…` where it varies."""
    known = {part for path in sources() for part in strings(path)}
    text = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    headings = re.findall(r"^### `+(.+?)`+$", text, re.MULTILINE)
    assert len(headings) >= 15
    for heading in headings:
        if heading.endswith("command not found"):  # the shell's
            continue
        for part in heading.split("…"):  # what varies
            assert any(part.strip(" ;:") in text for text in known), (
                f"{heading}: no message {part!r}"
            )


def sources() -> Iterator[Path]:
    for folder in ("gptoss", "quant", "converter", "runtime"):
        yield from (ROOT / folder).rglob("*.py")


def strings(path: Path) -> Iterator[str]:
    """The literal parts of a file's strings, as the parser joins them."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
