"""Token rows of every task, in groups of equal length so that no pads are needed. Layouts are the runtime's own; sentences,
conversations and masks come from the modules beside this one. Knows no model.

    paint  caption -> picture            ask   picture, question -> answer        fact  question -> answer
    pair   caption of two -> picture     list  several things -> list of them     sum   problem -> thought and answer
    scene  several things, question -> thought and answer
    edit   caption, half a picture -> the other half, or what lies beyond its edge, which may be a new thing
    turn   a first turn of any kind, then a question, which may refer to it -> answer
    fill   caption, or question -> a hole in it, or in its answer, behind which the end is shown; sums without a thought
    caption_to_thought   caption -> thought           thought_to_image   caption, thought -> picture  (thinking before drawing)
    answer_from_thought  question about several things, thought that lists them -> answer (without the picture)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from mmada_lite.decoding.rows import paint_prompt, thinking_prompt, thought_prompt, turn_end, unconditional_prompt
from mmada_lite.train.data.arithmetic import KINDS as PROBLEMS
from mmada_lite.train.data.arithmetic import draw_problem, question_of, response_to
from mmada_lite.train.data.concepts import COLOURS, CONCEPTS, NUMBERS
from mmada_lite.train.data.conversations import FILLED, KEPT_THOUGHT, UNTHOUGHT, Conversations
from mmada_lite.train.data.layouts import SIDES, Layout, Side, from_right, to_right
from mmada_lite.train.data.masking import ANSWER_ALONE, BLOCK, Ints, Rows, answer_rows, hole_rows, picture_rows
from mmada_lite.train.data.material import Material, chosen, equal_length
from mmada_lite.train.data.pool import Pool
from mmada_lite.train.data.scenes import KINDS as QUESTIONS
from mmada_lite.train.data.scenes import (
    draw_layout,
    drawing_thought,
    list_question,
    pair_caption,
    scene_question,
    together_caption,
)
from mmada_lite.train.data.texts import TYPED, Typed, caption, fact, picture_question, typed
from mmada_lite.train.data.thoughts import CLOSE, OPEN
from mmada_lite.train.data.turns import TURNS, Draws
from mmada_lite.vocabulary import Tokenizer, Vocabulary

ANSWER_LENGTH = 48  # tokens of the longest answer: text, end of turn, then ends of text
MORE_BLOCKS = (0, 0, 0, 1, 2)  # of ends behind a text with a hole
SHORT_LENGTHS = (16, 16, 16, 24, 48)  # what short answers are filled to, so that the length gives nothing away
LOOKUPS = ("position", "position", "count", "count", "compare", "cell")  # what `answer_from_thought` asks
TOGETHER = 0.5  # share of the captions of two things side by side that do not say where they are
NEW_THING = 1 / 3  # share of the groups of `edit` that go on with another thing
SAME_TONE = 8  # pictures that are tried for a background of the same tone
SHORTER = 0.1  # share of the problems in which one number has fewer digits
PROBLEM_SHARES: dict[str, float] = {
    "sum1": 0.05,
    "difference1": 0.05,
    "sum2": 0.22,
    "difference2": 0.28,
    "sum3": 0.25,
    "difference3": 0.15,
}


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
        self.tokenizer, self.vocabulary = tokenizer, vocabulary
        self.material = Material(tokenizer, vocabulary, singles, several)
        self.conversations = Conversations(self.material, problems, held_out)
        self.caption_dropout, self.blocks, self.held_out, self.problems = caption_dropout, blocks, held_out, problems
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
        how = chosen(TYPED, rng)
        return self._pictures("paint", lambda: self._captioned(rng, how), count, rng)

    def pair(self, count: int, rng: np.random.Generator) -> Rows:
        """Caption of two things, then the codes."""
        how = chosen(TYPED, rng)
        return self._pictures("pair", lambda: self._pair(rng, how)[:2], count, rng)

    def thought_to_image(self, count: int, rng: np.random.Generator) -> Rows:
        """Caption and thought, then the codes."""

        def draw() -> tuple[list[int], Ints]:
            text, codes, thought = self._pair(rng) if rng.random() < 0.8 else self._alone(rng)
            return thought_prompt(text, self.material.text(thought), self.vocabulary), codes

        prompts, codes = self._drawn(draw, count, rng)
        return picture_rows("thought_to_image", prompts, codes, self.vocabulary, rng)

    def edit(self, count: int, rng: np.random.Generator) -> Rows:
        """Caption and one half of a picture, then the codes of the other half. In a share of the groups that half shows another
        thing; in every second of the others the given half is the far one of a picture that goes on, on its background, beyond
        that edge."""
        beyond, side = rng.random() < 0.5, SIDES[int(rng.integers(4))]
        new = self.material.has_several and rng.random() < NEW_THING

        def draw() -> tuple[list[int], Ints]:
            text, codes = self._new_thing(side, rng) if new else self._captioned(rng)
            return paint_prompt(text, self.vocabulary), codes

        prompts, codes = self._drawn(draw, count, rng)
        pictures = to_right(codes, side)
        half = pictures.shape[-1] // 2
        if beyond and not new:
            pictures = np.concatenate([pictures[..., half:], pictures[..., [-1] * half]], axis=-1)
        hidden = np.broadcast_to(np.arange(2 * half) >= half, pictures.shape)
        return picture_rows("edit", prompts, from_right(pictures, side), self.vocabulary, rng, from_right(hidden, side))

    def caption_to_thought(self, count: int, rng: np.random.Generator) -> Rows:
        """Caption, then the thought of what goes where."""

        def draw() -> tuple[list[int], list[int]]:
            text, _, thought = self._pair(rng) if rng.random() < 0.8 else self._alone(rng)
            return thinking_prompt(text, self.vocabulary), self.material.text(thought)

        examples = equal_length(draw, count)
        eos = self.vocabulary.special.eos
        length = _filled_length(max(len(answer) for _, answer in examples) + 1, rng)
        answers = np.array([answer + [eos] * (length - len(answer)) for _, answer in examples])
        return self._answers("caption_to_thought", np.array([p for p, _ in examples]), answers, rng)

    def ask(self, count: int, rng: np.random.Generator) -> Rows:
        """A picture, a question about it, and the answer."""

        how = chosen(TYPED, rng)

        def draw() -> tuple[list[int], list[int], list[int]]:
            picture = self.material.pick(self.material.singles, False, rng)
            question, answer = picture_question(*self.material.seen(picture), rng)
            return (
                self.material.chat(typed(question, how)),
                self.material.text(answer),
                self.material.shown(self.material.singles, picture),
            )

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
            return self.material.chat(question), self.tokenizer.encode(answer), []

        return self._answered("answer_from_thought", draw, count, rng, answer_alone=1.0)

    def problem(self, count: int, rng: np.random.Generator) -> Rows:
        """A sum or a difference, its thought and its result."""
        kind = str(rng.choice(list(self.problems), p=list(self.problems.values())))
        assert kind in PROBLEMS

        how = chosen(TYPED, rng)

        def draw() -> tuple[list[int], list[int], list[int]]:
            problem = draw_problem(kind, self.held_out, rng, SHORTER, "validation")
            return (
                self.material.conversation(typed(question_of(problem, rng), how)),
                self.tokenizer.encode(response_to(problem)),
                [],
            )

        return self._answered("sum", draw, count, rng)

    def fact(self, count: int, rng: np.random.Generator) -> Rows:
        """A question and its answer."""

        how = chosen(TYPED, rng)

        def draw() -> tuple[list[int], list[int], list[int]]:
            question, answer = fact(rng)
            return self.material.chat(typed(question, how)), self.material.text(answer), []

        return self._answered("fact", draw, count, rng, int(rng.choice(SHORT_LENGTHS)))

    def turn(self, count: int, rng: np.random.Generator) -> Rows:
        """Two turns, about one picture where they look at one; the answer to the second is hidden. A group's first turns are
        drawn alike, so that rows of one length are soon found."""
        kind, how = chosen(TURNS, rng), chosen(TYPED, rng)
        kept, seed = rng.random() < KEPT_THOUGHT, int(rng.integers(2**32))

        def draw() -> tuple[list[int], list[int], list[int]]:
            return self.conversations.second_turn(kind, how, kept, Draws(np.random.default_rng(seed), rng))

        return self._answered("turn", draw, count, rng)

    def fill(self, count: int, rng: np.random.Generator) -> Rows:
        """A hole in a caption, or in an answer, whose end is shown."""
        what, kind = chosen(FILLED, rng), chosen(UNTHOUGHT, rng)
        examples = equal_length(lambda: self.conversations.to_fill(what, kind, rng), count, parts=2)
        prompts, texts = (np.array(part) for part in zip(*examples, strict=True))
        end = turn_end(self.tokenizer, self.vocabulary)
        blocks = int(rng.choice(MORE_BLOCKS))  # where the runtime tries longer texts too, it fills up to the longest
        filling = [self.vocabulary.special.eos] * (-(texts.shape[1] + len(end)) % BLOCK + BLOCK * blocks)
        return hole_rows("fill", prompts, texts, np.array([*end, *filling]), self.vocabulary, rng)

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

    def _captioned(self, rng: np.random.Generator, how: Typed = "lower") -> tuple[list[int], Ints]:
        picture = self.material.pick(self.material.singles, True, rng)
        return self.material.text(typed(caption(*self.material.seen(picture), rng), how)), self.material.singles.codes[picture]

    def _new_thing(self, side: Side, rng: np.random.Generator) -> tuple[list[int], Ints]:
        """Ids of a caption of the thing on that side of a picture of two, and codes; half of the time the other half is the far
        one of a single thing's picture on a background of that colour, which is extended."""
        while True:
            picture = self.material.pick(self.material.several, True, rng)
            layout, colour = self.material.several.layout(picture), int(self.material.several.colour[picture])
            if (name := layout.at(side)) is not None:
                break
        codes = self.material.several.codes[picture]
        if rng.random() < 0.5:
            turned = to_right(codes, side)
            half = turned.shape[-1] // 2
            for _ in range(SAME_TONE):
                other = to_right(self.material.singles.codes[self.material.pick_alike(colour, rng)], side)
                if other[0, -1] == turned[0, -1]:
                    break
            codes = from_right(np.concatenate([other[:, half:], turned[:, half:]], axis=1), side)
        return self.material.text(caption(CONCEPTS[NUMBERS[name]], COLOURS[colour], rng)), codes

    def _alone(self, rng: np.random.Generator) -> tuple[list[int], Ints, str]:
        """Ids of a caption of one thing, codes, and the thought."""
        picture = self.material.pick(self.material.singles, True, rng)
        concept, colour = self.material.seen(picture)
        thought = drawing_thought(Layout(1, 1, (concept.name,)), colour)
        return (
            self.material.text(caption(concept, colour, rng)),
            self.material.singles.codes[picture],
            f"{OPEN} {thought} {CLOSE}",
        )

    def _pair(self, rng: np.random.Generator, how: Typed = "lower") -> tuple[list[int], Ints, str]:
        """Ids of a caption of two things, codes, and the thought. Side by side, they may be named without their places."""
        picture = self.material.pick(self.material.several, True, rng)
        layout, colour = self.material.seen_several(picture)
        said_colour = colour if rng.random() < 5 / 6 else None
        together = layout.columns == 2 and rng.random() < TOGETHER
        text = together_caption(layout, said_colour) if together else pair_caption(layout, said_colour, rng)
        thought = f"{OPEN} {drawing_thought(layout, colour)} {CLOSE}"
        return self.material.text(typed(text, how)), self.material.several.codes[picture], thought

    def _asked(
        self, task: str, ask: Callable[[Layout, str], tuple[str, str] | None], count: int, rng: np.random.Generator
    ) -> Rows:
        def draw() -> tuple[list[int], list[int], list[int]]:
            while True:
                picture = self.material.pick(self.material.several, False, rng)
                turn = ask(*self.material.seen_several(picture))
                if turn:
                    return (
                        self.material.chat(turn[0]),
                        self.material.text(turn[1]),
                        self.material.shown(self.material.several, picture),
                    )

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


def _filled_length(length: int, rng: np.random.Generator) -> int:
    """A length to fill an answer to: whole blocks, sometimes the longest."""
    return max(length, ANSWER_LENGTH if rng.random() < 0.3 else -(-length // BLOCK) * BLOCK)
