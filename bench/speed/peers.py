"""`mmada-lite bench peers`: the published way of decoding in torch against ours, and whoever else is installed.

    mmada-lite bench peers --shape s --work runs/synthetic

One process, random weights. In every task the sides take turns, each round in the other direction, after a turn that does not
count; ratios are taken within a round. A loop of equal steps is measured by a few of them and scaled, which the JSON says in
`scaled_from`. It knows sides and a clock; what they do is `sides`.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mmada_lite.bench import record
from mmada_lite.bench.arguments import require_counts
from mmada_lite.bench.speed import contestants
from mmada_lite.bench.speed.contestants import Plan, Side, Work
from mmada_lite.bench.speed.reference import torch_logits
from mmada_lite.bench.synthetic import SIZES, Size, size_named
from mmada_lite.errors import Error
from mmada_lite.export.precision import specs_for
from mmada_lite.ort.session import usable_cores
from mmada_lite.train.loop import fast_type

PRECISIONS = ("int8", "int4", "fp32")


@dataclass(frozen=True, slots=True)
class Turn:
    """One measurement: seconds of the whole task, the steps and model calls of it, and how many steps were timed for that."""

    seconds: float
    steps: int
    forwards: int
    timed: int


def turn(work: Work, limit: int | None) -> Turn:
    """Do a work and say what all of it takes; or, where its steps are equal, `limit` of them in whole cycles, which begin after
    a step that does not count where a cycle is one step: the side before left caches and threads to itself."""
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
    whole = work.steps if few and work.steps else count
    forwards = whole if few else getattr(last, "model_calls", count)
    return Turn(seconds * whole / count, whole, forwards, count)


def alternate(works: Mapping[str, Work], rounds: int, limit: int | None) -> dict[str, list[Turn]]:
    """`rounds` turns of each, after a short one that does not count; every second round runs backwards."""
    found: dict[str, list[Turn]] = {name: [] for name in works}
    for work in works.values():
        for number, _ in enumerate(work.begin(), 1):
            if number == 2:
                break
    for number in range(rounds):
        for name in list(works)[:: -1 if number % 2 else 1]:
            found[name].append(turn(works[name], limit))
    return found


def rows(all_sides: Sequence[Side], size: Size, plan: Plan, tasks: Sequence[str], rounds: int, limit: int | None) -> Iterator:
    """A row for each side in each task."""
    for task in tasks:
        works = {side.name: side.works[task] for side in all_sides if task in side.works}
        say(f"{task}: {', '.join(works)}")
        with torch.inference_mode():
            turns = alternate(works, rounds, limit)
        written = plan.written(task, size)
        against = [side.name for side in all_sides if side.kind == "reference" and side.name in turns]
        for side in all_sides:
            if side.name in turns:
                yield _row(task, side, turns, against, written)


def _row(task: str, side: Side, turns: Mapping[str, Sequence[Turn]], against: Sequence[str], written: int) -> dict[str, Any]:
    found = turns[side.name]
    seconds = record.spread(each.seconds for each in found)
    one = found[-1]
    return {
        "task": task,
        "side": side.name,
        "kind": side.kind,
        "seconds": seconds,
        "tokens_per_s": written / seconds["median"],
        "steps": one.steps,
        "forwards": one.forwards,
        "scaled_from": {"steps": one.timed, "of": one.steps} if one.timed < one.steps else None,
        "times": {
            name: record.spread(theirs.seconds / each.seconds for theirs, each in zip(turns[name], found, strict=True))
            for name in against
            if name != side.name
        },
    }


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """Task by task: seconds with their spread, tokens a second, and how many times as fast as each reference."""
    against = list(dict.fromkeys(row["side"] for row in found if row["kind"] == "reference"))
    head = ["task", "side", "seconds", "lowest to highest", "tokens/s", "model calls", *(f"x {name}" for name in against)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in found:
        seconds, scaled = row["seconds"], row["scaled_from"]
        about = f" (from {scaled['steps']} of {scaled['of']} steps)" if scaled else ""
        times = [f"{row['times'][name]['median']:.2f}" if name in row["times"] else "" for name in against]
        cells = [row["task"], row["side"], f"{seconds['median']:.3f}", f"{seconds['min']:.3f} to {seconds['max']:.3f}{about}"]
        lines.append("| " + " | ".join([*cells, f"{row['tokens_per_s']:.1f}", str(row["forwards"]), *times]) + " |")
    return "\n".join(lines)


def gather(options: argparse.Namespace, size: Size, plan: Plan, work: Path) -> tuple[list[Side], dict[str, str]]:
    """Every side that can take part here, and why each other one cannot."""
    missing: dict[str, str] = {}
    made: list[Side] = []

    def wanted(name: str) -> bool:
        return not options.sides or any(name.startswith(each) for each in options.sides)

    bf16 = fast_type(torch.device("cpu")) == torch.bfloat16
    for name, dtype in (("torch fp32", torch.float32), ("torch bf16", torch.bfloat16)):
        if not wanted(name):
            continue
        if dtype == torch.bfloat16 and not bf16 and not options.bf16:
            missing[name] = "this processor has no bfloat16 instructions, and torch is far slower without; --bf16 measures it"
            continue
        say(name)
        made.append(contestants.reference(name, torch_logits(contestants.torch_model(size, dtype)), size, plan))
    for precision in options.precisions:
        say(f"ours {precision}")
        mine = contestants.ours(options.shape, size, plan, precision, work, options.threads, precision == options.decode)
        made += [side for side in mine if wanted(side.name)]
    for name, make in contestants.others(options.shape, size, plan, work, options.threads):
        if wanted(name):
            try:
                say(name)
                made.append(make())
            except Exception as fault:  # others' code; the record says which of them did not work here, and why
                missing[name] = " ".join(str(fault).split())[:300]
    return made, missing


@contextmanager
def threads_of_torch(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(options: argparse.Namespace, argv: Sequence[str], work: Path) -> dict[str, Any]:
    size = size_named(options.shape)
    for precision in (*options.precisions, options.decode):
        specs_for(precision)  # an unknown one is told before a model is made
    plan = Plan.of(size)
    tasks = options.only or plan.tasks
    for task in tasks:
        if task not in plan.tasks:
            raise Error(f"no task of this shape is called {task!r}; use some of {', '.join(plan.tasks)}")
    with threads_of_torch(options.threads):
        made, missing = gather(options, size, plan, work)
        if not made:
            why = "".join(f"; {name}: {reason}" for name, reason in missing.items())
            raise Error(f"no side of that name can run here{why or '; see --help for --sides'}")
        found = list(rows(made, size, plan, tasks, options.rounds, None if options.whole else options.steps))
    about = {"shape": options.shape.lower(), "threads": options.threads, "rounds": options.rounds, "plan": asdict(plan)}
    return record.record("peers", argv, found, missing=missing, weights="random", **about)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mmada-lite bench peers", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="s", help=f"of the random model: {', '.join(SIZES)} (default s)")
    parser.add_argument("--work", type=Path, help="where random bundles are made once and kept (default: a temporary folder)")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), help=f"ours (default {' '.join(PRECISIONS)})")
    parser.add_argument("--decode", default="int8", metavar="PRECISION", help="the one whose loops are run (default int8)")
    parser.add_argument("--rounds", type=int, default=3, help="counted turns of each side (default 3)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a loop of equal steps (default 3)")
    parser.add_argument("--whole", action="store_true", help="run every loop to its end: hours at size s")
    parser.add_argument("--only", nargs="+", metavar="TASK", help='such as text understanding drawing "forward 32"')
    parser.add_argument("--sides", nargs="+", metavar="NAME", help='whose names begin so, such as torch "ours int8"')
    parser.add_argument("--bf16", action="store_true", help="torch bf16 also where the processor lacks its instructions")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of every side (default: usable cores)")
    parser.add_argument("-o", "--output", type=Path, help="the JSON file (default: bench/results/peers.json of a checkout)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and a JSON line. 0, or 2 after a fault of the user."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = build_parser().parse_args(words)
    try:
        require_counts(options, "rounds", "steps", "threads")
        with tempfile.TemporaryDirectory() as scratch:
            content = measure(options, words, options.work or Path(scratch))
        saved = record.save(content, options.output)
    except Error as error:
        print(f"mmada-lite: {error}", file=sys.stderr)
        return 2
    print(table(content["rows"]))
    for name, why in content["missing"].items():
        print(f"not run: {name}: {why}")
    if saved:
        say(str(saved))
    print(json.dumps(content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
