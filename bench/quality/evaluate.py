"""`mmada-lite bench quality`: every task of bench/quality/tasks for a checkpoint or a bundle, as a table and as JSON with
counts and 95% intervals, beside the targets; with `--against`, what bundles lose against a reference, in the tasks and
along its decodings (`truth`). Knows the command line; the tasks know the data.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmada_lite.bench.arguments import require_counts
from mmada_lite.errors import Error, did_you_mean

if TYPE_CHECKING:
    from mmada_lite.bench.quality.quantization import Row
    from mmada_lite.bench.quality.tasks import EvalContext

MOST = 20_000  # cases of a task: their pictures are held in memory together
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


ALONG = "trajectory"  # with --against, the name in --only of what needs no icons and no judge


def known(names: Sequence[str]) -> None:
    """Raises Error for an unknown task."""
    from mmada_lite.bench.quality.tasks import TASKS

    for name in names:
        if name not in TASKS:
            hint = did_you_mean(name, TASKS, f"use some of {', '.join(TASKS)}")
            raise Error(f"no task is called {name!r}; {hint}")


def measure(exam: EvalContext, names: Sequence[str]) -> dict[str, dict[str, object]]:
    """The reports of the named tasks, or of all. Raises Error for an unknown one."""
    from mmada_lite.bench.quality.tasks import TASKS

    known(names)
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
    parser.add_argument("subject", type=Path, nargs="+", help="a checkpoint or a bundle; with --against, bundles")
    parser.add_argument("--against", type=Path, metavar="REFERENCE", help="a bundle of the same model in fp32, or the finest")
    add_exam_options(parser, 400)
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="TASK", help=f"these tasks alone; with --against, {ALONG} is one"
    )
    parser.add_argument("--prompts", type=int, default=100, help="of each task, to follow with --against (%(default)s)")
    parser.add_argument("--states", type=int, default=4, help="of each decoding, to follow with --against (%(default)s)")
    parser.add_argument("--hurry", action="store_true", help="decode in a quarter of the steps")
    parser.add_argument("--threads", type=int, default=1, help="of a step that --against times (%(default)s)")
    parser.add_argument("-o", "--output", type=Path, help="write JSON here too")
    arguments = parser.parse_args(argv)
    try:
        if arguments.against:
            shown, found = _compare(arguments)
        elif len(arguments.subject) > 1:
            raise Error("several bundles are measured with --against REFERENCE; give one, or add that")
        else:
            found = _measure(arguments, arguments.subject[0], arguments.only)
            shown = table(found["report"])
    except Error as error:
        print(f"mmada-lite: {error}", file=sys.stderr)
        return 2
    content = {"command": "mmada-lite bench quality " + " ".join(argv or sys.argv[1:]), **found}
    print(shown)
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


def _compare(arguments: argparse.Namespace) -> tuple[str, dict[str, dict]]:
    """Tables and JSON of bundles against the reference; with --output also a plot of divergence against megabytes."""
    from mmada_lite.bench.quality.compare import losses, tasks_table, trajectories_table
    from mmada_lite.bench.quality.quantization import against, plot

    require_counts(arguments, "prompts", "states", "threads")
    for path in (arguments.against, *arguments.subject):
        if not (path / "bundle.json").is_file():
            raise Error(f"{path} is no bundle; make one with mmada-lite export CHECKPOINT -o BUNDLE --precision fp32")
    names = [name for name in arguments.only if name != ALONG]
    known(names)
    shown: list[str] = []
    found: dict[str, dict] = {}
    rows: list[Row] = []
    if ALONG in arguments.only or not arguments.only:
        rows = against(arguments.against, arguments.subject, arguments.prompts, arguments.states, arguments.threads)
        shown.append(trajectories_table(rows))
        found["trajectories"] = {row.name: asdict(row) for row in rows}
    if names or not arguments.only:
        reference = _measure(arguments, arguments.against, names)
        others = {str(path): _measure(arguments, path, names)["report"] for path in arguments.subject}
        shown.append(tasks_table(reference["report"], others))
        found |= reference | {"others": others, "losses": {n: losses(reference["report"], o) for n, o in others.items()}}
    if arguments.output and rows:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        try:
            plot(rows, arguments.output.with_suffix(".png"))
        except Error as fault:  # the numbers are not lost for want of a picture
            print(f"mmada-lite: {fault}", file=sys.stderr)
    return "\n\n".join(shown), found


def open_exam(arguments: argparse.Namespace, path: Path) -> EvalContext:
    """The exam that those options ask for. Raises Error where one of its parts is missing."""
    from mmada_lite.bench.quality.models import open_subject
    from mmada_lite.bench.quality.tasks import EvalContext
    from mmada_lite.train.data import emoji
    from mmada_lite.train.judge import Judge
    from mmada_lite.train.workspace import Workspace

    if not 4 <= arguments.count <= MOST:
        raise Error(f"--count is {arguments.count}; use at least 4 cases, {MOST} at most")
    concepts = Workspace(arguments.folder).concepts
    icons = {role: emoji.load_concepts(concepts, role).pixels for role in ("train", "validation", "test")}
    subject = open_subject(path, arguments.device)
    return EvalContext(subject, Judge.load(arguments.judge).classify, icons, arguments.count, arguments.seed)


def _measure(arguments: argparse.Namespace, path: Path, names: Sequence[str]) -> dict[str, dict]:
    import numpy as np
    import torch

    exam = open_exam(arguments, path)
    subject = exam.subject
    if arguments.hurry:
        subject.text = replace(subject.text, steps=max(1, subject.text.steps // 4))
        subject.image = replace(subject.image, steps=max(1, subject.image.steps // 4))
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    decoding = {"text": str(subject.text), "image": str(subject.image)}
    return {"versions": versions, "decoding": decoding, "report": measure(exam, names)}


if __name__ == "__main__":
    sys.exit(main())
