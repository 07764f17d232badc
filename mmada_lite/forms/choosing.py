"""The likeliest of a few choices for one hole, as an answer in the making: one step, once their likelihoods are there.

It hands rows to `mmada_lite.decoding.score` and keeps what comes back. It knows no model and no notation.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmada_lite.decoding.forward import Step
from mmada_lite.decoding.score import Chosen
from mmada_lite.errors import Error, shown
from mmada_lite.forms.rows import Row
from mmada_lite.vocabulary import Tokenizer

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the choices. log_likelihood: of its tokens in the hole, with its end where it is shorter than that, in nats;
    probability: its share among the choices."""

    text: str
    ids: tuple[int, ...]
    log_likelihood: float
    probability: float


class Choosing:
    """rows: the answer for each choice; prompt_length: how many positions stand before it. It has what an answer in the
    making has (`mmada_lite.forms.filling`); `choices` is empty until its one step is done."""

    def __init__(
        self,
        rows: Sequence[Row],
        texts: Sequence[str],
        ids: Sequence[Sequence[int]],
        prompt_length: int,
        choose: Callable[[], Chosen],
        stop: frozenset[int],
        watched: Callable[[Iterator[Step]], Iterator[Step]],
    ) -> None:
        self._rows, self._texts, self._choice_ids, self.prompt_length, self._choose = rows, texts, ids, prompt_length, choose
        self.best, self.choices = 0, tuple[Choice, ...]()
        self.ids: Ints = np.array(rows[0].ids, dtype=np.int64)
        self.log_probabilities: NDArray[np.float64] = np.zeros(len(rows[0].ids))
        self.mask = rows[0].ids[rows[0].holes[0][0]]
        self.stop, self.steps = stop, watched(self._follow())

    @property
    def row(self) -> Row:
        return self._rows[self.best]

    def _follow(self) -> Iterator[Step]:
        started = time.perf_counter()
        chosen = self._choose()
        self.best, self.ids = chosen.index, chosen.answer
        self.log_probabilities = np.zeros(len(chosen.answer))
        self.log_probabilities[chosen.positions] = chosen.by_place
        each = zip(self._texts, self._choice_ids, chosen.log_likelihood, chosen.probability, strict=True)
        self.choices = tuple(Choice(text, tuple(ids), float(log), float(share)) for text, ids, log, share in each)
        changed = np.flatnonzero(chosen.answer != np.array(self.row.ids))
        yield Step(
            index=0,
            total_steps=1,
            rows=np.zeros(changed.size, dtype=np.int64),
            positions=changed + self.prompt_length,
            tokens=chosen.answer[changed],
            log_probabilities=self.log_probabilities[changed].astype(np.float32),
            remaining=int((chosen.answer == self.mask).sum()),
            model_calls=chosen.model_calls,
            seconds=time.perf_counter() - started,
        )


def spelled(choices: Sequence[str], tokenizer: Tokenizer, space: bool) -> list[list[int]]:
    """The ids of each choice, behind a space where that is the hole's own. Raises Error for one that no tokens spell, and for
    two of the same tokens."""
    ids, seen = list[list[int]](), dict[tuple[int, ...], str]()
    for choice in choices:
        text = f" {choice}" if space else choice
        own = tokenizer.encode(text)
        if not own or tokenizer.decode(own) != text:
            raise Error(f"no tokens of this model spell the choice {shown(choice)}; use characters that its tokenizer has")
        if (twin := seen.setdefault(tuple(own), choice)) != choice:
            raise Error(f"the choices {shown(twin)} and {shown(choice)} are the same tokens; leave one out")
        ids.append(own)
    return ids
