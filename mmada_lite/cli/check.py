"""The verb check: replay recorded cases of the reference and compare, the short way to the parity benchmark."""

import argparse
from pathlib import Path

from mmada_lite.cli import options
from mmada_lite.cli.extras import needs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="recorded cases in the format of tests/golden/README.md")
    parser.add_argument("--engine", choices=["torch", "onnx"], help="compare this alone (default: both)")
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Replay the cases. Returns 1 when any falls short."""
    with needs("export"):
        from mmada_lite.bench.parity.check import report
    with needs("train"):
        return report(Path(arguments.folder), arguments.engine, lines=not arguments.json)
