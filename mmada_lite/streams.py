"""What a user holds while a text or a picture comes into being: an iterator of steps that can also be joined.

A stream does no work until it is asked for a step or for its result. It knows how ids and codes become text and
pictures; it knows nothing of prompts.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmada_lite.decoding.canvas import Canvas
from mmada_lite.decoding.forward import Step
from mmada_lite.errors import Error
from mmada_lite.vocabulary import Tokenizer, fault_of, split_thought, unfinished

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
    """A text in the making. `text` runs it to its end; `so_far` is what stands now, with a mark where masks are left.

    A model may think first and write `<think> thought </think> answer`: `thought` and `answer` are the two parts of `text`.
    """

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
    def thought(self) -> str | None:
        """The text between the tags; None when the text does not begin with a thought that was ended."""
        return split_thought(self.text)[0]

    @property
    def answer(self) -> str:
        """What follows the thought; the whole text when there is none."""
        return split_thought(self.text)[1]

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


class Thinking:
    """What a picture is drawn from: a text in the making, or one that was given, both with their tags.

    `room`: how many tokens of it fit before the picture.
    """

    def __init__(self, writing: Answer | str, tokenizer: Tokenizer, room: int) -> None:
        self._writing, self._tokenizer, self._room = writing, tokenizer, room

    def steps(self) -> Iterator[Step]:
        """What is left of the writing; nothing for a text that was given."""
        return iter(()) if isinstance(self._writing, str) else iter(self._writing)

    @property
    def last(self) -> Step | None:
        return None if isinstance(self._writing, str) else self._writing.last

    @property
    def text(self) -> str:
        """The whole text, tags and all. Runs it to its end."""
        return self._writing if isinstance(self._writing, str) else self._writing.text

    @property
    def so_far(self) -> str:
        return self._writing if isinstance(self._writing, str) else self._writing.so_far()

    @property
    def ids(self) -> list[int]:
        """The text as it stands before the picture: read anew, as in training, whatever ids it was written with."""
        return self._tokenizer.encode(self.text)

    @property
    def fault(self) -> str | None:
        """Why nothing can be drawn from it, None when it can be. Runs it to its end."""
        fault, taken = fault_of(self.text), len(self.ids)
        if fault or taken <= self._room:
            return fault
        return f"the thought takes {taken} tokens where the picture leaves room for {max(0, self._room)}"


class Drawing(Stream):
    """A picture in the making. `picture` runs it to its end; `preview` decodes the present guess.

    `codes` is the grid as it stands, int64 [h, w]; `finishing` turns the decoded grid into the final picture. With `thinking`
    the first steps write a thought: their `predicted_codes` are None, that of a picture's steps never is.
    """

    def __init__(
        self,
        steps: Iterable[tuple[Step, Ints]],
        decode: Callable[[Ints], Image.Image],
        finishing: Callable[[Image.Image], Image.Image] | None = None,
        thinking: Thinking | None = None,
    ) -> None:
        self.codes: Ints = np.zeros((0, 0), dtype=np.int64)
        self._decode, self._finishing, self._thinking = decode, finishing, thinking
        super().__init__(self._follow(steps))

    def _follow(self, steps: Iterable[tuple[Step, Ints]]) -> Iterator[Step]:
        for step, self.codes in steps:
            yield step

    def preview(self) -> Image.Image:
        """The picture if everything still masked were taken at its present guess. Raises Error before its first step."""
        if not self.codes.size:
            raise Error("there is no picture to show yet; read the stream up to a step whose predicted_codes are not None")
        image = self._decode(self.codes)
        return self._finishing(image) if self._finishing else image

    @property
    def thought(self) -> str | None:
        """What the picture is drawn from, without tags: None without thinking, and when `thought_fault` says why. Runs the
        thought to its end, and draws nothing."""
        if self._thinking is None or self.thought_fault:
            return None
        return split_thought(self._thinking.text)[0]

    @property
    def thought_so_far(self) -> str | None:
        """The thought as it stands, with a mark where masks are left; None without thinking."""
        return None if self._thinking is None else unfinished(self._thinking.so_far)

    @property
    def thought_fault(self) -> str | None:
        """What is wrong with the thought, so that the picture is drawn from the prompt alone; None when nothing is. Runs the
        thought to its end."""
        if self._thinking is None:
            return None
        fault = self._thinking.fault
        if self.last is None or self.last.predicted_codes is None:
            self.last = self._thinking.last
        return fault

    @property
    def picture(self) -> Image.Image:
        return self.finish().preview()
