"""The same in lower case and in capitals: facts, sums, questions about pictures and captions for drawing, as they are taught,
as sentences and in capitals throughout. Knows of the runtime what the model's tokenizer does with capitals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mmada_lite.bench.quality.context import EvalContext, Report, singles
from mmada_lite.bench.quality.models import Pictures
from mmada_lite.train import rollouts
from mmada_lite.train.data.arithmetic import distinct_problems
from mmada_lite.train.data.concepts import COLOURS, CONCEPTS
from mmada_lite.train.data.texts import (
    DESCRIBE_QUESTIONS,
    FACTS,
    WHAT_QUESTIONS,
    Typed,
    pairs,
    standard_caption,
    typed,
)
from mmada_lite.train.data.thoughts import answer_of
from mmada_lite.train.intervals import cases_of, paired, pooled, tally

LOWER = "lower"
CAPITALS: tuple[Typed, ...] = ("sentence", "upper")
MOST = 150  # problems of two digits


@dataclass(frozen=True, slots=True)
class Kind:
    """Texts of one kind in lower case, which icon or caption each repeats, and which of them come out right as they are
    written."""

    texts: Sequence[str]
    of: str
    ids: Sequence[int]
    right: Callable[[EvalContext, Sequence[str]], list[bool]]


def capitals(context: EvalContext) -> Report:
    """Every text three times: in lower case, as a sentence, in capitals throughout; first by raw ids of what is written. Where
    the runtime makes capitals small for this model, as that reads it too."""
    kinds, report = _kinds(context), Report()
    raw = replace(context, model=replace(context.model, tokenizer=context.model.as_written))
    small = {name: tally(kind.right(raw, kind.texts), kind.of, kind.ids) for name, kind in kinds.items()}
    report |= {f"{name}_{LOWER}": told for name, told in small.items()}
    ways = {"raw": raw}
    if any(_ids(context, text) != _ids(raw, text) for text in ("A", "Z")):
        ways["runtime"] = context
    for way, reader in ways.items():
        for how in CAPITALS:
            for name, kind in kinds.items():
                texts = [typed(text, how) for text in kind.texts]
                same = all(_ids(reader, one) == _ids(raw, other) for one, other in zip(texts, kind.texts, strict=True))
                told = small[name] if same else tally(kind.right(reader, texts), kind.of, kind.ids)
                report[f"{name}_{how}_{way}"] = told
    before = [f"{name}_{LOWER}" for name in kinds]
    report[LOWER] = pooled(report, before)
    for way in ways:
        for how in CAPITALS:
            after = [f"{name}_{how}_{way}" for name in kinds]
            report[f"{how}_{way}"] = pooled(report, after)
            report[f"{how}_{way}_less_{LOWER}"] = _change(report, before, after)
    return report


def _ids(context: EvalContext, text: str) -> list[int]:
    return context.model.tokenizer.encode(text)


def _change(report: Report, before: Sequence[str], after: Sequence[str]) -> dict[str, object]:
    """Points that the cases of some metrics lose or gain against the same ones of others."""
    (first, clusters), (second, _) = cases_of(report, before), cases_of(report, after)
    change, low, high = (round(100 * value, 2) for value in paired(first, second, clusters))
    return {"mean": change, "low": low, "high": high, "total": len(first), "unit": "points"}


def _kinds(context: EvalContext) -> dict[str, Kind]:
    """A quarter of the cases each: facts as trained, held-out sums, untouched icons, captions that were never drawn."""
    count = max(2, context.count // 4)
    facts = [(wording, reply) for reply, wordings in FACTS for wording in wordings][:count]
    problems = [
        problem
        for kind in ("sum2", "difference2")
        for problem in distinct_problems(kind, True, min(count // 2, MOST // 2), context.rng(12), context.half)
    ]
    icons = context.icons[context.half]
    pictures, concepts, colours = singles(icons, count, context.rng(13))
    names = [CONCEPTS[c].phrase for c in concepts]
    described = [standard_caption(CONCEPTS[c], COLOURS[k]) for c, k in zip(concepts, colours, strict=True)]
    whats = np.arange(count) % 2 == 0
    seen = [name if what else words for what, name, words in zip(whats, names, described, strict=True)]
    unseen = pairs(True, context.half)
    wanted = [unseen[n % len(unseen)] for n in range(count)]
    return {
        "fact": Kind([asked for asked, _ in facts], "fact", range(len(facts)), _answered([reply for _, reply in facts])),
        "sum": Kind(
            [f"what is {p}?" for p in problems],
            "problem",
            range(len(problems)),
            _answered([str(p.answer) for p in problems]),
        ),
        "look": Kind(
            [WHAT_QUESTIONS[0] if what else DESCRIBE_QUESTIONS[0] for what in whats],
            "icon",
            [n % (len(icons) * len(CONCEPTS)) for n in range(count)],
            _answered(seen, pictures),
        ),
        "drawing": Kind(
            [standard_caption(CONCEPTS[c], colour) for c, colour in wanted],
            "caption",
            [n % len(unseen) for n in range(count)],
            _drawn([c for c, _ in wanted]),
        ),
    }


def _answered(wanted: Sequence[str], pictures: Pictures | None = None) -> Callable[[EvalContext, Sequence[str]], list[bool]]:
    def right(context: EvalContext, texts: Sequence[str]) -> list[bool]:
        replies = context.ask(texts, pictures)
        return [answer_of(reply) == answer for reply, answer in zip(replies, wanted, strict=True)]

    return right


def _drawn(wanted: Sequence[int]) -> Callable[[EvalContext, Sequence[str]], list[bool]]:
    def right(context: EvalContext, texts: Sequence[str]) -> list[bool]:
        pictures = context.pictures(rollouts.caption_prompts(context.model, texts), context.seed)
        return [bool(seen == concept) for seen, concept in zip(context.classify(pictures), wanted, strict=True)]

    return right
