"""A denoiser of two layers of attention in numpy, with random weights: what it says of a position depends on every token of
the row, and old keys make a difference. Fast enough to decode hundreds of prompts in a test."""

import numpy as np
from numpy.typing import NDArray

from mmada_lite.decoding.denoiser import Floats, Head, Prediction, Window
from mmada_lite.decoding.kv_cache import KeyValues

Doubles = NDArray[np.float64]


class SmallAttention:
    """float64 throughout, so that no two candidates are equally confident by rounding. Counts calls and their rows."""

    def __init__(
        self,
        vocabulary: int = 24,
        mask: int = 23,
        width: int = 16,
        seed: int = 0,
        says_entropy: bool = True,
        layers: int = 2,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.table = rng.normal(size=(vocabulary, width))
        self.layers = [rng.normal(size=(3, width, width)) / np.sqrt(width) for _ in range(layers)]
        self.head = rng.normal(size=(width, vocabulary))
        self.head[:, mask] = 0
        self.says_entropy = says_entropy
        self.windows: list[tuple[int, int, int]] = []  # rows, first position, one past the last

    def forward(self, window: Window, *, keep: bool) -> tuple[Floats, KeyValues | None]:
        self.windows.append((len(window.tokens), int(window.positions[0]), int(window.positions[-1]) + 1))
        width = self.table.shape[1]
        angles = window.positions[:, None] / 9.0 ** (np.arange(width) / width)
        states = self.table[window.tokens] + np.sin(angles)
        keys, values = [], []
        for number, (query, key, value) in enumerate(self.layers):
            k, v = states @ key, states @ value  # [B, W, D]
            keys.append(k[:, None])
            values.append(v[:, None])
            if window.past is not None:
                k = np.concatenate([window.past.keys[number][:, 0], k], axis=1)
                v = np.concatenate([window.past.values[number][:, 0], v], axis=1)
            scores = _softmax(states @ query @ k.transpose(0, 2, 1))
            states = np.tanh(states + 2 * scores @ v)
        queried = np.take_along_axis(states, window.queries[..., None], axis=1)
        return queried, KeyValues(tuple(keys), tuple(values)) if keep else None

    def predict(self, head: Head, hidden: Floats, mix: Floats, temperature: float, uniform: Floats | None) -> Prediction:
        p = _softmax(self.logits(head, hidden, mix))
        token = p.argmax(axis=-1)
        if temperature > 0 and uniform is not None:
            token = (p.cumsum(axis=-1) < uniform[..., None]).sum(axis=-1)
        chosen = np.take_along_axis(p, token[..., None], axis=-1)[..., 0]
        entropy = -(p * np.log(p)).sum(axis=-1) if self.says_entropy else None
        return Prediction(token, np.log(chosen), entropy)

    def logits(self, head: Head, hidden: Floats, mix: Floats) -> Doubles:
        assert head == "text"
        logits: Doubles = np.einsum("nr,rqd->nqd", mix.astype(np.float64), hidden) @ self.head
        return logits


class Shifted(SmallAttention):
    """Its logits are higher by thousands at some places, which is no other law."""

    def logits(self, head: Head, hidden: Floats, mix: Floats) -> Doubles:
        logits = super().logits(head, hidden, mix)
        return logits + 1000.0 * np.arange(1, logits.shape[1] + 1)[:, None]


def _softmax(x: Doubles) -> Doubles:
    shares: Doubles = np.exp(x - x.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)
