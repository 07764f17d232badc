"""Which codes stand for a matrix: methods by name, and those that need the matrix alone. Pure numpy, on any chunk of rows.

A method is words joined by `+`: at most one way to round (rtn, clip, gptq, gptaq) and any of the changes that leave the
model's function as it is and make it easier to round (smooth, rotate). How GPTQ rounds is `gptq`, how a change is folded
into weights is `folding`; nothing here knows a layer or a file.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmada_lite.errors import Error, did_you_mean
from mmada_lite.export.formats import Format, Quantized, encode, fit, require_finite

Rounding = Literal["rtn", "clip", "gptq", "gptaq"]
ROUNDINGS: tuple[Rounding, ...] = ("rtn", "clip", "gptq", "gptaq")
CHANGES = ("smooth", "rotate")
SHRINKS = tuple(1 - 0.04 * step for step in range(12))  # shares of a block's range that a clipping search tries


@dataclass(frozen=True, slots=True)
class Method:
    """How codes are found.

    rounding: rtn, to the nearest code; clip, the same after a search for the share of each block's range that is worth
    covering; gptq, column after column, each error passed on to the columns that are still to come, with clip's scales;
    gptaq, the same, of matrices that were first moved to make up for the errors of the layers before them.
    smooth: channels that are hard to round trade size with the weights that read them. rotate: the residual stream and
    the heads' values are rotated, so that no channel stands out. Both are folded into the weights.
    """

    rounding: Rounding = "rtn"
    smooth: bool = False
    rotate: bool = False

    @property
    def name(self) -> str:
        return "+".join([*(word for word in CHANGES if getattr(self, word)), self.rounding])

    @property
    def calibrated(self) -> bool:
        """Whether it needs to see what the layers read."""
        return self.smooth or self.compensates

    @property
    def compensates(self) -> bool:
        """Whether the errors of some columns are made up for by others."""
        return self.rounding in ("gptq", "gptaq")

    @property
    def layerwise(self) -> bool:
        """Whether codes are made before the bundle is written, and not while it is."""
        return self.calibrated or self.rotate


def method_named(name: str) -> Method:
    """`gptq`, `rotate+gptq`, `smooth` and so on. Raises Error that names the nearest word."""
    words = [word.strip() for word in name.split("+")]
    known = (*ROUNDINGS, *CHANGES)
    for word in words:
        if word not in known:
            hint = did_you_mean(word, known, f"use {', '.join(known)}, or several joined by +")
            raise Error(f"no method is called {word!r}; {hint}")
    chosen = [rounding for rounding in ROUNDINGS if rounding in words]
    if len(chosen) > 1 or len(set(words)) < len(words):
        raise Error(f"the method {name!r} says one thing twice; use one of {', '.join(ROUNDINGS)}, with {' or '.join(CHANGES)}")
    return Method(chosen[0] if chosen else "rtn", "smooth" in words, "rotate" in words)


def clipped(rows: np.ndarray, form: Format, name: str, importance: NDArray[np.floating] | None = None) -> Quantized:
    """Rows [n, K] under the scales of the least squared error that some share of each block's range gives.

    importance [K]: how much an error at an input counts, the mean square of what is multiplied there. Never worse than
    rounding to nearest, whose scales are the first that are tried. Raises Error as `quantize` does.
    """
    require_finite(rows, name)
    return encode(rows, form, *clipped_scales(rows, form, name, importance))


def clipped_scales(
    rows: np.ndarray, form: Format, name: str, importance: NDArray[np.floating] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int8] | None]:
    """The scales and zero points [n, blocks] of `clipped`."""
    weights = np.ones(rows.shape[1], np.float32) if importance is None else np.asarray(importance, np.float32)
    best, scales, zeros = _tried(rows, form, name, weights, 1.0)
    for shrink in SHRINKS[1:]:
        error, other, offsets = _tried(rows, form, name, weights, shrink)
        better = error < best
        best, scales = np.where(better, error, best), np.where(better, other, scales)
        if zeros is not None and offsets is not None:
            zeros = np.where(better, offsets, zeros)
    return scales, zeros


def _tried(
    rows: np.ndarray, form: Format, name: str, importance: NDArray[np.float32], shrink: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int8] | None]:
    """The error [n, blocks] of covering `shrink` of the range, and the scales and zero points that do."""
    scales, zeros = fit(rows, form, name, shrink)
    held = encode(rows, form, scales, zeros)
    return block_errors(rows, held, importance), scales, zeros


def block_errors(rows: np.ndarray, held: Quantized, importance: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared error of each block [n, blocks], each input's times its importance [K]."""
    block = held.format.block or rows.shape[1]
    spread = np.repeat(held.scales, block, axis=1)[:, : rows.shape[1]]
    codes = held.codes.astype(np.float32)
    if held.zeros is not None:
        codes -= np.repeat(held.zeros, block, axis=1)[:, : rows.shape[1]]
    errors = np.square(codes * spread - rows) * importance
    sums: NDArray[np.float32] = np.add.reduceat(errors, np.arange(0, rows.shape[1], block), axis=1)
    return sums
