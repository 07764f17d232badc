"""The reference's padded prompt rows, id for id: for parity, and for training batches whose rows share one length.

Pure functions from ids to int64 arrays, without torch; texts are tokenized and templates rendered elsewhere (`vocabulary`),
and the runtime builds its own prompts without pads (`canvas`). Masks say 1 for what is given and 0 for what is to be
predicted, except in text to image, where 0 is a pad. golden/README.md, section prompting, lists the quirks kept here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmada_lite.vocabulary import SpecialTokens

IGNORED = -100  # label of a position that is not predicted
Ids = Sequence[int]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PromptRows:
    """A padded batch, all [B, L]."""

    input_ids: Ints
    mask: Ints
    labels: Ints


def painting_rows(
    texts: Sequence[Ids],
    pictures: Sequence[Ids],
    special: SpecialTokens,
    max_text_len: int,
    labels: Sequence[Ids] | None = None,
    drop: Sequence[bool] | None = None,
) -> PromptRows:
    """Text to image: pads, t2i bos text eos to max_text_len + 1 tokens, then soi picture eoi. mask is 0 on pads.

    `pictures` are tokens (codes with offset, or masks); `labels` are those of the picture (without: the picture itself). A
    row whose `drop` is true loses its text, so that guidance has something to subtract; the reference drops where a uniform
    draw is below its probability.
    """
    ids, mask, targets = [], [], []
    for row, (text, picture) in enumerate(zip(texts, pictures, strict=True)):
        prompt = [special.t2i, *_begun([] if drop is not None and drop[row] else text, special), special.eos]
        if len(prompt) > max_text_len + 1:
            prompt = [*prompt[:max_text_len], special.eos]
        pads = max_text_len + 1 - len(prompt)
        ids.append([special.ipad] * pads + prompt + [special.soi, *picture, special.eoi])
        mask.append([0] * pads + [1] * (len(prompt) + len(picture) + 2))
        target = picture if labels is None else labels[row]
        targets.append([IGNORED] * pads + prompt + [special.soi, *target, special.eoi])
    return PromptRows(_array(ids), _array(mask), _array(targets))


def asking_rows(texts: Sequence[Ids], pictures: Sequence[Ids], special: SpecialTokens, max_text_len: int) -> PromptRows:
    """Image understanding: mmu soi picture eoi, then bos text eos padded with eos to max_text_len; the picture has no labels.

    mask is 1 up to the last end-of-header token, eos pads are to be predicted.
    """
    ids, mask, labels = [], [], []
    for text, picture in zip(texts, pictures, strict=True):
        head = [special.mmu, special.soi, *picture, special.eoi]
        body = _ended(text, special, max_text_len)
        given = _given(body, special)
        ids.append(head + body)
        mask.append([1] * (len(head) + given) + [0] * (max_text_len - given))
        labels.append([IGNORED] * len(head) + body)
    return PromptRows(_array(ids), _array(mask), _array(labels))


def asking_prompts(
    texts: Sequence[Ids], pictures: Sequence[Ids], special: SpecialTokens, max_text_len: int
) -> tuple[Ints, list[list[int]]]:
    """The reference's prompts for generation: ids as in asking_rows, and masks that are too short, kept as they are there.

    It counts the picture as part of max_text_len, so that masks can differ in length and do not make an array.
    """
    rows = asking_rows(texts, pictures, special, max_text_len)
    given = [int(row.sum()) for row in rows.mask]
    return rows.input_ids, [[1] * count + [0] * (max_text_len - count) for count in given]


def text_rows(texts: Sequence[Ids], special: SpecialTokens, max_seq_len: int, chat: bool = False) -> PromptRows:
    """Text alone: bos text eos, padded with eos or cut (without an eos then) to max_seq_len.

    mask is all ones, pads included; with `chat` it is 1 up to the last end-of-header token.
    """
    ids, mask = [], []
    for text in texts:
        row = [*_begun(text, special), special.eos][:max_seq_len]
        row += [special.eos] * (max_seq_len - len(row))
        given = _given(row, special) if chat else max_seq_len
        ids.append(row)
        mask.append([1] * given + [0] * (max_seq_len - given))
    return PromptRows(_array(ids), _array(mask), _array(ids))


def reasoning_rows(texts: Sequence[Ids], pictures: Sequence[Ids], special: SpecialTokens, max_text_len: int) -> PromptRows:
    """Reasoning, then a picture: r2i, bos text eos padded with eos to max_text_len, soi picture eoi; labels are the ids.

    mask is 1 on r2i, up to the last end-of-header token (on the whole text when there is none), soi and eoi.
    """
    ids, mask = [], []
    for text, picture in zip(texts, pictures, strict=True):
        body = _ended(text, special, max_text_len)
        given = _given(body, special) or max_text_len
        ids.append([special.r2i, *body, special.soi, *picture, special.eoi])
        mask.append([1] * (1 + given) + [0] * (max_text_len - given) + [1] + [0] * len(picture) + [1])
    return PromptRows(_array(ids), _array(mask), _array(ids))


def left_padded(rows: Sequence[Ids], pad: int) -> tuple[Ints, Ints]:
    """Rows of different lengths as one array [B, L], pads on the left, and a mask that is 0 on pads."""
    longest = max(len(row) for row in rows)
    pads = [longest - len(row) for row in rows]
    ids = [[pad] * count + list(row) for count, row in zip(pads, rows, strict=True)]
    return _array(ids), _array([[0] * count + [1] * (longest - count) for count in pads])


def _begun(text: Ids, special: SpecialTokens) -> list[int]:
    """The text with bos before it, unless it begins with one."""
    return list(text) if text and text[0] == special.bos else [special.bos, *text]


def _ended(text: Ids, special: SpecialTokens, length: int) -> list[int]:
    """bos text eos of exactly `length` tokens: padded with eos, or cut with an eos as the last."""
    row = [*_begun(text, special)[: length - 1], special.eos]
    return row + [special.eos] * (length - len(row))


def _given(row: Ids, special: SpecialTokens) -> int:
    """How many tokens there are up to the last end of a header, that one included; 0 without any."""
    return max((position + 1 for position, token in enumerate(row) if token == special.end_header), default=0)


def _array(rows: Sequence[Ids]) -> Ints:
    return np.array(rows, dtype=np.int64)
