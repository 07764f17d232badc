"""How prompts and pictures are laid out as rows of ids: which special tokens stand around the words of a task and around codes.

It knows the special ids. It knows no tokenizer, and nothing of how what is masked is filled.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmada_lite.errors import Error
from mmada_lite.vocabulary import SpecialTokens, Vocabulary


def picture_prompt(codes: ArrayLike, vocabulary: Vocabulary) -> list[int]:
    """[mmu] [soi] codes [eoi]: how a picture stands before a question about it. Codes [N] are 0..codebook_size-1."""
    special = vocabulary.special
    return [
        special.mmu,
        special.soi,
        *(vocabulary.image_code_offset + np.asarray(codes, dtype=np.int64).reshape(-1)).tolist(),
        special.eoi,
    ]


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


def picture_part(codes: ArrayLike, unknown: NDArray[np.bool_], vocabulary: Vocabulary) -> NDArray[np.int64]:
    """[soi] N codes [eoi], int64 [B, N + 2]: what stands behind a prompt to draw. unknown [B, N]: where a mask stands in place
    of the code."""
    special, rows = vocabulary.special, len(unknown)
    given = np.asarray(codes, dtype=np.int64).reshape(rows, -1)
    body = np.where(unknown, special.mask, vocabulary.image_code_offset + given)
    bracket = np.ones((rows, 1), dtype=np.int64)
    return np.concatenate([special.soi * bracket, body, special.eoi * bracket], axis=1)
