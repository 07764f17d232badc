"""The verb check: replay recorded cases of the reference and compare, the short way to the parity benchmark."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mmada_lite.cli import options, terminal
from mmada_lite.cli.extras import needs

if TYPE_CHECKING:
    from mmada_lite.bench.parity.check import Checked


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="recorded cases in the format of tests/golden/README.md")
    parser.add_argument("--engine", choices=["torch", "onnx"], help="compare this alone (default: both)")
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Replay the cases. Returns 1 when any falls short."""
    with needs("export"):
        from mmada_lite.bench.parity.check import ENGINES, as_json, check_folder
    engines = ENGINES if arguments.engine is None else (arguments.engine,)
    results: list[Checked] = []
    with needs("train"):
        for result in check_folder(Path(arguments.folder), engines):
            results.append(result)
            if not arguments.json:
                print(_line(result), flush=True)
    summary = as_json(results)
    terminal.print_json(summary)
    return 1 if summary["failed"] or not results else 0


def _line(checked: "Checked") -> str:
    """`ok    cache/mha_dual_steps [onnx] ids: 0 (at most 0)`."""
    compared = checked.comparison
    verdict = "ok   " if compared.passed else "FALLS SHORT"
    numbers = f"{compared.difference:.3g} (at most {compared.allowed:.3g})"
    return f"{verdict} {compared.name} [{checked.engine}] {compared.what}: {numbers}"
