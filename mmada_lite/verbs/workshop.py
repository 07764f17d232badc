"""What needs more than the runtime: an absent package is named with the line that installs it; `train` is handed on."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from mmada_lite.errors import Error


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn the absence of another package into the line that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        if name in ("", "mmada_lite"):
            raise  # a fault of ours
        raise Error(f'this needs {name}, which is not installed; pip install "mmada-lite[{extra}]"') from error


def train(arguments: argparse.Namespace) -> int:
    """Hand the arguments to `python -m mmada_lite.train`."""
    with needs("train"):
        from mmada_lite.train.__main__ import main

        return main(arguments.arguments)
