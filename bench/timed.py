"""Where the time of a decode goes: a clock around the sessions, the denoiser and the caches, and the loop's own share as what
is left. And the most memory that a process took.

The loops do not know that they are watched: they get a denoiser like any other. Nothing here knows which decode is measured.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmada_lite.bundle import Bundle
from mmada_lite.decoding.denoiser import Denoiser, Floats, Head, Prediction, Window
from mmada_lite.decoding.forward import Step
from mmada_lite.decoding.kv_cache import KeyValues, KVBuffer
from mmada_lite.ort import nvidia
from mmada_lite.ort.devices import choose_device
from mmada_lite.ort.lazy import LazyDenoiser
from mmada_lite.ort.loader import open_denoiser

PARTS = ("embedder", "backbone", "head", "copying", "selection")
PYTHON = ("copying", "selection")  # what is no session's work


@dataclass(slots=True)
class Clock:
    """Seconds by part, and what the backbone was asked for: batch, window, past, rows of each forward."""

    seconds: dict[str, float] = field(default_factory=dict)
    forwards: list[tuple[int, int, int, int]] = field(default_factory=list)

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - started)

    def add(self, part: str, seconds: float) -> None:
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    def reset(self) -> None:
        self.seconds.clear()
        self.forwards.clear()

    @property
    def in_sessions(self) -> float:
        return sum(taken for part, taken in self.seconds.items() if part not in PYTHON)


class TimedSession:
    """A session whose runs are counted to a part; everything else is the session's own."""

    def __init__(self, session: Any, part: str, clock: Clock) -> None:
        self._session, self._part, self._clock = session, part, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, *given: Any, **named: Any) -> Any:
        with self._clock.of(self._part):
            return self._session.run(*given, **named)

    def run_with_iobinding(self, *given: Any, **named: Any) -> Any:
        with self._clock.of(self._part):
            return self._session.run_with_iobinding(*given, **named)


class TimedKeyValues(KeyValues):
    """Keys and values whose cutting is copying."""

    __slots__ = ("clock",)
    clock: Clock

    @classmethod
    def around(cls, kept: KeyValues, clock: Clock) -> "TimedKeyValues":
        timed = cls(kept.keys, kept.values)
        object.__setattr__(timed, "clock", clock)
        return timed

    def without(self, start: int, stop: int, buffer: KVBuffer) -> KeyValues:
        with self.clock.of("copying"):
            return super().without(start, stop, buffer)

    def behind(self, past: KeyValues, start: int, stop: int, buffer: KVBuffer) -> KeyValues:
        with self.clock.of("copying"):
            return super().behind(past, start, stop, buffer)

    def shrunk(self, stop: int) -> KeyValues:
        with self.clock.of("copying"):
            return super().shrunk(stop)

    def picked_behind(self, past: KeyValues, places: NDArray[np.int64], buffer: KVBuffer) -> KeyValues:
        with self.clock.of("copying"):
            return super().picked_behind(past, places, buffer)


class TimedDenoiser:
    """A denoiser whose time outside its sessions counts as copying."""

    def __init__(self, denoiser: Denoiser, clock: Clock) -> None:
        self._denoiser, self.clock = denoiser, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)

    def open(self) -> None:
        """Open it now, if it is one that waits until it is asked."""
        if isinstance(self._denoiser, LazyDenoiser):
            self._denoiser = self._denoiser.opened

    def forward(self, window: Window, *, keep: bool) -> tuple[Floats, KeyValues | None]:
        (batch, width), rows = window.tokens.shape, window.queries.shape[1]
        self.clock.forwards.append((batch, width, window.past.length if window.past else 0, rows))
        with self._outside():
            hidden, kept = self._denoiser.forward(window, keep=keep)
        if type(kept) is KeyValues:
            kept = TimedKeyValues.around(kept, self.clock)
        return hidden, kept

    def predict(self, head: Head, hidden: Floats, mix: Floats, temperature: float, uniform: Floats | None) -> Prediction:
        with self._outside():
            return self._denoiser.predict(head, hidden, mix, temperature, uniform)

    def logits(self, head: Head, hidden: Floats, mix: Floats) -> Floats:
        with self._outside():
            return self._denoiser.logits(head, hidden, mix)

    @contextmanager
    def _outside(self) -> Iterator[None]:
        """What passes here and in no session is copying."""
        started, before = time.perf_counter(), self.clock.in_sessions
        try:
            yield
        finally:
            self.clock.add("copying", time.perf_counter() - started - (self.clock.in_sessions - before))


def open_timed(bundle: Bundle, threads: int, device: str = "cpu") -> tuple[TimedDenoiser, float]:
    """A bundle's denoiser under a clock, and the seconds that opening it took."""
    clock, started = Clock(), time.perf_counter()

    def wrap(graph: str, session: Any) -> TimedSession:
        return TimedSession(session, graph if graph in ("embedder", "backbone") else "head", clock)

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
    parts = {part: clock.seconds.get(part, 0.0) for part in PARTS}
    parts["selection"] = max(0.0, seconds - sum(parts.values()))
    return Run(seconds, first, count, model_calls, written, parts, tuple(clock.forwards), peak())


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
