"""`mmada-lite bench latency --against CHECKOUT`: the same benchmark in this tree and in another checkout, in turns.

A task is a process of the same Python on each side, with a work folder of its own: memory that another task left would be
counted; every second pair begins with the other side. What is told is the median of the ratios within a pair, this tree's over
the other's. It knows rows of `bench latency`, and no model.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path

import mmada_lite
from mmada_lite.arguments import Parser
from mmada_lite.bench.command import Measured, at_least_one, markdown
from mmada_lite.bench.record import FRESH, Row, Run, default_output, spread
from mmada_lite.bench.timed import run_module
from mmada_lite.errors import Error

SPARED = ("--no-ceiling", "--no-doubling")  # given to a side that knows them
LOAD = "load"  # the task that asks no benchmark of a side
_LOADING = "import time; began = time.perf_counter(); import mmada_lite; mmada_lite.load(); print(time.perf_counter() - began)"
LABELS = ("task", "cache", "threshold")  # by which rows of the two sides are the same


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of comparing two trees: all others go to both."""
    parser.add_argument(
        "--against", type=Path, metavar="CHECKOUT", help="compare with another checkout of the project, in turns"
    )
    parser.add_argument("--pairs", type=at_least_one, default=15, help="runs of each side, with --against (%(default)s)")
    parser.add_argument("--against-options", default="", metavar="WORDS", help="what the other side is given beside, quoted")
    parser.add_argument("--work", type=Path, default=Path(".cache/bench"), help="where random bundles are kept (%(default)s)")


def load_seconds(root: Path) -> float:
    """How long it takes to import a tree's package and to load its small model, in a process of its own: what the one of two
    trees imports at once, the other imports when it loads. Raises Error where it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | _home(root)
    done = subprocess.run([sys.executable, "-c", _LOADING], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise Error(f"{root}: the model does not load: {(done.stderr.strip().splitlines() or ['it says nothing'])[-1]}")
    return float(done.stdout)


def _home(root: Path) -> dict[str, str]:
    """The environment in which a tree's package is the one that is imported."""
    return {"PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}


def measure(options: argparse.Namespace, arguments: Sequence[str]) -> Measured:
    """Pair by pair, each kept when it is done."""
    own = Parser(add_help=False)
    add_options(own)
    own.add_argument("-o", "--output")
    own.add_argument(FRESH, action="store_true")
    _, common = own.parse_known_args(list(arguments))
    roots = {"this": Path(mmada_lite.__file__).parents[1], "other": options.against.resolve()}
    more = {"this": [], "other": shlex.split(options.against_options)}
    commands = {side: [*common, *_spared(root), *more[side], "--work", options.work / side] for side, root in roots.items()}
    commits = {side: _commit(root) for side, root in roots.items()}
    output = options.output or default_output("latency-against")
    run = Run("latency", arguments, output, force=options.force, about=commits)
    run.plan(options.pairs)
    works = {f"pair {number + 1}": partial(_pair, number, options.tasks, roots, commands) for number in range(options.pairs)}
    pairs = [row for name, work in works.items() for row in run.do(name, work)]
    rows = list(_compared(pairs))
    return run.finish(rows, commits=commits, pairs=pairs), table(rows), run.path


def _spared(root: Path) -> list[str]:
    """What leaves out all that is not compared. Raises Error where no checkout of this project lies."""
    sources = [*root.glob("bench/latency.py"), *root.glob("bench/speed/latency.py")]
    if not sources:
        raise Error(f"{root} is no checkout of this project that has bench latency; name the folder of one")
    known = [option for option in SPARED if option in sources[0].read_text(encoding="utf-8")]
    return ["--forwards", *known]


def _commit(root: Path) -> str | None:
    """What lies there, where git is to be had: another commit is another comparison."""
    with suppress(OSError):
        told = subprocess.run(["git", "-C", root, "describe", "--always", "--dirty"], capture_output=True, text=True)
        return told.stdout.strip() or None
    return None


def _pair(number: int, tasks: Sequence[str], roots: dict[str, Path], commands: dict[str, list[object]]) -> Iterator[Row]:
    """One run of each side: a row for each decode that both have measured, with what this and the other took."""
    found: dict[str, dict[tuple, Row]] = {"this": {}, "other": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for task, side in product(tasks, ("this", "other")[:: -1 if number % 2 else 1]):
            if task == LOAD:
                found[side][LOAD, None, None] = {"seconds": {"median": load_seconds(roots[side])}}
                continue
            path = Path(scratch) / f"{side}.json"
            words = ("bench", "latency", *commands[side], "--tasks", task, "-o", path)
            run_module("mmada_lite", *words, environment=os.environ | _home(roots[side]))
            measured = json.loads(path.read_text(encoding="utf-8"))["rows"]
            found[side] |= {tuple(map(row.get, LABELS)): row for row in measured if "seconds" in row}
    for key, this in found["this"].items():
        if (other := found["other"].get(key)) is not None:
            took = {"seconds": [row["seconds"]["median"] for row in (this, other)]}
            took["peak_bytes"] = [row.get("peak_bytes") for row in (this, other)]
            yield {**dict(zip(LABELS, key, strict=True)), "pair": number, **took}


def _compared(pairs: Sequence[Row]) -> Iterator[Row]:
    """A row a decode: the median seconds of this and of the other; median and extremes of the ratios."""
    decodes: dict[tuple, list[Row]] = {}
    for row in pairs:
        decodes.setdefault(tuple(map(row.get, LABELS)), []).append(row)
    for key, mine in decodes.items():
        medians = [statistics.median(each) for each in zip(*(row["seconds"] for row in mine), strict=True)]
        ratios = {}
        for name in ("seconds", "peak_bytes"):
            both = [row[name] for row in mine if all(row[name])]
            ratios[f"{name}_ratio"] = spread(this / other for this, other in both) if both else None
        yield {**dict(zip(LABELS, key, strict=True)), "pairs": len(mine), "median_seconds": medians, **ratios}


def table(rows: Sequence[Row]) -> str:
    """Ratios below 1: this tree is faster, or takes less."""
    lines = []
    for row in rows:
        ratios = (row["seconds_ratio"], row["peak_bytes_ratio"])
        told = ["{median:.3f} ({min:.3f} to {max:.3f})".format(**each) if each else "-" for each in ratios]
        labels = [row[name] or "-" for name in LABELS]
        lines.append([*labels, row["pairs"], *(f"{value:.3f}" for value in row["median_seconds"]), *told])
    return markdown([*LABELS, "pairs", "seconds here", "there", "ratio of seconds", "ratio of peak memory"], lines)
