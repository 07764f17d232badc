"""The log of the server and of its worker: one object of JSON a line on standard error. No line of it breaks in two."""

import json
import logging
import sys
import time
import traceback
from contextlib import suppress
from typing import Any


def note(event: str, **fields: Any) -> None:
    """One line: when, what, and the fields that are not None."""
    content = {"time": round(time.time(), 3), "event": event} | {k: v for k, v in fields.items() if v is not None}
    with suppress(OSError, ValueError):  # nobody may be left to read it
        sys.stderr.write(f"{json.dumps(content, default=str)}\n")  # in one piece: threads write here, too
        sys.stderr.flush()


def fault(event: str, error: BaseException, **fields: Any) -> None:
    """A fault of ours, with its traceback, which no client sees."""
    note(event, error=f"{type(error).__name__}: {error}", trace="".join(traceback.format_exception(error)), **fields)


class Handler(logging.Handler):
    """What libraries log, as lines of this log."""

    def emit(self, record: logging.LogRecord) -> None:
        note("library", level=record.levelname.lower(), logger=record.name, message=record.getMessage())
        if record.exc_info and record.exc_info[1] is not None:
            fault("fault", record.exc_info[1])


def take_over(*loggers: str) -> None:
    """Let warnings of these loggers, and what is worse, be lines of this log and nothing else."""
    for name in loggers:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [Handler(logging.WARNING)], False
        logger.setLevel(logging.WARNING)
