"""What a way of decoding costs and is worth, on the small model: seconds of one answer and of one picture, taken in turns, and
the shares of the quality tasks that it gets right; the published loops in torch beside it. It prints and plots nothing.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmada_lite.bench.policies import Policy
from mmada_lite.bench.quality.models import EvalModel, open_model
from mmada_lite.bench.quality.tasks import SIDE, TASKS, EvalContext, singles
from mmada_lite.bench.record import spread
from mmada_lite.bench.reference import Logits, draw_picture, picture_to_draw, torch_logits, write_text
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.errors import Error
from mmada_lite.train import rollouts
from mmada_lite.train.data.arithmetic import distinct_problems
from mmada_lite.train.data.concepts import CONCEPTS
from mmada_lite.train.data.texts import WHAT_QUESTIONS, pairs, standard_caption
from mmada_lite.train.denoiser import TorchDenoiser
from mmada_lite.train.intervals import interval
from mmada_lite.train.loop import fast_type

# kind -> task -> the counts that its quality is made of: right and asked are added up
METRICS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "text": {
        "arithmetic": ("sum2", "difference2", "sum3"),
        "what": ("what_validation", "what_test"),
        "scenes": ("background_train", "position_train", "count_train", "compare_train"),
    },
    "image": {"drawing": ("concept", "background")},
}
REFERENCES = {torch.float32: "torch fp32", torch.bfloat16: "torch bf16"}
Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Timed:
    """One decoding: seconds, tokens (up to the end of an answer) or codes that came of it, model calls."""

    seconds: float
    tokens: int
    model_calls: int


Decode = Callable[[int], Timed]  # the number of a prompt -> what decoding it took


def valid(policies: Sequence[Policy], model: EvalModel) -> tuple[list[Policy], list[str]]:
    """The policies that a model's own settings allow, and a line for each that they do not."""
    good, bad = [], []
    for policy in policies:
        try:
            policy.text(model.text), policy.image(model.image)
        except Error as fault:
            bad.append(f"{policy.name}: {fault}")
        else:
            good.append(policy)
    return good, bad


def quality(context: EvalContext, policy: Policy, kind: str) -> dict[str, dict[str, float]]:
    """Task -> right and asked, their share and its 95% interval, when a model decodes under a policy. Many are asked at once,
    which drafts cannot be: they write what one step at a time writes, and are examined so."""
    model = context.model
    changed = replace(model, text=policy.text(model.text).replace(speculative_steps=1), image=policy.image(model.image))
    shares = {}
    for task, metrics in METRICS[kind].items():
        report: Any = TASKS[task](replace(context, model=changed))
        counts = [report[metric] for metric in metrics]
        shares[task] = interval(sum(c["right"] for c in counts), sum(c["total"] for c in counts))
    return shares


def prompts(context: EvalContext, kind: str, count: int) -> Prompts:
    """What no training saw. text: sums and, every second one, a question about a picture; image: pairs of thing and colour."""
    model, half = context.model, -(-count // 2)
    if kind == "image":
        unseen_pairs = pairs(held_out=True)
        chosen = (unseen_pairs[n % len(unseen_pairs)] for n in range(count))
        captions = [standard_caption(CONCEPTS[i], colour) for i, colour in chosen]
        return rollouts.caption_prompts(model, captions)
    sums = [f"what is {p}?" for p in distinct_problems("sum2", True, half, context.rng(7))]
    pictures, _, _ = singles(context.icons["validation"], half, context.rng(8))
    asked = rollouts.question_prompts(model, [WHAT_QUESTIONS[0]] * half, model.encode(pictures))
    both = zip(rollouts.question_prompts(model, sums), asked, strict=True)
    return [prompt for pair in both for prompt in pair][:count]


def decoding(model: EvalModel, asked: Prompts, settings: TextSettings | ImageSettings) -> Decode:
    """One at a time: answers as `chat` and `ask` decode them, pictures up to their pixels."""
    special = model.vocabulary.special

    def run(number: int) -> Timed:
        started = time.perf_counter()
        if isinstance(settings, ImageSettings):
            codes = rollouts.draw(model, [asked[number]], settings, SIDE * SIDE).codes
            model.decode(codes, (SIDE, SIDE))
            return Timed(time.perf_counter() - started, codes.size, settings.steps)
        written = rollouts.write(model, [asked[number]], settings)
        seconds = time.perf_counter() - started
        ends = np.flatnonzero(np.isin(written.ids[0], [special.eos, special.eot, special.mask]))
        return Timed(seconds, int(ends[0]) if ends.size else written.ids.shape[1], int(written.model_calls[0]))

    return run


@dataclass(frozen=True, slots=True)
class Published:
    """The published loops over the torch model that a bundle was made from."""

    name: str
    logits: Logits

    @classmethod
    def open(cls, checkpoint: Path, model: EvalModel, bf16: bool = False) -> "Published":
        """The torch model of a checkpoint, in bfloat16 where the processor multiplies that, and elsewhere with `bf16`. Raises
        Error where it is of another model, or the published loop cannot divide so."""
        other, text = open_model(checkpoint), model.text
        if other.vocabulary != model.vocabulary or not isinstance(other.denoiser, TorchDenoiser):
            raise Error(f"{checkpoint} is no checkpoint of {model.name}; give the one that it was made from")
        if text.answer_length % text.block_length or text.steps % (text.answer_length // text.block_length):
            raise Error(
                f"the published loop divides exactly, and {text.answer_length} tokens in blocks of {text.block_length} and "
                f"{text.steps} steps do not; leave out --checkpoint"
            )
        dtype = torch.bfloat16 if bf16 else fast_type(torch.device("cpu"))
        return cls(REFERENCES[dtype], torch_logits(other.denoiser.model.to(dtype)))

    def decoding(self, model: EvalModel, asked: Prompts, kind: str) -> Decode:
        """In as many steps as the model's own settings say. Pictures are not padded, since the small model was never given
        pads, and come from the same decoder of pixels."""
        text, image, offset = model.text, model.image, model.vocabulary.image_code_offset

        def run(number: int) -> Timed:
            started = time.perf_counter()
            if kind == "text":
                row, mask = torch.tensor([list(asked[number])]), model.vocabulary.special.mask
                _, count = _last(write_text(self.logits, row, text.answer_length, text.block_length, text.steps, mask))
                return Timed(time.perf_counter() - started, text.answer_length, count)
            picture = picture_to_draw(list(asked[number]), model.vocabulary, SIDE * SIDE, 0)
            tokens, count = _last(draw_picture(self.logits, picture, image.steps, image.guidance, image.schedule))
            codes = np.clip(tokens[:, -SIDE * SIDE - 1 : -1].numpy() - offset, 0, None)  # one is still a mask: published so
            model.decode(codes, (SIDE, SIDE))
            return Timed(time.perf_counter() - started, codes.size, count)

        return run


def _last(steps: Iterator[Tensor]) -> tuple[Tensor, int]:
    with torch.inference_mode():
        for count, step in enumerate(steps, 1):  # noqa: B007
            pass
    return step, count


def alternate(runs: Mapping[str, Decode], count: int, rounds: int) -> dict[str, list[Timed]]:
    """Every prompt by each in turn, `rounds` times and every second time backwards, after one that does not count."""
    turns: dict[str, list[Timed]] = {name: [] for name in runs}
    for run in runs.values():
        run(0)
    for number in range(rounds):
        for prompt in range(count):
            for name in list(runs)[:: -1 if number % 2 else 1]:
                turns[name].append(runs[name](prompt))
    return turns


def latency(timed: Sequence[Timed]) -> dict[str, Any]:
    """Seconds with their spread, tokens a second, and model calls of one decoding."""
    seconds = [each.seconds for each in timed]
    return {
        "seconds": spread(seconds),
        "tokens_per_s": sum(each.tokens for each in timed) / sum(seconds),
        "model_calls": sum(each.model_calls for each in timed) / len(timed),
    }


def times(theirs: Sequence[Timed], ours: Sequence[Timed]) -> dict[str, float]:
    """How many times as fast ours is: the ratio of each turn's seconds, with its spread; whole: of all turns' seconds, which
    hangs less on which prompt lies in the middle."""
    of_all = sum(each.seconds for each in theirs) / sum(each.seconds for each in ours)
    return {**spread(a.seconds / b.seconds for a, b in zip(theirs, ours, strict=True)), "whole": of_all}


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of points (cost, worth): which no other beats, being no dearer and no worse and one of both better."""

    def beaten(cost: float, worth: float) -> bool:
        return any(c <= cost and w >= worth and (c, w) != (cost, worth) for c, w in points)

    return [not beaten(*point) for point in points]
