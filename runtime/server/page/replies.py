"""The page's routes about replies: begun, read as event streams, stopped, their calls approved."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gptoss.runtime.chat.chat import Chat
from gptoss.runtime.chat.settings import Limits, Settings, effort_named
from gptoss.runtime.harmony.messages import Effort, Message, Role, user
from gptoss.runtime.server.beside import ABOUT, read_abouts
from gptoss.runtime.server.body import read_object
from gptoss.runtime.server.errors import ApiError, invalid, not_found, to_json
from gptoss.runtime.server.fields import Fields
from gptoss.runtime.server.page.figures import figure_response
from gptoss.runtime.server.page.groups import switched_off, toolbox_of
from gptoss.runtime.server.page.run import PageReply
from gptoss.runtime.server.page.stored import Finished, entries_of, sources_of
from gptoss.runtime.server.page.summaries import CONTEXT, described, instructions_in, stored
from gptoss.runtime.server.sse import COMMENT, EventStream, with_keep_alive
from gptoss.runtime.server.state import ServerState, state_of
from gptoss.runtime.store.conversations import Conversation, Entry
from gptoss.runtime.store.owners import LOCAL_OWNER
from gptoss.runtime.tools.approval import MAX_REASON_CHARACTERS, Approval, Decision
from gptoss.runtime.tools.earlier import earlier_sessions
from gptoss.runtime.tools.tool_host import TOOL_SECONDS

MAX_QUESTION_CHARACTERS = 2_000_000

MAX_INSTRUCTIONS_CHARACTERS = 100_000

MAX_SWITCHES = 200
"""Groups of tools that a conversation may have switched off."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question as the page sends it. ``conversation`` None begins a new one; ``keep`` are its
    first entries that stay; ``instructions`` and ``off``, the groups of tools that are off, are
    None as before.
    """

    text: str
    effort: Effort
    conversation: str | None
    keep: int | None
    instructions: str | None
    off: frozenset[str] | None

    def changed(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return a conversation's settings with what the question changes."""
        off = {} if self.off is None else {"tools_off": sorted(self.off)}
        text = self.instructions
        given = {} if text is None else {"instructions": text if text.strip() else None}
        return {**settings, "effort": self.effort.value, **given, **off}


async def _reply(request: Request) -> Response:
    """Begin a reply: in a new conversation, at the end of one, or after its first ``keep``
    entries, which deletes the others.
    """
    state, fields = state_of(request), Fields(await read_object(request))
    text = fields.text("text", MAX_QUESTION_CHARACTERS)
    if not text or not text.strip():
        raise invalid("text: is missing", "text")
    off = fields.sequence("tools_off", MAX_SWITCHES)
    asked = _Asked(
        text,
        effort_named(fields.text("effort", 20) or Effort.MEDIUM.value),
        fields.text("conversation", 100),
        fields.integer("keep", 0, 1_000_000),
        fields.text("instructions", MAX_INSTRUCTIONS_CHARACTERS),
        None if off is None else switched_off(off),
    )
    identity = asked.conversation
    if identity is not None and state.page.replies.running_in(identity) is not None:
        raise ApiError(409, "a reply is under way in this conversation", "busy")
    before, abouts = await stored(lambda: _prepared(state, asked))
    reply = await _started(state, asked, before, abouts)
    return JSONResponse({"reply": reply.id, "conversation": described(before.summary)})


def _prepared(state: ServerState, asked: _Asked) -> tuple[Conversation, list[dict[str, Any]]]:
    """Store the page's question, and return the conversation with what comes before it, and what is
    known beside its entries.
    """
    conversations, identity = state.page.store.conversations, asked.conversation
    question = Entry(user(asked.text))
    if identity is None:
        date = datetime.now(UTC).astimezone().date().isoformat()
        settings = asked.changed({"date": date})
        made = conversations.create(LOCAL_OWNER, [question], settings=settings)
        return Conversation(made.summary, ()), []
    if asked.keep is not None:
        conversations.truncate(LOCAL_OWNER, identity, asked.keep)
    before = conversations.load(LOCAL_OWNER, identity)
    settings = asked.changed(before.summary.settings)
    if settings != before.summary.settings:
        summary = conversations.update(LOCAL_OWNER, identity, settings=settings)
        before = Conversation(summary, before.entries)
    conversations.append(LOCAL_OWNER, identity, [question], expected=before.summary.length)
    kept = state.page.store.attachments.named(LOCAL_OWNER, identity, ABOUT)
    return before, read_abouts(before.entries, kept)


async def _started(
    state: ServerState, asked: _Asked, before: Conversation, abouts: list[dict[str, Any]]
) -> PageReply:
    """Start the reply to a question that is stored."""
    lease = await state.models.acquire(None)
    model, page = lease.model, state.page
    about = before.summary.settings
    limits = Limits(tool_seconds=TOOL_SECONDS, reply_seconds=state.models.time_limit)
    settings = Settings(effort=asked.effort, limits=limits, instructions=instructions_in(about))
    if isinstance(date := about.get("date"), str):
        settings = replace(settings, date=date)
    off, allowed = switched_off(about.get("tools_off")), page.allowed_in(before.id)
    host, sources = state.tool_host, sources_of(abouts)

    def url_of(cursor: int) -> str | None:
        browser = host.browser(before.id)
        return None if browser is None else browser.url_of(cursor)

    reply = PageReply(before.id, asked.text, sources, url_of)

    def make_chat() -> Chat:
        approval = Approval(reply.ask, allowed)
        groups = host.groups(before.id, earlier_sessions(before.messages))
        messages = [
            it for it in before.messages if it.role in (Role.USER, Role.ASSISTANT, Role.TOOL)
        ]
        return Chat(
            model.engine,
            model.tokenizer,
            model.masks,
            toolbox=toolbox_of(page.tools, groups, off, approval),
            settings=settings,
            messages=messages,
            owns_engine=False,
        )

    def keep(messages: Sequence[Message], finished: list[Finished], used: int) -> None:
        entries, attached = entries_of(messages[1:], finished)  # the question is stored already
        if entries:
            length = len(before.entries) + 1
            conversations = page.store.conversations
            conversations.append(LOCAL_OWNER, before.id, entries, expected=length)
            page.store.attachments.add(LOCAL_OWNER, before.id, attached)
            counted = {**about, CONTEXT: {"used": used, "length": length + len(entries)}}
            conversations.update(LOCAL_OWNER, before.id, settings=counted)

    page.replies.add(reply)
    state.models.running[reply.id] = reply

    def over() -> None:
        state.models.running.pop(reply.id, None)
        lease.release()

    reply.start(make_chat, keep, over)
    return reply


async def _events(request: Request) -> Response:
    reply = _found(request)
    after = request.query_params.get("after", "0")
    if not (after.isascii() and after.isdecimal() and len(after) < 10):
        raise invalid("after: must be a whole number", "after")
    return EventStream(_chunks(reply, int(after)))


async def _chunks(reply: PageReply, after: int) -> AsyncIterator[bytes]:
    async for batch in with_keep_alive(reply.events(after)):
        if batch is None:
            yield COMMENT
        else:
            yield b"".join(b"id: %d\ndata: %b\n\n" % (n, to_json(event)) for n, event in batch)


async def _figure(request: Request) -> Response:
    figure = _found(request).figure(request.path_params["number"])
    if figure is None:
        raise not_found("no such figure")
    return figure_response(figure)


async def _stop(request: Request) -> Response:
    _found(request).cancel()
    return JSONResponse({})


async def _answer_now(request: Request) -> Response:
    return JSONResponse({"closed": _found(request).answer_now()})


async def _approve(request: Request) -> Response:
    reply, part = _found(request), request.path_params["part"]
    fields = Fields(await read_object(request))
    reason = fields.text("reason", MAX_REASON_CHARACTERS) or ""
    allowed, always = fields.boolean("allowed"), fields.boolean("always")
    if not reply.decide(part, Decision(allowed, always, reason)):
        raise not_found("no call waits for approval there")
    return JSONResponse({})


def _found(request: Request) -> PageReply:
    reply = state_of(request).page.replies.get(request.path_params["id"])
    if reply is None:
        raise not_found("no such reply; it may have ended a while ago")
    return reply


REPLY_ROUTES = [
    Route("/page/replies", _reply, methods=["POST"]),
    Route("/page/replies/{id}/events", _events, methods=["GET"]),
    Route("/page/replies/{id}/figures/{number:int}", _figure, methods=["GET"]),
    Route("/page/replies/{id}/stop", _stop, methods=["POST"]),
    Route("/page/replies/{id}/answer-now", _answer_now, methods=["POST"]),
    Route("/page/replies/{id}/approvals/{part:int}", _approve, methods=["POST"]),
]
