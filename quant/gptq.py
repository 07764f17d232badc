"""GPTQ (arXiv 2210.17323): rounds a matrix column of inputs after column, and lets the columns that are still to come make
up for each error, as the second moments of what the matrix multiplies allow. Torch tensors in, codes out.

Scales are chosen before any column is rounded, so that columns may be taken in any order: the ones that carry most come
first, while there is still much that can make up for them. It knows nothing of layers, of masks, or of where moments
come from.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmada_lite.errors import Error
from mmada_lite.export.formats import Format, Quantized, require_finite
from mmada_lite.quant.methods import clipped_scales

_TOGETHER = 128  # columns whose errors reach the rest in one product
_ROWS = 4096  # outputs that are rounded at once, for the memory's sake
_DOUBLE_UP_TO = 4096  # inputs up to which moments are factored in double precision
_SINGULAR = "the moments of what it multiplies cannot be factored; calibrate on more prompts"
DAMPING = 0.1  # on the small model 0.1 came nearer to fp32 than the usual 0.01, in backbone and heads alike


@dataclass(frozen=True, slots=True)
class Moments:
    """Second moments of what a matrix multiplies, made ready for rounding."""

    order: Tensor  # int64 [K], the inputs as they are taken
    upper: Tensor  # float32 [K, K], the upper Cholesky factor of the inverse of the damped moments in that order
    importance: NDArray[np.float32]  # [K], the damped diagonal as it came


def prepare(moments: Tensor, name: str, damping: float = DAMPING) -> Moments:
    """Factor moments [K, K] = sum over tokens of weight * x x^T. damping: share of the mean of the diagonal that is added to
    it; ten times more at a time while they cannot be factored. An input that was always zero gets the mean: its column
    is rounded to nearest."""
    diagonal = moments.diagonal().clone()
    if not torch.isfinite(diagonal).all():
        raise Error(f"{name}: what it multiplies is not finite in calibration; the checkpoint overflows, use another one")
    mean = float(diagonal.mean()) or 1.0
    order = torch.argsort(diagonal, descending=True, stable=True)
    wide = moments.to(torch.float64 if len(diagonal) <= _DOUBLE_UP_TO else torch.float32)[order][:, order]
    unseen = wide.diagonal() == 0
    importance = (diagonal + damping * mean).float().cpu().numpy()
    wide.diagonal()[unseen] = mean
    for _ in range(6):
        wide.diagonal().add_(damping * mean)
        factor, failed = torch.linalg.cholesky_ex(wide)
        if not failed:
            inverse = torch.cholesky_inverse(factor)
            del factor  # of 12,288 inputs each of these is 0.6 GB
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            del inverse
            if not failed:
                return Moments(order, upper.float(), importance)
        damping *= 10
    raise Error(f"{name}: {_SINGULAR}")


def aimed(weight: Tensor, wanted: Tensor, moments: Tensor, name: str, damping: float = DAMPING) -> Tensor:
    """The matrix [N, K] whose products with what is read, x, come nearest to given ones, y, in squares (as in GPTAQ, arXiv
    2504.02692). wanted [N, K] and moments [K, K] = sum over tokens of weight * y x^T and of weight * x x^T. damping: share of
    the mean of the diagonal by which the matrix is held to `weight`, which an input that was always zero keeps; ten times
    more at a time while the moments cannot be factored."""
    wide = torch.float64 if len(moments) <= _DOUBLE_UP_TO else torch.float32
    mean = float(moments.diagonal().mean()) or 1.0
    for _ in range(6):
        system = moments.to(wide, copy=True)
        system.diagonal().add_(damping * mean)
        factor, failed = torch.linalg.cholesky_ex(system)
        if not failed:
            pulled = wanted.to(wide).add(weight, alpha=damping * mean)
            return torch.cholesky_solve(pulled.T, factor).T.to(weight.dtype).contiguous()
        damping *= 10
    raise Error(f"{name}: {_SINGULAR}")


def gptq(weight: Tensor, moments: Moments, form: Format, name: str) -> Quantized:
    """Codes of the matrix weight [N, K]. Raises Error naming it when it holds what is no number."""
    rows = weight.detach().float()
    require_finite(rows.cpu().numpy(), name)
    parts = [_rounded(part, moments, form, name) for part in torch.split(rows, _ROWS)]
    codes, scales = (np.concatenate([getattr(part, field) for part in parts]) for field in ("codes", "scales"))
    zeros = None if form.symmetric else np.concatenate([part.zeros for part in parts if part.zeros is not None])
    return Quantized(form, codes, scales, zeros)


def _rounded(rows: Tensor, moments: Moments, form: Format, name: str) -> Quantized:
    scales, zeros = clipped_scales(rows.cpu().numpy(), form, name, moments.importance)
    inputs, device = rows.shape[1], rows.device
    block = torch.arange(inputs, device=device) // (form.block or inputs)
    order, upper = moments.order.to(device), moments.upper.to(device)
    unit = torch.from_numpy(scales).to(device).T[block[order]]  # [K, n], as the columns are taken
    offset = None if zeros is None else torch.from_numpy(zeros).to(device).float().T[block[order]]
    left = rows.T[order].contiguous()  # [K, n], what is still to be rounded; errors of the past are in it
    codes = torch.empty_like(left)
    for begin in range(0, inputs, _TOGETHER):
        end = min(begin + _TOGETHER, inputs)
        errors = torch.empty_like(left[begin:end])
        for k in range(begin, end):
            code = _codes(left[k], unit[k], None if offset is None else offset[k], form)
            codes[k] = code
            held = (code if offset is None else code - offset[k]) * unit[k]
            error = (left[k] - held) / upper[k, k]
            errors[k - begin] = error
            left[k + 1 : end] -= torch.outer(upper[k, k + 1 : end], error)
        left[end:] -= upper[begin:end, end:].T @ errors
    found = torch.empty_like(codes, dtype=torch.int8)
    found[order] = codes.to(torch.int8)
    return Quantized(form, found.T.contiguous().cpu().numpy(), scales, zeros)


def _codes(column: Tensor, unit: Tensor, offset: Tensor | None, form: Format) -> Tensor:
    steps = (column / unit).round()
    return (steps if offset is None else steps + offset).clamp(*form.range)
