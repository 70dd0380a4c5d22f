"""The events of a reply as events of the Responses API; pure, one state machine.

    response.output_item.added                    item by item, in the order the model wrote them
      response.content_part.added                 reasoning and messages have one part
        response.reasoning_text.delta / .output_text.delta
        response.function_call_arguments.delta / .custom_tool_call_input.delta
      ….done                                      the whole text again
      response.content_part.done
    response.output_item.done

A call that this server runs stays open after its text, until it has run; meanwhile other items may
open and close:

    response.code_interpreter_call.in_progress / .interpreting / .completed
    response.web_search_call.in_progress / .searching / .completed
    response.mcp_call.in_progress / .completed / .failed

Whatever the model wrote, this is a valid sequence. An item is closed when the next event shows
whether it is complete: its message ends in the same way when the reply is cut. A call of a tool
that was not offered becomes a message of commentary, since no client could answer it. A generation
without any answer or call gets an empty message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gptoss.runtime.harmony.events import End, MessageEnded, MessageStarted, RoundEnded, TextDelta
from gptoss.runtime.harmony.messages import Message, Role
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.sampling.logprobs import TokenLogprob
from gptoss.runtime.server.chat_completions.response import token_object
from gptoss.runtime.server.reply import ReplyEvent, TokenSampled
from gptoss.runtime.server.responses.server_items import (
    APPROVAL_REQUEST,
    CODE_CALL,
    LIST_TOOLS,
    MCP_CALL,
    SEARCH_CALL,
    Include,
    PageOf,
    action_of,
    annotations_of,
    finish,
    is_streamed,
    list_item,
    mcp_item,
    new_item,
    running,
)
from gptoss.runtime.server.responses.server_tools import OfferedServer
from gptoss.runtime.server.responses.tools import Called, Tools
from gptoss.runtime.store.owners import new_id
from gptoss.runtime.tools.groups import Browser
from gptoss.runtime.tools.toolbox import Outcome

Event = dict[str, Any]


@dataclass(slots=True)
class WrittenItem:
    """An item of the response, and the message that it was made from once that is complete."""

    data: dict[str, Any]
    index: int
    texts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    message: Message | None = None
    result: Message | None = None
    """What a call that this server runs gave."""
    done: bool = False
    called: Called | None = None
    """The tool that is called, if this is a call."""
    announced: bool = True
    round: int = 0
    """In which generation it was written, from 1; 0 for what came before the first."""

    @property
    def text(self) -> str:
        """Return the item's text so far."""
        return "".join(self.texts)

    @property
    def recipient(self) -> str:
        """Return whom a call is sent to, as the model wrote it."""
        if self.message is not None and self.message.recipient is not None:
            return self.message.recipient
        return "" if self.called is None else self.called.recipient


@dataclass(slots=True)
class ResponseWriter:
    """Writes the output of one response.

    ``seal`` gives a reasoning item's ``encrypted_content``, if that was asked for. ``ends`` are the
    ids of the tokens that end a complete message. With a ``tokenizer`` the log probabilities of a
    message's tokens are reported, where the reply has them. ``container`` is the session of the
    built-in tools, ``page_of`` finds the pages that an answer cites.
    """

    tools: Tools
    seal: Callable[[Message], str] | None = None
    ends: frozenset[int] = frozenset()
    tokenizer: Tokenizer | None = None
    container: str = ""
    include: Include = field(default_factory=Include)
    page_of: PageOf | None = None
    items: list[WrittenItem] = field(default_factory=list)
    waiting: list[WrittenItem] = field(default_factory=list)
    """Calls that are complete, and are to be run by this server."""
    round: int = 0
    """Which generation is written, from 1."""
    _logprobs: list[dict[str, Any]] = field(default_factory=list)
    """Of the tokens whose text is not yet sent: of half a character."""
    _header: MessageStarted | None = None
    _open: WrittenItem | None = None

    def begin_round(self) -> None:
        """Begin to write a generation."""
        self.round += 1

    def write(self, event: ReplyEvent) -> Iterator[Event]:
        """Give the API's events for one event of the reply."""
        match event:
            case TokenSampled(_, TokenLogprob() as logprob) if self.tokenizer is not None:
                self._logprobs.append(_logprob_object(logprob, self.tokenizer))
            case MessageStarted():
                self._logprobs.clear()  # those of the header
                yield from self._close(complete=True)
                self._header = event if event.role == Role.ASSISTANT else None
                if self._called(event) is not None:
                    yield from self._begin(event)
            case TextDelta(text) if text and self._header is not None:
                if self._open is None:
                    yield from self._begin(self._header)
                if self._open is not None:
                    yield from _delta(self._open, text, self._logprobs)
                    self._logprobs = []
            case MessageEnded(message) if self._open is not None:
                self._open.message = message
                self._header = None
            case RoundEnded(end):
                yield from self._close(complete=end != End.CUT)
                if end != End.CUT and not any(map(self._is_visible, self.items)):
                    yield from self._begin(
                        MessageStarted(Role.ASSISTANT, None, "final", None, None)
                    )
                    yield from self._close(complete=True)

    def finish(self) -> Iterator[Event]:
        """Close what is still open: the reply ended by an error or was cancelled."""
        yield from self._close(complete=False)
        waiting, self.waiting = self.waiting, []
        for item in waiting:
            if not item.done:
                yield from self._end(item, "incomplete")

    def list_tools(self, server: OfferedServer) -> Iterator[Event]:
        """Give the events of an item that lists an MCP server's tools."""
        data = list_item(server)
        item = self._new(data | {"tools": [], "error": None})
        yield _about(item, "response.output_item.added")
        yield _in_item(item, f"response.{LIST_TOOLS}.in_progress")
        item.data |= data
        how = "completed" if server.error is None else "failed"
        yield _in_item(item, f"response.{LIST_TOOLS}.{how}")
        yield from self._end(item, None)

    def approved(self, called: Called, arguments: str, request: str) -> Iterator[Event]:
        """Open the item of an MCP call that was approved; it then waits to be run."""
        item = self._new(mcp_item(called, "", request), called)
        yield _about(item, "response.output_item.added")
        yield _in_item(item, f"response.{MCP_CALL}.in_progress")
        yield from _delta(item, arguments or "{}", [])
        yield from self._close_call(item, True)
        self.waiting.append(item)

    def run(self, item: WrittenItem, browser: Browser | None) -> Iterator[Event]:
        """Report that a call runs now."""
        if item.data["type"] == SEARCH_CALL and item.called is not None:
            item.data["action"] = action_of(item.called.recipient, item.text, browser)
        event = running(item.data)
        if event is not None:
            yield _in_item(item, event)

    def ran(self, item: WrittenItem, outcome: Outcome, browser: Browser | None) -> Iterator[Event]:
        """Report a call's result, and close its item."""
        yield _in_item(item, finish(item.data, outcome, self.include, browser))
        yield from self._end(item, item.data["status"])

    @property
    def output(self) -> list[dict[str, Any]]:
        """Return the response's items as they are now."""
        return [dict(item.data) for item in self.items]

    @property
    def call_ids(self) -> list[str]:
        """Return the ids of the last generation's calls."""
        items = [it for it in self.items if it.round == self.round and it.called is not None]
        return [item.data.get("call_id", item.data["id"]) for item in items]

    def _is_visible(self, item: WrittenItem) -> bool:
        return item.round == self.round and item.data["type"] != "reasoning"

    def _new(
        self, data: dict[str, Any], called: Called | None = None, *, announced: bool = True
    ) -> WrittenItem:
        item = WrittenItem(
            data, len(self.items), called=called, announced=announced, round=self.round
        )
        self.items.append(item)
        return item

    def _end(self, item: WrittenItem, status: str | None) -> Iterator[Event]:
        if status is not None:
            item.data["status"] = status
        item.done = True
        yield _about(item, "response.output_item.done")

    def _called(self, header: MessageStarted) -> Called | None:
        """Return the tool that a message calls; None for any other message."""
        if header.role != Role.ASSISTANT or header.recipient is None:
            return None
        return self.tools.find(header.recipient)

    def _begin(self, header: MessageStarted) -> Iterator[Event]:
        """Open the item of a message."""
        called = self._called(header)
        is_answer = header.channel == "final" and header.recipient is None
        if called is not None and called.kind is not None:
            yield from self._begin_server_call(called)
            return
        if called is not None:
            data = _call_item(called)
        elif header.channel == "analysis" and header.recipient is None:
            data = {
                "id": new_id("rs"),
                "type": "reasoning",
                "status": "in_progress",
                "summary": [],
                "content": [],
            }
        else:
            data = {
                "id": new_id("msg"),
                "type": "message",
                "role": "assistant",
                "status": "in_progress",
                "phase": "final_answer" if is_answer else "commentary",
                "content": [],
            }
        item = self._open = self._new(data, called)
        yield _about(item, "response.output_item.added")
        if called is None:
            yield _in_item(
                item, "response.content_part.added", content_index=0, part=_part(data, "")
            )

    def _begin_server_call(self, called: Called) -> Iterator[Event]:
        """Open the item of a call that this server runs; some are announced when their text is
        complete.
        """
        streamed = is_streamed(called)
        item = self._open = self._new(new_item(called, self.container), called, announced=streamed)
        if streamed:
            yield _about(item, "response.output_item.added")
            yield _in_item(item, f"response.{item.data['type']}.in_progress")

    def _close_server_call(self, item: WrittenItem, called: Called, whole: bool) -> Iterator[Event]:
        """Close the text of a call that this server runs: it waits then, or for an approval."""
        kind = item.data["type"]
        if item.announced:
            yield from self._close_call(item, whole)
        elif kind == APPROVAL_REQUEST:
            if not whole:
                self.items.pop()  # nobody can approve the half of a call
                return
            item.data["arguments"] = item.text.strip() or "{}"
            yield _about(item, "response.output_item.added")
            yield from self._end(item, None)
            return
        else:
            item.data["action"] = action_of(called.recipient, item.text, None)
            yield _about(item, "response.output_item.added")
            yield _in_item(item, f"response.{kind}.in_progress")
            item.announced = True
        if whole:
            self.waiting.append(item)
        else:
            yield from self._end(item, "incomplete")

    def _close(self, *, complete: bool) -> Iterator[Event]:
        """Close the open item, whole or cut."""
        item, self._header = self._open, None
        self._open = None
        if item is None:
            return
        tokens = None if item.message is None else item.message.tokens
        whole = complete or (tokens is not None and tokens[-1:] != () and tokens[-1] in self.ends)
        data, kind = item.data, item.data["type"]
        if item.called is not None and item.called.kind is not None:
            yield from self._close_server_call(item, item.called, whole)
            return
        if kind in _TEXT_EVENTS:
            yield from self._close_call(item, whole)
        else:
            annotations = self._annotations(item)
            for i, annotation in enumerate(annotations):
                yield _in_item(
                    item, "response.output_text.annotation.added",
                    content_index=0, annotation_index=i, annotation=annotation,
                )  # fmt: skip
            event = "response.reasoning_text" if kind == "reasoning" else "response.output_text"
            more: dict[str, Any] = {} if kind == "reasoning" else {"logprobs": item.logprobs}
            yield _in_item(item, f"{event}.done", content_index=0, text=item.text, **more)
            part = _part(data, item.text)
            if kind == "message":
                part |= {"logprobs": item.logprobs, "annotations": annotations}
            yield _in_item(item, "response.content_part.done", content_index=0, part=part)
            data["content"] = [part]
        if kind == "reasoning" and self.seal is not None and item.message is not None:
            data["encrypted_content"] = self.seal(item.message)
        yield from self._end(item, "completed" if whole else "incomplete")

    def _annotations(self, item: WrittenItem) -> list[dict[str, Any]]:
        if item.data["type"] != "message" or self.page_of is None:
            return []
        return annotations_of(item.text, self.page_of)

    def _close_call(self, item: WrittenItem, whole: bool) -> Iterator[Event]:
        """Close a call's text."""
        data, kind = item.data, item.data["type"]
        name = _TEXT_FIELDS[kind]
        if name == "arguments" and whole and not item.text.strip():
            yield from _delta(item, "{}", [])  # clients parse the arguments as JSON
        data[name] = item.text
        more = {"name": data["name"]} if kind in _CLIENT_CALLS else {}
        yield _in_item(item, f"{_TEXT_EVENTS[kind]}.done", **more, **{name: item.text})


def _delta(item: WrittenItem, text: str, logprobs: list[dict[str, Any]]) -> Iterator[Event]:
    """Add text to an item; give the event that reports it."""
    item.texts.append(text)
    item.logprobs += logprobs
    if item.announced:
        yield _delta_event(item, text, logprobs)


def _delta_event(item: WrittenItem, text: str, logprobs: list[dict[str, Any]]) -> Event:
    kind = item.data["type"]
    if kind == "reasoning":
        return _in_item(item, "response.reasoning_text.delta", content_index=0, delta=text)
    if kind == "message":
        more = {"content_index": 0, "delta": text, "logprobs": logprobs}
        return _in_item(item, "response.output_text.delta", **more)
    return _in_item(item, f"{_TEXT_EVENTS[kind]}.delta", delta=text)


def _about(item: WrittenItem, event: str) -> Event:
    return {"type": event, "output_index": item.index, "item": dict(item.data)}


def _in_item(item: WrittenItem, event: str, **more: Any) -> Event:
    return {"type": event, "item_id": item.data["id"], "output_index": item.index, **more}


_CLIENT_CALLS = ("function_call", "custom_tool_call")
_TEXT_EVENTS = {
    "function_call": "response.function_call_arguments",
    "custom_tool_call": "response.custom_tool_call_input",
    CODE_CALL: "response.code_interpreter_call_code",
    MCP_CALL: "response.mcp_call_arguments",
}
_TEXT_FIELDS = {
    "function_call": "arguments",
    "custom_tool_call": "input",
    CODE_CALL: "code",
    MCP_CALL: "arguments",
}


def _call_item(called: Called) -> dict[str, Any]:
    kind = "custom_tool_call" if called.custom else "function_call"
    data = {
        "id": new_id("ctc" if called.custom else "fc"),
        "type": kind,
        "status": "in_progress",
        "call_id": new_id("call"),
        "name": called.name,
        "input" if called.custom else "arguments": "",
    }
    return data if called.namespace is None else data | {"namespace": called.namespace}


def _part(data: dict[str, Any], text: str) -> dict[str, Any]:
    if data["type"] == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _logprob_object(logprob: TokenLogprob, tokenizer: Tokenizer) -> dict[str, Any]:
    top = [token_object(it.token, it.logprob, tokenizer) for it in logprob.top]
    return token_object(logprob.token, logprob.logprob, tokenizer) | {"top_logprobs": top}


def written(writer: ResponseWriter, events: Iterable[ReplyEvent]) -> list[Event]:
    """Return the API's events for a whole reply."""
    writer.begin_round()
    return [it for event in events for it in writer.write(event)] + list(writer.finish())
