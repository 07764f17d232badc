"""Codes as CUDA's fused kernels read them: the layout that onnxruntime otherwise makes of MatMulNBits' weights when it opens a
graph (its page contrib_ops/cuda/matmul_nbits, 2.1 and 6.1; `weight_prepacked` 1, for compute capability 7.5 and above).

Nothing is rounded: the bytes are those of the codes in another order. It knows no graph.
"""

import numpy as np

from mmada_lite.export.formats import Bytes, Codes

TILE = 64  # inputs that a kernel reads of a column before those of the next
_INTERLEAVED = {4: 4, 8: 2}  # bits -> columns that stand side by side, tile by tile
_COLUMNS = {4: 64, 8: 32}  # bits -> what the number of columns is a multiple of


def can_be_packed(columns: int, inputs: int, bits: int) -> bool:
    return columns % _COLUMNS[bits] == 0 and inputs % TILE == 0


def pack_fused(codes: Codes, bits: int) -> Bytes:
    """Signed codes [n, K], n a multiple of four, K of `TILE` -> bytes [n, K * bits / 8]. Rows that follow each other are packed
    alike whether together or apart."""
    columns, inputs = codes.shape
    side, word = _INTERLEAVED[bits], 32 // bits
    rows = codes.reshape(columns, -1, 8 * side)[:, :, rows_of_a_tile(bits)].reshape(columns, inputs // TILE, TILE)
    beside = rows.reshape(columns // side, side, inputs // TILE, TILE).transpose(0, 2, 1, 3)
    unsigned = (beside.astype(np.int16) + (1 << bits - 1)).astype(np.uint8).reshape(-1, word)
    ordered = unsigned[:, [*range(0, word, 2), *range(1, word, 2)] if bits == 4 else [0, 2, 1, 3]]
    packed = ordered if bits == 8 else ordered[:, 0::2] | (ordered[:, 1::2] << np.uint8(4))
    return packed.reshape(columns, inputs * bits // 8)


def rows_of_a_tile(bits: int) -> list[int]:
    """Which input stands at each place of a run of 16 (int8) or 32 (int4), so that a warp's load hands every thread its own."""
    run = 8 * _INTERLEAVED[bits]
    return [2 * (place // (run // 4)) + 8 * (place % (run // 4) >> 1) + (place % (run // 4) & 1) for place in range(run)]
