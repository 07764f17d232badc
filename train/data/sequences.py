"""Token rows of every task, in groups of equal length so that no pads are needed, and which of their tokens are masked. Layouts
are the runtime's own; the sentences come from the modules beside this one. Knows no model.

    paint  caption -> picture            ask   picture, question -> answer        fact  question -> answer
    pair   caption of two -> picture     list  several things -> list of them     sum   problem -> thought and answer
    scene  several things, question -> thought and answer
    plan   caption -> thought            drawn caption, thought -> picture        (thinking before drawing)
    edit   caption, half a picture -> the other half, or what lies beyond its edge
    conclude  question about several things, thought that lists them -> answer (without the picture)

Masking laws: MMaDA (arXiv 2505.15809) section 3.1; pictures by a cosine (MaskGIT, arXiv 2202.04200), text uniformly (LLaDA),
and for a share of the rows as block-wise decoding meets them: all before a block is there, all after it is hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mmada_lite.decoding.canvas import paint_prompt, picture_prompt, thinking_prompt
from mmada_lite.train.data.arithmetic import KINDS as PROBLEMS
from mmada_lite.train.data.arithmetic import draw_problem, question_of, response_to
from mmada_lite.train.data.concepts import COLOURS, CONCEPT_NAMES, CONCEPTS
from mmada_lite.train.data.layouts import Layout
from mmada_lite.train.data.pool import NOTHING, Pool
from mmada_lite.train.data.scenes import KINDS as QUESTIONS
from mmada_lite.train.data.scenes import draw_layout, drawing_thought, list_question, pair_caption, scene_question
from mmada_lite.train.data.texts import caption, fact, picture_question
from mmada_lite.train.data.thoughts import CLOSE, OPEN
from mmada_lite.vocabulary import Tokenizer, Vocabulary, chat_ids

ANSWER_LENGTH = 48  # tokens of the longest answer: text, end of turn, then ends of text
SHORT_LENGTHS = (16, 16, 16, 24, 48)  # what short answers are filled to, so that the length gives nothing away
BLOCK = 8  # tokens that are decoded before those after them
FILLING = 0.1  # weight of ends of text beside that of a word
CONCLUSION = 4.0  # weight of what follows a thought: a word or two against the many of the thought
CONCLUDED = 0.35  # share of the rows with a thought in which it is shown and what follows it is all that is hidden
LOOKUPS = ("position", "position", "count", "count", "compare", "cell")  # what `conclude` asks
SHORTER = 0.1  # share of the problems in which one number has fewer digits
PROBLEM_SHARES: dict[str, float] = {
    "sum1": 0.05,
    "difference1": 0.05,
    "sum2": 0.25,
    "difference2": 0.33,
    "sum3": 0.27,
    "difference3": 0.05,
}
Ints = NDArray[np.int64]
Drawn = TypeVar("Drawn", bound=tuple[Any, ...])


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one task and one length. weight is zero where nothing is predicted."""

    task: str
    tokens: Ints  # [B, L] with masks
    targets: Ints  # [B, L] without
    weight: NDArray[np.float32]  # [B, L] of each position's cross-entropy; sums to about 1 over the rows


class Sequences:
    """Draws groups of rows. Every draw uses the generator that is passed in. `blocks`: share of answers hidden block-wise.

    held: problems of the side that is kept for evaluation, instead of the training side.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocabulary: Vocabulary,
        singles: Pool,
        several: Pool | None = None,
        caption_dropout: float = 0.1,
        blocks: float = 0.5,
        held: bool = False,
    ) -> None:
        self.tokenizer, self.vocabulary, self.singles, self._several = tokenizer, vocabulary, singles, several
        self.caption_dropout, self.blocks, self.held = caption_dropout, blocks, held
        self._ids: dict[str, list[int]] = {}
        self._close = tokenizer.find(CLOSE, -1)

    @property
    def tasks(self) -> Mapping[str, Callable[[int, np.random.Generator], Rows]]:
        """By name, what draws a group of `count` rows."""
        return {
            "paint": self.paint,
            "pair": self.pair,
            "drawn": self.drawn,
            "edit": self.edit,
            "plan": self.plan,
            "ask": self.ask,
            "list": self.listing,
            "scene": self.scene,
            "conclude": self.conclude,
            "sum": self.problem,
            "fact": self.fact,
        }

    def paint(self, count: int, rng: np.random.Generator) -> Rows:
        """Caption, then the picture's codes; or, for guidance, a group without captions."""
        return self._pictures("paint", lambda: self._captioned(rng), count, rng)

    def pair(self, count: int, rng: np.random.Generator) -> Rows:
        """Caption of two things, then the codes."""
        return self._pictures("pair", lambda: self._pair(rng)[:2], count, rng)

    def drawn(self, count: int, rng: np.random.Generator) -> Rows:
        """Caption and thought, then the codes."""

        def draw() -> tuple[list[int], Ints]:
            text, codes, thought = self._pair(rng) if rng.random() < 0.8 else self._alone(rng)
            prompt = thinking_prompt(text, self.vocabulary.special)
            return [*prompt, *self._text(thought), self.vocabulary.special.eos], codes

        drawn = equal_length(draw, count)
        prompts, codes = np.array([p for p, _ in drawn]), np.array([c for _, c in drawn])
        return picture_rows("drawn", prompts, codes, self.vocabulary, rng)

    def edit(self, count: int, rng: np.random.Generator) -> Rows:
        """Caption and one half of a picture, then the codes of the other half; in every second group the given half is the
        far one of a picture that goes on, on its background, beyond that edge."""
        beyond, turns = rng.random() < 0.5, int(rng.integers(4))
        drawn = equal_length(lambda: self._captioned(rng), count)
        codes = np.array([codes for _, codes in drawn])
        side = round(codes.shape[1] ** 0.5)
        pictures = np.rot90(codes.reshape(count, side, side), turns, axes=(1, 2))
        if beyond:
            pictures = np.concatenate([pictures[:, :, side // 2 :], pictures[:, :, [-1] * (side // 2)]], axis=2)
        hidden = np.broadcast_to(np.arange(side) >= side // 2, pictures.shape)
        pictures, hidden = (np.rot90(a, -turns, axes=(1, 2)).reshape(count, -1) for a in (pictures, hidden))
        prompts = np.array([paint_prompt(ids, self.vocabulary.special) for ids, _ in drawn])
        return picture_rows("edit", prompts, pictures, self.vocabulary, rng, hidden)

    def plan(self, count: int, rng: np.random.Generator) -> Rows:
        """Caption, then the thought of what goes where."""

        def draw() -> tuple[list[int], list[int]]:
            text, _, thought = self._pair(rng) if rng.random() < 0.8 else self._alone(rng)
            return thinking_prompt(text, self.vocabulary.special), self._text(thought)

        drawn = equal_length(draw, count)
        eos = self.vocabulary.special.eos
        length = _up(max(len(answer) for _, answer in drawn) + 1, rng)
        answers = np.array([answer + [eos] * (length - len(answer)) for _, answer in drawn])
        return self._answers("plan", np.array([p for p, _ in drawn]), answers, rng)

    def ask(self, count: int, rng: np.random.Generator) -> Rows:
        """A picture, a question about it, and the answer."""

        def draw() -> tuple[list[int], list[int], list[int]]:
            row = int(self._rows(self.singles, False)[rng.integers(len(self._rows(self.singles, False)))])
            concept, colour = int(self.singles.names[row, 0]), COLOURS[self.singles.colour[row]]
            question, answer = picture_question(CONCEPTS[concept], colour, rng)
            return self.chat(question), self._text(answer), self._shown(self.singles, row)

        return self._answered("ask", draw, count, rng, int(rng.choice(SHORT_LENGTHS)))

    def listing(self, count: int, rng: np.random.Generator) -> Rows:
        """A picture of several things and what it holds."""
        return self._asked("list", lambda layout, colour: list_question(layout), count, rng)

    def scene(self, count: int, rng: np.random.Generator) -> Rows:
        """A picture of several things, a question, the thought and the answer."""

        def ask(layout: Layout, colour: str) -> tuple[str, str] | None:
            return scene_question(layout, colour, QUESTIONS[rng.integers(len(QUESTIONS))], rng)

        return self._asked("scene", ask, count, rng)

    def conclude(self, count: int, rng: np.random.Generator) -> Rows:
        """A question and the thought, both without a picture; the answer is hidden. Any layout of the
        training side comes, where the pool has a few thousand, and a row costs a third of one with a picture."""
        kind = str(rng.choice(LOOKUPS))

        def draw() -> tuple[list[int], list[int], list[int]]:
            found = None
            while found is None:
                found = scene_question(draw_layout((2, 2), False, rng), COLOURS[0], kind, rng)
            return self.chat(found[0]), self.tokenizer.encode(found[1]), []

        return self._answered("conclude", draw, count, rng, concluded=1.0)

    def problem(self, count: int, rng: np.random.Generator) -> Rows:
        """A sum or a difference, its thought and its result."""
        kind = str(rng.choice(list(PROBLEM_SHARES), p=list(PROBLEM_SHARES.values())))
        assert kind in PROBLEMS

        def draw() -> tuple[list[int], list[int], list[int]]:
            problem = draw_problem(kind, self.held, rng, SHORTER)
            return self._chat_ids(question_of(problem, rng)), self.tokenizer.encode(response_to(problem)), []

        return self._answered("sum", draw, count, rng)

    def fact(self, count: int, rng: np.random.Generator) -> Rows:
        """A question and its answer."""

        def draw() -> tuple[list[int], list[int], list[int]]:
            question, answer = fact(rng)
            return self.chat(question), self._text(answer), []

        return self._answered("fact", draw, count, rng, int(rng.choice(SHORT_LENGTHS)))

    def chat(self, question: str) -> list[int]:
        """Ids of a one-turn conversation up to the answer."""
        return self._cached("chat " + question, lambda: self._chat_ids(question))

    def _pictures(self, task: str, draw: Callable[[], tuple[list[int], Ints]], count: int, rng: np.random.Generator) -> Rows:
        plain = rng.random() < self.caption_dropout
        drawn = [draw() for _ in range(count)] if plain else equal_length(draw, count)
        prompts = np.array([paint_prompt([] if plain else ids, self.vocabulary.special) for ids, _ in drawn])
        return picture_rows(task, prompts, np.array([codes for _, codes in drawn]), self.vocabulary, rng)

    def _captioned(self, rng: np.random.Generator) -> tuple[list[int], Ints]:
        rows = self._rows(self.singles, True)
        row = int(rows[rng.integers(len(rows))])
        text = caption(CONCEPTS[int(self.singles.names[row, 0])], COLOURS[self.singles.colour[row]], rng)
        return self._text(text), self.singles.codes[row]

    def _alone(self, rng: np.random.Generator) -> tuple[list[int], Ints, str]:
        rows = self._rows(self.singles, True)
        row = int(rows[rng.integers(len(rows))])
        concept, colour = int(self.singles.names[row, 0]), COLOURS[self.singles.colour[row]]
        thought = drawing_thought(Layout(1, 1, (CONCEPT_NAMES[concept],)), colour)
        return self._text(caption(CONCEPTS[concept], colour, rng)), self.singles.codes[row], f"{OPEN} {thought} {CLOSE}"

    def _pair(self, rng: np.random.Generator) -> tuple[list[int], Ints, str]:
        """Ids of a caption of two things, codes, and the thought."""
        rows = self._rows(self.several, True)
        row = int(rows[rng.integers(len(rows))])
        layout, colour = self.several.layout(row), COLOURS[self.several.colour[row]]
        text = pair_caption(layout, colour if rng.random() < 5 / 6 else None, rng)
        return self._text(text), self.several.codes[row], f"{OPEN} {drawing_thought(layout, colour)} {CLOSE}"

    def _asked(
        self, task: str, ask: Callable[[Layout, str], tuple[str, str] | None], count: int, rng: np.random.Generator
    ) -> Rows:
        rows = self._rows(self.several, False)

        def draw() -> tuple[list[int], list[int], list[int]]:
            while True:
                row = int(rows[rng.integers(len(rows))])
                found = ask(self.several.layout(row), COLOURS[self.several.colour[row]])
                if found:
                    return self.chat(found[0]), self._text(found[1]), self._shown(self.several, row)

        return self._answered(task, draw, count, rng)

    def _answered(
        self,
        task: str,
        draw: Callable[[], tuple[list[int], list[int], list[int]]],  # question, answer, what stands before the question
        count: int,
        rng: np.random.Generator,
        length: int = 0,
        concluded: float = CONCLUDED,
    ) -> Rows:
        drawn, special = equal_length(draw, count), self.vocabulary.special
        longest = max(len(answer) for _, answer, _ in drawn) + 1
        length = max(length, longest) if length else _up(longest, rng)
        filled = [[*answer, special.eot] + [special.eos] * (length - 1 - len(answer)) for _, answer, _ in drawn]
        prompts = np.array([head + question for question, _, head in drawn])
        return self._answers(task, prompts, np.array(filled), rng, concluded)

    def _answers(self, task: str, prompts: Ints, answers: Ints, rng: np.random.Generator, concluded: float = CONCLUDED) -> Rows:
        return answer_rows(task, prompts, answers, self.vocabulary, rng, self.blocks, self._close, concluded)

    @property
    def several(self) -> Pool:
        assert self._several is not None, "pictures of several things were not given"
        return self._several

    def _rows(self, pool: Pool, tidy: bool) -> Ints:
        """Rows of a pool to be drawn (tidy), or to be asked about."""
        index = self._index[pool.grid[0] == NOTHING, tidy]
        return index

    @cached_property
    def _index(self) -> dict[tuple[bool, bool], Ints]:
        pools = [self.singles] if self._several is None else [self.singles, self._several]
        return {(bool(p.grid[0] == NOTHING), t): np.flatnonzero(p.tidy == t) for p in pools for t in (False, True)}

    def _shown(self, pool: Pool, row: int) -> list[int]:
        return picture_prompt(pool.codes[row], self.vocabulary)

    def _text(self, text: str) -> list[int]:
        return self._cached(text, lambda: self.tokenizer.encode(text))

    def _chat_ids(self, question: str) -> list[int]:
        return chat_ids(self.tokenizer, self.vocabulary.special, [{"role": "user", "content": question}])

    def _cached(self, key: str, make: Callable[[], list[int]]) -> list[int]:
        if key not in self._ids:
            self._ids[key] = make()
        return self._ids[key]


def _up(length: int, rng: np.random.Generator) -> int:
    """A length to fill an answer to: whole blocks, sometimes the longest."""
    return max(length, ANSWER_LENGTH if rng.random() < 0.3 else -(-length // BLOCK) * BLOCK)


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


def picture_rows(
    task: str,
    prompts: Ints,
    codes: Ints,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    region: NDArray[np.bool_] | None = None,
) -> Rows:
    """Prompts [B, P] and codes [B, N]; of the N codes, or of those in `region` [B, N], a share cos(pi t / 2) is masked in each
    row. The weight is 1 / number of masks."""
    count = len(codes)
    special = vocabulary.special
    region = np.ones(codes.shape, dtype=bool) if region is None else region
    amount = np.maximum(1, np.rint(region.sum(axis=1) * np.cos(np.pi / 2 * spread(count, rng)))).astype(np.int64)
    order = np.where(region, rng.random(codes.shape), np.inf).argsort(axis=1).argsort(axis=1)
    hidden = order < amount[:, None]
    body = codes + vocabulary.image_code_offset
    ends = [np.full((count, 1), value) for value in (special.soi, special.eoi)]
    targets = np.concatenate([prompts, ends[0], body, ends[1]], axis=1)
    masked = np.zeros(targets.shape, dtype=bool)
    masked[:, prompts.shape[1] + 1 : -1] = hidden
    return Rows(task, np.where(masked, special.mask, targets), targets, masked.astype(np.float32) / hidden.sum())


def answer_rows(
    task: str,
    prompts: Ints,
    answers: Ints,
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    blocks: float = 0.0,
    close: int = -1,
    concluded: float = CONCLUDED,
) -> Rows:
    """Prompts [B, P] and answers [B, A]; each answer token is masked with probability p and weighs 1 / p, shared out over
    the answer and the rows. The end of text after the end of turn weighs a tenth: most of an answer is filling, and with
    equal weights the little that is not is learned late. p leans to 1 (t is the root of a uniform number), where decoding
    begins. In a share `blocks` of the rows only one block is predicted: what is before it is shown, what is after it hidden.
    What follows the token `close`, which ends a thought, weighs more, and in a share `concluded` of the rows it alone is
    hidden.
    """
    count, length = answers.shape
    p = 0.999 * np.sqrt(spread(count, rng))[:, None] + 0.001
    filling, closed = answers == vocabulary.special.eos, answers == close
    concluding = closed.cumsum(axis=1) - closed > 0
    shown = (rng.random((count, 1)) < concluded) & (concluding & ~filling).any(axis=1, keepdims=True)
    p = np.where(shown, 1.0, p)
    hidden = np.where(shown, concluding, rng.random(answers.shape) < p)
    importance = np.where(filling, FILLING, np.where(concluding, CONCLUSION, 1.0))
    words = (~filling).sum(axis=1)
    block = (rng.random(count) * np.ceil(words / BLOCK)).astype(np.int64)
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
