"""What the command lines of all benchmarks have in common: numbers are looked at before anything is made or measured, the
record goes where --output says, a fault is one line. It knows no benchmark.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmada_lite.arguments import Parser, exit_code
from mmada_lite.bench.record import FRESH, say
from mmada_lite.errors import Error

# options, arguments -> the record, the table that a person reads, and where the record lies
Measure = Callable[[argparse.Namespace, Sequence[str]], tuple[dict[str, Any], str, Path | None]]


def require_counts(options: argparse.Namespace, *names: str) -> None:
    """Raise Error where an option of these names (or one number of its list) is below 1. One that was left out is None."""
    for name in names:
        given = getattr(options, name.replace("-", "_"))
        for value in given if isinstance(given, list | tuple) else [given]:
            if value is not None and value < 1:
                raise Error(f"--{name} {value} cannot be measured; give whole numbers of at least 1")


def require_seconds(options: argparse.Namespace, name: str) -> None:
    """Raise Error where an option is no finite time above zero."""
    if not 0 < (value := getattr(options, name)) < math.inf:
        raise Error(f"--{name} {value:g} cannot be measured; give seconds above 0")


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
