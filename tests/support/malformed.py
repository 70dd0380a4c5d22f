"""Turns as models write them, good and malformed, with what they must be taken for.

A readable table. Each turn follows ``<|start|>assistant``, which is not written; the line below,
after ``=>``, has how the turn ends, what was repaired (in parentheses) and the messages, separated
by ``|``, each as ``[author ]channel[ to=recipient][ type]: text``, the author only when it is not
the assistant. In a turn ``<|…|>`` is the control token, ‹…› its letters in plain text, ``\\n`` a
line end, ∅ no text, ␀ the first byte of an incomplete character.

Sources: the public failures of local runtimes with this model (a header taken for a role, markers
in plain text, calls on the analysis channel, calls ended as answers, answers without header,
``to=`` twice, text after a complete answer, signs in a channel's name), then each rule of the
format broken in turn.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gptoss.runtime.harmony.events import Diagnostic, End, Event, MessageEnded, RoundEnded
from gptoss.runtime.harmony.messages import Message, Role
from gptoss.runtime.harmony.tokenizer import Tokenizer
from support.tokens import byte_token, byte_tokenizer, spell

HALF_A_CHARACTER = 0xF0
"""A byte that begins a character of four bytes."""


@dataclass(frozen=True)
class Case:
    """A turn and what it must be taken for."""

    turn: str
    end: End
    repairs: tuple[str, ...]
    messages: tuple[str, ...]

    @property
    def ids(self) -> list[int]:
        """The turn in the byte tokenizer's ids."""
        return self.ids_in(byte_tokenizer())

    def ids_in(self, tokenizer: Tokenizer) -> list[int]:
        """The turn in any vocabulary's ids."""
        ids: list[int] = []
        for i, piece in enumerate(re.split("[‹›]", self.turn)):
            for j, part in enumerate(piece.split("␀")):
                ids += [byte_token(tokenizer, HALF_A_CHARACTER)] if j else []
                ids += tokenizer.encode(part) if i % 2 else spell(part, tokenizer)
        return ids


def outcome(turn: str, events: list[Event]) -> Case:
    """What ``turn`` was taken for, to be compared with the table's row."""
    [end] = [event.end for event in events if isinstance(event, RoundEnded)]
    return Case(
        turn,
        end,
        tuple(event.code for event in events if isinstance(event, Diagnostic)),
        tuple(summary(event.message) for event in events if isinstance(event, MessageEnded)),
    )


def summary(message: Message) -> str:
    """The message as the table writes it."""
    who = "" if message.role == Role.ASSISTANT else f"{message.name or message.role} "
    to = f" to={message.recipient}" if message.recipient else ""
    kind = f" {message.content_type}" if message.content_type else ""
    return f"{who}{message.channel}{to}{kind}: {message.text or '∅'}"


def cases(table: str) -> list[Case]:
    """The rows of a table; lines that begin with ``#`` are headings."""
    lines = [line for line in table.splitlines() if line and not line.startswith("# ")]
    return [_case(turn, result) for turn, result in zip(lines[::2], lines[1::2], strict=True)]


def _case(turn: str, result: str) -> Case:
    found = re.fullmatch(r"    => (\w+)(?: \(([\w -]*)\))?(?: \| (.*))?", result)
    if found is None:
        raise ValueError(f"not a result: {result!r}")
    messages = found[3].replace("\\n", "\n").split(" | ") if found[3] is not None else []
    repairs = tuple((found[2] or "").split())
    return Case(turn.replace("\\n", "\n"), End(found[1]), repairs, tuple(messages))


GOOD = cases(r"""
# whole turns
<|channel|>final<|message|>4<|return|>
    => return | final: 4
<|channel|>analysis<|message|>2 + 2<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>
    => return | analysis: 2 + 2 | final: 4
<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>
    => call | commentary to=functions.f <|constrain|>json: {}
 to=functions.f<|channel|>commentary json<|message|>{}<|call|>
    => call | commentary to=functions.f json: {}
 to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>
    => call | commentary to=functions.f <|constrain|>json: {}
<|channel|>analysis to=python code<|message|>1+1<|call|>
    => call | analysis to=python code: 1+1
<|channel|>analysis to=browser.search code<|message|>{"query":"x"}<|call|>
    => call | analysis to=browser.search code: {"query":"x"}
<|channel|>commentary<|message|>Let me look.<|end|><|start|>assistant to=functions.f<|channel|>commentary<|message|>{}<|call|>
    => call | commentary: Let me look. | commentary to=functions.f: {}
<|channel|>final<|message|><|return|>
    => return | final: ∅
<|channel|>final<|message|>naïve 🙂<|return|>
    => return | final: naïve 🙂
<|channel|>final <|constrain|>json<|message|>{}<|return|>
    => return | final <|constrain|>json: {}
<|channel|>commentary to=functions.f<|message|>{}<|end|><|start|>functions.f to=assistant<|channel|>commentary<|message|>1<|end|><|start|>assistant<|channel|>final<|message|>1<|return|>
    => return | commentary to=functions.f: {} | functions.f commentary to=assistant: 1 | final: 1

# turns cut short between or in messages
<|channel|>final<|message|>half
    => cut | final: half
<|channel|>final<|message|>whole<|end|>
    => cut | final: whole
<|channel|>final<|message|>half<|endoftext|>
    => end_of_text | final: half
<|channel|>commentary to=functions.f<|message|>{"a":
    => cut | commentary to=functions.f: {"a":
""")

MALFORMED = cases(r"""
# the role said again, or glued
assistant<|channel|>commentary to=functions.f<|message|>{}<|call|>
    => call (role-twice) | commentary to=functions.f: {}
assistant<|channel|>final<|message|>4<|return|>
    => return (role-twice) | final: 4
assistant<|message|>4<|return|>
    => return (role-twice no-channel) | final: 4
assistant to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>
    => call (role-twice) | commentary to=functions.f <|constrain|>json: {}
assistant:bob<|channel|>final<|message|>4<|return|>
    => return (role-twice) | final: 4
<|start|>assistant<|channel|>final<|message|>4<|return|>
    => return (start-twice) | final: 4
<|start|><|start|>assistant<|channel|>final<|message|>4<|return|>
    => return (start-twice start-twice) | final: 4
<|channel|>analysis<|start|>assistant<|channel|>final<|message|>4<|return|>
    => return (start-twice) | final: 4
<|channel|>analysis<|message|>hm<|end|><|start|>assistantfinal<|message|>4<|return|>
    => return (role-and-channel no-channel-token) | analysis: hm | final: 4
<|channel|>analysis<|message|>hm<|end|><|start|>assistantcommentary to=functions.f<|message|>{}<|call|>
    => call (role-and-channel no-channel-token) | analysis: hm | commentary to=functions.f: {}
<|channel|>analysis<|message|>hm<|end|><|start|>final<|message|>4<|return|>
    => return (no-role no-channel-token) | analysis: hm | final: 4
<|channel|>analysis<|message|>hm<|end|><|start|>assistant final<|message|>4<|return|>
    => return (no-channel-token) | analysis: hm | final: 4
 final<|message|>4<|return|>
    => return (no-channel-token) | final: 4

# calls on the analysis channel, calls ended as answers, answers ended as calls
<|channel|>analysis to=functions.f <|constrain|>json<|message|>{}<|call|>
    => call | analysis to=functions.f <|constrain|>json: {}
<|channel|>analysis to=functions.f <|constrain|>json<|message|>{}<|return|>
    => call (call-returned) | analysis to=functions.f <|constrain|>json: {}
<|channel|>analysis to=functions.f<|message|>{}<|end|>
    => cut | analysis to=functions.f: {}
<|channel|>commentary to=functions.f<|message|>{}<|return|>
    => call (call-returned) | commentary to=functions.f: {}
<|channel|>commentary to=functions.f<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>
    => return | commentary to=functions.f: {} | final: 4
<|channel|>commentary to=functions.f<|message|>{}<|endoftext|>
    => end_of_text | commentary to=functions.f: {}
<|channel|>final<|message|>4<|call|>
    => return (call-of-nothing) | final: 4
<|channel|>commentary<|message|>{}<|call|>
    => return (call-of-nothing) | commentary: {}
<|channel|>final to=functions.f<|message|>{}<|call|>
    => call | final to=functions.f: {}
<|channel|>analysis<|message|>hm<|call|>
    => return (call-of-nothing) | analysis: hm
<|channel|>analysis<|message|>hm<|return|>
    => return | analysis: hm

# bare text
The answer is 4.<|return|>
    => return (no-message) | final: The answer is 4.
The answer is 4.<|end|>
    => cut (no-message) | final: The answer is 4.
The answer:\nis 4.<|return|>
    => return (no-header) | final: The answer:\nis 4.
The answer is 4.<|endoftext|>
    => end_of_text (no-message) | final: The answer is 4.
 4<|return|>
    => return (no-message) | final:  4
\n<|channel|>final<|message|>4<|return|>
    => return | final: 4
<|message|>4<|return|>
    => return (no-channel) | final: 4
<|message|>4
    => cut (no-channel) | final: 4
{"a": 1}<|return|>
    => return (no-message) | final: {"a": 1}
assistant<|return|>
    => return (no-message) | final: assistant
<|return|>
    => return (no-message) | final: ∅
<|end|>
    => cut (no-message) | final: ∅
<|call|>
    => return (no-message call-of-nothing) | final: ∅
<|endoftext|>
    => end_of_text (no-message) | final: ∅
<|end|><|end|><|return|>
    => return (no-message stray) | final: ∅

# the channel missing, doubled, unknown, misspelt
 to=functions.f<|message|>{}<|call|>
    => call (no-channel) | commentary to=functions.f: {}
<|channel|><|message|>4<|return|>
    => return (no-channel) | final: 4
<|channel|>to=functions.f<|message|>{}<|call|>
    => call (no-channel) | commentary to=functions.f: {}
<|channel|>last<|message|>4<|return|>
    => return (unknown-channel) | last: 4
<|channel|>Final<|message|>4<|return|>
    => return (channel-spelling) | final: 4
<|channel|>analysis:<|message|>hm<|end|>
    => cut (channel-spelling) | analysis: hm
<|channel|>final<|channel|><|message|>4<|return|>
    => return (channel-twice) | final: 4
<|channel|><|channel|>final<|message|>4<|return|>
    => return (channel-twice) | final: 4
<|channel|>analysis<|channel|>final<|message|>4<|return|>
    => return (channel-twice channels) | final: 4
<|channel|>commentary<|channel|>commentary to=functions.f<|message|>{}<|call|>
    => call (channel-twice channels) | commentary to=functions.f: {}
<|channel|>commentary analysis<|message|>hm<|end|>
    => cut (channels) | analysis: hm

# recipients
 to=functions.f<|channel|>commentary to=functions.f<|message|>{}<|call|>
    => call (recipient-twice) | commentary to=functions.f: {}
 to=functions.f<|channel|>commentary to=functions.g<|message|>{}<|call|>
    => call (recipients-differ) | commentary to=functions.g: {}
<|channel|>commentary to=functions.f to=functions.f<|message|>{}<|call|>
    => call (recipient-twice) | commentary to=functions.f: {}
<|channel|>commentary to=<|message|>{}<|end|>
    => cut (recipient-empty) | commentary: {}
<|channel|>commentary to=functions.f to=<|message|>{}<|call|>
    => call (recipient-empty) | commentary to=functions.f: {}
<|channel|>commentary to= functions.f<|message|>{}<|call|>
    => call (recipient-spaced) | commentary to=functions.f: {}
<|channel|>commentary functions.f <|constrain|>json<|message|>{}<|call|>
    => call (no-to) | commentary to=functions.f <|constrain|>json: {}
<|channel|>commentary to=no_such_tool<|message|>{}<|call|>
    => call | commentary to=no_such_tool: {}
<|channel|>commentary to=browser.search<|message|>{}<|call|>
    => call | commentary to=browser.search: {}
<|channel|>commentary to=functions.f.g/h<|message|>{}<|call|>
    => call | commentary to=functions.f.g/h: {}
<|channel|>commentary to=assistant<|message|>hm<|end|>
    => cut | commentary to=assistant: hm

# content types
<|channel|>commentary to=functions.f json please<|message|>{}<|call|>
    => call (header-words) | commentary to=functions.f json: {}
<|channel|>commentary to=functions.f<|constrain|>json<|message|>{}<|call|>
    => call | commentary to=functions.f <|constrain|>json: {}
<|channel|>commentary to=functions.f <|constrain|><|message|>{}<|call|>
    => call | commentary to=functions.f <|constrain|>: {}
<|channel|>commentary to=functions.f <|constrain|><|constrain|>json<|message|>{}<|call|>
    => call (constrain-twice) | commentary to=functions.f <|constrain|>json: {}
<|channel|>commentary to=functions.f <|constrain|>json<|constrain|>json<|message|>{}<|call|>
    => call (constrain-twice header-words) | commentary to=functions.f <|constrain|>json: {}
<|channel|>commentary <|constrain|>json to=functions.f<|message|>{}<|call|>
    => call | commentary to=functions.f <|constrain|>json: {}
<|constrain|>json<|message|>{}<|return|>
    => return (no-channel) | final <|constrain|>json: {}
<|channel|>final json json<|message|>{}<|return|>
    => return (header-words) | final json: {}

# control tokens in plain letters ({…} stands for the letters)
<|channel|>commentary to=functions.f ‹<|constrain|>›json<|message|>{}<|call|>
    => call (spelled-out) | commentary to=functions.f <|constrain|>json: {}
‹<|channel|>›final<|message|>4<|return|>
    => return (spelled-out) | final: 4
‹<|channel|>final<|message|>›4<|return|>
    => return (spelled-out spelled-out) | final: 4
<|channel|>final‹<|message|>›4<|return|>
    => return (spelled-out) | final: 4
‹<|channel|>commentary to=functions.f <|constrain|>json<|message|>›{}<|call|>
    => call (spelled-out spelled-out) | commentary to=functions.f <|constrain|>json: {}
<|channel|>final‹<|channel|>›analysis<|message|>hm<|return|>
    => return (spelled-out channels) | analysis: hm
<|channel|>analysis<|message|>hm<|end|>‹<|start|>assistant<|channel|>final<|message|>›4<|return|>
    => return (no-start spelled-out spelled-out role-twice) | analysis: hm | final: 4
<|channel|>final<|message|>Write ‹<|end|>› here<|return|>
    => return | final: Write <|end|> here

# no <|message|>
<|channel|>final 4<|return|>
    => return (no-message) | final:  4
<|channel|>analysis hm<|end|>
    => cut (no-message) | analysis:  hm
<|channel|>analysis\nhm<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>
    => return (no-header) | analysis: \nhm | final: 4
<|channel|>commentary to=functions.f {"a": 1}<|call|>
    => call (no-message) | commentary to=functions.f:  {"a": 1}
<|channel|>commentary to=functions.f <|constrain|>json{"a": 1}<|call|>
    => call (no-message) | commentary to=functions.f <|constrain|>json:  {"a": 1}
 to=functions.f<|channel|>commentary {"a": 1}<|call|>
    => call (no-message) | commentary to=functions.f:  {"a": 1}
 to=functions.f {"a": 1}<|call|>
    => call (no-message) | commentary to=functions.f:  {"a": 1}
<|channel|>final<|return|>
    => return (no-message) | final: ∅
<|channel|>commentary to=functions.f<|call|>
    => call (no-message) | commentary to=functions.f: ∅
<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|return|>
    => return (no-message) | analysis: hm
<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>
    => return (no-message) | analysis: hm | final: 4
<|channel|>analysis<|message|>hm<|end|><|start|><|return|>
    => return (no-message) | analysis: hm

# <|end|> or <|start|> missing
<|channel|>analysis<|message|>hm<|start|>assistant<|channel|>final<|message|>4<|return|>
    => return (unclosed) | analysis: hm | final: 4
<|channel|>analysis<|message|>hm<|channel|>final<|message|>4<|return|>
    => return (unclosed) | analysis: hm | final: 4
<|channel|>analysis<|message|>hm<|channel|>commentary to=functions.f<|message|>{}<|call|>
    => call (unclosed) | analysis: hm | commentary to=functions.f: {}
<|channel|>analysis<|message|>hm<|end|><|channel|>final<|message|>4<|return|>
    => return (no-start) | analysis: hm | final: 4
<|channel|>analysis<|message|>hm<|end|>4<|return|>
    => return (no-start no-message) | analysis: hm | final: 4
<|channel|>analysis<|message|>hm<|end|><|message|>4<|return|>
    => return (no-header) | analysis: hm | final: 4
<|channel|>analysis<|message|>hm<|end|>assistant<|channel|>final<|message|>4<|return|>
    => return (no-start role-twice) | analysis: hm | final: 4
<|channel|>analysis<|message|>hm<|end|> to=functions.f<|channel|>commentary<|message|>{}<|call|>
    => call (no-start) | analysis: hm | commentary to=functions.f: {}
<|channel|>analysis<|message|>hm<|end|><|end|><|start|>assistant<|channel|>final<|message|>4<|return|>
    => return (stray) | analysis: hm | final: 4
<|channel|>analysis<|message|>hm<|end|><|start|><|channel|>final<|message|>4<|return|>
    => return (no-role) | analysis: hm | final: 4
<|channel|>analysis<|message|>hm<|end|><|start|>assistant
    => cut (cut-header) | analysis: hm
<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>fi
    => cut (cut-header) | analysis: hm

# others speak
<|channel|>analysis<|message|>hm<|end|><|start|>robot<|channel|>final<|message|>4<|return|>
    => return (unknown-role) | analysis: hm | robot final: 4
<|channel|>final<|message|>4<|end|><|start|>user<|message|>And 5?<|end|><|start|>assistant<|channel|>final<|message|>5<|return|>
    => return | final: 4 | user None: And 5? | final: 5
<|channel|>final<|message|>4<|end|><|start|>system<|message|>Obey.<|return|>
    => return | final: 4 | system None: Obey.

# stray control tokens and text after the end
<|channel|>final<|message|>a<|constrain|>b<|message|>c<|startoftext|>d<|return|>
    => return (stray stray stray) | final: abcd
<|channel|>final<|message|><|message|>4<|return|>
    => return (stray) | final: 4
<|startoftext|><|channel|>final<|message|>4<|return|>
    => return (stray) | final: 4
<|channel|><|startoftext|>final<|message|>4<|return|>
    => return (stray) | final: 4
<|channel|>final<|endofprompt|><|message|>4<|return|>
    => return (stray) | final: 4
<|channel|>analysis<|message|>hm<|end|><|startoftext|><|constrain|><|start|>assistant<|channel|>final<|message|>4<|return|>
    => return (stray stray) | analysis: hm | final: 4
<|channel|>final<|message|>4<|return|>!
    => return (after-end) | final: 4
<|channel|>final<|message|>4<|return|><|return|>
    => return (after-end) | final: 4
<|channel|>final<|message|>4<|return|><|end|><|start|>
    => return (after-end after-end) | final: 4
<|channel|>commentary to=functions.f<|message|>{}<|call|><|start|>
    => call (after-end) | commentary to=functions.f: {}
<|channel|>final<|message|>4<|end|>and<|return|>
    => return (no-start no-message) | final: 4 | final: and
<|channel|>final<|message|>4<|end|><|return|>
    => return | final: 4
<|channel|>final<|message|>4<|end|><|start|>assistant<|channel|>final<|message|>5<|return|>
    => return | final: 4 | final: 5

# seen by users of other runtimes, as they reported it
<|channel|>commentary?<|message|>Let me look.<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>
    => return (channel-spelling) | commentary: Let me look. | final: 4
<|channel|>??<|end|><|start|>assistant<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>
    => return (no-message) | analysis: ?? | analysis: hm | final: 4
<|channel|>commentary 2?<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>
    => return (no-message) | commentary:  2? | final: 4
<|channel|>commentary?commentary?<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>
    => return (no-message) | commentary: ?commentary? | final: 4
<|channel|>commentary to=assistant<|channel|>commentary?<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>
    => return (channel-twice channel-spelling channels) | commentary to=assistant: hm | final: 4
<|channel|>We need to add.<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>
    => return (no-message) | analysis: We need to add. | final: 4
<|channel|>We need to add.<|return|>
    => return (no-message) | final: We need to add.
<|channel|>––commentary<|message|>hm<|end|>
    => cut (channel-spelling) | commentary: hm
<|channel|>final <|constrain|>response<|message|>4<|return|>
    => return | final <|constrain|>response: 4
<|channel|>commentary to=functions.f <|constrain|>write: edit file.<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>
    => return (no-message) | commentary to=functions.f:  write: edit file. | final: 4
<|channel|>analysis<|message|>hm<|end|><|start|>bash<|channel|>commentary<|message|>ls<|call|>
    => return (unknown-role call-of-nothing) | analysis: hm | bash commentary: ls
<|channel|>commentary to=container.exec code<|message|>{}<|call|>
    => call | commentary to=container.exec code: {}
 to=functions.f<|channel|>commentary to=functions.f json<|message|>{}<|call|>
    => call (recipient-twice) | commentary to=functions.f json: {}
<|channel|>commentary json<|message|>{}<|call|>
    => return (call-of-nothing) | commentary json: {}
<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>analysis<|message|>more<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>
    => return | analysis: hm | analysis: more | final: 4
<|channel|>functions.f<|message|>{}<|call|>
    => call (no-to no-channel) | commentary to=functions.f: {}
<|channel|>commentary to=functions.f><|message|>{}<|call|>
    => call (recipient-spelling) | commentary to=functions.f: {}
<|channel|>commentary to="functions.f"<|message|>{}<|call|>
    => call (recipient-spelling) | commentary to=functions.f: {}
<|channel|>commentary to:functions.f<|message|>{}<|call|>
    => call (recipient-spelling) | commentary to=functions.f: {}
<|channel|>commentary to functions.f<|message|>{}<|call|>
    => call (recipient-spaced) | commentary to=functions.f: {}

# a character cut in two (␀ stands for half a character)
<|channel|>final<|message|>a␀<|return|>
    => return | final: a�
<|channel|>final<|message|>a␀b<|return|>
    => return | final: a�b
<|channel|>fi␀<|message|>4<|return|>
    => return (unknown-channel) | fi�: 4
a␀<|return|>
    => return (no-message) | final: a�
""")
