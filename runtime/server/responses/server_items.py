"""Items of the calls that this server runs, and what they say about a call's result; pure.

code_interpreter_call    a cell of ``python``: its code, its output as ``logs``, its figures
web_search_call          a call of ``browser``: a search, a page opened, a text looked for
mcp_call                 a call of an MCP server's tool
mcp_approval_request     the same, where a person has to agree before it runs
mcp_list_tools           the tools of an MCP server
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptoss.runtime.harmony import messages as m
from gptoss.runtime.harmony.messages import FUNCTIONS, Message, Role
from gptoss.runtime.server.responses.server_tools import OfferedServer, ServerKind, listed_object
from gptoss.runtime.server.responses.tools import Called
from gptoss.runtime.store.owners import new_id
from gptoss.runtime.tools.browser.citations import citations
from gptoss.runtime.tools.builtin import BROWSER, PYTHON
from gptoss.runtime.tools.groups import Browser
from gptoss.runtime.tools.toolbox import Outcome

CODE_CALL = "code_interpreter_call"
SEARCH_CALL = "web_search_call"
MCP_CALL = "mcp_call"
APPROVAL_REQUEST = "mcp_approval_request"
APPROVAL_RESPONSE = "mcp_approval_response"
LIST_TOOLS = "mcp_list_tools"
RESULT = "server_tool_result"
"""Of an entry of a conversation that holds the result of a call; the API does not list it."""

SERVER_CALLS = (CODE_CALL, SEARCH_CALL, MCP_CALL)

MAX_IMAGE_BYTES = 8 << 20
"""Figures of one call; further ones are left out of its item."""

NOT_APPROVED = "error: the person did not approve this call; do not repeat it"
NOT_RUN = "error: this call was not run"
NO_RESULT = "error: the result of this call is no longer available; repeat the call if needed"

Event = dict[str, Any]

_SHOWN = re.compile(r"\[(\d{1,6})\] (.*?)(?: \((\w+://(?:\S+|[^()\n]+))\))?\n\*\*viewing lines")
"""Cursor, title and URL of a page as the model sees it: there the URL's escapes are decoded."""

_RUNNING = {CODE_CALL: "interpreting", SEARCH_CALL: "searching", MCP_CALL: "calling"}


@dataclass(frozen=True, slots=True)
class Include:
    """What a client wants of the items beside what they always have."""

    images: bool = False
    sources: bool = False


def is_streamed(called: Called) -> bool:
    """Report whether a call's item begins with its header, and its text is streamed. The others
    need the whole text.
    """
    return called.kind == ServerKind.PYTHON or (
        called.kind == ServerKind.MCP and not called.approval
    )


def new_item(called: Called, container: str) -> dict[str, Any]:
    """Return the item of a call that begins; ``container`` is the session of Python."""
    if called.kind == ServerKind.PYTHON:
        data: dict[str, Any] = {"code": "", "container_id": container, "outputs": None}
    elif called.kind == ServerKind.BROWSER:
        data = {"action": action_of(called.recipient, "", None)}
    elif called.approval:
        data = {"server_label": called.label, "name": called.original, "arguments": ""}
        return {"id": new_id("mcpr"), "type": APPROVAL_REQUEST, **data}
    else:
        return mcp_item(called)
    kind = CODE_CALL if called.kind == ServerKind.PYTHON else SEARCH_CALL
    prefix = "ci" if kind == CODE_CALL else "ws"
    return {"id": new_id(prefix), "type": kind, "status": "in_progress", **data}


def mcp_item(called: Called, arguments: str = "", request: str | None = None) -> dict[str, Any]:
    """Return the item of an MCP call that begins; ``request`` is the id of the request for approval
    that was granted.
    """
    return {
        "id": new_id("mcp"),
        "type": MCP_CALL,
        "status": "in_progress",
        "server_label": called.label,
        "name": called.original,
        "arguments": arguments,
        "output": None,
        "error": None,
        "approval_request_id": request,
    }


def item_of_call(called: Called, text: str, container: str, url: str | None) -> dict[str, Any]:
    """Return the item of a call whose text is complete; ``url`` is that of the page which it has
    shown.
    """
    data = new_item(called, container)
    if called.kind == ServerKind.PYTHON:
        data["code"] = text
    elif called.kind == ServerKind.MCP:
        data["arguments"] = text.strip() or "{}"
    else:
        data["action"] = action_of(called.recipient, text, None)
        if url is not None and "url" in data["action"]:
            data["action"]["url"] = url
    return data


def list_item(server: OfferedServer) -> dict[str, Any]:
    """Return the item that lists an MCP server's tools."""
    return {
        "id": new_id("mcpl"),
        "type": LIST_TOOLS,
        "server_label": server.label,
        "tools": [listed_object(it) for it in server.listed],
        "error": server.error,
    }


def running(data: dict[str, Any]) -> str | None:
    """Mark a call's item as running; return the event that says so, if there is one."""
    data["status"] = _RUNNING[data["type"]]
    return None if data["type"] == MCP_CALL else f"response.{data['type']}.{data['status']}"


def finish(
    data: dict[str, Any], outcome: Outcome, include: Include, browser: Browser | None
) -> str:
    """Put a call's result into its item; return the event that says so."""
    kind = data["type"]
    failed = outcome.error
    if kind == CODE_CALL:
        # A cell that raises is complete; one that was ended from outside is not.
        failed = outcome.error and outcome.text.rpartition("\n")[2].startswith("error:")
        data["outputs"] = _outputs(outcome, include)
    elif kind == MCP_CALL:
        data["output"] = None if failed else outcome.text
        content = [{"type": "text", "text": outcome.text}]
        error = {"type": "mcp_tool_execution_error", "content": content}
        data["error"] = error if failed else None
    elif include.sources and data["action"]["type"] == "search" and browser is not None:
        shown = _SHOWN.match(outcome.text)
        links = browser.links_of(int(shown[1])) if shown else []
        data["action"]["sources"] = [{"type": "url", "url": url} for url in links]
    data["status"] = "failed" if failed else "completed"
    failed_event = kind == MCP_CALL and failed
    return f"response.{kind}.{'failed' if failed_event else 'completed'}"


def _outputs(outcome: Outcome, include: Include) -> list[dict[str, Any]]:
    logs = {"type": "logs", "logs": outcome.text}
    return [logs, *images(it.png for it in outcome.figures if include.images)]


def images(figures: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Give figures of a call as outputs of its item, up to ``MAX_IMAGE_BYTES``."""
    left = MAX_IMAGE_BYTES
    for png in figures:
        left -= len(png)
        if left >= 0:
            data = base64.b64encode(png).decode()
            yield {"type": "image", "url": f"data:image/png;base64,{data}"}


def action_of(recipient: str, text: str, browser: Browser | None) -> dict[str, Any]:
    """Return what a call of ``browser`` does, as the API writes it."""
    arguments = _object(text)
    match recipient:
        case "browser.search":
            query = str(arguments.get("query", ""))
            return {"type": "search", "query": query, "queries": [query]}
        case "browser.find":
            url = None if browser is None else browser.url_in(text)
            pattern = str(arguments.get("pattern", ""))
            return {"type": "find_in_page", "pattern": pattern, "url": url or ""}
    target = arguments.get("id")
    given = target if isinstance(target, str) and "://" in target else None
    return {"type": "open_page", "url": given if browser is None else browser.url_in(text)}


def _object(text: str) -> Mapping[str, Any]:
    try:
        read = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


# Back to harmony


def container_of(root: str) -> str:
    """Return the id of the session of ``python`` that belongs to a conversation, or to a chain of
    responses, by the id of its beginning.
    """
    return f"cntr_{hashlib.sha256(root.encode()).hexdigest()[:48]}"


def exact_key(identity: str) -> str:
    """Return the key under which a call that this server ran is kept with its result."""
    return f"{identity}/exact"


def call_of_item(item: Mapping[str, Any], namespace: str = "") -> Message:
    """Return the call of an item as the model writes it; ``namespace`` is that of the item's MCP
    server.
    """
    if item["type"] in (MCP_CALL, APPROVAL_REQUEST):
        call = m.call("", str(item.get("arguments") or "{}"))
        recipient = f"{namespace or FUNCTIONS}.{declared_name(str(item.get('name')))}"
        return Message(call.role, call.text, None, call.channel, recipient, call.content_type)
    if item["type"] == CODE_CALL:
        return _on_analysis(PYTHON.name, str(item.get("code") or ""))
    action = item.get("action")
    action = action if isinstance(action, Mapping) else {}
    match action.get("type"):
        case "search":
            what, arguments = "search", {"query": action.get("query") or ""}
        case "find_in_page":
            what, arguments = "find", {"pattern": action.get("pattern") or ""}
        case _:
            what, arguments = "open", {"id": action.get("url") or ""}
    return _on_analysis(f"{BROWSER.name}.{what}", json.dumps(arguments, ensure_ascii=False))


def same_call(known: Message, call: Message) -> bool:
    """Report whether a call that the store has is the one of an item. Of a search the item does not
    have all arguments.
    """
    if known.recipient != call.recipient:
        return False
    of_browser = (call.recipient or "").startswith(f"{BROWSER.name}.")
    return of_browser or known.text.strip() == call.text.strip() or not known.text.strip()


def result_of_item(item: Mapping[str, Any]) -> str:
    """Return the result that an item has of its call, for the model."""
    if item["type"] == CODE_CALL and isinstance(item.get("outputs"), list):
        logs = [it["logs"] for it in item["outputs"]
                if isinstance(it, Mapping) and isinstance(it.get("logs"), str)]  # fmt: skip
        return "\n".join(logs)
    if item["type"] == MCP_CALL:
        if isinstance(item.get("output"), str):
            return str(item["output"])
        if isinstance(item.get("error"), Mapping):
            return _error_text(item["error"])
    if item.get("status") in ("incomplete", "in_progress"):
        return NOT_RUN
    return NO_RESULT


def _error_text(error: Mapping[str, Any]) -> str:
    content = error.get("content")
    if isinstance(content, list):
        texts = [str(it["text"]) for it in content if isinstance(it, Mapping) and "text" in it]
    else:
        texts = [str(error.get("message", "the call failed"))]
    text = "\n".join(texts)
    return text if text.startswith("error:") else f"error: {text}"


def declared_name(name: str) -> str:
    """Return an MCP tool's name as it is declared to the model."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64] or "_"


def result_message(recipient: str, text: str) -> Message:
    """Return a result as the model gets it: on the channel where its call was."""
    builtin = recipient.partition(".")[0] in (PYTHON.name, BROWSER.name)
    channel = "analysis" if builtin else "commentary"
    return Message(Role.TOOL, text, name=recipient, channel=channel, recipient=Role.ASSISTANT.value)


def _on_analysis(recipient: str, text: str) -> Message:
    return Message(
        Role.ASSISTANT, text, channel="analysis", recipient=recipient, content_type="code"
    )


# Citations

PageOf = Callable[[int], tuple[str, str] | None]
"""Returns title and URL of a page by its cursor."""


def pages_in(messages: Sequence[Message]) -> dict[int, tuple[str, str]]:
    """Return title and URL of the pages that ``browser`` has shown in a conversation, by cursor;
    the URL is empty for results of a search.
    """
    pages = {}
    for message in messages:
        if message.role == Role.TOOL and (message.name or "").startswith(f"{BROWSER.name}."):
            shown = _SHOWN.match(message.text)
            if shown:
                pages[int(shown[1])] = (shown[2], (shown[3] or "").replace(" ", "%20"))
    return pages


def annotations_of(text: str, page_of: PageOf) -> list[dict[str, Any]]:
    """Return the citations in an answer as the API's annotations; those of unknown pages are left
    out. Indices count characters, from the citation's first to the one after its last.
    """

    def url_of(cursor: int) -> str | None:
        found = page_of(cursor)
        return found[1] or None if found is not None else None

    return [
        {
            "type": "url_citation",
            "start_index": it.start,
            "end_index": it.end,
            "title": (page_of(it.cursor) or ("", ""))[0],
            "url": it.url,
        }
        for it in citations(text, url_of)
        if it.url is not None
    ]
