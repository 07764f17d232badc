"""An automaton over tokens, made of one over bytes, and searched from both sides: which tokens may stand at a place of a hole,
when its text must be accepted and what is already written stays.

Arrays alone: it knows nothing of patterns, of tokenizers or of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mmada_lite.errors import Error

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
MOST_CELLS, MOST_STATES = 1 << 27, 4096  # states times different words, 256 MiB of 16 bits; states, whose pairs are 16 MiB
_REMEMBERED = 1024  # sets of states, with what follows from each, that are kept


@dataclass(frozen=True, slots=True)
class ByteAutomaton:
    """next int32 [S, 256]: the state behind a byte, -1 where no text goes on so; final bool [S]: where a text may end."""

    next: NDArray[np.int32]
    start: int
    final: Bools

    def behind_a_space(self) -> "ByteAutomaton":
        """That of the same texts of which each may have a space more at its begin, and those that begin with one must."""
        begin = self.next[self.start].copy()
        begin[ord(" ")] = self.start
        following = np.vstack([self.next, begin[None]])
        return ByteAutomaton(following, len(self.next), np.append(self.final, self.final[self.start]))


@dataclass(slots=True)
class TokenAutomaton:
    """next [S, C]: the state behind a token of each class, the last state (from which nothing is accepted) where no text goes
    on so; class_of [V]; final [S]; reach [S, S]: whether some token leads from one state to another. It starts in state 0.
    Tokens of class 0 never stand, those of class 1 end a text."""

    next: NDArray[np.integer]
    class_of: NDArray[np.int32]
    final: Bools
    reach: Bools = field(init=False)
    _remembered: dict[tuple[str, bytes, bytes], Bools] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        states = len(self.next)
        self.reach = np.zeros((states, states), dtype=bool)
        self.reach[np.arange(states)[:, None], self.next] = True
        self.reach[:, -1] = False

    def shortest(self) -> int | None:
        """The fewest tokens that a text has, None where none is accepted."""
        seen = np.zeros(len(self.next), dtype=bool)
        now, length = seen.copy(), 0
        now[0] = True
        while now.any():
            if (now & self.final).any():
                return length
            seen |= now
            now = self.reach[now].any(axis=0) & ~seen
            length += 1
        return None

    def possible(self, hole: Ints, mask: int) -> bool:
        """Whether the masks of a hole [n] can be written so that its text is accepted."""
        return bool((self._from_left(hole, mask)[-1] & self.final).any())

    def allowed(self, hole: Ints, mask: int, places: Sequence[int]) -> Bools:
        """Which tokens may stand at the places [Q] of a hole [n]: [Q, V]. None, where what is open cannot be filled."""
        left, right = self._from_left(hole, mask), self._from_right(hole, mask)
        return np.stack([self._kept("between", left[place], right[place + 1])[self.class_of] for place in places])

    def _from_left(self, hole: Ints, mask: int) -> list[Bools]:
        """Before each place and behind the last, the states [S + 1] that a text may be in."""
        states = [np.arange(len(self.next)) == 0]
        for token in hole:
            if token == mask:
                after = self._kept("left", states[-1])
            else:
                after = np.zeros(len(self.next), dtype=bool)
                after[self.next[states[-1], self.class_of[token]]] = True
                after[-1] = False
            states.append(after)
        return states

    def _from_right(self, hole: Ints, mask: int) -> list[Bools]:
        """Before each place and behind the last, the states [S + 1] from which a text can be accepted."""
        states = [self.final]
        for token in hole[::-1]:
            after = states[-1]
            states.append(self._kept("right", after) if token == mask else after[self.next[:, self.class_of[token]]])
        return states[::-1]

    def _kept(self, what: str, one: Bools, other: Bools | None = None) -> Bools:
        """The states behind any token ("left") or before one ("right"), or the classes [C] that lead from one of the first
        to one of the others ("between"): found once."""
        key = what, one.tobytes(), b"" if other is None else other.tobytes()
        if key not in self._remembered:
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            if other is not None:
                self._remembered[key] = np.logical_or.reduce(other[self.next[one]], axis=0)
            elif what == "left":
                self._remembered[key] = np.logical_or.reduce(self.reach[one], axis=0)
            else:
                self._remembered[key] = np.logical_or.reduce(self.reach[:, one], axis=1)
        return self._remembered[key]


def token_automaton(letters: ByteAutomaton, spellings: Sequence[bytes | None], stop: Sequence[int]) -> TokenAutomaton:
    """The automaton of texts whose tokens are spelled so (None: never in a text), each followed by any number of stop tokens.

    Tokens that no state tells apart are one class. Raises Error beyond MOST_STATES, and where states times different words are
    more than MOST_CELLS.
    """
    columns, byte_class = np.unique(letters.next, axis=1, return_inverse=True)
    table = bytes(byte_class.reshape(-1).astype(np.uint8))
    words: dict[bytes, int] = {}
    word_of = np.full(len(spellings), -1, dtype=np.int64)
    for token, spelling in enumerate(spellings):
        if spelling:
            word_of[token] = words.setdefault(spelling.translate(table), len(words))
    after, states = _reached(columns, letters.start, _Words(list(words), columns.shape[1]))
    final, ended, nothing = letters.final[states], len(states), len(states) + 1
    after[~np.append(_leading_on(after, final), False)[after]] = -1
    kinds, kind_of = _distinct(after)
    following = np.full((nothing + 1, kinds.shape[1] + 2), nothing, dtype=kinds.dtype)
    following[:ended, 2:] = np.where(kinds < 0, nothing, kinds)
    following[:ended, 1] = np.where(final, ended, nothing)
    following[ended, 1] = ended
    class_of = np.zeros(len(spellings), dtype=np.int32)
    class_of[word_of >= 0] = kind_of[word_of[word_of >= 0]] + 2
    class_of[list(stop)] = 1
    return TokenAutomaton(following, class_of, np.concatenate([final, [True, False]]))


class _Words:
    """Words of byte classes, sorted by length, as an array that one state after another runs through."""

    def __init__(self, words: Sequence[bytes], classes: int) -> None:
        self.classes = classes
        lengths = np.array([len(word) for word in words], dtype=np.int64)
        self.order = np.argsort(-lengths, kind="stable")
        self.count = len(words)
        longest = int(lengths.max(initial=0))
        self.columns = []  # the bytes at each place, of the words that are so long
        for place in range(longest):
            at = [words[number][place] for number in self.order[: int((lengths > place).sum())]]
            self.columns.append(np.array(at, dtype=np.int32))

    def run(self, step: NDArray[np.int32], state: int) -> NDArray[np.int32]:
        """The state behind every word, from one state: [words]. step [S, byte classes], flat, holds states times classes."""
        classes = self.classes
        now = np.full(self.count, state * classes, dtype=np.int32)
        for column in self.columns:
            now[: len(column)] = step[now[: len(column)] + column]
        after = np.empty_like(now)
        after[self.order] = now // classes
        return after


def _reached(columns: NDArray[np.int32], start: int, words: _Words) -> tuple[NDArray[np.integer], list[int]]:
    """The states between tokens that some text comes through, from the start, and by their numbers what follows each: [S,
    words], -1 where nothing does. columns [bytes' states, byte classes]."""
    nothing = len(columns)
    step = np.vstack([np.where(columns < 0, nothing, columns), np.full((1, columns.shape[1]), nothing)])
    step = (step * columns.shape[1]).astype(np.int32).reshape(-1)
    states, rows, number = [start], list[NDArray[np.int16]](), np.full(nothing + 1, -1, dtype=np.int16)
    number[start] = 0
    while len(rows) < len(states):
        if len(states) > MOST_STATES or len(states) * words.count > MOST_CELLS:
            most = min(MOST_STATES, MOST_CELLS // max(1, words.count))
            over = f"more than {most} states over the {words.count} different words that this vocabulary is to it"
            raise Error(f"the pattern has {over}; make it simpler or its repeats fewer")
        row = words.run(step, states[len(rows)])
        came = np.zeros(nothing + 1, dtype=bool)
        came[row] = True
        for state in np.flatnonzero(came[:-1] & (number[:-1] < 0)):
            number[state] = min(len(states), MOST_STATES)
            states.append(int(state))
        rows.append(number[row])
    return np.stack(rows), states


def _leading_on(after: NDArray[np.integer], final: Bools) -> Bools:
    """The states [S] from which some text is accepted."""
    reach = np.zeros((len(after), len(after) + 1), dtype=bool)
    for state, row in enumerate(after):
        reach[state, row] = True  # -1 is the last
    useful = final.copy()
    while True:
        grown = useful | reach[:, :-1][:, useful].any(axis=1)
        if (grown == useful).all():
            return useful
        useful = grown


def _distinct(after: NDArray[np.integer]) -> tuple[NDArray[np.integer], Ints]:
    """The different columns of [S, words], and which is each word's: told apart by sums of random numbers."""
    weights = np.random.default_rng(0).integers(0, 2**63, size=len(after), dtype=np.uint64)
    sums = np.zeros(after.shape[1], dtype=np.uint64)
    for weight, row in zip(weights, after, strict=True):
        sums += weight * (row + 1).astype(np.uint64)
    _, first, kind = np.unique(sums, return_index=True, return_inverse=True)
    kinds = after[:, first]
    assert all((own[kind] == row).all() for own, row in zip(kinds, after, strict=True)), "two columns have one sum"
    return kinds, kind.reshape(-1)
