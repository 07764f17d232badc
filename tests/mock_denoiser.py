"""The planted mock that the decoding laws are tested with."""

from copy import deepcopy
from dataclasses import replace

import numpy as np

from mmada_lite.decoding.denoiser import Floats, Head, Prediction, Window
from mmada_lite.decoding.kv_cache import KeyValues


class MockDenoiser:
    """A model that hides its tokens in its states: state 0 is the planted token of the position, state 1 its certainty.

    It answers from the position alone, and writes down every window that it was given.
    """

    def __init__(self, planted: dict[int, int], certainty: dict[int, float] | None = None, offset: int = 0) -> None:
        self.planted, self.certainty, self.offset = planted, certainty or {}, offset
        self.windows: list[Window] = []

    def forward(self, window: Window, *, keep: bool) -> tuple[Floats, KeyValues | None]:
        self.windows.append(replace(window, past=deepcopy(window.past)))  # a past stands in a buffer that is used again
        places = np.broadcast_to(window.positions, window.tokens.shape)
        queried = np.take_along_axis(places, window.queries, axis=1)
        tokens = np.vectorize(lambda p: self.planted.get(int(p), 0))(queried)
        certainty = np.vectorize(lambda p: self.certainty.get(int(p), 0.5))(queried)
        kept = KeyValues((places[:, None, :, None].astype(np.float32),), (places[:, None, :, None].astype(np.float32),))
        return np.stack([tokens, certainty], axis=-1).astype(np.float32), kept if keep else None

    def predict(self, head: Head, hidden: Floats, mix: Floats, temperature: float, uniform: Floats | None) -> Prediction:
        assert head in ("text", "image")
        states = hidden[: mix.shape[0]]
        token = states[..., 0].astype(np.int64)
        if temperature > 0 and uniform is not None:
            token = (uniform * 32).astype(np.int64)
        return Prediction(token, np.log(states[..., 1]))

    def logits(self, head: Head, hidden: Floats, mix: Floats) -> Floats:
        assert head == "text"
        token = hidden[: mix.shape[0], :, 0].astype(np.int64)
        logits = np.zeros((*token.shape, 144), dtype=np.float32)
        np.put_along_axis(logits, token[..., None], 4.0, axis=-1)
        logits[..., 7] = 2.0  # the second best everywhere
        return logits
