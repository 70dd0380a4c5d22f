"""Wording shared by messages and reports."""

from __future__ import annotations


def plural(n: int, noun: str) -> str:
    """A count with its noun: ``1 tensor``, ``2,048 tensors``, ``3 batches``."""
    return f"{n:,} {noun}{'' if n == 1 else 'es' if noun.endswith('ch') else 's'}"
