"""What rows are made of: pictures of two pools with what they show, and sentences as ids, in the runtime's own layouts. Knows
no task, no split and no mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import cycle
from typing import Any, TypeVar

import numpy as np

from mmada_lite.decoding.rows import chat_ids, picture_prompt
from mmada_lite.train.data.concepts import COLOURS, CONCEPTS, Concept
from mmada_lite.train.data.layouts import Layout
from mmada_lite.train.data.masking import Ints
from mmada_lite.train.data.pool import NOTHING, Pool
from mmada_lite.vocabulary import Tokenizer, Vocabulary

Example = TypeVar("Example", bound=tuple[Any, ...])
Key = TypeVar("Key", bound=str)


class Material:
    """Pictures of one thing (`singles`), those of several where they are given, and ids of what is said. Draws use the
    generator that is passed in."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary, singles: Pool, several: Pool | None = None) -> None:
        self.tokenizer, self.vocabulary, self.singles, self._several = tokenizer, vocabulary, singles, several
        self._ids: dict[str, list[int]] = {}

    @property
    def has_several(self) -> bool:
        return self._several is not None

    @property
    def several(self) -> Pool:
        assert self._several is not None, "pictures of several things were not given"
        return self._several

    def pick(self, pool: Pool, tidy: bool, rng: np.random.Generator) -> int:
        """The number of a picture of the pool to be drawn (tidy), or to be asked about."""
        numbers = self._numbers[pool.grid[0] == NOTHING, tidy]
        return int(numbers[rng.integers(len(numbers))])

    def pick_alike(self, colour: int, rng: np.random.Generator) -> int:
        """The number of a picture of one thing to be drawn, on that colour."""
        numbers = self._alike[colour]
        return int(numbers[rng.integers(len(numbers))])

    def seen(self, picture: int) -> tuple[Concept, str]:
        """The thing and the background of a picture of one."""
        return CONCEPTS[int(self.singles.names[picture, 0])], COLOURS[self.singles.colour[picture]]

    def seen_several(self, picture: int) -> tuple[Layout, str]:
        """The things and the background of a picture of several."""
        return self.several.layout(picture), COLOURS[self.several.colour[picture]]

    def shown(self, pool: Pool, picture: int) -> list[int]:
        """Ids of a picture before a conversation about it."""
        return picture_prompt(pool.codes[picture], self.vocabulary)

    def text(self, text: str) -> list[int]:
        """Ids of one of the sentences that come again and again."""
        return self._cached(text, lambda: self.tokenizer.encode(text))

    def chat(self, question: str) -> list[int]:
        """Ids of a conversation of one turn up to the answer, of a question that comes again and again."""
        return self._cached("chat " + question, lambda: self.conversation(question))

    def conversation(self, *said: str) -> list[int]:
        """Ids of a conversation, of user and assistant in turn, up to the answer to its last question."""
        messages = [{"role": role, "content": text} for role, text in zip(cycle(("user", "assistant")), said, strict=False)]
        return chat_ids(self.tokenizer, self.vocabulary, messages)

    def _cached(self, key: str, make: Callable[[], list[int]]) -> list[int]:
        if key not in self._ids:
            self._ids[key] = make()
        return self._ids[key]

    @cached_property
    def _alike(self) -> dict[int, Ints]:
        return {k: np.flatnonzero(self.singles.tidy & (self.singles.colour == k)) for k in range(len(COLOURS))}

    @cached_property
    def _numbers(self) -> dict[tuple[bool, bool], Ints]:
        pools = [self.singles] if self._several is None else [self.singles, self._several]
        return {(bool(p.grid[0] == NOTHING), t): np.flatnonzero(p.tidy == t) for p in pools for t in (False, True)}


def chosen(shares: Mapping[Key, float], rng: np.random.Generator) -> Key:
    """One of the names, as often as its share says."""
    return list(shares)[rng.choice(len(shares), p=list(shares.values()))]


def equal_length(draw: Callable[[], Example], count: int, parts: int = 1) -> list[Example]:
    """`count` draws whose first element, or so many of the first, has the length that the first draw had: the law of draws,
    given that length."""

    def lengths(example: Example) -> list[int]:
        return [len(part) for part in example[:parts]]

    examples = [draw()]
    while len(examples) < count:
        other = draw()
        if lengths(other) == lengths(examples[0]):
            examples.append(other)
    return examples
