"""GPTQ (arXiv 2210.17323): rounds a matrix column of inputs after column, and lets the columns that are still to come make
up for each error, as the second moments of what the matrix multiplies (its Hessian) allow. Torch tensors in, codes out.

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

_COLUMNS_AT_ONCE = 128  # columns whose errors reach the rest in one product
_OUTPUTS_AT_ONCE = 4096  # outputs that are rounded at once, for the memory's sake
_DOUBLE_UP_TO = 4096  # inputs up to which the Hessian is factored in double precision
_SINGULAR = "the moments of what it multiplies cannot be factored; calibrate on more prompts"
DAMPING = 0.1  # on the small model 0.1 came nearer to fp32 than the usual 0.01, in backbone and heads alike


@dataclass(frozen=True, slots=True)
class FactoredHessian:
    """The second moments of what a matrix multiplies, ready for rounding."""

    order: Tensor  # int64 [K], the inputs as they are taken
    upper: Tensor  # float32 [K, K], the upper Cholesky factor of the inverse of the damped moments in that order
    importance: NDArray[np.float32]  # [K], the damped diagonal as it came


def factor_hessian(moments: Tensor, name: str, damping: float = DAMPING) -> FactoredHessian:
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
                return FactoredHessian(order, upper.float(), importance)
        damping *= 10
    raise Error(f"{name}: {_SINGULAR}")


def match_outputs(weight: Tensor, wanted: Tensor, moments: Tensor, name: str, damping: float = DAMPING) -> Tensor:
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


def gptq(weight: Tensor, hessian: FactoredHessian, fmt: Format, name: str) -> Quantized:
    """Codes of the matrix weight [N, K]. Raises Error naming it when it holds what is no number."""
    weight = weight.detach().float()
    require_finite(weight.cpu().numpy(), name)
    return Quantized.joined([_round(part, hessian, fmt, name) for part in torch.split(weight, _OUTPUTS_AT_ONCE)])


def _round(weight: Tensor, hessian: FactoredHessian, fmt: Format, name: str) -> Quantized:
    """weight [n, K]."""
    scales, zeros = clipped_scales(weight.cpu().numpy(), fmt, name, hessian.importance)
    inputs, device = weight.shape[1], weight.device
    block = torch.arange(inputs, device=device) // (fmt.block or inputs)
    order, upper = hessian.order.to(device), hessian.upper.to(device)
    scale = torch.from_numpy(scales).to(device).T[block[order]]  # [K, n], as the columns are taken
    zero = None if zeros is None else torch.from_numpy(zeros).to(device).float().T[block[order]]
    left = weight.T[order].contiguous()  # [K, n], what is still to be rounded; errors of the past are in it
    codes = torch.empty_like(left)
    for begin in range(0, inputs, _COLUMNS_AT_ONCE):
        end = min(begin + _COLUMNS_AT_ONCE, inputs)
        errors = torch.empty_like(left[begin:end])
        for k in range(begin, end):
            code = _nearest_codes(left[k], scale[k], None if zero is None else zero[k], fmt)
            codes[k] = code
            rounded = (code if zero is None else code - zero[k]) * scale[k]
            error = (left[k] - rounded) / upper[k, k]
            errors[k - begin] = error
            left[k + 1 : end] -= torch.outer(upper[k, k + 1 : end], error)
        left[end:] -= upper[begin:end, end:].T @ errors
    in_order = torch.empty_like(codes, dtype=torch.int8)
    in_order[order] = codes.to(torch.int8)
    return Quantized(fmt, in_order.T.contiguous().cpu().numpy(), scales, zeros)


def _nearest_codes(column: Tensor, scale: Tensor, zero: Tensor | None, fmt: Format) -> Tensor:
    steps = (column / scale).round()
    return (steps if zero is None else steps + zero).clamp(*fmt.range)
