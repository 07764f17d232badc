"""Second turns: the same question asked first, and behind another question with its true answer, as the runtime's chat keeps
it. Knows how a conversation is laid in ids, and no reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmada_lite.bench.quality.context import EvalContext, Report, singles
from mmada_lite.bench.quality.models import Pictures
from mmada_lite.decoding.rows import chat_ids, picture_prompt
from mmada_lite.train import rollouts
from mmada_lite.train.data.arithmetic import distinct_problems, draw_problem, question_of, response_to
from mmada_lite.train.data.concepts import COLOURS, CONCEPTS
from mmada_lite.train.data.pictures import PLAIN, compose
from mmada_lite.train.data.scenes import compose_layout, draw_layout, scene_question
from mmada_lite.train.data.texts import COLOUR_QUESTIONS, FACTS, WHAT_QUESTIONS, fact, picture_question
from mmada_lite.train.data.thoughts import answer_of
from mmada_lite.train.data.turns import Draws, and_thing, two_problems
from mmada_lite.train.intervals import cases_of, pooled, ratio_of, tally
from mmada_lite.train.shards import TIDY_CELL

Turn = tuple[str, str]  # a question and the whole response to it, its thought where it has one
SUMS = ("sum2", "difference2", "sum3")
KINDS = (*SUMS, "fact", "what", "position", "count")  # of second questions
FIRST = ("fact", "sum", "picture")  # of first ones
MOST = 150  # problems of two digits


@dataclass(frozen=True, slots=True)
class Asked:
    """A conversation up to its last question: the turns before it, the picture that it is about with its background, and what
    is right. repeats: the thing or wording that comes again, a word and a number."""

    question: str
    wanted: str
    picture: Pictures | None = None  # [64, 64, 3]
    background: str = ""
    before: tuple[Turn, ...] = ()
    repeats: tuple[str, int] = ("problem", 0)


def turns(context: EvalContext) -> Report:
    """By kind and pooled: right as a first turn, right as a second one behind a fact, a sum or a question about a picture, and
    the second over the first; right where it refers to the first, and where of a first answer its thought is not kept, as
    clients of the server do."""
    rng, report, seconds = context.rng(14), Report(), list[Asked]()
    kinds = {kind: _questions(context, kind, rng) for kind in KINDS}
    for kind, asked in kinds.items():
        behind = [_behind(context, each, FIRST[n % len(FIRST)], rng) for n, each in enumerate(asked)]
        report[f"first_{kind}"] = told(context, asked)
        report[f"second_{kind}"] = told(context, behind)
        report[f"second_over_first_{kind}"] = _ratio(report, [f"first_{kind}"], [f"second_{kind}"])
        seconds += behind
    first, second = ([f"{place}_{kind}" for kind in KINDS] for place in ("first", "second"))
    report |= {"first": pooled(report, first), "second": pooled(report, second)}
    report["second_over_first"] = _ratio(report, first, second)
    for name, referring in (("and_problem", _referring_problems), ("of_it", _referring_things)):
        report[f"second_{name}"] = told(context, referring(context, rng))
    report["referring"] = pooled(report, ["second_and_problem", "second_of_it"])
    thought = [each for each in seconds if each.before[0][1] != answer_of(each.before[0][1])]
    bare = [replace(each, before=tuple((q, answer_of(a)) for q, a in each.before)) for each in thought]
    report["second_behind_bare_answers"] = told(context, bare)
    return report


def told(context: EvalContext, asked: Sequence[Asked]) -> dict[str, float | str]:
    """Which of the last questions were answered right."""
    replies = replies_to(context, asked)
    right = [answer_of(reply) == answer_of(each.wanted) for reply, each in zip(replies, asked, strict=True)]
    of = {each.repeats[0] for each in asked}
    return tally(right, of.pop(), [each.repeats[1] for each in asked]) if len(of) == 1 else tally(right)


def replies_to(context: EvalContext, asked: Sequence[Asked]) -> list[str]:
    """What the model says last in each conversation."""
    model, prompts = context.model, list[list[int]]()
    shown = [each.picture for each in asked if each.picture is not None]
    codes = iter(model.encode(np.stack(shown)) if shown else ())
    for each in asked:
        before = picture_prompt(next(codes), model.vocabulary) if each.picture is not None else []
        said = [*_said(each.before), {"role": "user", "content": each.question}]
        prompts.append(before + chat_ids(model.tokenizer, model.vocabulary, said))
    return rollouts.answers(model, prompts, model.text, context.seed)


def _said(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [
        {"role": role, "content": text}
        for question, answer in turns
        for role, text in (("user", question), ("assistant", answer))
    ]


def _questions(context: EvalContext, kind: str, rng: np.random.Generator) -> list[Asked]:
    """A quarter of the cases, as first turns: held-out problems and layouts, icons of a style that no training saw, facts."""
    count, icons = max(2, context.count // 4), context.icons[context.half]
    if kind in SUMS:
        problems = distinct_problems(kind, True, min(count, MOST), rng, context.half)
        return [Asked(f"what is {p}?", str(p.answer), repeats=(kind, n)) for n, p in enumerate(problems)]
    if kind == "fact":
        known = [(wording, reply) for reply, wordings in FACTS for wording in wordings]
        order = rng.permutation(len(known))
        numbers = [int(order[n % len(known)]) for n in range(count)]
        return [Asked(*known[number], repeats=("fact", number)) for number in numbers]
    if kind == "what":
        pictures, concepts, colours = singles(icons, count, rng)
        return [
            Asked(WHAT_QUESTIONS[0], CONCEPTS[c].phrase, picture, COLOURS[k], repeats=("thing", int(c)))
            for picture, c, k in zip(pictures, concepts, colours, strict=True)
        ]
    found = list[Asked]()
    while len(found) < count:
        layout, colour = draw_layout((2, 2), True, rng, context.half), COLOURS[rng.integers(len(COLOURS))]
        question = scene_question(layout, colour, kind, rng)
        if question:
            picture = compose_layout(layout, icons, colour, rng, TIDY_CELL)
            found.append(Asked(*question, picture, colour, repeats=(kind, len(found))))
    return found


def _referring_problems(context: EvalContext, rng: np.random.Generator) -> list[Asked]:
    """ "and minus 3?" behind a problem: both held out."""
    found = list[Asked]()
    for number in range(max(2, context.count // 4)):
        first, second = two_problems(True, Draws(rng, rng), context.half)
        found.append(Asked(second.question, second.response, before=(first,), repeats=("problem", number)))
    return found


def _referring_things(context: EvalContext, rng: np.random.Generator) -> list[Asked]:
    """Of the thing that a picture in a style which no training saw was said to show, such as its colour."""
    pictures, concepts, _ = singles(context.icons[context.half], max(2, context.count // 4) * 4, rng)
    found = list[Asked]()
    for picture, concept in zip(pictures, concepts.tolist(), strict=True):
        second = and_thing(CONCEPTS[concept].name, rng)
        if second:
            first = (WHAT_QUESTIONS[rng.integers(len(WHAT_QUESTIONS))], CONCEPTS[concept].phrase)
            found.append(Asked(*second, picture, before=(first,), repeats=("thing", concept)))
    return found[: max(2, context.count // 4)]


def _behind(context: EvalContext, asked: Asked, first: str, rng: np.random.Generator) -> Asked:
    """The same question behind another one of a kind, which is about the same picture where there is one."""
    if first == "fact":
        turn = fact(rng)
        while turn[0] == asked.question:
            turn = fact(rng)
        return replace(asked, before=(turn,))
    if first == "sum":
        problem = draw_problem(SUMS[rng.integers(len(SUMS))], False, rng)
        return replace(asked, before=((question_of(problem, rng), response_to(problem)),))
    if asked.picture is not None:  # its background: any other answer would tell the next one
        return replace(asked, before=((COLOUR_QUESTIONS[rng.integers(len(COLOUR_QUESTIONS))], asked.background),))
    icons, thing = context.icons[context.half], int(rng.integers(len(CONCEPTS)))
    colour = COLOURS[rng.integers(len(COLOURS))]
    picture = compose(icons[rng.integers(len(icons)), thing], colour, rng, PLAIN)
    return replace(asked, picture=picture, before=(picture_question(CONCEPTS[thing], colour, rng),))


def _ratio(report: Report, first: Sequence[str], second: Sequence[str]) -> dict[str, object]:
    """What share of the first turns' accuracy is left in second turns."""
    (before, clusters), (after, _) = cases_of(report, first), cases_of(report, second)
    return {**ratio_of(map(float, after), map(float, before), clusters), "unit": "x"}
