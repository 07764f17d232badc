"""How many tokens stay masked after each step, and how much noise a choice carries. Pure numbers: no tokens, no model.

The image laws are computed in float32 because the reference does so and its floor depends on it: at two thirds of the
way the cosine is a hair below one half, and 16 * 0.5 becomes 7. Cosine, power and exponential are taken in float64 and
rounded, so that every processor and every language gets the same.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mmada_lite.decoding.settings import schedule_exponent

Ints = NDArray[np.int64]
_F = np.float32


def transfers(masks: int, steps: int) -> Ints:
    """Tokens to write at each of `steps` steps so that `masks` are gone at the end: equal shares, the rest first.

    Returns int64 [steps]. (LLaDA, arXiv 2502.09992, algorithm 4.)
    """
    share, rest = divmod(masks, steps)
    counts = np.full(steps, share, dtype=np.int64)
    counts[:rest] += 1
    return counts


def _cosine(ratio: np.float32) -> np.float32:
    return _F(math.cos(_F(_F(ratio * _F(math.pi)) * _F(0.5))))


def _linear(ratio: np.float32) -> np.float32:
    return max(_F(_F(1) - ratio), _F(1e-6))


def _power(exponent: float) -> Callable[[np.float32], np.float32]:
    def law(ratio: np.float32) -> np.float32:
        return max(_F(_F(1) - _F(float(ratio) ** float(_F(exponent)))), _F(1e-6))

    return law


def _logistic(x: np.float32) -> np.float32:
    return _F(_F(1) / _F(_F(1) + _F(math.exp(-x))))


def _sigmoid(ratio: np.float32) -> np.float32:
    low, high = _logistic(_F(-3)), _logistic(_F(3))
    value = _F(_F(high - _logistic(_F(_F(ratio * _F(6)) - _F(3)))) / _F(high - low))
    return max(value, _F(1e-6))


def schedule(name: str) -> Callable[[np.float32], np.float32]:
    """The law ratio done (0..1) -> ratio still masked. Names: cosine, linear, sigmoid, pow2 (any exponent: pow0.5).

    Raises Error for another name.
    """
    exponent = schedule_exponent(name)
    if exponent is not None:
        return _power(exponent)
    return {"cosine": _cosine, "linear": _linear, "sigmoid": _sigmoid}[name]


def masked_after(name: str, tokens: int, steps: int) -> Ints:
    """floor(tokens * schedule(k / steps)) for k = 1..steps, in float32 as the reference takes it, before any clamp.

    Returns int64 [steps]; the cosine's last value is -1 (a rounding of zero), which callers clamp.
    """
    law = schedule(name)
    ratios = (_F(_F(k) / _F(steps)) for k in range(1, steps + 1))
    return np.array([math.floor(_F(_F(tokens) * law(_F(r)))) for r in ratios], dtype=np.int64)


def noise_temperatures(start: float, steps: int) -> NDArray[np.float64]:
    """Scale of the confidence noise at each step: every step multiplies what is left by (1 - k / steps), so the last is 0.

    Returns float64 [steps]. The reference's own law; a plain linear decay would be noisier in the middle.
    """
    factors = 1.0 - np.arange(1, steps + 1, dtype=np.float64) / steps
    return np.asarray(start * np.cumprod(factors), dtype=np.float64)
