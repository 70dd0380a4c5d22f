"""Compares a llama-server with this process: python tests/remote_check.py URL MODEL.gguf

The server must run the same file. Greedy replies must be equal. Here any server can be named;
``tests/oracle/test_llama_server.py`` compares with one that it starts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import gptoss
from gptoss import Sampling
from gptoss.runtime.remote.engine import open_remote

QUESTIONS = ("Hello!", "What is 17 + 25?", "What is 58 - 23?", "Who are you?", "Thanks, bye")


def compared(url: str, gguf: Path) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    """Answers and reasoning there and here, in conversations of one to five turns, of each effort:
    45 replies.
    """
    with open_remote(url, gguf) as there, gptoss.open(gguf, constrained=False, n_ctx=2048) as here:
        for first in range(len(QUESTIONS)):
            for effort in ("low", "medium", "high"):
                chats = [
                    model.chat(sampling=Sampling(temperature=0), reasoning=effort, max_tokens=200)
                    for model in (there, here)
                ]
                for question in QUESTIONS[first:]:
                    far, near = (chat.ask(question) for chat in chats)
                    yield (far.text, far.reasoning), (near.text, near.reasoning)


def main() -> int:
    """Print the replies that differ; the exit code is 1 if any does."""
    replies = list(compared(sys.argv[1], Path(sys.argv[2])))
    different = [(there, here) for there, here in replies if there != here]
    for there, here in different:
        print(f"there: {there!r}\nhere:  {here!r}")
    print(f"{len(replies) - len(different)} of {len(replies)} greedy replies are equal")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
