"""Answers in the form of a dataclass: the grammar lets the model write nothing else."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Literal

import gptoss


@dataclasses.dataclass
class Sum:
    """A sum and how sure the model is of it."""

    result: int
    sure: Literal["yes", "no"]


def main(path: str) -> None:
    """Ask for a sum, and get an object."""
    with gptoss.load(path, n_ctx=2048, response_format=Sum, max_tokens=500) as chat:
        reply = chat.ask("What is 17 + 25?")
        if reply.cut is not None:
            raise SystemExit(f"incomplete: {reply.cut}")
        print(Sum(**json.loads(reply.text)))

    with gptoss.load(path, n_ctx=2048, response_format=gptoss.Regex("(yes|no)")) as chat:
        print(chat.ask("Is 17 + 25 more than 40?").text)


if __name__ == "__main__":
    main(sys.argv[1])
