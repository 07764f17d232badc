"""The token state being denoised, and how prompts are laid out around the masks.

A canvas is a row of tokens of which some are still masks. It knows which of them may be written and, for guidance, what
the same row looks like without its prompt; it knows nothing of models, schedules or which token comes next. There are
no pads here: rows of one canvas have one length, and rows of different length are different canvases.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmada_lite.errors import Error
from mmada_lite.vocabulary import SpecialTokens, Vocabulary

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


def text_canvas(prompt: ArrayLike, answer_length: int, special: SpecialTokens, *, guided: bool = False) -> Canvas:
    """Prompt ids [B, P] or [P], then `answer_length` masks. Masks inside the prompt are editable too.

    With `guided`, the unconditional row has every given prompt token masked (LLaDA's unsupervised guidance).
    """
    given = np.atleast_2d(np.asarray(prompt, dtype=np.int64))
    if answer_length < 1:
        raise Error(f"the answer length {answer_length} leaves nothing to write; use 1 or more")
    masks = np.full((given.shape[0], answer_length), special.mask, dtype=np.int64)
    tokens = np.concatenate([given, masks], axis=1)
    editable = tokens == special.mask
    canvas = Canvas(tokens, editable, given.shape[1], tokens.shape[1], special.mask)
    if guided:
        canvas.unconditional = np.where(editable, tokens, special.mask)
        canvas.shared = np.flatnonzero(editable.any(axis=0))
        assert (editable == editable[:1]).all(), "guided rows must be masked at the same places"
    return canvas


def picture_prompt(codes: ArrayLike, vocabulary: Vocabulary) -> list[int]:
    """[mmu] [soi] codes [eoi]: how a picture stands before a question about it. Codes [N] are 0..codebook_size-1."""
    special = vocabulary.special
    return [special.mmu, special.soi, *(vocabulary.image_code_offset + _flat(codes)).tolist(), special.eoi]


def paint_prompt(text: Sequence[int], special: SpecialTokens, *, longest: int | None = None) -> list[int]:
    """[t2i] bos text eos. A text longer than the reference's window (`longest` ids with bos and eos) is an Error."""
    body = list(text) if text[:1] == [special.bos] else [special.bos, *text]
    if longest is not None and len(body) + 1 > longest:
        raise Error(f"the prompt is {len(body) - 1} tokens long and the model reads {longest - 2}; shorten it")
    return [special.t2i, *body, special.eos]


def thinking_prompt(text: Sequence[int], special: SpecialTokens) -> list[int]:
    """[r2i] bos text: what a thought about a picture follows. With that thought and eos it is a prompt to draw."""
    return [special.r2i, special.bos, *text]


def thought_prompt(text: Sequence[int], thought: Sequence[int], special: SpecialTokens) -> list[int]:
    """[r2i] bos text thought eos: what a picture follows that is drawn from a thought. The thought's ids have its tags."""
    return [*thinking_prompt(text, special), *thought, special.eos]


def image_canvas(
    prompt: Sequence[int],
    codes: ArrayLike,
    unknown: ArrayLike,
    vocabulary: Vocabulary,
    *,
    unconditional_prompt: Sequence[int] | None = None,
) -> Canvas:
    """Prompt, [soi], N codes, [eoi]. Where `unknown` [N] is true a mask stands, elsewhere the given code, untouchable.

    `unconditional_prompt` (for guidance) replaces the prompt in the second row; it may have another length.
    """
    special = vocabulary.special
    hidden = np.asarray(unknown, dtype=bool).reshape(-1)
    body = np.where(hidden, special.mask, vocabulary.image_code_offset + _flat(codes))
    tail = np.concatenate([[special.soi], body, [special.eoi]]).astype(np.int64)
    tokens = np.concatenate([np.asarray(prompt, dtype=np.int64), tail])[None]
    start = len(prompt) + 1
    editable = np.zeros(tokens.shape, dtype=bool)
    editable[0, start : start + hidden.size] = hidden
    canvas = Canvas(tokens, editable, start, start + hidden.size, special.mask, code_offset=vocabulary.image_code_offset)
    if unconditional_prompt is not None:
        canvas.unconditional = np.concatenate([np.asarray(unconditional_prompt, dtype=np.int64), tail])[None]
        canvas.shared = np.arange(canvas.start, canvas.stop)
        canvas.shift = len(unconditional_prompt) - len(prompt)
    return canvas


def _flat(codes: ArrayLike) -> Ints:
    return np.asarray(codes, dtype=np.int64).reshape(-1)
