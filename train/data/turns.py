"""Conversations of two turns: a first turn of any kind, and a question after it that stands by itself or refers to what was
said. Knows the sentences and the splits; knows nothing of tokens, pixels or models.

    what is 47 + 85?  132     and minus 3?         <think> 12-3-0=9, 3-0-1=2, 1-0-0=1 </think> 129
    what is this?  a banana   what colour is it?   yellow
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from mmada_lite.train.data.arithmetic import KINDS, Problem, Sign, draw_problem, question_of, response_to
from mmada_lite.train.data.concepts import Concept
from mmada_lite.train.data.layouts import Layout
from mmada_lite.train.data.scenes import KINDS as QUESTIONS
from mmada_lite.train.data.scenes import scene_question
from mmada_lite.train.data.texts import COLOUR_OF, Half, fact, on_side, picture_question

TURNS: dict[str, float] = {"and_problem": 0.2, "and_thing": 0.05, "text": 0.15, "single": 0.15, "scene": 0.45}  # shares
ELSEWHERE = 0.5  # share of the conversations about a picture in which one turn is about something else
FACT = 0.35  # share of the turns without a picture that are facts; the others are problems
MOST = 999  # of which something is taken, or to which something is added: three columns are what is practised
TRIES = 40  # to go on from a result, before another first problem is drawn
AND_SIGNS: dict[Sign, tuple[str, ...]] = {
    "+": ("and plus {0}?", "plus {0}?", "and + {0}?"),
    "-": ("and minus {0}?", "minus {0}?", "and - {0}?"),
}
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


class Draws(NamedTuple):
    """Generators of a conversation: `first` begins alike for all of a group, so that their lengths are soon the same; `rest`
    draws on."""

    first: np.random.Generator
    rest: np.random.Generator


def two_problems(held_out: bool, draws: Draws, half: Half | None = None) -> tuple[Turn, Turn]:
    """A sum or a difference, and a second that goes on from its result; both are of the wanted side of the split. The kind and
    the wording of the first are drawn alike."""
    kind = str(draws.first.choice([kind for kind in KINDS if kind != "sum3"]))
    wording = int(draws.first.integers(2**32))
    while True:
        problem = draw_problem(kind, held_out, draws.rest, half=half)
        if second := and_problem(problem, held_out, draws.rest, half):
            return Turn(question_of(problem, np.random.default_rng(wording)), response_to(problem)), second


def and_problem(first: Problem, held_out: bool, rng: np.random.Generator, half: Half | None = None) -> Turn | None:
    """A second turn that goes on from a result: "and minus 3?" None where no problem of the wanted side was found that begins
    with it."""
    result = first.answer
    for _ in range(TRIES):
        sign: Sign = "-" if rng.random() < 0.5 else "+"
        other = int(rng.integers(1, 10 ** int(rng.integers(1, 3))))
        if result > MOST or (sign == "-" and other > result):
            continue
        problem = Problem(result, sign, other)
        if on_side(problem.split_text, held_out, half):
            asked = AND_SIGNS[sign]
            return Turn(asked[rng.integers(len(asked))].format(other), response_to(problem))
    return None


def and_thing(name: str, rng: np.random.Generator) -> Turn | None:
    """A second turn about the thing of the picture; None for one of which nothing is known."""
    known = [*OF_IT.get(name, ())]
    if name in COLOUR_OF:
        known += [(COLOUR_OF_IT[rng.integers(len(COLOUR_OF_IT))], COLOUR_OF[name])]
    return Turn(*known[rng.integers(len(known))]) if known else None


def two_about_one(kind: str, concept: Concept, colour: str, problems: Mapping[str, float], draws: Draws) -> tuple[Turn, Turn]:
    """Two questions about a picture of one thing. Of the kind "and_thing" the second asks what is known of the thing; of
    others, one of the two may be a turn without a picture (`text_turn`)."""
    first, second = (Turn(*picture_question(concept, colour, rng)) for rng in draws)
    if kind == "and_thing":
        return first, and_thing(concept.name, draws.rest) or second
    return _one_elsewhere(first, second, problems, draws)


def two_about_several(layout: Layout, colour: str, problems: Mapping[str, float], draws: Draws) -> tuple[Turn, Turn]:
    """Two questions about a picture of several things, or one of them and a turn without a picture."""
    first, second = (_scene_turn(layout, colour, rng) for rng in draws)
    return _one_elsewhere(first, second, problems, draws)


def _one_elsewhere(first: Turn, second: Turn, problems: Mapping[str, float], draws: Draws) -> tuple[Turn, Turn]:
    other = draws.first.random()
    if other < ELSEWHERE / 2:
        return text_turn(problems, draws.first), second
    return (first, text_turn(problems, draws.rest)) if other < ELSEWHERE else (first, second)


def two_without_picture(problems: Mapping[str, float], draws: Draws) -> tuple[Turn, Turn]:
    """Two turns that have nothing to do with each other."""
    return text_turn(problems, draws.first), text_turn(problems, draws.rest)


def text_turn(problems: Mapping[str, float], rng: np.random.Generator) -> Turn:
    """A turn without a picture, of the training side: a fact in any of its wordings, or a problem of one of the kinds."""
    if rng.random() < FACT:
        return Turn(*fact(rng))
    kind = str(rng.choice(list(problems), p=list(problems.values())))
    problem = draw_problem(kind, False, rng)
    return Turn(question_of(problem, rng), response_to(problem))


def corpus() -> Iterator[str]:
    """Questions and answers of this module that no other has."""
    for questions in (*AND_SIGNS.values(), COLOUR_OF_IT):
        yield from questions
    for known in OF_IT.values():
        for pair in known:
            yield from pair


def _scene_turn(layout: Layout, colour: str, rng: np.random.Generator) -> Turn:
    while True:
        if turn := scene_question(layout, colour, QUESTIONS[rng.integers(len(QUESTIONS))], rng):
            return Turn(*turn)
