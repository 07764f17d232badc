"""The process of the command line: its standard streams, and how a signal ends it.

Ctrl-C, a kill and a closed terminal end it at any moment with 128 and the signal's number, in one line or none, and nothing
unfinished is left. As a rule they raise, so that every `with` and `finally` runs. They end the process at once where that
would be lost, or would last: while something is imported (other people's code turns it into ImportError or drops it), at the
second signal, and where Python has not come to its turn for a while, as in the middle of a large model's forward.
"""

import os
import signal
import sys
import time
from contextlib import suppress
from threading import Thread
from types import FrameType
from typing import Any, NoReturn

from mmada_lite import files
from mmada_lite.arguments import Ended

_PATIENCE = 1.0  # seconds that Python is given to come to its turn
_IMPORTS = "<frozen importlib"
_heard: list[int] = []  # the signals to which Python has come


def run() -> int:
    """Run the command line. Returns its exit code."""
    code = 128 + signal.SIGINT
    try:
        _open_streams()  # before anything else is opened
        _heed()
        from mmada_lite.cli.main import main

        code = main()
    except KeyboardInterrupt as end:  # while another end was being said
        code = 128 + getattr(end, "number", signal.SIGINT)
    finally:
        _heed_no_more(code)
        files.discard_unfinished()
    return code


def _open_streams() -> None:
    """Where one of the three is closed, nothing else may get its number: a library's warning would go into that file.

    `sys.__stdin__`, `sys.__stdout__` and `sys.__stderr__` go on saying None of it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8", closefd=False))


def _heed() -> None:
    signals = [each for each in files.ENDING if signal.getsignal(each) is not signal.SIG_IGN]  # as nohup wants it
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    Thread(target=_watch, args=(reader,), name="signals", daemon=True).start()
    for each in signals:
        signal.signal(each, _end)
    os.register_at_fork(after_in_child=_forget)
    sys.unraisablehook = _unraisable


def _forget() -> None:
    """In a forked child: it is no process of the command line."""
    signal.set_wakeup_fd(-1)
    for each in files.ENDING:
        if signal.getsignal(each) is _end:
            signal.signal(each, signal.SIG_DFL)


def _heed_no_more(code: int) -> None:
    """The work is done and said; what is left may be cut short."""
    _heard.append(0)
    for each in files.ENDING:
        if signal.getsignal(each) is _end:
            signal.signal(each, lambda number, frame: os._exit(code))


def _end(number: int, frame: FrameType | None) -> None:
    again = bool(_heard)
    _heard.append(number)
    while frame is not None and not frame.f_code.co_filename.startswith(_IMPORTS):
        frame = frame.f_back
    if again or frame is not None:
        _leave(number)
    raise Ended(number)


def _watch(reader: int) -> None:
    """In a thread: the numbers of signals, at once."""
    while number := os.read(reader, 1):
        if number[0] in files.ENDING:
            time.sleep(_PATIENCE)
            if not _heard:
                _leave(number[0])


def _unraisable(lost: Any) -> None:
    if isinstance(lost.exc_value, Ended):  # in a finalizer, where Python would print it and go on
        _leave(lost.exc_value.number)
    sys.__unraisablehook__(lost)


def _leave(number: int) -> NoReturn:
    files.discard_unfinished()
    if "multiprocessing" in sys.modules:
        with suppress(Exception):
            for child in sys.modules["multiprocessing"].active_children():
                child.kill()
    with suppress(OSError):
        end = "\r\x1b[K" if os.isatty(2) and os.environ.get("TERM") != "dumb" else ""
        os.write(2, f"{end}mmada-lite: {Ended(number)}\n".encode())
    os._exit(128 + number)
