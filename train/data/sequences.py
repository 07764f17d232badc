"""Token rows of the three tasks, in groups of equal length so that no pads are needed: caption to picture, question about a
picture to answer, text to text; and which of their tokens are masked. Layouts are the runtime's own; knows no model.

Masking laws: MMaDA (arXiv 2505.15809) section 3.1; pictures by a cosine (MaskGIT, arXiv 2202.04200), text uniformly (LLaDA).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mmada_lite.canvas import paint_prompt, picture_prompt
from mmada_lite.train.data.concepts import COLOURS, CONCEPTS
from mmada_lite.train.data.pool import Pool
from mmada_lite.train.data.texts import caption, pairs, picture_question, sums, text_question
from mmada_lite.vocabulary import Tokenizer, Vocabulary, chat_ids

ANSWER_LENGTH = 16  # tokens of an answer: text, end of turn, then ends of text
FILLING = 0.1  # weight of those ends of text beside that of a word
Ints = NDArray[np.int64]
Drawn = TypeVar("Drawn", bound=tuple[Any, ...])


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one task and one length. weight is zero where nothing is predicted."""

    task: str  # paint, ask or text
    tokens: Ints  # [B, L] with masks
    targets: Ints  # [B, L] without
    weight: NDArray[np.float32]  # [B, L] of each position's cross-entropy; sums to about 1 over the rows


class Sequences:
    """Draws groups of rows. Every draw uses the generator that is passed in."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary, pool: Pool, caption_dropout: float = 0.1) -> None:
        self.tokenizer, self.vocabulary, self.pool = tokenizer, vocabulary, pool
        self.caption_dropout = caption_dropout
        self.pairs, self.sums = pairs(held=False), sums(held=False)
        self._ids: dict[str, list[int]] = {}

    def paint(self, count: int, rng: np.random.Generator) -> Rows:
        """Caption, then the picture's codes; or, for guidance, a group without captions."""
        drawn: list[tuple[list[int], tuple[int, str]]]
        if rng.random() < self.caption_dropout:
            drawn = [([], self._pair(rng)) for _ in range(count)]
        else:
            drawn = equal_length(lambda: self._captioned(rng), count)
        prompts = np.array([paint_prompt(ids, self.vocabulary.special) for ids, _ in drawn])
        codes = self.pool.codes[[self._picture(pair, True, rng) for _, pair in drawn]]
        return picture_rows(prompts, codes, self.vocabulary, rng)

    def ask(self, count: int, rng: np.random.Generator) -> Rows:
        """A picture, a question about it, and the answer."""
        drawn = equal_length(lambda: self._asked(rng), count)
        prompts = [
            picture_prompt(self.pool.codes[self._picture(pair, False, rng)], self.vocabulary) + ids for ids, _, pair in drawn
        ]
        return answer_rows("ask", np.array(prompts), np.array([a for _, a, _ in drawn]), self.vocabulary, rng)

    def text(self, count: int, rng: np.random.Generator) -> Rows:
        """A question and its answer."""
        drawn = equal_length(lambda: self._question(rng), count)
        prompts, answers = np.array([ids for ids, _ in drawn]), np.array([answer for _, answer in drawn])
        return answer_rows("text", prompts, answers, self.vocabulary, rng)

    def chat(self, question: str) -> list[int]:
        """Ids of a one-turn conversation up to the answer."""
        return self._cached("chat " + question, lambda: self._chat_ids(question))

    def answer(self, text: str) -> list[int]:
        """Ids of an answer, filled to ANSWER_LENGTH."""
        return self._cached("answer " + text, lambda: self._answer_ids(text))

    def _captioned(self, rng: np.random.Generator) -> tuple[list[int], tuple[int, str]]:
        concept, colour = self._pair(rng)
        text = caption(CONCEPTS[concept], colour, rng)
        return self._cached("plain " + text, lambda: self.tokenizer.encode(text)), (concept, colour)

    def _asked(self, rng: np.random.Generator) -> tuple[list[int], list[int], tuple[int, str]]:
        concept, colour = self._pair(rng)
        question, answer = picture_question(CONCEPTS[concept], colour, rng)
        return self.chat(question), self.answer(answer), (concept, colour)

    def _question(self, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        question, answer = text_question(rng, self.sums)
        return self.chat(question), self.answer(answer)

    def _pair(self, rng: np.random.Generator) -> tuple[int, str]:
        return self.pairs[rng.integers(len(self.pairs))]

    def _picture(self, pair: tuple[int, str], tidy: bool, rng: np.random.Generator) -> int:
        rows = self._index[pair[0], COLOURS.index(pair[1]), tidy]
        return int(rows[rng.integers(len(rows))])

    @cached_property
    def _index(self) -> dict[tuple[int, int, bool], Ints]:
        pool = self.pool
        key = (pool.concept * len(COLOURS) + pool.colour) * 2 + pool.tidy
        order = np.argsort(key, kind="stable")
        values, starts = np.unique(key[order], return_index=True)
        groups = np.split(order, starts[1:])
        keys = [(int(v) // 2 // len(COLOURS), int(v) // 2 % len(COLOURS), bool(v % 2)) for v in values]
        return dict(zip(keys, groups, strict=True))

    def _chat_ids(self, question: str) -> list[int]:
        return chat_ids(self.tokenizer, self.vocabulary.special, [{"role": "user", "content": question}])

    def _answer_ids(self, text: str) -> list[int]:
        special = self.vocabulary.special
        ids = [*self.tokenizer.encode(text), special.eot]
        assert len(ids) <= ANSWER_LENGTH, f"the answer {text!r} is longer than {ANSWER_LENGTH} tokens"
        return ids + [special.eos] * (ANSWER_LENGTH - len(ids))

    def _cached(self, key: str, make: Callable[[], list[int]]) -> list[int]:
        if key not in self._ids:
            self._ids[key] = make()
        return self._ids[key]


def equal_length(draw: Callable[[], Drawn], count: int) -> list[Drawn]:
    """`count` draws whose first element has the length that the first draw had: the law of draws, given that length."""
    kept = [draw()]
    while len(kept) < count:
        other = draw()
        if len(other[0]) == len(kept[0][0]):
            kept.append(other)
    return kept


def spread(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """`count` numbers in 0..1, one in each of as many equal parts: uniform, with less noise in their mean."""
    return (rng.permutation(count) + rng.random(count)) / count


def picture_rows(prompts: Ints, codes: Ints, vocabulary: Vocabulary, rng: np.random.Generator) -> Rows:
    """Prompts [B, P] and codes [B, N] with cos(pi t / 2) N codes masked in each row; the weight is 1 / number of masks."""
    count, length = codes.shape
    special = vocabulary.special
    amount = np.maximum(1, np.rint(length * np.cos(np.pi / 2 * spread(count, rng)))).astype(np.int64)
    hidden = rng.random(codes.shape).argsort(axis=1) < amount[:, None]
    body = codes + vocabulary.image_code_offset
    ends = [np.full((count, 1), value) for value in (special.soi, special.eoi)]
    targets = np.concatenate([prompts, ends[0], body, ends[1]], axis=1)
    masked = np.zeros(targets.shape, dtype=bool)
    masked[:, prompts.shape[1] + 1 : -1] = hidden
    return Rows("paint", np.where(masked, special.mask, targets), targets, masked.astype(np.float32) / hidden.sum())


def answer_rows(task: str, prompts: Ints, answers: Ints, vocabulary: Vocabulary, rng: np.random.Generator) -> Rows:
    """Prompts [B, P] and answers [B, A]; each answer token is masked with probability p and weighs 1 / p, shared out over
    the answer and the rows. The end of text after the end of turn weighs a tenth: most of an answer is filling, and with
    equal weights the little that is not is learned late. p leans to 1 (t is the root of a uniform number), where decoding
    begins.
    """
    count = len(answers)
    p = 0.999 * np.sqrt(spread(count, rng))[:, None] + 0.001
    hidden = rng.random(answers.shape) < p
    importance = np.where(answers == vocabulary.special.eos, FILLING, 1.0)
    targets = np.concatenate([prompts, answers], axis=1)
    masked = np.zeros(targets.shape, dtype=bool)
    masked[:, prompts.shape[1] :] = hidden
    weight = np.zeros(targets.shape, dtype=np.float32)
    weight[:, prompts.shape[1] :] = hidden * importance / (p * importance.sum(axis=1, keepdims=True) * count)
    return Rows(task, np.where(masked, vocabulary.special.mask, targets), targets, weight)
