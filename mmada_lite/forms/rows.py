"""Answers of which a part is given: from pieces and holes to rows of ids, and from written rows back to a text and its spans.

It encodes and decodes with what it is handed. It knows nothing of models, and not how what is masked is written.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from mmada_lite.forms.holes import Partial

Ints = NDArray[np.int64]
Encode = Callable[[str], Sequence[int]]
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Span:
    """What stands in one hole. start, stop: its characters in the whole text; ids: up to its end; log_probability: the sum of
    what its tokens had when they were written, in nats, and mean: a token's share of it, 0 where nothing was written."""

    start: int
    stop: int
    text: str
    ids: tuple[int, ...]
    log_probability: float
    mean: float


@dataclass(frozen=True, slots=True)
class Row:
    """An answer to be written. ids [N]: masks where a model writes; holes: from and to which place; pieces: the texts around
    them, one more than holes; spaces: whether the space at the end of the piece before is a hole's own. What is behind the last
    piece, an end and filling, is in no text. plain: nothing is given."""

    ids: tuple[int, ...]
    holes: tuple[tuple[int, int], ...]
    pieces: tuple[str, ...]
    spaces: tuple[bool, ...]
    plain: bool = False

    @classmethod
    def all_masked(cls, length: int, mask: int) -> "Row":
        return cls((mask,) * length, ((0, length),), ("", ""), (False,), plain=True)

    @classmethod
    def of_ids(cls, ids: Sequence[int], mask: int, decode: Decode) -> "Row":
        """An answer that is given as ids."""
        holes, pieces, start = list[tuple[int, int]](), list[str](), 0
        masked = [token == mask for token in ids]
        while start < len(ids):
            stop = next((place for place in range(start, len(ids)) if masked[place] != masked[start]), len(ids))
            if masked[start]:
                pieces += [""] * (len(pieces) == len(holes))
                holes.append((start, stop))
            else:
                pieces.append(decode(ids[start:stop]))
            start = stop
        pieces += [""] * (len(holes) + 1 - len(pieces))
        return cls(tuple(ids), tuple(holes), tuple(pieces), (False,) * len(holes), plain=all(masked))

    def ended(self, ids: Ints, stop: frozenset[int]) -> bool:
        """Whether an answer [N] came to its end: by a stop token behind all that is given, or because its end is given."""
        tail, length = self.holes[-1]
        return length < len(self.ids) or bool(np.isin(ids[tail:], list(stop)).any())

    def read(
        self,
        ids: Ints,
        log_probabilities: NDArray[np.floating],
        decode: Decode,
        stop: frozenset[int],
        mask: int,
        mark: str = "",
    ) -> tuple[str, tuple[Span, ...]]:
        """The text of an answer [N], with `mark` for each mask that is left, and what stands in its holes."""
        text, spans = self.pieces[0], list[Span]()
        for (start, end), space, piece in zip(self.holes, self.spaces, self.pieces[1:], strict=True):
            written = [int(token) for token in ids[start:end]]
            count = next((place for place, token in enumerate(written) if token in stop), len(written))
            written = written[:count]
            words = marked(written, decode, mask, mark)
            words = words[1:] if space and words.startswith(" ") else words
            total = float(log_probabilities[start : start + count].sum())
            spans.append(Span(len(text), len(text) + len(words), words, tuple(written), total, total / max(1, count)))
            text += words + piece
        return text, tuple(spans)


def marked(ids: Sequence[int], decode: Decode, mask: int, mark: str) -> str:
    """The text of ids, with `mark` for each mask."""
    pieces, run = list[str](), list[int]()
    for token in ids:
        if token == mask:
            pieces += [decode(run), mark]
            run = []
        else:
            run.append(token)
    return "".join([*pieces, decode(run)])


def beginning(partial: Partial, encode: Encode, length: int, mask: int) -> Row:
    """A text without holes as the beginning of an answer of so many tokens in all, or of more where it is that long."""
    (piece,) = partial.pieces
    space = piece.endswith(" ")
    ids = list(encode(piece[:-1] if space else piece))
    holes = ((len(ids), max(length, len(ids))),)
    return Row((*ids, *[mask] * (length - len(ids))), holes, (piece, ""), (space,))


def longest(partial: Partial, encode: Encode) -> int:
    """Tokens that a text has with its holes at their longest."""
    return sum(map(len, _encoded(partial, encode))) + sum(hole.most for hole in partial.holes)


def _encoded(partial: Partial, encode: Encode) -> list[list[int]]:
    """The ids of each piece, without the space that is a hole's own."""
    spaces = [*(hole.space for hole in partial.holes), False]
    return [list(encode(piece[:-1] if space else piece)) for piece, space in zip(partial.pieces, spaces, strict=True)]


def forms(partial: Partial, encode: Encode, end: Sequence[int], filling: int, block: int, mask: int) -> list[Row]:
    """A text with holes as a whole answer: a row for every combination of lengths, shortest first, and behind each the `end`
    of a turn and then `filling` up to whole blocks of the longest, which is what follows an answer in training."""
    pieces, length = _encoded(partial, encode), -(-(longest(partial, encode) + len(end)) // block) * block
    rows = []
    for lengths in sorted(product(*(hole.lengths for hole in partial.holes)), key=lambda each: (sum(each), each)):
        ids, holes = list(pieces[0]), list[tuple[int, int]]()
        for count, piece in zip(lengths, pieces[1:], strict=True):
            holes.append((len(ids), len(ids) + count))
            ids += [mask] * count + piece
        ids += [*end, *[filling] * (length - len(ids) - len(end))]
        rows.append(Row(tuple(ids), tuple(holes), partial.pieces, tuple(hole.space for hole in partial.holes)))
    return rows
