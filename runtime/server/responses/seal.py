"""``encrypted_content``: a reasoning item that a client carries for the server and cannot change.

The sealed text holds the reasoning, and the token ids it was generated as, so that the prompt
cache still fits when it comes back. It is encrypted and authenticated (Fernet) with a key that
never leaves the store, and bound to its owner. Even what opens is checked again: token ids count
only if they are one message of reasoning with exactly that text, so nothing sealed can become
another kind of message.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cryptography.fernet import Fernet, InvalidToken

from gptoss.runtime.harmony.events import MessageEnded
from gptoss.runtime.harmony.messages import Message, analysis
from gptoss.runtime.harmony.parser import parse
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.store.message_json import vocabulary_of


class Seal:
    """Seals and opens the reasoning of one server's clients."""

    def __init__(self, secret: bytes) -> None:
        """``secret`` are 32 random bytes that are the same whenever the server runs."""
        self._fernet = Fernet(base64.urlsafe_b64encode(secret))

    def seal(self, owner: str, message: Message, tokenizer: Tokenizer | None = None) -> str:
        """Return a message of reasoning as text that only this server can read. Without the
        ``tokenizer`` its token ids are left out.
        """
        held: dict[str, Any] = {"owner": owner, "text": message.text}
        if message.tokens is not None and tokenizer is not None:
            held |= {"vocabulary": vocabulary_of(tokenizer), "tokens": list(message.tokens)}
        return self._fernet.encrypt(json.dumps(held).encode()).decode()

    def open(self, owner: str, sealed: str, tokenizer: Tokenizer) -> Message | None:
        """Return the sealed reasoning; None if it is not of this server, or of another owner."""
        try:
            held = json.loads(self._fernet.decrypt(sealed.encode("ascii", "replace")))
        except (InvalidToken, ValueError):
            return None
        if not isinstance(held, dict) or held.get("owner") != owner:
            return None
        text, tokens = str(held.get("text", "")), held.get("tokens")
        if isinstance(tokens, list) and held.get("vocabulary") == vocabulary_of(tokenizer):
            return _checked(text, tokens, tokenizer)
        return analysis(text)


def _checked(text: str, tokens: Sequence[int], tokenizer: Tokenizer) -> Message:
    """Return reasoning with its token ids if they are exactly that, without them otherwise."""
    found = [it.message for it in parse(tokens, tokenizer) if isinstance(it, MessageEnded)]
    plain = analysis(text)
    whole = replace(plain, tokens=tuple(tokens))
    return whole if found == [whole] else plain
