"""What numbers of a benchmark's command line have in common: they are looked at before anything is made or measured."""

import argparse
import math

from mmada_lite.errors import Error


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
