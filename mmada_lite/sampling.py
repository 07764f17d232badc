"""Where the random choices of a decoding come from: a sampler is passed to the loop, which never draws by itself.

The default draws from Philox by address. A replay of recorded draws, or a policy's own choice in training, is another
sampler over the same loop.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mmada_lite.denoiser import Denoiser, Head, Prediction
from mmada_lite.randomness import Stream, uniform

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

_TOKEN_STREAM = {"text": Stream.TEXT_TOKEN, "image": Stream.IMAGE_CODE}
_ORDER_STREAM = {"text": Stream.TEXT_ORDER, "image": Stream.IMAGE_CONFIDENCE}


class Sampler(Protocol):
    """The choices of step `step` at canvas positions [B, Q]."""

    def draw(self, denoiser: Denoiser, head: Head, hidden: Floats, mix: Floats, step: int, positions: Ints) -> Prediction:
        """One token per position."""
        ...

    def order(self, head: Head, step: int, positions: Ints) -> Floats:
        """One uniform number per position, for confidence noise or a random order."""
        ...


@dataclass(frozen=True, slots=True)
class PhiloxSampler:
    """Draws addressed by (seed, purpose, step, row, position - start): the same in every language.

    temperature 0 takes the most probable token and needs no draw.
    """

    seed: int
    temperature: float
    start: int

    def draw(self, denoiser: Denoiser, head: Head, hidden: Floats, mix: Floats, step: int, positions: Ints) -> Prediction:
        draws = self._uniform(_TOKEN_STREAM[head], step, positions) if self.temperature > 0 else None
        return denoiser.predict(head, hidden, mix, self.temperature, draws)

    def order(self, head: Head, step: int, positions: Ints) -> Floats:
        return self._uniform(_ORDER_STREAM[head], step, positions)

    def _uniform(self, stream: Stream, step: int, positions: Ints) -> Floats:
        rows = np.arange(positions.shape[0])[:, None]
        return uniform(self.seed, stream, step, rows, (positions - self.start) & 0xFFFFFFFF)
