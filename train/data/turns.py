"""Second turns: a first turn of any kind, and a question after it that stands by itself or refers to what was said. Knows the
sentences and the splits; knows nothing of tokens, pixels or models.

    what is 47 + 85?  132     and minus 3?         <think> 12-3-0=9, 12-0-1=... </think> 129
    what is this?  a banana   what colour is it?   yellow
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mmada_lite.train.data.arithmetic import KINDS, Problem, draw_problem, question_of, response_to
from mmada_lite.train.data.texts import COLOUR_OF, FACTS, Half, fact_wordings, on_side

MOST = 999  # of which something is taken, or to which something is added: three columns are what is practised
AND_SIGNS = {"+": ("and plus {0}?", "plus {0}?", "and + {0}?"), "-": ("and minus {0}?", "minus {0}?", "and - {0}?")}
COLOUR_OF_IT = ("what colour is it?", "and what colour is it?", "which colour does it have?")
OF_IT: dict[str, tuple[tuple[str, str], ...]] = {
    "cat": (("what does it say?", "meow"), ("how many legs does it have?", "four")),
    "dog": (("what does it say?", "woof"), ("how many legs does it have?", "four")),
    "frog": (("what does it say?", "ribbit"),),
    "fish": (("where does it live?", "in water"),),
    "cactus": (("where does it grow?", "in the desert"),),
}


class Turn(NamedTuple):
    """What is asked, and the whole response, with its thought where it has one."""

    question: str
    response: str


def and_problem(first: Problem, held_out: bool, rng: np.random.Generator, half: Half | None = None) -> Turn | None:
    """A second turn that goes on from a result: "and minus 3?" None where no problem of the wanted side begins with it."""
    result = first.answer
    for _ in range(40):
        sign = "-" if rng.random() < 0.5 else "+"
        other = int(rng.integers(1, 10 ** int(rng.integers(1, 3))))
        if result > MOST or (sign == "-" and other > result):
            continue
        problem = Problem(result, "-" if sign == "-" else "+", other)
        if on_side(problem.split_text, held_out, half):
            asked = AND_SIGNS[sign]
            return Turn(asked[rng.integers(len(asked))].format(other), response_to(problem))
    return None


def and_thing(name: str, rng: np.random.Generator) -> Turn | None:
    """A second turn about the thing that was named; None for one of which nothing is known."""
    known = [*OF_IT.get(name, ())]
    if name in COLOUR_OF:
        known += [(COLOUR_OF_IT[rng.integers(len(COLOUR_OF_IT))], COLOUR_OF[name])]
    return Turn(*known[rng.integers(len(known))]) if known else None


def draw_and_problem(
    held_out: bool, alike: np.random.Generator, rng: np.random.Generator, half: Half | None = None
) -> tuple[Turn, Turn]:
    """A sum or a difference and a second turn that goes on from its result; the second is of the wanted side. `alike` draws the
    kind and the wording of the first, `rng` the rest."""
    kind = str(alike.choice([kind for kind in KINDS if kind != "sum3"]))
    wording = int(alike.integers(2**32))
    while True:
        problem = draw_problem(kind, held_out, rng, half=half)
        second = and_problem(problem, held_out, rng, half)
        if second:
            return Turn(question_of(problem, np.random.default_rng(wording)), response_to(problem)), second


def text_turn(problem_kinds: dict[str, float], rng: np.random.Generator) -> Turn:
    """A turn without a picture, of the training side: a fact in any of its wordings, or a problem."""
    if rng.random() < 0.35:
        return Turn(*said(rng))
    kind = str(rng.choice(list(problem_kinds), p=list(problem_kinds.values())))
    problem = draw_problem(kind, False, rng)
    return Turn(question_of(problem, rng), response_to(problem))


_TRAINED = fact_wordings(held_out=False)


def said(rng: np.random.Generator) -> tuple[str, str]:
    """(question, answer) of a fact: half of them in the wordings of `FACTS`, half in others."""
    if rng.random() < 0.5:
        answer, questions = FACTS[rng.integers(len(FACTS))]
        return questions[rng.integers(len(questions))], answer
    return _TRAINED[rng.integers(len(_TRAINED))]
