"""What a drawing caches between its steps, so that most of them compute less than the whole row.

A full step computes everything and keeps keys and values. The partial steps after it compute a window of codes alone, those
that were just written and those that may be written soon, attending to what was kept of every other position (the cached
attention of ReCAP and the dual cache of Fast-dLLM, arXiv 2505.22618, with a block of scattered positions). The unconditional
row's hidden states may serve several steps. It knows windows and when they are stale; it knows nothing of which codes are
written.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmada_lite.decoding.canvas import Bools, Canvas, Ints
from mmada_lite.decoding.denoiser import Denoiser, Floats, Window
from mmada_lite.decoding.forward import Forward, mix_of, positions_of
from mmada_lite.decoding.kv_cache import KeyValues, KVBuffer
from mmada_lite.decoding.settings import ImageSettings


@dataclass(frozen=True, slots=True)
class _States:
    """Hidden states [B, Q, D] of one step; slots [B, L] says where those of a position stand, -1 for none."""

    step: int
    hidden: Floats
    slots: Ints

    @classmethod
    def of(cls, step: int, hidden: Floats, positions: Ints, valid: Bools, length: int) -> "_States":
        slots = np.full((positions.shape[0], length), -1, dtype=np.int64)
        rows, columns = np.nonzero(valid)
        slots[rows, positions[rows, columns]] = columns
        return cls(step, hidden, slots)

    def at(self, positions: Ints, valid: Bools) -> Floats | None:
        """Those of the positions [B, Q], or None where one is not among them."""
        index = np.take_along_axis(self.slots, positions, axis=1)
        if (valid & (index < 0)).any():
            return None
        return self.hidden[np.arange(len(index))[:, None], np.maximum(index, 0)]


class ImageCache:
    """Makes the model calls of one drawing and decides what each has to compute."""

    def __init__(self, denoiser: Denoiser, canvas: Canvas, settings: ImageSettings) -> None:
        self._denoiser, self._canvas, self._settings = denoiser, canvas, settings
        self._until, self._keep = 0, False  # the step that is full again; whether a partial one comes before it
        self._window: Ints | None = None  # [B, W] canvas positions, left to right
        self._inside: Bools | None = None  # [B, L] the same as flags
        self._pasts: dict[int, KeyValues] = {}  # branch -> what its window attends to; before `choose` of the whole row
        self._buffers = (KVBuffer(), KVBuffer())  # a branch each; a cut is out of use when the next full step comes
        self._cached_states: _States | None = None

    @property
    def partial_until(self) -> int | None:
        """After a full step that partial ones follow, the step before which they end: `choose` must say what they compute."""
        return self._until if self._window is None and self._pasts else None

    def forward(self, k: int, masked: Bools) -> Forward:
        """The model call of step k, for the masked positions [B, L] or those of them that are in the window."""
        queried = self._queried(k, masked)
        self._keep = self._until > k + 1
        positions, valid = positions_of(queried)
        hidden = [self._forward(0, positions)]
        if self._canvas.unconditional is not None and self._settings.guided(k):
            hidden.append(self._unconditional_states(k, positions, valid))
        stacked = hidden[0] if len(hidden) == 1 else np.concatenate(hidden)
        mix = mix_of(self._canvas.batch, self._settings.guidance, len(hidden))
        return Forward(stacked, mix, positions, valid, ())

    def choose(self, score: NDArray[np.float32], counts: Ints) -> None:
        """Let the partial steps compute the counts[b] codes of highest score [B, N] of each row; all rows get as many."""
        best = np.argsort(-score, axis=1, kind="stable")[:, : int(counts.max())]
        self._window = np.sort(best, axis=1) + self._canvas.start
        self._inside = np.zeros(self._canvas.tokens.shape, dtype=bool)
        np.put_along_axis(self._inside, self._window, True, axis=1)
        for branch in self._pasts:
            self._pasts[branch] = self._around(branch, self._pasts[branch])

    def _queried(self, k: int, masked: Bools) -> Bools:
        """The masked positions that this step computes: all at a full one."""
        if self._inside is not None and k < self._until:
            inside = masked & self._inside
            if (inside.any(axis=1) | ~masked.any(axis=1)).all():
                return inside
        self._until = min(k + self._settings.acceleration.refresh, self._settings.steps)
        self._window, self._inside, self._pasts = None, None, {}
        return masked

    def _forward(self, branch: int, positions: Ints) -> Floats:
        """Hidden states of canvas positions [B, Q]: from the window where its past is known, else from the whole row."""
        tokens, shift = self._canvas.branches()[branch], self._canvas.shift if branch else 0
        past = None if self._window is None else self._pasts.get(branch)
        if past is not None and self._window is not None:
            places = self._window + shift
            queries = np.stack([np.searchsorted(*pair) for pair in zip(self._window, positions, strict=True)])
            window = Window(np.take_along_axis(tokens, places, axis=1), places, queries, past)
            return self._denoiser.forward(window, keep=False)[0]
        length = tokens.shape[1]
        queries = np.clip(positions + shift, 0, length - 1)
        window = Window(np.ascontiguousarray(tokens), np.arange(length, dtype=np.int64), queries)
        hidden, kept = self._denoiser.forward(window, keep=self._keep)
        if kept is not None:
            self._pasts[branch] = kept if self._window is None else self._around(branch, kept)
        return hidden

    def _unconditional_states(self, k: int, positions: Ints, valid: Bools) -> Floats:
        """The unconditional row's states: those of an earlier step while they are young enough and know every position."""
        states, every = self._cached_states, self._settings.acceleration.unconditional_every
        if states is not None and k - states.step < every:
            known = states.at(positions, valid)
            if known is not None:
                return known
        hidden = self._forward(1, positions)
        if every > 1:
            self._cached_states = _States.of(k, hidden, positions, valid, self._canvas.length)
        return hidden

    def _around(self, branch: int, kept: KeyValues) -> KeyValues:
        """What was kept of a whole row, without the window."""
        assert self._window is not None, "the window is chosen first"
        batch, length = self._canvas.batch, self._canvas.branches()[branch].shape[1]
        outside = np.ones((batch, length), dtype=bool)
        np.put_along_axis(outside, self._window + (self._canvas.shift if branch else 0), False, axis=1)
        return kept.at(np.nonzero(outside)[1].reshape(batch, -1), self._buffers[branch], last=True)
