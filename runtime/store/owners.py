"""Whose conversations and responses: owners, and ids that cannot be guessed."""

from __future__ import annotations

import hashlib
import secrets

LOCAL_OWNER = "local"
"""The user of this machine: the terminal, a server without keys, and the server's own key."""


def owner_of_key(key: str) -> str:
    """Return the owner that stands for an API key in the store: a hash, so that the file holds no
    keys.
    """
    return hashlib.sha256(b"gptoss store owner\0" + key.encode()).hexdigest()[:32]


def new_id(prefix: str) -> str:
    """Return a new id with 192 random bits, in OpenAI's style: ``resp_…``, ``msg_…``."""
    return f"{prefix}_{secrets.token_hex(24)}"
