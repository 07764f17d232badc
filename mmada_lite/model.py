"""What a user touches: load a bundle, then chat, ask about a picture, paint, inpaint, extend.

It puts canvases, denoiser, codec and loops together. How a bundle is opened is `mmada_lite.ort.loader`'s; how a token is chosen
and how a graph runs is written elsewhere too.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmada_lite import images
from mmada_lite.decoding.canvas import (
    Canvas,
    image_canvas,
    paint_prompt,
    picture_prompt,
    text_canvas,
    thinking_prompt,
    thought_prompt,
)
from mmada_lite.decoding.forward import Step
from mmada_lite.decoding.image import decode_image
from mmada_lite.decoding.sampling import PhiloxSampler
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.decoding.text import decode_text
from mmada_lite.errors import Error
from mmada_lite.images import Codec, Picture
from mmada_lite.ort.loader import OpenBundle, open_bundle, open_codec
from mmada_lite.streams import Answer, Drawing, Thinking
from mmada_lite.vocabulary import Tokenizer, chat_ids, closing_ids, with_tags

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Messages = str | Sequence[Mapping[str, str]]
Side = Literal["left", "right", "top", "bottom"]
SIDES: dict[str, int] = {"top": 0, "right": 1, "bottom": 2, "left": 3}  # quarter turns that bring the side to the top
EMBEDDED = "emoji"
_log = logging.getLogger("mmada_lite")


def embedded_bundle() -> Path:
    """The folder of the small model that comes with the package."""
    return Path(__file__).parent / "models" / EMBEDDED


def load(
    path: str | Path | None = None,
    *,
    device: str = "auto",
    threads: int | None = None,
    verify: str = "auto",
    speed: str = "exact",
) -> "Model":
    """Open a bundle; without a path, the small model that comes with the package.

    device: auto, cpu, cuda, rtx (TensorRT-RTX) or tensorrt; auto takes the best that works, and the model's `device.reason`
    says why. threads: per operation, default one per usable core. verify: "auto" checks the sha256 of every file of bundles up
    to 256 MiB and the sizes of larger ones, "full" every sha256. speed: "exact", "balanced" or "fast", for the model's
    default settings (docs/decoding.md).
    Raises Error when the bundle is missing, damaged or newer than this program, or the device is not there.
    """
    folder = Path(path) if path is not None else embedded_bundle()
    return Model(open_bundle(folder, device=device, threads=threads, verify=verify, speed=speed))


class Model:
    """A loaded bundle. Every method returns a stream of steps at once and does its work as the stream is read."""

    def __init__(self, opened: OpenBundle) -> None:
        self.bundle, self.device, self.vocabulary = opened.bundle, opened.device, opened.bundle.vocabulary
        self.text_defaults, self.image_defaults = opened.text_defaults, opened.image_defaults
        self.denoiser = opened.denoiser
        self._tokenizer, self._threads, self._fingerprints = opened.tokenizer, opened.threads, opened.fingerprints
        self._codec: Codec | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise Error(f"{self.bundle.path} has no tokenizer.json, so it cannot read text; export it with its tokenizer")
        return self._tokenizer

    @property
    def codec(self) -> Codec:
        """The image tokenizer, opened at first use."""
        if self._codec is None:
            self._fingerprints.check()
            self._codec = open_codec(self.bundle, self.device, self._threads)
        return self._codec

    def chat(self, messages: Messages, settings: TextSettings | None = None, *, seed: int = 0) -> Answer:
        """Answer a message, or a conversation of {"role", "content"} mappings. Raises Error when it is empty or too long."""
        return self._answer([], messages, settings, seed)

    def ask(
        self,
        picture: Picture,
        question: Messages,
        settings: TextSettings | None = None,
        *,
        seed: int = 0,
        fit: images.Fit = "crop",
    ) -> Answer:
        """Answer a question about a picture. `fit` says how the picture becomes square: "crop" or "squash"."""
        image = images.fit(images.open_picture(picture), self.codec.resolution, fit)
        codes = self.codec.encode(images.to_pixels(image))
        return self._answer(picture_prompt(codes, self.vocabulary), question, settings, seed)

    def paint(self, prompt: str, settings: ImageSettings | None = None, *, seed: int = 0, think: bool | str = False) -> Drawing:
        """Draw a picture from a sentence.

        With `think` the model first writes where everything goes (with the bundle's text settings) and then draws what it
        wrote; a string is a thought that you give. A thought that cannot be drawn from is reported as a warning and in the
        drawing's `thought_fault`, and the picture is drawn from the prompt alone.
        """
        blank = np.zeros((self.codec.grid, self.codec.grid), dtype=np.int64)
        plain = self._image_canvas(prompt, blank, blank == 0, settings)
        if think is False:
            return Drawing(self._draw(plain, blank.shape, settings, seed), self.codec.decode)
        thinking = self._think(prompt, think, blank.size, seed)
        steps = self._think_and_draw(prompt, thinking, plain, blank, settings, seed)
        return Drawing(steps, self.codec.decode, thinking=thinking)

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
        """
        original = images.open_picture(picture)
        covered = images.open_mask(mask, original.size)
        image = images.fit(original, self.codec.resolution)
        shade = images.fit(Image.fromarray(covered.astype(np.uint8) * 255), self.codec.resolution)
        cells = images.cells_under(np.asarray(shade) >= 128, self.codec.downsample)
        if not cells.any():
            raise Error("the mask covers nothing of the picture's central square; paint white what is to be drawn anew")
        codes = self.codec.encode(images.to_pixels(image))[0]
        canvas = self._image_canvas(prompt, codes, cells, settings)
        steps = self._draw(canvas, codes.shape, settings, seed)
        return Drawing(steps, self.codec.decode, images.keeping(image, ~cells, self.codec.downsample) if keep_pixels else None)

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

        The picture is cut to its central square first; the result is that square with the new part beside it.
        """
        if side not in SIDES:
            raise Error(f"no side is called {side!r}; use one of {', '.join(SIDES)}")
        new = round(amount * self.codec.grid) if 0 < amount <= 4 else 0
        if new < 1:
            raise Error(f"cannot extend by {amount}; use a share of the side from {1 / self.codec.grid:.3g} to 4")
        image = images.fit(images.open_picture(picture), self.codec.resolution)
        codes = self.codec.encode(images.to_pixels(image))[0]
        parts = _parts(new, max(1, self.codec.grid // 2))
        smallest = np.arange(codes.size).reshape(codes.shape) < min(parts) * self.codec.grid
        self._image_canvas(prompt, codes, smallest, settings)  # for its errors, before any work
        steps = self._grow(prompt, codes, settings, side, parts, seed)
        return Drawing(steps, self.codec.decode, images.pasted(image, side) if keep_pixels else None)

    def _answer(self, before: list[int], messages: Messages, settings: TextSettings | None, seed: int) -> Answer:
        self._fingerprints.check()
        chosen = settings or self.text_defaults
        conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        special = self.vocabulary.special
        prompt = before + chat_ids(self.tokenizer, special, conversation)
        self._fits(len(prompt) + chosen.answer_length, "the conversation with its answer")
        return self._write(prompt, chosen, seed)

    def _write(self, prompt: list[int], chosen: TextSettings, seed: int) -> Answer:
        if (ahead := chosen.acceleration.speculative_steps) > 1 and self.device.name != "cpu":
            raise Error(
                f"speculative_steps {ahead} is for the CPU and this model is on {self.device.name}; use speculative_steps 1"
            )
        special = self.vocabulary.special
        canvas = text_canvas(prompt, chosen.answer_length, special, guided=chosen.guidance > 0)
        sampler = PhiloxSampler(seed, chosen.temperature, canvas.start)
        stop = frozenset({special.eos, special.eot})
        steps = decode_text(self.denoiser, canvas, chosen, sampler, stop, closing_ids(self.tokenizer))
        return Answer(steps, canvas, self.tokenizer, stop)

    def _think(self, prompt: str, think: bool | str, codes: int, seed: int) -> Thinking:
        """The thought before a picture of so many codes: begun, or given. Raises Error when it cannot fit."""
        plan = thinking_prompt(self.tokenizer.encode(prompt.strip()), self.vocabulary.special)
        beside = len(plan) + codes + 3  # eos, soi, eoi
        room = self.bundle.architecture.max_sequence_length - beside
        if isinstance(think, str):
            given = Thinking(with_tags(think), self.tokenizer, room)
            self._fits(beside + len(given.ids), "the prompt with its thought and picture")
            return given
        self._fits(len(plan) + self.text_defaults.answer_length, "the prompt with its thought")
        return Thinking(self._write(plan, self.text_defaults, seed), self.tokenizer, room)

    def _think_and_draw(
        self, prompt: str, thinking: Thinking, plain: Canvas, blank: Ints, settings: ImageSettings | None, seed: int
    ) -> Iterator[tuple[Step, Ints]]:
        """The steps of the thought, with no codes yet, then those of the picture; model calls and seconds go on counting."""
        for step in thinking.steps():
            yield step, np.zeros((0, 0), dtype=np.int64)
        canvas, model_calls, seconds = plain, 0, 0.0
        if fault := thinking.fault:
            _log.warning("%s, so the picture is drawn from the prompt alone", fault)
        else:
            canvas = self._image_canvas(prompt, blank, blank == 0, settings, thinking.ids)
        if thinking.last:
            model_calls, seconds = thinking.last.model_calls, thinking.last.seconds
        for step, codes in self._draw(canvas, blank.shape, settings, seed):
            yield replace(step, model_calls=model_calls + step.model_calls, seconds=seconds + step.seconds), codes

    def _image_canvas(
        self,
        prompt: str,
        codes: Ints,
        unknown: Bools,
        settings: ImageSettings | None,
        thought: Sequence[int] | None = None,
    ) -> Canvas:
        self._fingerprints.check()
        chosen = settings or self.image_defaults
        if not prompt.strip():
            raise Error("the prompt is empty; say what is to be drawn")
        special, text = self.vocabulary.special, self.tokenizer.encode(prompt.strip())
        ids = paint_prompt(text, special) if thought is None else thought_prompt(text, thought, special)
        self._fits(len(ids) + codes.size + 2, "the prompt with its picture")
        if settings is not None and chosen.steps > unknown.sum():
            raise Error(f"{chosen.steps} steps for {unknown.sum()} codes: a step draws at least one; use fewer steps")
        nothing = paint_prompt([], special) if chosen.guidance > 0 else None
        return image_canvas(ids, codes, unknown, self.vocabulary, unconditional_prompt=nothing)

    def _draw(
        self, canvas: Canvas, shape: tuple[int, ...], settings: ImageSettings | None, seed: int
    ) -> Iterator[tuple[Step, Ints]]:
        chosen = settings or self.image_defaults
        chosen = chosen.replace(steps=min(chosen.steps, int(canvas.masked().sum())))  # only the default is ever cut
        sampler = PhiloxSampler(seed, chosen.sampling_temperature, canvas.start)
        for step in decode_image(self.denoiser, canvas, chosen, sampler):
            assert step.predicted_codes is not None
            yield step, step.predicted_codes[0].reshape(shape)

    def _grow(
        self, prompt: str, codes: Ints, settings: ImageSettings | None, side: Side, parts: list[int], seed: int
    ) -> Iterator[tuple[Step, Ints]]:
        """Extend the top of a turned grid, then turn back: windows of one square, of which the older part is given."""
        turns, width = SIDES[side], self.codec.grid
        grid, before = np.rot90(codes, turns), 0
        for number, part in enumerate(parts):
            window = np.concatenate([np.zeros((part, width), dtype=np.int64), grid[: width - part]])
            unknown = np.zeros(window.shape, dtype=bool)
            unknown[:part] = True
            canvas = self._image_canvas(prompt, np.rot90(window, -turns), np.rot90(unknown, -turns), settings)
            old, done = grid, 0
            for step, square in self._draw(canvas, (width, width), settings, seed + number):
                grid, done = np.concatenate([np.rot90(square, turns)[:part], old]), step.model_calls
                moved = replace(
                    step,
                    index=before + step.index,
                    total_steps=(step.total_steps or 0) * len(parts),
                    model_calls=before + step.model_calls,
                )
                yield moved, np.rot90(grid, -turns)
            before += done

    def _fits(self, length: int, what: str) -> None:
        longest = self.bundle.architecture.max_sequence_length
        if length > longest:
            raise Error(f"{what} takes {length} tokens and the model reads {longest}; shorten it by {length - longest}")


def _parts(total: int, most: int) -> list[int]:
    """`total` in parts of at most `most`, as few and as equal as can be."""
    return [len(part) for part in np.array_split(np.arange(total), -(-total // most))]
