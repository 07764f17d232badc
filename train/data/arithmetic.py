"""Sums and differences written out digit by digit: problems of each kind on each side of a fixed split, their thoughts, and the
parser that says which steps of a thought are true. Generator and judge share it. Knows nothing of tokens or models.

The written format, least significant digit first, steps joined by ", ":

    47 + 85    <think> 7+5+0=12, 4+8+1=13 </think> 132
    52 - 17    <think> 12-7-0=5, 5-1-1=3 </think> 35

A step of a sum is digit+digit+carry=total; its carry is 1 where the step before has a total of 10 or more, else 0. A step of
a difference is top-digit-borrow=digit; its top is the digit of the larger number, plus ten where it must borrow, and its borrow
is 1 where the step before has a top of 10 or more. There are as many steps as the longer number has digits; zeros fill the
shorter one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmada_lite.errors import Error, did_you_mean
from mmada_lite.train.data.texts import Half, held_out, on_side
from mmada_lite.train.data.thoughts import with_thought

Sign = Literal["+", "-"]
KINDS: dict[str, tuple[Sign, int]] = {  # sign, digits of both numbers
    "sum1": ("+", 1),
    "difference1": ("-", 1),
    "sum2": ("+", 2),
    "difference2": ("-", 2),
    "sum3": ("+", 3),
    "difference3": ("-", 3),
}
QUESTIONS = ("what is {0}?", "{0}", "{0} =", "how much is {0}?")
_PROBLEM = re.compile(r"(\d+)\s*([+-])\s*(\d+)")
_STEP = re.compile(r"(\d+)([+-])\d+\2\d+=(\d+)")


@dataclass(frozen=True, slots=True)
class Problem:
    """first + second, or first - second with first >= second."""

    first: int
    sign: Sign
    second: int

    def __post_init__(self) -> None:
        if self.sign == "-" and self.first < self.second:
            raise Error(f"{self} is below zero, which the written format does not know; put the larger number first")

    def __str__(self) -> str:
        return f"{self.first} {self.sign} {self.second}"

    @property
    def answer(self) -> int:
        return self.first + self.second if self.sign == "+" else self.first - self.second

    @property
    def columns(self) -> int:
        """Steps of its thought."""
        return len(str(max(self.first, self.second)))

    @property
    def split_text(self) -> str:
        """The text that decides on which side of the split it lies; a + b and b + a have one."""
        return f"{min(self.first, self.second)} + {max(self.first, self.second)}" if self.sign == "+" else str(self)

    @property
    def held_out(self) -> bool:
        """Whether it is kept for evaluation, by CRC-32 of its text."""
        return held_out(self.split_text)


def draw_problem(
    kind: str, held_out: bool, rng: np.random.Generator, shorter: float = 0.0, half: Half | None = None
) -> Problem:
    """A problem of a kind from the wanted side of the split, or from a half of what is held out; with probability `shorter` one
    number has fewer digits. Raises Error for an unknown kind."""
    if kind not in KINDS:
        raise Error(f"no kind of problem is called {kind!r}; {did_you_mean(kind, KINDS, f'use one of {KINDS}')}")
    sign, digits = KINDS[kind]
    while True:
        first, second = (int(n) for n in rng.integers(10 ** (digits - 1) if digits > 1 else 0, 10**digits, size=2))
        if shorter and rng.random() < shorter:
            second = int(rng.integers(10 ** (digits - 1)))
            first, second = (first, second) if rng.random() < 0.5 else (second, first)
        problem = Problem(max(first, second), sign, min(first, second)) if sign == "-" else Problem(first, sign, second)
        if on_side(problem.split_text, held_out, half):
            return problem


def distinct_problems(
    kind: str, held_out: bool, count: int, rng: np.random.Generator, half: Half | None = None
) -> list[Problem]:
    """`count` different problems: an evaluation set. Raises Error where there are not as many."""
    problems: dict[Problem, None] = {}
    for _ in range(20 * count):
        problems[draw_problem(kind, held_out, rng, half=half)] = None
        if len(problems) == count:
            return list(problems)
    raise Error(f"only {len(problems)} different problems of kind {kind!r} were found on this side of the split, not {count}")


def every_held_out(kind: str, half: Half | None = None) -> list[Problem]:
    """Every problem of a kind that is kept for evaluation, or of a half of them."""
    sign, digits = KINDS[kind]
    numbers = range(10 ** (digits - 1) if digits > 1 else 0, 10**digits)
    problems = (Problem(a, sign, b) for a in numbers for b in numbers if sign == "+" or a >= b)
    return [problem for problem in problems if on_side(problem.split_text, True, half)]


def question_of(problem: Problem, rng: np.random.Generator) -> str:
    """The problem in one of several wordings."""
    return QUESTIONS[rng.integers(len(QUESTIONS))].format(problem)


def problem_in(text: str) -> Problem | None:
    """The first sum or difference that a text speaks of."""
    match = _PROBLEM.search(text)
    if match is None:
        return None
    return Problem(int(match[1]), "+" if match[2] == "+" else "-", int(match[3]))


def thought_of(problem: Problem) -> str:
    """The thought, every step of it true."""
    return ", ".join(_steps(problem))


def response_to(problem: Problem) -> str:
    """Thought and answer."""
    return with_thought(thought_of(problem), str(problem.answer))


def true_share(problem: Problem, thought: str) -> float:
    """The share of a thought's steps that are true; missing and superfluous steps count as untrue.

    A step is true when its digits are the problem's, its carry follows from the step before as that is written, and it is
    calculated rightly: one slip costs one step, unless it changes a carry that the next step does not follow.
    """
    written = re.split(r"\s*,\s*", thought.strip())
    true, carry = 0, 0
    for column in range(problem.columns):
        right = _step(problem, column, carry)
        step = written[column] if column < len(written) else ""
        true += step == right
        carry = _carry(step if _STEP.fullmatch(step) else right)
    return true / max(problem.columns, len(written))


def corpus(rng: np.random.Generator, count: int = 2000) -> Iterator[str]:
    """Questions and responses of the training side, for the tokenizer."""
    for kind in KINDS:
        for _ in range(count):
            problem = draw_problem(kind, held_out=False, rng=rng)
            yield question_of(problem, rng)
            yield response_to(problem)


def _steps(problem: Problem) -> Iterator[str]:
    carry = 0
    for column in range(problem.columns):
        step = _step(problem, column, carry)
        carry = _carry(step)
        yield step


def _step(problem: Problem, column: int, carry: int) -> str:
    """The one true step of a column (0 is the least significant), given what is carried or borrowed."""
    first, second = (number // 10**column % 10 for number in (problem.first, problem.second))
    if problem.sign == "+":
        return f"{first}+{second}+{carry}={first + second + carry}"
    top = first + 10 * (first < second + carry)
    return f"{top}-{second}-{carry}={top - second - carry}"


def _carry(step: str) -> int:
    """What a step leaves to the next one: 1 where the total of a sum, or the top of a difference, is 10 or more."""
    match = _STEP.fullmatch(step)
    assert match is not None, "only steps of the written form are read"
    return int(int(match[3] if match[2] == "+" else match[1]) >= 10)
