"""The errors of a conversation: a message, a tool, a schema or a constraint is invalid.

GptossError
└── ConversationError        a message, a tool or a schema is invalid
    ├── ConversationTooLongError  valid, but too long for the context
    └── ConstraintError        the constraints of a turn cannot be compiled
"""

from __future__ import annotations

from gptoss.errors import GptossError


class ConversationError(GptossError):
    """A conversation or its tools are invalid.

    ``index`` is the place in ``messages`` (or ``tools``), None for the list itself; ``field`` is
    the field in it, dotted, empty for the whole. ``place`` is both in one, ``problem`` what is
    wrong there; the message is the two of them.
    """

    def __init__(self, index: int | None, field: str, problem: str, where: str = "messages"):
        self.index = index
        self.field = field
        self.problem = problem
        self.place = where if index is None else f"{where}[{index}]"
        self.place += f".{field}" if field and not field.startswith("[") else field
        text = f"{self.place}: {problem}"
        super().__init__(text.replace("\n", "\\n"))  # a property's name may hold line ends


class ConversationTooLongError(ConversationError):
    """The context ends within a message, ``index``; ``limit`` is the tokens that there are.

    Of a conversation that was read from OpenAI's API, ``index`` counts that list's messages. It is
    None for what is in none of them: the system block, the tools, later messages.
    """

    def __init__(self, index: int | None, limit: int, where: str = "messages"):
        self.limit = limit
        super().__init__(
            index,
            "" if index is None else "content",
            f"does not fit into the {limit} tokens that the context has for the conversation; "
            "start over, shorten it, or load the model with a larger context",
            where,
        )


class ConstraintError(ConversationError):
    """The constraints of a turn cannot be compiled; nothing was generated.

    ``field`` names the cause: ``tool_choice``, ``response_format.properties.a``, …
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(None, "", problem, field)
        self.field = field
