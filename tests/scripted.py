"""A model that says what a test wants and draws as it always does, to tell laws of thoughts without a model that can think."""

from dataclasses import replace

import numpy as np
from mock_denoiser import MockDenoiser

from mmada_lite import Model, TextSettings
from mmada_lite.decoding.denoiser import Denoiser, Floats, Head, Prediction, Window
from mmada_lite.train.rollouts import caption_to_thought_prompts, question_prompts

CAPTION = "a cat"
THOUGHT = "left car, right cat"
WRITTEN = TextSettings(answer_length=48, steps=24, block_length=16)


class Scripted(MockDenoiser):
    """Writes a text that was planted by position; draws as the model beneath it does."""

    def __init__(self, planted: dict[int, int], drawing: Denoiser) -> None:
        super().__init__(planted)
        self._drawing, self._queried = drawing, np.zeros((1, 1), dtype=np.int64)

    def forward(self, window: Window, *, keep: bool):  # type: ignore[no-untyped-def]
        self.windows.append(replace(window, tokens=window.tokens.copy()))  # it may be the canvas itself
        self._queried = window.positions[window.queries]
        return self._drawing.forward(window, keep=keep)

    def predict(self, head: Head, hidden: Floats, mix: Floats, temperature: float, uniform: Floats | None) -> Prediction:
        if head == "image":
            return self._drawing.predict(head, hidden, mix, temperature, uniform)
        token = np.vectorize(lambda place: self.planted[int(place)])(self._queried).astype(np.int64)
        return Prediction(token, np.zeros(token.shape, dtype=np.float32))


def plant(model: Model, text: str) -> Scripted:
    """Make the model think `text` about CAPTION, whatever comes after it."""
    (plan,) = caption_to_thought_prompts(model, [CAPTION])
    ids = model.tokenizer.encode(text)
    ids += [model.vocabulary.special.eos] * (model.text_defaults.answer_length - len(ids))
    model.denoiser = Scripted({len(plan) + n: token for n, token in enumerate(ids)}, model.denoiser)  # type: ignore[assignment]
    return model.denoiser  # type: ignore[return-value]


def script_answer(model: Model, text: str) -> None:
    """Make the model answer `text` to "hello"."""
    start = len(question_prompts(model, ["hello"])[0])
    ids = [*model.tokenizer.encode(text), *[model.vocabulary.special.eot] * model.text_defaults.answer_length]
    model.denoiser = Scripted({start + n: token for n, token in enumerate(ids)}, model.denoiser)  # type: ignore[assignment]
