"""`mmada-lite bench quality`: how good answers and drawings are.

    mmada-lite bench quality MODEL                         # every task of bench/quality/tasks, with counts and 95% intervals
    mmada-lite bench quality INT8 INT4 --against FP32      # what bundles lose, in the tasks and along the reference's decodings
    mmada-lite bench quality MODEL --frontier              # quality against latency over ways of decoding
    mmada-lite bench quality MODEL --presets               # what each --speed costs and gains

Each task is kept when it is done. Knows the command line; the tasks know the data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from mmada_lite.arguments import Parser
from mmada_lite.bench.command import add_output, execute, require_counts
from mmada_lite.bench.quality import frontier, measures
from mmada_lite.bench.quality.compare import losses, tasks_table, trajectories_table
from mmada_lite.bench.quality.measures import Published
from mmada_lite.bench.quality.models import is_model, open_model
from mmada_lite.bench.quality.quantization import Reference, plot, require_bundles
from mmada_lite.bench.quality.tasks import TASKS, EvalContext
from mmada_lite.bench.record import Row, Run, default_output, fingerprint
from mmada_lite.errors import Error, did_you_mean
from mmada_lite.ort.devices import choose_device
from mmada_lite.train.data import emoji
from mmada_lite.train.judge import Judge
from mmada_lite.train.workspace import Workspace

MOST = 20_000  # cases of a task: their pictures are held in memory together
ALONG = "trajectory"  # with --against, the name in --only of what needs no icons and no judge
DEFAULTS = {"quality": (400, 0), "against": (400, 100), "frontier": (100, 8), "presets": (400, 16)}  # --count, --prompts
Measured = tuple[dict[str, Any], str, Path | None]


def build_parser() -> Parser:
    parser = Parser(prog="mmada-lite bench quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="+", help="a checkpoint or a bundle; with --against, bundles")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--against", type=Path, metavar="REFERENCE", help="a bundle of the same model in fp32, or the finest")
    mode.add_argument("--frontier", action="store_true", help="quality against latency, every policy of bench/policies.py")
    mode.add_argument("--presets", action="store_true", help="quality against latency of what --speed names")
    parser.add_argument("--folder", type=Path, default=Path("runs/emoji-work"), help="working folder of the training: icons")
    parser.add_argument("--judge", type=Path, default=Path("train/shipped/judge"), help="folder of the judge (%(default)s)")
    parser.add_argument("--count", type=int, help="cases a task has at most (default 400; of a frontier 100)")
    parser.add_argument("--seed", type=int, default=1000, help="of the cases and of decoding (%(default)s)")
    parser.add_argument("--device", default="auto", help="of a bundle: auto, cpu or cuda")
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="TASK", help=f"these tasks alone; with --against, {ALONG} is one"
    )
    parser.add_argument("--few-steps", action="store_true", help="decode in a quarter of the steps")
    parser.add_argument(
        "--prompts", type=int, help="of each task, to follow with --against (default 100); to time (default 8; presets 16)"
    )
    parser.add_argument("--states", type=int, default=4, help="of each decoding, to follow with --against (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of a step that --against times (%(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=frontier.UNITS, default=list(frontier.UNITS), help="to time: both")
    parser.add_argument("--policies", nargs="+", default=[], metavar="WORD", help="of a frontier, those with WORD in the name")
    parser.add_argument("--rounds", type=int, default=3, help="times that each prompt is timed (%(default)s)")
    parser.add_argument("--checkpoint", type=Path, help="of the same model: the published loops in torch are timed too")
    parser.add_argument("--bf16", action="store_true", help="those in bfloat16 also where the processor lacks its instructions")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw it with matplotlib")
    add_output(parser, "quality, against, frontier or presets")
    return parser


def measure(options: argparse.Namespace, arguments: Sequence[str]) -> Measured:
    named = ("frontier", "presets")
    mode = "against" if options.against else next((name for name in named if getattr(options, name)), "quality")
    count, prompts = DEFAULTS[mode]
    options.count = count if options.count is None else options.count
    options.prompts = prompts or 1 if options.prompts is None else options.prompts
    require_counts(options, "prompts", "states", "threads", "rounds")
    if not 4 <= options.count <= MOST:
        raise Error(f"--count is {options.count}; use at least 4 cases, {MOST} at most")
    if mode != "against" and len(options.model) > 1:
        raise Error("several bundles are measured with --against REFERENCE; give one, or add that")
    names = [name for name in options.only if name != ALONG or mode != "against"]
    known(names)
    if mode == "against":
        require_bundles(options.against, *options.model)
    for path in options.model:
        is_model(path)
    if options.device != "auto":
        choose_device(options.device)  # one that does not work here is told before anything is measured
    paths = (*options.model, *(path for path in (options.against, options.checkpoint) if path is not None))
    about = fingerprint(*paths, options.judge)
    run = Run("quality", arguments, options.output or default_output(mode), force=options.force, about=about)
    measured = {"against": _against, "frontier": _timed, "presets": _timed, "quality": _tasks}[mode]
    return measured(options, run, mode, names)


def known(names: Sequence[str]) -> None:
    """Raises Error for an unknown task."""
    for name in names:
        if name not in TASKS:
            hint = did_you_mean(name, TASKS, f"use some of {', '.join(TASKS)}")
            raise Error(f"no task is called {name!r}; {hint}")


class Cases:
    """Icons and a judge, opened once, and the context of one model at a time. Raises Error where a part is missing."""

    def __init__(self, options: argparse.Namespace) -> None:
        concepts = Workspace(options.folder).concepts
        self._icons = {role: emoji.load_concepts(concepts, role).pixels for role in ("train", "validation", "test")}
        self._judge, self._options = Judge.load(options.judge), options
        self.of = cache(self._of)

    def _of(self, path: Path) -> EvalContext:
        options, model = self._options, open_model(path, self._options.device)
        if options.few_steps:
            model.text = model.text.replace(steps=max(1, model.text.steps // 4))
            model.image = model.image.replace(steps=max(1, model.image.steps // 4))
        return EvalContext(model, self._judge.classify, self._icons, options.count, options.seed)


def _reports(run: Run, cases: Cases, path: Path, names: Sequence[str]) -> list[Row]:
    """A row a task: what was counted. Done first to last, one model after the other."""

    def examine(task: str) -> list[Row]:
        context = cases.of(path)
        settings = {"text": context.model.text.flat(), "image": context.model.image.flat()}
        return [{"model": str(path), "task": task, "decoding": settings, "report": TASKS[task](context)}]

    return [row for task in names for row in run.do(f"{task} of {path}", partial(examine, task))]


def _along(reference: Callable[[], Reference], path: Path) -> list[Row]:
    return [reference().told_of_bundle(path)]


def _tasks(options: argparse.Namespace, run: Run, mode: str, names: Sequence[str]) -> Measured:
    (path,), asked = options.model, names or list(TASKS)
    run.plan(len(asked))
    rows = _reports(run, Cases(options), path, asked)
    return run.finish(rows, mode=mode, count=options.count), table(rows), run.path


def _against(options: argparse.Namespace, run: Run, mode: str, names: Sequence[str]) -> Measured:
    """Tables and JSON of bundles against the reference; with --plot divergence against megabytes."""
    along = ALONG in options.only or not options.only
    asked = names or ([] if options.only else list(TASKS))
    run.plan(len(options.model) * along + len(asked) * (1 + len(options.model)))
    shown, about, rows = list[str](), dict[str, Any](), list[Row]()
    if along:
        reference = Reference.cached(options.against, options.prompts, options.states, options.threads)
        compared = [row for path in options.model for row in run.do(f"{ALONG} of {path}", partial(_along, reference, path))]
        shown.append(trajectories_table(compared))
        rows += [{"model": row["name"], "task": ALONG, **row} for row in compared]
        if options.plot:
            plot(compared, options.plot)
    if asked:
        cases = Cases(options)
        reports = {str(path): _reports(run, cases, path, asked) for path in (options.against, *options.model)}
        rows += [row for path in reports for row in reports[path]]
        by_model = {path: {row["task"]: row["report"] for row in examined} for path, examined in reports.items()}
        of_reference, others = by_model[str(options.against)], {str(path): by_model[str(path)] for path in options.model}
        shown.append(tasks_table(of_reference, others))
        about["losses"] = {name: losses(of_reference, report) for name, report in others.items()}
    content = run.finish(rows, mode=mode, reference=str(options.against), count=options.count, **about)
    return content, "\n\n".join(shown), run.path


def _timed(options: argparse.Namespace, run: Run, mode: str, names: Sequence[str]) -> Measured:
    """Ways of decoding, by quality and latency."""
    (path,) = options.model
    context = Cases(options).of(path)
    published = Published.open(options.checkpoint, context.model, options.bf16) if options.checkpoint else None
    ways = {kind: measures.valid(frontier.ways_of(kind, mode, options.policies), context.model) for kind in options.kinds}
    run.plan(sum(1 + len(good) for good, _ in ways.values()))
    rows: list[Row] = []
    for kind, (good, _) in ways.items():
        rows += frontier.rows(context, run, kind, good, options.prompts, options.rounds, published)
    if options.plot:
        frontier.plot(rows, options.plot)
    passed = [f"{kind} {line}" for kind, (_, bad) in ways.items() for line in bad]
    base = {"text": context.model.text.flat(), "image": context.model.image.flat()}
    about = {"model": context.model.name, "count": options.count, "prompts": options.prompts, "rounds": options.rounds}
    content = run.finish(rows, mode=mode, base=base, passed_over=passed, **about)
    return content, "\n".join([frontier.table(rows), *(f"passed over: {line}" for line in passed)]), run.path


def table(rows: Sequence[Row]) -> str:
    """Task, metric, share with its interval, counts."""
    lines = ["| task | metric | value | 95% interval | right / asked |", "|---|---|---|---|---|"]
    for row in rows:
        for name, value in row["report"].items():
            if not isinstance(value, dict) or "low" not in value:
                continue
            if "share" in value:
                cells = [f"{value['share']:.1%}", f"{value['low']:.1%} to {value['high']:.1%}"]
                cells.append(f"{value['right']} / {value['total']}")
            else:
                cells = [f"{value['mean']:.2f} dB", f"{value['low']:.2f} to {value['high']:.2f}", f"{value['total']} pictures"]
            lines.append("| " + " | ".join([row["task"], name, *cells]) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 0, or 2 after a fault of the user."""
    return execute(build_parser(), measure, argv)


if __name__ == "__main__":
    sys.exit(main())
