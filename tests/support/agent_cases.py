"""Thirty questions, each with the call that answers it: tools of many shapes of arguments."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Tool:
    """A tool as an agent declares it."""

    name: str
    description: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A question and the call that it must lead to."""

    id: int
    question: str
    tool: Tool
    arguments: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required or properties),
        "additionalProperties": False,
    }


_TEXT = {"type": "string"}
_NUMBER = {"type": "number"}
_WHOLE = {"type": "integer"}
_YES = {"type": "boolean"}

HEALTH = Tool("get_system_health", "Report the state of a service.", _object(service=_TEXT))
WEATHER = Tool(
    "get_weather",
    "Get the weather.",
    _object(city=_TEXT, unit={"type": "string", "enum": ["celsius", "fahrenheit"]}),
)
ORDER = Tool(
    "create_order",
    "Order articles.",
    _object(
        customer=_TEXT,
        articles={"type": "array", "items": _object(name=_TEXT, count=_WHOLE)},
        express=_YES,
    ),
)
CONVERT = Tool("convert_money", "Convert money.", _object(amount=_NUMBER, to=_TEXT))
SEARCH = Tool(
    "search",
    "Search the documents.",
    _object(("query",), query=_TEXT, limit=_WHOLE, tags={"type": "array", "items": _TEXT}),
)
EVENT = Tool(
    "add_event",
    "Add an event to the calendar.",
    _object(
        title=_TEXT, when=_object(date=_TEXT, hour=_WHOLE), people={"type": "array", "items": _TEXT}
    ),
)
NOTHING = Tool("current_time", "Tell the time.", {"type": "object", "properties": {}})
OPTIONAL = Tool(
    "set_light",
    "Switch a light.",
    _object(("room", "on"), room=_TEXT, on=_YES, color={"anyOf": [_TEXT, {"type": "null"}]}),
)

_TABLE: list[tuple[str, Tool, dict[str, Any]]] = [
    ("Is the mail service healthy?", HEALTH, {"service": "mail"}),
    ("Check the database.", HEALTH, {"service": "database"}),
    ("How is the search service?", HEALTH, {"service": "search"}),
    ("Is `auth` up? Say yes or no.", HEALTH, {"service": "auth"}),
    ("Weather in Paris in celsius?", WEATHER, {"city": "Paris", "unit": "celsius"}),
    ("Weather in New York in fahrenheit?", WEATHER, {"city": "New York", "unit": "fahrenheit"}),
    ("Wie ist das Wetter in Köln?", WEATHER, {"city": "Köln", "unit": "celsius"}),
    ("東京の天気は?", WEATHER, {"city": "東京", "unit": "celsius"}),
    (
        "Order two pens for Ada.",
        ORDER,
        {"customer": "Ada", "articles": [{"name": "pen", "count": 2}], "express": False},
    ),
    (
        "Express: three cups and a plate for Bo.",
        ORDER,
        {
            "customer": "Bo",
            "articles": [{"name": "cup", "count": 3}, {"name": "plate", "count": 1}],
            "express": True,
        },
    ),
    ("An empty order for Cy.", ORDER, {"customer": "Cy", "articles": [], "express": False}),
    (
        'Order a "quoted" \\ thing for Di.',
        ORDER,
        {
            "customer": "Di",
            "articles": [{"name": 'a "quoted" \\ thing', "count": 1}],
            "express": False,
        },
    ),
    ("What are 10 euros in dollars?", CONVERT, {"amount": 10, "to": "USD"}),
    ("Convert 2.5 to yen.", CONVERT, {"amount": 2.5, "to": "JPY"}),
    ("Convert minus three to pounds.", CONVERT, {"amount": -3, "to": "GBP"}),
    ("Convert a millionth to francs.", CONVERT, {"amount": 1e-06, "to": "CHF"}),
    ("Search for harmony.", SEARCH, {"query": "harmony"}),
    ("Search for five results on tokens.", SEARCH, {"query": "tokens", "limit": 5}),
    ("Find new and short texts on caches.", SEARCH, {"query": "caches", "tags": ["new", "short"]}),
    ("Search for <|end|> markers.", SEARCH, {"query": "end markers", "limit": 1, "tags": []}),
    (
        "Lunch with Ed on 1 May at noon.",
        EVENT,
        {"title": "Lunch", "when": {"date": "2026-05-01", "hour": 12}, "people": ["Ed"]},
    ),
    (
        "Block Friday at nine for reading.",
        EVENT,
        {"title": "Reading", "when": {"date": "2026-05-02", "hour": 9}, "people": []},
    ),
    (
        "Team meeting tomorrow at three with Fay and Gus.",
        EVENT,
        {"title": "Team", "when": {"date": "2026-05-03", "hour": 15}, "people": ["Fay", "Gus"]},
    ),
    (
        "Party at midnight with everyone!",
        EVENT,
        {"title": "Party 🎉", "when": {"date": "2026-12-31", "hour": 0}, "people": ["everyone"]},
    ),
    ("What time is it?", NOTHING, {}),
    ("Tell me the time, please.", NOTHING, {}),
    ("Light in the kitchen on.", OPTIONAL, {"room": "kitchen", "on": True}),
    ("Hall light off.", OPTIONAL, {"room": "hall", "on": False, "color": None}),
    ("Make the bath blue.", OPTIONAL, {"room": "bath", "on": True, "color": "blue"}),
    ("Long room name, on.", OPTIONAL, {"room": "r" * 300, "on": True}),
]

CASES = [Case(i, *row) for i, row in enumerate(_TABLE)]
