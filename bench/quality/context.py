"""What a task of `bench quality` is given and what several of them do alike: the model with its icons and its judge, untouched
pictures, codes drawn anew, and what is seen in a picture. Knows no task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmada_lite.bench.quality.models import EvalModel, Pictures
from mmada_lite.train import rollouts
from mmada_lite.train.data.concepts import COLOURS, CONCEPT_NAMES
from mmada_lite.train.data.layouts import Layout, cell_pictures
from mmada_lite.train.data.pictures import PLAIN, compose
from mmada_lite.train.data.texts import Half

Report = dict[str, object]
Classify = Callable[[Pictures], NDArray[np.int64]]
Icons = Mapping[str, NDArray[np.uint8]]  # role -> [styles, concepts, S, S, 4]
SIDE = 8  # codes


@dataclass(frozen=True, slots=True)
class EvalContext:
    """What a task needs: the model, an independent classifier of pictures, icons by role, how many cases at most, a seed, and
    the half of what is held out that is asked, which is the role of the icons that no training saw, too."""

    model: EvalModel
    classify: Classify
    icons: Icons
    count: int = 400
    seed: int = 1000
    half: Half = "validation"

    def rng(self, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, number])

    def pictures(self, prompts: Sequence[Sequence[int]], seed: int) -> Pictures:
        codes = rollouts.draw(self.model, prompts, self.model.image, SIDE * SIDE, seed).codes
        return self.model.decode(codes, (SIDE, SIDE))

    def ask(self, questions: Sequence[str], pictures: Pictures | None = None) -> list[str]:
        codes = None if pictures is None else self.model.encode(pictures)
        prompts = rollouts.question_prompts(self.model, questions, codes)
        return rollouts.answers(self.model, prompts, self.model.text, self.seed)


def singles(
    icons: NDArray[np.uint8], count: int, rng: np.random.Generator
) -> tuple[Pictures, NDArray[np.int64], NDArray[np.int64]]:
    """Untouched icons in turn on backgrounds at random: (pictures, concepts, colours)."""
    styles, things = icons.shape[:2]
    order = np.arange(count) % (styles * things)
    concepts, colours = order % things, rng.integers(len(COLOURS), size=count)
    pictures = [compose(icons[o // things, o % things], COLOURS[k], rng, PLAIN) for o, k in zip(order, colours, strict=True)]
    return np.stack(pictures), concepts, colours


def fill(
    context: EvalContext, prompts: Sequence[Sequence[int]], codes: NDArray[np.int64], unknown: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Codes [B, h, w] with those drawn anew that are unknown [B, h, w]; h * w is that of a picture."""
    flat, where = codes.reshape(len(codes), -1), unknown.reshape(len(codes), -1)
    drawn = rollouts.draw(context.model, prompts, context.model.image, SIDE * SIDE, context.seed, flat, where).codes
    return drawn.reshape(codes.shape)


def shows(context: EvalContext, picture: NDArray[np.uint8], layout: Layout) -> bool:
    """Whether the judge sees in a picture [64, 64, 3] what a layout says, where it says it."""
    seen = context.classify(cell_pictures(picture, layout.rows, layout.columns))
    return all(CONCEPT_NAMES[int(seen[cell])] == name for cell, name in layout.named)
