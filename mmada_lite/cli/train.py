"""The verb train: hands its arguments to `python -m mmada_lite.train`, which has verbs and options of its own."""

import argparse

from mmada_lite.cli.extras import needs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="see mmada-lite train --help")


def run(arguments: argparse.Namespace) -> int:
    """Hand the arguments on."""
    with needs("train"):
        from mmada_lite.train.__main__ import main

        return main(arguments.arguments)
