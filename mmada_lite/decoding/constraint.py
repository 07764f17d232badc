"""What a text's loop asks of a form that its answer must have: which ids may stand at an open place, and whether what is still
open can be filled. A head's law is renormalized over those ids, and of what one step chose, as much is written as leaves the
rest possible.

What a form is, and how it finds out, is written elsewhere.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mmada_lite.decoding.candidates import Candidates
from mmada_lite.decoding.canvas import Bools, Canvas, Ints
from mmada_lite.decoding.denoiser import Denoiser, Floats, Head, Prediction, Window
from mmada_lite.decoding.forward import Forward
from mmada_lite.decoding.kv_cache import KeyValues


class Constraint(Protocol):
    """A form of answers [N], in which the mask stands for what is open."""

    def allowed(self, answer: Ints, places: Ints) -> Bools:
        """Which ids may stand at open places [Q] of an answer, each by itself: [Q, V], none of them the mask. Some do wherever
        the answer can still be filled."""
        ...

    def possible(self, answer: Ints) -> bool:
        """Whether what is open can be filled."""
        ...


class ConstrainedHead:
    """A denoiser whose text head knows only the ids that are allowed [B, Q, V] at the positions of one forward."""

    def __init__(self, denoiser: Denoiser, allowed: Bools) -> None:
        self._denoiser, self._allowed = denoiser, allowed

    def forward(self, window: Window, *, keep: bool) -> tuple[Floats, KeyValues | None]:
        return self._denoiser.forward(window, keep=keep)

    def logits(self, head: Head, hidden: Floats, mix: Floats) -> Floats:
        """[B, Q, V], minus infinity at what is not allowed."""
        logits: Floats = np.where(self._allowed, self._denoiser.logits(head, hidden, mix), -np.inf)
        return logits

    def predict(self, head: Head, hidden: Floats, mix: Floats, temperature: float, uniform: Floats | None) -> Prediction:
        """As a head predicts, with the softmax over the allowed ids alone: at temperature 0 the most probable, the lowest id
        among equals; else the first whose cumulative probability at that temperature reaches `uniform` [B, Q]."""
        logits = self.logits(head, hidden, mix).astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        if temperature > 0 and uniform is not None:
            cumulative = np.exp(logits / temperature).cumsum(axis=-1)
            token = (cumulative < uniform[..., None].astype(np.float64) * cumulative[..., -1:]).sum(axis=-1)
        else:
            token = logits.argmax(axis=-1)
        weights = np.exp(logits)
        total = weights.sum(axis=-1, keepdims=True)
        law = logits - np.log(total)
        shares = weights / total
        entropy = -(shares * np.where(shares > 0, law, 0)).sum(axis=-1)
        chosen = np.take_along_axis(law, token[..., None], axis=-1)[..., 0]
        return Prediction(token, chosen.astype(np.float32), entropy.astype(np.float32))


def constrained(denoiser: Denoiser, constraints: Sequence[Constraint], canvas: Canvas, forward: Forward) -> Denoiser:
    """The denoiser with its text head constrained at the positions of a forward over a canvas. constraints: one for each row;
    one for all rows, which are its drafts; or none."""
    if not constraints:
        return denoiser
    rows = []
    for row, (tokens, positions) in enumerate(zip(canvas.tokens, forward.positions, strict=True)):
        constraint = constraints[row % len(constraints)]
        inside = (positions >= canvas.start) & (positions < canvas.stop)
        places = np.where(inside, positions - canvas.start, 0)
        allowed = constraint.allowed(tokens[canvas.region], places)
        rows.append(np.where((inside & allowed.any(axis=1))[:, None], allowed, True))  # a draft that cannot come, no answer
    return ConstrainedHead(denoiser, np.stack(rows))


def still_possible(
    constraints: Sequence[Constraint], candidates: Candidates, chosen: Bools, tokens: Ints, canvas: Canvas
) -> Bools:
    """Of the chosen candidates [B, Q] for rows of tokens [B, L], the most confident first, those after which everything can
    still be filled. The first of a row always is one."""
    if not constraints:
        return chosen
    kept = np.zeros_like(chosen)
    for row in range(len(chosen)):
        answer = tokens[row, canvas.region].copy()
        slots = np.flatnonzero(chosen[row])
        for slot in slots[np.argsort(-candidates.confidence[row, slots], kind="stable")]:
            place = candidates.positions[row, slot] - canvas.start
            if not 0 <= place < answer.size:
                kept[row, slot] = True
                continue
            answer[place] = candidates.token[row, slot]
            kept[row, slot] = constraints[row].possible(answer)
            if not kept[row, slot]:
                answer[place] = canvas.mask
    return kept
