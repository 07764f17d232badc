"""What the decoding loops need of a model: a window in, predictions out.

Sessions, the torch model and a planted mock are all denoisers, so the loops exist once. Nothing here knows which position is
written next.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mmada_lite.decoding.kv_cache import KeyValues

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Head = Literal["text", "image"]


@dataclass(frozen=True, slots=True)
class Window:
    """What one forward computes: tokens [B, W] at absolute positions [W] or [B, W]; queries [B, Q], the places in the window
    whose hidden states are wanted; and the past keys and values that the window attends to, which stand until the next forward
    that keeps."""

    tokens: Ints
    positions: Ints
    queries: Ints
    past: KeyValues | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """A head's prediction for each queried position [B, Q]: a token (for the image head a code, 0..codebook_size-1) and the
    natural-log probability of that token before any temperature; entropy, in nats, where the denoiser gives it."""

    token: Ints
    log_probability: Floats
    entropy: Floats | None = None


class Denoiser(Protocol):
    """The one thing that decoding needs. Hidden states are [B, Q, D]; `mix` [N, R] combines R of them before the head."""

    def forward(self, window: Window, *, keep: bool) -> tuple[Floats, KeyValues | None]:
        """Hidden states of the window's queries and, with `keep`, the keys and values of the whole window."""
        ...

    def predict(self, head: Head, hidden: Floats, mix: Floats, temperature: float, uniform: Floats | None) -> Prediction:
        """Predict with a head: the most probable token at temperature 0, else a draw by inverse CDF at `uniform` [N, Q]."""
        ...

    def logits(self, head: Head, hidden: Floats, mix: Floats) -> Floats:
        """All logits [N, Q, V] of a head."""
        ...
