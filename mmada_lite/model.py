"""What a user touches: load a bundle, then chat, ask about a picture, paint, inpaint, extend; the same from ids, and the way
between ids and words, codes and pictures.

It turns words and pictures into ids and checks them. How a bundle is opened is `mmada_lite.ort.loader`'s; how ids are decoded
is `mmada_lite.decoding.generate`'s.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from mmada_lite import images
from mmada_lite.calls import checked, conversation
from mmada_lite.decoding import rows
from mmada_lite.decoding.arrays import flags_of, numbers_of, size_of
from mmada_lite.decoding.settings import ImageSettings, Law, TextSettings
from mmada_lite.errors import Error
from mmada_lite.forms.wanted import Schema, Wanted
from mmada_lite.images import Codec, Picture
from mmada_lite.ort.cores import usable_cores
from mmada_lite.ort.loader import OpenBundle, open_bundle
from mmada_lite.streams import Answer, Drawing, Thinking, grown, parts_of, thought_and_drawn, with_codes
from mmada_lite.vocabulary import Tokenizer, with_tags

if TYPE_CHECKING:
    from mmada_lite.decoding.forward import Step
    from mmada_lite.decoding.generate import Decoding
    from mmada_lite.forms.writer import Score, Writer, Writing

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Messages = str | Mapping[str, Any] | Sequence[Mapping[str, Any]]
Side = Literal["left", "right", "top", "bottom"]
SIDES: dict[str, int] = {"top": 0, "right": 1, "bottom": 2, "left": 3}  # quarter turns that bring the side to the top
MOST_SQUARES = 16  # whole pictures of the model's that are decoded at once: a picture that grew is 5 at most
EMBEDDED = "emoji"
_log = logging.getLogger("mmada_lite")


def embedded_bundle() -> Path:
    """The folder of the small model that comes with the package."""
    return Path(__file__).parent / "models" / EMBEDDED


@checked
def load(
    path: str | Path | None = None,
    *,
    device: str = "auto",
    threads: int | None = None,
    verify: str = "auto",
    speed: str = "exact",
) -> "Model":
    """Open a bundle; without a path, the small model that comes with the package.

    device: auto, cpu, cuda, rtx (TensorRT-RTX), tensorrt or openvino (openvino:gpu, openvino:npu); auto takes the best that
    works, and `device.reason` says why. threads: per operation, default one per usable core. verify: "auto" checks the sha256
    of every file, of bundles above 256 MiB while the first answer is made, and of unchanged files once; "full" does it before
    anything runs. speed: "exact", "balanced" or "fast", for the model's default settings (docs/speed.md).
    Raises Error when the bundle is missing, damaged or newer than this program, or the device is not there.
    """
    folder = Path(path) if path is not None else embedded_bundle()
    if threads is not None and threads > (cores := usable_cores()):
        _log.warning("threads %d is more than the %d cores that may be used, so it is %d", threads, cores, cores)
        threads = cores
    try:
        return Model(open_bundle(folder, device=device, threads=threads, verify=verify, speed=speed))
    except OSError as fault:
        raise Error(f"{folder} cannot be read: {fault.strerror or fault}; check the path and who owns it") from fault


class Model:
    """A loaded bundle. `chat`, `ask`, `fill`, `paint`, `inpaint`, `extend`, `complete` and `draw` return a stream of steps at
    once and do their work as it is read; what is wrong with their arguments is raised at once.

    A picture is a path, the bytes of a file, an open file, a pillow image or an array. settings: None takes `text_defaults` or
    `image_defaults`; `model.text_defaults.replace(steps=8)` changes some. seed: 0 .. 2**64 - 1; the same gives the same result.

    bundle: what bundle.json says. device: where it runs, `name` and `reason`. vocabulary: special ids and how many there are.
    denoiser: what `mmada_lite.decoding.generate` decodes with, many rows at once.
    """

    @checked
    def __init__(self, opened: OpenBundle) -> None:
        self.bundle, self.device, self.vocabulary = opened.bundle, opened.device, opened.bundle.vocabulary
        self.text_defaults, self.image_defaults = opened.text_defaults, opened.image_defaults
        self.denoiser = opened.denoiser
        self._tokenizer, self._open_codec, self._fingerprints = opened.tokenizer, opened.open_codec, opened.fingerprints
        self._await_hashes = opened.await_hashes
        self._codec: Codec | None = None

    @cached_property
    def _writer(self) -> "Writer":
        from mmada_lite.forms.writer import Writer  # a picture is drawn sooner without

        return Writer(lambda: self.denoiser, self.vocabulary, self._tokenizer, self._fits, self._watched, self._alone)

    @property
    def tokenizer(self) -> Tokenizer:
        """Text to ids and back. Raises Error where the bundle has no tokenizer.json."""
        if self._tokenizer is None:
            raise Error(f"{self.bundle.path} has no tokenizer.json, so it cannot read text; export it with its tokenizer")
        return self._tokenizer

    @property
    def codec(self) -> Codec:
        """The image tokenizer, opened at first use: `grid` codes and `resolution` pixels a side, `downsample` a code.
        Raises Error where the bundle has no pictures, or its files have changed since it was opened."""
        if self._codec is None:
            self._fingerprints.check()
            self._codec = self._open_codec()
        return self._codec

    @checked
    def chat(
        self,
        messages: Messages,
        settings: TextSettings | None = None,
        *,
        answer: str | None = None,
        choices: Sequence[str] | None = None,
        pattern: str | None = None,
        schema: Schema | None = None,
        seed: int = 0,
    ) -> Answer:
        """Answer a message, or a conversation of {"role": ..., "content": ...} mappings by "system", "user" and "assistant".

        A content may be a list of {"type": "text", "text": ...} and {"type": "image", "image": picture}; with one, see `ask`.
        answer: a part of the answer that is given: how it begins, or, with holes (docs/fill.md), all of it but these.
        choices, pattern (a regular expression), schema (of JSON): one of them says what the answer must be, or its holes.
        Raises Error when it is empty, too long for the model with its answer, or the bundle has no tokenizer, and for an
        `answer` that is empty or longer than `answer_length`.
        """
        return self._answer(messages, None, settings, seed, "crop", answer, Wanted.of(choices, pattern, schema))

    @checked
    def ask(
        self,
        picture: Picture,
        question: Messages,
        settings: TextSettings | None = None,
        *,
        answer: str | None = None,
        choices: Sequence[str] | None = None,
        pattern: str | None = None,
        schema: Schema | None = None,
        seed: int = 0,
        fit: images.Fit = "crop",
    ) -> Answer:
        """Answer a question about a picture. fit: how the picture becomes square, "crop" its centre or "squash" its sides.
        answer, choices, pattern, schema: as in `chat`.

        Raises Error as `chat` does, for what is no picture, and where the bundle has no pictures.
        """
        return self._answer(question, [picture], settings, seed, fit, answer, Wanted.of(choices, pattern, schema))

    @checked
    def fill(
        self,
        text: str,
        settings: TextSettings | None = None,
        *,
        choices: Sequence[str] | None = None,
        pattern: str | None = None,
        schema: Schema | None = None,
        seed: int = 0,
    ) -> Answer:
        """Fill the holes of a text: `[mask:3]` of three tokens, `[mask:*]` of unknown length (docs/fill.md).

        The result's `text` is the whole text, `spans` is what the holes got. All else stays as it is, and `answer_length` is of
        no account but for the steps that a token gets. Raises Error for a text without a hole, a hole that cannot be, a text
        that is too long for the model, and where the bundle has no tokenizer.
        """
        prompt, wanted = rows.text_prompt(self.tokenizer, self.vocabulary), Wanted.of(choices, pattern, schema)
        chosen = settings or self.text_defaults
        return self._answered(self._writer.filled(prompt, text, chosen, seed, "the text with its holes", wanted))

    @checked
    def score(
        self,
        text: str,
        span: tuple[int, int] | None = None,
        settings: TextSettings | None = None,
        *,
        messages: Messages | None = None,
        law: Law = "chain",
        draws: int = 128,
        seed: int = 0,
    ) -> "Score":
        """How likely the characters span[0] to span[1] - 1 of a text are, all of it without a span, given the rest; with
        messages, as their answer. law, draws: as in `mmada_lite.decoding.score.score`. Raises Error as `fill` and `chat` do."""
        known, chosen = (self.tokenizer, self.vocabulary), settings or self.text_defaults
        prompt = rows.text_prompt(*known) if messages is None else rows.chat_ids(*known, conversation(messages)[0])
        return self._writer.scored(prompt, text, span or (0, len(text)), chosen, law, draws, seed, "the text")

    @checked
    def paint(self, prompt: str, settings: ImageSettings | None = None, *, seed: int = 0, think: bool | str = False) -> Drawing:
        """Draw a picture from a sentence.

        With `think` the model first writes where everything goes (with the bundle's text settings) and then draws what it
        wrote; a string is a thought that you give, without tags. A thought that cannot be drawn from is reported as a warning
        and in the drawing's `thought_fault`, and the picture is drawn from the prompt alone.

        Raises Error for an empty prompt, one that is too long with its picture, more steps than codes, and where the bundle
        has no pictures or no tokenizer.
        """
        blank = np.zeros((self.codec.grid, self.codec.grid), dtype=np.int64)
        plain = self._paint(prompt, blank, blank == 0, settings, seed)
        if think is False:
            return self._drawing(plain, blank.shape)
        thinking = self._think(prompt, think, blank.size, seed)

        def begin(thought: list[int] | None) -> "Decoding":
            return plain if thought is None else self._paint(prompt, blank, blank == 0, settings, seed, thought)

        return Drawing(thought_and_drawn(thinking, begin, blank.shape), self.codec.decode, thinking=thinking)

    @checked
    def inpaint(
        self,
        picture: Picture,
        mask: Picture,
        prompt: str,
        settings: ImageSettings | None = None,
        *,
        seed: int = 0,
        keep_pixels: bool = True,
    ) -> Drawing:
        """Draw anew what the mask covers (white; same size as the picture). Codes elsewhere are given and never change.

        The picture is cut to its central square first. With `keep_pixels`, cells that the mask does not touch keep the
        picture's own pixels; without, they pass through the image tokenizer too.
        Raises Error as `paint` does, for what is no picture, and for a mask of another size or with no white in that square.
        """
        original = images.open_picture(picture)
        covered, image = images.open_mask(mask, original.size), images.fit(original, self.codec.resolution)
        cells = images.cells_under(images.fit_mask(covered, self.codec.resolution), self.codec.downsample)
        if not cells.any():
            raise Error("the mask covers nothing of the picture's central square; paint white what is to be drawn anew")
        codes = self._codes(image)
        finishing = images.keeping(image, ~cells, self.codec.downsample) if keep_pixels else None
        decoding = self._paint(prompt, codes, cells, settings, seed)
        images.say_if_smaller(original.size, image.size)
        return self._drawing(decoding, codes.shape, finishing)

    @checked
    def extend(
        self,
        picture: Picture,
        prompt: str,
        settings: ImageSettings | None = None,
        *,
        side: Side = "right",
        amount: float = 0.5,
        seed: int = 0,
        keep_pixels: bool = True,
    ) -> Drawing:
        """Grow a picture beyond one border by `amount` of its side (up to 4), at most half a side at a time.

        side: left, right, top or bottom. The picture is cut to its central square first; the result is that square with the
        new part beside it. With `keep_pixels`, the square keeps the picture's own pixels. Raises Error as `paint` does, for
        what is no picture, for another side, and for an amount that is no code wide or above 4.
        """
        new = round(amount * self.codec.grid) if 0 < amount <= 4 else 0
        if new < 1:
            raise Error(f"cannot extend by {amount}; use a share of the side from {1 / self.codec.grid:.3g} to 4")
        original = images.open_picture(picture)
        image = images.fit(original, self.codec.resolution)
        codes = self._codes(image)
        parts = parts_of(new, max(1, self.codec.grid // 2))
        if seed + len(parts) > 2**64:
            raise Error(f"the seed is out of range; each of the {len(parts)} parts takes the next one, up to 2**64 - 1")
        smallest = np.arange(codes.size).reshape(codes.shape) < min(parts) * self.codec.grid
        self._paint(prompt, codes, smallest, settings, seed)  # for its errors, before any work
        upright = (image.width, image.height + new * self.codec.downsample)
        images.say_if_smaller(original.size, upright if SIDES[side] % 2 == 0 else upright[::-1])

        def begin(number: int, window: Ints, unknown: Bools) -> "Decoding":
            return self._paint(prompt, window, unknown, settings, seed + number)

        steps = grown(codes, SIDES[side], parts, begin)
        return Drawing(steps, self.codec.decode, images.pasted(image, side) if keep_pixels else None)

    @checked
    def complete(
        self,
        prompt: Sequence[int],
        settings: TextSettings | None = None,
        *,
        answer: Sequence[int] | None = None,
        seed: int = 0,
    ) -> Answer:
        """The text that follows a row of ids, for a host with a tokenizer of its own: the whole row before the answer, with
        headers and pictures. Masks in it are written too. answer: ids in place of `answer_length` masks; its masks are written
        and the others stay.

        Raises Error for ids that the model has not, when there is no room, and for an answer without a mask. Many rows at once:
        `decoding.generate.complete`.
        """
        ids, chosen, what = self._ids(prompt), settings or self.text_defaults, "the conversation with its answer"
        if answer is None:
            return self._answered(self._writer.whole(ids, chosen, seed, what))
        return self._answered(self._writer.of_ids(ids, self._ids(answer), chosen, seed, what))

    @checked
    def draw(
        self,
        words: Sequence[int],
        codes: ArrayLike,
        unknown: ArrayLike,
        settings: ImageSettings | None = None,
        *,
        seed: int = 0,
    ) -> Drawing:
        """The picture of a sentence whose ids are given, the words alone. codes [h, w]: 0 .. codebook_size - 1, given where
        `unknown` [h, w] is false, and these never change.

        Raises Error for ids or codes that the model has not, when nothing is unknown, when there is no room, and for more steps
        than unknown codes. Many rows at once: `decoding.generate.draw`.
        """
        self._fingerprints.check()
        cells = flags_of(unknown, grid := self._grid(codes))
        row = rows.paint_prompt(self._ids(words), self.vocabulary)
        return self._drawing(self._draw(row, grid, cells, settings, seed), grid.shape)

    @checked
    def encode(self, text: str) -> list[int]:
        """Ids of a text; special spellings in it stay text. Raises Error where the bundle has no tokenizer."""
        return self.tokenizer.encode(text)

    @checked
    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special tokens and picture codes are left out. Raises Error where the bundle has no tokenizer."""
        return self.tokenizer.decode(self._ids(ids))

    @checked
    def codes_of(self, picture: Picture, fit: images.Fit = "crop") -> Ints:
        """Codes int64 [h, w], 0 .. codebook_size - 1, of a picture that is made square and of the model's size first ("crop"
        or "squash"). Raises Error where the bundle has no pictures, or for what is no picture."""
        return self._codes(images.fit(images.open_picture(picture), self.codec.resolution, fit))

    @checked
    def picture_of(self, codes: ArrayLike) -> Image.Image:
        """The picture of codes [h, w], `codec.downsample` pixels a side for each. Raises Error for codes that the model has
        not."""
        grid, most = self._grid(codes), MOST_SQUARES * self.codec.grid**2
        if grid.size > most:
            raise Error(f"the codes are {size_of(grid)} and at most {most} are decoded at once; cut them into parts")
        self._await_hashes()
        return self.codec.decode(grid)

    def _answer(
        self,
        messages: Messages,
        given: list[Picture] | None,
        settings: TextSettings | None,
        seed: int,
        fit: images.Fit,
        answer: str | None,
        wanted: Wanted | None,
    ) -> Answer:
        said, shown = conversation(messages)
        pictures = [*(given or []), *shown]
        if len(pictures) > 1:
            raise Error(f"the conversation has {len(pictures)} pictures and the model sees one; leave the others out")
        before = rows.picture_prompt(self.codes_of(pictures[0], fit), self.vocabulary) if pictures else []
        prompt, chosen = before + rows.chat_ids(self.tokenizer, self.vocabulary, said), settings or self.text_defaults
        what = "the conversation with its answer"
        if answer is None:
            return self._answered(self._writer.whole(prompt, chosen, seed, what, wanted))
        return self._answered(self._writer.begun(prompt, answer, chosen, seed, what, wanted))

    def _alone(self) -> str:
        return "" if self.device.name == "cpu" else f"and this model is on {self.device.name}"

    def _answered(self, writing: "Writing") -> Answer:
        return Answer(writing, self._tokenizer, writing.stop)

    def _think(self, prompt: str, think: bool | str, codes: int, seed: int) -> Thinking:
        """The thought before a picture of so many codes: begun, or given. Raises Error when it cannot fit."""
        text = self.tokenizer.encode(prompt.strip())
        plan = rows.thinking_prompt(text, self.vocabulary)
        beside = len(rows.thought_prompt(text, [], self.vocabulary)) + codes + len(rows.picture_end(self.vocabulary))
        room = self.bundle.architecture.max_sequence_length - beside
        if isinstance(think, str):
            given = Thinking(with_tags(think), self.tokenizer, room)
            self._fits(beside + len(given.ids), "the prompt with its thought and picture")
            return given
        answer = self._answered(self._writer.whole(plan, self.text_defaults, seed, "the prompt with its thought"))
        return Thinking(answer, self.tokenizer, room)

    def _paint(
        self,
        prompt: str,
        codes: Ints,
        unknown: Bools,
        settings: ImageSettings | None,
        seed: int,
        thought: Sequence[int] | None = None,
    ) -> "Decoding":
        """Draw the unknown codes of a grid [h, w] from a sentence and, with one, from a thought about it."""
        self._fingerprints.check()
        if not prompt.strip():
            raise Error("the prompt is empty; say what is to be drawn")
        text, words = self.tokenizer.encode(prompt.strip()), self.vocabulary
        row = rows.paint_prompt(text, words) if thought is None else rows.thought_prompt(text, thought, words)
        return self._draw(row, codes, unknown, settings, seed)

    def _draw(self, row: Sequence[int], codes: Ints, unknown: Bools, settings: ImageSettings | None, seed: int) -> "Decoding":
        self._fits(len(row) + codes.size + len(rows.picture_end(self.vocabulary)), "the prompt with its picture")
        if settings is not None and settings.steps > unknown.sum():  # only the default is ever cut
            raise Error(f"{settings.steps} steps for {unknown.sum()} codes: a step draws at least one; use fewer steps")
        from mmada_lite.decoding import generate  # a model loads sooner without

        begun = generate.draw(self.denoiser, row, codes, unknown, settings or self.image_defaults, self.vocabulary, seed=seed)
        return replace(begun, steps=self._watched(begun.steps))

    def _watched(self, steps: "Iterator[Step]") -> "Iterator[Step]":
        """Steps that end once every file of the bundle is known to be sound, and in an Error where one is not."""
        self._fingerprints.check()

        def until_sound() -> "Iterator[Step]":
            yield from steps
            self._await_hashes()

        return until_sound()

    def _drawing(self, decoding: "Decoding", shape: tuple[int, ...], finishing: images.Finishing | None = None) -> Drawing:
        return Drawing(with_codes(decoding, shape), self.codec.decode, finishing)

    def _codes(self, square: Image.Image) -> Ints:
        return np.asarray(self.codec.encode(images.to_pixels(square))[0])

    def _ids(self, ids: Iterable[int]) -> list[int]:
        return [int(each) for each in numbers_of(ids, "id", self.vocabulary.size, 1)]

    def _grid(self, codes: ArrayLike) -> Ints:
        return numbers_of(codes, "code", self.vocabulary.codebook_size, 2)

    def _fits(self, length: int, what: str) -> None:
        longest = self.bundle.architecture.max_sequence_length
        if length > longest:
            raise Error(f"{what} takes {length} tokens and the model reads {longest}; shorten it by {length - longest}")
