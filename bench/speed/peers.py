"""`mmada-lite bench peers`: the published way of decoding in torch against ours, and whoever else is installed.

    mmada-lite bench peers --shape s --work .cache/bench
    mmada-lite bench peers --shape 8b --device cuda --only understanding drawing

One process, random weights. In every task the contestants take turns, each round in the other direction, after a turn that
does not count; ratios are taken within a round. A loop of equal steps is measured by a few of them and scaled, which the JSON
says in `scaled_from`. It knows contestants and a clock; what they do is `contestants`.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmada_lite.arguments import Parser
from mmada_lite.bench.command import Measured, add_output, at_least_one, execute, markdown, thread_count
from mmada_lite.bench.record import FRESH, Row, Run, say, spread
from mmada_lite.bench.speed.contestants import REFERENCES, Contest, Plan, TaskRun, Tasks
from mmada_lite.bench.speed.latency_cases import TARGETS
from mmada_lite.bench.timed import turns
from mmada_lite.errors import Error, did_you_mean
from mmada_lite.export.precision import specs_for
from mmada_lite.export.synthetic import SIZES, size_named
from mmada_lite.ort.cores import usable_cores
from mmada_lite.ort.devices import choose_device

EXACT = "torch fp32"  # what errors are told against
# Of ours, by device; the first one's loops are run.
PRECISIONS = {"cpu": ("int8", "int4", "fp32"), "openvino": ("bf16", "int8"), "gpu": ("fp16", "int4")}


@dataclass(frozen=True, slots=True)
class Turn:
    """One measurement: seconds of the whole task, the steps and model calls of it, and how many steps were timed for that."""

    seconds: float
    steps: int
    model_calls: int
    timed: int


def turn(run: TaskRun, limit: int) -> Turn:
    """Do a task and say what all of it takes; or, where its steps are equal, `limit` of them in whole cycles, which begin after
    a step that does not count where a cycle is one step: the contestant before left caches and threads to itself."""
    few = -(-limit // run.cycle) * run.cycle
    scaled = run.steps is not None and few < run.steps
    last: object = None
    steps = run.begin()
    if scaled and run.cycle == 1:
        next(steps)
    started = time.perf_counter()
    for count, last in enumerate(steps, 1):  # noqa: B007
        if scaled and count == few:
            break
    seconds = time.perf_counter() - started
    total = run.steps if scaled and run.steps else count
    return Turn(seconds * total / count, total, total if scaled else getattr(last, "model_calls", count), count)


def alternate(runs: Mapping[str, TaskRun], rounds: int, limit: int) -> tuple[dict[str, list[Turn]], dict[str, str]]:
    """`rounds` turns of each, after a step or two that do not count. And why each that failed on the way did: it takes no
    further turn."""
    taken: dict[str, list[Turn]] = {name: [] for name in runs}
    failures: dict[str, str] = {}
    for number, name in enumerate((*runs, *turns(list(runs), rounds))):
        try:
            if number < len(runs):
                list(islice(runs[name].begin(), 2))
            elif name not in failures:
                taken[name].append(turn(runs[name], limit))
        except Exception as fault:  # one that fails is told of, and the others go on
            failures[name] = reason_of(fault)
    return {name: each for name, each in taken.items() if name not in failures}, failures


def rows(task: str, everyone: Mapping[str, Tasks], written: int, rounds: int, limit: int) -> Iterator[Row]:
    """A row for each contestant in a task, which writes so many tokens; of one that failed, why."""
    with torch.inference_mode():
        runs = {name: of[task] for name, of in everyone.items() if task in of}
        taken, failures = alternate(runs, rounds, limit)
        errors = rms_errors({name: run for name, run in runs.items() if name in taken})
    yield from ({"task": task, "contestant": name, "not_run": reason} for name, reason in failures.items())
    for name, own in taken.items():
        seconds, one = spread(each.seconds for each in own), own[-1]
        yield {
            "task": task,
            "contestant": name,
            "kind": "reference" if name in REFERENCES else "ours" if name.startswith("ours") else "other",
            "seconds": seconds,
            "tokens_per_s": written / seconds["median"],
            "rms_error": errors.get(name),
            "steps": one.steps,
            "model_calls": one.model_calls,
            "scaled_from": {"steps": one.timed, "total_steps": one.steps} if one.timed < one.steps else None,
            "times": {
                other: spread(theirs.seconds / mine.seconds for theirs, mine in zip(taken[other], own, strict=True))
                for other in REFERENCES
                if other in taken and other != name
            },
        }


def rms_errors(runs: Mapping[str, TaskRun]) -> dict[str, float]:
    """Contestant -> the root mean square of what its logits are off from those of torch in fp32, over that of these. Empty
    where that takes no part, or the task is no forward."""
    exact = next((run.logits for name, run in runs.items() if name == EXACT), None)
    if exact is None:
        return {}
    expected = exact()
    scale = float(np.sqrt(np.mean(np.square(expected), dtype=np.float64)))

    def off(run: TaskRun) -> float:  # one at a time: at size S a whole row's logits are half a gigabyte
        assert run.logits is not None
        difference = run.logits() - expected
        return float(np.sqrt(np.mean(np.square(difference, out=difference), dtype=np.float64))) / scale

    return {name: off(run) for name, run in runs.items() if run.logits is not None and name != EXACT}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Task by task: seconds with their spread, tokens a second, the error of forwards, and how many times as fast as each
    reference."""
    against = [name for name in REFERENCES if any(row["contestant"] == name for row in rows)]
    lines = []
    for row in rows:
        seconds, scaled = row["seconds"], row["scaled_from"]
        about = f" (from {scaled['steps']} of {scaled['total_steps']} steps)" if scaled else ""
        cells = [
            row["task"],
            row["contestant"],
            f"{seconds['median']:.3f}",
            f"{seconds['min']:.3f} to {seconds['max']:.3f}{about}",
        ]
        times = [f"{row['times'][name]['median']:.2f}" if name in row["times"] else "" for name in against]
        error = f"{row['rms_error']:.4f}" if row.get("rms_error") is not None else ""
        lines.append([*cells, f"{row['tokens_per_s']:.1f}", row["model_calls"], error, *times])
    heads = ["task", "contestant", "seconds", "lowest to highest", "tokens/s", "model calls", "rms error"]
    return markdown([*heads, *(f"x {name}" for name in against)], lines)


def chosen(makers: Mapping[str, Callable[[], Tasks]], asked: Sequence[str]) -> list[str]:
    """Who was asked for: all where none was named, else those whose names begin so. Raises Error for the beginning of none."""
    for beginning in asked:
        if not any(name.startswith(beginning) for name in makers):
            hint = did_you_mean(beginning, makers, f"use the beginning of {', '.join(makers)}")
            raise Error(f"no contestant is called {beginning!r}; {hint}")
    return [name for name in makers if not asked or name.startswith(tuple(asked))]


def gather(makers: Mapping[str, Callable[[], Tasks]], names: Sequence[str]) -> tuple[dict[str, Tasks], dict[str, str]]:
    """Every contestant that can take part here, and why each other one cannot. Raises Error where none can."""
    missing: dict[str, str] = {}
    opened: dict[str, Tasks] = {}
    for name in names:
        say(f"opening {name}")
        try:
            opened[name] = makers[name]()
        except Exception as fault:  # mostly others' code; the record says which did not work here, and why
            missing[name] = reason_of(fault)
    if not opened:
        raise Error("no contestant of that name can run here; " + "; ".join(f"{name}: {why}" for name, why in missing.items()))
    return opened, missing


def reason_of(fault: Exception) -> str:
    """What went wrong, in one line."""
    return " ".join(str(fault).split())[:300] or type(fault).__name__


def measure(options: argparse.Namespace, arguments: Sequence[str]) -> Measured:
    """Task by task, each kept when it is done."""
    size = size_named(options.shape)
    precisions = options.precisions or PRECISIONS.get(options.device, PRECISIONS["gpu"])
    for precision in precisions:
        specs_for(precision)  # an unknown one is told before a model is made
    choose_device(options.device)
    plan = Plan.of(size)
    tasks = options.only or plan.tasks
    if unknown := [task for task in tasks if task not in plan.tasks]:
        raise Error(f"no task of this shape is called {unknown[0]!r}; use some of {', '.join(plan.tasks)}")
    run, before = Run("peers", arguments, options.output, force=options.force), torch.get_num_threads()
    run.plan(len(tasks) + 1)
    with tempfile.TemporaryDirectory() as scratch:
        contest = Contest(options.shape, size, plan, options.work or Path(scratch), options.threads, options.device)
        makers = contest.makers(precisions, options.contestants)
        opened = cache(partial(gather, makers, chosen(makers, options.contestants)))

        def turns_of(task: str) -> Iterator[Row]:
            return rows(task, opened()[0], plan.written(task, size), options.rounds, options.steps)

        torch.set_num_threads(options.threads)
        try:
            results = [row for task in tasks for row in run.do(task, partial(turns_of, task))]
            missing = run.do("what did not run", lambda: [{"name": name, "why": why} for name, why in opened()[1].items()])
        finally:
            torch.set_num_threads(before)
    about = {"shape": options.shape.lower(), "device": options.device, "threads": options.threads, "rounds": options.rounds}
    not_run = {row["name"]: row["why"] for row in missing}
    not_run |= {f"{row['contestant']}, {row['task']}": row["not_run"] for row in results if "not_run" in row}
    measured = [row for row in results if "not_run" not in row]
    if not measured:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in not_run.items())
        raise Error(f"nothing could be measured ({reasons}); mend one of these, then begin anew with {FRESH}")
    content = run.finish(measured, missing=not_run, weights="random", **about, plan=asdict(plan))
    lines = [table(measured), *(f"not run: {name}: {why}" for name, why in not_run.items())]
    return content, "\n".join(lines), run.path


def build_parser() -> Parser:
    parser = Parser(prog="mmada-lite bench peers", description=__doc__.splitlines()[0])
    add, number = parser.add_argument, at_least_one
    add("--shape", default="s", help=f"of the random model: {', '.join(SIZES)} (default s)")
    add("--work", type=Path, help="where random bundles are made once and kept (default: a temporary folder)")
    add("--device", choices=TARGETS, default="cpu", help="of ours and of torch (default: %(default)s)")
    add(
        "--precisions",
        nargs="+",
        help="ours, the first one's loops too (default int8 int4 fp32; on openvino bf16 int8, on a GPU fp16 int4)",
    )
    add("--rounds", type=number, default=3, help="counted turns of each contestant (default 3)")
    add("--steps", type=number, default=3, help="timed steps of a loop of equal steps (default 3)")
    add("--only", nargs="+", metavar="TASK", help='such as text understanding drawing "forward 32"')
    add("--contestants", nargs="+", default=[], metavar="NAME", help='whose names begin so, such as torch "ours int8"')
    add("--threads", type=thread_count, default=usable_cores(), help="of every contestant (default: usable cores)")
    add_output(parser, "peers")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return execute(build_parser(), measure, argv)


if __name__ == "__main__":
    sys.exit(main())
