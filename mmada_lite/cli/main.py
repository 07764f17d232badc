"""The command `mmada-lite`: reads arguments and calls one verb.

It knows the names of the verbs; what a fault looks like, and its exit code, is `mmada_lite.arguments`. It imports the
module of the verb that is called, and what that needs is imported when it runs: so --help is instant, and needs no numpy.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Protocol, cast

from mmada_lite import __version__
from mmada_lite.arguments import Parser, exit_code, nearest
from mmada_lite.cli import PAGES
from mmada_lite.errors import Error

VERBS: dict[str, str] = {  # verb -> what it does; each is a module of this package
    "chat": "answer a message, or hold a conversation",
    "ask": "answer a question about a picture",
    "fill": "fill the holes of a text",
    "paint": "draw a picture from a sentence",
    "inpaint": "draw anew the part of a picture that a mask covers",
    "extend": "grow a picture beyond one border",
    "serve": "answer over HTTP, by OpenAI's routes, so that other programs can ask",
    "batch": "answer a file of requests, as OpenAI's batches write them",
    "export": "turn a checkpoint into a bundle that this program runs",
    "quantize": "turn a checkpoint into a smaller bundle, by a method that minds what it loses",
    "check": "replay recorded cases of the reference and compare",
    "info": "say what is in a bundle and whether it will run here",
    "plan": "say which precision of a model fits a memory, before anything is downloaded",
    "doctor": "look at this machine: devices, libraries, the best settings, and what mends each gap",
    "train": "train the small model, step by step (arguments: see mmada-lite train --help)",
    "bench": "measure quality and speed (arguments: see mmada-lite bench --help)",
    "completion": "print the script by which a shell completes verbs and options",
}
_HANDED_ON = ("train", "bench")  # their arguments are none of ours: they have verbs and options of their own


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; prints `mmada-lite: ...` in one line where it is not 0."""
    words = list(sys.argv[1:] if argv is None else argv)
    return exit_code(lambda: _run(words), next((PAGES[word] for word in words if word in PAGES), ""))


def _run(argv: list[str]) -> int:
    if argv and not argv[0].startswith("-") and argv[0] not in VERBS:
        raise Error(f"no verb is called {argv[0]!r}; {nearest(argv[0], VERBS, 'see mmada-lite --help')}")
    if argv and argv[0] in _HANDED_ON:
        return _module(argv[0]).run(argparse.Namespace(arguments=argv[1:]))
    called = next((word for word in argv if word in VERBS), None)  # no option before it takes a value
    if called and argv[0].startswith("-") and argv[0] not in ("-h", "--help", "--version"):
        raise Error(f"{argv[0]} stands before the verb; write mmada-lite {called} ... {argv[0]}")
    parser, subparsers = build_parser([] if called is None else [called])
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        subparsers[arguments.verb].refuse(unknown[0])
    if sys.__stdout__ is None and _answers_there(arguments):
        raise Error("standard output is closed, and the answer goes there; send it somewhere, as with > answer.txt")
    return _module(arguments.verb).run(arguments)


def _answers_there(arguments: argparse.Namespace) -> bool:
    """Whether the result goes to standard output, and not to a file whose name is said there."""
    files = ("paint", "inpaint", "extend", "batch", "export", "quantize")
    return arguments.verb not in files or arguments.json or arguments.output == "-"


class _Verb(Protocol):
    """The module of a verb."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int: ...


def _module(verb: str) -> _Verb:
    return cast(_Verb, import_module(f"mmada_lite.cli.{verb}"))


def build_parser(verbs: Iterable[str] = tuple(VERBS)) -> tuple[Parser, dict[str, Parser]]:
    """The parser and, by name, that of each verb. Of `verbs` it knows the options, of the others the names alone, so that no
    module is imported but theirs."""
    parser = Parser(
        prog="mmada-lite",
        description="MMaDA on small machines: text, pictures, questions about pictures, by masked diffusion.",
        epilog='Begin with: mmada-lite paint "a red apple" -o apple.png, then: mmada-lite ask apple.png "what is this?". '
        "Manual: README.md, docs/quickstart.md.",
    )
    parser.add_argument("--version", action="version", version=f"mmada-lite {__version__}")
    action = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    subparsers: dict[str, Parser] = {
        verb: action.add_parser(verb, help=about, description=f"{about[0].upper()}{about[1:]}.")
        for verb, about in VERBS.items()
    }
    for verb in verbs:
        _module(verb).add_arguments(subparsers[verb])
        subparsers[verb].epilog = f"{subparsers[verb].epilog or ''} Manual: {PAGES[verb]}".strip()
    return parser, subparsers
