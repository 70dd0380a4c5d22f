"""What is worked out with the built-in ``python``: one line of code, the answer from its output.

Products, quotients, roots, big sums, lists and letters; all of it too hard where python is off.
Held out by the wording with its operands.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from gptoss.runtime.harmony.messages import final, user
from gptoss.runtime.tools.builtin import PYTHON
from tiny.training import phrases as p
from tiny.training.scene import (
    Draw,
    Exchange,
    at_high_effort,
    builtin_call,
    builtin_result,
    reasoned,
)
from tiny.training.talk import invented_name

Task = tuple[str, str, str]
"""What is asked, the code that works it out, and what that prints."""

ERROR_SHARE = 0.06


def _product(rng: Random) -> Task:
    a, b = rng.randrange(2, 100), rng.randrange(2, 100)
    if rng.random() < 0.2:
        a = rng.randrange(200, 10000)
    return _worded(rng, p.TIMES, a, b, f"{a} * {b}", a * b)


def _quotient(rng: Random) -> Task:
    a, b = rng.randrange(2, 100), rng.randrange(2, 100)
    return _worded(rng, p.DIVIDE, a, b, f"round({a} / {b}, 2)", round(a / b, 2))


def _big(rng: Random) -> Task:
    a = rng.randrange(200, 10000)
    b = rng.randrange(200, 10000) if rng.random() < 0.7 else rng.randrange(2, 100)
    if rng.random() < 0.5:
        return _worded(rng, p.ADD_BIG, a, b, f"{a} + {b}", a + b)
    return _worded(rng, p.TAKE_BIG, a, b, f"{a} - {b}", a - b)


def _root(rng: Random) -> Task:
    a = rng.randrange(2, 100)
    return _worded(rng, p.ROOT, a, 0, f"round({a} ** 0.5, 2)", round(a**0.5, 2))


def _percent(rng: Random) -> Task:
    a, b = rng.randrange(2, 100), rng.randrange(10, 1000)
    return _worded(rng, p.PERCENT, a, b, f"{a} * {b} / 100", a * b / 100)


def _worded(rng: Random, wordings: Sequence[str], a: int, b: int, code: str, result: float) -> Task:
    return rng.choice(wordings).format(a=a, b=b), f"print({code})", str(result)


def _list(rng: Random) -> Task:
    numbers = [rng.randrange(1, 100) for _ in range(rng.randrange(3, 6))]
    *most, last = map(str, numbers)
    shown = ", ".join((*most, last)) if rng.random() < 0.6 else f"{', '.join(most)} and {last}"
    return rng.choice(p.ADD_LIST).format(list=shown), f"print(sum({numbers}))", str(sum(numbers))


def _letters(rng: Random) -> Task:
    word = rng.choice(p.WORDS) if rng.random() < 0.6 else invented_name(rng).lower()
    if rng.random() < 0.3:
        asked = rng.choice(p.COUNT_LETTERS).format(word=word)
        return asked, f'print(len("{word}"))', str(len(word))
    letter = rng.choice(word)
    asked = rng.choice(p.COUNT_LETTER).format(letter=letter, word=word)
    return asked, f'print("{word}".count("{letter}"))', str(word.count(letter))


TASKS = {_product: 40, _quotient: 8, _big: 14, _root: 4, _percent: 5, _list: 14, _letters: 15}


def _task(rng: Random) -> Task:
    return rng.choices(tuple(TASKS), tuple(TASKS.values()))[0](rng)


def compute(draw: Draw) -> Exchange:
    """By a cell of ``python`` if it is on; else too hard."""
    task = _task(draw.rng)
    while not draw.split.holds(task[0]):
        task = _task(draw.rng)
    return _worked(draw, task) if PYTHON in draw.scene.builtin else _too_hard(draw, task[0])


def _too_hard(draw: Draw, asked: str) -> Exchange:
    thoughts = ("The user wants a sum that is too hard for me.", "I say honestly that I can't.")
    messages = (user(asked), *reasoned(draw.scene, *thoughts), final(p.TOO_HARD_REPLY))
    return Exchange("too hard", messages, frozenset((p.TOO_HARD_REPLY,)))


def _worked(draw: Draw, task: Task) -> Exchange:
    asked, code, printed = task
    thoughts = ("I work it out with python.", "I send one line of code and read what it prints.")
    answer, seen = f"The result is {printed}.", f"It printed {printed}. I can answer now."
    if draw.rng.random() < ERROR_SHARE:
        printed = draw.rng.choice(p.PYTHON_ERRORS)
        answer, seen = "Sorry, python failed.", "The cell failed, and I say so."
    messages = (
        user(asked),
        *reasoned(draw.scene, *thoughts),
        builtin_call(PYTHON.name, code),
        builtin_result(PYTHON.name, printed),
        *at_high_effort(draw.scene, seen),
        final(answer),
    )
    return Exchange("python", messages, frozenset((answer,)))
