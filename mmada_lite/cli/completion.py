"""The verb completion: the script by which a shell completes verbs, options and file names. It is written by shtab."""

import argparse
from importlib import import_module

from mmada_lite.cli.extras import needs

_FILES = ("BUNDLE", "CHECKPOINT", "FILE", "FOLDER", "HEADERS", "MASK", "PICTURE", "SOURCE")  # what an option calls a file
_FOLDERS = ("DIR",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=["bash", "zsh", "tcsh"], help="whose script to print; it goes where that shell looks")


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    with needs("completion"):
        shtab = import_module("shtab")  # by its name: no other file of the runtime knows it
    from mmada_lite.cli.main import build_parser

    parser, subparsers = build_parser()
    for action in (action for each in subparsers.values() for action in each._actions):
        if action.metavar in (*_FILES, *_FOLDERS):
            action.complete = shtab.DIRECTORY if action.metavar in _FOLDERS else shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, arguments.shell))
    return 0
