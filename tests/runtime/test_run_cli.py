"""``gptoss-run`` from outside."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import click
import pytest

from gptoss.runtime.cli import main
from gptoss.runtime.terminal.tool_import import import_function


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The command in this process: what a console script calls. Its conversations are its own."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "user"))

    def call(*arguments: str | Path, given: str = "") -> Done:
        monkeypatch.setattr(sys, "argv", ["gptoss-run", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(given))
        with pytest.raises(SystemExit) as exited:
            main()
        assert isinstance(exited.value.code, int)
        captured = capsys.readouterr()
        return Done(exited.value.code, captured.out, captured.err)

    return call


class Run(Protocol):
    def __call__(self, *arguments: str | Path, given: str = "") -> Done: ...


# --- bad input --------------------------------------------------------------------------------


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """Runs a command that must be refused; gives what it says, which must be on stderr."""

    def call(*arguments: str | Path) -> str:
        done = run(*arguments)
        assert (done.code, done.out) == (2, "")
        return done.err

    return call


Refused = Callable[..., str]


def test_a_folder(refused: Refused, tmp_path: Path) -> None:
    said = refused("chat", tmp_path, "-p", "hi")
    assert said.startswith(f"error: {tmp_path} is a folder")
    assert "convert it first: gptoss-convert" in said
    assert said.count("\n") == 1


def test_a_missing_file(refused: Refused, tmp_path: Path) -> None:
    assert "none.gguf: cannot be opened" in refused("chat", tmp_path / "none.gguf")


def test_a_file_of_another_kind(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"PK\3\4" * 100)
    assert "not a GGUF file" in refused("chat", tmp_path / "a.gguf")


def test_a_file_that_may_not_be_read(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the reader finds is told, not the option parser's usage text."""
    (tmp_path / "a.gguf").write_bytes(b"")
    monkeypatch.setattr("os.access", lambda *_, **__: False)
    assert refused("chat", tmp_path / "a.gguf").count("\n") == 1


def test_a_truncated_file(refused: Refused, tmp_path: Path, random_gguf: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(random_gguf.read_bytes()[:-1000])
    assert "truncated or corrupt" in refused("chat", cut)


def test_another_architecture(refused: Refused, tmp_path: Path, random_gguf: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(random_gguf.read_bytes().replace(b"gpt-oss", b"gpt-abc", 1))
    assert "general.architecture is 'gpt-abc'" in refused("chat", other)


def test_a_tensor_missing(refused: Refused, tmp_path: Path, random_gguf: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(random_gguf.read_bytes().replace(b"blk.1.attn_sinks", b"blk.1.attn_stink"))
    assert "blk.1.attn_sinks.weight is missing" in refused("chat", other)


def test_token_types_missing(refused: Refused, tmp_path: Path, random_gguf: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(random_gguf.read_bytes().replace(b"ggml.token_type", b"ggml.token_tipe"))
    assert "tokenizer.ggml.token_type is nothing, expected an array of INT32" in refused(
        "chat", other
    )


def test_a_vocabulary_without_harmony(refused: Refused, tmp_path: Path, random_gguf: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(random_gguf.read_bytes().replace(b"<|return|>", b"<|retorn|>"))
    assert "<|return|>" in refused("chat", other)


def test_a_byte_that_has_no_token(refused: Refused, tmp_path: Path, random_gguf: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    one = (1).to_bytes(8, "little")
    damaged.write_bytes(random_gguf.read_bytes().replace(one + b"!", one + b"\1", 1))
    assert "no token for the byte 0x21" in refused("chat", damaged)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--top-p", "2", "top_p is 2"),
        ("--temperature", "-1", "temperature is -1"),
        ("--ctx", "0", "context is 0 tokens"),
        ("--max-tokens", "0", "max_tokens is 0"),
        ("--logit-bias", "12", "'12'; expected TOKEN_ID=VALUE"),
        ("--logit-bias", "x=1", "'x=1'; expected TOKEN_ID=VALUE"),
        ("--logit-bias", "12=101", "logit_bias of token 12 is 101"),
        ("--logit-bias", "-1=1", "logit_bias names token -1"),
        ("--logit-bias", "999999=1", "logit_bias names token 999999"),
        ("--rpc", "10.0.0.7:50052", "which others can reach"),
        ("--rpc", "127.0.0.1:50052,", "expected HOST:PORT"),
        ("--tools", "nothing", "not MODULE:FUNCTION"),
        ("--tools", "json:nothing", "json:nothing"),
        ("--tools", "no_such_module:f", "No module named"),
        ("--tools", "..x:f", "--tools: ..x:f: TypeError"),
        ("--tool-choice", "nothing", "tool_choice: 'nothing' is not none, auto, required or a"),
        ("--tool-choice", "required", "there is no tool"),
        ("--reasoning-budget", "-1", "reasoning_budget is -1"),
        ("--max-rounds", "-1", "max_rounds is -1"),
        ("--schema", "none.json", "none.json"),
        ("--schema", "{folder}", "{folder}"),
        ("--schema", "{not-json}", "not valid JSON"),
        ("--schema", "{no-schema}", "response_format.type: 'no' is not a type"),
        ("--grammar", "{not-json}", "response_format"),
        ("--regex", "(", "unclosed group"),
        ("--reasoning", "extreme", "extreme"),
        ("--seed", "-1", "-1 is not in the range x>=0"),
        ("--threads", "0", "n_threads is 0; it must be a whole number from 1 to 512"),
        ("--threads", "100000", "n_threads is 100000; it must be a whole number from 1"),
    ],
)
def test_bad_options(
    refused: Refused, random_gguf: Path, tmp_path: Path, option: str, value: str, message: str
) -> None:
    (tmp_path / "a").write_text('{"type": ')
    (tmp_path / "b").write_text('{"type": "no"}')
    files = {"folder": tmp_path, "not-json": tmp_path / "a", "no-schema": tmp_path / "b"}
    for name, path in files.items():
        value, message = (text.replace(f"{{{name}}}", str(path)) for text in (value, message))
    said = refused("chat", random_gguf, option, value)
    assert message in said
    assert len(said) < 500


def test_two_ways_to_say_what_the_answer_is(refused: Refused, random_gguf: Path) -> None:
    said = refused("chat", random_gguf, "--regex", "a", "--response-format", "json")
    assert "mutually exclusive; give only one" in said


@pytest.mark.parametrize("prompt", ["", " ", "-"])
def test_an_empty_prompt(refused: Refused, random_gguf: Path, prompt: str) -> None:
    said = refused("chat", random_gguf, "-p", prompt)
    assert said.startswith("error: the prompt is empty; give -p a text")


def test_rules_need_constraints(refused: Refused, random_gguf: Path) -> None:
    said = refused("chat", random_gguf, "--regex", "a", "--unconstrained")
    assert "need constrained sampling" in said


@pytest.mark.parametrize("text", ["def f(:", "raise RuntimeError('boom')", "1 / 0"])
def test_a_tools_module_that_cannot_be_loaded(
    refused: Refused, random_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "broken_tools.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    said = refused("chat", random_gguf, "--tools", "broken_tools:f")
    assert "Invalid value for --tools: broken_tools:f: " in said


# --- talking ----------------------------------------------------------------------------------


def test_one_shot(run: Run, random_gguf: Path) -> None:
    options = ("--seed", "1", "--reasoning-budget", "0", "--regex", "[a-z]{20}")
    done = run("chat", random_gguf, "-p", "hi", *options)
    assert done.code == 0
    assert re.fullmatch("[a-z]{20}\n", done.out), "the answer alone"
    assert "prompt tokens" in done.err
    assert "\x1b" not in done.err
    again = run("chat", random_gguf, "-p", "-", *options, given="hi")
    assert again.out == done.out


def test_what_is_piped_is_appended(run: Run, random_gguf: Path) -> None:
    options = ("--seed", "1", "--max-tokens", "1", "--json")

    def prompt_tokens(text: str, given: str = "") -> int:
        done = run("chat", random_gguf, "-p", text, *options, given=given)
        return int(json.loads(done.out.splitlines()[-1])["timings"]["prompt_tokens"])

    assert prompt_tokens("hi", "some notes") == prompt_tokens("hi\n\nsome notes")
    assert prompt_tokens("hi", "some notes") > prompt_tokens("hi", " ")


def test_a_reply_that_was_cut_has_its_own_exit_code(run: Run, random_gguf: Path) -> None:
    done = run("chat", random_gguf, "-p", "hi", "--max-tokens", "3")
    assert done.code == 1
    assert "[reply stopped: token limit reached]" in done.err


def test_continuing(run: Run, random_gguf: Path) -> None:
    options = ("--regex", "a|b", "--reasoning-budget", "0")
    first = run("chat", random_gguf, "-p", "one", *options)
    assert run("chat", random_gguf, "-p", "not kept", "--no-save", *options).code == 0
    second = run("chat", random_gguf, "-c", "-p", "two", *options)
    assert "continuing: one (2 messages)" in second.err
    third = run("chat", random_gguf, "--resume", "1", "-p", "three", *options)
    assert "continuing: one (4 messages)" in third.err
    assert (first.code, second.code, third.code) == (0, 0, 0)
    refused = run("chat", random_gguf, "-c", "--no-save", "-p", "x")
    assert refused.code == 2
    refused = run("chat", "none.gguf", "--resume", "conv_x", "-p", "x")
    assert "no conversation has this id" in refused.err, "before anything is loaded"


def test_json_one_object_a_line(run: Run, random_gguf: Path) -> None:
    done = run("chat", random_gguf, "-p", "hi", "--max-tokens", "20", "--json")
    assert done.code == 1, "it was cut"
    events = [json.loads(line) for line in done.out.splitlines()]
    assert events[-1]["event"] == "reply_ended"
    assert events[-1]["timings"]["generated_tokens"] <= 20


def test_lines_of_stdin_are_a_conversation(run: Run, random_gguf: Path) -> None:
    lines = "one\n\n/reset\ntwo\n/quit\nthree\n"
    done = run("chat", random_gguf, "--max-tokens", "5", "--json", given=lines)
    assert done.code == 1, "they were cut"
    assert done.out.count("reply_ended") == 2
    assert "conversation cleared" in done.err


def test_an_answer_to_a_schema(run: Run, random_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "schema").write_text('{"enum": [17, "yes"]}')
    options = ("--reasoning-budget", "0", "--schema", tmp_path / "schema", "--json")
    done = run("chat", random_gguf, "-p", "hi", *options)
    events = [json.loads(line) for line in done.out.splitlines()]
    [answer] = [event["text"] for event in events if event["event"] == "message_ended"]
    assert json.loads(answer) in (17, "yes")
    assert events[-1]["cut"] is None


def test_a_line_that_cannot_be_answered_is_not_success(run: Run, random_gguf: Path) -> None:
    lines = "one\n" + "x" * 2000 + "\ntwo\n"
    done = run("chat", random_gguf, "--max-tokens", "5", "--ctx", "1024", "--json", given=lines)
    assert done.code == 2
    assert done.out.count("reply_ended") == 2
    assert done.err.startswith("error: the conversation does not fit into the 1023 tokens")


def test_a_store_that_is_damaged_does_not_keep_one_from_talking(
    run: Run, random_gguf: Path, tmp_path: Path
) -> None:
    path = tmp_path / "user" / "gptoss" / "store.sqlite3"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a database" * 1000)
    options = ("--regex", "a", "--reasoning-budget", "0")
    done = run("chat", random_gguf, "-p", "hi", *options)
    assert (done.code, done.out) == (0, "a\n")
    assert "warning: this conversation is not kept: " in done.err
    assert run("chat", random_gguf, "-c", "-p", "hi", *options).code == 2


@pytest.mark.parametrize("arguments", [("-h",), ("chat", "-h"), ("chat", "--help")])
def test_help(run: Run, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = run(*arguments)
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80
    assert ("Exit codes:" in done.out) == ("chat" in arguments)


@pytest.mark.parametrize("arguments", [(), ("cache",), ("tools",), ("remote",)])
def test_a_command_without_its_command(run: Run, arguments: tuple[str, ...]) -> None:
    """The first thing that many type: the help, as lines."""
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err == run(*arguments, "--help").out


def test_a_missing_choice(refused: Refused) -> None:
    lines = refused("launch").splitlines()
    assert lines[-1].startswith("Error: Missing argument '{")
    assert lines[-1].endswith("Choose from: claude, codex, opencode")


def test_the_command_as_installed(tmp_path: Path, random_gguf: Path) -> None:
    """With a tool of the current folder, and where not every character can be written."""
    (tmp_path / "my_tools.py").write_text("def now() -> str:\n    return 'noon'\n")
    command = Path(sys.executable).with_name("gptoss-run")
    options = ("--max-tokens", "60", "--seed", "1", "--tools", "my_tools:now")
    done = subprocess.run(
        [command, "chat", random_gguf, "-p", "hi", *options],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 1, "it was cut"
    assert done.stdout.isascii()
    assert done.stderr.isascii()


def test_a_module_of_tools_that_ends_the_program(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ending_tools.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = refused("chat", "model.gguf", "--tools", "ending_tools:now")
    assert "ending_tools:now: SystemExit: 0" in said


PRINTING = """
import other_file
print("loading")
def now() -> str:
    print("working")
    return other_file.WORD
"""


def test_what_tools_print_goes_to_stderr(random_gguf: Path, tmp_path: Path) -> None:
    """Also where a tool is named by its file, with a module beside it."""
    (tmp_path / "printing_tools.py").write_text(PRINTING)
    (tmp_path / "other_file.py").write_text("WORD = 'noon'\n")
    command = Path(sys.executable).with_name("gptoss-run")
    options = ("--json", "--max-tokens", "400", "--seed", "1", "--tool-choice", "required")
    tools = ("--tools", "./printing_tools.py:now", "--reasoning-budget", "0", "--max-rounds", "1")
    done = subprocess.run(
        [command, "chat", random_gguf, "-p", "hi", *options, *tools],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr  # it may have been cut
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [e["result"] for e in events if e["event"] == "tool_finished"] == ["noon"]
    assert done.stderr.split() == ["loading", "working"]


@pytest.mark.parametrize(
    "form", ["named_tools.py:now", "./named_tools.py:now", "{}/named_tools.py:now"]
)
def test_a_tool_named_by_its_file(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "named_tools.py").write_text("def now() -> str:\n    return 'noon'\n")
    monkeypatch.chdir(tmp_path)
    assert import_function(form.format(tmp_path))() == "noon"


def test_a_file_of_tools_that_is_not_there_or_not_python(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def now(:")
    for name, problem in (("none.py", "no file"), ("broken.py", "SyntaxError")):
        with pytest.raises(click.BadParameter, match=problem):
            import_function(f"{tmp_path / name}:now")
    for spec in ("mytools.py", ":now", "mytools.py:"):
        with pytest.raises(
            click.BadParameter, match=r"is not MODULE:FUNCTION or FILE\.py:FUNCTION"
        ):
            import_function(spec)


def test_what_is_no_function_is_no_tool() -> None:
    with pytest.raises(click.BadParameter, match="is not a function"):
        import_function("json:__name__")
