"""The texts of harmony's control tokens; their ids are in each vocabulary.

Source: https://github.com/openai/harmony, ``o200k_harmony``.
"""

from __future__ import annotations

START, END, MESSAGE, CHANNEL = "<|start|>", "<|end|>", "<|message|>", "<|channel|>"
CONSTRAIN, CALL, RETURN = "<|constrain|>", "<|call|>", "<|return|>"
START_OF_TEXT, END_OF_TEXT = "<|startoftext|>", "<|endoftext|>"
END_OF_PROMPT = "<|endofprompt|>"

OF_TURNS = (START, CHANNEL, CONSTRAIN, MESSAGE, END, RETURN, CALL)
"""What a turn is made of."""

REQUIRED = (*OF_TURNS, END_OF_TEXT)
"""Tokens without which no conversation can be held."""

CONTROL = frozenset((*REQUIRED, START_OF_TEXT, END_OF_PROMPT))
"""All that have a meaning; the rest is ``<|reserved_N|>``."""

ENDS_OF_REPLY = (RETURN, END_OF_TEXT, CALL)
"""Where generation stops; ``<|end|>`` only ends a message."""

ROLES = {"bos": START_OF_TEXT, "eos": RETURN, "pad": END_OF_TEXT}
"""What begins, ends and pads a text when neither settings nor config say so."""
