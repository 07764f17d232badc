"""What the command lines of all benchmarks have in common: numbers are looked at before anything is made or measured, the
record goes where --output says, a fault is one line, tables and plots. It knows no benchmark.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mmada_lite.arguments import Parser, exit_code, within_cores
from mmada_lite.bench.record import FRESH, say
from mmada_lite.errors import Error, shown

Measured = tuple[dict[str, Any], str, Path | None]  # the record, the table that a person reads, and where the record lies
Measure = Callable[[argparse.Namespace, Sequence[str]], Measured]  # of options and arguments


def at_least_one(text: str) -> int:
    """A type of options: a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no whole number; give one of at least 1") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} cannot be measured; give whole numbers of at least 1")
    return value


def thread_count(text: str) -> int:
    """A type of options: threads, at least 1 and at most as many as cores."""
    return within_cores(at_least_one(text))


def above_zero(text: str) -> float:
    """A type of options: a finite time above zero."""
    if not 0 < (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{value:g} cannot be measured; give seconds above 0")
    return value


def add_output(parser: argparse.ArgumentParser, name: str, default: str = "") -> None:
    """Where the record goes, and whether an unfinished run of it is gone on with."""
    default = default or f"bench/results/{name}.json of a checkout"
    parser.add_argument("-o", "--output", type=Path, help=f"the JSON file (default: {default})")
    parser.add_argument(FRESH, action="store_true", help="begin anew where the same command was stopped before its end")


def execute(parser: Parser, measure: Measure, argv: Sequence[str] | None) -> int:
    """Measure, print the table and a JSON line. 0, 2 after a fault of the user, or 130 when it is interrupted."""

    def command() -> int:
        arguments = list(sys.argv[1:] if argv is None else argv)
        content, shown, path = measure(parser.parse_args(arguments), arguments)
        print(shown)
        if path is not None:
            say(f"written to {path}")
        print(json.dumps(content))
        return 0

    return exit_code(command, "docs/benchmarks.md")


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in (head, ["---"] * len(head), *rows))


def new_figure(width: float, height: float) -> Any:
    """Of matplotlib. Raises Error where it is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise Error('the plot needs matplotlib; pip install "mmada-lite[bench]"') from None
    return Figure(figsize=(width, height), layout="constrained")
