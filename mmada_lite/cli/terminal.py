"""Between a person (or a pipe) and a verb: reading standard input, one progress line, JSON lines.

Progress goes to standard error and only to a terminal; results go to standard output. Nothing here knows a model.
"""

import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mmada_lite.arguments import say, within_cores
from mmada_lite.errors import Error, printable

if TYPE_CHECKING:
    from mmada_lite.decoding.forward import Step
    from mmada_lite.decoding.settings import ImageSettings, TextSettings

STDIN = "-"
_BAR = 16  # characters
_log = logging.getLogger("mmada_lite")


def only_one_stdin(arguments: Mapping[str, str | None]) -> None:
    """Raise Error when more than one of the arguments is `-`: there is one standard input."""
    readers = [name for name, value in arguments.items() if value == STDIN]
    if len(readers) > 1:
        raise Error(f"{' and '.join(readers)} cannot both be - : there is one standard input")


def text_of(argument: str, what: str) -> str:
    """A text argument, or standard input for `-`. Raises Error when it is not UTF-8."""
    if argument == STDIN:
        try:
            return bytes_from_stdin().decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise Error(f"the {what} on standard input is not UTF-8 text (byte {error.start}); convert it") from error
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Error(f"the {what} is not UTF-8 text (character {error.start}); convert it") from error
    return argument


def picture_of(argument: str) -> str | bytes:
    """A picture argument as the library takes it: a path, or the bytes of standard input for `-`."""
    if argument != STDIN:
        return argument
    from mmada_lite.images import LONGEST_FILE

    picture = bytes_from_stdin(LONGEST_FILE + 1)
    if not picture:
        raise Error("there is no picture on standard input; pipe one in or give a file")
    return picture


def bytes_from_stdin(most: int = -1) -> bytes:
    if sys.stdin is None:
        raise Error("standard input is closed; give the text or the file as an argument")
    return sys.stdin.buffer.read(most)


def threads_of(given: int | None) -> int | None:
    if given is not None and given < 1:
        raise Error(f"--threads {given} leaves nobody to work; use 1 or more")
    return given if given is None else within_cores(given)


def json_line(content: Mapping[str, Any]) -> str:
    return json.dumps(content)


def print_json(content: Mapping[str, Any]) -> None:
    print(json_line(content), flush=True)


def print_folder(folder: Path, about: Mapping[str, Any], *, as_json: bool) -> None:
    """The folder that was written: its name, or one object with its size and what there is to say about it."""
    if as_json:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print_json({"result": str(folder), "bytes": size, **about})
    else:
        print(folder)
    if not (folder / "image_decoder.onnx").is_file():
        note(f"mmada-lite: {folder} neither sees nor draws, since its source has no folder vq")


def step_json(step: "Step") -> dict[str, Any]:
    """A step as plain data; steps count from 1 here, as in the names of saved pictures."""
    return {
        "step": step.index + 1,
        "total_steps": step.total_steps,
        "positions": step.positions.tolist(),
        "tokens": step.tokens.tolist(),
        "log_probabilities": [value if math.isfinite(value) else None for value in step.log_probabilities.tolist()],
        "remaining": step.remaining,
        "seconds": round(step.seconds, 6),
        "model_calls": step.model_calls,
    }


def result_json(result: str, seed: int, settings: "TextSettings | ImageSettings", last: "Step | None") -> dict[str, Any]:
    return {
        "result": result,
        "seed": seed,
        "settings": settings.flat(),
        "steps": last.index + 1 if last else 0,
        "seconds": round(last.seconds, 6) if last else 0.0,
        "model_calls": last.model_calls if last else 0,
    }


def step_line(step: "Step", unit: str) -> str:
    """`step 3/15 ███░░░ 0.8 s, 41 tokens left`."""
    done = f"step {step.index + 1}" + (f"/{step.total_steps}" if step.total_steps else "")
    share = (step.index + 1) / step.total_steps if step.total_steps else None
    bar = "" if share is None else " " + "█" * round(share * _BAR) + "░" * (_BAR - round(share * _BAR))
    return f"{done}{bar} {step.seconds:.1f} s, {step.remaining} {unit} left"


class Progress:
    """One line on standard error that is written over and gone at the end; nothing at all unless that is a terminal.

    While it is there the library's warnings are notes.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.on = not quiet and is_terminal("stderr") and os.environ.get("TERM") != "dumb"
        self._warnings = _Warnings(self)

    def show(self, line: str) -> None:
        if self.on:
            width = shutil.get_terminal_size().columns - 1
            text = printable(" ".join(line.split()))
            self._write(text if len(text) <= width else text[: width - 1] + "…")

    def keep(self, message: str) -> None:
        """A note in place of the line, which goes on below it."""
        self._clear()
        note(message)

    def __enter__(self) -> Self:
        _log.addHandler(self._warnings)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _log.removeHandler(self._warnings)
        self._clear()

    def _clear(self) -> None:
        if self.on:
            self._write("")

    def _write(self, line: str) -> None:
        try:
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()
        except OSError:  # the terminal has gone; the work goes on
            self.on = False


class _Warnings(logging.Handler):
    """What the library logs, said on a line of its own."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.WARNING)
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        self._progress.keep(f"mmada-lite: {record.getMessage()}")


def note(message: str) -> None:
    """Something a person should know that is not the result."""
    say(printable(message))


def dimmed(text: str) -> str:
    """Faint on standard output where that is wanted, else as it is."""
    return f"\x1b[2m{text}\x1b[22m" if colours() else text


def colours() -> bool:
    """Whether standard output is coloured: never with NO_COLOR, always with FORCE_COLOR, else on a terminal that can."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (is_terminal("stdout") and os.environ.get("TERM") != "dumb")


def is_terminal(*streams: str) -> bool:
    """Whether all of the named streams of sys (stdin, stdout, stderr) are a terminal."""
    open_streams: Sequence[Any] = [getattr(sys, name) for name in streams]
    return all(stream is not None and stream.isatty() for stream in open_streams)
