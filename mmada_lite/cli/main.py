"""The command `mmada-lite`: reads arguments, calls one verb, and turns every fault of a user into one line.

It knows the names of the verbs and the exit codes (0 done, 1 a check fell short, 2 a fault, 130 interrupted). It imports the
module of the verb that is called, and what that needs is imported when it runs: so --help is instant, and needs no numpy.
"""

import argparse
import errno
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import NoReturn, Protocol, cast

from mmada_lite import __version__
from mmada_lite.errors import Error, did_you_mean

VERBS: dict[str, str] = {  # verb -> what it does; each is a module of this package
    "chat": "answer a message, or hold a conversation",
    "ask": "answer a question about a picture",
    "paint": "draw a picture from a sentence",
    "inpaint": "draw anew the part of a picture that a mask covers",
    "extend": "grow a picture beyond one border",
    "export": "turn a checkpoint into a bundle that this program runs",
    "quantize": "turn a checkpoint into a smaller bundle, by a method that minds what it loses",
    "check": "replay recorded cases of the reference and compare",
    "info": "say what is in a bundle and whether it will run here",
    "plan": "say which precision of a model fits a memory, before anything is downloaded",
    "doctor": "look at this machine: devices, libraries, the best settings, and what mends each gap",
    "train": "train the small model, step by step (arguments: see mmada-lite train --help)",
    "bench": "measure quality and speed (arguments: see mmada-lite bench --help)",
}
_HANDED_ON = ("train", "bench")  # their arguments are none of ours: they have verbs and options of their own


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; prints `mmada-lite: ...` in one line where it is not 0."""
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader went away, as `head` does: nothing to complain about
        _drop_stdout()
        return 128 + 13
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except Error as error:
        return _complain(str(error), 2)
    except OSError as error:
        return _complain(_explain(error), 2)
    except MemoryError as error:
        return _complain(f"out of memory ({str(error) or 'no more is to be had'}); ask for smaller sizes or counts", 2)
    except UnicodeEncodeError as error:
        return _complain(f"standard output is {error.encoding} and cannot show the answer; set PYTHONUTF8=1, or use --json", 2)


def _run(argv: list[str]) -> int:
    if argv and not argv[0].startswith("-") and argv[0] not in VERBS:
        raise Error(f"no verb is called {argv[0]!r}; {_nearest(argv[0], VERBS, 'see mmada-lite --help')}")
    if argv and argv[0] in _HANDED_ON:
        return _module(argv[0]).run(argparse.Namespace(arguments=argv[1:]))
    called = next((word for word in argv if word in VERBS), None)  # no option before it takes a value
    parser, subparsers = build_parser([] if called is None else [called])
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        spellings = [text for action in subparsers[arguments.verb]._actions for text in action.option_strings]
        raise Error(_unknown(unknown[0], arguments.verb, spellings))
    return _module(arguments.verb).run(arguments)


class _Verb(Protocol):
    """The module of a verb."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> int: ...


def _module(verb: str) -> _Verb:
    return cast(_Verb, import_module(f"mmada_lite.cli.{verb}"))


class _Parser(argparse.ArgumentParser):
    """A parser whose faults are one line like every other."""

    def error(self, message: str) -> NoReturn:
        raise Error(f"{message.replace('argument ', '', 1)}; see {self.prog} --help")


def build_parser(verbs: Iterable[str] = tuple(VERBS)) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser and, by name, that of each verb. Of `verbs` it knows the options, of the others the names alone, so that no
    module is imported but theirs."""
    parser = _Parser(
        prog="mmada-lite",
        description="MMaDA on small machines: text, pictures, questions about pictures, by masked diffusion.",
        epilog='Begin with: mmada-lite paint "a red apple" -o apple.png, then: mmada-lite ask apple.png "what is this?"',
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mmada-lite {__version__}")
    action = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
    subparsers: dict[str, argparse.ArgumentParser] = {
        verb: action.add_parser(verb, help=about, description=f"{about[0].upper()}{about[1:]}.", allow_abbrev=False)
        for verb, about in VERBS.items()
    }
    for verb in verbs:
        _module(verb).add_arguments(subparsers[verb])
    return parser, subparsers


def _unknown(given: str, verb: str, spellings: list[str]) -> str:
    if not given.startswith("-"):
        return f"{given!r} is one argument too many for {verb}; put quotes around a sentence"
    name = given.split("=", 1)[0]
    from mmada_lite.decoding.setting_fields import renamed_option  # after a fault alone: --help is to be instant

    if (renamed := renamed_option(name)) in spellings:
        return f"{verb} has no option {name}; it is called {renamed} now"
    return f"{verb} has no option {name}; {_nearest(name, spellings, f'see mmada-lite {verb} --help')}"


def _nearest(word: str, known: Iterable[str], otherwise: str) -> str:
    return did_you_mean(word, known, otherwise, spell=str, likeness=0.5)


def _complain(message: str, code: int) -> int:
    line = " ".join(message.split())
    with suppress(OSError):  # nobody may be left to read it
        print(f"mmada-lite: {line}".encode(errors="backslashreplace").decode(), file=sys.stderr, flush=True)
    _drop_stdout_if_stuck()
    return code


def _explain(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}; make room or write elsewhere"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"not allowed{where}: {error.strerror}; check who owns it, or choose another place"
    return f"{error.strerror or error}{where}"


def _drop_stdout_if_stuck() -> None:
    """What could not be written stays in the buffer, and Python would complain about it once more at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _drop_stdout()


def _drop_stdout() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
