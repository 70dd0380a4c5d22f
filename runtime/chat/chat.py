"""The Chat: a conversation's history, its settings between turns, and send, ask, undo and branch.

    chat = gptoss.load("model.gguf", tools=[get_weather])
    for event in chat.send("What is the weather in Oslo?"):
        ...

One reply may take several rounds: the model reasons and calls a tool, sees what it answered, goes
on. Its reasoning stays in view until the final message and is dropped after it, as the model was
trained. Each message keeps the ids it was generated as, and is replayed from them.

With a ``TokenMasks`` each generation is held to the turn's rules (``sampling.grammar.Rules``);
nothing is generated before they have compiled. After the last round that may call, the model can
only answer.

**A turn that does not reach its end** (a limit, a cancel, an error) leaves the question and what of
the answer was already given: no reasoning without an answer, no call without a result. Where no
answer was begun the question is withdrawn too.

**Threads.** Every method may be called from any thread. One reply is made at a time; ``cancel``,
``reset`` and ``close`` end it, whatever it is doing, without waiting for its reader. The reader
then gets ``ReplyEnded`` with ``StopReason.CANCELLED``. Tools run on the reader's thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from gptoss.runtime.chat.async_stream import AsyncReplyStream
from gptoss.runtime.chat.chat_setup import ChatSetup, checked_messages, limits_of
from gptoss.runtime.chat.events import HistoryShortened, Reply, ReplyEnded, collect
from gptoss.runtime.chat.full_context import ContextUsage, WhenFull, make_room, room_for_prompt
from gptoss.runtime.chat.reply_stream import ReplyStream
from gptoss.runtime.chat.response_format import AnyResponseFormat
from gptoss.runtime.chat.round import Runner
from gptoss.runtime.chat.runner import ChatRunner
from gptoss.runtime.chat.settings import ChatError, Settings
from gptoss.runtime.chat.turn import Turn
from gptoss.runtime.closing import Closing
from gptoss.runtime.engine.base import Engine
from gptoss.runtime.harmony.messages import Effort, Message, Role, user
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.sampling.grammar import Rules
from gptoss.runtime.sampling.stop_strings import checked_stop
from gptoss.runtime.tools.toolbox import AnyTool, Toolbox

if TYPE_CHECKING:
    from gptoss.runtime.sampling.constrained import TokenMasks


class Chat(Closing):
    """A conversation. A context manager: leaving it closes the chat."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        masks: TokenMasks | None = None,
        *,
        toolbox: Toolbox | None = None,
        settings: Settings | None = None,
        messages: Iterable[Message] = (),
        owns_engine: bool = True,
    ) -> None:
        """Without ``masks`` nothing is constrained. ``messages`` are an earlier conversation,
        without system and developer message. The chat closes an engine that it owns.

        Raises ConstraintError for tools, a choice or a response format that cannot be kept.
        """
        self._begin(Runner(engine, tokenizer, masks), toolbox, settings, messages, owns_engine)

    @classmethod
    def over(
        cls,
        runner: ChatRunner,
        *,
        toolbox: Toolbox | None = None,
        settings: Settings | None = None,
        messages: Iterable[Message] = (),
    ) -> Self:
        """Begin a chat over what runs its rounds, which it does not close; see ``__init__``."""
        chat = cls.__new__(cls)
        chat._begin(runner, toolbox, settings, messages, owns_runner=False)
        return chat

    def _begin(
        self,
        runner: ChatRunner,
        toolbox: Toolbox | None,
        settings: Settings | None,
        messages: Iterable[Message],
        owns_runner: bool,
    ) -> None:
        self._runner = runner
        self._owns_runner = owns_runner
        self._setup = ChatSetup(settings or Settings(), toolbox or Toolbox())
        self._messages = checked_messages(messages)
        self._turn: Turn | None = None
        self._closed = False
        # Reentrant: a garbage collection in this thread may settle another reply of this chat.
        self._lock = threading.RLock()
        self._prepare(self._setup)
        self._sampler = self._setup.new_sampler()

    @property
    def settings(self) -> Settings:
        """Return this chat's settings; set changed ones between turns (``dataclasses.replace``).

        Setting raises ChatError and ConstraintError for what cannot be kept, and then changes
        nothing. Another ``sampling`` or ``seed`` begins a new stream of random numbers.
        """
        return self._setup.settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        if not isinstance(settings, Settings):
            raise ChatError(f"settings is a {type(settings).__name__}; it must be a Settings")
        self._prepare(replace(self._setup, settings=settings))
        with self._lock:
            before, self._setup = self._setup, replace(self._setup, settings=settings)
            changed = settings.sampling, settings.seed
            if (before.settings.sampling, before.settings.seed) != changed:
                self._sampler = self._setup.new_sampler()

    @property
    def effort(self) -> Effort:
        """Return how much the model reasons in this chat; may be set between turns, by name too."""
        return self._setup.settings.effort

    @effort.setter
    def effort(self, effort: Effort) -> None:
        changed = replace(self._setup.settings, effort=effort)
        with self._lock:
            self._setup = replace(self._setup, settings=changed)

    @property
    def messages(self) -> tuple[Message, ...]:
        """Return all messages of the chat, system and developer message first, without a reply
        under way.
        """
        with self._lock:
            return (*self._setup.first_messages(), *self._messages)

    @property
    def history(self) -> tuple[Message, ...]:
        """Return the chat's messages so far, without system and developer message; may be set
        between turns.

        Setting raises ConversationError for what cannot be put before the model, ChatError while a
        reply is being read.
        """
        with self._lock:
            return tuple(self._messages)

    @history.setter
    def history(self, messages: Iterable[Message]) -> None:
        changed = checked_messages(messages)
        self._runner.check_messages((*self._setup.first_messages(), *changed))
        with self._lock:
            self._require_rest()
            self._messages = changed

    def undo(self) -> str:
        """Remove the last turn from this chat and return the question that was asked in it. Raises
        ChatError.

        To edit a question, send another one after this.
        """
        with self._lock:
            self._require_rest()
            asked = [i for i, m in enumerate(self._messages) if m.role == Role.USER]
            if not asked:
                raise ChatError("there is no turn to take back")
            question = self._messages[asked[-1]].text
            del self._messages[asked[-1] :]
            return question

    def regenerate(self) -> ReplyStream:
        """Ask this chat's last question again, and drop the reply that was given before. Raises as
        ``send``.
        """
        with self._lock:
            return self.send(self.undo())

    def branch(self) -> Chat:
        """Return a second chat that continues from this one's messages; closing it leaves the model
        loaded.
        """
        return Chat.over(
            self._runner, toolbox=self.tools, settings=self.settings, messages=self.history
        )

    @property
    def n_ctx(self) -> int:
        """Return how many tokens this chat and its next reply may have together, 0 where another
        server does not say.
        """
        return self._runner.n_ctx

    def count_tokens(self, text: str | None = None) -> int:
        """Count the prompt tokens of this chat's next reply; with ``text`` as its question. Raises
        ChatError where another server does not count them.
        """
        asked = () if text is None else (user(text),)
        return self._runner.count((*self.messages, *asked))

    def context_usage(self) -> ContextUsage:
        """Count the tokens of this chat's parts, without a reply under way."""
        with self._lock:
            first, whole = self._setup.first_messages(), self.messages
        counts = [self._runner.count(messages) for messages in (first[:1], first, whole)]
        return ContextUsage(self.n_ctx, counts[0], counts[1] - counts[0], counts[2] - counts[1])

    @property
    def tools(self) -> Toolbox:
        """Return this chat's tools; set others between turns, as a ``Toolbox`` or a list. Setting
        raises ToolError, ConstraintError, ChatError.
        """
        return self._setup.toolbox

    @tools.setter
    def tools(self, tools: Toolbox | Iterable[AnyTool]) -> None:
        with self._lock:
            self._require_rest()
            if not isinstance(tools, Toolbox):
                tools = Toolbox(tools, self.tools.approve)
            changed = replace(self._setup, toolbox=tools)
            self._prepare(changed)
            self._setup = changed

    def send(
        self,
        text: str,
        *,
        tool_choice: str | None = None,
        response_format: AnyResponseFormat | None = None,
    ) -> ReplyStream:
        """Send the user's message ``text`` in this chat, and stream the reply's events;
        ``ReplyEnded`` is the last.

        ``tool_choice`` and ``response_format`` are this turn's instead of the conversation's. The
        model begins when the first event is read. Raises ChatError while another reply is being
        read. Reading raises ConversationError for a text that cannot be encoded, tools or rules
        that cannot be kept, or a context that cannot hold it all; EngineError.
        """
        with self._lock:
            self._require_open()
            setup = self._setup
            rules = self._rules(setup, tool_choice, response_format)
            self._require_rest()
            shortened = self._make_room(user(text))
            turn = self._turn = Turn(
                self._runner,
                setup.toolbox,
                self.messages,
                user(text),
                rules,
                limits_of(rules, setup.settings.limits),
                self._sampler,
                checked_stop(setup.settings.stop),
                shortened,
            )
        return ReplyStream(turn, self._settle)

    def ask(
        self,
        text: str,
        *,
        tool_choice: str | None = None,
        response_format: AnyResponseFormat | None = None,
    ) -> Reply:
        """Send the user's message ``text`` in this chat and wait for the whole reply;
        as ``send``.
        """
        stream = self.send(text, tool_choice=tool_choice, response_format=response_format)
        with stream:
            return collect(stream)

    def asend(
        self,
        text: str,
        *,
        tool_choice: str | None = None,
        response_format: AnyResponseFormat | None = None,
    ) -> AsyncReplyStream:
        """Send a user's message in this chat from asyncio: ``send`` for ``async for``. The event
        loop is not blocked, and async tools run in it.
        """
        stream = self.send(text, tool_choice=tool_choice, response_format=response_format)
        return AsyncReplyStream(stream)

    async def aask(
        self,
        text: str,
        *,
        tool_choice: str | None = None,
        response_format: AnyResponseFormat | None = None,
    ) -> Reply:
        """Send a user's message in this chat from asyncio and await the whole reply;
        see ``asend``.
        """
        stream = self.asend(text, tool_choice=tool_choice, response_format=response_format)
        async with stream:
            return collect([event async for event in stream])

    def cancel(self) -> None:
        """End this chat's reply under way as soon as possible; its last event has the reason
        CANCELLED.

        No effect where none is, and none on any later reply.
        """
        turn = self._turn
        if turn is not None:
            turn.cancel()

    def answer_now(self) -> bool:
        """End the reasoning of this chat's reply under way: the model goes on with its answer.

        Returns False where no reply is under way, or nothing is constrained.
        """
        turn = self._turn
        return turn is not None and turn.answer_now()

    def reset(self) -> None:
        """Clear this chat's history; random numbers begin again from the seed.

        A reply under way is cancelled, and nothing of it stays.
        """
        with self._lock:
            self._drop_turn()
            self._messages = []
            self._sampler = self._setup.new_sampler()

    def close(self) -> None:
        """Close this chat: cancel the reply under way and free the engine's memory. May be called
        twice.
        """
        with self._lock:
            self._closed = True
            self._drop_turn()
        if self._owns_runner:
            self._runner.close()

    def _drop_turn(self) -> None:
        """Cancel this chat's turn under way, and keep none of it in the history."""
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.cancel()

    def _settle(self, turn: Turn, ended: ReplyEnded) -> None:
        """Add the messages of a finished turn to this chat's history, unless the chat was reset
        meanwhile.
        """
        with self._lock:
            if self._turn is turn:
                self._messages += turn.remains(ended.end)
                self._turn = None

    def _make_room(self, question: Message) -> HistoryShortened | None:
        """Leave out this chat's oldest turns if the next one would not leave room for a reply."""
        settings, first = self.settings, self._setup.first_messages()
        if settings.when_full == WhenFull.ERROR:
            return None

        def count(history: Sequence[Message]) -> int:
            return self._runner.count((*first, *history, question))

        room = room_for_prompt(self.n_ctx, settings.limits.max_tokens)
        self._messages, left_out = make_room(self._messages, count, room, settings.when_full)
        return left_out

    def _require_open(self) -> None:
        if self._closed:
            raise ChatError("the chat has been closed")

    def _require_rest(self) -> None:
        if self._turn is not None:
            raise ChatError(
                "the reply before this one is still being read; finish, cancel or close it"
            )

    def _prepare(self, setup: ChatSetup) -> None:
        """Prepare what a turn of this chat needs; raises ChatError, ConstraintError,
        SamplingError.
        """
        self._runner.prepare(setup.settings, self._rules(setup))

    def _rules(
        self,
        setup: ChatSetup,
        tool_choice: str | None = None,
        response_format: AnyResponseFormat | None = None,
    ) -> Rules:
        """Return the constraints of one turn, checked by what runs this chat's rounds; raises
        ChatError.
        """
        rules = setup.rules(tool_choice, response_format)
        self._runner.check(setup.settings, rules)
        return rules
