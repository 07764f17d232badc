"""The verb doctor: what this machine offers, what mends each gap, and the best settings here."""

import argparse

from mmada_lite.cli import options, terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--measure", action="store_true", help="measure this processor's speed anew (else once, and kept)")
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what there is. Returns 1 when nothing runs here."""
    from mmada_lite.cli.machine import as_text, examine

    machine = examine(arguments.measure)
    print(terminal.json_line(machine) if arguments.json else as_text(machine))
    return 0 if machine["best"]["device"] else 1
