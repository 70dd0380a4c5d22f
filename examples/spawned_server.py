"""The server as a child process: a crash there is an error here, and it is started again."""

from __future__ import annotations

import sys

import gptoss


def main(path: str) -> None:
    """Ask a question over HTTP, with nothing but the standard library."""
    with gptoss.spawn(path, n_ctx=2048, progress=lambda share: print(f"{share:.0%}")) as server:
        print(f"{server.model} at {server.base_url}, {server.n_ctx} tokens")
        messages = [{"role": "user", "content": "What is 17 + 25?"}]
        try:
            with server.stream(messages, reasoning_effort="low") as stream:
                for delta in stream:
                    print(delta.content, end="", flush=True)
        except gptoss.EngineError as error:
            print("the reply was lost:", error)
            server.wait_ready()  # the child is started again
        print()
        # server.openai() and server.anthropic() return the official clients, where installed.


if __name__ == "__main__":
    main(sys.argv[1])
