"""`mmada-lite bench latency --against CHECKOUT`: the same benchmark in this tree and in another checkout, in turns.

Each side is a process of the same Python with its own work folder; every second pair begins with the other one. What is told is
the median of the ratios within a pair, this tree's over the other's. It knows rows of `bench latency`, and no model.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import mmada_lite
from mmada_lite.arguments import Parser
from mmada_lite.bench.command import Measured, at_least_one, markdown
from mmada_lite.bench.record import FRESH, Row, Run, default_output, spread
from mmada_lite.bench.timed import run_module, turns
from mmada_lite.errors import Error

SPARED = ("--no-ceiling", "--no-doubling")  # given to a side that knows them
MEASURES: dict[str, Callable[[Row], float | None]] = {
    "seconds": lambda row: row["seconds"]["median"],
    "peak_bytes": lambda row: row.get("peak_bytes"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of comparing two trees: all others go to both."""
    parser.add_argument(
        "--against", type=Path, metavar="CHECKOUT", help="compare with another checkout of the project, in turns"
    )
    parser.add_argument("--pairs", type=at_least_one, default=15, help="runs of each side, with --against (%(default)s)")
    parser.add_argument("--against-options", default="", metavar="WORDS", help="what the other side is given beside, quoted")
    parser.add_argument("--work", type=Path, default=Path(".cache/bench"), help="where random bundles are kept (%(default)s)")


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
    pairs = [
        row for number in range(options.pairs) for row in run.do(f"pair {number}", partial(_pair, number, roots, commands))
    ]
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


def _pair(number: int, roots: dict[str, Path], commands: dict[str, list[object]]) -> Iterator[Row]:
    """One run of each side: a row for each decode that both have measured."""
    found: dict[str, dict[str, Row]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for side in list(turns(("this", "other"), 2))[2 * (number % 2) :][:2]:
            path, environment = Path(scratch) / f"{side}.json", {"PYTHONPATH": str(roots[side]), "PYTHONSAFEPATH": "1"}
            words = ("bench", "latency", *commands[side], "-o", path)
            run_module("mmada_lite", *words, environment=os.environ | environment)
            measured = json.loads(path.read_text(encoding="utf-8"))["rows"]
            found[side] = {json.dumps([row["task"], row.get("cache"), row.get("threshold")]): row for row in measured}
    for key in (key for key in found["this"] if key in found["other"]):
        task, cache, threshold = json.loads(key)
        sides = {side: {name: get(rows[key]) for name, get in MEASURES.items()} for side, rows in found.items()}
        yield {"task": task, "cache": cache, "threshold": threshold, "pair": number, **sides}


def _compared(pairs: Sequence[Row]) -> Iterator[Row]:
    """A row a decode: medians and extremes of this over other."""
    keys = {(row["task"], row["cache"], row["threshold"]): None for row in pairs}
    for task, cache, threshold in keys:
        mine = [row for row in pairs if (row["task"], row["cache"], row["threshold"]) == (task, cache, threshold)]
        both = {name: [row for row in mine if row["this"][name] and row["other"][name]] for name in MEASURES}
        ratios = {n: spread(r["this"][n] / r["other"][n] for r in rows) if rows else None for n, rows in both.items()}
        medians = {side: statistics.median(row[side]["seconds"] for row in mine) for side in ("this", "other")}
        yield {
            "task": task,
            "cache": cache,
            "threshold": threshold,
            "pairs": len(mine),
            "median_seconds": medians,
            "ratios": ratios,
        }


def table(rows: Sequence[Row]) -> str:
    """Ratios below 1: this tree is faster, or takes less."""
    cells = []
    for row in rows:
        ratios = ["{median:.3f} ({min:.3f} to {max:.3f})".format(**each) if each else "-" for each in row["ratios"].values()]
        seconds = [f"{value:.3f}" for value in row["median_seconds"].values()]
        cells.append([row["task"], row["cache"] or "-", row["threshold"] or "-", row["pairs"], *seconds, *ratios])
    heads = ["task", "cache", "threshold", "pairs", "seconds here", "there", "ratio of seconds", "ratio of peak memory"]
    return markdown(heads, cells)
