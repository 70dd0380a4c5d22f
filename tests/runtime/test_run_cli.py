"""``gptoss-run`` from outside, and the interactive loop over a scripted engine."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from gptoss.runtime.chat import Chat
from gptoss.runtime.cli import converse, import_function
from gptoss.runtime.harmony.messages import Effort
from gptoss.runtime.terminal import Printer
from support.fake_engine import ScriptedEngine
from support.tokens import byte_tokenizer

COMMAND = str(Path(sys.executable).with_name("gptoss-run"))
FINAL = "<|channel|>final<|message|>Four.<|return|>"


def gptoss_run(
    *arguments: str | Path, cwd: Path | None = None, given: str | bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    given = given.encode() if isinstance(given, str) else given
    return subprocess.run(
        [COMMAND, *map(str, arguments)], input=given, capture_output=True, cwd=cwd
    )


# --- bad input --------------------------------------------------------------------------------


def refused(*arguments: str | Path) -> str:
    """The one line a refused command says."""
    done = gptoss_run(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    return done.stderr.decode()


def test_a_folder(tmp_path: Path) -> None:
    said = refused("chat", tmp_path, "-p", "hi")
    assert said.startswith(f"error: {tmp_path} is a folder")
    assert "convert it first: gptoss-convert" in said
    assert said.count("\n") == 1


def test_a_missing_file(tmp_path: Path) -> None:
    assert "none.gguf: cannot be opened" in refused("chat", tmp_path / "none.gguf")


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"PK\3\4" * 100)
    assert "no GGUF file" in refused("chat", tmp_path / "a.gguf")


def test_a_truncated_file(tmp_path: Path, random_gguf: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(random_gguf.read_bytes()[:-1000])
    assert "cut short or damaged" in refused("chat", cut)


def test_another_architecture(tmp_path: Path, random_gguf: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(random_gguf.read_bytes().replace(b"gpt-oss", b"gpt-abc", 1))
    assert "general.architecture is 'gpt-abc'" in refused("chat", other)


def test_a_tensor_missing(tmp_path: Path, random_gguf: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(
        random_gguf.read_bytes().replace(b"blk.1.attn_sinks", b"blk.1.attn_stinks"[:16])
    )
    assert "has no tensor blk.1.attn_sinks" in refused("chat", other)


def test_a_vocabulary_without_harmony(tmp_path: Path, random_gguf: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(random_gguf.read_bytes().replace(b"<|return|>", b"<|retorn|>"))
    assert "<|return|>" in refused("chat", other)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--top-p", "2", "top_p is 2"),
        ("--temperature", "-1", "temperature is -1"),
        ("--ctx", "0", "a context of 0 tokens"),
        ("--max-tokens", "0", "max_tokens is 0"),
        ("--tools", "nothing", "not MODULE:FUNCTION"),
        ("--tools", "json:nothing", "json:nothing"),
        ("--tools", "no_such_module:f", "No module named"),
        ("--reasoning", "extreme", "extreme"),
    ],
)
def test_bad_options(random_gguf: Path, option: str, value: str, message: str) -> None:
    assert message in refused("chat", random_gguf, option, value)


# --- talking ----------------------------------------------------------------------------------


def test_one_shot(random_gguf: Path) -> None:
    options = ("--seed", "1", "--max-tokens", "20")
    done = gptoss_run("chat", random_gguf, "-p", "hi", *options)
    assert done.returncode == 0
    assert b"prompt tokens" in done.stdout
    assert b"\x1b" not in done.stdout
    from_stdin = gptoss_run("chat", random_gguf, "-p", "-", *options, given="hi")
    assert from_stdin.stdout.splitlines()[:-1] == done.stdout.splitlines()[:-1]


def test_json_one_object_a_line(random_gguf: Path) -> None:
    done = gptoss_run("chat", random_gguf, "-p", "hi", "--max-tokens", "20", "--json")
    events = [json.loads(line) for line in done.stdout.decode("ascii").splitlines()]
    assert events[-1]["event"] == "reply_ended"
    assert events[-1]["timings"]["generated_tokens"] <= 20


def test_lines_of_stdin_are_a_conversation(random_gguf: Path) -> None:
    done = gptoss_run(
        "chat",
        random_gguf,
        "--max-tokens",
        "5",
        "--json",
        given="one\n\n/reset\ntwo\n/quit\nthree\n",
    )
    assert done.returncode == 0
    ends = [line for line in done.stdout.splitlines() if b"reply_ended" in line]
    assert len(ends) == 2
    assert b"forgotten" in done.stderr


def test_any_text_can_be_written_anywhere(random_gguf: Path) -> None:
    """Random tokens give replacement characters, which ASCII does not have."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [COMMAND, "chat", str(random_gguf), "-p", "hi", "--max-tokens", "60", "--seed", "1"],
        capture_output=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr


def test_tools_of_the_current_folder(tmp_path: Path, random_gguf: Path) -> None:
    (tmp_path / "my_tools.py").write_text("def now() -> str:\n    return 'noon'\n")
    options = ("-p", "hi", "--max-tokens", "5", "--tools", "my_tools:now")
    assert gptoss_run("chat", random_gguf, *options, cwd=tmp_path).returncode == 0


def test_what_is_no_function_is_no_tool() -> None:
    with pytest.raises(click.BadParameter, match="is not a function"):
        import_function("json:__name__")


# --- the loop ---------------------------------------------------------------------------------


def conversation(lines: list[str], *scripts: str) -> tuple[str, Chat]:
    chat = Chat(ScriptedEngine(*scripts), byte_tokenizer())
    out = io.StringIO()
    converse(chat, iter(lines), Printer(out))
    return out.getvalue(), chat


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    _, chat = conversation(
        ["/reasoning high", "/reasoning silly", "/help", "/x", "a", "/reset"], FINAL
    )
    said = capsys.readouterr().err
    assert chat.effort == Effort.HIGH
    assert len(chat.messages) == 1
    assert "reasoning: high" in said
    assert "no such command: /reasoning silly" in said
    assert said.count("Ctrl-C stops a reply") == 3


def test_quit_leaves_at_once() -> None:
    shown, _ = conversation(["a", "/quit", "b"], FINAL)
    assert shown.count("Four.") == 1


def test_ctrl_c_stops_the_reply_and_the_conversation_goes_on() -> None:
    class Interrupted(ScriptedEngine):
        interrupted = False

        def generate(self, *args, **kwargs) -> Iterator[int]:  # type: ignore[no-untyped-def]
            for n, token in enumerate(super().generate(*args, **kwargs)):
                if n == 10 and not self.interrupted:
                    self.interrupted = True
                    raise KeyboardInterrupt
                yield token

    chat = Chat(Interrupted(FINAL, FINAL), byte_tokenizer())
    out = io.StringIO()
    converse(chat, iter(["a", "b"]), Printer(out))
    assert out.getvalue().startswith("Fou\n[stopped]\nFour.\n")
    assert [m.text for m in chat.messages[1:]] == ["a", "Fou", "b", "Four."]


def test_an_error_ends_the_reply_not_the_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    chat = Chat(ScriptedEngine(FINAL, n_ctx=700), byte_tokenizer())
    out = io.StringIO()
    converse(chat, iter(["x" * 1000, "b"]), Printer(out))
    assert "error: " in capsys.readouterr().err
    assert "Four." in out.getvalue()
