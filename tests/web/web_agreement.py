"""When a drawing in a browser counts as the drawing in Python: the same codes at every step, or a first difference that lies
on the border between two codes, where another order of additions may decide otherwise."""

import json
from typing import Any

import numpy as np
from browser import Page
from numpy.typing import NDArray

import mmada_lite
from mmada_lite.decoding.canvas import Canvas, image_canvas
from mmada_lite.decoding.denoiser import Denoiser, Floats, Head, Ints, Prediction
from mmada_lite.decoding.image import decode_image
from mmada_lite.decoding.rows import paint_prompt, unconditional_prompt
from mmada_lite.decoding.sampling import PhiloxSampler, Stream, uniform
from mmada_lite.decoding.settings import ImageSettings, plain

BORDER = 1e-4  # of a cumulative probability: ten times what two ways of adding differ by


def painted(page: Page, model: str, caption: str, settings: ImageSettings, seed: int) -> list[dict[str, Any]]:
    """The steps that a model in the page makes, called by name and not through the form."""
    script = f"{model}.paint({json.dumps(caption)}, {json.dumps(plain(settings))}, {seed}n)"
    steps = page.run(
        f"const all = []; for await (const {{predictedCodes, masked}} of {script}) all.push({{predictedCodes, masked}}); "
        "return all"
    )
    return list(steps)


class Watching:
    """A sampler that writes down, for each step, the borders between codes [Q, V] and the numbers [Q] that fell on them."""

    def __init__(self, sampler: PhiloxSampler) -> None:
        self._sampler = sampler
        self.draws: dict[int, tuple[NDArray[np.float64], NDArray[np.float32]]] = {}

    def draw(self, denoiser: Denoiser, head: Head, hidden: Floats, mix: Floats, step: int, positions: Ints) -> Prediction:
        if self._sampler.temperature > 0:
            logits = denoiser.logits(head, hidden, mix)[0].astype(np.float64) / self._sampler.temperature
            borders = np.cumsum(np.exp(logits - logits.max(axis=1, keepdims=True)), axis=1)
            draws = uniform(self._sampler.seed, Stream.IMAGE_CODE, step, 0, positions[0] - self._sampler.start)
            for place, border, number in zip(positions[0] - self._sampler.start, borders / borders[:, -1:], draws, strict=True):
                self.draws[int(place)] = border, number
        return self._sampler.draw(denoiser, head, hidden, mix, step, positions)

    def order(self, head: Head, step: int, positions: Ints) -> Floats:
        return self._sampler.order(head, step, positions)


def drawing_of(
    model: mmada_lite.Model, caption: str, seed: int, settings: ImageSettings
) -> tuple[Denoiser, Canvas, ImageSettings, Watching]:
    """What the loop of pictures takes, for a caption."""
    codes = np.zeros(model.codec.grid**2)
    prompt, nothing = paint_prompt(model.encode(caption), model.vocabulary), unconditional_prompt(model.vocabulary)
    canvas = image_canvas(prompt, codes, codes == 0, model.vocabulary, unconditional_prompt=nothing)
    return model.denoiser, canvas, settings, Watching(PhiloxSampler(seed, settings.sampling_temperature, canvas.start))


def agree(theirs: list[dict[str, Any]], model: mmada_lite.Model, caption: str, seed: int, settings: ImageSettings) -> bool:
    """True when every step in Python has the same codes. Else the first that differs must do so on a border."""
    denoiser, canvas, settings, sampler = drawing_of(model, caption, seed, settings)
    for step, their in zip(decode_image(denoiser, canvas, settings, sampler), theirs, strict=True):
        assert step.predicted_codes is not None
        different = np.flatnonzero(step.predicted_codes[0] != their["predictedCodes"])
        for place in different:
            border, number = sampler.draws[int(place)]
            code = their["predictedCodes"][place]
            below = border[code - 1] if code else 0.0
            assert below - BORDER <= number <= border[code] + BORDER, f"step {step.index}, place {place}: {code}"
        if different.size:
            return False
        assert np.flatnonzero(canvas.masked()[0, canvas.region]).tolist() == their["masked"]
    return True
