"""Which codes stand for a matrix: methods by name, and those that need the matrix alone. Pure numpy, on any chunk of a matrix.

A method is words joined by `+`: at most one way to round (rtn, clip, gptq, gptaq) and any of the transforms that leave the
model's function as it is and make it easier to round (smooth, rotate). How GPTQ rounds is `gptq`, how a transform is folded
into weights is `transforms`; nothing here knows a layer or a file.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mmada_lite.errors import Error, did_you_mean
from mmada_lite.export.formats import Format, Quantized, encode, fit, require_finite

Rounding = Literal["rtn", "clip", "gptq", "gptaq"]
ROUNDINGS: tuple[Rounding, ...] = ("rtn", "clip", "gptq", "gptaq")
TRANSFORMS = ("smooth", "rotate")
CLIP_RATIOS = tuple(1 - 0.04 * step for step in range(12))  # shares of a block's range that a clipping search tries


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
        return "+".join([*(word for word in TRANSFORMS if getattr(self, word)), self.rounding])

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
    known = (*ROUNDINGS, *TRANSFORMS)
    for word in words:
        if word not in known:
            hint = did_you_mean(word, known, f"use {', '.join(known)}, or several joined by +")
            raise Error(f"no method is called {word!r}; {hint}")
    chosen = [rounding for rounding in ROUNDINGS if rounding in words]
    if len(chosen) > 1 or len(set(words)) < len(words):
        raise Error(
            f"the method {name!r} says one thing twice; use one of {', '.join(ROUNDINGS)}, with {' or '.join(TRANSFORMS)}"
        )
    return Method(chosen[0] if chosen else "rtn", "smooth" in words, "rotate" in words)


def quantize_clipped(weights: np.ndarray, fmt: Format, name: str, importance: NDArray[np.floating] | None = None) -> Quantized:
    """Weights [n, K] under the scales of the least squared error that some share of each block's range gives.

    importance [K]: how much an error at an input counts, the mean square of what is multiplied there. Never worse than
    rounding to nearest, whose scales are the first that are tried. Raises Error as `quantize` does.
    """
    require_finite(weights, name)
    return encode(weights, fmt, *clipped_scales(weights, fmt, name, importance))


def clipped_scales(
    weights: np.ndarray, fmt: Format, name: str, importance: NDArray[np.floating] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int8] | None]:
    """The scales and zero points [n, blocks] of `quantize_clipped`."""
    counts = np.ones(weights.shape[1], np.float32) if importance is None else np.asarray(importance, np.float32)
    lowest, scales, zeros = _clip(weights, fmt, name, counts, 1.0)
    for clip_ratio in CLIP_RATIOS[1:]:
        errors, tried_scales, tried_zeros = _clip(weights, fmt, name, counts, clip_ratio)
        better = errors < lowest
        lowest, scales = np.where(better, errors, lowest), np.where(better, tried_scales, scales)
        if zeros is not None and tried_zeros is not None:
            zeros = np.where(better, tried_zeros, zeros)
    return scales, zeros


def _clip(
    weights: np.ndarray, fmt: Format, name: str, importance: NDArray[np.float32], clip_ratio: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int8] | None]:
    """The error [n, blocks] of covering `clip_ratio` of the range, and the scales and zero points that do."""
    scales, zeros = fit(weights, fmt, name, clip_ratio)
    return block_errors(weights, encode(weights, fmt, scales, zeros), importance), scales, zeros


def block_errors(weights: np.ndarray, quantized: Quantized, importance: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared error of each block [n, blocks], each input's times its importance [K]."""
    inputs = weights.shape[1]
    block = quantized.format.block or inputs
    scales = np.repeat(quantized.scales, block, axis=1)[:, :inputs]
    codes = quantized.codes.astype(np.float32)
    if quantized.zeros is not None:
        codes -= np.repeat(quantized.zeros, block, axis=1)[:, :inputs]
    errors = np.square(codes * scales - weights) * importance
    sums: NDArray[np.float32] = np.add.reduceat(errors, np.arange(0, inputs, block), axis=1)
    return sums
