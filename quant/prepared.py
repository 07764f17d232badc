"""A checkpoint whose matrices know their codes: those that a work folder holds, and of the others what the method finds
alone, piece by piece. Pure numpy; the exporter reads it like any other source.
"""

import numpy as np

from mmada_lite.export.checkpoint import Tensors
from mmada_lite.quant.folding import parsed
from mmada_lite.quant.formats import Format, Quantized, quantize
from mmada_lite.quant.packing import pack_blocks, unpack_blocks
from mmada_lite.quant.search import Method, clipped
from mmada_lite.quant.work import Work

_TOGETHER = 128  # codes of a column that are packed together, whatever their blocks


def packed(matrix: str, held: Quantized) -> dict[str, np.ndarray]:
    """A matrix as the arrays of a unit of the work folder."""
    arrays: dict[str, np.ndarray] = {
        f"{matrix}.codes": pack_blocks(held.codes, held.format, _TOGETHER),
        f"{matrix}.scales": held.scales,
    }
    return arrays if held.zeros is None else arrays | {f"{matrix}.zeros": held.zeros}


class Prepared:
    """A checkpoint whose matrices have codes in a work folder; tensors without are rounded as the method does alone.

    `head`: which of the heads' codes the output matrix stands for, and the first row that they cover.
    """

    def __init__(self, source: Tensors, method: Method, work: Work | None, head: str = "text_head", first: int = 0) -> None:
        self.source, self.method, self.work, self.head, self.first = source, method, work, head, first
        self._unit: tuple[str, dict[str, np.ndarray]] = "", {}

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(name)

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        return self.source.read(name, rows)

    def quantized(self, name: str, form: Format, rows: slice) -> Quantized:
        layer, part = parsed(name)
        unit = self.head if layer is None else f"layer-{layer}"
        if self.work is None or part == "wte" or not self.work.has(unit):
            chunk = np.asarray(self.source.read(name, rows), np.float32)
            return (clipped if self.method.rounding != "rtn" else quantize)(chunk, form, name)
        if self._unit[0] != unit:
            self._unit = unit, self.work.load(unit)
        arrays = self._unit[1]
        first = self.first if layer is None else 0
        held = slice(rows.start - first, rows.stop - first)
        codes = unpack_blocks(np.asarray(arrays[f"{part}.codes"][held]), form, self.shape(name)[1])
        zeros = arrays.get(f"{part}.zeros")
        return Quantized(
            form, codes, np.asarray(arrays[f"{part}.scales"][held]), None if zeros is None else np.asarray(zeros[held])
        )
