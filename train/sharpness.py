"""How sharp pictures are, by the energy of their edges. Pure functions of pixels; knows no model and no icon."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def edge_energy(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The squared differences of neighbours to the right and below, summed over pixels and colours: pictures [B, H, W, 3] to
    [B], in squared levels of 0..255. A picture of one tone has none, and blurring an edge over k pixels divides its by k."""
    pixels = pictures.astype(np.float64)
    across = np.diff(pixels, axis=2) ** 2
    down = np.diff(pixels, axis=1) ** 2
    energy: NDArray[np.float64] = across.sum(axis=(1, 2, 3)) + down.sum(axis=(1, 2, 3))
    return energy


def sharpness(made: NDArray[np.uint8], originals: NDArray[np.uint8]) -> float:
    """Edge energy of all that was made over that of all originals, both [B, H, W, 3]: 1 is as sharp, below is blurred. A ratio
    of sums, so that a picture of hardly any edge weighs hardly anything. Raises ValueError where the originals have no edge."""
    reference = float(edge_energy(originals).sum())
    if reference == 0:
        raise ValueError("the originals have no edge at all: sharpness cannot be told; give pictures of things")
    return float(edge_energy(made).sum()) / reference
