"""`mmada-lite bench quality`: how good answers and drawings are.

    mmada-lite bench quality MODEL                         # every task of bench/quality/tasks, with counts and 95% intervals
    mmada-lite bench quality INT8 INT4 --against FP32      # what bundles lose, in the tasks and along the reference's decodings
    mmada-lite bench quality NEW --against OLD             # what other weights change in the same cases, and in the mean
    mmada-lite bench quality MODEL --frontier              # quality against latency over ways of decoding; picks the presets
    mmada-lite bench quality MODEL --presets               # what each --speed costs and gains

Each task is kept when it is done. Knows the command line; the tasks know the data.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

from mmada_lite.arguments import Parser
from mmada_lite.bench.command import Measured, add_output, at_least_one, execute, markdown, thread_count
from mmada_lite.bench.quality import choice, frontier
from mmada_lite.bench.quality import quantization as along
from mmada_lite.bench.quality.compare import families, families_table, losses, tasks_table, valued
from mmada_lite.bench.quality.context import EvalContext
from mmada_lite.bench.quality.models import is_bundle, is_model, open_model
from mmada_lite.bench.quality.tasks import TASKS
from mmada_lite.bench.record import Row, Run, default_output, fingerprint
from mmada_lite.errors import Error, did_you_mean
from mmada_lite.ort.devices import choose_device
from mmada_lite.train.data import emoji
from mmada_lite.train.data.texts import Half
from mmada_lite.train.intervals import clusters_of
from mmada_lite.train.judge import Judge
from mmada_lite.train.workspace import Workspace

MOST = 20_000  # cases of a task: their pictures are held in memory together
ALONG = "trajectory"  # with --against, the name in --only of what needs no icons and no judge
DEFAULTS = {"quality": (400, 1), "against": (400, 100), "frontier": (480, 8), "presets": (400, 16)}  # --count, --prompts


def build_parser() -> Parser:
    parser = Parser(prog="mmada-lite bench quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, number = parser.add_argument, at_least_one
    add("model", type=Path, nargs="+", help="a checkpoint or a bundle; with --against, one or several")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--against", type=Path, metavar="REFERENCE", help="what to compare with: fp32, or the model before")
    mode.add_argument("--frontier", action="store_true", help="quality against latency, every policy of bench/policies.py")
    mode.add_argument("--presets", action="store_true", help="quality against latency of what --speed names")
    add("--folder", type=Path, default=Path("runs/emoji-work"), help="working folder of the training: icons")
    add("--judge", type=Path, default=Path("train/shipped/judge"), help="folder of the judge (%(default)s)")
    halves = (
        "half of what is held out: models and settings are chosen by validation, the card is measured on test (%(default)s)"
    )
    add("--split", choices=get_args(Half), default="validation", help=halves)
    add(
        "--count", type=int, help="cases a task has at most (default 400; of a frontier 480); of ways, 4 times as many drawings"
    )
    add("--seed", type=int, default=1000, help="of the cases and of decoding (%(default)s)")
    add("--device", default="auto", help="of a bundle, as of `mmada-lite plan` (default: %(default)s)")
    add("--only", nargs="*", default=[], metavar="TASK", help=f"these tasks alone; with --against, {ALONG} of bundles is one")
    add("--few-steps", action="store_true", help="decode in a quarter of the steps")
    add("--prompts", type=number, help="of each task, to follow with --against (default 100); to time (default 8; presets 16)")
    add("--states", type=number, default=4, help="of each decoding, to follow with --against (%(default)s)")
    add("--threads", type=thread_count, default=1, help="of a step that --against times (%(default)s)")
    add("--policies", nargs="+", default=[], metavar="WORD", help="of a frontier, those with WORD in the name")
    add("--rounds", type=number, default=3, help="times that each prompt is timed (%(default)s)")
    add("--checkpoint", type=Path, help="of the same model: the published loops in torch are timed too")
    add("--bf16", action="store_true", help="those in bfloat16 also where the processor lacks its instructions")
    add("--plot", type=Path, metavar="PNG", help="draw it with matplotlib")
    add_output(parser, "quality, against, frontier or presets")
    return parser


def measure(options: argparse.Namespace, arguments: Sequence[str]) -> Measured:
    mode = next((name for name in ("against", "frontier", "presets") if getattr(options, name)), "quality")
    count, prompts = DEFAULTS[mode]
    options.count, options.prompts = count if options.count is None else options.count, options.prompts or prompts
    if not 4 <= options.count <= MOST:
        raise Error(f"--count is {options.count}; use at least 4 cases, {MOST} at most")
    if mode != "against" and len(options.model) > 1:
        raise Error("several models are measured with --against REFERENCE; give one, or add that")
    names = [name for name in options.only if name != ALONG or mode != "against"]
    for name in names:
        if name not in TASKS:
            hint = did_you_mean(name, TASKS, f"use some of {', '.join(TASKS)}")
            raise Error(f"no task is called {name!r}; {hint}")
    if mode == "against" and ALONG in options.only:
        along.require_bundles(options.against, *options.model)
    for path in (*([options.against] if mode == "against" else []), *options.model):
        is_model(path)
    if options.device != "auto":
        choose_device(options.device)  # one that does not work here is told before anything is measured
    paths = (*options.model, *(path for path in (options.against, options.checkpoint) if path is not None))
    about = fingerprint(*paths, options.judge)
    run = Run("quality", arguments, options.output or default_output(mode), force=options.force, about=about)
    measured = {"against": _against, "frontier": _timed, "presets": _timed, "quality": _tasks}[mode]
    return measured(options, run, mode, names)


class Cases:
    """Icons and a judge, opened once, and the context of one model at a time. Raises Error where a part is missing."""

    def __init__(self, options: argparse.Namespace) -> None:
        concepts = Workspace(options.folder).concepts
        self._icons = {role: emoji.load_concepts(concepts, role).pixels for role in ("train", options.split)}
        self._judge, self._options = Judge.load(options.judge), options
        self.of = cache(self._of)

    def _of(self, path: Path) -> EvalContext:
        options, model = self._options, open_model(path, self._options.device)
        if options.few_steps:
            model.text = model.text.replace(steps=max(1, model.text.steps // 4))
            model.image = model.image.replace(steps=max(1, model.image.steps // 4))
        return EvalContext(model, self._judge.classify, self._icons, options.count, options.seed, options.split)


def _reports(run: Run, cases: Cases, path: Path, names: Sequence[str]) -> list[Row]:
    """A row a task: what was counted. Done first to last, one model after the other."""

    def examine(task: str) -> list[Row]:
        context = cases.of(path)
        settings = {"text": context.model.text.flat(), "image": context.model.image.flat()}
        return [{"model": str(path), "task": task, "decoding": settings, "report": TASKS[task](context)}]

    return [row for task in names for row in run.do(f"{task} of {path}", partial(examine, task))]


def _tasks(options: argparse.Namespace, run: Run, mode: str, names: Sequence[str]) -> Measured:
    (path,), asked = options.model, names or list(TASKS)
    run.plan(len(asked))
    rows = _reports(run, Cases(options), path, asked)
    return run.finish(rows, mode=mode, count=options.count), table(rows), run.path


def _follows(options: argparse.Namespace) -> bool:
    """Whether the reference's decodings are followed: of bundles, unless other tasks alone are asked for."""
    return ALONG in options.only or (not options.only and all(map(is_bundle, (options.against, *options.model))))


def _along(reference: Callable[[], along.Reference], path: Path) -> list[Row]:
    return [{"model": str(path), "task": ALONG, **reference().told_of_bundle(path)}]


def _against(options: argparse.Namespace, run: Run, mode: str, names: Sequence[str]) -> Measured:
    """Tables and JSON of models against the reference; with --plot divergence of bundles against megabytes."""
    follow, asked = _follows(options), names or ([] if options.only else list(TASKS))
    run.plan(len(options.model) * follow + len(asked) * (1 + len(options.model)))
    shown, changes, rows = list[str](), dict[str, object](), list[Row]()
    if follow:
        reference = along.Reference.cached(options.against, options.prompts, options.states, options.threads)
        rows = [row for path in options.model for row in run.do(f"{ALONG} of {path}", partial(_along, reference, path))]
        shown.append(along.table(rows))
        if options.plot:
            along.plot(rows, options.plot)
    elif not options.only:
        shown.append(f"{ALONG}: left out, as not all are bundles")
    if asked:
        cases, reports = Cases(options), dict[Path, dict[str, dict]]()
        for path in (options.against, *options.model):
            examined = _reports(run, cases, path, asked)
            reports[path] = {row["task"]: row["report"] for row in examined}
            rows += examined
        first = reports[options.against]
        lost = {str(path): losses(first, reports[path]) for path in options.model}
        whole = {str(path): families(first, reports[path]) for path in options.model}
        shown += [tasks_table(first, lost), *([families_table(whole)] if all(whole.values()) else [])]
        changes |= {"losses": lost, "families": whole}
    content = run.finish(rows, mode=mode, reference=str(options.against), count=options.count, **changes)
    return content, "\n\n".join(shown), run.path


def _timed(options: argparse.Namespace, run: Run, mode: str, names: Sequence[str]) -> Measured:
    """Ways of decoding, by quality and latency."""
    context = Cases(options).of(options.model[0])
    model = context.model
    published = frontier.Published.open(options.checkpoint, model, options.bf16) if options.checkpoint else None
    ways = {kind: frontier.ways_of(kind, mode, options.policies, model) for kind in frontier.UNITS}
    run.plan(sum(1 + len(good) for good, _ in ways.values()))  # and some of the fastest again, with all cases
    rows: list[Row] = []
    for kind, (good, _) in ways.items():
        rows += frontier.rows(context, run, kind, good, options.prompts, options.rounds, published)
    if options.plot:
        frontier.plot(rows, options.plot)
    passed = [line for _, bad in ways.values() for line in bad]
    base = {"text": model.text.flat(), "image": model.image.flat()}
    about = {"model": model.name, "count": options.count, "prompts": options.prompts, "rounds": options.rounds}
    picked = {"presets": choice.presets(rows)} if mode == "frontier" else {}
    content = run.finish(rows, mode=mode, base=base, passed_over=passed, **about, **picked)
    said = [frontier.table(rows), *(f"passed over: {line}" for line in passed), *(choice.in_words(rows) if picked else [])]
    return content, "\n".join(said), run.path


def table(rows: Sequence[Row]) -> str:
    """Task, metric, share with its interval, counts, and of how many icons or captions these are."""
    lines = []
    for row in rows:
        for name, value in row["report"].items():
            if isinstance(value, dict) and "share" in value:
                asked = f"{value['right']} / {value['total']}" + repeated(value)
                lines.append([row["task"], name, valued(value), f"{value['low']:.1%} to {value['high']:.1%}", asked])
            elif isinstance(value, dict) and "mean" in value:
                cells = [valued(value), f"{value['low']:.2f} to {value['high']:.2f}", f"of {value['total']}"]
                lines.append([row["task"], name, *cells])
    return markdown(["task", "metric", "value", "95% interval", "right / asked"], lines)


def repeated(value: Mapping[str, Any]) -> str:
    """Of how many icons or captions the cases are, where some come more than once."""
    clusters = set(clusters_of(value) or ())
    if not clusters or len(clusters) == value["total"]:
        return ""
    return f", of {len(clusters)} {value['clusters'].split(' ')[0]}s"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 0, or 2 after a fault of the user."""
    return execute(build_parser(), measure, argv)


if __name__ == "__main__":
    sys.exit(main())
