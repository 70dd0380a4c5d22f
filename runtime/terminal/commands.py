"""The slash commands of ``gptoss-run chat``: one table, from which help and completion are made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path

from gptoss.atomic import replace_file
from gptoss.errors import GptossError, OutputError
from gptoss.runtime.chat.settings import ChatError
from gptoss.runtime.harmony.messages import Effort, Message, Role
from gptoss.runtime.store.conversations import Conversation
from gptoss.runtime.store.message_json import messages_from_json, messages_to_json
from gptoss.runtime.terminal.safe_text import shortened
from gptoss.runtime.terminal.session import Session
from gptoss.runtime.tools.groups import ToolGroup
from gptoss.text import plural

_NOT_SAVED = "/load: {}: not a conversation that /save wrote as .json or the page exported"
FILE_LIMIT = 2**26
"""Bytes of a conversation's file that are read."""

SHOWN_OF_LAST = 300
"""Characters of the last question and answer that are shown where a conversation is continued."""

LEAVING = ("exit", "quit", "bye", ":q")
"""Words that alone, without a slash, mean to leave."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a command did. ``text`` is printed; ``ask`` is sent to the model; ``draft`` is put into
    the input line, and what is sent then replaces the last turn; ``leave`` ends the program.
    """

    text: str = ""
    ask: str | None = None
    draft: str | None = None
    leave: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """A slash command. ``argument`` is what its help shows; ``words`` complete it."""

    names: tuple[str, ...]
    argument: str
    help: str
    run: Callable[[Session, str], Result]
    words: tuple[str, ...] = ()


def run_command(session: Session, line: str) -> Result:
    """Carry out the slash command in ``line``. Raises GptossError for a wrong argument."""
    name, _, argument = line.removeprefix("/").partition(" ")
    command = BY_NAME.get(name.casefold())
    if command is None:
        near = get_close_matches(name.casefold(), BY_NAME, n=1)
        meant = f"did you mean /{near[0]}?" if near else "/help lists the commands;"
        raise ChatError(f"/{name} is not a command; {meant} //{name} sends it as a message")
    return command.run(session, argument.strip())


def is_command(line: str) -> bool:
    """Report whether a line is a slash command: not ``//…``, and not a path such as
    ``/usr/bin``.
    """
    if not line.startswith("/") or line.startswith("//"):
        return False
    word = line[1:].split(" ")[0]
    return word.replace("?", "a").isalpha()


# --- the commands -----------------------------------------------------------------------------


def _help(session: Session, argument: str) -> Result:
    if argument:
        command = BY_NAME.get(argument.removeprefix("/").casefold())
        if command is None:
            raise ChatError(f"/help: there is no command {argument!r}")
        names = ", ".join(f"/{name}" for name in command.names)
        return Result(f"{names} {command.argument}\n  {command.help}")
    rows = [(f"/{it.names[0]} {it.argument}".rstrip(), it.help) for it in COMMANDS]
    width = max(len(usage) for usage, _ in rows) + 2
    lines = [f"{usage:{width}}{text}" for usage, text in rows]
    return Result("\n".join([*lines, "", KEYS if session.takes_keys else PLAIN_KEYS]))


PLAIN_KEYS = """\
\"\"\" … \"\"\"      a message of several lines
//text         a message that begins with a slash
Ctrl-C         stops a reply            Ctrl-D   leaves"""
KEYS = """\
\"\"\" … \"\"\"      a message of several lines; Alt-Enter begins a new line too
//text         a message that begins with a slash
Ctrl-C         stops a reply            Ctrl-D   leaves
Ctrl-T         changes the effort       Ctrl-O   shows or hides the reasoning"""


def _leave(_: Session, __: str) -> Result:
    return Result(leave=True)


def _model(session: Session, argument: str) -> Result:
    if not argument:
        return Result(f"model: {session.name}")
    session.use_model(argument)
    return Result(f"model: {session.name}")


def _effort(session: Session, argument: str) -> Result:
    if argument:
        if argument not in list(Effort):
            raise ChatError(f"/effort: {argument!r} is not low, medium or high")
        session.change(effort=argument)
    return Result(f"effort: {session.chat.effort}")


def _tools(session: Session, argument: str) -> Result:
    action, *names = argument.split() or [""]
    if action in ("on", "off"):
        session.set_tools(names, on=action == "on")
    elif action:
        raise ChatError(f"/tools: {action!r} is not on or off; then the names of tools")
    tools = session.tools
    about = [it.declaration.description.partition("\n")[0] for it in tools.functions]
    about += [_about_group(it) for it in tools.groups]
    lines = [
        f"{'off' if name in tools.off else 'on':4}{name}  {text}"
        for name, text in zip(tools.names, about, strict=True)
    ]
    return Result(
        "\n".join(lines)
        or "no tools; gptoss-run chat has --tools FILE.py:FUNCTION, --python, --browser, --mcp FILE"
    )


def _about_group(group: ToolGroup) -> str:
    about = "built in"
    if not group.is_builtin:
        about = f"MCP server: {', '.join(it.name for it in group.namespace.functions)}"
    return about + ("; asks before each call" if group.needs_approval else "")


def _system(session: Session, argument: str) -> Result:
    if argument:
        session.change(instructions=None if argument == "-" else argument)
    return Result(f"instructions: {session.chat.settings.instructions or 'none'}")


def _save(session: Session, argument: str) -> Result:
    if not argument:
        raise ChatError("/save: name a file, such as talk.md or talk.json")
    path, messages = Path(argument).expanduser(), session.chat.history
    if path.suffix == ".json":
        plain = json.loads(messages_to_json(messages))
        text = json.dumps([_without_tokens(it) for it in plain], indent=1, ensure_ascii=False)
    else:
        text = "\n\n".join(_transcript(messages))
    try:
        if path.is_file() and not _was_saved(path):
            raise OutputError(f"/save: {path}: is another file; name one that is not there")
        replace_file(path, f"{text}\n".encode("utf-8", "replace"))
    except OSError as error:
        raise OutputError(f"/save: {path}: {error.strerror}") from error
    return Result(f"saved {plural(len(messages), 'message')} to {path}")


def _was_saved(path: Path) -> bool:
    """Report whether a file begins as one that ``/save`` wrote, so that it may be replaced."""
    with path.open("rb") as file:
        begin = file.read(8)
    return begin in (b"", b"\n", b"[]\n") or begin.startswith((b"## You", b"[\n {"))


def _load(session: Session, argument: str) -> Result:
    if not argument:
        raise ChatError("/load: name a file that /save wrote, such as talk.json")
    path = Path(argument).expanduser()
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_LIMIT + 1)
        if len(raw) > FILE_LIMIT:
            raise ChatError(f"/load: {path}: has more than {FILE_LIMIT:,} bytes")
        messages = messages_from_json(_messages_of(raw.decode("utf-8")), with_tokens=False)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ChatError(f"/load: {path}: {reason}") from error
    except ChatError:
        raise
    except GptossError as error:
        raise ChatError(_NOT_SAVED.format(path)) from error
    if not messages:
        raise ChatError(_NOT_SAVED.format(path))
    session.replace_history(messages)
    session.save_turn()
    return Result(f"loaded {plural(len(messages), 'message')} from {path}")


def _messages_of(text: str) -> str:
    """Return the list of messages in a file of ``/save``, or in one that the page exported."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        exported = json.loads(text)
    except (ValueError, RecursionError):
        return text  # which is then refused
    return json.dumps(exported.get("messages"))


def _regenerate(session: Session, _: str) -> Result:
    return Result(ask=session.chat.undo())


def _edit(session: Session, argument: str) -> Result:
    question = session.last_question()
    if question is None:
        raise ChatError("/edit: there is no message yet")
    if not argument:
        return Result(draft=question)
    session.chat.undo()
    return Result(ask=argument)


def _undo(session: Session, _: str) -> Result:
    question = session.chat.undo()
    session.save_turn()
    return Result(f"taken back: {question.partition(chr(10))[0]}")


def _branch(session: Session, _: str) -> Result:
    session.branch()
    return Result("this is a copy now; the conversation before stays as it is")


def _conversations(session: Session, argument: str) -> Result:
    rows = [
        f"{i + 1:3}  {it.title or 'without a title'}  "
        f"({_when(it.updated)}, {it.length} messages, {it.id[:13]})"
        for i, it in enumerate(session.recent(argument))
    ]
    return Result("\n".join(rows) or "no conversations")


def _when(seconds: float) -> str:
    """Return a time of this machine's clock: today's without the date."""
    then = datetime.fromtimestamp(seconds)
    today = then.date() == datetime.now().date()
    return f"{then:%H:%M}" if today else f"{then:%Y-%m-%d %H:%M}"


def _resume(session: Session, argument: str) -> Result:
    return Result(resumed(session.resume(argument or None)))


def resumed(found: Conversation) -> str:
    """Return what is printed when a conversation is continued: which one, and its last turn."""
    about = found.summary
    lines = [f"continuing: {about.title or 'without a title'} ({about.length} messages)"]
    last = {it.role: it for it in found.messages if it.role == Role.USER or it.channel == "final"}
    if Role.USER in last:
        lines.append(f"> {shortened(last[Role.USER].text, SHOWN_OF_LAST)}")
    if Role.ASSISTANT in last:
        lines.append(shortened(last[Role.ASSISTANT].text, SHOWN_OF_LAST))
    return "\n".join(lines)


def _stats(session: Session, _: str) -> Result:
    it = session.stats
    rate = it.generated_tokens / it.seconds if it.seconds else 0.0
    replies = "reply" if it.replies == 1 else "replies"
    return Result(
        f"{it.replies} {replies}; {it.prompt_tokens:,} prompt tokens, {it.reused_tokens:,} of them "
        f"reused; {it.generated_tokens:,} generated at {rate:.1f} tokens/s"
    )


def _context(session: Session, _: str) -> Result:
    return Result("\n".join(context_lines(session)))


def context_lines(session: Session) -> Iterator[str]:
    """Return the lines on how full the context is, and what fills it."""
    chat = session.chat
    used = chat.count_tokens()
    yield f"{used:,} of {chat.n_ctx:,} tokens ({100 * used // chat.n_ctx} %)"
    first = chat.branch()
    first.history = ()
    base = first.count_tokens()
    yield f"  {base:9,}  system message, instructions and tools"
    yield f"  {used - base:9,}  {plural(len(chat.history), 'message')}"


def _clear(session: Session, _: str) -> Result:
    session.clear()
    return Result("conversation cleared")


COMMANDS = (
    Command(("help", "?"), "[COMMAND]", "what can be typed", _help),
    Command(("model",), "[NAME]", "the model, or another one", _model),
    Command(
        ("effort", "reasoning", "think"),
        "low|medium|high",
        "how long the model reasons",
        _effort,
        tuple(Effort),
    ),
    Command(("tools",), "[on|off NAME …]", "the tools it may call", _tools, ("on", "off")),
    Command(
        ("system", "instructions"), "[TEXT|-]", "instructions for the model; - for none", _system
    ),
    Command(("regenerate", "retry"), "", "ask the last question again", _regenerate),
    Command(("edit",), "[TEXT]", "change the last question and ask it", _edit),
    Command(("undo",), "", "take the last question back", _undo),
    Command(("branch",), "", "go on in a copy of the conversation", _branch),
    Command(("conversations", "list"), "[TEXT]", "earlier ones, those with TEXT", _conversations),
    Command(("resume",), "[NUMBER|ID]", "continue an earlier one", _resume),
    Command(("save",), "FILE", "write the conversation as .md or .json", _save),
    Command(("load",), "FILE", "read a .json that /save wrote", _load),
    Command(("context",), "", "how full the context is", _context),
    Command(("stats",), "", "tokens and speed so far", _stats),
    Command(("clear", "reset", "new"), "", "begin a new conversation", _clear),
    Command(("bye", "exit", "quit", "q"), "", "leave", _leave),
)

BY_NAME = {name: command for command in COMMANDS for name in command.names}


def _transcript(messages: tuple[Message, ...]) -> Iterator[str]:
    """Return a conversation as Markdown, what was said and what was called."""
    for message in messages:
        if message.role == Role.USER:
            yield f"## You\n\n{message.text}"
        elif message.role == Role.TOOL:
            yield f"**{message.name}** answered:\n\n```\n{message.text}\n```"
        elif message.recipient is not None:
            yield f"**{message.recipient}** was called:\n\n```\n{message.text}\n```"
        elif message.channel == "final":
            yield f"## gpt-oss\n\n{message.text}"


def _without_tokens(message: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in message.items() if key != "tokens"}
