"""Conversations in an event loop: two replies at once, an async tool, a time limit."""

from __future__ import annotations

import asyncio
import sys

import gptoss


async def get_weather(city: str) -> dict[str, object]:
    """Get the current weather in a city.

    Args:
        city: Name of the city
    """
    await asyncio.sleep(0.1)  # a request, say; the loop goes on meanwhile
    return {"temperature": 21 if city == "Paris" else 12, "sky": "sunny"}


async def answer(chat: gptoss.Chat, text: str) -> str:
    """Stream a reply and return its answer."""
    parts = []
    async for event in chat.asend(text):
        if isinstance(event, gptoss.TextDelta) and event.channel == "final":
            parts.append(event.text)
    return "".join(parts)


async def main(path: str) -> None:
    """Ask two questions at the same time, and give a third little time."""
    model = await asyncio.to_thread(gptoss.open, path, n_ctx=2048, parallel=2)
    with model:
        first, second = model.chat(tools=[get_weather]), model.chat()
        print(
            *await asyncio.gather(
                answer(first, "What is the weather in Paris?"), answer(second, "What is 17 + 25?")
            ),
            sep="\n",
        )
        try:
            async with asyncio.timeout(0.001):
                await answer(second, "Tell me everything.")
        except TimeoutError:
            print("stopped after a millisecond; the chat is free again")
        print(await answer(second, "Hello!"))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
