"""The token state being denoised.

A canvas is a row of tokens of which some are still masks. It knows which of them may be written and, for guidance, what
the same row looks like without its prompt; it knows nothing of models, schedules or which token comes next. There are
no pads here: rows of one canvas have one length, and rows of different length are different canvases.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmada_lite.decoding.rows import picture_part
from mmada_lite.errors import Error
from mmada_lite.vocabulary import Vocabulary

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(slots=True)
class Canvas:
    """Tokens in the making.

    tokens [B, L]: a batch of rows; editable [B, L]: where decoding may write; start, stop: the region that the loop walks
    (the answer, or the picture's codes). unconditional [B, Lu]: the same rows without their prompt, for guidance;
    position p of `shared` stands there at p + shift and is kept equal. code_offset: the token of picture code 0.
    """

    tokens: Ints
    editable: Bools
    start: int
    stop: int
    mask: int
    unconditional: Ints | None = None
    shared: Ints | None = None
    shift: int = 0
    code_offset: int = 0

    @property
    def region(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def tails(self) -> Ints:
        """Where each row's tail begins, [B]: what stands in the region behind the last token that was given there. A text ends
        in its tail alone; what is open before it is a hole."""
        given = ~self.editable[:, self.region]
        behind = given[:, ::-1].argmax(axis=1)
        tails: Ints = np.where(given.any(axis=1), self.stop - behind, self.start)
        return tails

    @property
    def batch(self) -> int:
        return int(self.tokens.shape[0])

    @property
    def length(self) -> int:
        return int(self.tokens.shape[1])

    def masked(self) -> Bools:
        """Where decoding still has to write: bool [B, L]."""
        masked: Bools = (self.tokens == self.mask) & self.editable
        return masked

    def write(self, where: Bools, tokens: Ints) -> None:
        """Set tokens [B, L] at the positions `where` [B, L]; the unconditional rows follow. Given tokens never change."""
        assert not (where & ~self.editable).any(), "a given token was about to be overwritten"
        self.tokens[where] = tokens[where]
        if self.unconditional is not None and self.shared is not None:
            self.unconditional[:, self.shared + self.shift] = self.tokens[:, self.shared]

    def put(self, rows: Ints, positions: Ints, tokens: Ints) -> None:
        """Set tokens [K] at rows [K] and positions [K] of the shared region; the unconditional rows follow."""
        assert self.editable[rows, positions].all(), "a given token was about to be overwritten"
        self.tokens[rows, positions] = tokens
        if self.unconditional is not None:
            self.unconditional[rows, positions + self.shift] = tokens

    def branches(self) -> list[Ints]:
        """The rows that one step reads: the conditional ones and, where there is guidance, the unconditional ones."""
        return [self.tokens] if self.unconditional is None else [self.tokens, self.unconditional]


def text_canvas(prompts: ArrayLike, answer: int | ArrayLike, mask: int, *, guided: bool = False) -> Canvas:
    """Prompt ids [B, P] or [P], then an answer: ids [B, N] or [N] of which the masks are to be written, or how many masks.
    Masks inside the prompt are editable too. Raises Error where nothing of the answer is masked, and for guided prompts that
    are masked at different places.

    With `guided`, the unconditional row has every given prompt token masked (LLaDA's unsupervised guidance); what is given of
    the answer stands there too, as the given codes of a picture do.
    """
    given = np.atleast_2d(np.asarray(prompts, dtype=np.int64))
    partial = np.full(max(0, answer), mask) if isinstance(answer, int) else np.asarray(answer, dtype=np.int64)
    partial = np.atleast_2d(partial)
    if not (partial == mask).any():
        size = f"{partial.shape[1]} tokens" if partial.size else "no tokens"
        raise Error(f"an answer of {size} without a mask leaves nothing to write; put masks where something is to be written")
    batch = max(len(given), len(partial))
    parts = [np.broadcast_to(part, (batch, part.shape[1])) for part in (given, partial)]
    tokens = np.concatenate(parts, axis=1)
    editable = tokens == mask
    canvas = Canvas(tokens, editable, given.shape[1], tokens.shape[1], mask)
    if guided:
        before = editable[:, : canvas.start]
        if (before != before[:1]).any():
            raise Error("guidance needs prompts that are masked at the same places; decode each alone, or without guidance")
        canvas.unconditional = tokens.copy()
        canvas.unconditional[:, : canvas.start] = mask
        canvas.shared = np.concatenate([np.flatnonzero(before.any(axis=0)), np.arange(canvas.start, canvas.stop)])
    return canvas


def closed_holes(canvas: Canvas, tokens: Ints, stop_tokens: Ints) -> Ints:
    """Tokens [B, L] of the canvas with the holes closed that hold a stop token: what is masked behind the first one is that
    token too. A hole is what is open between given tokens of the region; the tail is none."""
    ending = among(tokens, stop_tokens) & canvas.editable & (np.arange(canvas.length) < canvas.tails[:, None])
    ending[:, : canvas.start] = False
    if not ending.any():
        return tokens
    closed = tokens.copy()
    for row, position in np.argwhere(ending):
        stop = position + int(canvas.editable[row, position:].argmin())
        behind = closed[row, position:stop]
        behind[behind == canvas.mask] = tokens[row, position]
    return closed


def among(tokens: Ints, few: Ints) -> Bools:
    """Where a token is one of a few: as np.isin, which takes seven times as long for so few."""
    among = np.zeros(tokens.shape, dtype=bool)
    for one in few:
        among |= tokens == one
    return among


def image_canvas(
    prompts: ArrayLike,
    codes: ArrayLike,
    unknown: ArrayLike,
    vocabulary: Vocabulary,
    *,
    unconditional_prompt: ArrayLike | None = None,
) -> Canvas:
    """Prompt ids [B, P] or [P], all that stands before the codes; N codes; what ends a picture. Where `unknown` is true a mask
    stands, elsewhere the given code, untouchable. codes, unknown: [B, N], of one row any shape of N.

    `unconditional_prompt` (for guidance) replaces the prompt in the second row; it may have another length.
    """
    given = np.atleast_2d(np.asarray(prompts, dtype=np.int64))
    hidden = np.asarray(unknown, dtype=bool).reshape(len(given), -1)
    picture = picture_part(codes, hidden, vocabulary)
    tokens = np.concatenate([given, picture], axis=1)
    start, stop = given.shape[1], given.shape[1] + hidden.shape[1]
    editable = np.zeros(tokens.shape, dtype=bool)
    editable[:, start:stop] = hidden
    mask, code_offset = vocabulary.special.mask, vocabulary.image_code_offset
    canvas = Canvas(tokens, editable, start, stop, mask, code_offset=code_offset)
    if unconditional_prompt is not None:
        without = np.asarray(unconditional_prompt, dtype=np.int64)
        canvas.unconditional = np.concatenate([np.tile(without, (len(given), 1)), picture], axis=1)
        canvas.shared = np.arange(canvas.start, canvas.stop)
        canvas.shift = without.size - given.shape[1]
    return canvas
