"""What a user has in hand while a text or a picture comes into being: an iterator of steps, and a result at its end.

A stream does no work until it is asked for a step or for its result. `result()` runs what is left, which takes seconds to
minutes; so do `Answer.text` and `Drawing.picture`, which are short for a part of it. Every other property says what stands now,
and calls no model. This file knows how ids and codes become text and pictures; it knows nothing of prompts.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmada_lite.calls import checked
from mmada_lite.errors import Error
from mmada_lite.vocabulary import Tokenizer, fault_of, split_thought, unfinished

if TYPE_CHECKING:
    from mmada_lite.decoding.forward import Step
    from mmada_lite.decoding.generate import Decoding
    from mmada_lite.forms.choosing import Choice, Choosing
    from mmada_lite.forms.filling import Filling
    from mmada_lite.forms.rows import Span

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
_log = logging.getLogger("mmada_lite")


@dataclass(frozen=True, slots=True)
class AnswerResult:
    """A finished text.

    text: all of it, as the model wrote it. A model may think first and write `<think> thought </think> answer`: `thought` and
    `answer` are the two parts, thought None and answer the whole text where it does not begin with a thought that was ended.
    ids: int64 [answer_length], the mask where decoding ended before it. complete: False when the answer ran into its length
    before the model ended it. steps, model_calls, seconds: what it took. spans: of a text of which a part was given, what the
    model wrote in each of its holes, and where in `text` it stands. choices: where the answer was one of a few, how likely each
    is; the first of the likeliest is in `text`.
    """

    text: str
    thought: str | None
    answer: str
    ids: Ints
    complete: bool
    steps: int
    model_calls: int
    seconds: float
    spans: "tuple[Span, ...]" = ()
    choices: "tuple[Choice, ...]" = ()


@dataclass(frozen=True, slots=True)
class DrawingResult:
    """A finished picture.

    codes: the grid that it was decoded from, int64 [h, w]. thought: what it was drawn from, without tags, None without
    thinking; thought_fault: why the thought was not used and the picture was drawn from the prompt alone, else None.
    picture: RGB, in pixels what the model draws, or with `extend` that and the new part. steps: of the picture; model_calls,
    seconds: of the picture and its thought.
    """

    picture: Image.Image
    codes: Ints
    thought: str | None
    thought_fault: str | None
    steps: int
    model_calls: int
    seconds: float


class Stream(Iterator["Step"]):
    """Steps as they happen, each a `mmada_lite.decoding.forward.Step`. `last` is the latest step, None before the first; `done`
    is True once there are no more. A step raises Error when memory runs out."""

    def __init__(self, steps: "Iterable[Step]") -> None:
        self._steps = iter(steps)
        self.last: Step | None = None
        self.done = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> "Step":
        try:
            self.last = next(self._steps)
        except StopIteration:
            self.done = True
            raise
        return self.last

    def _run(self) -> tuple[int, int, float]:
        """Run what is left; returns steps, model calls and seconds."""
        for _ in self:
            pass
        return (self.last.index + 1, self.last.model_calls, self.last.seconds) if self.last else (0, 0, 0.0)


class Answer(Stream):
    """A text in the making: iterate over its steps, or wait for `result()`. `so_far` is what stands now.

    Of a model without a tokenizer there are ids alone: every text is empty. Where several lengths of a hole are tried, all that
    says what stands now is of the first of them until the last step.
    """

    def __init__(self, filling: "Filling | Choosing", tokenizer: Tokenizer | None, stop: frozenset[int]) -> None:
        super().__init__(filling.steps)
        self._filling, self._tokenizer, self._stop = filling, tokenizer, stop

    @checked
    def result(self) -> AnswerResult:
        """Run the answer to its end, however long that takes; at once when it is there already."""
        steps, model_calls, seconds = self._run()
        ids, (text, spans) = self.ids, self._read("")
        if self._filling.row.plain:
            text, spans = text.strip(), ()
        thought, answer = split_thought(text)
        complete = self._filling.row.ended(ids, self._stop)
        return AnswerResult(text, thought, answer, ids, complete, steps, model_calls, seconds, spans, self._filling.choices)

    @property
    def text(self) -> str:
        """`result().text`: waits for the whole answer."""
        return self.result().text

    @property
    def ids(self) -> Ints:
        """The answer's tokens as they stand, int64 [answer_length]; what was not reached is the mask. Of an answer of which a
        part was given, with what stands behind it."""
        return self._filling.ids

    @property
    def prompt_length(self) -> int:
        """How many tokens stand before the answer: a step's position counts from the first of them."""
        return self._filling.prompt_length

    @checked
    def so_far(self, mark: str = "░") -> str:
        """The text as it stands up to its end, with `mark` for each mask that is left."""
        return self._read(mark)[0]

    def _read(self, mark: str) -> "tuple[str, tuple[Span, ...]]":
        filling = self._filling
        return filling.row.read(filling.ids, filling.log_probabilities, self._decoded, self._stop, filling.mask, mark)

    def _decoded(self, ids: Iterable[int]) -> str:
        return "" if self._tokenizer is None else self._tokenizer.decode(ids)


class Thinking:
    """What a picture is drawn from: a text in the making, or one that was given, both with their tags.

    `room`: how many tokens of it fit before the picture. `text`, `ids` and `fault` run what is left of the writing, so that a
    drawing asks for them once it is `done`.
    """

    def __init__(self, source: Answer | str, tokenizer: Tokenizer, room: int) -> None:
        self._source, self._tokenizer, self._room = source, tokenizer, room

    def steps(self) -> "Iterator[Step]":
        """What is left of the writing; nothing for a text that was given."""
        return iter(()) if isinstance(self._source, str) else iter(self._source)

    @property
    def last(self) -> "Step | None":
        return None if isinstance(self._source, str) else self._source.last

    @property
    def done(self) -> bool:
        """Whether all of it is there."""
        return isinstance(self._source, str) or self._source.done

    @property
    def so_far(self) -> str:
        return self._source if isinstance(self._source, str) else self._source.so_far()

    @property
    def text(self) -> str:
        """The whole text, tags and all."""
        return self._source if isinstance(self._source, str) else self._source.text

    @property
    def ids(self) -> list[int]:
        """The text as it stands before the picture: read anew, as in training, whatever ids it was written with."""
        return self._tokenizer.encode(self.text)

    @property
    def fault(self) -> str | None:
        """Why nothing can be drawn from it, None when it can be."""
        fault, length = fault_of(self.text), len(self.ids)
        if fault or length <= self._room:
            return fault
        return f"the thought takes {length} tokens where the picture leaves room for {max(0, self._room)}"


class Drawing(Stream):
    """A picture in the making: iterate over its steps, or wait for `result()`. `preview()` decodes what is predicted now.

    `codes` is the grid as it stands, int64 [h, w]; `finishing` turns the decoded grid into the final picture. With `thinking`
    the first steps write a thought: their `predicted_codes` are None, that of a picture's steps never is.
    """

    def __init__(
        self,
        steps: "Iterable[tuple[Step, Ints]]",
        decode: Callable[[Ints], Image.Image],
        finishing: Callable[[Image.Image], Image.Image] | None = None,
        thinking: Thinking | None = None,
    ) -> None:
        self.codes: Ints = np.zeros((0, 0), dtype=np.int64)
        self._decode, self._finishing, self._thinking = decode, finishing, thinking
        self._result: DrawingResult | None = None
        super().__init__(self._follow(steps))

    def _follow(self, steps: "Iterable[tuple[Step, Ints]]") -> "Iterator[Step]":
        for step, self.codes in steps:
            yield step

    @checked
    def result(self) -> DrawingResult:
        """Run the drawing to its end, however long that takes, and decode it; at once when it is there already."""
        if self._result is None:
            steps, model_calls, seconds = self._run()
            picture = self.preview()
            self._result = DrawingResult(picture, self.codes, self.thought, self.thought_fault, steps, model_calls, seconds)
        return self._result

    @property
    def picture(self) -> Image.Image:
        """`result().picture`: waits for the whole drawing."""
        return self.result().picture

    @checked
    def preview(self) -> Image.Image:
        """The picture if everything still masked were taken as it is predicted now: one run of the image decoder. Raises Error
        before the picture's first step."""
        if not self.codes.size:
            raise Error("there is no picture to show yet; read the stream up to a step whose predicted_codes are not None")
        image = self._decode(self.codes)
        return self._finishing(image) if self._finishing else image

    @property
    def thought(self) -> str | None:
        """What the picture is drawn from, without tags; None without thinking, while the thought is being written, and when
        `thought_fault` says why it is not used. It is there when the picture's first step is."""
        if self._thinking is None or not self._thinking.done or self.thought_fault:
            return None
        return split_thought(self._thinking.text)[0]

    @property
    def thought_so_far(self) -> str | None:
        """The thought as it stands, with a mark where masks are left; None without thinking."""
        return None if self._thinking is None else unfinished(self._thinking.so_far)

    @property
    def thought_fault(self) -> str | None:
        """What is wrong with the thought, so that the picture is drawn from the prompt alone; None when nothing is, and while
        the thought is being written."""
        return self._thinking.fault if self._thinking is not None and self._thinking.done else None


def with_codes(decoding: "Decoding", shape: tuple[int, ...]) -> "Iterator[tuple[Step, Ints]]":
    """Each step of one drawing with its codes as they stand, in a grid of this shape."""
    for step in decoding.steps:
        assert step.predicted_codes is not None
        yield step, step.predicted_codes[0].reshape(shape)


def thought_and_drawn(
    thinking: Thinking, begin: "Callable[[list[int] | None], Decoding]", shape: tuple[int, ...]
) -> "Iterator[tuple[Step, Ints]]":
    """The steps of a thought, with no codes yet, then those of the picture; model calls and seconds go on counting. begin: a
    decode of the picture from the thought's ids, or, where nothing can be drawn from it, from none."""
    for step in thinking.steps():
        yield step, np.zeros((0, 0), dtype=np.int64)
    if fault := thinking.fault:
        _log.warning("%s, so the picture is drawn from the prompt alone", fault)
    decoding, last = begin(None if fault else thinking.ids), thinking.last
    model_calls, seconds = (last.model_calls, last.seconds) if last else (0, 0.0)
    for step, codes in with_codes(decoding, shape):
        yield replace(step, model_calls=model_calls + step.model_calls, seconds=seconds + step.seconds), codes


def parts_of(total: int, most: int) -> list[int]:
    """`total` in parts of at most `most`, as few and as equal as can be."""
    return [len(part) for part in np.array_split(np.arange(total), -(-total // most))]


def grown(
    codes: Ints, turns: int, parts: Iterable[int], begin: "Callable[[int, Ints, Bools], Decoding]"
) -> "Iterator[tuple[Step, Ints]]":
    """Grow the top of a grid that is turned so many quarters, then turn it back, part by part: windows of one square, of which
    the older part is given. begin: a decode of part `number`, of codes [h, w] where they are unknown [h, w]."""
    grid, before, width, sizes = np.rot90(codes, turns), 0, codes.shape[0], list(parts)
    for number, part in enumerate(sizes):
        window = np.concatenate([np.zeros((part, width), dtype=np.int64), grid[: width - part]])
        unknown = np.zeros(window.shape, dtype=bool)
        unknown[:part] = True
        decoding = begin(number, np.rot90(window, -turns), np.rot90(unknown, -turns))
        old, done = grid, 0
        for step, square in with_codes(decoding, (width, width)):
            grid, done = np.concatenate([np.rot90(square, turns)[:part], old]), step.model_calls
            moved = replace(
                step,
                index=before + step.index,
                total_steps=(step.total_steps or 0) * len(sizes),
                model_calls=before + step.model_calls,
            )
            yield moved, np.rot90(grid, -turns)
        before += done
