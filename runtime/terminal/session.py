"""A conversation at the terminal: the chat, the model under it, and its record in the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from gptoss.errors import GptossError
from gptoss.runtime.chat.chat import Chat
from gptoss.runtime.chat.reply_stream import ReplyStream
from gptoss.runtime.chat.runner import ChatRunner
from gptoss.runtime.chat.settings import ChatError, Settings
from gptoss.runtime.harmony.messages import Effort, Message, Role
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.store.conversations import Conversation, Entry, Summary
from gptoss.runtime.store.errors import NotFoundError
from gptoss.runtime.store.owners import LOCAL_OWNER
from gptoss.runtime.store.store import Store
from gptoss.runtime.tools.approval import Approval
from gptoss.runtime.tools.earlier import KeepsState, earlier_sessions
from gptoss.runtime.tools.functions import Tool
from gptoss.runtime.tools.groups import ToolGroup
from gptoss.runtime.tools.toolbox import AnyTool, Toolbox


class SessionModel(Protocol):
    """A model to talk with: ``chat.model.Model``, or one that another server runs by messages."""

    @property
    def runner(self) -> ChatRunner:
        """Return what runs the chats of a session's model."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Return the tokenizer of a session's model, None where it is another server's."""
        ...

    def close(self) -> None:
        """Free a session's model."""
        ...


OpenModel = Callable[[], tuple[SessionModel, str]]
"""Loads a model that was found; returns it with the name that is shown."""
FindModel = Callable[[str], OpenModel]
"""Finds a model by its name; raises GptossError."""
Say = Callable[[str], None]

LISTED = 20
"""Conversations that are listed at once."""


@dataclass
class Stats:
    """What the conversation has cost since the program was started."""

    replies: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0


@dataclass
class Tools:
    """The functions and groups that may be called; those in ``off`` are not declared to the
    model.
    """

    functions: tuple[Tool, ...] = ()
    groups: tuple[ToolGroup, ...] = ()
    off: set[str] = field(default_factory=set)

    @property
    def names(self) -> list[str]:
        """Return the names by which they are switched on and off."""
        functions = [it.declaration.name for it in self.functions]
        return [*functions, *(it.namespace.name for it in self.groups)]

    @property
    def on(self) -> list[AnyTool]:
        """Return what is declared to the model now."""
        tools: tuple[AnyTool, ...] = (*self.functions, *self.groups)
        pairs = zip(self.names, tools, strict=True)
        return [tool for name, tool in pairs if name not in self.off]


class Session:
    """One conversation, and what the person changes about it. Used by one thread.

    Without a ``store`` nothing is kept. A store that fails is reported once by ``say`` and then
    not used any more: the conversation goes on.
    """

    def __init__(
        self,
        model: SessionModel,
        name: str,
        settings: Settings,
        *,
        tools: Iterable[Tool] = (),
        groups: Iterable[ToolGroup] = (),
        approval: Approval | None = None,
        store: Store | None = None,
        find: FindModel | None = None,
        opened: OpenModel | None = None,
        say: Say = lambda _: None,
    ) -> None:
        """``find`` finds other models; ``opened`` loads this one once more."""
        self.model = model
        self.name = name
        self.tools = Tools(tuple(tools), tuple(groups))
        self._approval = approval
        self.stats = Stats()
        self._find_model, self._opened = find, opened
        self._say = say
        self._store = None if store is None else _for_model(store, model)
        self._stored: list[Message] = []
        self._listed: list[str] = []
        self.takes_keys = True
        """Whether the terminal takes keys other than Ctrl-C and Ctrl-D."""
        self.conversation: str | None = None
        """The conversation's id in the store, once it has a turn."""
        self.chat = self._chat(settings, ())

    def close(self) -> None:
        """End the conversation and free the model."""
        self.model.close()

    # --- talking ------------------------------------------------------------------------------

    def send(self, text: str) -> ReplyStream:
        """Send a message; raises as ``Chat.send``."""
        return self.chat.send(text)

    def save_turn(self) -> None:
        """Bring the conversation in the store to what it is now."""
        self._stored_by(self._save)

    def _save(self, store: Store) -> None:
        history = list(self.chat.history)
        if self.conversation is not None and not self._is_as_known(store, self.conversation):
            self._say("the conversation was changed elsewhere; this one is kept as a new one")
            self.conversation, self._stored = None, []
        if self.conversation is None:
            if not history:
                return
            made = store.conversations.create(LOCAL_OWNER, settings=self._settings_json())
            self.conversation = made.id
        same = _common(history, self._stored)
        if same < len(self._stored):
            store.conversations.truncate(LOCAL_OWNER, self.conversation, same)
        if same < len(history):
            entries = [Entry(message) for message in history[same:]]
            store.conversations.append(LOCAL_OWNER, self.conversation, entries, expected=same)
        self._stored = history

    def _is_as_known(self, store: Store, conversation: str) -> bool:
        """Write the settings, and report whether the conversation has the messages known here."""
        try:
            about = store.conversations.update(
                LOCAL_OWNER, conversation, settings=self._settings_json()
            )
        except NotFoundError:  # deleted, on the page perhaps
            return False
        return about.length == len(self._stored)

    # --- changing the conversation ------------------------------------------------------------

    def change(self, **settings: Any) -> None:
        """Change the chat's settings (``effort``, ``instructions`` …); raises ChatError."""
        self.chat.settings = replace(self.chat.settings, **settings)

    def clear(self) -> None:
        """Begin a new conversation; the one before stays in the store."""
        self.chat.reset()
        self._enter(None, ())

    def branch(self) -> None:
        """Go on in a copy of the conversation; the one before stays as it is."""
        self._stored_by(self._branch)

    def _branch(self, store: Store) -> None:
        if self.conversation is None:
            raise ChatError("there is no turn yet to branch from")
        length = len(self._stored)
        self.conversation = store.conversations.branch(LOCAL_OWNER, self.conversation, length).id

    def last_question(self) -> str | None:
        """Return the last message of the person; None where there is none."""
        asked = [it.text for it in self.chat.history if it.role == Role.USER]
        return asked[-1] if asked else None

    def set_tools(self, names: Sequence[str], *, on: bool) -> None:
        """Declare tools to the model, or no longer; raises ChatError for an unknown name."""
        known = self.tools.names
        for name in names:
            if name not in known:
                raise ChatError(f"tool is {name!r}; known: {', '.join(known) or 'none'}")
        changed = set(names or known)
        self.tools.off = self.tools.off - changed if on else self.tools.off | changed
        self.chat = self._chat(self.chat.settings, self.chat.history)

    def use_model(self, name: str) -> None:
        """Load another model and go on with it. Raises GptossError, and then keeps the old one."""
        if self._find_model is None or self._opened is None:
            raise ChatError("no other model can be loaded here")
        wanted = self._find_model(name)
        self.model.close()  # two may not fit into memory
        try:
            self._take(*wanted())
        except BaseException:
            self._take(*self._opened())
            raise
        self._opened = wanted

    def _take(self, model: SessionModel, name: str) -> None:
        """Go on with a model that was loaded."""
        settings, history = self.chat.settings, self.chat.history
        self.model, self.name = model, name
        if self._store is not None:
            self._store = _for_model(self._store, model)
        self.chat = self._chat(settings, [replace(it, tokens=None) for it in history])

    def replace_history(self, messages: Sequence[Message]) -> None:
        """Take over a conversation from a file, as a new one; raises ConversationError."""
        self.chat.history = tuple(messages)
        self._enter(None, ())

    # --- earlier conversations ----------------------------------------------------------------

    def recent(self, text: str = "") -> list[Summary]:
        """List the conversations in the store, the last used first; those that have ``text``."""
        if self._store is None:
            return []
        conversations = self._store.conversations
        if text:
            found = conversations.search(LOCAL_OWNER, text, limit=LISTED)
        else:
            found = conversations.recent(LOCAL_OWNER, limit=LISTED)
        self._listed = [it.id for it in found]
        return found

    def resume(self, wanted: str | None) -> Conversation:
        """Go on with an earlier conversation: the last one, or that of an id, its beginning, or its
        number in the list that was shown last. Raises ChatError.
        """
        if self._store is None:
            raise ChatError("conversations are not kept here")
        identity = earlier_conversation(self._store, wanted, self._listed)
        found = self._store.conversations.load(LOCAL_OWNER, identity)
        about = found.summary.settings
        known = {it.name: about[it.name] for it in _KEPT if it.fits(about.get(it.name))}
        self.change(**known)
        self.chat.history = found.messages
        self._enter(found.id, found.messages)
        return found

    def _enter(self, conversation: str | None, stored: Iterable[Message]) -> None:
        """Go on in another conversation: tools that were allowed in the one before are asked for
        again, and what the built-in ones kept of it is dropped.
        """
        self.conversation, self._stored = conversation, list(stored)
        if self._approval is not None:
            self._approval.forget()
        for group in self.tools.groups:
            if isinstance(group, KeepsState):
                group.start_over()
                group.go_on(earlier_sessions(self.chat.history))

    # ------------------------------------------------------------------------------------------

    def _chat(self, settings: Settings, history: Iterable[Message]) -> Chat:
        return Chat.over(
            self.model.runner,
            toolbox=Toolbox(self.tools.on, self._approval),
            settings=settings,
            messages=history,
        )

    def _settings_json(self) -> dict[str, Any]:
        settings = self.chat.settings
        return {it.name: getattr(settings, it.name) for it in _KEPT} | {"model": self.name}

    def _stored_by(self, work: Callable[[Store], None]) -> None:
        if self._store is None:
            return
        try:
            work(self._store)
        except ChatError:
            raise
        except GptossError as error:
            self._say(f"warning: the conversation is not kept any more: {error}")
            self._store = None


def earlier_conversation(store: Store, wanted: str | None, listed: Sequence[str] = ()) -> str:
    """Return the id of an earlier conversation: the last one, or that of an id, its beginning, or
    its number in a list of ids that was shown. Raises ChatError.
    """
    recent = store.conversations.recent(LOCAL_OWNER, limit=1000)
    if not recent:
        raise ChatError("there is no earlier conversation")
    if wanted is None:
        return recent[0].id
    listed = listed or [it.id for it in recent[:LISTED]]
    if wanted.isdecimal() and 1 <= int(wanted) <= len(listed):
        return listed[int(wanted) - 1]
    named = [it.id for it in recent if it.id.startswith(wanted)]
    if len(named) != 1:
        problem = "no conversation has this id" if not named else "several ids begin so"
        raise ChatError(f"conversation is {wanted!r}: {problem}; /conversations lists them")
    return named[0]


@dataclass(frozen=True)
class _KeptSetting:
    """A setting that comes back with its conversation."""

    name: str
    fits: Callable[[Any], bool]


_KEPT = (
    _KeptSetting("effort", lambda value: value in list(Effort)),
    _KeptSetting("instructions", lambda value: value is None or isinstance(value, str)),
    _KeptSetting("date", lambda value: isinstance(value, str)),
)
"""The date too: another one would not find the prompt in memory."""


def _for_model(store: Store, model: SessionModel) -> Store:
    """Return the store with the token ids of a model's tokenizer, or with none."""
    return store if model.tokenizer is None else store.for_tokenizer(model.tokenizer)


def _common(one: Sequence[Message], other: Sequence[Message]) -> int:
    """Return how many of the first messages are the same."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def history_path() -> Path:
    """Return where the lines that the person typed are kept, on every system."""
    import platformdirs

    return platformdirs.user_state_path("gptoss", appauthor=False) / "history"
