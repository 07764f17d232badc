"""Quality against latency over ways of decoding, on the small model: `bench quality --frontier` over the tables of `policies`,
`--presets` over the named speeds, with a checkpoint beside the published loops in torch.

Quality is the share right in the tasks of `bench quality`, latency that of one decoding at a time, all in turns. Marks those
that no other beats in both. A frontier asks every way a quarter of the count, and those that may be presets all cases, fastest
first, until what the rule of `choice` takes is sure.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmada_lite.bench import policies
from mmada_lite.bench.command import markdown, new_figure
from mmada_lite.bench.policies import Policy
from mmada_lite.bench.quality import choice
from mmada_lite.bench.quality.context import SIDE, EvalContext, singles
from mmada_lite.bench.quality.models import EvalModel, open_model
from mmada_lite.bench.quality.tasks import TASKS
from mmada_lite.bench.record import Row, Run, spread
from mmada_lite.bench.reference import Logits, draw_picture, picture_to_draw, torch_logits, write_text
from mmada_lite.bench.timed import turns
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.errors import Error
from mmada_lite.train import rollouts
from mmada_lite.train.data.arithmetic import distinct_problems
from mmada_lite.train.data.concepts import CONCEPTS
from mmada_lite.train.data.texts import WHAT_QUESTIONS, pairs, standard_caption
from mmada_lite.train.denoiser import TorchDenoiser
from mmada_lite.train.intervals import cases_of, clusters_of, paired, tally
from mmada_lite.train.loop import fast_type

# kind -> task -> the counts that its quality is made of: of texts added up, and a picture is right where it is in each
METRICS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "text": {
        "arithmetic": ("sum2", "difference2", "sum3"),
        "what": ("what_{half}",),  # of what is held out
        "scenes": ("background_train", "position_train", "count_train", "compare_train"),
    },
    "image": {"drawing": ("concept", "background")},
}
UNITS = {"text": "tokens/s", "image": "codes/s"}
REFERENCES = {torch.float32: "torch fp32", torch.bfloat16: "torch bf16"}
ALL_AT_ONCE = 8  # ways: of more, few cases first
TIMES = {"text": 1, "image": 4}  # the count: a point of drawings is noise in 480, and they cost less than answers
Prompts = Sequence[Sequence[int]]
Tally = dict[str, float | str]


@dataclass(frozen=True, slots=True)
class Timed:
    """One decoding: seconds, tokens (up to the end of an answer) or codes that came of it, model calls."""

    seconds: float
    tokens: int
    model_calls: int


Decode = Callable[[Sequence[int]], tuple[int, int]]  # a prompt -> tokens or codes, and model calls


def ways_of(kind: str, mode: str, patterns: Sequence[str], model: EvalModel) -> tuple[list[Policy], list[str]]:
    """The presets, or the policies of a table, of which `patterns` picks those with one of them in their name; the first, which
    changes nothing, stays. And a line for each that the model's own settings do not allow."""
    ways = policies.presets()
    if mode != "presets":
        first, *rest = policies.grid(policies.TEXT if kind == "text" else policies.IMAGE, kind)
        ways = [first, *(way for way in rest if not patterns or any(pattern in way.name for pattern in patterns))]
    good, bad = list[Policy](), list[str]()
    for way in ways:
        try:
            way.text(model.text), way.image(model.image)
            good.append(way)
        except Error as fault:
            bad.append(f"{kind} {way.name}: {fault}")
    return good, bad


def rows(
    context: EvalContext, run: Run, kind: str, ways: Sequence[Policy], count: int, rounds: int, published: "Published | None"
) -> list[Row]:
    """A row for each way of decoding: its latency, its quality by task and on the whole, of how many cases, points against the
    first way on the same cases, whether it is on the frontier; and where the published loop takes part one for it, without a
    quality."""
    timed = run.do(f"{kind}: {len(ways)} ways in turns", lambda: _timed(context, kind, ways, count, rounds, published))
    by_name, same = {row["policy"]: row for row in timed}, dict[object, Policy]()

    def right(way: Policy, cases: int) -> dict[str, Any]:
        way = same.setdefault(_examined(context.model, way, kind), way)
        return run.do(f"{kind}: {way.name}, {cases} cases", lambda: [quality(replace(context, count=cases), way, kind)])[0]

    def examined(way: Policy, cases: int) -> Row:
        first, own = right(ways[0], cases), right(way, cases)
        changes = dict(way.of_text if kind == "text" else way.of_image)
        told = {
            task: {name: report[name] for name in report if name not in ("cases", "clusters")} for task, report in own.items()
        }
        points = {task: gained(first[task], report) for task, report in own.items()}
        share = sum(report["share"] for report in own.values()) / len(own)
        return {**by_name[way.name], "changes": changes, "count": cases, "quality": told, "points": points, "share": share}

    few, whole = len(ways) <= ALL_AT_ONCE, TIMES[kind] * context.count
    found = {way.name: examined(way, whole if few else first_cases(context.count)) for way in ways}
    known = list[Row]()
    for row in [] if few else choice.hopeful(list(found.values())):
        if known and choice.too_slow(row, known):
            break
        found[row["policy"]] = examined(next(way for way in ways if way.name == row["policy"]), whole)
        known.append(found[row["policy"]])
    costs = [row["seconds"]["median"] for row in found.values()]
    worth = [sum(each["change"] for each in row["points"].values()) for row in found.values()]
    best = pareto(list(zip(costs, worth, strict=True)))
    marked = [{**row, "frontier": is_best} for row, is_best in zip(found.values(), best, strict=True)]
    return marked + [row for row in timed if published is not None and row["policy"] == published.name]


def first_cases(count: int) -> int:
    """How many cases every way of a frontier is asked."""
    return max(4, count // 4)


def gained(before: Tally, after: Tally) -> dict[str, float]:
    """Points that a way gains over another on the same cases, with their 95% interval, clusters minded."""
    change = paired(str(before["cases"]), str(after["cases"]), clusters_of(after))
    return {name: round(100 * value, 3) for name, value in zip(("change", "low", "high"), change, strict=True)}


def quality(context: EvalContext, policy: Policy, kind: str) -> dict[str, Tally]:
    """Task -> right and asked, their share and its 95% interval with clusters minded, which cases were right, when a model
    decodes under a policy. Many are asked at once, which drafts cannot be: they write what one step at a time writes, and are
    examined so."""
    settings, shares = _examined(context.model, policy, kind), dict[str, Tally]()
    changed = (
        replace(context.model, text=settings) if isinstance(settings, TextSettings) else replace(context.model, image=settings)
    )
    for task, metrics in METRICS[kind].items():
        report: Any = TASKS[task](replace(context, model=changed))
        names = [metric.format(half=context.half) for metric in metrics]
        right, repeats = cases_of(report, names)
        if kind == "image":  # one drawing is right where it is in each
            each = [cases_of(report, [name]) for name in names]
            right, repeats = "".join(map(min, *(cases for cases, _ in each))), each[0][1]
        numbers = {one: number for number, one in enumerate(dict.fromkeys(repeats))}
        shares[task] = tally((case == "1" for case in right), "case", [numbers[one] for one in repeats])
    return shares


def _examined(model: EvalModel, way: Policy, kind: str) -> TextSettings | ImageSettings:
    return way.text(model.text).replace(speculative_steps=1) if kind == "text" else way.image(model.image)


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of points (cost, worth): which no other beats, being no dearer and no worse and one of both better."""

    def beaten(cost: float, worth: float) -> bool:
        return any(c <= cost and w >= worth and (c, w) != (cost, worth) for c, w in points)

    return [not beaten(*point) for point in points]


def _timed(
    context: EvalContext, kind: str, ways: Sequence[Policy], count: int, rounds: int, published: "Published | None"
) -> list[Row]:
    model = context.model
    runs = {way.name: decoding(model, way.text(model.text) if kind == "text" else way.image(model.image)) for way in ways}
    if published is not None:
        runs[published.name] = partial(published.text if kind == "text" else published.image, model)
    taken, first = alternate(runs, prompts(context, kind, count), rounds), ways[0].name
    timed: list[Row] = []
    for name, own in taken.items():
        seconds = [each.seconds for each in own]
        row: Row = {"kind": kind, "policy": name, "seconds": spread(seconds)}
        row["tokens_per_s"] = sum(each.tokens for each in own) / sum(seconds)
        row["model_calls"] = sum(each.model_calls for each in own) / len(own)
        row["times"] = times(taken[first], own)
        timed.append(row | ({"times_reference": times(taken[published.name], own)} if published is not None else {}))
    return timed


def alternate(runs: Mapping[str, Decode], asked: Prompts, rounds: int) -> dict[str, list[Timed]]:
    """Every prompt by each in turn, `rounds` times, after one that does not count."""
    taken: dict[str, list[Timed]] = {name: [] for name in runs}
    for run in runs.values():
        run(asked[0])
    for prompt, name in turns([(prompt, name) for prompt in asked for name in runs], rounds):
        started = time.perf_counter()
        tokens, model_calls = runs[name](prompt)
        taken[name].append(Timed(time.perf_counter() - started, tokens, model_calls))
    return taken


def times(theirs: Sequence[Timed], ours: Sequence[Timed]) -> dict[str, float]:
    """How many times as fast ours is: the ratio of each turn's seconds, with its spread; whole: of all turns' seconds, which
    hangs less on which prompt lies in the middle."""
    of_all = sum(each.seconds for each in theirs) / sum(each.seconds for each in ours)
    return {**spread(a.seconds / b.seconds for a, b in zip(theirs, ours, strict=True)), "whole": of_all}


def prompts(context: EvalContext, kind: str, count: int) -> Prompts:
    """What no training saw. text: sums and, every second one, a question about a picture; image: pairs of thing and colour."""
    model, half = context.model, -(-count // 2)
    if kind == "image":
        unseen_pairs = pairs(True, context.half)
        chosen = (unseen_pairs[n % len(unseen_pairs)] for n in range(count))
        return rollouts.caption_prompts(model, [standard_caption(CONCEPTS[i], colour) for i, colour in chosen])
    sums = [f"what is {p}?" for p in distinct_problems("sum2", True, half, context.rng(7), context.half)]
    pictures, _, _ = singles(context.icons[context.half], half, context.rng(8))
    asked = rollouts.question_prompts(model, [WHAT_QUESTIONS[0]] * half, model.encode(pictures))
    both = zip(rollouts.question_prompts(model, sums), asked, strict=True)
    return [prompt for pair in both for prompt in pair][:count]


def decoding(model: EvalModel, settings: TextSettings | ImageSettings) -> Decode:
    """One at a time: answers as `chat` and `ask` decode them, pictures up to their pixels."""
    special = model.vocabulary.special

    def run(prompt: Sequence[int]) -> tuple[int, int]:
        if isinstance(settings, ImageSettings):
            codes = rollouts.draw(model, [prompt], settings, SIDE * SIDE).codes
            model.decode(codes, (SIDE, SIDE))
            return codes.size, settings.steps
        written = rollouts.write(model, [prompt], settings)
        ends = np.flatnonzero(np.isin(written.ids[0], [special.eos, special.eot, special.mask]))
        return int(ends[0]) if ends.size else written.ids.shape[1], int(written.model_calls[0])

    return run


@dataclass(frozen=True, slots=True)
class Published:
    """The published loops over the torch model that a bundle was made from, under the bundle's own settings."""

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

    @torch.inference_mode()
    def text(self, model: EvalModel, prompt: Sequence[int]) -> tuple[int, int]:
        own, row = model.text, torch.tensor([list(prompt)])
        steps = write_text(self.logits, row, own.answer_length, own.block_length, own.steps, model.vocabulary.special.mask)
        return own.answer_length, sum(1 for _ in steps)

    @torch.inference_mode()
    def image(self, model: EvalModel, prompt: Sequence[int]) -> tuple[int, int]:
        """Without pads, up to the pixels of the same decoder."""
        own, picture = model.image, picture_to_draw(list(prompt), model.vocabulary, SIDE * SIDE, 0)
        *_, tokens = draw_picture(self.logits, picture, own.steps, own.guidance, own.schedule)
        codes = tokens[:, -SIDE * SIDE - 1 : -1].numpy() - model.vocabulary.image_code_offset
        model.decode(np.clip(codes, 0, None), (SIDE, SIDE))  # one is still a mask: published so
        return codes.size, own.steps


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Fastest first; a star where no other way is both as fast and as good; each task with what it loses or gains in points."""
    blocks = []
    for kind, unit in UNITS.items():
        mine = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["seconds"]["median"])
        against = next((row["policy"] for row in mine if "quality" not in row), "torch")
        head = ["", kind, "ms", unit, "x first", f"x {against}", "model calls", "right %", *(f"{t} %" for t in METRICS[kind])]
        lines = []
        for row in mine:
            reference = f"{row['times_reference']['median']:.1f}" if "times_reference" in row else ""
            cells = ["*" if row.get("frontier") else "", row["policy"], f"{1000 * row['seconds']['median']:.1f}"]
            cells += [f"{row['tokens_per_s']:.1f}", f"{row['times']['median']:.2f}", reference, f"{row['model_calls']:.1f}"]
            cells.append(f"{100 * row['share']:.1f}" if "share" in row else "")
            for task, report in row.get("quality", {}).items():
                cells.append(f"{100 * report['share']:.1f} ({row['points'][task]['change']:+.1f})")
            lines.append(cells)
        blocks.append(markdown(head, lines))
    return "\n\n".join(blocks)


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Share that is right against milliseconds, a panel for answers and one for pictures. Raises Error without matplotlib."""
    figure = new_figure(16, 5.5)
    for axes, kind in zip(figure.subplots(1, 2), UNITS, strict=True):
        mine = sorted((row for row in rows if row["kind"] == kind and "share" in row), key=lambda row: row["seconds"]["median"])
        points = [(1000 * row["seconds"]["median"], 100 * row["share"], row) for row in mine]
        axes.step(*zip(*((x, y) for x, y, row in points if row["frontier"]), strict=True), where="post", color="tab:orange")
        for x, y, row in points:
            axes.plot(x, y, "o", color="tab:orange" if row["frontier"] else "tab:blue")
            if row["frontier"]:
                axes.annotate(row["policy"], (x, y), fontsize=6, xytext=(3, -8), textcoords="offset points")
        axes.set(title=kind, xscale="log", xlabel="ms, one at a time", ylabel="right, %")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
