"""Token rows of every task, in groups of equal length so that no pads are needed. Layouts are the runtime's own; sentences and
masks come from the modules beside this one. Knows no model.

    paint  caption -> picture            ask   picture, question -> answer        fact  question -> answer
    pair   caption of two -> picture     list  several things -> list of them     sum   problem -> thought and answer
    scene  several things, question -> thought and answer
    edit   caption, half a picture -> the other half, or what lies beyond its edge, which may be a new thing
    turn   a first turn of any kind, then a question, which may refer to it -> answer
    fill   text, or question -> a hole in it, or in its answer, behind which the end is shown; sums without a thought
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
    text_prompt,
    thinking_prompt,
    thought_prompt,
    turn_end,
    unconditional_prompt,
)
from mmada_lite.train.data.arithmetic import KINDS as PROBLEMS
from mmada_lite.train.data.arithmetic import draw_problem, question_of, response_to
from mmada_lite.train.data.concepts import COLOURS, CONCEPT_NAMES, CONCEPTS, Concept
from mmada_lite.train.data.layouts import Layout
from mmada_lite.train.data.masking import ANSWER_ALONE, BLOCK, Ints, Rows, answer_rows, hole_rows, picture_rows
from mmada_lite.train.data.pool import NOTHING, Pool
from mmada_lite.train.data.scenes import KINDS as QUESTIONS
from mmada_lite.train.data.scenes import (
    draw_layout,
    drawing_thought,
    list_question,
    pair_caption,
    scene_question,
    together_caption,
)
from mmada_lite.train.data.texts import Capitals, caption, in_capitals, picture_question
from mmada_lite.train.data.thoughts import CLOSE, OPEN, answer_of
from mmada_lite.train.data.turns import Turn, and_thing, draw_and_problem, said, text_turn
from mmada_lite.vocabulary import Tokenizer, Vocabulary

ANSWER_LENGTH = 48  # tokens of the longest answer: text, end of turn, then ends of text
SHORT_LENGTHS = (16, 16, 16, 24, 48)  # what short answers are filled to, so that the length gives nothing away
LOOKUPS = ("position", "position", "count", "count", "compare", "cell")  # what `answer_from_thought` asks
CAPITALS: dict[Capitals | None, float] = {None: 0.88, "sentence": 0.08, "title": 0.02, "upper": 0.02}  # of the groups
TOGETHER = 0.5  # share of the captions of two things that do not say where they are
KEPT_THOUGHT = 0.5  # share of the first turns that are kept with their thought, as `chat` keeps them; others keep answers alone
ELSEWHERE = 0.5  # share of the conversations about a picture in which one of the turns is about something else
NEW_THING = 1 / 3  # share of the groups of `edit` that go on with another thing
TURNS: dict[str, float] = {"and_problem": 0.2, "and_thing": 0.1, "text": 0.25, "single": 0.25, "scene": 0.2}
FILLED: dict[str, float] = {"caption": 0.25, "fact": 0.3, "sum": 0.3, "picture": 0.15}
UNTHOUGHT: dict[str, float] = {
    "sum1": 0.1,
    "difference1": 0.1,
    "sum2": 0.4,
    "difference2": 0.4,
}  # problems whose result is a hole
SHORTER = 0.1  # share of the problems in which one number has fewer digits
PROBLEM_SHARES: dict[str, float] = {
    "sum1": 0.05,
    "difference1": 0.05,
    "sum2": 0.22,
    "difference2": 0.28,
    "sum3": 0.25,
    "difference3": 0.15,
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
            "turn": self.turn,
            "fill": self.fill,
        }

    def paint(self, count: int, rng: np.random.Generator) -> Rows:
        """Caption, then the picture's codes."""
        how = self._how(rng)
        return self._pictures("paint", lambda: self._captioned(rng, how), count, rng)

    def pair(self, count: int, rng: np.random.Generator) -> Rows:
        """Caption of two things, then the codes."""
        how = self._how(rng)
        return self._pictures("pair", lambda: self._pair(rng, how)[:2], count, rng)

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
        new = self._several is not None and rng.random() < NEW_THING

        def draw() -> tuple[list[int], Ints]:
            text, codes = self._new_thing(turns, rng) if new else self._captioned(rng)
            return paint_prompt(text, self.vocabulary), codes

        prompts, codes = self._drawn(draw, count, rng)
        side = round(codes.shape[1] ** 0.5)
        pictures: Ints = np.rot90(codes.reshape(count, side, side), turns, axes=(1, 2))
        if beyond and not new:
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

        how = self._how(rng)

        def draw() -> tuple[list[int], list[int], list[int]]:
            picture = self._pick(self.singles, False, rng)
            question, answer = picture_question(*self._seen(picture), rng)
            return self.chat(_typed(question, how)), self._text(answer), self._shown(self.singles, picture)

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

        how = self._how(rng)

        def draw() -> tuple[list[int], list[int], list[int]]:
            problem = draw_problem(kind, self.held_out, rng, SHORTER, "validation")
            return self._chat_ids(_typed(question_of(problem, rng), how)), self.tokenizer.encode(response_to(problem)), []

        return self._answered("sum", draw, count, rng)

    def fact(self, count: int, rng: np.random.Generator) -> Rows:
        """A question and its answer."""

        how = self._how(rng)

        def draw() -> tuple[list[int], list[int], list[int]]:
            question, answer = said(rng)
            return self.chat(_typed(question, how)), self._text(answer), []

        return self._answered("fact", draw, count, rng, int(rng.choice(SHORT_LENGTHS)))

    def turn(self, count: int, rng: np.random.Generator) -> Rows:
        """Two turns, about one picture where they look at one; the answer to the second is hidden. A group's first turns are
        drawn alike, so that rows of one length are soon found."""
        kind, how = _chosen(TURNS, rng), self._how(rng)
        kept, seed = rng.random() < KEPT_THOUGHT, int(rng.integers(2**32))

        def draw() -> tuple[list[int], list[int], list[int]]:
            head, first, second = self._two_turns(kind, np.random.default_rng(seed), rng)
            said_first = first.response if kept else answer_of(first.response)
            messages = [(first.question, said_first), (_typed(second.question, how), "")]
            return self._conversation(messages), self.tokenizer.encode(second.response), head

        return self._answered("turn", draw, count, rng)

    def _two_turns(self, kind: str, alike: np.random.Generator, rng: np.random.Generator) -> tuple[list[int], Turn, Turn]:
        """What stands before a conversation, and its two turns."""
        if kind == "and_problem":
            return [], *draw_and_problem(self.held_out, alike, rng, "validation" if self.held_out else None)
        if kind == "text":
            return [], text_turn(self.problems, alike), text_turn(self.problems, rng)
        if kind == "scene":
            picture = self._pick(self.several, False, rng)
            about = self.several.layout(picture), COLOURS[self.several.colour[picture]]
            first, second = (_scene_turn(*about, draws) for draws in (alike, rng))
            return self._shown(self.several, picture), first, second
        picture = self._pick(self.singles, False, rng)
        concept, colour = self._seen(picture)
        first, second = (Turn(*picture_question(concept, colour, draws)) for draws in (alike, rng))
        if kind == "single" and (other := alike.random()) < ELSEWHERE:
            first = text_turn(self.problems, alike) if other < ELSEWHERE / 2 else first
            second = text_turn(self.problems, rng) if other >= ELSEWHERE / 2 else second
        if kind == "and_thing":
            second = and_thing(concept.name, rng) or second
        return self._shown(self.singles, picture), first, second

    def fill(self, count: int, rng: np.random.Generator) -> Rows:
        """A hole in a caption, or in an answer, whose end is shown."""
        kind, special = _chosen(FILLED, rng), self.vocabulary.special
        problems = _chosen(UNTHOUGHT, rng)
        texts = text_prompt(self.tokenizer, self.vocabulary)

        def draw() -> tuple[tuple[int, int], list[int], list[int]]:
            if kind == "caption":
                concept, colour = CONCEPTS[rng.integers(len(CONCEPTS))], COLOURS[rng.integers(len(COLOURS))]
                prompt, text = texts, self._text(caption(concept, colour, rng))
            elif kind == "fact":
                question, answer = said(rng)
                prompt, text = self.chat(question), self._text(answer)
            elif kind == "sum":
                problem = draw_problem(problems, self.held_out, rng, 0.0, "validation" if self.held_out else None)
                prompt, text = self._chat_ids(question_of(problem, rng)), self.tokenizer.encode(str(problem.answer))
            else:
                picture = self._pick(self.singles, False, rng)
                question, answer = picture_question(*self._seen(picture), rng)
                prompt = [*self._shown(self.singles, picture), *self.chat(question)]
                text = self._text(answer)
            return (len(prompt), len(text)), prompt, text

        first = draw()
        examples = [first]
        while len(examples) < count:
            other = draw()
            if other[0] == first[0]:
                examples.append(other)
        end, length = turn_end(self.tokenizer, self.vocabulary), first[0][1]
        filling = [special.eos] * (-(length + len(end)) % BLOCK)
        prompts, answers = np.array([p for _, p, _ in examples]), np.array([a for _, _, a in examples])
        return hole_rows("fill", prompts, answers, np.array([*end, *filling]), self.vocabulary, rng)

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

    def _captioned(self, rng: np.random.Generator, how: Capitals | None = None) -> tuple[list[int], Ints]:
        picture = self._pick(self.singles, True, rng)
        return self._text(_typed(caption(*self._seen(picture), rng), how)), self.singles.codes[picture]

    def _new_thing(self, turns: int, rng: np.random.Generator) -> tuple[list[int], Ints]:
        """Ids of a caption of the thing in the half of a picture of two that quarter `turns` bring to the right, and codes;
        half of the time the other half is the far one of a single thing's picture on a background of that colour."""
        while True:
            picture = self._pick(self.several, True, rng)
            layout, colour = self.several.layout(picture), int(self.several.colour[picture])
            if (layout.columns == 2) == (turns % 2 == 0):
                break
        codes = self.several.codes[picture]
        side = round(len(codes) ** 0.5)
        cells = np.kron(
            np.arange(2).reshape(layout.rows, layout.columns), np.ones((side // layout.rows, side // layout.columns))
        )
        upright, last = np.rot90(codes.reshape(side, side), turns), int(np.rot90(cells, turns)[0, -1])
        name = str(layout.names[last])
        if rng.random() < 0.5:
            alone = self._alike[colour]
            for _ in range(8):  # the same tone, if it is soon found
                other = np.rot90(self.singles.codes[alone[rng.integers(len(alone))]].reshape(side, side), turns)
                if other[0, -1] == upright[0, -1]:
                    break
            upright = np.concatenate([other[:, side // 2 :], upright[:, side // 2 :]], axis=1)
        text = caption(CONCEPTS[CONCEPT_NAMES.index(name)], COLOURS[colour], rng)
        return self._text(text), np.rot90(upright, -turns).reshape(-1)

    def _alone(self, rng: np.random.Generator) -> tuple[list[int], Ints, str]:
        """Ids of a caption of one thing, codes, and the thought."""
        picture = self._pick(self.singles, True, rng)
        concept, colour = self._seen(picture)
        thought = drawing_thought(Layout(1, 1, (concept.name,)), colour)
        return self._text(caption(concept, colour, rng)), self.singles.codes[picture], f"{OPEN} {thought} {CLOSE}"

    def _pair(self, rng: np.random.Generator, how: Capitals | None = None) -> tuple[list[int], Ints, str]:
        """Ids of a caption of two things, codes, and the thought. Side by side, they may be named without their places."""
        picture = self._pick(self.several, True, rng)
        layout, colour = self.several.layout(picture), COLOURS[self.several.colour[picture]]
        said_colour = colour if rng.random() < 5 / 6 else None
        together = layout.columns == 2 and rng.random() < TOGETHER
        text = together_caption(layout, said_colour) if together else pair_caption(layout, said_colour, rng)
        thought = f"{OPEN} {drawing_thought(layout, colour)} {CLOSE}"
        return self._text(_typed(text, how)), self.several.codes[picture], thought

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

    def _seen(self, picture: int) -> tuple[Concept, str]:
        """The thing and the background of a picture of one."""
        return CONCEPTS[int(self.singles.names[picture, 0])], COLOURS[self.singles.colour[picture]]

    def _how(self, rng: np.random.Generator) -> Capitals | None:
        """How the questions of a group are typed."""
        return list(CAPITALS)[rng.choice(len(CAPITALS), p=list(CAPITALS.values()))]

    @cached_property
    def _alike(self) -> dict[int, Ints]:
        """Of each colour, the numbers of the pictures of one thing to be drawn."""
        return {k: np.flatnonzero(self.singles.tidy & (self.singles.colour == k)) for k in range(len(COLOURS))}

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

    def _conversation(self, turns: list[tuple[str, str]]) -> list[int]:
        said_by = (
            {"role": role, "content": text} for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)
        )
        return chat_ids(self.tokenizer, self.vocabulary, [message for message in said_by if message["content"]])

    def _cached(self, key: str, make: Callable[[], list[int]]) -> list[int]:
        if key not in self._ids:
            self._ids[key] = make()
        return self._ids[key]


def _scene_turn(layout: Layout, colour: str, rng: np.random.Generator) -> Turn:
    while True:
        if turn := scene_question(layout, colour, QUESTIONS[rng.integers(len(QUESTIONS))], rng):
            return Turn(*turn)


def _typed(text: str, how: Capitals | None) -> str:
    return text if how is None else in_capitals(text, how)


def _chosen(shares: Mapping[str, float], rng: np.random.Generator) -> str:
    return str(rng.choice(list(shares), p=list(shares.values())))


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
