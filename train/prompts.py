"""What stage three asks: prompts of the training side with what is known of the right response, one length a batch.
Knows no rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mmada_lite.decoding.rows import chat_ids, paint_prompt, picture_prompt, thought_prompt
from mmada_lite.train.data.arithmetic import draw_problem, question_of
from mmada_lite.train.data.concepts import COLOURS, CONCEPT_NAMES, CONCEPTS, NUMBERS
from mmada_lite.train.data.layouts import Layout
from mmada_lite.train.data.material import equal_length
from mmada_lite.train.data.pool import Pool
from mmada_lite.train.data.scenes import GRIDS, draw_layout, drawing_thought, pair_caption, scene_question
from mmada_lite.train.data.texts import WHAT_QUESTIONS, pairs, standard_caption
from mmada_lite.train.data.thoughts import CLOSE, OPEN, answer_of
from mmada_lite.train.rewards import Truth
from mmada_lite.train.rollouts import Speaker

KINDS = ("count", "position", "compare", "all")  # questions about a scene


@dataclass(frozen=True, slots=True)
class Prompt:
    """ids up to the response, the text that rewards read, the truth, and whether the response is a picture."""

    ids: tuple[int, ...]
    text: str
    truth: Truth
    draws: bool = False


@dataclass(frozen=True, slots=True)
class Shown:
    """Encoded pictures of the training side, for tasks that look."""

    singles: Pool
    several: Pool


Source = Callable[[Speaker, int, np.random.Generator], list[Prompt]]


def sums(*kinds: str) -> Source:
    """Arithmetic of the kinds of train/data/arithmetic, a kind a batch."""

    def ask(speaker: Speaker, count: int, rng: np.random.Generator) -> list[Prompt]:
        kind = kinds[int(rng.integers(len(kinds)))]

        def draw() -> tuple[tuple[int, ...], Prompt]:
            problem = draw_problem(kind, False, rng)
            text = question_of(problem, rng)
            ids = _chat(speaker, text)
            return ids, Prompt(ids, text, Truth(answer=str(problem.answer)))

        return [prompt for _, prompt in equal_length(draw, count)]

    return ask


def paint(speaker: Speaker, count: int, rng: np.random.Generator) -> list[Prompt]:
    """One thing on a background, pairs of the training side."""
    allowed = pairs(held_out=False)

    def draw() -> tuple[tuple[int, ...], Prompt]:
        concept, colour = allowed[rng.integers(len(allowed))]
        text = standard_caption(CONCEPTS[concept], colour)
        ids = tuple(paint_prompt(speaker.tokenizer.encode(text), speaker.vocabulary))
        truth = Truth(background=colour, layout=Layout(1, 1, (CONCEPT_NAMES[concept],)))
        return ids, Prompt(ids, text, truth, draws=True)

    return [prompt for _, prompt in equal_length(draw, count)]


def thought_to_image(speaker: Speaker, count: int, rng: np.random.Generator) -> list[Prompt]:
    """Two things side by side, after the thought of what goes where."""
    held_out = set(pairs(held_out=True))

    def draw() -> tuple[tuple[int, ...], Prompt]:
        layout, colour = draw_layout(GRIDS[1 + rng.integers(2)], False, rng), COLOURS[rng.integers(len(COLOURS))]
        while any((NUMBERS[name], colour) in held_out for _, name in layout.named):
            colour = COLOURS[rng.integers(len(COLOURS))]
        text = pair_caption(layout, colour, rng)
        thought = f"{OPEN} {drawing_thought(layout, colour)} {CLOSE}"
        caption, written = (speaker.tokenizer.encode(words) for words in (text, thought))
        ids = tuple(thought_prompt(caption, written, speaker.vocabulary))
        return ids, Prompt(ids, text, Truth(background=colour, layout=layout), draws=True)

    return [prompt for _, prompt in equal_length(draw, count)]


def looking(shown: Shown) -> dict[str, Source]:
    """The tasks that begin with a picture: "what" is in it, and questions about a "scene" of several things, of all kinds or of
    one ("count", "compare")."""

    def what(speaker: Speaker, count: int, rng: np.random.Generator) -> list[Prompt]:
        pictures = np.flatnonzero(~shown.singles.tidy)
        question = WHAT_QUESTIONS[rng.integers(len(WHAT_QUESTIONS))]
        prompts = []
        for picture in pictures[rng.integers(len(pictures), size=count)]:
            ids = (*picture_prompt(shown.singles.codes[picture], speaker.vocabulary), *_chat(speaker, question))
            prompts.append(Prompt(ids, question, Truth(answer=CONCEPTS[int(shown.singles.names[picture, 0])].phrase)))
        return prompts

    def scene(speaker: Speaker, count: int, rng: np.random.Generator, kinds: Sequence[str] = KINDS) -> list[Prompt]:
        pictures = np.flatnonzero(~shown.several.tidy)

        def draw() -> tuple[tuple[int, ...], Prompt]:
            while True:
                picture = int(pictures[rng.integers(len(pictures))])
                kind = kinds[int(rng.integers(len(kinds)))]
                layout, colour = shown.several.layout(picture), COLOURS[shown.several.colour[picture]]
                if turn := scene_question(layout, colour, kind, rng):
                    question, answer = turn
                    ids = (*picture_prompt(shown.several.codes[picture], speaker.vocabulary), *_chat(speaker, question))
                    return ids, Prompt(ids, question, Truth(answer=answer_of(answer)))

        return [prompt for _, prompt in equal_length(draw, count)]

    tasks: dict[str, Source] = {"what": what, "scene": scene}
    return tasks | {kind: partial(scene, kinds=(kind,)) for kind in ("count", "compare")}


def _chat(speaker: Speaker, text: str) -> tuple[int, ...]:
    return tuple(chat_ids(speaker.tokenizer, speaker.vocabulary, [{"role": "user", "content": text}]))


def sources(pool: Path | None = None) -> dict[str, Source]:
    """Every task by name; those that look need a folder of encoded pictures."""
    from mmada_lite.train.data.pool import read_pool

    tasks: dict[str, Source] = {
        "sum": sums("sum2", "difference2", "sum3"),
        "difference3": sums("difference3"),
        "paint": paint,
        "thought_to_image": thought_to_image,
    }
    if pool is not None:
        tasks |= looking(Shown(read_pool(pool, "single"), read_pool(pool, "scene")))
    return tasks
