"""The store's form of messages: JSON text, and which vocabulary their token ids are of."""

from __future__ import annotations

import hashlib
import json
from weakref import WeakKeyDictionary

from gptoss.runtime.harmony.errors import ConversationError
from gptoss.runtime.harmony.message_json import messages_from_json as read_messages
from gptoss.runtime.harmony.message_json import messages_to_json
from gptoss.runtime.harmony.messages import Message
from gptoss.runtime.harmony.tokenizer import Tokenizer
from gptoss.runtime.store.errors import CorruptStoreError

__all__ = ["messages_from_json", "messages_to_json", "vocabulary_of"]

_vocabularies: WeakKeyDictionary[Tokenizer, str] = WeakKeyDictionary()


def vocabulary_of(tokenizer: Tokenizer) -> str:
    """Return a hash of a tokenizer's vocabulary. Token ids mean nothing in another one."""
    found = _vocabularies.get(tokenizer)
    if found is None:
        digest = hashlib.sha256()
        for i in range(tokenizer.n_vocab):
            digest.update(tokenizer.token_bytes(i) + b"\0")
        digest.update(json.dumps(sorted(tokenizer.control.items())).encode())
        found = _vocabularies[tokenizer] = digest.hexdigest()[:16]
    return found


def messages_from_json(text: str, *, with_tokens: bool) -> tuple[Message, ...]:
    """Read messages from the store's JSON text, their token ids only if they are of the vocabulary
    in use; raises CorruptStoreError: the file may have been edited by another program.
    """
    try:
        return read_messages(text, with_tokens=with_tokens)
    except ConversationError as error:
        raise CorruptStoreError("a stored message cannot be read") from error
