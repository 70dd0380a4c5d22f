"""What a chat's turns are asked with: its settings and its tools, and what follows from both."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from gptoss.errors import quoted
from gptoss.runtime.chat.response_format import AnyResponseFormat, resolve_response_format
from gptoss.runtime.chat.settings import CONSTRAINED_TOKENS, Limits, Settings
from gptoss.runtime.harmony.errors import ConversationError
from gptoss.runtime.harmony.messages import Message, Role, developer, system
from gptoss.runtime.sampling.grammar import Rules, ToolChoice
from gptoss.runtime.sampling.sampler import RandomSampler
from gptoss.runtime.tools.toolbox import Toolbox


@dataclass(frozen=True, slots=True)
class ChatSetup:
    """A chat's settings and tools; a change between turns is another setup."""

    settings: Settings
    toolbox: Toolbox

    def first_messages(self) -> list[Message]:
        """Return the system message, and the developer message where there are instructions or
        tools.
        """
        settings, tools = self.settings, self.toolbox
        first = [system(date=settings.date, effort=settings.effort, tools=tools.builtins)]
        if settings.instructions is not None or tools.declarations or tools.namespaces:
            first.append(developer(settings.instructions, tools.declarations, tools.namespaces))
        return first

    def new_sampler(self) -> RandomSampler:
        """Return a sampler whose random numbers begin at the seed."""
        return RandomSampler(self.settings.sampling, self.settings.seed)

    def rules(self, tool_choice: str | None, response_format: AnyResponseFormat | None) -> Rules:
        """Combine the settings with what one turn was given into its constraints; raises
        ChatError.
        """
        settings, tools = self.settings, self.toolbox
        form = settings.response_format if response_format is None else response_format
        return Rules(
            functions=tools.declarations,
            namespaces=(*tools.builtins, *tools.namespaces),
            tool_choice=tool_choice or settings.tool_choice,
            parallel_calls=settings.parallel_calls,
            response_format=resolve_response_format(form),
        )


def checked_messages(messages: Iterable[Message]) -> list[Message]:
    """Return a chat's history as a list; raises ConversationError for what are not messages."""
    if not isinstance(messages, Iterable):
        raise ConversationError(None, "", f"{quoted(messages)} is not a list of gptoss.Message")
    checked = list(messages)
    for index, message in enumerate(checked):
        if not isinstance(message, Message):
            problem = f"is a {type(message).__name__}; it must be a gptoss.Message"
            raise ConversationError(index, "", problem)
        if not isinstance(message.role, Role):
            problem = f"is {quoted(message.role)}; it must be a gptoss.Role, such as Role.USER"
            raise ConversationError(index, "role", problem)
    return checked


def limits_of(rules: Rules, limits: Limits) -> Limits:
    """Return the limits of one turn: with a default for the tokens where a form is required."""
    is_free = rules.response_format is None and rules.tool_choice in (
        ToolChoice.AUTO,
        ToolChoice.NONE,
    )
    if is_free or limits.max_tokens is not None:
        return limits
    return replace(limits, max_tokens=CONSTRAINED_TOKENS)
