"""A reply that the page has asked for: it runs on, whether or not a page is reading it.

Its events are numbered and kept until a while after its end, so that a page that was reloaded, or
lost its connection, reads on from the number it has.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import suppress
from queue import Empty, SimpleQueue

from gptoss.errors import GptossError
from gptoss.runtime.chat.chat import Chat
from gptoss.runtime.chat.events import ChatEvent, ReplyEnded, StopReason, ToolFinished
from gptoss.runtime.engine.base import Timings
from gptoss.runtime.harmony.events import End, TextDelta
from gptoss.runtime.harmony.messages import Message, tool_name
from gptoss.runtime.server.page.parts import Event, PartWriter, done_event
from gptoss.runtime.server.page.stored import Finished
from gptoss.runtime.tools.approval import Decision
from gptoss.runtime.tools.browser.citations import cursor_of

_log = logging.getLogger(__name__)

KEPT_SECONDS = 300.0
"""A reply's events are kept this long after its end."""

MAX_KEPT = 32
"""Replies of which they are kept then, the last ones."""

HELD_SECONDS = 0.1
"""Text that is held back is sent when nothing has come for so long."""

APPROVAL_SECONDS = 1_800.0
"""A call that nobody allows is refused after this time."""


UrlOf = Callable[[int], str | None]
"""Gives the address of a page that the browser has shown, by its cursor."""

Keep = Callable[[Sequence[Message], list[Finished], int], None]
"""Keeps the messages that a reply adds to its conversation, the question first, its calls, and how
many tokens the conversation then has."""


class PageReply:
    """One reply under way. ``cancel``, ``answer_now``, ``ask`` and ``decide`` may be called
    from any thread; the rest belongs to the event loop.
    """

    def __init__(
        self,
        conversation: str,
        question: str,
        sources: dict[int, str] | None = None,
        url_of: UrlOf = lambda _: None,
    ) -> None:
        """``sources`` are the addresses of the pages that the browser has shown in the conversation
        before, by cursor; ``url_of`` gives those of later ones.
        """
        self.id = secrets.token_hex(12)
        self._sources = {} if sources is None else sources
        self._url_of = url_of
        self.conversation = conversation
        self.question = question
        self.ended_at: float | None = None
        self._loop = asyncio.get_running_loop()
        self._events: list[Event] = []
        self._changed = asyncio.Event()
        self._chat: Chat | None = None
        self._cancelled = False
        self._writer = PartWriter(f"/page/replies/{self.id}/figures/", self._sources)
        self._queue: SimpleQueue[ChatEvent | _Question | None] = SimpleQueue()
        self._questions: dict[int, _Question] = {}
        self._when_over: Callable[[], None] = lambda: None

    def start(
        self,
        make_chat: Callable[[], Chat],
        keep: Keep,
        when_over: Callable[[], None],
    ) -> None:
        """Run the reply in a thread of its own. ``keep`` is called there before its last event;
        ``when_over`` is called in the event loop after that.
        """
        self._when_over = when_over
        thread = threading.Thread(
            target=self._run, args=(make_chat, keep), name="gptoss-page", daemon=True
        )
        thread.start()

    def cancel(self) -> None:
        """End the page's reply as soon as possible; calls that wait for approval are refused."""
        self._cancelled = True
        chat = self._chat
        if chat is not None:
            chat.cancel()
        for question in list(self._questions.values()):
            question.answer(Decision(False))

    def answer_now(self) -> bool:
        """End the reasoning of the page's reply: it goes on with its answer."""
        chat = self._chat
        return chat is not None and chat.answer_now()

    def decide(self, part: int, decision: Decision) -> bool:
        """Allow or refuse a call of the page's reply; return False where none waits."""
        question = self._questions.get(part)
        return question is not None and question.answer(decision)

    def ask(self, recipient: str, text: str) -> Decision:
        """Ask the page's person about a call, and wait for the answer: an ``Approve``."""
        question = _Question(recipient, text)
        self._queue.put(question)
        return question.wait()

    def figure(self, number: int) -> bytes | None:
        """Return a figure that a tool made in this reply."""
        return dict(enumerate(self._writer.figures)).get(number)

    async def events(self, after: int) -> AsyncIterator[list[tuple[int, Event]]]:
        """Iterate over the page's numbered events from number ``after`` on, as many at a time as
        there are, until the last.
        """
        while True:
            self._changed.clear()
            batch = list(enumerate(self._events[after:], after))
            if batch:
                after += len(batch)
                yield batch
            elif self.ended_at is not None:
                return
            else:
                await self._changed.wait()

    # Two threads: one reads the chat and runs its tools, one writes events.

    def _run(self, make_chat: Callable[[], Chat], keep: Keep) -> None:
        writing = threading.Thread(target=self._write, name="gptoss-page-writer", daemon=True)
        writing.start()
        last: Event = {"type": "error", "message": "internal error"}
        try:
            last = self._read(make_chat(), keep)
        except GptossError as error:
            last = {"type": "error", "message": str(error)}
        except Exception:
            _log.exception("a reply of the page failed")
        finally:
            self._queue.put(None)
            writing.join()
            self._put(last)
            self._in_loop(self._end)

    def _read(self, chat: Chat, keep: Keep) -> Event:
        """Run the page's question through the chat; return the last event."""
        self._chat = chat
        n_before = len(chat.history)
        ended = ReplyEnded(End.CUT, Timings(), StopReason.CANCELLED)
        finished: list[Finished] = []
        with chat.send(self.question) as events:
            if self._cancelled:
                chat.cancel()
            for event in events:
                if isinstance(event, ReplyEnded):
                    ended = event
                elif isinstance(event, ToolFinished):
                    finished.append(self._finished(event))
                self._queue.put(event)
        used = chat.count_tokens()
        keep(chat.history[n_before:], finished, used)
        return done_event(ended, used, chat.n_ctx)

    def _finished(self, event: ToolFinished) -> Finished:
        """Note which page the browser has shown by a call, before the page reads of it."""
        cursor = cursor_of(event.name, event.result)
        url = None if cursor is None else self._url_of(cursor)
        if cursor is not None and url is not None:
            self._sources[cursor] = url
        return Finished(event, url)

    def _write(self) -> None:
        """Turn the chat's events into the page's, and send what was held back after a while."""
        held = False
        while True:
            try:
                item = self._queue.get(timeout=HELD_SECONDS if held else None)
            except Empty:
                self._put(*self._writer.flush())
                held = False
                continue
            if item is None:
                return
            if isinstance(item, _Question):
                self._announce(item)
            else:
                self._put(*self._writer.write(item))
                held = isinstance(item, TextDelta)

    def _announce(self, question: _Question) -> None:
        """Show the page's person a question about a call."""
        name = tool_name(question.recipient)
        parts = self._writer.parts_of_call(name, question.text)
        part = next((it for it in parts if it not in self._questions), None)
        if part is None or self._cancelled:
            question.answer(Decision(False))
            return
        self._questions[part] = question
        self._put({"type": "approval", "part": part, "name": name})
        if self._cancelled:  # in this order, as ``cancel`` has it the other way round
            question.answer(Decision(False))

    def _put(self, *events: Event) -> None:
        if events:
            self._in_loop(self._add, list(events))

    def _in_loop(self, call: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(call, *arguments)

    def _add(self, events: list[Event]) -> None:
        self._events += events
        self._changed.set()

    def _end(self) -> None:
        self.ended_at = time.monotonic()
        self._chat = None  # its conversation may be large
        self._changed.set()
        self._when_over()


class _Question:
    """A question about a call of a tool, which waits for a person's answer."""

    def __init__(self, recipient: str, text: str) -> None:
        self.recipient = recipient
        self.text = text
        self._answer: Future[Decision] = Future()

    def answer(self, decision: Decision) -> bool:
        """Allow or refuse the call; return False where that was decided before."""
        try:
            self._answer.set_result(decision)
        except InvalidStateError:
            return False
        return True

    def wait(self) -> Decision:
        """Wait for the decision about the call."""
        if not wait([self._answer], APPROVAL_SECONDS).done:
            self.answer(Decision(False, reason="nobody answered"))
        return self._answer.result()


class PageReplies:
    """The page's replies, by id. Belongs to one event loop."""

    def __init__(self) -> None:
        self._replies: dict[str, PageReply] = {}

    def add(self, reply: PageReply) -> None:
        """Keep a reply of the page until a while after its end."""
        oldest = time.monotonic() - KEPT_SECONDS
        running = [it for it in self._replies.values() if it.ended_at is None]
        ended = [it for it in self._replies.values() if it.ended_at and it.ended_at > oldest]
        ended.sort(key=lambda it: it.ended_at or 0.0)
        self._replies = {it.id: it for it in (*ended[-MAX_KEPT:], *running, reply)}

    def get(self, identity: str) -> PageReply | None:
        """Return a reply of the page by its id."""
        return self._replies.get(identity)

    def running_in(self, conversation: str) -> PageReply | None:
        """Return the reply that is under way in one of the page's conversations."""
        return next(
            (
                it
                for it in self._replies.values()
                if it.conversation == conversation and it.ended_at is None
            ),
            None,
        )
