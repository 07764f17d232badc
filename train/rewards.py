"""The rewards of stage three: named functions of (prompt, response, truth), each a number in 0..1, and their weighted sum.

A response is a text or a picture. Pictures are judged on pixels or by a classifier that is passed in and was never trained on
the policy's drawings (train/judge.py); never by the policy itself. Nothing here knows tokens, policies or training.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmada_lite.errors import Error, did_you_mean
from mmada_lite.train.data.arithmetic import problem_in, true_share
from mmada_lite.train.data.concepts import COLOURS, CONCEPT_NAMES
from mmada_lite.train.data.layouts import Layout, cell_pictures
from mmada_lite.train.data.pictures import Pixels, background_of
from mmada_lite.train.data.thoughts import answer_of, split_thought


@dataclass(frozen=True, slots=True)
class Truth:
    """What is known of the right response; each reward says which part it reads, and a part that it misses is an Error."""

    answer: str | None = None  # of a text, without its thought
    background: str | None = None  # a named colour
    layout: Layout | None = None  # what is where in a picture

    def __post_init__(self) -> None:
        if self.background is not None and self.background not in COLOURS:
            raise Error(f"{self.background!r} is no background that we know{_nearest(self.background, COLOURS)}")
        for _, name in self.layout.named if self.layout else []:
            if name not in CONCEPT_NAMES:
                raise Error(f"{name!r} is no concept that we know{_nearest(name, CONCEPT_NAMES)}")


Response = str | Pixels
Reward = Callable[[str, Response, Truth], float]
Classifier = Callable[[NDArray[np.uint8]], NDArray[np.int64]]  # pictures [B, 64, 64, 3] -> indices of concepts [B]


def answer_reward(prompt: str, response: Response, truth: Truth) -> float:
    """1 if what follows the thought is truth.answer; case, spaces and a full stop at the end do not matter."""
    if truth.answer is None:
        raise _lacks("answer", "answer", prompt)
    return float(_plain(answer_of(_text("answer", response))) == _plain(truth.answer))


def format_reward(prompt: str, response: Response, truth: Truth) -> float:
    """1 if the text is `<think> thought </think> answer`, both parts there and nothing else."""
    return float(split_thought(_text("format", response)) is not None)


def thought_reward(prompt: str, response: Response, truth: Truth) -> float:
    """The share of true steps in the thought about the prompt's sum or difference, as train/data/arithmetic.py writes them."""
    parts = split_thought(_text("thought", response))
    problem = problem_in(prompt)
    if problem is None:
        raise Error(f"the prompt {prompt!r} asks for no sum or difference, so the reward 'thought' cannot judge its thought")
    return 0.0 if parts is None else true_share(problem, parts.thought)


def background_reward(prompt: str, response: Response, truth: Truth) -> float:
    """1 if the border's pixels have the colour truth.background."""
    if truth.background is None:
        raise _lacks("background", "background", prompt)
    return float(background_of(_picture("background", response)) == truth.background)


def concept_reward(classify: Classifier) -> Reward:
    """The share of the named cells of truth.layout in which the classifier sees that very concept."""

    def judged(prompt: str, response: Response, truth: Truth) -> float:
        if truth.layout is None or not truth.layout.named:
            raise _lacks("concept", "layout and the names in it", prompt)
        layout = truth.layout
        seen = classify(cell_pictures(_picture("concept", response), layout.rows, layout.columns))
        return float(np.mean([CONCEPT_NAMES[int(seen[cell])] == name for cell, name in layout.named]))

    return judged


class SeenTogether:
    """A classifier that was shown the cells of many pictures at once and remembers what it said: one call for a batch, where
    each reward asks about its own picture alone."""

    def __init__(self, classify: Classifier) -> None:
        self._classify, self._known = classify, dict[bytes, NDArray[np.int64]]()

    def look(self, pictures: Sequence[tuple[Pixels, int, int]]) -> None:
        """Pictures uint8 [H, W, 3] with their rows and columns of cells. What was seen before is forgotten."""
        cells = [cell_pictures(picture, rows, columns) for picture, rows, columns in pictures]
        concepts = self._classify(np.concatenate(cells)) if cells else np.zeros(0, dtype=np.int64)
        parts = np.split(concepts, np.cumsum([len(own) for own in cells])[:-1]) if cells else []
        self._known = {own.tobytes(): part for own, part in zip(cells, parts, strict=True)}

    def __call__(self, pictures: NDArray[np.uint8]) -> NDArray[np.int64]:
        known = self._known.get(pictures.tobytes())
        return self._classify(pictures) if known is None else known


REWARDS: dict[str, Reward] = {
    "answer": answer_reward,
    "format": format_reward,
    "thought": thought_reward,
    "background": background_reward,
}
JUDGED: dict[str, Callable[[Classifier], Reward]] = {"concept": concept_reward}


def find_reward(name: str, classify: Classifier | None = None) -> Reward:
    """The reward of that name. Raises Error for an unknown name, and where a classifier is needed and not given."""
    if name in REWARDS:
        return REWARDS[name]
    if name not in JUDGED:
        raise Error(f"no reward is called {name!r}{_nearest(name, (*REWARDS, *JUDGED))}")
    if classify is None:
        raise Error(f"the reward {name!r} needs a judge: run `python -m mmada_lite.train judge` first")
    return JUDGED[name](classify)


@dataclass(frozen=True, slots=True)
class WeightedRewards:
    """A sum of named rewards, each times its weight; made by `weigh`."""

    terms: tuple[tuple[str, float, Reward], ...]

    def __call__(self, prompt: str, response: Response, truth: Truth) -> float:
        return sum(weight * reward(prompt, response, truth) for _, weight, reward in self.terms)

    def parts(self, prompt: str, response: Response, truth: Truth) -> dict[str, float]:
        """Each reward on its own, before its weight: what curves show."""
        return {name: reward(prompt, response, truth) for name, _, reward in self.terms}


def weigh(weights: Mapping[str, float], classify: Classifier | None = None) -> WeightedRewards:
    """For example {"answer": 2.0, "format": 0.5}, as the paper does for texts (arXiv 2505.15809, section 3.3)."""
    if not weights:
        raise Error(f"no rewards are given; use some of {', '.join((*REWARDS, *JUDGED))}")
    for name, weight in weights.items():
        if not math.isfinite(weight):
            raise Error(f"the weight of the reward {name!r} is {weight}; use a finite number")
    return WeightedRewards(tuple((name, weight, find_reward(name, classify)) for name, weight in weights.items()))


def _text(name: str, response: Response) -> str:
    if not isinstance(response, str):
        raise Error(f"the reward {name!r} judges texts and was given a picture; use background or concept for pictures")
    return response


def _picture(name: str, response: Response) -> Pixels:
    if isinstance(response, str):
        raise Error(f"the reward {name!r} judges pictures and was given a text; use answer, format or thought for texts")
    if response.ndim != 3 or response.shape[2] != 3 or response.dtype != np.uint8:
        raise Error(f"the reward {name!r} needs a picture uint8 [H, W, 3], not {response.dtype} {list(response.shape)}")
    return response


def _lacks(name: str, part: str, prompt: str) -> Error:
    return Error(f"the reward {name!r} reads the truth's {part}, and the truth of {prompt!r} has none")


def _plain(answer: str) -> str:
    return re.sub(r"\s+", " ", answer).strip().removesuffix(".").casefold()


def _nearest(name: str, names: tuple[str, ...]) -> str:
    return f"; {did_you_mean(name, names, 'use one of ' + ', '.join(names))}"
