"""A model in this process: two conversations at a time, streamed, one of them cancelled."""

from __future__ import annotations

import sys
import threading

import gptoss


def show(name: str, stream: gptoss.ReplyStream) -> None:
    """Collect a reply's answer and print it with the conversation's name."""
    answer = ""
    for event in stream:
        match event:
            case gptoss.TextDelta(text=text, channel="final"):
                answer += text
            case gptoss.ReplyEnded(cut=cut) if cut is not None:
                answer += f" [{cut}]"
            case _:
                pass
    print(f"{name}: {answer}")


def main(path: str) -> None:
    """Ask two questions at the same time, and stop a third."""
    with gptoss.open(path, n_ctx=2048, parallel=2) as model:
        first, second = model.chat(), model.chat(instructions="Be brief.")
        threads = [
            threading.Thread(target=show, args=("first", first.send("What is 17 + 25?"))),
            threading.Thread(target=show, args=("second", second.send("Hello!"))),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        reply = first.send("And 58 - 23?")
        next(reply)  # it has begun
        reply.cancel()  # from any thread
        show("first", reply)
        print("first, again:", first.ask("What is 58 - 23?").text)


if __name__ == "__main__":
    main(sys.argv[1])
