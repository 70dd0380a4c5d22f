"""Python functions that the model calls: declared by signature and docstring, or by a schema."""

from __future__ import annotations

import sys

import gptoss


def get_weather(city: str) -> dict[str, object]:
    """Get the current weather in a city.

    Args:
        city: Name of the city
    """
    return {"temperature": 21 if city == "Paris" else 12, "sky": "sunny"}


def main(path: str) -> None:
    """Ask for the weather, and show what was called."""
    with gptoss.load(path, n_ctx=2048, tools=[get_weather], reasoning="low") as chat:
        for event in chat.send("What is the weather in Paris?"):
            match event:
                case gptoss.ToolStarted(name=name, arguments=arguments):
                    print(f"calling {name}({arguments})")
                case gptoss.ToolFinished(result=result, error=error):
                    print("failed:" if error else "result:", result)
                case gptoss.TextDelta(text=text, channel="final"):
                    print(text, end="", flush=True)
                case _:
                    pass
        print()

    # The same with a schema, as MCP servers and OpenAI's API have them; it must be called.
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 30}},
        "required": ["city"],
    }
    weather = gptoss.Tool.from_schema(get_weather, schema, name="weather")
    with gptoss.load(path, n_ctx=2048, tools=[weather], tool_choice="weather") as chat:
        reply = chat.ask("What is the weather in Paris?")
        print([(call.name, call.arguments) for call in reply.calls], reply.text)


if __name__ == "__main__":
    main(sys.argv[1])
