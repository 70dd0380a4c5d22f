"""Whose conversations and responses: owners, and ids that cannot be guessed."""

from __future__ import annotations

import secrets

LOCAL_OWNER = "local"
"""The user of this machine: the terminal, a server without keys, and the server's own key."""


def new_id(prefix: str) -> str:
    """Return a new id with 192 random bits, in OpenAI's style: ``resp_…``, ``msg_…``."""
    return f"{prefix}_{secrets.token_hex(24)}"
