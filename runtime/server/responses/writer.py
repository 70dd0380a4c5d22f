"""The events of a reply as events of the Responses API; pure, one state machine.

    response.output_item.added                    item by item, in the order the model wrote them
      response.content_part.added                 reasoning and messages have one part
        response.reasoning_text.delta / .output_text.delta
        response.function_call_arguments.delta / .custom_tool_call_input.delta
      ….done                                      the whole text again
      response.content_part.done
    response.output_item.done

Whatever the model wrote, this is a valid sequence. An item is closed when the next event shows
whether it is complete: its message ends in the same way when the reply is cut. A call of a tool
that was not offered becomes a message of commentary, since no client could answer it. A reply
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
from gptoss.runtime.server.responses.tools import Called, Tools
from gptoss.runtime.store.owners import new_id

Event = dict[str, Any]


@dataclass(slots=True)
class WrittenItem:
    """An item of the response, and the message that it was made from once that is complete."""

    data: dict[str, Any]
    index: int
    texts: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    message: Message | None = None
    done: bool = False

    @property
    def text(self) -> str:
        """Return the item's text so far."""
        return "".join(self.texts)


@dataclass(slots=True)
class ResponseWriter:
    """Writes the output of one response.

    ``seal`` gives a reasoning item's ``encrypted_content``, if that was asked for. ``ends`` are the
    ids of the tokens that end a complete message. With a ``tokenizer`` the log probabilities of a
    message's tokens are reported, where the reply has them.
    """

    tools: Tools
    seal: Callable[[Message], str] | None = None
    ends: frozenset[int] = frozenset()
    tokenizer: Tokenizer | None = None
    items: list[WrittenItem] = field(default_factory=list)
    _logprobs: list[dict[str, Any]] = field(default_factory=list)
    """Of the tokens whose text is not yet sent: of half a character."""
    _header: MessageStarted | None = None
    _open: WrittenItem | None = None

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
                    yield _delta(self._open, text, self._logprobs)
                    self._logprobs = []
            case MessageEnded(message) if self._open is not None:
                self._open.message = message
                self._header = None
            case RoundEnded(end):
                yield from self._close(complete=end != End.CUT)
                if end != End.CUT and not any(_is_visible(it.data) for it in self.items):
                    yield from self._begin(
                        MessageStarted(Role.ASSISTANT, None, "final", None, None)
                    )
                    yield from self._close(complete=True)

    def finish(self) -> Iterator[Event]:
        """Close what is still open: the reply ended by an error or was cancelled."""
        yield from self._close(complete=False)

    @property
    def output(self) -> list[dict[str, Any]]:
        """Return the response's items as they are now."""
        return [dict(item.data) for item in self.items]

    @property
    def call_ids(self) -> list[str]:
        """Return the ids of the response's calls."""
        return [item.data["call_id"] for item in self.items if "call_id" in item.data]

    def _called(self, header: MessageStarted) -> Called | None:
        """Return the tool that a message calls; None for any other message."""
        if header.role != Role.ASSISTANT or header.recipient is None:
            return None
        return self.tools.find(header.recipient)

    def _begin(self, header: MessageStarted) -> Iterator[Event]:
        """Open the item of a message."""
        called = self._called(header)
        is_answer = header.channel == "final" and header.recipient is None
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
        item = self._open = WrittenItem(data, len(self.items))
        self.items.append(item)
        yield _about(item, "response.output_item.added")
        if called is None:
            yield _in_item(
                item, "response.content_part.added", content_index=0, part=_part(data, "")
            )

    def _close(self, *, complete: bool) -> Iterator[Event]:
        """Close the open item, whole or cut."""
        item, self._header = self._open, None
        if item is None:
            return
        tokens = None if item.message is None else item.message.tokens
        whole = complete or (tokens is not None and tokens[-1:] != () and tokens[-1] in self.ends)
        data, kind = item.data, item.data["type"]
        if kind in _TEXT_EVENTS:
            yield from self._close_call(item, whole)
        else:
            event = "response.reasoning_text" if kind == "reasoning" else "response.output_text"
            more: dict[str, Any] = {} if kind == "reasoning" else {"logprobs": item.logprobs}
            yield _in_item(item, f"{event}.done", content_index=0, text=item.text, **more)
            part = _part(data, item.text)
            if kind == "message":
                part["logprobs"] = item.logprobs
            yield _in_item(item, "response.content_part.done", content_index=0, part=part)
            data["content"] = [part]
        if kind == "reasoning" and self.seal is not None and item.message is not None:
            data["encrypted_content"] = self.seal(item.message)
        data["status"] = "completed" if whole else "incomplete"
        item.done = True
        yield _about(item, "response.output_item.done")
        self._open = None

    def _close_call(self, item: WrittenItem, whole: bool) -> Iterator[Event]:
        data, kind = item.data, item.data["type"]
        if kind == "function_call" and whole and not item.text.strip():
            yield _delta(item, "{}", [])  # clients parse the arguments as JSON
        name = "arguments" if kind == "function_call" else "input"
        data[name] = item.text
        yield _in_item(item, f"{_TEXT_EVENTS[kind]}.done", name=data["name"], **{name: item.text})


def _delta(item: WrittenItem, text: str, logprobs: list[dict[str, Any]]) -> Event:
    """Add text to an item; return the event that reports it."""
    item.texts.append(text)
    item.logprobs += logprobs
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


_TEXT_EVENTS = {
    "function_call": "response.function_call_arguments",
    "custom_tool_call": "response.custom_tool_call_input",
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


def _is_visible(data: dict[str, Any]) -> bool:
    return bool(data["type"] != "reasoning")


def written(writer: ResponseWriter, events: Iterable[ReplyEvent]) -> list[Event]:
    """Return the API's events for a whole reply."""
    return [it for event in events for it in writer.write(event)] + list(writer.finish())
