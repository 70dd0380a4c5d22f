"""Items of the Responses API as harmony messages; pure.

    message            user: as it is; system and developer: instructions. Those before the first
                       other message become one developer block with the tools, later ones a block
                       in their place; assistant: final, or commentary where a call follows
    reasoning          analysis: ``encrypted_content`` if it is this server's, else the
                       ``reasoning_text``
    function_call, custom_tool_call                  a call: ``functions.NAME``, ``NAMESPACE.NAME``
    function_call_output, custom_tool_call_output    the tool's message
    code_interpreter_call, web_search_call, mcp_call a call and its result
    mcp_approval_request                             a call; it is followed by the result of
                                                     mcp_call, or by an error if it was refused
    mcp_list_tools                                   nothing: the tools are in the developer block

A result is put right after its call where the client has other messages between them, since the
model knows no other order. A call without a result, or a result without its call, is refused, as
OpenAI's API does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gptoss.runtime.harmony import messages as m
from gptoss.runtime.harmony.fields import HARMONY_NAME, NAME_RULE
from gptoss.runtime.harmony.messages import FUNCTIONS, Message, Role
from gptoss.runtime.server.errors import ApiError, invalid
from gptoss.runtime.server.fields import Fields
from gptoss.runtime.server.responses.item_text import text_of
from gptoss.runtime.server.responses.server_items import (
    APPROVAL_REQUEST,
    APPROVAL_RESPONSE,
    LIST_TOOLS,
    NOT_APPROVED,
    RESULT,
    SERVER_CALLS,
    call_of_item,
    declared_name,
    result_message,
    result_of_item,
    same_call,
)
from gptoss.runtime.server.responses.server_tools import ServerKind
from gptoss.runtime.server.responses.tools import Tools
from gptoss.runtime.server.responses.turn import Approved

CALLS = ("function_call", "custom_tool_call")
OUTPUTS = ("function_call_output", "custom_tool_call_output")

_ROLES = ("user", "assistant", "system", "developer")


@dataclass(frozen=True, slots=True)
class ContextItem:
    """An item with its place in the request (None: from the store), and the message that the store
    has for it.

    Where the store has all messages of a response, they are the ``block`` of its first item; then
    the messages of all of its items are ``in_block``.
    """

    item: Mapping[str, Any]
    index: int | None = None
    message: Message | None = None
    block: tuple[Message, ...] = ()
    in_block: bool = False

    @property
    def fields(self) -> Fields:
        """Return the item's fields, with its place for errors."""
        path = "input" if self.index is None else f"input[{self.index}]"
        return Fields(self.item, path)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Harmony messages without the system block, the ids of calls by the call's index, and the
    approved calls that are still to be run.
    """

    messages: tuple[Message, ...]
    call_ids: Mapping[int, str]
    approved: tuple[Approved, ...] = ()


OpenSealed = Callable[[str], Message | None]
"""Opens ``encrypted_content``; None if it cannot be opened."""

Exact = Callable[[str], Sequence[Message] | None]
"""Returns a call that this server ran with its result, by its id; None where it is not known."""


def messages_from_items(
    items: Sequence[ContextItem],
    tools: Tools,
    instructions: str | None = None,
    open_sealed: OpenSealed = lambda _: None,
    *,
    exact: Exact = lambda _: None,
    calls_may_be_open: bool = False,
) -> Conversation:
    """Convert a whole conversation's items; raises ApiError for the first that is invalid.

    ``calls_may_be_open`` allows calls at the end whose results are still to come.
    """
    reader = _Reader(tools, open_sealed, exact, items)
    if instructions is not None:
        reader.instructions.append(instructions)
    for position in range(len(items)):
        reader.read(position)
    reader.finish(calls_may_be_open)
    approved = () if calls_may_be_open else reader.approved()
    return Conversation(tuple(reader.messages), reader.call_ids, approved)


def item_type(item: Mapping[str, Any]) -> str | None:
    """Return an item's type; one with a role alone is a message."""
    kind = item.get("type")
    return "message" if kind is None and "role" in item else kind


@dataclass(slots=True)
class _Reader:
    """Reads item by item; what it holds is what the next one may refer to."""

    tools: Tools
    open_sealed: OpenSealed
    exact: Exact
    items: Sequence[ContextItem]
    messages: list[Message] = field(default_factory=list)
    call_ids: dict[int, str] = field(default_factory=dict)
    instructions: list[str] = field(default_factory=list)
    _opened: bool = False
    """Whether the developer block at the beginning is written."""
    _open_calls: dict[str, tuple[str, Fields]] = field(default_factory=dict)
    """Calls still without result: recipient and place by call id."""
    _answered: set[str] = field(default_factory=set)
    _early: set[int] = field(default_factory=set)
    """Positions of results that were put before others."""
    _requests: dict[str, tuple[Message, Fields]] = field(default_factory=dict)
    """Requests for approval without an answer: the call and its place by the request's id."""
    _granted: dict[str, tuple[int, Message, Fields]] = field(default_factory=dict)
    """Approved calls without a result: the index of the result's message, the call, its place."""
    _before_calls: list[bool] = field(init=False)
    """By position: whether the assistant goes on to call before anyone else says anything."""
    _outputs: dict[str, list[int]] = field(default_factory=dict)
    """The positions of results by call id."""

    def __post_init__(self) -> None:
        self._before_calls = _before_calls(self.items)
        for position, context in enumerate(self.items):
            identity = context.item.get("call_id")
            if item_type(context.item) in OUTPUTS and isinstance(identity, str):
                self._outputs.setdefault(identity, []).append(position)

    def read(self, position: int) -> None:
        """Convert the item at a position."""
        context = self.items[position]
        fields, kind = context.fields, item_type(context.item)
        if position in self._early:
            return
        for message in context.block:
            self._put(context, message)
        if kind == "message":
            self._message(context, fields, position)
        elif kind == "reasoning":
            self._reasoning(context, fields)
        elif kind in CALLS:
            self._call(context, fields, custom=kind == "custom_tool_call")
        elif kind in OUTPUTS:
            self._output(context, fields)
        elif kind in SERVER_CALLS:
            self._server_call(context, fields)
        elif kind == APPROVAL_REQUEST:
            self._approval_request(context, fields)
        elif kind == APPROVAL_RESPONSE:
            self._approval_response(context, fields)
        elif kind == RESULT and context.message is not None:
            self._add(context, context.message)
        elif kind == LIST_TOOLS:
            pass
        elif kind is None:
            raise fields.error("type", "is missing", "missing_required_parameter")
        else:
            raise fields.error("type", f"items of type {str(kind)[:80]!r} are not supported")

    def finish(self, calls_may_be_open: bool) -> None:
        """Write the developer block if nothing else did, and check that every call has a result."""
        if not calls_may_be_open:
            self._settle(len(self.items))
        self._open()

    def _open(self) -> None:
        if self._opened:
            return
        self._opened = True
        text = "\n\n".join(self.instructions) if self.instructions else None
        if text is not None or self.tools.functions or self.tools.declared:
            block = m.developer(text, self.tools.functions, self.tools.declared)
            self.messages.append(block)

    def _add(self, context: ContextItem, message: Message) -> None:
        if not context.in_block:
            self._put(context, message)

    def _put(self, context: ContextItem, message: Message) -> None:
        self._open()
        self.messages.append(replace(message, origin=context.index))

    def _message(self, context: ContextItem, fields: Fields, position: int) -> None:
        role = fields.choice("role", _ROLES)
        if role is None:
            raise fields.error("role", "is missing", "missing_required_parameter")
        text = text_of(fields, "content")
        if role == "assistant":
            self._assistant(context, fields, text, position)
            return
        self._settle(position)
        if role == "user":
            self._add(context, context.message or m.user(text))
        elif self._opened:
            self._add(context, m.developer(text))
        else:
            self.instructions.append(text)

    def _assistant(self, context: ContextItem, fields: Fields, text: str, position: int) -> None:
        phase = fields.choice("phase", ("commentary", "final_answer"))
        if context.message is not None:
            self._add(context, context.message)
        elif phase == "commentary" or (phase is None and self._before_calls[position]):
            self._add(context, Message(Role.ASSISTANT, text, channel="commentary"))
        else:
            self._add(context, m.final(text))

    def _reasoning(self, context: ContextItem, fields: Fields) -> None:
        sealed = fields.text("encrypted_content", 50_000_000)
        shown = text_of(fields, "content") or ""
        opened = None if sealed is None else self.open_sealed(sealed)
        if context.message is not None:
            self._add(context, context.message)
        elif opened is not None and shown in ("", opened.text):
            self._add(context, opened)
        elif shown or (shown := text_of(fields, "summary")):
            self._add(context, m.analysis(shown))
        elif sealed is not None:
            raise fields.error(
                "encrypted_content",
                "cannot be opened: it is from another server or key, or was changed",
                "invalid_encrypted_content",
            )

    def _call(self, context: ContextItem, fields: Fields, *, custom: bool) -> None:
        identity = _call_id(fields)
        if identity in self._open_calls or identity in self._answered:
            raise fields.error("call_id", f"two calls have the id {identity[:80]!r}")
        recipient = self._recipient(fields)
        text = fields.text("input" if custom else "arguments", 50_000_000) or ""
        call = m.call("", text)
        call = replace(
            call, recipient=recipient, content_type=None if custom else call.content_type
        )
        self._add(context, context.message or call)
        self._note_call(context, identity)
        self._open_calls[identity] = (context.message or call).recipient or "", fields

    def _note_call(self, context: ContextItem, identity: str) -> None:
        if not context.in_block:
            self.call_ids[len(self.messages) - 1] = identity

    def _server_call(self, context: ContextItem, fields: Fields) -> None:
        """Read a call that a server ran. Its messages are those that the store has, if they are
        the ones of this item.
        """
        item, identity = context.item, fields.text("id", 200) or ""
        call = call_of_item(item, self._namespace(fields))
        granted = self._granted.pop(fields.text("approval_request_id", 200) or "", None)
        if granted is not None:
            index, asked, _ = granted
            result = result_message(asked.recipient or "", result_of_item(item))
            self.messages[index] = replace(result, origin=context.index)
            return
        if context.message is not None and context.message.role == Role.ASSISTANT:
            self._add(context, context.message)  # its result is an entry of its own
            self._note_call(context, identity)
            return
        known = self.exact(identity) if identity and not context.in_block else None
        if known is not None and len(known) == 2 and same_call(known[0], call):
            call, result = known
        else:
            result = result_message(call.recipient or "", result_of_item(item))
        self._add(context, call)
        self._note_call(context, identity)
        self._add(context, result)

    def _namespace(self, fields: Fields) -> str:
        """Return the namespace of an item's MCP server: that of the server with this label."""
        label = fields.text("server_label", 200) or ""
        offered = (it for it in self.tools.server.servers if it.label == label)
        return next((it.namespace.name for it in offered), declared_name(label))

    def _approval_request(self, context: ContextItem, fields: Fields) -> None:
        identity = fields.text("id", 200)
        if not identity:
            raise fields.error("id", "is missing", "missing_required_parameter")
        if identity in self._requests or identity in self._granted:
            raise fields.error("id", f"two requests for approval have the id {identity[:80]!r}")
        call = context.message or call_of_item(context.item, self._namespace(fields))
        self._add(context, call)
        self._note_call(context, identity)
        self._requests[identity] = call, fields

    def _approval_response(self, context: ContextItem, fields: Fields) -> None:
        """Read a person's decision. Of an approved call the result is put in its place later."""
        identity = str(fields.required("approval_request_id"))
        found = self._requests.pop(identity, None)
        if found is None:
            raise fields.error(
                "approval_request_id", f"no request for approval has the id {identity[:80]!r}"
            )
        fields.required("approve")
        call, request = found
        if fields.boolean("approve"):
            self._add(context, result_message(call.recipient or "", ""))
            self._granted[identity] = len(self.messages) - 1, call, request
            return
        reason = fields.text("reason", 10_000)
        text = f"{NOT_APPROVED} ({reason})" if reason else NOT_APPROVED
        self._add(context, result_message(call.recipient or "", text))

    def approved(self) -> tuple[Approved, ...]:
        """Return the approved calls that have no result; raises ApiError for one of a tool that is
        not offered.
        """
        approved = []
        for identity, (index, call, fields) in self._granted.items():
            called = self.tools.find(call.recipient or "")
            if called is None or called.kind != ServerKind.MCP:
                raise fields.error("name", "the tool of this approved call was not offered again")
            approved.append(Approved(identity, called, call.text, self.messages[index]))
        return tuple(approved)

    def _recipient(self, fields: Fields) -> str:
        name, space = fields.text("name", 200), fields.text("namespace", 200)
        for key, value in (("name", name), ("namespace", space)):
            if value is not None and not HARMONY_NAME.fullmatch(value):
                raise fields.error(key, NAME_RULE)
        if name is None:
            raise fields.error("name", "is missing", "missing_required_parameter")
        if space is not None:
            return f"{space}.{name}"
        found = self.tools.find(name)
        return f"{FUNCTIONS}.{name}" if found is None else found.recipient

    def _output(self, context: ContextItem, fields: Fields) -> None:
        identity = _call_id(fields)
        if identity in self._answered:
            raise fields.error("call_id", f"call {identity[:80]!r} has an output already")
        if identity not in self._open_calls:
            raise _no_pair(f"No tool call found for function call output with call_id {identity}.")
        recipient, _ = self._open_calls.pop(identity)
        self._answered.add(identity)
        result = Message(
            Role.TOOL,
            text_of(fields, "output", pictures=True),
            name=recipient,
            channel="commentary",
            recipient=Role.ASSISTANT.value,
        )
        self._add(context, context.message or result)

    def _settle(self, position: int) -> None:
        """Put results that come later right after their calls, before anyone else speaks; raise
        ApiError for a call that has none. A call that nobody approved is answered so.
        """
        self._settle_approvals(position)
        while self._open_calls:
            identity, (_, _) = next(iter(self._open_calls.items()))
            places = self._outputs.get(identity, ())
            later = next((it for it in places if it >= position), None)
            if later is None:
                raise _no_pair(f"No tool output found for function call {identity}.")
            self._output(self.items[later], self.items[later].fields)
            self._early.add(later)

    def _settle_approvals(self, position: int) -> None:
        for later in range(position, len(self.items) if self._requests else 0):
            item = self.items[later].item
            wanted = item.get("approval_request_id")
            known = isinstance(wanted, str) and wanted in self._requests
            if item_type(item) == APPROVAL_RESPONSE and known:
                self._approval_response(self.items[later], self.items[later].fields)
                self._early.add(later)
        for call, _ in self._requests.values():
            self._put(ContextItem({}), result_message(call.recipient or "", NOT_APPROVED))
        self._requests.clear()


def _before_calls(items: Sequence[ContextItem]) -> list[bool]:
    """Report of each item whether a call follows, with at most the assistant's words between."""
    before, follows = [], False
    for context in reversed(items):
        before.append(follows)
        kind = item_type(context.item)
        if kind in CALLS or kind in SERVER_CALLS or kind == APPROVAL_REQUEST:
            follows = True
        elif kind != "reasoning" and context.item.get("role") != "assistant":
            follows = False
    return before[::-1]


def _no_pair(message: str) -> ApiError:
    return invalid(message, "input", "invalid_value")


def _call_id(fields: Fields) -> str:
    identity = fields.text("call_id", 1000) or fields.text("id", 1000)
    if not identity:
        raise fields.error("call_id", "is missing", "missing_required_parameter")
    return identity
