"""What a way of decoding costs and is worth, on the small model: seconds of one answer and of one picture, told in turns,
and the shares of the quality tasks that it gets right. It knows policies and exams; it prints and plots nothing.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmada_lite.bench import record
from mmada_lite.bench.quality.models import Subject
from mmada_lite.bench.quality.policies import Policy
from mmada_lite.bench.quality.tasks import SIDE, TASKS, EvalContext, singles
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.errors import Error
from mmada_lite.train import rollouts
from mmada_lite.train.data.arithmetic import distinct_problems
from mmada_lite.train.data.concepts import CONCEPTS
from mmada_lite.train.data.texts import WHAT_QUESTIONS, pairs, standard_caption
from mmada_lite.train.intervals import interval

# task -> the counts that its quality is made of: right and asked are added up
METRICS: Mapping[str, tuple[str, ...]] = {
    "arithmetic": ("sum2", "difference2", "sum3"),
    "what": ("what_validation", "what_test"),
    "scenes": ("background_train", "position_train", "count_train", "compare_train"),
    "drawing": ("concept", "background"),
}
PICTURES = ("drawing",)


@dataclass(frozen=True, slots=True)
class Timed:
    """One decoding: seconds, tokens (up to the end of an answer) or codes that came of it, model calls (None: not counted)."""

    seconds: float
    tokens: int
    forwards: int | None


Run = Callable[[int], Timed]  # the number of a prompt -> what decoding it took


def valid(policies: Sequence[Policy], subject: Subject) -> tuple[list[Policy], list[str]]:
    """The policies that a model's own settings allow, and a line for each that they do not."""
    good, bad = [], []
    for policy in policies:
        try:
            policy.text(subject.text), policy.image(subject.image)
        except Error as fault:
            bad.append(f"{policy.name}: {fault}")
        else:
            good.append(policy)
    return good, bad


def quality(exam: EvalContext, policy: Policy, tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    """Task -> right and asked, their share and its 95% interval, when an exam's model decodes under a policy. Many are asked at
    once, which drafts cannot be: they write what one step at a time writes, and are examined so."""
    subject = exam.subject
    changed = replace(subject, text=replace(policy.text(subject.text), draft=1), image=policy.image(subject.image))
    found = {}
    for task in tasks:
        report: Any = TASKS[task](replace(exam, subject=changed))
        counts = [report[metric] for metric in METRICS[task]]
        found[task] = interval(sum(c["right"] for c in counts), sum(c["total"] for c in counts))
    return found


def prompts(exam: EvalContext, count: int) -> list[list[int]]:
    """Questions that no training saw, every second one about a picture."""
    subject, half = exam.subject, -(-count // 2)
    sums = [f"what is {p}?" for p in distinct_problems("sum2", True, half, exam.rng(7))]
    pictures, _, _ = singles(exam.icons["validation"], half, exam.rng(8))
    asked = rollouts.question_prompts(subject, [WHAT_QUESTIONS[0]] * half, subject.encode(pictures))
    both = zip(rollouts.question_prompts(subject, sums), asked, strict=True)
    return [prompt for pair in both for prompt in pair][:count]


def captions(exam: EvalContext, count: int) -> list[list[int]]:
    """Prompts for pictures of pairs of thing and colour that no training saw."""
    held = pairs(held_out=True)
    said = [standard_caption(CONCEPTS[i], colour) for i, colour in (held[n % len(held)] for n in range(count))]
    return rollouts.caption_prompts(exam.subject, said)


def answering(subject: Subject, asked: Sequence[Sequence[int]], settings: TextSettings) -> Run:
    """Answers, one at a time, as `chat` and `ask` decode them."""
    special = subject.vocabulary.special

    def run(number: int) -> Timed:
        started = time.perf_counter()
        written = rollouts.write(subject, [asked[number]], settings)
        seconds = time.perf_counter() - started
        ends = np.flatnonzero(np.isin(written.ids[0], [special.eos, special.eot, special.mask]))
        return Timed(seconds, int(ends[0]) if ends.size else written.ids.shape[1], int(written.model_calls[0]))

    return run


def drawing(subject: Subject, asked: Sequence[Sequence[int]], settings: ImageSettings) -> Run:
    """Pictures, one at a time, up to their pixels."""

    def run(number: int) -> Timed:
        started = time.perf_counter()
        codes = rollouts.draw(subject, [asked[number]], settings, SIDE * SIDE).codes
        subject.decode(codes, (SIDE, SIDE))
        return Timed(time.perf_counter() - started, codes.size, settings.steps)

    return run


def alternate(runs: Mapping[str, Run], count: int, rounds: int) -> dict[str, list[Timed]]:
    """Every prompt by each in turn, `rounds` times and every second time backwards, after one that does not count."""
    found: dict[str, list[Timed]] = {name: [] for name in runs}
    for run in runs.values():
        run(0)
    for number in range(rounds):
        for prompt in range(count):
            for name in list(runs)[:: -1 if number % 2 else 1]:
                found[name].append(runs[name](prompt))
    return found


def latency(timed: Sequence[Timed]) -> dict[str, Any]:
    """Seconds with their spread, tokens a second, and model calls of one decoding."""
    seconds = [each.seconds for each in timed]
    calls = [each.forwards for each in timed if each.forwards is not None]
    return {
        "seconds": record.spread(seconds),
        "tokens_per_s": sum(each.tokens for each in timed) / sum(seconds),
        "forwards": sum(calls) / len(calls) if calls else None,
    }


def times(theirs: Sequence[Timed], ours: Sequence[Timed]) -> dict[str, float]:
    """How many times as fast ours is: the ratio of each turn's seconds, with its spread; whole: of all turns' seconds, which
    hangs less on which prompt lies in the middle."""
    whole = sum(each.seconds for each in theirs) / sum(each.seconds for each in ours)
    return {**record.spread(a.seconds / b.seconds for a, b in zip(theirs, ours, strict=True)), "whole": whole}


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of points (cost, worth): which no other beats, being no dearer and no worse and one of both better."""

    def beaten(cost: float, worth: float) -> bool:
        return any(c <= cost and w >= worth and (c, w) != (cost, worth) for c, w in points)

    return [not beaten(*point) for point in points]
