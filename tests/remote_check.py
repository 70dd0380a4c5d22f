"""Compares a llama-server with this process: python tests/remote_check.py URL MODEL.gguf

The server must run the same file. Greedy replies must be equal, token for token of the text.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gptoss
from gptoss import Sampling
from gptoss.runtime.remote.engine import open_remote

QUESTIONS = ("Hello!", "What is 17 + 25?", "What is 58 - 23?", "Who are you?", "Thanks, bye")


def main() -> int:
    """Ask both the same questions, in conversations of several turns."""
    url, gguf = sys.argv[1], Path(sys.argv[2])
    different = total = 0
    with open_remote(url, gguf) as there, gptoss.open(gguf, constrained=False, n_ctx=2048) as here:
        for first in range(len(QUESTIONS)):
            for effort in ("low", "medium", "high"):
                chats = [
                    model.chat(sampling=Sampling(temperature=0), reasoning=effort, max_tokens=200)
                    for model in (there, here)
                ]
                for question in QUESTIONS[first:]:
                    far, near = (chat.ask(question) for chat in chats)
                    total += 1
                    if (far.text, far.reasoning) != (near.text, near.reasoning):
                        different += 1
                        print(f"{question}: {far.text!r} there, {near.text!r} here")
    print(f"{total - different} of {total} greedy replies are equal")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
