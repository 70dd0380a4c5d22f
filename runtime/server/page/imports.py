"""A conversation from a file: one that this page exported, or that the terminal's /save wrote."""

from __future__ import annotations

import asyncio
import json

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gptoss.runtime.harmony.errors import ConversationError
from gptoss.runtime.harmony.message_json import messages_from_json
from gptoss.runtime.harmony.messages import Effort, Message, Role
from gptoss.runtime.server.body import read_object
from gptoss.runtime.server.errors import invalid
from gptoss.runtime.server.fields import Fields
from gptoss.runtime.server.page.summaries import described, instructions_in, stored
from gptoss.runtime.server.state import state_of
from gptoss.runtime.store.conversations import Entry
from gptoss.runtime.store.owners import LOCAL_OWNER


async def import_conversation(request: Request) -> Response:
    """Add a conversation, as ``export`` has it, under a new id."""
    fields = Fields(await read_object(request))
    given, title = fields.sequence("messages"), fields.text("title", 200)
    messages = await asyncio.to_thread(_messages_in, json.dumps(given))
    about = fields.mapping("settings") or {}
    settings = {"instructions": instructions_in(about)}
    if about.get("effort") in list(Effort):
        settings["effort"] = about["effort"]
    if isinstance(about.get("date"), str):
        settings["date"] = about["date"][:10]
    conversations = state_of(request).page.store.conversations
    entries = [Entry(it) for it in messages]
    made = await stored(
        lambda: conversations.create(LOCAL_OWNER, entries, title=title, settings=settings)
    )
    return JSONResponse(described(made.summary))


def _messages_in(text: str) -> tuple[Message, ...]:
    try:
        messages = messages_from_json(text)
    except ConversationError as error:
        raise invalid(f"messages: {error}", "messages") from error
    if any(it.role not in (Role.USER, Role.ASSISTANT, Role.TOOL) for it in messages):
        raise invalid("messages: only those of user, assistant and tools are taken", "messages")
    if not messages:
        raise invalid("messages: there is none", "messages")
    return messages
