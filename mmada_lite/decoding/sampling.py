"""How tokens and orders are drawn: one counter-based generator, Philox4x32-10 (Salmon et al., SC 2011), and the sampler that
gives the decoding loops their numbers from it.

A draw is addressed, not consumed: (seed, stream, step, row, position) gives one number, whatever else was or was not drawn. So
a position that needs no number changes no other, and a host in C++ or JavaScript gets ours bit for bit. Which candidates are
written is decided elsewhere.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmada_lite.decoding.denoiser import Denoiser, Head, Prediction
from mmada_lite.errors import Error

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


class Stream(IntEnum):
    """What a number is for. Part of the address, so that purposes never share a number."""

    TEXT_TOKEN = 0
    TEXT_ORDER = 1
    IMAGE_CODE = 2
    IMAGE_CONFIDENCE = 3
    SCORE_COUNT = 4
    SCORE_PLACES = 5


_TOKEN_STREAM = {"text": Stream.TEXT_TOKEN, "image": Stream.IMAGE_CODE}
_ORDER_STREAM = {"text": Stream.TEXT_ORDER, "image": Stream.IMAGE_CONFIDENCE}


def philox(counter: NDArray[np.uint32], seed: int) -> NDArray[np.uint32]:
    """Ten rounds of Philox4x32 over counters [..., 4] with the 64-bit key `seed` (low word first): uint32 [..., 4]."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0), p1 & _LOW, (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def uniform(seed: int, stream: Stream, step: int, rows: ArrayLike, positions: ArrayLike) -> NDArray[np.float32]:
    """Numbers strictly between 0 and 1 for the given rows and positions (broadcast together): float32 of that shape.

    The counter is (position // 4, row, step, stream) and the word is position % 4; the top 23 bits b give
    (b + 0.5) / 2**23, which float32 holds exactly. Raises Error for a seed outside 0 .. 2**64 - 1.
    """
    if not 0 <= seed < 2**64:
        raise Error(f"the seed {seed} is out of range; use a whole number from 0 to 2**64 - 1")
    row, position = np.broadcast_arrays(np.asarray(rows, dtype=np.uint32), np.asarray(positions, dtype=np.uint32))
    counter = np.empty((*position.shape, 4), dtype=np.uint32)
    counter[..., 0], counter[..., 1], counter[..., 2], counter[..., 3] = position // 4, row, step, int(stream)
    words = philox(counter, seed)
    word = np.take_along_axis(words, (position % 4).astype(np.int64)[..., None], axis=-1)[..., 0]
    return ((word >> np.uint32(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)


def gumbel(u: NDArray[np.float32]) -> NDArray[np.float32]:
    """Standard Gumbel noise from uniforms, with the reference's guards against log(0): -log(-log(u)) in float32.

    Each logarithm is taken in float64 and rounded: numpy's own float32 logarithm differs from processor to processor.
    """
    tiny = np.float32(1e-20)

    def minus_log(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(-np.log(np.maximum(x, tiny), dtype=np.float64), dtype=np.float32)

    return minus_log(minus_log(u))


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
