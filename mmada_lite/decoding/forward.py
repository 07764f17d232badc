"""What both loops share: a step as the world is told of it, and one model call over a window of a canvas.

It knows a canvas and a denoiser. It knows nothing of which positions are written, or when.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmada_lite.decoding.canvas import Bools, Canvas, Ints
from mmada_lite.decoding.denoiser import Denoiser, Floats, Head, Prediction, Window
from mmada_lite.decoding.kv_cache import CachedContext, KeyValues
from mmada_lite.decoding.sampling import Sampler
from mmada_lite.errors import Error


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did. rows, positions, tokens, log_probabilities [K]: the changes, by row of the batch and canvas position.

    index counts from 0; total_steps: how many are expected (None where the candidates decide it); remaining: masks left to
    write; model_calls: so far, a guided pair or a batch of drafts counting as one; seconds since decoding began;
    predicted_codes [B, N]: for a picture, the codes as they stand if everything still masked were taken as predicted now.
    """

    index: int
    total_steps: int | None
    rows: Ints
    positions: Ints
    tokens: Ints
    log_probabilities: Floats
    remaining: int
    model_calls: int
    seconds: float
    predicted_codes: Ints | None = None


@dataclass(frozen=True, slots=True)
class Forward:
    """Hidden states [R, Q, D] of the queried positions [B, Q] (valid [B, Q] where a row has fewer), how to mix them, and the
    keys and values of each branch where they were to be kept."""

    hidden: Floats
    mix: Floats
    positions: Ints
    valid: Bools
    kept: tuple[KeyValues, ...]


def run_forward(
    denoiser: Denoiser,
    canvas: Canvas,
    queried: Bools,
    guidance: float,
    context: CachedContext | None = None,
    keep: bool = False,
    end: int | None = None,
) -> Forward:
    """One model call over the window (the row up to `end`, None for all of it, or what `context` leaves), for the hidden states
    of the positions `queried` [B, L]."""
    positions, valid = positions_of(queried)
    hidden, kept = [], []
    for branch, tokens in enumerate(canvas.branches()):
        shift = canvas.shift if branch else 0
        start, stop = 0, tokens.shape[1] if end is None else end + shift
        window_positions = (context.window + shift) if context else np.arange(start, stop, dtype=np.int64)
        window = Window(
            tokens=np.ascontiguousarray(tokens[:, window_positions]),
            positions=window_positions,
            queries=np.clip(np.searchsorted(window_positions, positions + shift), 0, len(window_positions) - 1),
            past=context.pasts[branch].first(len(tokens)) if context else None,
        )
        states, cache = denoiser.forward(window, keep=keep)
        hidden.append(states)
        if cache is not None:
            kept.append(cache)
    stacked = hidden[0] if len(hidden) == 1 else np.concatenate(hidden)
    return Forward(stacked, mix_of(canvas.batch, guidance, len(hidden)), positions, valid, tuple(kept))


def draw_tokens(denoiser: Denoiser, head: Head, forward: Forward, sampler: Sampler, step: int) -> Prediction:
    """One token for each queried position, in step `step` (from 0). Raises Error where the model's numbers are not finite, from
    which no token could be chosen."""
    drawn = sampler.draw(denoiser, head, forward.hidden, forward.mix, step, forward.positions)
    for numbers in (drawn.log_probability, drawn.entropy):
        if numbers is not None and not np.isfinite(numbers[forward.valid]).all():
            raise Error(
                f"step {step + 1}: the model's numbers are not finite, so its weights are damaged or a setting is too large; "
                "check the bundle with `mmada-lite info FOLDER --verify`"
            )
    return drawn


def mix_of(batch: int, guidance: float, branches: int) -> NDArray[np.float32]:
    """[B, R]: (1 + g) * conditional - g * unconditional; the head is linear, so this may come before it."""
    identity = np.eye(batch, dtype=np.float32)
    if branches == 1:
        return identity
    return np.concatenate([np.float32(1 + guidance) * identity, np.float32(-guidance) * identity], axis=1)


def positions_of(queried: Bools) -> tuple[Ints, Bools]:
    """Positions [B, Q] that are true in [B, L], left to right; short rows repeat position 0 and are marked invalid."""
    longest = max(1, int(queried.sum(axis=1).max()))
    positions = np.zeros((queried.shape[0], longest), dtype=np.int64)
    valid = np.zeros(positions.shape, dtype=bool)
    for row, flags in enumerate(queried):
        own = np.flatnonzero(flags)
        positions[row, : own.size], valid[row, : own.size] = own, True
    return positions, valid
