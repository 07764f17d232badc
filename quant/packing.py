"""Codes as bytes, and back without loss: the two layouts that runtimes read four-bit and eight-bit weights in.

`blocks`: column by column, block by block, the middle of the range added so that codes count from 0 (MatMulNBits).
`pairs`: two columns to a byte, two's complement (ONNX INT4 as [K, N]). In both the lower four bits come first. It
knows nothing of scales and of what codes mean.
"""

import numpy as np
from numpy.typing import NDArray

from mmada_lite.quant.formats import Format

Bytes = NDArray[np.uint8]
Codes = NDArray[np.int8]


def pack_blocks(codes: Codes, form: Format, block: int) -> Bytes:
    """Codes [n, K] -> bytes [n, blocks, block * bits / 8]; a short last block is filled with code 0."""
    rows, inputs = codes.shape
    count = -(-inputs // block)
    counted = _from_zero(np.pad(codes, ((0, 0), (0, count * block - inputs))), form.bits)
    return _joined(counted, form.bits).reshape(rows, count, -1)


def unpack_blocks(packed: Bytes, form: Format, inputs: int) -> Codes:
    """Bytes [n, blocks, bytes] -> codes [n, inputs]."""
    flat = _apart(packed.reshape(packed.shape[0], -1), form.bits)
    return _signed(flat, form.bits)[:, :inputs]


def pack_zeros(zeros: Codes, form: Format) -> Bytes:
    """Zero points [n, blocks] -> bytes [n, ceil(blocks * bits / 8)]; a missing last one is 0."""
    odd = zeros.shape[1] * form.bits % 8 != 0
    return _joined(_from_zero(np.pad(zeros, ((0, 0), (0, int(odd)))), form.bits), form.bits)


def unpack_zeros(packed: Bytes, form: Format, blocks: int) -> Codes:
    """Bytes [n, any] -> zero points [n, blocks]."""
    return _signed(_apart(packed, form.bits), form.bits)[:, :blocks]


def pack_pairs(codes: Codes) -> Bytes:
    """Four-bit codes [2m, K] -> bytes [m, K], whose transpose is ONNX INT4 [K, 2m]."""
    bits = codes.view(np.uint8) & np.uint8(15)
    return bits[0::2] | (bits[1::2] << np.uint8(4))


def unpack_pairs(packed: Bytes) -> Codes:
    """Bytes [m, K] -> four-bit codes [2m, K]."""
    both = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=1).reshape(-1, packed.shape[1])
    return ((both ^ np.uint8(8)).view(np.int8) - np.int8(8)).astype(np.int8)  # the sign bit flipped, then 8 taken away


def _from_zero(codes: Codes, bits: int) -> Bytes:
    return (codes.astype(np.int16) + (1 << bits - 1)).astype(np.uint8)


def _signed(counted: Bytes, bits: int) -> Codes:
    return (counted.astype(np.int16) - (1 << bits - 1)).astype(np.int8)


def _joined(counted: Bytes, bits: int) -> Bytes:
    """Numbers [n, m] of `bits` bits -> bytes [n, m * bits / 8]."""
    return counted if bits == 8 else counted[:, 0::2] | (counted[:, 1::2] << np.uint8(4))


def _apart(packed: Bytes, bits: int) -> Bytes:
    if bits == 8:
        return packed
    return np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1).reshape(packed.shape[0], -1)
