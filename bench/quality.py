"""`mmada-lite bench quality`: every task of bench/quality_tasks for a checkpoint or a bundle, as a table and as JSON with
counts and 95% intervals, beside the targets. Knows the command line; the tasks know the data.
"""

from __future__ import annotations

import argparse
import difflib
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmada_lite.errors import Error

if TYPE_CHECKING:
    from mmada_lite.bench.quality_tasks import Exam

TARGETS: dict[tuple[str, str], float] = {
    ("tokenizer", "psnr_validation"): 22.0,
    ("tokenizer", "codebook_used"): 0.80,
    ("what", "what_validation"): 0.85,
    ("what", "what_test"): 0.70,
    ("scenes", "background_train"): 0.99,
    ("scenes", "position_train"): 0.95,
    ("scenes", "count_train"): 0.90,
    ("drawing", "concept"): 0.85,
    ("drawing", "background"): 0.97,
    ("thinking", "agree"): 0.75,
    ("arithmetic", "sum2"): 0.97,
    ("arithmetic", "difference2"): 0.97,
    ("arithmetic", "sum3"): 0.90,
    ("arithmetic", "thought_exact_where_right"): 0.95,
    ("editing", "inpaint_same"): 0.85,
    ("editing", "extend_same"): 0.70,
}


def measure(exam: Exam, names: Sequence[str]) -> dict[str, dict[str, object]]:
    """The reports of the named tasks. Raises Error for an unknown one."""
    from mmada_lite.bench.quality_tasks import TASKS

    for name in names:
        if name not in TASKS:
            close = difflib.get_close_matches(name, TASKS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"use some of {', '.join(TASKS)}"
            raise Error(f"no task is called {name!r}; {hint}")
    report = {}
    for name in names or TASKS:
        began = time.monotonic()
        report[name] = TASKS[name](exam)
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return report


def table(report: dict[str, dict[str, object]]) -> str:
    """Task, metric, share with its interval, counts, target."""
    lines = ["| task | metric | value | 95% interval | right / asked | target |", "|---|---|---|---|---|---|"]
    for task, metrics in report.items():
        for name, value in metrics.items():
            if not isinstance(value, dict) or "low" not in value:
                continue
            target = TARGETS.get((task, name))
            if "share" in value:
                cells = [
                    f"{value['share']:.1%}",
                    f"{value['low']:.1%} to {value['high']:.1%}",
                    f"{value['right']} / {value['total']}",
                ]
                wanted = f"{target:.0%}" if target else ""
            else:
                cells = [f"{value['mean']:.2f} dB", f"{value['low']:.2f} to {value['high']:.2f}", f"{value['total']} pictures"]
                wanted = f"{target:.0f} dB" if target else ""
            lines.append("| " + " | ".join([task, name, *cells, wanted]) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 0, or 2 after a fault of the user."""
    parser = argparse.ArgumentParser(prog="mmada-lite bench quality", description=__doc__)
    parser.add_argument("subject", type=Path, help="a checkpoint or a bundle")
    add_exam_options(parser, 400)
    parser.add_argument("--only", nargs="*", default=[], metavar="TASK", help="these tasks alone")
    parser.add_argument("--hurry", action="store_true", help="decode in a quarter of the steps")
    parser.add_argument("-o", "--output", type=Path, help="write JSON here too")
    arguments = parser.parse_args(argv)
    try:
        report = _measure(arguments)
    except Error as error:
        print(f"mmada-lite: {error}", file=sys.stderr)
        return 2
    content = {"command": "mmada-lite bench quality " + " ".join(argv or sys.argv[1:]), **report}
    print(table(report["report"]))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        partial = arguments.output.with_name(arguments.output.name + ".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        partial.replace(arguments.output)
    return 0


def add_exam_options(parser: argparse.ArgumentParser, count: int) -> None:
    """What an exam is made of, `count` being the cases that a task has at most if nothing is said."""
    parser.add_argument("--folder", type=Path, default=Path("runs/emoji-work"), help="working folder of the training: icons")
    parser.add_argument("--judge", type=Path, default=Path("train/shipped/judge"), help="folder of the judge (%(default)s)")
    parser.add_argument("--count", type=int, default=count, help="cases a task has at most (%(default)s)")
    parser.add_argument("--seed", type=int, default=1000, help="of the cases and of decoding (%(default)s)")
    parser.add_argument("--device", default="auto", help="of a bundle: auto, cpu or cuda")


def open_exam(arguments: argparse.Namespace) -> Exam:
    """The exam that those options ask for. Raises Error where one of its parts is missing."""
    from mmada_lite.bench.quality_tasks import Exam
    from mmada_lite.bench.subjects import open_subject
    from mmada_lite.train.data import emoji
    from mmada_lite.train.judge import Judge
    from mmada_lite.train.recipe import Workplace

    if arguments.count < 4:
        raise Error(f"--count is {arguments.count}; use at least 4 cases")
    concepts = Workplace(arguments.folder).concepts
    icons = {role: emoji.load_concepts(concepts, role).pixels for role in ("train", "validation", "test")}
    subject = open_subject(arguments.subject, arguments.device)
    return Exam(subject, Judge.load(arguments.judge).classify, icons, arguments.count, arguments.seed)


def _measure(arguments: argparse.Namespace) -> dict[str, dict]:
    import numpy as np
    import torch

    exam = open_exam(arguments)
    subject = exam.subject
    if arguments.hurry:
        subject.text = replace(subject.text, steps=max(1, subject.text.steps // 4))
        subject.image = replace(subject.image, steps=max(1, subject.image.steps // 4))
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    decoding = {"text": str(subject.text), "image": str(subject.image)}
    return {"versions": versions, "decoding": decoding, "report": measure(exam, arguments.only)}


if __name__ == "__main__":
    sys.exit(main())
