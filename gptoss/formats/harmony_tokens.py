"""The texts of harmony's control tokens; a vocabulary gives their ids.

Source: https://github.com/openai/harmony, ``o200k_harmony``.
"""

from __future__ import annotations

START, END, MESSAGE, CHANNEL = "<|start|>", "<|end|>", "<|message|>", "<|channel|>"
CONSTRAIN, CALL, RETURN = "<|constrain|>", "<|call|>", "<|return|>"
START_OF_TEXT, END_OF_TEXT = "<|startoftext|>", "<|endoftext|>"
END_OF_PROMPT = "<|endofprompt|>"

OF_TURNS = (START, CHANNEL, CONSTRAIN, MESSAGE, END, RETURN, CALL)
"""The tokens that structure a turn."""

REQUIRED = (*OF_TURNS, END_OF_TEXT)
"""Tokens that a vocabulary must have for a conversation."""

CONTROL = frozenset((*REQUIRED, START_OF_TEXT, END_OF_PROMPT))
"""All control tokens with a meaning; the others are ``<|reserved_N|>``."""

ENDS_OF_REPLY = (RETURN, END_OF_TEXT, CALL)
"""Where generation stops; ``<|end|>`` only ends a message."""

ROLES = {"bos": START_OF_TEXT, "eos": RETURN, "pad": END_OF_TEXT}
"""The BOS, EOS and padding tokens if neither settings nor config name them."""
