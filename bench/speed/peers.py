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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from mmada_lite.arguments import Parser
from mmada_lite.bench.command import add_output, execute, require_counts
from mmada_lite.bench.policies import for_peers
from mmada_lite.bench.record import FRESH, Row, Run, say, spread
from mmada_lite.bench.reference import torch_logits
from mmada_lite.bench.speed import contestants
from mmada_lite.bench.speed.contestants import Contestant, Plan, TaskRun
from mmada_lite.bench.speed.latency_cases import TARGETS
from mmada_lite.errors import Error, did_you_mean
from mmada_lite.export.precision import specs_for
from mmada_lite.export.synthetic import SIZES, Size, size_named
from mmada_lite.ort.devices import choose_device
from mmada_lite.ort.session import usable_cores
from mmada_lite.train.loop import fast_type

TORCH_DEVICES = {"cpu": "cpu", "cuda": "cuda", "rtx": "cuda", "tensorrt": "cuda"}  # our device -> torch's beside it
REFERENCES = {"torch fp32": torch.float32, "torch bf16": torch.bfloat16}
PRECISIONS = {"cpu": ("int8", "int4", "fp32"), "gpu": ("fp16", "int4")}  # the first one's loops are run


@dataclass(frozen=True, slots=True)
class Turn:
    """One measurement: seconds of the whole task, the steps and model calls of it, and how many steps were timed for that."""

    seconds: float
    steps: int
    model_calls: int
    timed: int


def turn(run: TaskRun, limit: int | None) -> Turn:
    """Do a task and say what all of it takes; or, where its steps are equal, `limit` of them in whole cycles, which begin after
    a step that does not count where a cycle is one step: the contestant before left caches and threads to itself."""
    few = -(-limit // run.cycle) * run.cycle if limit and run.equal and run.steps else None
    if few and run.steps and few >= run.steps:
        few = None
    last: object = None
    steps = run.begin()
    if few and run.cycle == 1:
        next(steps)
    started = time.perf_counter()
    for count, last in enumerate(steps, 1):  # noqa: B007
        if count == few:
            break
    seconds = time.perf_counter() - started
    total = run.steps if few and run.steps else count
    model_calls = total if few else getattr(last, "model_calls", count)
    return Turn(seconds * total / count, total, model_calls, count)


def alternate(runs: Mapping[str, TaskRun], rounds: int, limit: int | None) -> tuple[dict[str, list[Turn]], dict[str, str]]:
    """`rounds` turns of each, after a short one that does not count; every second round runs backwards. And why each that
    failed on the way did: it takes no further turn."""
    turns: dict[str, list[Turn]] = {name: [] for name in runs}
    failures: dict[str, str] = {}

    def attempt(name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as fault:  # one that fails is told of, and the others go on
            failures[name] = reason_of(fault)
            del turns[name]

    for name, run in runs.items():
        attempt(name, partial(_warm_up, run))
    for number in range(rounds):
        for name in list(runs)[:: -1 if number % 2 else 1]:
            if name in turns:
                attempt(name, lambda name=name: turns[name].append(turn(runs[name], limit)))  # type: ignore[misc]
    return turns, failures


def _warm_up(run: TaskRun) -> None:
    """A step, or two where there are so many."""
    for _ in islice(run.begin(), 2):
        pass


def rows(task: str, everyone: Sequence[Contestant], written: int, rounds: int, limit: int | None) -> Iterator[Row]:
    """A row for each contestant in a task, which writes so many tokens; of one that failed, why."""
    runs = {each.name: each.tasks[task] for each in everyone if task in each.tasks}
    with torch.inference_mode():
        turns, failures = alternate(runs, rounds, limit)
    references = [each.name for each in everyone if each.kind == "reference" and each.name in turns]
    for each in everyone:
        if each.name in failures:
            yield {"task": task, "contestant": each.name, "not_run": failures[each.name]}
        if each.name not in turns:
            continue
        seconds, one = spread(measured.seconds for measured in turns[each.name]), turns[each.name][-1]
        yield {
            "task": task,
            "contestant": each.name,
            "kind": each.kind,
            "seconds": seconds,
            "tokens_per_s": written / seconds["median"],
            "steps": one.steps,
            "model_calls": one.model_calls,
            "scaled_from": {"steps": one.timed, "total_steps": one.steps} if one.timed < one.steps else None,
            "times": {
                name: spread(theirs.seconds / own.seconds for theirs, own in zip(turns[name], turns[each.name], strict=True))
                for name in references
                if name != each.name
            },
        }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Task by task: seconds with their spread, tokens a second, and how many times as fast as each reference."""
    against = list(dict.fromkeys(row["contestant"] for row in rows if row["kind"] == "reference"))
    head = ["task", "contestant", "seconds", "lowest to highest", "tokens/s", "model calls", *(f"x {name}" for name in against)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        seconds, scaled = row["seconds"], row["scaled_from"]
        about = f" (from {scaled['steps']} of {scaled['total_steps']} steps)" if scaled else ""
        times = [f"{row['times'][name]['median']:.2f}" if name in row["times"] else "" for name in against]
        cells = [row["task"], row["contestant"], f"{seconds['median']:.3f}"]
        cells.append(f"{seconds['min']:.3f} to {seconds['max']:.3f}{about}")
        lines.append("| " + " | ".join([*cells, f"{row['tokens_per_s']:.1f}", str(row["model_calls"]), *times]) + " |")
    return "\n".join(lines)


def wanted(name: str, asked: Sequence[str]) -> bool:
    """Whether a contestant was asked for: all are where none was named, else those whose names begin so."""
    return not asked or any(name.startswith(beginning) for beginning in asked)


def require_contestants(asked: Sequence[str], known: Sequence[str]) -> None:
    """Raise Error for a beginning of no contestant's name."""
    for beginning in asked:
        if not any(wanted(name, [beginning]) for name in known):
            hint = did_you_mean(beginning, known, f"use the beginning of {', '.join(known)}")
            raise Error(f"no contestant is called {beginning!r}; {hint}")


def makers(
    options: argparse.Namespace, size: Size, plan: Plan, precisions: Sequence[str], work: Path
) -> Iterator[tuple[str, Callable[[], Iterable[Contestant]]]]:
    """Name and maker of all that can be asked for here, in the order of the table. One of ours gives several, one a policy."""
    device = TORCH_DEVICES[options.device]
    fast = fast_type(torch.device(device)) == torch.bfloat16

    def published(name: str, dtype: torch.dtype) -> Iterator[Contestant]:
        if dtype == torch.bfloat16 and not fast and not options.bf16:
            raise Error("this processor has no bfloat16 instructions, and torch is far slower without; --bf16 measures it")
        logits = torch_logits(contestants.torch_model(size, dtype, device))
        yield contestants.reference(name, logits, size, plan, device=device)

    for name, dtype in REFERENCES.items():
        yield name, partial(published, name, dtype)
    for precision in precisions:
        decode = precision == (options.decode or precisions[0])
        own = (options.shape, size, plan, precision, work, options.threads)
        yield f"ours {precision}", partial(contestants.ours, *own, decode=decode, device=options.device)
    if options.device == "cpu":
        for name, make in contestants.others(options.shape, size, plan, work, options.threads):
            yield name, lambda make=make: [make()]  # type: ignore[misc]


def names_of(name: str) -> list[str]:
    """The contestants that a maker of this name may give."""
    return [name, *(f"{name} {policy.name}" for policy in for_peers())] if name.startswith("ours ") else [name]


def gather(
    options: argparse.Namespace, size: Size, plan: Plan, precisions: Sequence[str], work: Path
) -> tuple[list[Contestant], dict[str, str]]:
    """Every contestant that can take part here, and why each other one cannot. Raises Error where none can."""
    missing: dict[str, str] = {}
    opened: list[Contestant] = []
    for name, make in makers(options, size, plan, precisions, work):
        if any(wanted(each, options.contestants) for each in names_of(name)):
            say(f"opening {name}")
            try:
                opened += [each for each in make() if wanted(each.name, options.contestants)]
            except Exception as fault:  # mostly others' code; the record says which did not work here, and why
                missing[name] = reason_of(fault)
    if not opened:
        why = "".join(f"; {name}: {reason}" for name, reason in missing.items())
        raise Error(f"no contestant of that name can run here{why or '; see --help for --contestants'}")
    return opened, missing


def reason_of(fault: Exception) -> str:
    """What went wrong, in one line."""
    return " ".join(str(fault).split())[:300] or type(fault).__name__


@contextmanager
def threads_of_torch(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(options: argparse.Namespace, arguments: Sequence[str]) -> tuple[dict[str, Any], str, Path | None]:
    """Task by task, each kept when it is done."""
    require_counts(options, "rounds", "steps", "threads")
    size = size_named(options.shape)
    precisions = options.precisions or PRECISIONS["cpu" if options.device == "cpu" else "gpu"]
    for precision in (*precisions, options.decode or precisions[0]):
        specs_for(precision)  # an unknown one is told before a model is made
    choose_device(options.device)
    plan = Plan.of(size)
    tasks = options.only or plan.tasks
    if unknown := [task for task in tasks if task not in plan.tasks]:
        raise Error(f"no task of this shape is called {unknown[0]!r}; use some of {', '.join(plan.tasks)}")
    with_names = makers(options, size, plan, precisions, Path())
    require_contestants(options.contestants, [each for name, _ in with_names for each in names_of(name)])
    run, limit = Run("peers", arguments, options.output, force=options.force), None if options.whole else options.steps
    run.plan(len(tasks) + 1)
    with tempfile.TemporaryDirectory() as scratch, threads_of_torch(options.threads):
        opened = cache(partial(gather, options, size, plan, precisions, options.work or Path(scratch)))

        def turns(task: str) -> Iterator[Row]:
            return rows(task, opened()[0], plan.written(task, size), options.rounds, limit)

        results = [row for task in tasks for row in run.do(task, partial(turns, task))]
        missing = run.do("what did not run", lambda: [{"name": name, "why": why} for name, why in opened()[1].items()])
    about = {"shape": options.shape.lower(), "device": options.device, "threads": options.threads, "rounds": options.rounds}
    not_run = {row["name"]: row["why"] for row in missing}
    measured = [row for row in results if "not_run" not in row]
    not_run |= {f"{row['contestant']}, {row['task']}": row["not_run"] for row in results if "not_run" in row}
    if not measured:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in not_run.items())
        raise Error(f"nothing could be measured ({reasons}); mend one of these, then begin anew with {FRESH}")
    content = run.finish(measured, missing=not_run, weights="random", **about, plan=asdict(plan))
    lines = [table(measured), *(f"not run: {name}: {why}" for name, why in not_run.items())]
    return content, "\n".join(lines), run.path


def build_parser() -> Parser:
    parser = Parser(prog="mmada-lite bench peers", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="s", help=f"of the random model: {', '.join(SIZES)} (default s)")
    parser.add_argument("--work", type=Path, help="where random bundles are made once and kept (default: a temporary folder)")
    parser.add_argument("--device", choices=TARGETS, default="cpu", help="of ours and of torch (default: %(default)s)")
    parser.add_argument("--precisions", nargs="+", help="ours (default int8 int4 fp32; on a GPU fp16 int4)")
    parser.add_argument("--decode", metavar="PRECISION", help="the one whose loops are run (default: the first)")
    parser.add_argument("--rounds", type=int, default=3, help="counted turns of each contestant (default 3)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a loop of equal steps (default 3)")
    parser.add_argument("--whole", action="store_true", help="run every loop to its end: hours at size s")
    parser.add_argument("--only", nargs="+", metavar="TASK", help='such as text understanding drawing "forward 32"')
    parser.add_argument(
        "--contestants", nargs="+", default=[], metavar="NAME", help='whose names begin so, such as torch "ours int8"'
    )
    parser.add_argument("--bf16", action="store_true", help="torch bf16 also where the processor lacks its instructions")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of every contestant (default: usable cores)")
    add_output(parser, "peers")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return execute(build_parser(), measure, argv)


if __name__ == "__main__":
    sys.exit(main())
