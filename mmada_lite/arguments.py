"""What every command line of the project has in common: a parser whose faults are one line that names the nearest option, and
the exit codes (0 done, 1 a check fell short, 2 a fault of the user, 130 interrupted, 143 terminated).

It knows no verb and no option. The command line, the benchmarks and the training import it; nothing that computes does.
"""

import argparse
import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from mmada_lite.errors import Error, did_you_mean, printable
from mmada_lite.files import FULL, full


class Ended(KeyboardInterrupt):
    """A signal asks the process to end."""

    def __init__(self, number: int) -> None:
        words = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
        super().__init__(words.get(signal.Signals(number), "the terminal was closed"))
        self.number = number


class Parser(argparse.ArgumentParser):
    """A parser that raises Error, in one line, where argparse prints its usage and ends the process. It takes no option by the
    beginning of its name."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **{"allow_abbrev": False, **named})

    def error(self, message: str) -> NoReturn:
        raise Error(f"{message.replace('argument ', '', 1)}; see {self.prog} --help")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse does, but for an option whose value is `--`, of which it makes an empty list."""
        for word in sys.argv[1:] if args is None else args:
            if re.fullmatch("--[^=]+=--|-[^-]=?--", word):
                self.error(f"argument {word}: -- is no value")
        return super().parse_known_args(args, namespace)  # type: ignore[no-any-return, call-overload]

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """The arguments. Raises Error for one too many, and for an unknown option, with the nearest that there is."""
        arguments, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.refuse(unknown[0])
        return arguments

    def refuse(self, given: str) -> NoReturn:
        """Raise Error for an argument that this parser does not know."""
        name = self.prog.split()[-1]
        if not given.startswith("-"):
            raise Error(f"{given!r} is one argument too many for {name}; put quotes around a sentence")
        option = given.split("=", 1)[0]
        spellings = [text for action in self._actions for text in action.option_strings]
        from mmada_lite.decoding.setting_fields import renamed_option  # after a fault alone: --help is to be instant

        if (renamed := renamed_option(option)) in spellings:
            raise Error(f"{name} has no option {option}; it is called {renamed} now (see docs/renamed.md)")
        raise Error(f"{name} has no option {option}; {nearest(option, spellings, f'see {self.prog} --help')}")


def nearest(word: str, known: Iterable[str], otherwise: str) -> str:
    """A hint at the known word that is nearest, as it is typed."""
    return did_you_mean(word, known, otherwise, spell=str, likeness=0.5)


def within_cores(threads: int) -> int:
    """So many threads, or as many as there are cores to use, which a note says: more only wait for each other."""
    from mmada_lite.ort.cores import usable_cores

    if threads <= (cores := usable_cores()):
        return threads
    print(f"mmada-lite: --threads {threads} is more than the {cores} cores that may be used, so it is {cores}", file=sys.stderr)
    return cores


def threads(text: str) -> int:
    """A type of options: threads, a whole number, at most as many as cores."""
    try:
        return within_cores(int(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def exit_code(command: Callable[[], int], page: str = "") -> int:
    """Run a command. Returns its exit code; every fault of the user, and Ctrl-C, is one line `mmada-lite: ...` and a code.

    `page` of the manual is named after a fault that does not yet say where to read on.
    """
    try:
        code = command()
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader went away, as `head` does: nothing to complain about
        _drop_stdout()
        return 128 + 13
    except KeyboardInterrupt as end:
        end = end if isinstance(end, Ended) else Ended(signal.SIGINT)
        return _complain(str(end), 128 + end.number)
    except Error as error:
        see = "" if not page or "docs/" in str(error) or "--help" in str(error) else f" (see {page})"
        return _complain(f"{error}{see}", 2)
    except OSError as error:
        return _complain(_explain(error), 2)
    except MemoryError as error:
        return _complain(f"out of memory ({str(error) or 'no more is to be had'}); ask for smaller sizes or counts", 2)
    except UnicodeEncodeError as error:
        return _complain(f"standard output is {error.encoding} and cannot show the answer; set PYTHONUTF8=1, or use --json", 2)


def _complain(message: str, code: int) -> int:
    line = printable(" ".join(message.split()))
    say(f"mmada-lite: {line}")
    _drop_stdout_if_stuck()
    return code


def _explain(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in FULL:
        return f"{full(error)}{where}; make room or write elsewhere"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"not allowed{where}: {error.strerror}; check who owns it, or choose another place"
    return f"{error.strerror or error}{where}"


def _drop_stdout_if_stuck() -> None:
    """What could not be written stays in the buffer, and Python would complain about it once more at exit."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        _drop_stdout()


def say(line: str) -> None:
    """A line for a person, on standard error. Where that is closed, or nobody is left to read, it is lost; the work is not."""
    if sys.stderr is not None:  # print would take standard output for None
        with suppress(OSError):
            print(line.encode(errors="backslashreplace").decode(), file=sys.stderr, flush=True)


def _drop_stdout() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
