"""The errors of the store, by cause.

StoreError               the store cannot be opened, read or written
├── CorruptStoreError    the file is damaged, or not a store; it is left as it is
├── StoreFullError       the store has reached its size limit, or the disk is full
├── NotFoundError        no such conversation or response, or it belongs to another owner
└── ConflictError        the conversation was changed by someone else in the meantime
"""

from __future__ import annotations

from gptoss.errors import GptossError


class StoreError(GptossError):
    """The store cannot be opened, read or written."""


class CorruptStoreError(StoreError):
    """The file is damaged, or not a store; it is left as it is."""


class StoreFullError(StoreError):
    """The store has reached its size limit, or the disk is full; nothing was written."""


class NotFoundError(StoreError):
    """No such conversation or response, or it belongs to another owner."""


class ConflictError(StoreError):
    """The conversation was changed by someone else in the meantime; nothing was written."""
