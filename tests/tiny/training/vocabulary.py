"""The tiny model's tokenizer: the first ranks of o200k, then all of harmony's control tokens.

The pieces come from gpt-oss's own ``tokenizer.json``; kept are the first ``ranks`` of them with the
merges that make them, and the control tokens, in their order, on the ids that follow.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gguf.constants import TokenType

from gptoss.runtime.harmony.tokenizer import Tokenizer


def cut_down(source: Path, ranks: int) -> dict[str, Any]:
    """The contents of a ``tokenizer.json`` with the first ``ranks`` pieces of ``source``'s."""
    data: dict[str, Any] = json.loads(source.read_text("utf-8"))
    model = data["model"]
    pieces = {piece: rank for piece, rank in model["vocab"].items() if rank < ranks}
    model["vocab"] = pieces
    model["merges"] = [
        [left, right]
        for left, right in model["merges"]
        if left in pieces and right in pieces and left + right in pieces
    ]
    for number, token in enumerate(sorted(data["added_tokens"], key=lambda t: int(t["id"]))):
        token["id"] = ranks + number
        if token["content"].startswith("<|reserved_"):
            token["content"] = f"<|reserved_{ranks + number}|>"
    return data


def control_tokens(tokenizer_json: dict[str, Any]) -> dict[str, int]:
    """Text to id of the control tokens."""
    return {token["content"]: int(token["id"]) for token in tokenizer_json["added_tokens"]}


def tokenizer(tokenizer_json: dict[str, Any]) -> Tokenizer:
    """The runtime's tokenizer over the same vocabulary."""
    control = control_tokens(tokenizer_json)
    by_id = {rank: piece for piece, rank in tokenizer_json["model"]["vocab"].items()}
    by_id |= {i: text for text, i in control.items()}
    tokens = [by_id[i] for i in range(len(by_id))]
    kinds = [TokenType.CONTROL if token in control else TokenType.NORMAL for token in tokens]
    return Tokenizer.from_vocabulary(tokens, [int(kind) for kind in kinds])
