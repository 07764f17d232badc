"""Ids of conversations of two turns, and of texts and answers that get a hole: what stands before, and what is to be written.
Sentences and splits come from the modules beside this one. Knows no masks.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mmada_lite.decoding.rows import text_prompt
from mmada_lite.train.data.arithmetic import draw_problem, question_of
from mmada_lite.train.data.concepts import CONCEPTS
from mmada_lite.train.data.material import Material
from mmada_lite.train.data.texts import Typed, caption, fact, pairs, picture_question, typed
from mmada_lite.train.data.thoughts import answer_of
from mmada_lite.train.data.turns import Draws, Turn, two_about_one, two_about_several, two_problems, two_without_picture

KEPT_THOUGHT = 0.5  # share of the groups whose first turns are kept with their thought, as `chat` keeps it; others keep answers
FILLED: dict[str, float] = {"caption": 0.25, "fact": 0.3, "sum": 0.3, "picture": 0.15}  # what has a hole, by share
PAIRS = pairs(held_out=False)  # whose captions have holes
UNTHOUGHT: dict[str, float] = {"sum1": 0.1, "difference1": 0.1, "sum2": 0.4, "difference2": 0.4}  # whose result has one


class Conversations:
    """Draws them from `material`. problems: shares of the kinds of problems; held_out: problems that go on from a result, or
    whose result has a hole, are of the side that is kept for evaluation (its half to choose by)."""

    def __init__(self, material: Material, problems: Mapping[str, float], held_out: bool = False) -> None:
        self.material, self.problems, self.held_out = material, problems, held_out

    def second_turn(self, kind: str, how: Typed, kept: bool, draws: Draws) -> tuple[list[int], list[int], list[int]]:
        """A conversation of a kind of `turns.TURNS` up to the answer to its second question, which is typed so; that answer;
        and the picture before it, or nothing. kept: the first answer is kept with its thought."""
        head, (first, second) = self._two_turns(kind, draws)
        response = first.response if kept else answer_of(first.response)
        question = self.material.conversation(first.question, response, typed(second.question, how))
        return question, self.material.tokenizer.encode(second.response), head

    def _two_turns(self, kind: str, draws: Draws) -> tuple[list[int], tuple[Turn, Turn]]:
        of = self.material
        if kind == "and_problem":
            return [], two_problems(self.held_out, draws, "validation")
        if kind == "text":
            return [], two_without_picture(self.problems, draws)
        if kind == "scene":
            picture = of.pick(of.several, False, draws.rest)
            return of.shown(of.several, picture), two_about_several(*of.seen_several(picture), self.problems, draws)
        picture = of.pick(of.singles, False, draws.rest)
        return of.shown(of.singles, picture), two_about_one(kind, *of.seen(picture), self.problems, draws)

    def to_fill(self, what: str, kind: str, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """What stands before a text with a hole, and the text: one of FILLED; of a problem of that kind, its result."""
        of = self.material
        if what == "caption":
            concept, colour = PAIRS[rng.integers(len(PAIRS))]
            return text_prompt(of.tokenizer, of.vocabulary), of.text(caption(CONCEPTS[concept], colour, rng))
        if what == "fact":
            question, answer = fact(rng)
            return of.chat(question), of.text(answer)
        if what == "sum":
            problem = draw_problem(kind, self.held_out, rng, half="validation")
            return of.conversation(question_of(problem, rng)), of.tokenizer.encode(str(problem.answer))
        picture = of.pick(of.singles, False, rng)
        question, answer = picture_question(*of.seen(picture), rng)
        return [*of.shown(of.singles, picture), *of.chat(question)], of.text(answer)
