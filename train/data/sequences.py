"""Token rows of every task, in groups of equal length so that no pads are needed. Layouts are the runtime's own; sentences and
masks come from the modules beside this one. Knows no model.

    paint  caption -> picture            ask   picture, question -> answer        fact  question -> answer
    pair   caption of two -> picture     list  several things -> list of them     sum   problem -> thought and answer
    scene  several things, question -> thought and answer
    edit   caption, half a picture -> the other half, or what lies beyond its edge
    caption_to_thought   caption -> thought           thought_to_image   caption, thought -> picture  (thinking before drawing)
    answer_from_thought  question about several things, thought that lists them -> answer (without the picture)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from mmada_lite.decoding.rows import (
    chat_ids,
    paint_prompt,
    picture_prompt,
    thinking_prompt,
    thought_prompt,
    unconditional_prompt,
)
from mmada_lite.train.data.arithmetic import KINDS as PROBLEMS
from mmada_lite.train.data.arithmetic import draw_problem, question_of, response_to
from mmada_lite.train.data.concepts import COLOURS, CONCEPT_NAMES, CONCEPTS
from mmada_lite.train.data.layouts import Layout
from mmada_lite.train.data.masking import ANSWER_ALONE, BLOCK, Ints, Rows, answer_rows, picture_rows
from mmada_lite.train.data.pool import NOTHING, Pool
from mmada_lite.train.data.scenes import KINDS as QUESTIONS
from mmada_lite.train.data.scenes import draw_layout, drawing_thought, list_question, pair_caption, scene_question
from mmada_lite.train.data.texts import caption, fact, picture_question
from mmada_lite.train.data.thoughts import CLOSE, OPEN
from mmada_lite.vocabulary import Tokenizer, Vocabulary

ANSWER_LENGTH = 48  # tokens of the longest answer: text, end of turn, then ends of text
SHORT_LENGTHS = (16, 16, 16, 24, 48)  # what short answers are filled to, so that the length gives nothing away
LOOKUPS = ("position", "position", "count", "count", "compare", "cell")  # what `answer_from_thought` asks
SHORTER = 0.1  # share of the problems in which one number has fewer digits
PROBLEM_SHARES: dict[str, float] = {
    "sum1": 0.05,
    "difference1": 0.05,
    "sum2": 0.25,
    "difference2": 0.33,
    "sum3": 0.27,
    "difference3": 0.05,
}
Example = TypeVar("Example", bound=tuple[Any, ...])


class Sequences:
    """Draws groups of rows. Every draw uses the generator that is passed in. `caption_dropout`: share of the groups to be drawn
    that have no prompt, for guidance. `blocks`: share of answers hidden block-wise. `problems`: shares of the kinds of them.

    held_out: problems of the side that is kept for evaluation (its half to choose by), instead of the training side.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocabulary: Vocabulary,
        singles: Pool,
        several: Pool | None = None,
        caption_dropout: float = 0.1,
        blocks: float = 0.5,
        held_out: bool = False,
        problems: Mapping[str, float] = PROBLEM_SHARES,
    ) -> None:
        self.tokenizer, self.vocabulary, self.singles, self._several = tokenizer, vocabulary, singles, several
        self.caption_dropout, self.blocks, self.held_out, self.problems = caption_dropout, blocks, held_out, problems
        self._ids: dict[str, list[int]] = {}
        self._close = tokenizer.find(CLOSE, -1)

    @property
    def tasks(self) -> Mapping[str, Callable[[int, np.random.Generator], Rows]]:
        """By name, what draws a group of `count` rows."""
        return {
            "paint": self.paint,
            "pair": self.pair,
            "thought_to_image": self.thought_to_image,
            "edit": self.edit,
            "caption_to_thought": self.caption_to_thought,
            "ask": self.ask,
            "list": self.listing,
            "scene": self.scene,
            "answer_from_thought": self.answer_from_thought,
            "sum": self.problem,
            "fact": self.fact,
        }

    def paint(self, count: int, rng: np.random.Generator) -> Rows:
        """Caption, then the picture's codes."""
        return self._pictures("paint", lambda: self._captioned(rng), count, rng)

    def pair(self, count: int, rng: np.random.Generator) -> Rows:
        """Caption of two things, then the codes."""
        return self._pictures("pair", lambda: self._pair(rng)[:2], count, rng)

    def thought_to_image(self, count: int, rng: np.random.Generator) -> Rows:
        """Caption and thought, then the codes."""

        def draw() -> tuple[list[int], Ints]:
            text, codes, thought = self._pair(rng) if rng.random() < 0.8 else self._alone(rng)
            return thought_prompt(text, self._text(thought), self.vocabulary), codes

        prompts, codes = self._drawn(draw, count, rng)
        return picture_rows("thought_to_image", prompts, codes, self.vocabulary, rng)

    def edit(self, count: int, rng: np.random.Generator) -> Rows:
        """Caption and one half of a picture, then the codes of the other half; in every second group the given half is the
        far one of a picture that goes on, on its background, beyond that edge."""
        beyond, turns = rng.random() < 0.5, int(rng.integers(4))

        def draw() -> tuple[list[int], Ints]:
            text, codes = self._captioned(rng)
            return paint_prompt(text, self.vocabulary), codes

        prompts, codes = self._drawn(draw, count, rng)
        side = round(codes.shape[1] ** 0.5)
        pictures: Ints = np.rot90(codes.reshape(count, side, side), turns, axes=(1, 2))
        if beyond:
            pictures = np.concatenate([pictures[:, :, side // 2 :], pictures[:, :, [-1] * (side // 2)]], axis=2)
        hidden = np.broadcast_to(np.arange(side) >= side // 2, pictures.shape)
        pictures, hidden = (np.rot90(a, -turns, axes=(1, 2)).reshape(count, -1) for a in (pictures, hidden))
        return picture_rows("edit", prompts, pictures, self.vocabulary, rng, hidden)

    def caption_to_thought(self, count: int, rng: np.random.Generator) -> Rows:
        """Caption, then the thought of what goes where."""

        def draw() -> tuple[list[int], list[int]]:
            text, _, thought = self._pair(rng) if rng.random() < 0.8 else self._alone(rng)
            return thinking_prompt(text, self.vocabulary), self._text(thought)

        examples = equal_length(draw, count)
        eos = self.vocabulary.special.eos
        length = _filled_length(max(len(answer) for _, answer in examples) + 1, rng)
        answers = np.array([answer + [eos] * (length - len(answer)) for _, answer in examples])
        return self._answers("caption_to_thought", np.array([p for p, _ in examples]), answers, rng)

    def ask(self, count: int, rng: np.random.Generator) -> Rows:
        """A picture, a question about it, and the answer."""

        def draw() -> tuple[list[int], list[int], list[int]]:
            picture = self._pick(self.singles, False, rng)
            concept, colour = int(self.singles.names[picture, 0]), COLOURS[self.singles.colour[picture]]
            question, answer = picture_question(CONCEPTS[concept], colour, rng)
            return self.chat(question), self._text(answer), self._shown(self.singles, picture)

        return self._answered("ask", draw, count, rng, int(rng.choice(SHORT_LENGTHS)))

    def listing(self, count: int, rng: np.random.Generator) -> Rows:
        """A picture of several things and what it holds."""
        return self._asked("list", lambda layout, colour: list_question(layout), count, rng)

    def scene(self, count: int, rng: np.random.Generator) -> Rows:
        """A picture of several things, a question, the thought and the answer."""

        def ask(layout: Layout, colour: str) -> tuple[str, str] | None:
            return scene_question(layout, colour, QUESTIONS[rng.integers(len(QUESTIONS))], rng)

        return self._asked("scene", ask, count, rng)

    def answer_from_thought(self, count: int, rng: np.random.Generator) -> Rows:
        """A question and the thought, both without a picture; the answer is hidden. Any layout of the
        training side comes, where the pool has a few thousand, and a row costs a third of one with a picture."""
        kind = str(rng.choice(LOOKUPS))

        def draw() -> tuple[list[int], list[int], list[int]]:
            turn = None
            while turn is None:
                turn = scene_question(draw_layout((2, 2), False, rng), COLOURS[0], kind, rng)
            question, answer = turn
            return self.chat(question), self.tokenizer.encode(answer), []

        return self._answered("answer_from_thought", draw, count, rng, answer_alone=1.0)

    def problem(self, count: int, rng: np.random.Generator) -> Rows:
        """A sum or a difference, its thought and its result."""
        kind = str(rng.choice(list(self.problems), p=list(self.problems.values())))
        assert kind in PROBLEMS

        def draw() -> tuple[list[int], list[int], list[int]]:
            problem = draw_problem(kind, self.held_out, rng, SHORTER, "validation")
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
        """Of captions' ids and codes."""

        def prompted() -> tuple[list[int], Ints]:
            text, codes = draw()
            return paint_prompt(text, self.vocabulary), codes

        prompts, codes = self._drawn(prompted, count, rng)
        return picture_rows(task, prompts, codes, self.vocabulary, rng)

    def _drawn(self, draw: Callable[[], tuple[list[int], Ints]], count: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Prompts [count, P] and codes [count, N]; in a share of the groups the prompt that guidance compares with."""
        plain = rng.random() < self.caption_dropout
        examples = [draw() for _ in range(count)] if plain else equal_length(draw, count)
        nothing = unconditional_prompt(self.vocabulary)
        return np.array([nothing if plain else prompt for prompt, _ in examples]), np.array([codes for _, codes in examples])

    def _captioned(self, rng: np.random.Generator) -> tuple[list[int], Ints]:
        picture = self._pick(self.singles, True, rng)
        text = caption(CONCEPTS[int(self.singles.names[picture, 0])], COLOURS[self.singles.colour[picture]], rng)
        return self._text(text), self.singles.codes[picture]

    def _alone(self, rng: np.random.Generator) -> tuple[list[int], Ints, str]:
        """Ids of a caption of one thing, codes, and the thought."""
        picture = self._pick(self.singles, True, rng)
        concept, colour = int(self.singles.names[picture, 0]), COLOURS[self.singles.colour[picture]]
        thought = drawing_thought(Layout(1, 1, (CONCEPT_NAMES[concept],)), colour)
        return self._text(caption(CONCEPTS[concept], colour, rng)), self.singles.codes[picture], f"{OPEN} {thought} {CLOSE}"

    def _pair(self, rng: np.random.Generator) -> tuple[list[int], Ints, str]:
        """Ids of a caption of two things, codes, and the thought."""
        picture = self._pick(self.several, True, rng)
        layout, colour = self.several.layout(picture), COLOURS[self.several.colour[picture]]
        text = pair_caption(layout, colour if rng.random() < 5 / 6 else None, rng)
        return self._text(text), self.several.codes[picture], f"{OPEN} {drawing_thought(layout, colour)} {CLOSE}"

    def _asked(
        self, task: str, ask: Callable[[Layout, str], tuple[str, str] | None], count: int, rng: np.random.Generator
    ) -> Rows:
        def draw() -> tuple[list[int], list[int], list[int]]:
            while True:
                picture = self._pick(self.several, False, rng)
                turn = ask(self.several.layout(picture), COLOURS[self.several.colour[picture]])
                if turn:
                    return self.chat(turn[0]), self._text(turn[1]), self._shown(self.several, picture)

        return self._answered(task, draw, count, rng)

    def _answered(
        self,
        task: str,
        draw: Callable[[], tuple[list[int], list[int], list[int]]],  # question, answer, what stands before the question
        count: int,
        rng: np.random.Generator,
        length: int = 0,
        answer_alone: float = ANSWER_ALONE,
    ) -> Rows:
        examples, special = equal_length(draw, count), self.vocabulary.special
        longest = max(len(answer) for _, answer, _ in examples) + 1
        length = max(length, longest) if length else _filled_length(longest, rng)
        filled = [[*answer, special.eot] + [special.eos] * (length - 1 - len(answer)) for _, answer, _ in examples]
        prompts = np.array([head + question for question, _, head in examples])
        return self._answers(task, prompts, np.array(filled), rng, answer_alone)

    def _answers(
        self, task: str, prompts: Ints, answers: Ints, rng: np.random.Generator, answer_alone: float = ANSWER_ALONE
    ) -> Rows:
        return answer_rows(task, prompts, answers, self.vocabulary, rng, self.blocks, self._close, answer_alone)

    @property
    def several(self) -> Pool:
        assert self._several is not None, "pictures of several things were not given"
        return self._several

    def _pick(self, pool: Pool, tidy: bool, rng: np.random.Generator) -> int:
        """The number of a picture of the pool to be drawn (tidy), or to be asked about."""
        numbers = self._numbers[pool.grid[0] == NOTHING, tidy]
        return int(numbers[rng.integers(len(numbers))])

    @cached_property
    def _numbers(self) -> dict[tuple[bool, bool], Ints]:
        pools = [self.singles] if self._several is None else [self.singles, self._several]
        return {(bool(p.grid[0] == NOTHING), t): np.flatnonzero(p.tidy == t) for p in pools for t in (False, True)}

    def _shown(self, pool: Pool, picture: int) -> list[int]:
        return picture_prompt(pool.codes[picture], self.vocabulary)

    def _text(self, text: str) -> list[int]:
        return self._cached(text, lambda: self.tokenizer.encode(text))

    def _chat_ids(self, question: str) -> list[int]:
        return chat_ids(self.tokenizer, self.vocabulary, [{"role": "user", "content": question}])

    def _cached(self, key: str, make: Callable[[], list[int]]) -> list[int]:
        if key not in self._ids:
            self._ids[key] = make()
        return self._ids[key]


def _filled_length(length: int, rng: np.random.Generator) -> int:
    """A length to fill an answer to: whole blocks, sometimes the longest."""
    return max(length, ANSWER_LENGTH if rng.random() < 0.3 else -(-length // BLOCK) * BLOCK)


def equal_length(draw: Callable[[], Example], count: int) -> list[Example]:
    """`count` draws whose first element has the length that the first draw had: the law of draws, given that length."""
    examples = [draw()]
    while len(examples) < count:
        other = draw()
        if len(other[0]) == len(examples[0][0]):
            examples.append(other)
    return examples
