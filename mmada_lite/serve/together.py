"""Several decodes at once, each in a thread of its own, on one denoiser: forwards that wait together and are alike run as one
batch. So every decode has its own loop, settings, seed and steps, and writes the ids that it writes alone.

It knows windows and threads, and nothing of tasks.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mmada_lite.decoding.denoiser import Floats, Head, Prediction, Window
from mmada_lite.decoding.kv_cache import KeyValues

Answer = tuple[Floats, KeyValues | None]


@dataclass(slots=True, eq=False)
class _Asked:
    """A forward that waits, and what came of it."""

    window: Window
    keep: bool
    done: bool = False
    answer: Answer | None = None
    error: BaseException | None = None
    alike: tuple[int, int, bool] = field(init=False)

    def __post_init__(self) -> None:
        past = self.window.past
        self.alike = (self.window.tokens.shape[1], 0 if past is None else past.length, self.keep)


class Together:
    """A denoiser before another. Windows are alike that have as many tokens, as much of a past, and keep or do not; where they
    stand in their rows, and how many of their places are queried, may differ."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._turn = threading.Condition()
        self._waiting: list[_Asked] = []
        self._seated: dict[int, Callable[[], None]] = {}  # by thread: raises where its decode is to end
        self._running = False
        self._last = 0.0  # seconds of the last forward: to wait longer for others does not pay
        self._joined: tuple[Sequence[KeyValues | None], KeyValues | None] = ((), None)
        self.batches: dict[int, int] = {}  # how many forwards had so many decodes in them

    @contextmanager
    def seat(self, check: Callable[[], None]) -> Iterator[None]:
        """This thread decodes. check: raises where that is to end, be it while a forward waits."""
        with self._turn:
            self._seated[threading.get_ident()] = check
        try:
            yield
        finally:
            with self._turn:
                del self._seated[threading.get_ident()]
                self._joined = ((), None)
                self._turn.notify_all()

    def wake(self) -> None:
        """Let those that wait look whether they are to end."""
        with self._turn:
            self._turn.notify_all()

    def forward(self, window: Window, *, keep: bool) -> Answer:
        check = self._seated.get(threading.get_ident(), lambda: None)
        asked = _Asked(window, keep)
        with self._turn:
            self._waiting.append(asked)
            self._turn.notify_all()
            patience = time.monotonic() + self._last
            while not asked.done:
                try:
                    check()
                except BaseException:
                    if asked in self._waiting:
                        self._waiting.remove(asked)
                    self._turn.notify_all()
                    raise
                left = patience - time.monotonic()
                if not self._running and asked in self._waiting and (left <= 0 or len(self._waiting) >= len(self._seated)):
                    self._run(asked)
                else:
                    self._turn.wait(None if self._running else max(left, 0.0005))
        if asked.error is not None:
            raise asked.error
        assert asked.answer is not None
        return asked.answer

    def predict(self, head: Head, hidden: Floats, mix: Floats, temperature: float, uniform: Floats | None) -> Prediction:
        prediction: Prediction = self._inner.predict(head, hidden, mix, temperature, uniform)
        return prediction

    def logits(self, head: Head, hidden: Floats, mix: Floats) -> Floats:
        logits: Floats = self._inner.logits(head, hidden, mix)
        return logits

    def interrupt(self, on: bool) -> None:
        """As the inner denoiser's: for all that run."""
        self._inner.interrupt(on)

    def _run(self, asked: _Asked) -> None:
        """Run the forward that waits longest with all that are alike; the lock is free meanwhile."""
        group = [each for each in self._waiting if each.alike == self._waiting[0].alike]
        self._waiting = [each for each in self._waiting if each not in group]
        self._running = True
        self._turn.release()
        begun = time.monotonic()
        try:
            self._answer(group)
        finally:
            self._turn.acquire()
            self._running, self._last = False, time.monotonic() - begun
            self.batches[len(group)] = self.batches.get(len(group), 0) + 1
            for each in group:
                each.done = True
            self._turn.notify_all()

    def _answer(self, group: Sequence[_Asked]) -> None:
        if len(group) > 1:
            try:
                answers = self._batch(group)
            except Exception:  # no room for all, or what one of them causes: each gets its own error
                self._joined = ((), None)
            else:
                for each, answer in zip(group, answers, strict=True):
                    each.answer = answer
                return
        for each in group:
            try:
                each.answer = self._inner.forward(each.window, keep=each.keep)
            except BaseException as error:
                each.error = error

    def _batch(self, group: Sequence[_Asked]) -> list[Answer]:
        """The answers of several forwards that are alike."""
        windows = [each.window for each in group]
        counts = [len(window.tokens) for window in windows]
        queries = [window.queries.shape[1] for window in windows]
        joined = Window(
            tokens=np.concatenate([window.tokens for window in windows]),
            positions=np.concatenate([np.broadcast_to(window.positions, window.tokens.shape) for window in windows]),
            queries=np.concatenate([_widened(window, max(queries)) for window in windows]),
            past=self._past(windows),
        )
        hidden, kept = self._inner.forward(joined, keep=group[0].keep)
        ends = np.cumsum(counts)
        answers = list[Answer]()
        for end, count, wide in zip(ends, counts, queries, strict=True):
            rows = slice(int(end - count), int(end))
            own = None if kept is None else replace(kept, keys=_cut(kept.keys, rows), values=_cut(kept.values, rows))
            answers.append((np.ascontiguousarray(hidden[rows, :wide]), own))
        return answers

    def _past(self, windows: Sequence[Window]) -> KeyValues | None:
        """What all windows attend to, row behind row: steps with the same pasts, one after another, have it once."""
        pasts = [window.past for window in windows]
        if len(pasts) == len(self._joined[0]) and all(a is b for a, b in zip(pasts, self._joined[0], strict=True)):
            return self._joined[1]
        known = [past for past in pasts if past is not None]
        joined = None
        if known and known[0].length:
            columns = zip(*((*past.keys, *past.values) for past in known), strict=True)
            arrays = [np.concatenate(column) for column in columns]
            joined = KeyValues(tuple(arrays[: len(arrays) // 2]), tuple(arrays[len(arrays) // 2 :]))
        self._joined = pasts, joined
        return joined


def _widened(window: Window, wide: int) -> np.ndarray:
    """Its queries [B, Q], the first repeated up to so many."""
    given = window.queries
    return np.concatenate([given, np.repeat(given[:, :1], wide - given.shape[1], axis=1)], axis=1)


def _cut(arrays: Sequence[Floats], rows: slice) -> tuple[Floats, ...]:
    """Some rows of arrays. They share memory with the others, and each decode writes to its own rows alone."""
    return tuple(array[rows] for array in arrays)
