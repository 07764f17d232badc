"""Which candidates of a step are kept: pure functions over confidences. No model, no randomness, no state.

Confidence is a natural-log probability everywhere; minus infinity marks what may not be chosen.
"""

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.floating]


def most_confident(confidence: Floats, counts: Ints) -> Bools:
    """The counts[b] best of each row [B, Q], the leftmost first among equals; never one at minus infinity."""
    order = np.argsort(-confidence, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(confidence.shape[1]), order.shape), axis=1)
    return (rank < counts[:, None]) & np.isfinite(confidence)


def above_threshold(confidence: Floats, log_threshold: float) -> Bools:
    """Everything at least as probable as the threshold, and always the best of each row that has any [B, Q]."""
    best = most_confident(confidence, np.ones(confidence.shape[0], dtype=np.int64))
    return best | (np.isfinite(confidence) & (confidence >= log_threshold))


def entropy_bounded(confidence: Floats, entropy: Floats, bound: float) -> Bools:
    """The most confident of each row [B, Q], as many as keep the sum of their entropies less the largest within `bound` (nats).

    That difference bounds how much is lost by writing them at once, as if they were independent (EB-Sampler, arXiv
    2505.24857). The most confident alone loses nothing, so it is always among them.
    """
    order = np.argsort(-confidence, axis=1, kind="stable")
    ranked = np.maximum(np.take_along_axis(entropy, order, axis=1).astype(np.float64), 0)
    lost = np.cumsum(ranked, axis=1) - np.maximum.accumulate(ranked, axis=1)  # [B, Q], never falls along Q
    return most_confident(confidence, np.maximum(1, (lost <= bound).sum(axis=1)))


def unbroken_run(confident: Bools, ahead: Bools) -> Bools:
    """Of the positions `ahead` [B, Q], left to right, those before the first that is not confident."""
    run: Bools = np.logical_and.accumulate(confident | ~ahead, axis=1) & ahead
    return run


def remask_least_confident(confidence: Floats, counts: Ints) -> Bools:
    """What goes back to mask: strictly below the counts[b]-th smallest (from 0) of its row [B, N], fewer on ties.

    The reference's cutoff (MaskGIT, arXiv 2202.04200, as Show-o and MMaDA take it).
    """
    ordered = np.sort(confidence, axis=1)
    last = confidence.shape[1] - 1
    cutoff = np.take_along_axis(ordered, np.minimum(counts, last)[:, None], axis=1)
    return confidence < cutoff
