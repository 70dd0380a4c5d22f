"""Runs ``gptoss-run chat``: find and load the model, then talk, answer once, or answer lines."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

from gptoss import console, progress_bars
from gptoss.errors import GptossError, OptionError, require_packages
from gptoss.runtime.chat.model import open as open_model
from gptoss.runtime.chat.settings import Settings
from gptoss.runtime.engine.settings import EngineOptions
from gptoss.runtime.models.engine_options import flags_of
from gptoss.runtime.models.finder import ModelFinder
from gptoss.runtime.sampling.sampler import RandomSampler
from gptoss.runtime.store.store import Store, default_path
from gptoss.runtime.terminal.approval import approve_by_key
from gptoss.runtime.terminal.cited_text import with_links
from gptoss.runtime.terminal.commands import resumed
from gptoss.runtime.terminal.json_lines import JsonLines
from gptoss.runtime.terminal.loop import Terminal, answer, answer_lines, converse
from gptoss.runtime.terminal.printer import Printer, Show
from gptoss.runtime.terminal.session import (
    FindModel,
    OpenModel,
    Session,
    SessionModel,
    earlier_conversation,
)
from gptoss.runtime.terminal.tool_import import import_function
from gptoss.runtime.tools.approval import Approval
from gptoss.runtime.tools.builtin_groups import BuiltinTools, builtin_groups
from gptoss.runtime.tools.functions import Tool
from gptoss.runtime.tools.groups import ToolGroup

STDIN_LIMIT = 2**26
"""Characters of standard input that are appended to a prompt."""


REMOTE_AUTO, REMOTE_TOKENS, REMOTE_MESSAGES = REMOTE = ("auto", "tokens", "messages")


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """How the model is loaded."""

    options: EngineOptions = field(default_factory=EngineOptions)
    force: bool = False
    disk_cache: bool = True
    constrained: bool = True
    verbose: bool = False
    base_url: str | None = None
    """Another server that runs the model; then only its tokenizer is read from the file."""
    remote: str = REMOTE_AUTO
    """The protocol of that server: one of ``REMOTE``."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What the command line asks for."""

    model: str
    finder: ModelFinder
    settings: Settings
    engine: EngineRequest = field(default_factory=EngineRequest)
    tools: tuple[str, ...] = ()
    mcp: Path | None = None
    builtin: BuiltinTools = field(default_factory=BuiltinTools)
    approve_all: bool = False
    yes: bool = False
    prompt: str | None = None
    as_json: bool = False
    plain: bool = False
    hide_reasoning: bool = False
    save: bool = True
    resume: str | None = None
    continue_last: bool = False


def run_chat(asked: ChatRequest) -> int:
    """Run the command and return its exit code. Raises GptossError, OSError."""
    out = sys.stdout
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    talk = interactive and asked.prompt is None and not asked.as_json
    with contextlib.ExitStack() as stack:
        if not talk:  # what tools print is not the answer
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        RandomSampler(asked.settings.sampling, asked.settings.seed)  # checked before a load
        functions = [Tool.of(import_function(spec)) for spec in asked.tools]
        terminal = _terminal(asked, out) if talk else None
        approval = None
        if terminal is not None and not asked.approve_all:
            approval = Approval(approve_by_key(terminal))
            functions = [replace(tool, needs_approval=True) for tool in functions]
        if asked.approve_all and asked.builtin.ask:
            raise OptionError("--ask-all and --approve-all are mutually exclusive")
        builtin = builtin_groups(asked.builtin)
        for group in builtin:
            stack.callback(group.close)
        groups = (*builtin, *_mcp_groups(asked, stack))
        prompt = _prompt(asked.prompt)
        store = _store(asked)
        if store is not None:
            stack.enter_context(store)
            if asked.resume is not None or asked.continue_last:
                earlier_conversation(store, asked.resume)  # before a load, which takes a while
        find = _finder(asked)
        opened = find(asked.model)
        model, name = opened()
        stack.callback(model.close)
        session = Session(
            model,
            name,
            asked.settings,
            tools=functions,
            groups=groups,
            approval=approval,
            store=store,
            find=find,
            opened=opened,
            say=console.say,
        )
        stack.callback(session.close)
        continued = ""
        if asked.resume is not None or asked.continue_last:
            continued = resumed(session.resume(asked.resume))
        if terminal is not None:
            terminal.begin(session)
            if continued:
                terminal.say(continued)
            converse(session, terminal)
            return console.ExitCode.DONE
        if continued:
            console.say(continued.partition("\n")[0])
        return _without_a_person(session, prompt, _show(asked, out, groups))


def _mcp_groups(asked: ChatRequest, stack: contextlib.ExitStack) -> tuple[ToolGroup, ...]:
    """Start the MCP servers that are asked for; those that do not start are reported."""
    if asked.mcp is None:
        return ()
    from gptoss.runtime.tools.mcp.servers import McpServers

    servers = stack.enter_context(McpServers(asked.mcp, needs_approval=not asked.approve_all))
    for problem in servers.problems:
        console.say(problem)
    return servers.groups


def _without_a_person(session: Session, prompt: str | None, show: Show) -> int:
    """Answer one prompt, or each line of standard input; return the exit code."""
    if prompt is None:
        answered, whole = answer_lines(session, sys.stdin, show)
        if not answered:
            return console.ExitCode.INVALID
    else:
        try:
            whole = answer(session, prompt, show)
        finally:
            session.save_turn()
    return console.ExitCode.DONE if whole else console.ExitCode.NO


def _terminal(asked: ChatRequest, out: TextIO) -> Terminal:
    """Choose the terminal: the plain one where it was asked for, or nothing else works."""
    if asked.plain or os.environ.get("TERM") == "dumb":
        from gptoss.runtime.terminal.plain_terminal import PlainTerminal

        return PlainTerminal(out, hide_reasoning=asked.hide_reasoning)
    require_packages("run", "prompt_toolkit")
    from gptoss.runtime.terminal.rich_terminal import RichTerminal

    return RichTerminal(out, keep_history=asked.save)


def _show(asked: ChatRequest, out: TextIO, groups: Iterable[ToolGroup]) -> Show:
    if asked.as_json:
        return JsonLines(out)
    color = False if asked.plain else None
    printer = Printer(out, sys.stderr, color=color, hide_reasoning=asked.hide_reasoning)
    return with_links(printer, groups)


def _store(asked: ChatRequest) -> Store | None:
    """Open the store of conversations; None where nothing is to be kept, or it cannot be used.

    Raises GptossError where a conversation is to be continued that cannot be.
    """
    continues = asked.resume is not None or asked.continue_last
    if not asked.save:
        if continues:
            raise OptionError("--no-save keeps no conversation that could be continued; omit one")
        return None
    try:
        return Store(default_path())
    except GptossError as error:
        if continues:
            raise
        console.say(f"warning: this conversation is not kept: {error}")
        return None


def _prompt(asked: str | None) -> str | None:
    """Return the prompt of ``-p`` with what is piped to standard input; ``-`` means that alone."""
    if asked is None:
        return None
    prompt = _with_stdin(asked)
    if not prompt.strip():
        raise OptionError("the prompt is empty; give -p a text, or pipe one to standard input")
    return prompt


def _with_stdin(asked: str) -> str:
    if asked != "-" and sys.stdin.isatty():
        return asked
    piped = sys.stdin.read(STDIN_LIMIT + 1)
    if len(piped) > STDIN_LIMIT:
        raise OptionError(f"standard input has more than {STDIN_LIMIT:,} characters")
    if asked == "-":
        return piped
    return f"{asked}\n\n{piped}" if piped.strip() else asked


def _finder(asked: ChatRequest) -> FindModel:
    """Return the function that finds a model by name."""

    def find(name: str) -> OpenModel:
        url = asked.engine.base_url
        if url is not None:
            return lambda: _remote(asked, url, name)
        if asked.engine.remote != REMOTE_AUTO:
            raise OptionError("--remote needs --base-url")
        gguf = asked.finder.find(name, yes=asked.yes)
        return lambda: (_load(asked, gguf), _shown_name(name, gguf))

    return find


def _load(asked: ChatRequest, gguf: Path) -> SessionModel:
    """Load a model in this process, and show how far that is."""
    size = gguf.stat().st_size if gguf.is_file() else 0
    title = f"loading {gguf.name}"
    if asked.plain:
        console.say(title)
    shown = not (asked.as_json or asked.plain)
    with progress_bars.progress_bar(title, size, shown=shown) as advance:
        return open_model(
            gguf,
            parallel=1,
            constrained=asked.engine.constrained,
            force=asked.engine.force,
            disk_cache=asked.engine.disk_cache,
            progress=_in_bytes(advance, size),
            verbose=asked.engine.verbose,
            **asked.engine.options,
        )


def _remote(asked: ChatRequest, base_url: str, name: str) -> tuple[SessionModel, str]:
    """Return a model that another server runs: by token ids if it gives them, else by messages."""
    require_packages("remote", "httpcore")
    from gptoss.runtime.remote.engine import open_remote
    from gptoss.runtime.remote.message_round import gives_token_ids, open_messages

    given = [option for option, value in asked.engine.options.items() if value]
    if given:
        named = ", ".join(flags_of(given))
        raise OptionError(f"the server at --base-url decides this; omit {named}")
    level = asked.engine.remote
    if level == REMOTE_AUTO and not gives_token_ids(base_url):
        console.say("the server gives no token ids; using its messages API")
        level = REMOTE_MESSAGES
    if level == REMOTE_MESSAGES:
        model = open_messages(base_url, name)
        return model, model.name
    with asked.finder.vocabulary(name) as gguf:
        return open_remote(base_url, gguf), _shown_name(name, gguf)


def _shown_name(name: str, gguf: Path) -> str:
    return name if name.isprintable() and not Path(name).exists() else gguf.stem


def _in_bytes(advance: progress_bars.Advance, size: int) -> Callable[[float], None]:
    """Scale llama.cpp's load progress (0 to 1) to bytes for the command line's progress bar."""
    done = 0

    def progress(share: float) -> None:
        nonlocal done
        now = int(share * size)
        advance(now - done)
        done = now

    return progress
