"""Renders conversations: harmony messages to token ids.

Text is encoded as text, and control tokens are inserted by id, so no string in a message can become
a control token. The result equals openai-harmony's (0.0.8) token for token, and its text equals the
official chat template's. All differences are intentional, and listed here.

From openai-harmony:

* Reasoning is kept by the template's rule. That library keeps the reasoning of every answer but the
  first.
* Schemas that it writes as ``any`` or in part are written in full: see ``tools_typescript.py``.
* The model's own messages are replayed from their original ids, so that the prefix cache is reused.
* A conversation that the model was not trained on (no system block, a result without a call, a
  tool's name with a space in it) is rejected: see ``validate.py``. That library renders it.
* More than 65,536 blanks in a row are encoded in pieces; a million crash that library's process.

From the template:

* A call's arguments have the type `` <|constrain|>json``, as the model itself and openai-harmony
  write it; the template writes `` json``.
* A tool's result is passed on unchanged, as in openai-harmony; the template quotes it.
* There is no blank line after instructions without tools.
* All calls of a turn are kept; the template drops all but the first. A preamble before a call is on
  the commentary channel; the template treats it as reasoning.
* Defaults, and schemas beyond plain properties, are written as in openai-harmony.
* Text that looks like a control token stays text; the template's output would become the token.
"""

from __future__ import annotations

from collections.abc import Sequence

from gptoss.runtime.harmony.errors import ConversationTooLongError
from gptoss.runtime.harmony.messages import (
    CONSTRAIN,
    FUNCTIONS,
    DeveloperContent,
    Message,
    Role,
    SystemContent,
)
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.harmony.tools_typescript import tools_section
from gptoss.runtime.harmony.validate import check_conversation


def render_for_completion(
    messages: Sequence[Message], tokenizer: Tokenizer, *, limit: int | None = None
) -> list[int]:
    """Render a conversation to token ids, then ``<|start|>assistant``, from which the model
    continues.

    ``limit`` is the most ids that this may be. Raises ConversationError for messages that cannot be
    rendered, ConversationTooLongError for the message in which the limit is reached.
    """
    check_conversation(messages)
    opening = [tokenizer.control["<|start|>"], *tokenizer.encode(Role.ASSISTANT)]
    with_functions = any(map(declares_functions, messages))
    ids: list[int] = []
    for index in kept_messages(messages):
        message = messages[index]
        # A message that cannot fit is not encoded: for a gigabyte that would take minutes.
        if limit is not None and len(message.text) > limit * tokenizer.longest:
            raise _too_long(messages, index, limit)
        ids += render_message(message, tokenizer, conversation_has_functions=with_functions)
        if limit is not None and len(ids) + len(opening) > limit:
            raise _too_long(messages, index, limit)
    return [*ids, *opening]


def kept_messages(messages: Sequence[Message]) -> list[int]:
    """Return the indices of the messages to render, by the official template's rule: reasoning is
    dropped once a final message has ended its turn.
    """
    horizon = max(
        (i for i, message in enumerate(messages) if message.channel == "final"), default=0
    )
    return [i for i, m in enumerate(messages) if m.channel != "analysis" or i >= horizon]


def declares_functions(message: Message) -> bool:
    """Report whether a message to render is a developer block with function tools."""
    content = message.content
    return isinstance(content, DeveloperContent) and any(
        space.name == FUNCTIONS and space.functions for space in content.tools
    )


def _too_long(messages: Sequence[Message], index: int, limit: int) -> ConversationTooLongError:
    """Return the error for a conversation whose rendered ids exceed the limit, at the message as
    the caller's list counts.
    """
    message = messages[index]
    if all(it.origin is None for it in messages):
        return ConversationTooLongError(index, limit)
    of_tools = message.origin is None and message.role == Role.DEVELOPER
    return ConversationTooLongError(message.origin, limit, "tools" if of_tools else "messages")


def render_message(
    message: Message, tokenizer: Tokenizer, *, conversation_has_functions: bool = False
) -> list[int]:
    """Render one message to token ids, from ``<|start|>`` to ``<|end|>`` (``<|call|>`` for an
    assistant's call).

    ``conversation_has_functions`` adds the system block's line on where calls go.
    """
    control = tokenizer.control
    if message.tokens is not None:
        return [control["<|start|>"], *tokenizer.encode(message.role), *_replay(message, tokenizer)]
    ids = [control["<|start|>"], *tokenizer.encode(_author(message))]
    if message.recipient is not None and message.recipient != "all":
        ids += tokenizer.encode(f" to={message.recipient}")
    if message.channel is not None:
        ids += [control["<|channel|>"], *tokenizer.encode(message.channel)]
    if message.content_type is not None:
        ids += _content_type(message.content_type, tokenizer)
    ids.append(control["<|message|>"])
    ids += tokenizer.encode(content_text(message, conversation_has_functions))
    calls = message.role == Role.ASSISTANT and message.recipient is not None
    ids.append(control["<|call|>" if calls else "<|end|>"])
    return ids


def content_text(message: Message, conversation_has_functions: bool) -> str:
    """Render a message's content: the text between ``<|message|>`` and the end token."""
    content = message.content
    if isinstance(content, SystemContent):
        return _system_text(content, conversation_has_functions)
    if isinstance(content, DeveloperContent):
        return _developer_text(content)
    return content


def _replay(message: Message, tokenizer: Tokenizer) -> list[int]:
    """Return the model's own ids of a message instead of rendering it; in history a turn's end is a
    message's end, and a cut one is closed.
    """
    control = tokenizer.control
    ids = list(message.tokens or ())
    if not ids or ids[-1] not in (control["<|end|>"], control["<|call|>"], control["<|return|>"]):
        return [*ids, control["<|end|>"]]
    if ids[-1] == control["<|return|>"]:
        ids[-1] = control["<|end|>"]
    return ids


def _author(message: Message) -> str:
    """Render a message's author: a tool's own name; else the role, and a name after a colon."""
    if message.role == Role.TOOL:
        return message.name or ""
    return f"{message.role}:{message.name}" if message.name is not None else message.role.value


def _content_type(content_type: str, tokenizer: Tokenizer) -> list[int]:
    """Render a message's content type to ids: `` json`` as text, or a space, the constrain token
    and the rest as text.
    """
    if not content_type.startswith(CONSTRAIN):
        return tokenizer.encode(f" {content_type}")
    rest = content_type.removeprefix(CONSTRAIN)
    return [*tokenizer.encode(" "), tokenizer.control[CONSTRAIN], *tokenizer.encode(rest)]


def _system_text(content: SystemContent, conversation_has_functions: bool) -> str:
    about = []
    if content.identity is not None:
        about.append(content.identity)
    if content.knowledge_cutoff is not None:
        about.append(f"Knowledge cutoff: {content.knowledge_cutoff}")
    if content.date is not None:
        about.append(f"Current date: {content.date}")
    sections = ["\n".join(about)] if about else []
    if content.effort is not None:
        sections.append(f"Reasoning: {content.effort}")
    if content.tools:
        sections.append(tools_section(content.tools))
    if content.channels:
        channels = f"# Valid channels: {', '.join(content.channels)}."
        channels += " Channel must be included for every message."
        if conversation_has_functions:
            channels += "\nCalls to these tools must go to the commentary channel: 'functions'."
        sections.append(channels)
    return "\n\n".join(sections)


def _developer_text(content: DeveloperContent) -> str:
    sections = []
    if content.instructions is not None:
        sections += ["# Instructions", content.instructions]
    if content.tools:
        sections.append(tools_section(content.tools))
    return "\n\n".join(sections)
