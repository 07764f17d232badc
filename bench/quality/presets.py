"""`mmada-lite bench presets`: what each --speed costs in quality and gains in time, on the small model.

    mmada-lite bench presets mmada_lite/models/emoji --checkpoint train/shipped/emoji

Every preset passes the quality tasks; answers and pictures are timed one at a time, in turns. With a checkpoint of the same
model the published loops in torch take part, on the same prompts. The table of presets is the runtime's own.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmada_lite.bench import record
from mmada_lite.bench.quality import measures, policies
from mmada_lite.bench.quality.evaluate import add_exam_options, open_exam
from mmada_lite.bench.quality.frontier import TEXT_TASKS, UNITS, run_measure, say
from mmada_lite.bench.quality.measures import Run, Timed
from mmada_lite.bench.quality.models import Subject, open_subject
from mmada_lite.bench.quality.policies import Policy
from mmada_lite.bench.quality.tasks import SIDE, EvalContext
from mmada_lite.bench.speed.reference import Logits, draw_picture, picture_to_draw, torch_logits, write_text
from mmada_lite.errors import Error
from mmada_lite.train.denoiser import TorchDenoiser
from mmada_lite.train.loop import fast_type

REFERENCES = {torch.float32: "torch fp32", torch.bfloat16: "torch bf16"}
Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Reference:
    name: str
    logits: Logits


def published(checkpoint: Path, subject: Subject, bf16: bool = False) -> Reference:
    """The torch model of a checkpoint, in bfloat16 where the processor multiplies that, and elsewhere with `bf16`. Raises Error
    where it is of another model, or the published loop cannot divide so."""
    other, text = open_subject(checkpoint), subject.text
    if other.vocabulary != subject.vocabulary or not isinstance(other.denoiser, TorchDenoiser):
        raise Error(f"{checkpoint} is no checkpoint of {subject.name}; give the one that it was made from")
    if text.answer_length % text.block_length or text.steps % (text.answer_length // text.block_length):
        raise Error(
            f"the published loop divides exactly, and {text.answer_length} tokens in blocks of {text.block_length} and "
            f"{text.steps} steps do not; leave out --checkpoint"
        )
    dtype = torch.bfloat16 if bf16 else fast_type(torch.device("cpu"))
    return Reference(REFERENCES[dtype], torch_logits(other.denoiser.model.to(dtype)))


def published_answers(logits: Logits, subject: Subject, asked: Prompts) -> Run:
    """The published loop, in as many steps as the model's own settings say."""
    text, mask = subject.text, subject.vocabulary.special.mask

    def run(number: int) -> Timed:
        row, started = torch.tensor([list(asked[number])]), time.perf_counter()
        steps = write_text(logits, row, text.answer_length, text.block_length, text.steps, mask)
        _, count = _last(steps)
        return Timed(time.perf_counter() - started, text.answer_length, count)

    return run


def published_pictures(logits: Logits, subject: Subject, asked: Prompts) -> Run:
    """The published loop, and the same decoder of pixels. Prompts are not padded: the small model was never given pads."""
    image, offset = subject.image, subject.vocabulary.image_code_offset

    def run(number: int) -> Timed:
        started = time.perf_counter()
        picture = picture_to_draw(list(asked[number]), subject.vocabulary, SIDE * SIDE, 0)
        tokens, count = _last(draw_picture(logits, picture, image.steps, image.guidance, image.schedule))
        codes = np.clip(tokens[:, -SIDE * SIDE - 1 : -1].numpy() - offset, 0, None)  # one is still a mask: published so
        subject.decode(codes, (SIDE, SIDE))
        return Timed(time.perf_counter() - started, codes.size, count)

    return run


def _last(steps: Iterator[Tensor]) -> tuple[Tensor, int]:
    with torch.inference_mode():
        for count, found in enumerate(steps, 1):  # noqa: B007
            pass
    return found, count


def rows(
    exam: EvalContext, presets: Sequence[Policy], reference: Reference | None, prompts: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """A row for each preset's texts and for its pictures, and where there is a reference one for it, without a quality."""
    subject = exam.subject
    for kind in UNITS:
        if kind == "text":
            asked = measures.prompts(exam, prompts)
            runs = {each.name: measures.answering(subject, asked, each.text(subject.text)) for each in presets}
        else:
            asked = measures.captions(exam, prompts)
            runs = {each.name: measures.drawing(subject, asked, each.image(subject.image)) for each in presets}
        if reference is not None:
            loop = published_answers if kind == "text" else published_pictures
            runs[reference.name] = loop(reference.logits, subject, asked)
        timed, first = measures.alternate(runs, prompts, rounds), presets[0].name
        quality: dict[str, dict[str, Any]] = {}
        for name in runs:
            row = {
                "kind": kind,
                "policy": name,
                **measures.latency(timed[name]),
                "times": measures.times(timed[first], timed[name]),
            }
            if reference is not None:
                row["times_reference"] = measures.times(timed[reference.name], timed[name])
            for preset in (each for each in presets if each.name == name):
                say(f"{kind}: {name}")
                quality[name] = measures.quality(exam, preset, TEXT_TASKS if kind == "text" else measures.PICTURES)
                points = {task: 100 * (q["share"] - quality[first][task]["share"]) for task, q in quality[name].items()}
                row |= {"changes": dict(preset.of_text if kind == "text" else preset.of_image), "quality": quality[name]}
                row |= {"points": points}
            yield row


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Time, how many times as fast as exact and as the reference, and each task with its loss in points."""
    blocks = []
    for kind, unit in UNITS.items():
        mine = [row for row in found if row["kind"] == kind]
        tasks = list(mine[0]["quality"])
        against = next((row["policy"] for row in mine if "quality" not in row), "torch")
        head = [kind, "ms", unit, f"x {mine[0]['policy']}", f"x {against}", "model calls", *(f"{task} %" for task in tasks)]
        lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for row in mine:
            reference = f"{row['times_reference']['median']:.1f}" if "times_reference" in row else ""
            cells = [row["policy"], f"{1000 * row['seconds']['median']:.1f}", f"{row['tokens_per_s']:.1f}"]
            cells += [f"{row['times']['median']:.2f}", reference, f"{row['forwards']:.1f}"]
            for task in tasks:
                known = row.get("quality", {}).get(task)
                cells.append(f"{100 * known['share']:.1f} ({row['points'][task]:+.1f})" if known else "")
            lines.append("| " + " | ".join(cells) + " |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def measure(options: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    exam = open_exam(options, options.subject)
    reference = published(options.checkpoint, exam.subject, options.bf16) if options.checkpoint else None
    presets, invalid = measures.valid(policies.presets(), exam.subject)
    found = list(rows(exam, presets, reference, options.prompts, options.rounds))
    base = {"text": str(exam.subject.text), "image": str(exam.subject.image)}
    about = {"subject": exam.subject.name, "count": options.count, "prompts": options.prompts, "rounds": options.rounds}
    return record.record("presets", argv, found, base=base, passed_over=invalid, **about)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mmada-lite bench presets", description=__doc__.splitlines()[0])
    parser.add_argument("subject", type=Path, help="a bundle or a checkpoint of the small model")
    parser.add_argument("--checkpoint", type=Path, help="of the same model: the published loops in torch take part")
    parser.add_argument("--bf16", action="store_true", help="torch in bfloat16 also where the processor lacks its instructions")
    add_exam_options(parser, 400)
    parser.add_argument("--prompts", type=int, default=16, help="that time is measured on (default 16)")
    parser.add_argument("--rounds", type=int, default=3, help="times that each is decoded for it (default 3)")
    parser.add_argument("-o", "--output", type=Path, help="the JSON file (default: bench/results/presets.json of a checkout)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables and a JSON line. 0, or 2 after a fault of the user."""
    return run_measure(argv, build_parser(), measure, table, lambda found, options: record.save(found, options.output))


if __name__ == "__main__":
    sys.exit(main())
