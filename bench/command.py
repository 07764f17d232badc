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

from mmada_lite.bench.record import FRESH, say
from mmada_lite.decoding.setting_fields import renamed_option
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


def add_output(parser: argparse.ArgumentParser, name: str) -> None:
    """Where the record goes, and whether an unfinished one there is gone on with."""
    parser.add_argument("-o", "--output", type=Path, help=f"the JSON file (default: bench/results/{name}.json of a checkout)")
    parser.add_argument(FRESH, action="store_true", help="begin anew where an unfinished record of the same command lies")


def _refuse_old_names(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Raise Error for the option of a setting that has another name now."""
    known = parser._option_string_actions
    for option in (word.partition("=")[0] for word in arguments):
        if option not in known and (renamed := renamed_option(option)) in known:
            raise Error(f"there is no option {option}; it is called {renamed} now")


def execute(parser: argparse.ArgumentParser, measure: Measure, argv: Sequence[str] | None) -> int:
    """Measure, print the table and a JSON line. 0, or 2 after a fault of the user."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _refuse_old_names(parser, arguments)
        options = parser.parse_args(arguments)
        content, shown, path = measure(options, arguments)
    except Error as error:
        say(f"mmada-lite: {error}")
        return 2
    print(shown)
    if path is not None:
        say(f"written to {path}")
    print(json.dumps(content))
    return 0
