"""The input line at a terminal: history, completion, several lines, keys, and the bar below."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from gptoss.runtime.terminal.commands import BY_NAME, COMMANDS
from gptoss.runtime.terminal.typed_text import is_complete, message_of
from gptoss.text import printable_lines


class CommandCompleter(Completer):
    """Completes slash commands, their words, tools and files."""

    def __init__(self, tools: Iterable[str]) -> None:
        self._tools = tuple(tools)
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
        """Yield what may follow the text before the cursor."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, space, rest = text[1:].partition(" ")
        if not space:
            for known in COMMANDS:  # by another name only where the first one does not fit
                word = next((it for it in known.names if it.startswith(name)), None)
                if word is not None:
                    yield Completion(word, -len(name), display_meta=known.help)
            return
        command = BY_NAME.get(name)
        if command is None:
            return
        if "FILE" in command.argument:
            yield from self._paths.get_completions(Document(rest), event)
            return
        last = rest.rpartition(" ")[2]
        words = (*command.words, *(self._tools if command.names[0] == "tools" else ()))
        yield from (Completion(it, -len(last)) for it in words if it.startswith(last))


def open_history(path: Path | None) -> History:
    """Open the file of earlier lines, which only its owner can read; in memory where it cannot be
    used.
    """
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)


class Prompt:
    """Asks for messages. ``bar`` gives the line below; the keys call what they are given."""

    def __init__(
        self,
        history: History,
        *,
        tools: Iterable[str],
        bar: Callable[[], str],
        next_effort: Callable[[], None],
        show_reasoning: Callable[[], None],
    ) -> None:
        keys = KeyBindings()

        @keys.add("enter")
        def _(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            if is_complete(buffer.text):
                buffer.validate_and_handle()
            else:
                buffer.insert_text("\n")

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add("tab")
        def _(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            state = buffer.complete_state
            if state is not None and len(state.completions) > 1:
                buffer.complete_next()
            elif state is not None and state.completions:
                buffer.apply_completion(state.completions[0])
            else:
                buffer.start_completion(insert_common_part=True)

        @keys.add("c-t")
        def _(event: KeyPressEvent) -> None:
            next_effort()
            event.app.invalidate()

        @keys.add("c-o")
        def _(_event: KeyPressEvent) -> None:
            run_in_terminal(show_reasoning)

        self._session: PromptSession[str] = PromptSession(
            history=history,
            multiline=True,
            key_bindings=keys,
            completer=CommandCompleter(tools),
            complete_while_typing=True,
            auto_suggest=AutoSuggestFromHistory(),
            bottom_toolbar=lambda: printable_lines(bar()),
            prompt_continuation="… ",
            reserve_space_for_menu=6,
            enable_open_in_editor=True,
        )

    def ask(self, draft: str = "") -> str:
        """Ask for one message; raises KeyboardInterrupt for Ctrl-C and EOFError for Ctrl-D."""
        return message_of(self._session.prompt("> ", default=draft))
