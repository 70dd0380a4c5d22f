"""A message's header: from the pieces between ``<|start|>`` and ``<|message|>`` to its fields.

    {role}[ to={recipient}]<|channel|>{channel}[ to={recipient}][ {type}] <|constrain|>{type}

The model is trained on this but sampled from, so every field may be missing, doubled, in the
other part, or spelled out in plain text. Whatever comes is given the likeliest meaning, and what
had to be guessed is said.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from gptoss.runtime.harmony.events import Diagnostic
from gptoss.runtime.harmony.messages import CHANNELS, Role

CONSTRAIN = "<|constrain|>"
_SPELLED_OUT = re.compile(r"<\|(channel|constrain)\|>")


@dataclass(slots=True)
class RawHeader:
    """Header text as collected: what stood before, behind each channel token, each constrain."""

    role: str = ""
    channel: str | None = None
    constrain: str | None = None

    def append(self, text: str) -> None:
        """Add text to the part that was begun last."""
        if self.constrain is not None:
            self.constrain += text
        elif self.channel is not None:
            self.channel += text
        else:
            self.role += text

    def begin_channel(self) -> bool:
        """A channel token; false when there was one already."""
        if self.channel is not None:
            return False
        self.channel = ""
        return True

    def begin_constrain(self) -> bool:
        """A constrain token; false when there was one already."""
        if self.constrain is not None:
            return False
        self.constrain = ""
        return True

    @property
    def text(self) -> str:
        """All of it as text, for a header that turns out to be none."""
        return self.role + (self.channel or "") + (self.constrain or "")


@dataclass(frozen=True, slots=True)
class Header:
    """What a header says."""

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
    """The fields of ``raw``. ``implied_role`` is the role that the prompt gave already."""
    repairs: list[Diagnostic] = []
    raw = _respell(raw, repairs)
    role, name, role_fields = _role_part(raw.role, implied_role, repairs)
    channel_fields = _sort_words((raw.channel or "").split())
    channel = channel_fields.others.pop(0) if channel_fields.others else None
    recipient = _recipient(role_fields.recipients + channel_fields.recipients, repairs)
    content_type = _content_type(raw, role_fields.others + channel_fields.others, repairs)
    if role == Role.ASSISTANT:
        if channel is None:
            channel = "final" if recipient is None else "commentary"
            repairs.append(Diagnostic("no-channel", f"no channel given, taken for {channel}"))
        elif channel not in CHANNELS:
            repairs.append(Diagnostic("unknown-channel", f"channel {channel!r}"))
    return Header(role, name, channel, recipient, content_type, tuple(repairs))


def _respell(raw: RawHeader, repairs: list[Diagnostic]) -> RawHeader:
    """Control tokens that were spelled out in plain text, put in their place."""
    if not any(_SPELLED_OUT.search(part or "") for part in (raw.role, raw.channel, raw.constrain)):
        return raw
    repairs.append(Diagnostic("spelled-out", f"a control token in plain text in {raw.text!r}"))
    pieces = [("role", raw.role), ("channel", raw.channel), ("constrain", raw.constrain)]
    mended = RawHeader()
    for kind, text in pieces:
        if text is None:
            continue
        begin, *rest = _SPELLED_OUT.split(text)
        _add_piece(mended, kind, begin)
        for marker, piece in zip(rest[::2], rest[1::2], strict=True):
            _add_piece(mended, marker, piece)
    return mended


def _add_piece(header: RawHeader, kind: str, text: str) -> None:
    if kind == "channel":
        header.begin_channel()
    elif kind == "constrain":
        header.begin_constrain()
    header.append(text)


def _sort_words(words: list[str]) -> _Fields:
    fields = _Fields()
    for word in words:
        if word.startswith("to="):
            fields.recipients.append(word.removeprefix("to="))
        else:
            fields.others.append(word)
    return fields


def _role_part(
    text: str, implied: Role | None, repairs: list[Diagnostic]
) -> tuple[Role, str | None, _Fields]:
    """Role and name; with an implied role its name may be said once more, which is no harm."""
    words = text.split()
    if implied is not None:
        if words and words[0].split(":")[0] == implied and text.startswith(words[0]):
            repairs.append(Diagnostic("role-twice", f"role given again: {words[0]!r}"))
            words = words[1:]
        return implied, None, _sort_words(words)
    fields = _sort_words(words)
    if not fields.others:
        repairs.append(Diagnostic("no-role", "no role given, taken for assistant"))
        return Role.ASSISTANT, None, fields
    author = fields.others.pop(0)
    role, _, name = author.partition(":")
    if role in (Role.SYSTEM, Role.DEVELOPER, Role.USER, Role.ASSISTANT):
        return Role(role), name or None, fields
    if "." not in author and not fields.recipients:
        repairs.append(Diagnostic("unknown-role", f"author {author!r} taken for a tool"))
    return Role.TOOL, author, fields


def _recipient(candidates: list[str], repairs: list[Diagnostic]) -> str | None:
    if len(candidates) > 1:
        code = "recipient-twice" if len(set(candidates)) == 1 else "recipients-differ"
        repairs.append(Diagnostic(code, f"recipients {', '.join(candidates)}: the last counts"))
    return candidates[-1] or None if candidates else None


def _content_type(raw: RawHeader, words: list[str], repairs: list[Diagnostic]) -> str | None:
    """``<|constrain|>json``, or the bare word ``json`` that may stand instead."""
    if raw.constrain is not None:
        constrained = raw.constrain.split()
        words = [CONSTRAIN + (constrained[0] if constrained else ""), *words, *constrained[1:]]
    if len(words) > 1:
        repairs.append(Diagnostic("header-words", f"not understood: {' '.join(words[1:])!r}"))
    return words[0] if words else None
