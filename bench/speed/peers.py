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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from mmada_lite.arguments import Parser
from mmada_lite.bench.command import add_output, execute, require_counts
from mmada_lite.bench.record import Row, Run, say, spread
from mmada_lite.bench.reference import torch_logits
from mmada_lite.bench.speed import contestants
from mmada_lite.bench.speed.contestants import Contestant, Plan, Work
from mmada_lite.bench.speed.latency_cases import TARGETS
from mmada_lite.errors import Error
from mmada_lite.export.precision import specs_for
from mmada_lite.export.synthetic import SIZES, Size, size_named
from mmada_lite.ort.devices import choose_device
from mmada_lite.ort.session import usable_cores
from mmada_lite.train.loop import fast_type

PLACES = {"cpu": "cpu", "cuda": "cuda", "rtx": "cuda", "tensorrt": "cuda"}  # device -> where torch computes beside it
PRECISIONS = {"cpu": ("int8", "int4", "fp32"), "gpu": ("fp16", "int4")}  # the first one's loops are run


@dataclass(frozen=True, slots=True)
class Turn:
    """One measurement: seconds of the whole task, the steps and model calls of it, and how many steps were timed for that."""

    seconds: float
    steps: int
    forwards: int
    timed: int


def turn(work: Work, limit: int | None) -> Turn:
    """Do a work and say what all of it takes; or, where its steps are equal, `limit` of them in whole cycles, which begin after
    a step that does not count where a cycle is one step: the contestant before left caches and threads to itself."""
    few = -(-limit // work.cycle) * work.cycle if limit and work.equal and work.steps else None
    if few and work.steps and few >= work.steps:
        few = None
    last: object = None
    steps = work.begin()
    if few and work.cycle == 1:
        next(steps)
    started = time.perf_counter()
    for count, last in enumerate(steps, 1):  # noqa: B007
        if count == few:
            break
    seconds = time.perf_counter() - started
    total = work.steps if few and work.steps else count
    forwards = total if few else getattr(last, "model_calls", count)
    return Turn(seconds * total / count, total, forwards, count)


def alternate(works: Mapping[str, Work], rounds: int, limit: int | None) -> dict[str, list[Turn]]:
    """`rounds` turns of each, after a short one that does not count; every second round runs backwards."""
    turns: dict[str, list[Turn]] = {name: [] for name in works}
    for work in works.values():
        for number, _ in enumerate(work.begin(), 1):
            if number == 2:
                break
    for number in range(rounds):
        for name in list(works)[:: -1 if number % 2 else 1]:
            turns[name].append(turn(works[name], limit))
    return turns


def rows(task: str, everyone: Sequence[Contestant], written: int, rounds: int, limit: int | None) -> Iterator[Row]:
    """A row for each contestant in a task, which writes so many tokens."""
    works = {each.name: each.works[task] for each in everyone if task in each.works}
    with torch.inference_mode():
        turns = alternate(works, rounds, limit)
    references = [each.name for each in everyone if each.kind == "reference" and each.name in turns]
    for each in everyone:
        if each.name not in turns:
            continue
        seconds, one = spread(measured.seconds for measured in turns[each.name]), turns[each.name][-1]
        yield {
            "task": task,
            "side": each.name,
            "kind": each.kind,
            "seconds": seconds,
            "tokens_per_s": written / seconds["median"],
            "steps": one.steps,
            "forwards": one.forwards,
            "scaled_from": {"steps": one.timed, "of": one.steps} if one.timed < one.steps else None,
            "times": {
                name: spread(theirs.seconds / own.seconds for theirs, own in zip(turns[name], turns[each.name], strict=True))
                for name in references
                if name != each.name
            },
        }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Task by task: seconds with their spread, tokens a second, and how many times as fast as each reference."""
    against = list(dict.fromkeys(row["side"] for row in rows if row["kind"] == "reference"))
    head = ["task", "side", "seconds", "lowest to highest", "tokens/s", "model calls", *(f"x {name}" for name in against)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        seconds, scaled = row["seconds"], row["scaled_from"]
        about = f" (from {scaled['steps']} of {scaled['of']} steps)" if scaled else ""
        times = [f"{row['times'][name]['median']:.2f}" if name in row["times"] else "" for name in against]
        cells = [row["task"], row["side"], f"{seconds['median']:.3f}", f"{seconds['min']:.3f} to {seconds['max']:.3f}{about}"]
        lines.append("| " + " | ".join([*cells, f"{row['tokens_per_s']:.1f}", str(row["forwards"]), *times]) + " |")
    return "\n".join(lines)


def gather(
    options: argparse.Namespace, size: Size, plan: Plan, precisions: Sequence[str], work: Path
) -> tuple[list[Contestant], dict[str, str]]:
    """Every contestant that can take part here, and why each other one cannot. Raises Error where none can."""
    missing: dict[str, str] = {}
    made: list[Contestant] = []

    def wanted(name: str) -> bool:
        return not options.sides or any(name.startswith(each) for each in options.sides)

    place = PLACES[options.device]
    fast = fast_type(torch.device(place)) == torch.bfloat16
    for name, dtype in (("torch fp32", torch.float32), ("torch bf16", torch.bfloat16)):
        if not wanted(name):
            continue
        if dtype == torch.bfloat16 and not fast and not options.bf16:
            missing[name] = "this processor has no bfloat16 instructions, and torch is far slower without; --bf16 measures it"
            continue
        say(f"opening {name}")
        logits = torch_logits(contestants.torch_model(size, dtype, place))
        made.append(contestants.reference(name, logits, size, plan, place=place))
    for precision in precisions if wanted("ours") or any(each.startswith("ours") for each in options.sides) else ():
        say(f"opening ours {precision}")
        decode = precision == (options.decode or precisions[0])
        own = (options.shape, size, plan, precision, work, options.threads)
        made += [each for each in contestants.ours(*own, decode=decode, device=options.device) if wanted(each.name)]
    for name, make in contestants.others(options.shape, size, plan, work, options.threads) if options.device == "cpu" else ():
        if wanted(name):
            try:
                say(f"opening {name}")
                made.append(make())
            except Exception as fault:  # others' code; the record says which of them did not work here, and why
                missing[name] = " ".join(str(fault).split())[:300]
    if not made:
        why = "".join(f"; {name}: {reason}" for name, reason in missing.items())
        raise Error(f"no side of that name can run here{why or '; see --help for --sides'}")
    return made, missing


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
    run, limit = Run("peers", arguments, options.output, force=options.force), None if options.whole else options.steps
    run.plan(len(tasks))
    with tempfile.TemporaryDirectory() as scratch, threads_of_torch(options.threads):
        opened = cache(partial(gather, options, size, plan, precisions, options.work or Path(scratch)))

        def turns(task: str) -> Iterator[Row]:
            return rows(task, opened()[0], plan.written(task, size), options.rounds, limit)

        measured = [row for task in tasks for row in run.do(task, partial(turns, task))]
        missing = run.do("what did not run", lambda: [{"name": name, "why": why} for name, why in opened()[1].items()])
    about = {"shape": options.shape.lower(), "device": options.device, "threads": options.threads, "rounds": options.rounds}
    not_run = {row["name"]: row["why"] for row in missing}
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
    parser.add_argument("--rounds", type=int, default=3, help="counted turns of each side (default 3)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a loop of equal steps (default 3)")
    parser.add_argument("--whole", action="store_true", help="run every loop to its end: hours at size s")
    parser.add_argument("--only", nargs="+", metavar="TASK", help='such as text understanding drawing "forward 32"')
    parser.add_argument("--sides", nargs="+", metavar="NAME", help='whose names begin so, such as torch "ours int8"')
    parser.add_argument("--bf16", action="store_true", help="torch bf16 also where the processor lacks its instructions")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of every side (default: usable cores)")
    add_output(parser, "peers")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return execute(build_parser(), measure, argv)


if __name__ == "__main__":
    sys.exit(main())
