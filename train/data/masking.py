"""Which tokens of a group of rows are masked, and what each weighs in the loss. Knows no task and no sentence.

Masking laws: MMaDA (arXiv 2505.15809) section 3.1; pictures by a cosine (MaskGIT, arXiv 2202.04200), text uniformly (LLaDA),
and for a share of the rows as block-wise decoding meets them: all before a block is there, all after it is hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmada_lite.decoding.rows import picture_part
from mmada_lite.vocabulary import Vocabulary

LEAST = 0.001  # share of a text that is masked where t is 0, so that 1 / p stays finite
BLOCK = 8  # tokens that are decoded before those after them
FILLING = 0.1  # weight of ends of text beside that of a word
CONCLUSION = 4.0  # weight of what follows a thought: a word or two against the many of the thought
WHOLE = 0.5  # share of the texts with a hole in which the hole is the whole text
ANSWER_ALONE = 0.35  # share of the rows with a thought in which it is shown and what follows it is all that is hidden
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one task and one length. weight is zero where nothing is predicted."""

    task: str
    tokens: Ints  # [B, L] with masks
    targets: Ints  # [B, L] without
    weight: NDArray[np.float32]  # [B, L] of each position's cross-entropy; sums to about 1 over the rows


def spread(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """`count` numbers in 0..1, one in each of as many equal parts: uniform, with less noise in their mean."""
    return (rng.permutation(count) + rng.random(count)) / count


def picture_rows(
    task: str,
    prompts: Ints,
    codes: Ints,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    region: NDArray[np.bool_] | None = None,
) -> Rows:
    """Prompts [B, P], all before the codes, and codes [B, N]; of the N codes, or of those in `region` [B, N], a share
    cos(pi t / 2) is masked in each row. The weight is 1 / number of masks."""
    count, mask = len(codes), vocabulary.special.mask
    region = np.ones(codes.shape, dtype=bool) if region is None else region
    amount = np.maximum(1, np.rint(region.sum(axis=1) * np.cos(np.pi / 2 * spread(count, rng)))).astype(np.int64)
    order = np.where(region, rng.random(codes.shape), np.inf).argsort(axis=1).argsort(axis=1)
    hidden = order < amount[:, None]
    known = np.zeros(codes.shape, dtype=bool)
    targets = np.concatenate([prompts, picture_part(codes, known, vocabulary)], axis=1)
    masked = np.zeros(targets.shape, dtype=bool)
    masked[:, prompts.shape[1] : prompts.shape[1] + codes.shape[1]] = hidden
    return Rows(task, np.where(masked, mask, targets), targets, masked.astype(np.float32) / hidden.sum())


def hole_rows(task: str, prompts: Ints, texts: Ints, ends: Ints, vocabulary: Vocabulary, rng: np.random.Generator) -> Rows:
    """Prompts [B, P], texts [B, A] and the ends [E] that stand behind them, which are shown. Of a text one hole is hidden: in
    half of the rows all of it, in the others from one place to another; in a third of the rows every other token too, with a
    chance of a quarter. The weight is 1 / number of masks of the row."""
    count, length = texts.shape
    bounds = np.sort(rng.integers(0, length + 1, size=(count, 2)), axis=1)
    bounds = np.where((bounds[:, :1] == bounds[:, 1:]) | (rng.random((count, 1)) < WHOLE), [0, length], bounds)
    places = np.arange(length)[None]
    hidden = (places >= bounds[:, :1]) & (places < bounds[:, 1:])
    hidden |= (rng.random((count, 1)) < 1 / 3) & (rng.random(texts.shape) < 0.25)
    before, behind = np.zeros(prompts.shape, dtype=bool), np.zeros((count, len(ends)), dtype=bool)
    masked = np.concatenate([before, hidden, behind], axis=1)
    targets = np.concatenate([prompts, texts, np.tile(ends, (count, 1))], axis=1)
    weight = masked / (masked.sum(axis=1, keepdims=True) * count)
    return Rows(task, np.where(masked, vocabulary.special.mask, targets), targets, weight.astype(np.float32))


def answer_rows(
    task: str,
    prompts: Ints,
    answers: Ints,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    blocks: float = 0.0,
    close: int = -1,
    answer_alone: float = ANSWER_ALONE,
) -> Rows:
    """Prompts [B, P] and answers [B, A]; each answer token is masked with probability p and weighs 1 / p, shared out over
    the answer and the rows. The end of text after the end of turn weighs a tenth: most of an answer is filling, and with
    equal weights the little that is not is learned late. p leans to 1 (t is the root of a uniform number), where decoding
    begins. In a share `blocks` of the rows only one block is predicted: what is before it is shown, what is after it hidden.
    What follows the token `close`, which ends a thought, weighs more, and in a share `answer_alone` of the rows it alone is
    hidden.
    """
    count, length = answers.shape
    p = (1 - LEAST) * np.sqrt(spread(count, rng))[:, None] + LEAST
    filling, closed = answers == vocabulary.special.eos, answers == close
    concluding = closed.cumsum(axis=1) - closed > 0
    shown = (rng.random((count, 1)) < answer_alone) & (concluding & ~filling).any(axis=1, keepdims=True)
    p = np.where(shown, 1.0, p)
    hidden = np.where(shown, concluding, rng.random(answers.shape) < p)
    importance = np.where(filling, FILLING, np.where(concluding, CONCLUSION, 1.0))
    written = (~filling).sum(axis=1)  # [B] tokens before the filling
    block = (rng.random(count) * np.ceil(written / BLOCK)).astype(np.int64)
    of_block = np.arange(length)[None] // BLOCK - block[:, None]
    blockwise = (rng.random((count, 1)) < blocks) & ~shown
    counted = np.where(blockwise, of_block == 0, ~shown | concluding)
    importance = importance * counted
    weight = hidden * importance / (p * np.maximum(importance.sum(axis=1, keepdims=True), 1.0) * count)
    hidden = np.where(blockwise, (hidden & (of_block == 0)) | (of_block > 0), hidden)
    targets = np.concatenate([prompts, answers], axis=1)
    masked = np.concatenate([np.zeros(prompts.shape, dtype=bool), hidden], axis=1)
    weights = np.concatenate([np.zeros(prompts.shape), weight], axis=1).astype(np.float32)
    return Rows(task, np.where(masked, vocabulary.special.mask, targets), targets, weights)
