"""Talk: greetings and thanks, names and dates, and what the tiny model can't do.

An exchange of small talk is held out by its wording; its answers are a few fixed sentences, any of
which is right. Names and dates are copied from the conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from gptoss.runtime.harmony.messages import final, user
from tiny.training import phrases as p
from tiny.training.scene import Draw, Exchange, cased, reasoned

QUESTION = ("?", "?", "?", "", "??", ", please?")
STATEMENT = ("!", ".", "", "!", ".", "!!")


def small_talk(
    draw: Draw,
    category: str,
    make: Callable[[], str],
    replies: Sequence[str],
    thoughts: tuple[str, str],
    marks: Sequence[str],
) -> Exchange:
    """An exchange whose key is its wording."""
    rng = draw.rng
    asked = cased(rng, draw.keyed(make), marks)
    messages = (user(asked), *reasoned(draw.scene, *thoughts), final(rng.choice(replies)))
    return Exchange(category, messages, frozenset(replies))


def greet(draw: Draw) -> Exchange:
    rng = draw.rng

    def make() -> str:
        return rng.choice(p.GREETING_OPENERS) + rng.choice(p.GREETING_TAILS)

    thoughts = ("The user greets me.", "There is nothing to work out. I greet back and offer help.")
    return small_talk(draw, "greeting", make, p.GREETING_REPLIES, thoughts, STATEMENT)


def asked_with(draw: Draw, openers: Sequence[str], questions: Sequence[str]) -> Callable[[], str]:
    return lambda: draw.rng.choice(openers) + draw.rng.choice(questions)


def how(draw: Draw) -> Exchange:
    thoughts = ("The user asks how I am.", "There is nothing to work out. I answer kindly.")
    make = asked_with(draw, p.HOW_OPENERS, p.HOW_QUESTIONS)
    return small_talk(draw, "how are you", make, p.HOW_REPLIES, thoughts, QUESTION)


def who(draw: Draw) -> Exchange:
    thoughts = ("The user asks who I am.", "I am a tiny model, and I say just that.")
    make = asked_with(draw, p.NAME_OPENERS, p.NAME_QUESTIONS)
    return small_talk(draw, "who are you", make, p.NAME_REPLIES, thoughts, QUESTION)


def able(draw: Draw) -> Exchange:
    """What it can do depends on the declared tools."""
    scene = draw.scene
    abilities = {
        (False, False): "I can chat a little and work out small sums.",
        (True, False): "I can chat a little, work out small sums and look up the weather.",
        (False, True): "I can chat a little, work out small sums and look up the time.",
        (True, True): "I can chat a little, work out small sums and look up the weather "
        "and the time.",
    }
    reply = abilities[scene.weather is not None, scene.time is not None]
    thoughts = ("The user asks what I can do.", "I look at the tools that I have and say it.")
    make = asked_with(draw, p.ABLE_OPENERS, p.ABLE_QUESTIONS)
    return small_talk(draw, "what can you do", make, (reply,), thoughts, QUESTION)


def thank(draw: Draw) -> Exchange:
    thoughts = ("The user thanks me.", "There is nothing to work out. I answer kindly.")
    make = asked_with(draw, p.THANKS_OPENERS, p.THANKS)
    return small_talk(draw, "thanks", make, p.THANKS_REPLIES, thoughts, STATEMENT)


def leave(draw: Draw) -> Exchange:
    thoughts = ("The user says goodbye.", "There is nothing to work out. I say goodbye too.")
    make = asked_with(draw, p.BYE_OPENERS, p.BYES)
    return small_talk(draw, "goodbye", make, p.BYE_REPLIES, thoughts, STATEMENT)


def introduce(draw: Draw) -> Exchange:
    rng = draw.rng
    name = draw.keyed(lambda: rng.choice(p.NAMES) if rng.random() < 0.5 else invented_name(rng))
    draw.memory.name = name
    asked = cased(rng, rng.choice(p.MY_NAME_IS).format(name=name), STATEMENT)
    thought = reasoned(draw.scene, f"The user is called {name}.", "I greet them by that name.")
    answer = f"Nice to meet you, {name}!"
    return Exchange("introduction", (user(asked), *thought, final(answer)), frozenset((answer,)))


def recall(draw: Draw) -> Exchange:
    rng, name = draw.rng, draw.memory.name
    asked = cased(rng, draw.keyed(asked_with(draw, p.ABLE_OPENERS, p.WHAT_IS_MY_NAME)), QUESTION)
    if name is None:
        thought = reasoned(draw.scene, "The user has not said their name.", "I can't know it.")
        answer = "You have not told me your name."
    else:
        thought = reasoned(draw.scene, f"The user said {name}.", "I remember it and say it.")
        answer = f"Your name is {name}."
    return Exchange("recall", (user(asked), *thought, final(answer)), frozenset((answer,)))


def date(draw: Draw) -> Exchange:
    rng, today = draw.rng, draw.scene.date
    questions: Sequence[str] = p.DATE_QUESTIONS
    answer = f"Today is {today}."
    if rng.random() < 0.25:
        questions = p.YEAR_QUESTIONS
        answer = f"It is {today[:4]}."
    asked = draw.keyed(asked_with(draw, p.ABLE_OPENERS, questions))
    thought = reasoned(draw.scene, "The date is given to me.", f"It says {today}.")
    messages = (user(cased(rng, asked, QUESTION)), *thought, final(answer))
    return Exchange("date", messages, frozenset((answer,)))


def invented_name(rng: Random) -> str:
    """A name no one has seen: syllables that can only be copied."""
    word = rng.choice(p.CITY_STARTS) + rng.choice(p.CITY_VOWELS)
    for _ in range(rng.choice((0, 1, 1, 1))):
        word += rng.choice(p.CITY_MIDDLES) + rng.choice(p.CITY_VOWELS)
    return word + rng.choice(p.CITY_MIDDLES) + rng.choice(p.CITY_ENDS)


def beyond(draw: Draw) -> Exchange:
    rng = draw.rng

    def make() -> str:
        return rng.choice(p.CANT).format(topic=rng.choice(p.TOPICS))

    thoughts = ("The user wants something I was not made for.", "I say honestly that I can't.")
    return small_talk(draw, "beyond it", make, p.CANT_REPLIES, thoughts, ("",))


def too_hard(draw: Draw) -> Exchange:
    rng = draw.rng

    def make() -> str:
        big, big2 = rng.randrange(200, 10000), rng.randrange(200, 10000)
        a, b = rng.randrange(2, 100), rng.randrange(2, 100)
        return rng.choice(p.TOO_HARD).format(a=a, b=b, big=big, big2=big2)

    thoughts = ("The user wants a sum that is too hard for me.", "I say honestly that I can't.")
    return small_talk(draw, "too hard", make, (p.TOO_HARD_REPLY,), thoughts, ("",))
