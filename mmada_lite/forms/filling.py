"""The writing of an answer: one row, or rows that differ in the lengths of their holes, of which the likeliest is taken.

It hands rows to a decode and follows its steps. It knows no model and no text.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mmada_lite.decoding.forward import Step
from mmada_lite.decoding.generate import Decoding
from mmada_lite.forms.rows import Row

Ints = NDArray[np.int64]
TOGETHER = 16  # rows of one model call
Begin = Callable[[Sequence[Sequence[int]]], Decoding]  # answers of one length -> a decode of them


class Filling:
    """rows: what may be written, all of one length; begin: starts a decode; together: rows of one decode. `steps` does the
    work, once; what a step's `rows` count are these. best: the number of the likeliest, before the end of the first, whose
    `row` and `ids` [N] these are."""

    choices = ()  # of `mmada_lite.forms.choosing.Choosing`, which stands in its place

    def __init__(self, rows: Sequence[Row], begin: Begin, stop: frozenset[int], together: int = TOGETHER) -> None:
        self._rows, self._begin, self.stop = rows, begin, stop
        self._parts = [range(n, min(n + together, len(rows))) for n in range(0, len(rows), together)]
        self._first = self._started(self._parts[0])  # at once, for its errors
        self._ids = np.array([row.ids for row in rows], dtype=np.int64)
        self._log_probabilities = np.zeros(self._ids.shape)
        self._best = 0
        self.mask, self.prompt_length = self._first.canvas.mask, self._first.canvas.start
        self.steps: Iterator[Step] = self._follow()

    @classmethod
    def of(cls, decoding: Decoding, stop: frozenset[int]) -> "Filling":
        """A decode of one answer that is all masks."""
        return cls([Row.all_masked(decoding.ids.shape[1], decoding.canvas.mask)], lambda answers: decoding, stop)

    @property
    def row(self) -> Row:
        return self._rows[self._best]

    @property
    def ids(self) -> Ints:
        ids: Ints = self._ids[self._best].copy()
        return ids

    @property
    def log_probabilities(self) -> NDArray[np.float64]:
        """What each token had when it was written; 0 for what is given, or not yet there."""
        each: NDArray[np.float64] = self._log_probabilities[self._best].copy()
        return each

    def _started(self, part: range) -> Decoding:
        return self._begin([self._rows[number].ids for number in part])

    def _follow(self) -> Iterator[Step]:
        index, calls, seconds, several = 0, 0, 0.0, len(self._parts) > 1
        for part in self._parts:
            decoding, step = self._first if part is self._parts[0] else self._started(part), None
            for step in decoding.steps:
                rows, places = step.rows + part.start, step.positions - decoding.canvas.start
                inside = places >= 0  # masks of a prompt are written too
                self._ids[rows[inside], places[inside]] = step.tokens[inside]
                self._log_probabilities[rows[inside], places[inside]] = step.log_probabilities[inside]
                yield replace(
                    step,
                    index=index + step.index,
                    total_steps=None if several else step.total_steps,
                    rows=rows,
                    model_calls=calls + step.model_calls,
                    seconds=seconds + step.seconds,
                )
            if step is not None:
                index, calls, seconds = index + step.index + 1, calls + step.model_calls, seconds + step.seconds
        self._best = max(range(len(self._rows)), key=self._likeliness) if len(self._rows) > 1 else 0

    def _likeliness(self, number: int) -> float:
        """The mean log probability of what stands in a row's holes up to their ends; of a row with an empty hole the least."""
        scores = list[float]()
        for start, end in self._rows[number].holes:
            ends = np.flatnonzero(np.isin(self._ids[number, start:end], list(self.stop)))
            count = int(ends[0]) if ends.size else end - start
            if count == 0:
                return -np.inf
            scores += self._log_probabilities[number, start : start + count].tolist()
        return float(np.mean(scores))
