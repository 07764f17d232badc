"""Where the time of a decode goes: a clock around the sessions, and Python's own share as what is left. The most memory that a
process took, turns, and other programs as processes of their own.

The loops do not know that they are watched: they get a denoiser like any other. Nothing here knows which decode is measured.
"""

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mmada_lite.bench.record import Row
from mmada_lite.bundle import Bundle
from mmada_lite.decoding.denoiser import Denoiser, Floats, Window
from mmada_lite.decoding.forward import Step
from mmada_lite.decoding.kv_cache import KeyValues
from mmada_lite.errors import Error
from mmada_lite.ort import nvidia
from mmada_lite.ort.devices import choose_device
from mmada_lite.ort.lazy import LazyDenoiser
from mmada_lite.ort.loader import open_denoiser

SESSIONS = ("embedder", "backbone", "head")
PARTS = (*SESSIONS, "python")  # python: what is no session's work
Named = TypeVar("Named")


@dataclass(slots=True)
class Clock:
    """Seconds by session, and what the backbone was asked for: batch, window, past, rows of each forward."""

    seconds: dict[str, float] = field(default_factory=dict)
    forwards: list[tuple[int, int, int, int]] = field(default_factory=list)

    def reset(self) -> None:
        self.seconds.clear()
        self.forwards.clear()


class TimedSession:
    """A session whose runs are counted to a part; everything else is the session's own."""

    def __init__(self, session: Any, part: str, clock: Clock) -> None:
        self._session, self._part, self._clock = session, part, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, *given: Any, **named: Any) -> Any:
        return self._counted(self._session.run, given, named)

    def run_with_iobinding(self, *given: Any, **named: Any) -> Any:
        return self._counted(self._session.run_with_iobinding, given, named)

    def _counted(self, run: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        started, seconds = time.perf_counter(), self._clock.seconds
        try:
            return run(*given, **named)
        finally:
            seconds[self._part] = seconds.get(self._part, 0.0) + time.perf_counter() - started


class TimedDenoiser(LazyDenoiser):
    """A denoiser whose forwards are written down."""

    def __init__(self, denoiser: Denoiser, clock: Clock) -> None:
        super().__init__(lambda: denoiser.opened if isinstance(denoiser, LazyDenoiser) else denoiser)
        self.clock = clock

    def forward(self, window: Window, *, keep: bool) -> tuple[Floats, KeyValues | None]:
        (batch, width), rows = window.tokens.shape, window.queries.shape[1]
        self.clock.forwards.append((batch, width, window.past.length if window.past else 0, rows))
        return super().forward(window, keep=keep)


def open_timed(bundle: Bundle, threads: int, device: str = "cpu") -> tuple[TimedDenoiser, float]:
    """A bundle's denoiser under a clock, and the seconds that opening it took."""
    clock, started = Clock(), time.perf_counter()

    def wrap(graph: str, session: Any) -> TimedSession:
        return TimedSession(session, graph if graph in SESSIONS else "head", clock)

    denoiser = open_denoiser(bundle, choose_device(device), threads, wrap)
    return TimedDenoiser(denoiser, clock), time.perf_counter() - started


@dataclass(frozen=True, slots=True)
class Run:
    """One decode, or as much of it as was asked for. parts: seconds by part, which add up to `seconds`."""

    seconds: float
    first: float
    steps: int
    model_calls: int
    written: int
    parts: dict[str, float]
    windows: tuple[tuple[int, int, int, int], ...]
    peak: int | None


def timed(steps: Iterator[Step], clock: Clock, leave: int = 0) -> Run:
    """Run a loop until `leave` masks are left, under the clock that its denoiser has."""
    clock.reset()
    forget_peak()
    started, first, count, model_calls, written = time.perf_counter(), 0.0, 0, 0, 0
    for step in steps:
        first = first or time.perf_counter() - started
        count, model_calls, written = count + 1, step.model_calls, written + len(step.positions)
        if step.remaining <= leave:
            break
    seconds = time.perf_counter() - started
    parts = {part: clock.seconds.get(part, 0.0) for part in SESSIONS}
    parts["python"] = max(0.0, seconds - sum(parts.values()))
    return Run(seconds, first, count, model_calls, written, parts, tuple(clock.forwards), peak())


def turns(names: Sequence[Named], rounds: int) -> Iterator[Named]:
    """Each once a round, every second round backwards: what changes about a machine meets all of them alike."""
    for number in range(rounds):
        yield from names[:: -1 if number % 2 else 1]


def card_bytes() -> int | None:
    """Bytes of the first card's memory that are taken; None without a card."""
    return next((card.memory - card.free for card in nvidia.cards() if card.free is not None), None)


def forget_peak() -> bool:
    """Let the system count this process's highest memory anew, where it can (Linux); returns whether it does."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def peak() -> int | None:
    """The most bytes that this process held since `forget_peak`; None where the system does not say."""
    with suppress(OSError):
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(peak[1]) * 1024 if peak else None
    return None


def run_module(module: str, *arguments: object, environment: Mapping[str, str] | None = None) -> Row:
    """`python -m module arguments` to its end: its seconds, those of processors, bytes at the highest, and what its last line
    says if that is JSON. Raises Error with its last words when it fails."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        redirected = [(os.POSIX_SPAWN_DUP2, out.fileno(), 1), (os.POSIX_SPAWN_DUP2, err.fileno(), 2)]
        process = os.posix_spawn(sys.executable, command, environment or os.environ, file_actions=redirected)
        _, status, usage = os.wait4(process, 0)
        seconds = time.perf_counter() - started
        printed, complained = (_last_line(stream) for stream in (out, err))
    if os.waitstatus_to_exitcode(status):
        raise Error(f"python {' '.join(command[1:])} failed: {complained or 'it says nothing'}")
    unit = 1 if sys.platform == "darwin" else 1024  # in which the system counts
    return {
        "command": " ".join(["python", *command[1:]]),
        "seconds": seconds,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * unit,
        "printed": json.loads(printed) if printed.startswith("{") else {},
    }


def _last_line(stream: Any) -> str:
    stream.seek(0)
    lines = stream.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
