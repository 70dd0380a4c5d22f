"""Reads a message's header, the text between ``<|start|>`` and ``<|message|>``: role, channel,
recipient, type.

    {role}[ to={recipient}]<|channel|>{channel}[ to={recipient}][ {type}] <|constrain|>{type}

The model was trained on this form, but its output is sampled, so every field may be missing,
repeated, in the other part, or written as plain text. Any header is given its likeliest meaning,
and every guess is reported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from gptoss.runtime.harmony.events import Diagnostic
from gptoss.runtime.harmony.messages import CHANNELS, CONSTRAIN, Role

_SPELLED_OUT = re.compile(r"<\|(start|channel|constrain)\|>")
_TOOL_NAME = re.compile(r"(functions|browser)\.[\w.-]+")

# What begins a header that has no <|message|>, part by part; what follows is content.
_SALVAGED_ROLE = re.compile(r"(assistant)?\s*(?:to=(?P<to>(functions|browser)\.[\w.-]+|python)|$)")
_SALVAGED_CHANNEL = re.compile(rf"\s*(?P<channel>{'|'.join(CHANNELS)})\b(?:\s+to=(?P<to>[\w.-]+))?")
_SALVAGED_TYPE = re.compile(r"\s*(json|code)\b")


@dataclass(slots=True)
class RawHeader:
    """Header text as collected: before the channel token, after it, after each constrain token."""

    role: str = ""
    channel: str | None = None
    constrain: str | None = None

    def append(self, text: str) -> None:
        """Add text to the last part (role, channel or constrain) of the header being collected."""
        if self.constrain is not None:
            self.constrain += text
        elif self.channel is not None:
            self.channel += text
        else:
            self.role += text

    def separate(self) -> None:
        """Add a space to the last part of the header being collected, unless it ends with one."""
        last = next(filter(None, (self.constrain, self.channel, self.role)), "")
        if not last.endswith(" "):
            self.append(" ")

    def cut_behind(self, marker: str) -> str:
        """Cut ``marker`` and what follows it off the header's last part; return what followed."""
        part = "role" if self.channel is None else "channel"
        part = part if self.constrain is None else "constrain"
        kept, _, rest = getattr(self, part).partition(marker)
        setattr(self, part, kept)
        return str(rest)

    def begin_channel(self) -> bool:
        """Begin the header's channel part at a ``<|channel|>`` token; return False when it has one
        already.
        """
        if self.channel is not None:
            return False
        self.channel = ""
        return True

    def begin_constrain(self) -> bool:
        """Begin the header's type part at a ``<|constrain|>`` token; return False when it has one
        already.
        """
        if self.constrain is not None:
            return False
        self.constrain = ""
        return True

    @property
    def has_lines(self) -> bool:
        """Report whether the header's last part has a line end between words, so that it is
        probably content.
        """
        part = self.role if self.channel is None else self.channel
        part = part if self.constrain is None else self.constrain
        return "\n" in part and "\n" in part.strip().removeprefix(Role.ASSISTANT).strip()

    @property
    def text(self) -> str:
        """Return all of the collected header as text, for one that proves to be content."""
        return self.role + (self.channel or "") + (self.constrain or "")


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of a header."""

    role: Role
    name: str | None = None
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None
    repairs: tuple[Diagnostic, ...] = ()


@dataclass(slots=True)
class _Fields:
    """Words of the header as they are sorted into fields."""

    recipients: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def parse_header(raw: RawHeader, implied_role: Role | None) -> Header:
    """Parse a message's raw header to role, name, channel, recipient and content type;
    ``implied_role`` is the role that the prompt gave already.
    """
    repairs: list[Diagnostic] = []
    raw = _respell(raw, repairs)
    role, name, role_fields = _role_part(raw.role, implied_role, repairs)
    channel_fields = _sort_words(raw.channel or "", repairs)
    type_fields = _sort_words(raw.constrain or "", repairs)
    if role == Role.ASSISTANT:
        channel = _channel(raw, role_fields.others, channel_fields.others, repairs)
    else:
        channel = channel_fields.others.pop(0) if channel_fields.others else None
    others = role_fields.others + channel_fields.others
    recipients = role_fields.recipients + channel_fields.recipients + type_fields.recipients
    recipient = _recipient(recipients, repairs)
    if role == Role.ASSISTANT and channel is None:
        channel = "final" if recipient is None else "commentary"
        repairs.append(Diagnostic("no-channel", f"no channel given, taken for {channel}"))
    if raw.constrain is not None:
        first, *more = type_fields.others or [""]
        others = [CONSTRAIN + first, *others, *more]
    content_type = _content_type(others, repairs)
    return Header(role, name, channel, recipient, content_type, tuple(repairs))


def salvage_header(
    raw: RawHeader, implied_role: Role | None, *, more_follows: bool = False
) -> tuple[Header, str]:
    """Recover the fields of a header that never reached its ``<|message|>``, and the content in it.

    ``more_follows`` when it ends a message but not the turn: with a channel token and no channel,
    it then is a thought, not the answer.

    Only correctly written fields at the very beginning of a part count as header. ``assistant`` is
    a role only where a role is expected; elsewhere it is text.
    """
    role_text, channel_text, type_text = raw.role, raw.channel or "", raw.constrain or ""
    channel = recipient = content_type = None
    found = _SALVAGED_ROLE.match(role_text)
    if found and (found["to"] or implied_role is None or not role_text.strip()):
        recipient, role_text = found["to"], role_text[found.end() :]
    if found := _SALVAGED_CHANNEL.match(channel_text):
        channel, channel_text = found["channel"], channel_text[found.end() :]
        recipient = found["to"] or recipient
    if found := _SALVAGED_TYPE.match(type_text):
        content_type, type_text = CONSTRAIN + found[1], type_text[found.end() :]
    if channel is None and recipient is None:
        channel = "analysis" if more_follows and raw.channel is not None else "final"
    channel = channel or "commentary"
    header = Header(Role.ASSISTANT, None, channel, recipient, content_type)
    return header, role_text + channel_text + type_text


def _respell(raw: RawHeader, repairs: list[Diagnostic]) -> RawHeader:
    """Replace control tokens that a header spells out in plain text by the parts they begin."""
    if not _SPELLED_OUT.search(raw.text):
        return raw
    repairs.append(Diagnostic("spelled-out", f"a control token in plain text in {raw.text!r}"))
    pieces = [("role", raw.role), ("channel", raw.channel), ("constrain", raw.constrain)]
    repaired = RawHeader()
    for kind, text in pieces:
        if text is None:
            continue
        begin, *rest = _SPELLED_OUT.split(text)
        _add_piece(repaired, kind, begin)
        for marker, piece in zip(rest[::2], rest[1::2], strict=True):
            _add_piece(repaired, marker, piece)
    return repaired


def _add_piece(header: RawHeader, kind: str, text: str) -> None:
    if kind == "channel":
        begun = header.begin_channel()
    elif kind == "constrain":
        begun = header.begin_constrain()
    else:
        begun = kind == "role"
    header.append(text if begun else f" {text}")


def _sort_words(text: str, repairs: list[Diagnostic], *, author: bool = False) -> _Fields:
    """Separate a header's words into recipients (``to=x``, ``to= x``, or a bare ``functions.x``)
    and others.

    With ``author`` the first word is a name even if it is a tool's.
    """
    fields = _Fields()
    words = text.split()
    while words:
        word = words.pop(0)
        named = bool(words) and _TOOL_NAME.fullmatch(words[0]) is not None
        if (word == "to=" and words) or (word in ("to", "to:") and named):
            repairs.append(Diagnostic("recipient-spaced", f"a space in '{word} {words[0]}'"))
            fields.recipients.append(words.pop(0))
        elif word.startswith(("to=", "to:")):
            fields.recipients.append(word[2:].removeprefix("="))
        elif _TOOL_NAME.fullmatch(word) and (fields.others or not author):
            repairs.append(Diagnostic("no-to", f"recipient {word!r} without 'to='"))
            fields.recipients.append(word)
        else:
            fields.others.append(word)
    return fields


def _role_part(
    text: str, implied: Role | None, repairs: list[Diagnostic]
) -> tuple[Role, str | None, _Fields]:
    """Parse the role and name at the start of a header; with an implied role its name may be
    repeated.
    """
    fields = _sort_words(text, repairs, author=implied is None)
    if implied is not None:
        first = fields.others[0] if fields.others else ""
        if text.lstrip().startswith(implied) and first.split(":")[0] == implied:
            repairs.append(Diagnostic("role-twice", f"role given again: {first!r}", text=first))
            del fields.others[0]
        return implied, None, fields
    if not fields.others or fields.others[0] in CHANNELS:
        repairs.append(Diagnostic("no-role", "no role given, taken for assistant"))
        return Role.ASSISTANT, None, fields
    author = fields.others.pop(0)
    role, _, name = author.partition(":")
    if role in (Role.SYSTEM, Role.DEVELOPER, Role.USER, Role.ASSISTANT):
        return Role(role), name or None, fields
    if (channel := author.removeprefix(Role.ASSISTANT)) in CHANNELS:
        repairs.append(Diagnostic("role-and-channel", f"no channel token in {author!r}"))
        fields.others.insert(0, channel)
        return Role.ASSISTANT, None, fields
    if "." not in author and not fields.recipients:
        repairs.append(Diagnostic("unknown-role", f"author {author!r} taken for a tool"))
    return Role.TOOL, author, fields


def _channel(
    raw: RawHeader, role_words: list[str], words: list[str], repairs: list[Diagnostic]
) -> str | None:
    """Take the channel out of a header's words and return it as harmony spells it."""
    named = _taken_channels(role_words, repairs)
    if named and raw.channel is None:
        repairs.append(Diagnostic("no-channel-token", f"channel {named[-1]!r} without token"))
    if words:
        named.append(_respelled_channel(words.pop(0), repairs))
    named += _taken_channels(words, repairs)
    if len(named) > 1:
        dropped = " ".join(named[:-1])
        repairs.append(
            Diagnostic("channels", f"channels {', '.join(named)}: the last counts", text=dropped)
        )
    return named[-1] if named else None


def _taken_channels(words: list[str], repairs: list[Diagnostic]) -> list[str]:
    """Remove the channel names from a header's ``words`` and return them."""
    found = [word for word in words if _known_channel(word) is not None]
    words[:] = [word for word in words if word not in found]
    return [_respelled_channel(word, repairs) for word in found]


def _respelled_channel(channel: str, repairs: list[Diagnostic]) -> str:
    """Correct a header's ``Final`` or ``analysis:`` to harmony's channel name; return any other
    word unchanged.
    """
    if channel in CHANNELS:
        return channel
    likely = _known_channel(channel)
    if likely is not None:
        repairs.append(
            Diagnostic("channel-spelling", f"channel {channel!r} taken for {likely}", text=channel)
        )
        return likely
    repairs.append(Diagnostic("unknown-channel", f"channel {channel!r}"))
    return channel


def _known_channel(word: str) -> str | None:
    """Return the channel that a header's ``word`` names with signs around it: ``commentary?``,
    ``––Final``.
    """
    words = set(re.findall(r"\w+", word.lower()))
    return words.pop() if len(words) == 1 and words <= set(CHANNELS) else None


def _recipient(candidates: list[str], repairs: list[Diagnostic]) -> str | None:
    named = [_bare_recipient(candidate, repairs) for candidate in candidates]
    named = [name for name in named if name]
    if len(candidates) > len(named):
        repairs.append(Diagnostic("recipient-empty", "'to=' without a name"))
    if len(named) > 1:
        code = "recipient-twice" if len(set(named)) == 1 else "recipients-differ"
        others = " ".join(named[:-1])
        repairs.append(
            Diagnostic(code, f"recipients {', '.join(named)}: the last counts", text=others)
        )
    return named[-1] if named else None


def _bare_recipient(name: str, repairs: list[Diagnostic]) -> str:
    """Return a header's recipient without the signs around it: ``"functions.f"`` and
    ``functions.f>``.
    """
    bare = name.strip("\"'`<>,;:")
    if bare != name:
        repairs.append(Diagnostic("recipient-spelling", f"recipient {name!r} taken for {bare!r}"))
    return bare


def _content_type(words: list[str], repairs: list[Diagnostic]) -> str | None:
    """Return a header's content type: ``<|constrain|>json``, or the bare word ``json`` in its
    place, the first word.
    """
    if len(words) > 1:
        rest = " ".join(words[1:])
        repairs.append(Diagnostic("header-words", f"not understood: {rest!r}", text=rest))
    return words[0] if words else None
