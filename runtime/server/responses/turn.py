"""The generations of one response: what the model is asked, again after each round of calls; pure.

A response has more than one generation where this server runs tools. Each is asked for with what
the ones before have left of the limits. After the last round that may call, only the client's tools
can be called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from gptoss.runtime.chat.settings import MAX_ROUNDS
from gptoss.runtime.harmony.messages import Message
from gptoss.runtime.sampling.grammar import Rules, ToolChoice
from gptoss.runtime.server.reply import ReplyDone, ReplyRequest, Usage
from gptoss.runtime.server.responses.server_tools import OfferedServer
from gptoss.runtime.server.responses.tools import Called, Tools


@dataclass(frozen=True, slots=True)
class Approved:
    """An MCP call that a person has approved: it is run before the first generation, and its
    result takes the place of ``placeholder`` in the conversation.
    """

    request: str
    called: Called
    arguments: str
    placeholder: Message


@dataclass(frozen=True, slots=True)
class Generation:
    """What was asked, what the model wrote, and the ids of its calls."""

    asked: ReplyRequest
    done: ReplyDone
    call_ids: tuple[str, ...] = ()


@dataclass(slots=True)
class Turn:
    """The generations of one response so far. ``first`` is its first request; ``later`` are the
    tools that may be called in a further one.
    """

    first: ReplyRequest
    later: Tools = field(default_factory=Tools)
    approved: tuple[Approved, ...] = ()
    listed: tuple[OfferedServer, ...] = ()
    """MCP servers whose tools are listed first: those that the conversation has no list of."""
    max_rounds: int = MAX_ROUNDS
    generations: list[Generation] = field(default_factory=list)
    results: list[Sequence[Message]] = field(default_factory=list)
    """The results of the calls of each generation that made any."""

    def put_approved(self, results: dict[str, Message]) -> None:
        """Put the results of approved calls, by the id of the request, into the conversation."""
        places = {id(it.placeholder): results[it.request] for it in self.approved}
        messages = tuple(places.get(id(it), it) for it in self.first.messages)
        self.first = replace(self.first, messages=messages)

    def opening(self, *, may_run: bool) -> ReplyRequest:
        """Return the first request; without ``may_run`` no call that this server would run."""
        return self.first if may_run else replace(self.first, rules=self._rules(may_run=False))

    def add(self, asked: ReplyRequest, done: ReplyDone, call_ids: Sequence[str] = ()) -> None:
        """Note a generation that is over."""
        self.generations.append(Generation(asked, done, tuple(call_ids)))

    def add_results(self, results: Sequence[Message]) -> None:
        """Note the results of the last generation's calls."""
        self.results.append(results)

    def next(self, *, may_run: bool) -> ReplyRequest | None:
        """Return what to ask after the results of a round of calls; None where a limit of tokens is
        reached, or the model called although it could not.
        """
        last = self.generations[-1]
        if len(self.generations) > self.max_rounds:
            return None
        usage, first = self.usage, self.first
        left = None if first.max_tokens is None else first.max_tokens - usage.completion
        if left is not None and left <= 0:
            return None
        budget = first.reasoning_budget
        may_run = may_run and len(self.generations) < self.max_rounds
        return replace(
            last.asked,
            messages=(*last.asked.messages, *last.done.messages, *self.results[-1]),
            rules=self._rules(may_run=may_run),
            seed=None if first.seed is None else first.seed + len(self.generations),
            max_tokens=left,
            reasoning_budget=None if budget is None else max(0, budget - usage.reasoning),
        )

    def _rules(self, *, may_run: bool) -> Rules:
        tools = self.later if may_run else self.later.of_client
        choice = ToolChoice.AUTO if tools.functions or tools.callable else ToolChoice.NONE
        if self.first.rules.tool_choice == ToolChoice.NONE:
            choice = ToolChoice.NONE
        return replace(
            self.first.rules,
            functions=tools.functions,
            namespaces=tools.callable,
            tool_choice=choice,
        )

    @property
    def usage(self) -> Usage:
        """Return what all generations have cost together."""
        each = [it.done.usage for it in self.generations]
        return Usage(
            sum(it.prompt for it in each),
            sum(it.cached for it in each),
            sum(it.completion for it in each),
            sum(it.reasoning for it in each),
        )

    @property
    def written(self) -> tuple[Message, ...]:
        """Return all messages that the response has added to the conversation, in their order."""
        messages: list[Message] = []
        for i, generation in enumerate(self.generations):
            messages += generation.done.messages
            if i < len(self.results):
                messages += self.results[i]
        return tuple(messages)
