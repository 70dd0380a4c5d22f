"""Arithmetic as the tiny model is taught to do it: digit by digit, longer at higher effort.

Low effort is the bare digits, medium says what each step is, high works the result backwards too.
Numbers have at most two digits, since the vocabulary has few longer numbers and a model this small
adds digits, not numbers. Sums are held out by their operands.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from gptoss.runtime.harmony.messages import Effort, analysis, final, user
from tiny.training import phrases as p
from tiny.training.scene import Draw, Exchange


@dataclass(frozen=True, slots=True)
class Sum:
    """``a sign b = result``."""

    a: int
    sign: str
    b: int

    @property
    def result(self) -> int:
        return self.a + self.b if self.sign == "+" else self.a - self.b

    @property
    def key(self) -> str:
        """Equal for sums that give each other away: 17 + 25, 25 + 17, 42 - 17, 17 - 42."""
        a, b = self.a, self.b
        if self.sign == "-":
            a, b = min(a, b), abs(a - b)
        return f"{min(a, b)} {max(a, b)}"

    def __str__(self) -> str:
        return f"{self.a} {self.sign} {self.b}"


def working(task: Sum, effort: Effort) -> str:
    """The reasoning that leads to ``task.result``."""
    if task.sign == "+":
        return _add(task.a, task.b, effort)
    return _subtract(task.a, task.b, effort)


def _add(a: int, b: int, effort: Effort) -> str:
    ones = a % 10 + b % 10
    carry = ones // 10
    tens = a // 10 + b // 10 + carry
    first = f"{a % 10} + {b % 10} = {ones}"
    second = f"{a // 10} + {b // 10} + {carry} = {tens}"
    if effort is Effort.LOW:
        return f"{first}, {second}: {a + b}"
    text = (
        f"Add {a} and {b}. Ones: {first}, write {ones % 10}, carry {carry}. "
        f"Tens: {second}. The sum is {a + b}."
    )
    if effort is Effort.HIGH:
        text += f" Check it backwards: {_borrow(a + b, b)} That is {a} again, so {a + b} is right."
    return text


def _borrow(a: int, b: int) -> str:
    """``a - b`` for ``a >= b``, said step by step."""
    borrow = int(a % 10 < b % 10)
    ones = a % 10 + 10 * borrow
    return (
        f"Ones: {ones} - {b % 10} = {ones - b % 10}, borrow {borrow}. "
        f"Tens: {a // 10} - {b // 10} - {borrow} = {a // 10 - b // 10 - borrow}."
    )


def _subtract(a: int, b: int, effort: Effort) -> str:
    high, low = max(a, b), min(a, b)
    borrow = int(high % 10 < low % 10)
    ones = high % 10 + 10 * borrow - low % 10
    difference = high - low
    if effort is Effort.LOW:
        text = "" if a >= b else f"{b} is more than {a}, so below zero. "
        return (
            f"{text}{high % 10 + 10 * borrow} - {low % 10} = {ones}, "
            f"{high // 10} - {low // 10} - {borrow} = {difference // 10}: {a - b}"
        )
    text = f"Subtract {b} from {a}. "
    if a < b:
        text += f"{b} is more than {a}, so the result is below zero: work out {b} - {a}. "
    text += f"{_borrow(high, low)} The difference is {difference}"
    text += "." if a >= b else f", so the result is {a - b}."
    if effort is Effort.HIGH:
        check = low % 10 + difference % 10
        tens = low // 10 + difference // 10 + check // 10
        text += (
            f" Check it backwards: Ones: {low % 10} + {difference % 10} = {check}, "
            f"write {check % 10}, carry {check // 10}. "
            f"Tens: {low // 10} + {difference // 10} + {check // 10} = {tens}. "
            f"That is {high} again, so {a - b} is right."
        )
    return text


def _operands(rng: Random, sign: str) -> Sum:
    def number() -> int:
        return rng.randrange(10, 100) if rng.random() < 0.8 else rng.randrange(0, 10)

    a, b = number(), number()
    if sign == "-" and a < b and rng.random() < 0.7:
        a, b = b, a
    return Sum(a, sign, b)


def add_up(draw: Draw) -> Exchange:
    rng = draw.rng
    sign = rng.choice("+-")
    task = _operands(rng, sign)
    while not draw.split.holds(task.key):
        task = _operands(rng, sign)
    a, b = task.a, task.b
    wording: str
    if sign == "+":
        wording = rng.choice(p.ADD if rng.random() < 0.85 else p.ADD_STORIES)
    else:
        wording = rng.choice(p.SUB if a < b or rng.random() < 0.85 else p.SUB_STORIES)
    return _worked(draw, task, wording.format(a=a, b=b, things=rng.choice(p.THINGS)))


def go_on(draw: Draw) -> Exchange:
    """Add to or take from the last result, which stands only in the history."""
    rng, total = draw.rng, draw.memory.total
    if total is None or not 10 <= total <= 99:
        return add_up(draw)
    sign = rng.choice("+-")
    tasks = [Sum(total, sign, b) for b in range(1, 100 if sign == "+" else total + 1)]
    tasks = [task for task in tasks if draw.split.holds(task.key)]
    if not tasks:
        return add_up(draw)
    task = rng.choice(tasks)
    wording = rng.choice(p.ADD_ON if sign == "+" else p.TAKE_OFF)
    return _worked(draw, task, wording.format(b=task.b))


def _worked(draw: Draw, task: Sum, asked: str) -> Exchange:
    draw.memory.total = task.result
    draw.memory.topic = go_on
    answer = f"{task} = {task.result}."
    messages = (user(asked), analysis(working(task, draw.scene.effort)), final(answer))
    category = {"+": "addition", "-": "subtraction"}[task.sign]
    return Exchange(category, messages, frozenset((answer,)))
