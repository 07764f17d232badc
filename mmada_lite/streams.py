"""What a user holds while a text or a picture comes into being: an iterator of steps that can also be joined.

A stream does no work until it is asked for a step or for its result. It knows how ids and codes become text and
pictures; it knows nothing of prompts.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmada_lite.canvas import Canvas
from mmada_lite.decoding import Step
from mmada_lite.vocabulary import Tokenizer

Ints = NDArray[np.int64]


class Stream(Iterator[Step]):
    """Steps as they happen. `last` is the latest step, None before the first."""

    def __init__(self, steps: Iterable[Step]) -> None:
        self._steps = iter(steps)
        self.last: Step | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Step:
        self.last = next(self._steps)
        return self.last

    def finish(self) -> Self:
        """Run what is left."""
        for _ in self:
            pass
        return self


class Answer(Stream):
    """A text in the making. `text` runs it to its end; `so_far` is what stands now, with a mark where masks are left."""

    def __init__(self, steps: Iterable[Step], canvas: Canvas, tokenizer: Tokenizer, stop: frozenset[int]) -> None:
        super().__init__(steps)
        self._canvas, self._tokenizer, self._stop = canvas, tokenizer, stop

    @property
    def ids(self) -> Ints:
        """The answer's tokens as they stand, int64 [answer_length]; what was never reached is still the mask."""
        return self._canvas.tokens[0, self._canvas.region].copy()

    @property
    def text(self) -> str:
        self.finish()
        return self._tokenizer.decode(self._until_stop(self.ids)).strip()

    @property
    def complete(self) -> bool:
        """False when the answer ran into its length before the model ended it."""
        return bool(np.isin(self.ids, list(self._stop)).any())

    def so_far(self, mark: str = "░") -> str:
        pieces, run = [], list[int]()
        for token in self._until_stop(self.ids):
            if token == self._canvas.mask:
                pieces += [self._tokenizer.decode(run), mark]
                run = []
            else:
                run.append(int(token))
        return "".join([*pieces, self._tokenizer.decode(run)])

    def _until_stop(self, ids: Ints) -> Ints:
        ends = np.flatnonzero(np.isin(ids, list(self._stop)))
        return ids[: ends[0]] if ends.size else ids


class Drawing(Stream):
    """A picture in the making. `picture` runs it to its end; `preview` decodes the present guess.

    `codes` is the grid as it stands, int64 [h, w]; `finishing` turns the decoded grid into the final picture.
    """

    def __init__(
        self,
        steps: Iterable[tuple[Step, Ints]],
        decode: Callable[[Ints], Image.Image],
        finishing: Callable[[Image.Image], Image.Image] | None = None,
    ) -> None:
        self.codes: Ints = np.zeros((0, 0), dtype=np.int64)
        self._decode, self._finishing = decode, finishing
        super().__init__(self._follow(steps))

    def _follow(self, steps: Iterable[tuple[Step, Ints]]) -> Iterator[Step]:
        for step, self.codes in steps:
            yield step

    def preview(self) -> Image.Image:
        """The picture if everything still masked were taken at its present guess. Needs at least one step."""
        assert self.last is not None, "there is no step to show yet"
        image = self._decode(self.codes)
        return self._finishing(image) if self._finishing else image

    @property
    def picture(self) -> Image.Image:
        return self.finish().preview()
