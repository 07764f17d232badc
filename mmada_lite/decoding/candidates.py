"""The candidate tokens that one model call gives for a text's open positions, with their confidence. Pure functions over
predictions.

Confidence is in nats, at most 0, whatever it is taken from; minus infinity marks what may not be chosen. Nothing here decides
what is written.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mmada_lite.decoding.canvas import Bools, Ints
from mmada_lite.decoding.denoiser import Denoiser, Floats, Prediction
from mmada_lite.decoding.forward import Forward, draw_tokens
from mmada_lite.decoding.sampling import Sampler
from mmada_lite.decoding.settings import TextAcceleration, TextSettings

_LEAST = 1e-30  # a margin of nothing is still a choice


@dataclass(frozen=True, slots=True)
class Candidates:
    """Tokens and their log-probability at positions [B, Q], ascending; `valid` where there is such a position.

    confidence [B, Q]: what `select` ranks by; entropy [B, Q] in nats, None where the settings do not need it.
    """

    positions: Ints
    valid: Bools
    token: Ints
    log_probability: Floats
    confidence: NDArray[np.floating]
    entropy: NDArray[np.floating] | None

    def row(self, index: int) -> Self:
        """Row `index` alone, as a batch [1, Q]."""
        one = slice(index, index + 1)
        entropy = None if self.entropy is None else self.entropy[one]
        return replace(
            self,
            positions=self.positions[one],
            valid=self.valid[one],
            token=self.token[one],
            log_probability=self.log_probability[one],
            confidence=self.confidence[one],
            entropy=entropy,
        )

    def without(self, written: Bools) -> Self:
        """What is left when some are written."""
        return replace(self, valid=self.valid & ~written)


def candidates_of(
    denoiser: Denoiser, forward: Forward, settings: TextSettings, sampler: Sampler, step: int, mask: int
) -> Candidates:
    """The candidates of one forward, for step `step`. In the default mode none of them is the mask."""
    acceleration = settings.acceleration
    drawn = draw_tokens(denoiser, "text", forward, sampler, step)
    logits = _logits(denoiser, forward) if _needs_logits(drawn, acceleration) else None
    entropy = _entropy(drawn, logits) if _needs_entropy(acceleration) else None
    if settings.mode == "default":
        drawn = _never_mask(denoiser, drawn, forward, mask)
    confidence: NDArray[np.floating] = drawn.log_probability
    if acceleration.select == "entropy":
        assert entropy is not None
        confidence = -entropy
    elif acceleration.select == "margin":
        assert logits is not None
        confidence = _margin(logits, mask)
    return Candidates(forward.positions, forward.valid, drawn.token, drawn.log_probability, confidence, entropy)


def _needs_entropy(acceleration: TextAcceleration) -> bool:
    return acceleration.select == "entropy" or acceleration.entropy_bound is not None


def _needs_logits(drawn: Prediction, acceleration: TextAcceleration) -> bool:
    """Margins are not among a head's outputs, and some denoisers give no entropies: the head then runs once more."""
    return acceleration.select == "margin" or (_needs_entropy(acceleration) and drawn.entropy is None)


def _logits(denoiser: Denoiser, forward: Forward) -> NDArray[np.float64]:
    return denoiser.logits("text", forward.hidden, forward.mix).astype(np.float64)


def _entropy(drawn: Prediction, logits: NDArray[np.float64] | None) -> NDArray[np.floating]:
    if drawn.entropy is not None:
        return drawn.entropy
    assert logits is not None
    p = _softmax(logits)
    entropy: NDArray[np.floating] = -(p * np.log(np.maximum(p, _LEAST))).sum(axis=-1)
    return entropy


def _margin(logits: NDArray[np.float64], mask: int) -> NDArray[np.floating]:
    """log(p1 - p2) [B, Q] of the two most probable tokens that may be written."""
    p = _softmax(logits)
    p[..., mask] = 0
    best = np.partition(p, -2, axis=-1)[..., -2:]
    margin: NDArray[np.floating] = np.log(np.maximum(best[..., 1] - best[..., 0], _LEAST))
    return margin


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    p: NDArray[np.float64] = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    return p


def _never_mask(denoiser: Denoiser, drawn: Prediction, forward: Forward, mask: int) -> Prediction:
    """A predicted mask would write nothing: take the best other token there (rare, so logits are paid for)."""
    wrong = (drawn.token == mask) & forward.valid
    if not wrong.any():
        return drawn
    logits = _logits(denoiser, forward)
    logits[..., mask] = -np.inf
    best = logits.argmax(axis=-1)
    peak = np.take_along_axis(logits, best[..., None], axis=-1)
    log_probability = -np.log(np.exp(logits - peak).sum(axis=-1))
    token = np.where(wrong, best, drawn.token)
    return Prediction(token, np.where(wrong, log_probability, drawn.log_probability).astype(np.float32))
