"""Weather and time: calls of declared functions, answers from what they say, and no tool at all.

Held out by the city; most cities are invented, so that a name can only be copied. Functions differ
in name, parameter and wording from conversation to conversation, and their results in form.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random

from gptoss.runtime.harmony.messages import (
    Function,
    call,
    final,
    tool_result,
    user,
)
from tiny.training import phrases as p
from tiny.training.scene import Draw, Exchange, Split, at_high_effort, cased, reasoned
from tiny.training.talk import QUESTION, asked_with, invented_name


def city(draw: Draw) -> str:
    """A real city or an invented one."""
    rng = draw.rng

    def make() -> str:
        if rng.random() < 0.4:
            return rng.choice(p.CITIES)
        if rng.random() < 0.15:
            return f"{rng.choice(p.CITY_FIRST_WORDS)} {invented_name(rng)}"
        return invented_name(rng)

    name = make()
    while not _city_allowed(draw.split, name):
        name = make()
    return name


def _city_allowed(split: Split, name: str) -> bool:
    if name in p.ALWAYS_TRAINED_CITIES:
        return split is Split.TRAIN
    return split.holds(name)


def weather_report(rng: Random, place: str) -> tuple[str, str]:
    """What the tool says, and what follows from it: ``21 degrees and sunny``."""
    degrees = str(rng.randrange(-20, 46))
    if rng.random() < 0.15:
        degrees += f".{rng.randrange(10)}"
    sky = rng.choice(p.SKIES)
    number: float = float(degrees) if "." in degrees else int(degrees)
    kind = rng.random()
    if kind < 0.55:
        fields: list[tuple[str, object]] = [
            (rng.choice(p.WEATHER_KEYS), number),
            (rng.choice(p.SKY_KEYS), sky),
        ]
        if rng.random() < 0.3:
            fields.reverse()
        if rng.random() < 0.2:
            fields.append((rng.choice(("wind", "humidity")), rng.randrange(60)))
        if rng.random() < 0.2:
            fields.insert(rng.randrange(3), ("unit", rng.choice(("C", "celsius", "°C"))))
        if rng.random() < 0.25:
            fields.insert(0, (rng.choice(("city", "place", "location")), place))
        return json.dumps(dict(fields), ensure_ascii=False), f"{degrees} degrees and {sky}"
    if kind < 0.85:
        unit = rng.choice((" C", "°C", " °C", " degrees", "C", " degrees Celsius"))
        forms = (f"{sky}, {degrees}{unit}", f"{degrees}{unit}, {sky}", f"{degrees}{unit} and {sky}")
        text = cased(rng, rng.choice(forms), ("", "", "."))
        return text, f"{degrees} degrees and {sky}"
    if kind < 0.93:
        return rng.choice((sky, json.dumps({rng.choice(p.SKY_KEYS): sky}), f'"{sky}"')), sky
    unit = rng.choice(("", " C", "°C", " degrees"))
    bare = (f"{degrees}{unit}", json.dumps({rng.choice(p.WEATHER_KEYS): number}))
    return rng.choice(bare), f"{degrees} degrees"


def clock_report(rng: Random, place: str, today: str) -> tuple[str, str]:
    """What the tool says, and the time in it."""
    hour, minute = rng.randrange(24), rng.randrange(60)
    clock = f"{hour:02d}:{minute:02d}"
    if rng.random() < 0.15:
        clock = f"{hour % 12 or 12}:{minute:02d} {'AM' if hour < 12 else 'PM'}"
    forms = (
        clock,
        f'"{clock}"',
        json.dumps({"time": clock}),
        json.dumps({"time": clock}),
        json.dumps({rng.choice(("local_time", "clock", "now", "current_time")): clock}),
        json.dumps({"time": clock, "timezone": rng.choice(("UTC", "CET", "JST", "EST", "GMT"))}),
        json.dumps({"date": today, "time": clock}),
        json.dumps({"city": place, "time": clock}, ensure_ascii=False),
        f"{today} {clock}",
        f"It is {clock}.",
        f"{clock}:{rng.randrange(60):02d}" if " " not in clock else clock,
    )
    return rng.choice(forms), clock


def _argument(tool: Function) -> str:
    """The name of the tool's one parameter."""
    assert tool.parameters is not None
    return str(next(iter(tool.parameters["properties"])))


def _looked_up(draw: Draw, category: str, tool: Function, asked: str, place: str) -> Exchange:
    """The call, the tool's message and the answer from it."""
    rng, scene = draw.rng, draw.scene
    what = "weather" if tool is scene.weather else "time"
    arguments = json.dumps({_argument(tool): place}, ensure_ascii=False)
    planned = reasoned(
        scene,
        f"The user wants the {what} in {place}.",
        f"The tool {tool.name} fits. I call it and then answer from what it says.",
    )
    if rng.random() < 0.12:
        said = rng.choice(p.TOOL_ERRORS).format(city=place)
        answer = f"Sorry, I could not get the {what} in {place}."
        seen = "The tool failed, and I say so."
    else:
        weathered = what == "weather"
        said, fact = (
            weather_report(rng, place) if weathered else clock_report(rng, place, scene.date)
        )
        answer = f"It is {fact} in {place}."
        seen = f"The tool says {fact}. I can answer now."
    messages = (
        user(asked),
        *planned,
        call(tool.name, arguments),
        tool_result(tool.name, said),
        *at_high_effort(scene, seen),
        final(answer),
    )
    return Exchange(category, messages, frozenset((answer,)))


def weather(draw: Draw) -> Exchange:
    draw.memory.topic = weather_again
    return _about_city(draw, "weather", draw.scene.weather, p.WEATHER)


def weather_again(draw: Draw) -> Exchange:
    return _about_city(draw, "weather", draw.scene.weather, p.AND_IN)


def time(draw: Draw) -> Exchange:
    draw.memory.topic = time_again
    return _about_city(draw, "time", draw.scene.time, p.TIME)


def time_again(draw: Draw) -> Exchange:
    return _about_city(draw, "time", draw.scene.time, p.AND_IN)


def _about_city(draw: Draw, what: str, tool: Function | None, wordings: Sequence[str]) -> Exchange:
    place = city(draw)
    asked = draw.rng.choice(wordings).format(city=place)
    if tool is None:
        return no_tool(draw, what, asked)
    return _looked_up(draw, what, tool, asked, place)


def no_tool(draw: Draw, what: str, asked: str) -> Exchange:
    """Says that it can't look it up."""
    thought = reasoned(
        draw.scene,
        f"The user wants the {what}, and I have no tool for it.",
        "I must not make it up, so I say that I can't.",
    )
    answer = f"Sorry, I can't look up the {what}: I have no tool for it."
    return Exchange("no tool", (user(asked), *thought, final(answer)), frozenset((answer,)))


def weather_somewhere(draw: Draw) -> Exchange:
    return _no_city(draw, "weather", draw.scene.weather, p.WEATHER_NO_CITY)


def time_somewhere(draw: Draw) -> Exchange:
    return _no_city(draw, "time", draw.scene.time, p.TIME_NO_CITY)


def _no_city(draw: Draw, what: str, tool: Function | None, wordings: Sequence[str]) -> Exchange:
    """Asks back; the city alone is then enough."""
    asked = cased(draw.rng, draw.keyed(asked_with(draw, p.ABLE_OPENERS, wordings)), QUESTION)
    if tool is None:
        return no_tool(draw, what, asked)
    draw.memory.topic = lambda later: _about_city(later, what, tool, p.JUST_CITY)
    thought = reasoned(draw.scene, f"The user wants the {what} but names no city.", "I ask for it.")
    answer = f"For which city do you want the {what}?"
    return Exchange("which city", (user(asked), *thought, final(answer)), frozenset((answer,)))


def tool(rng: Random, names: Sequence[str], docs: Sequence[str]) -> Function:
    parameter = rng.choice(p.PARAMS)
    schema: dict[str, object] = {"type": "string"}
    if described := rng.choice(p.PARAM_DOCS):
        schema["description"] = described
    name = names[0] if rng.random() < 0.7 else rng.choice(names)
    doc = rng.choice(docs).format(param=parameter)
    parameters = {"type": "object", "properties": {parameter: schema}, "required": [parameter]}
    return Function(name, doc, parameters)
