"""Harmony messages as OpenAI's Chat Completions have them: the way back from what the server reads.

Messages of one turn are gathered into an assistant message; call ids are numbered. The system block
and built-in tools have no counterpart in the API and are left out; a preamble that no call follows
is joined to the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gptoss.runtime.harmony.messages import FUNCTIONS, DeveloperContent, Function, Message, Role


def messages_to_openai(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Convert harmony messages to OpenAI Chat Completions messages; what those have no field for is
    left out.
    """
    writer = _Writer()
    for message in messages:
        writer.write(message)
    return writer.messages


@dataclass(slots=True)
class _Writer:
    """Gathers an assistant's turn; results find their call by name, the oldest first."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    _turn: dict[str, Any] | None = None
    """The assistant message that may still grow."""
    _calls: list[tuple[str, str]] = field(default_factory=list)
    """Calls without result: id and the tool's full name."""
    _numbered: int = 0

    def write(self, message: Message) -> None:
        """Convert one harmony message to Chat Completions."""
        if message.role == Role.ASSISTANT:
            self._assistant(message)
        elif message.role == Role.TOOL:
            self._tool(message)
        else:
            self._turn = None
            if isinstance(message.content, DeveloperContent):
                if message.content.instructions is not None:
                    text = message.content.instructions
                    self.messages.append({"role": "developer", "content": text})
            elif isinstance(message.content, str):
                name = {} if message.name is None else {"name": message.name}
                self.messages.append({"role": message.role.value, "content": message.text} | name)

    def _assistant(self, message: Message) -> None:
        if message.recipient is not None and not message.recipient.startswith(f"{FUNCTIONS}."):
            return
        if message.recipient is not None:
            identity = f"call_{self._numbered}"
            self._numbered += 1
            self._calls.append((identity, message.recipient))
            name = message.recipient.removeprefix(f"{FUNCTIONS}.")
            call = {"name": name, "arguments": message.text}
            turn = self._growing(("content", "reasoning_content", "tool_calls"))
            turn.setdefault("tool_calls", []).append(
                {"id": identity, "type": "function", "function": call}
            )
        elif message.channel == "analysis":
            self._add(self._growing(("reasoning_content",)), "reasoning_content", message.text)
        else:
            self._add(self._growing(("reasoning_content", "content")), "content", message.text)
            if message.channel == "final":
                self._turn = None

    def _growing(self, before: tuple[str, ...]) -> dict[str, Any]:
        """Return the assistant message of Chat Completions that is still being filled, a new one
        unless all of its fields may precede this.
        """
        if (
            self._turn is None
            or not self._turn.keys() <= {"role", "content", *before}
            or ("content" not in before and self._turn["content"] is not None)
        ):
            self._turn = {"role": "assistant", "content": None}
            self.messages.append(self._turn)
        return self._turn

    @staticmethod
    def _add(turn: dict[str, Any], key: str, text: str) -> None:
        before = turn.get(key)
        turn[key] = text if before is None else f"{before}\n\n{text}"

    def _tool(self, message: Message) -> None:
        found = next((call for call in self._calls if call[1] == message.name), None)
        if found is None:
            return
        self._calls.remove(found)
        self._turn = None
        self.messages.append({"role": "tool", "tool_call_id": found[0], "content": message.text})


def tools_to_openai(functions: Sequence[Function]) -> list[dict[str, Any]]:
    """Convert tool declarations of functions that take JSON to an OpenAI ``tools`` list, in the
    form of Chat Completions.
    """
    tools = []
    for function in functions:
        declared: dict[str, Any] = {"name": function.name}
        if function.description:
            declared["description"] = function.description
        if function.parameters is not None:
            declared["parameters"] = dict(function.parameters)
        tools.append({"type": "function", "function": declared})
    return tools
