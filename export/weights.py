"""Tensors of a checkpoint on their way into a graph: read some megabytes at a time, as numbers or as codes. Which operators a
matrix becomes is `lowering`'s to know."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from mmada_lite.export.checkpoint import Tensors
from mmada_lite.export.formats import Format, Quantized, quantize

_CHUNK = 12 << 20  # bytes of a tensor held at once, as float32


@runtime_checkable
class QuantizedSource(Protocol):
    """A source that has codes of its own; of any other, weights are rounded to nearest."""

    def quantized(self, name: str, fmt: Format, rows: slice) -> Quantized: ...


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of a checkpoint, or `rows` of its first axis, under the name that it gets in a graph."""

    source: Tensors
    tensor: str
    rows: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.source.shape(self.tensor)
        return shape if self.rows is None else (self.rows[1] - self.rows[0], *shape[1:])

    @property
    def name(self) -> str:
        return self.tensor.removeprefix("model.transformer.")

    @property
    def parts(self) -> "tuple[Weight, ...]":
        return (self,)

    def chunks(self) -> Iterator[np.ndarray]:
        """The tensor in pieces of some 12 MB along its first axis, of a multiple of four rows except the last."""
        return (self.source.read(self.tensor, rows) for rows in self._pieces())

    def quantized(self, fmt: Format) -> Iterator[Quantized]:
        """The same pieces as codes: the source's own, or rounded to nearest."""
        for rows in self._pieces():
            if isinstance(self.source, QuantizedSource):
                yield self.source.quantized(self.tensor, fmt, rows)
            else:
                yield quantize(self.source.read(self.tensor, rows), fmt, self.tensor)

    def _pieces(self) -> Iterator[slice]:
        count = self.shape[0]
        step = max(4, _CHUNK // max(1, 4 * math.prod(self.shape[1:])) // 4 * 4)
        first = self.rows[0] if self.rows else 0
        for begin in range(0, count, step):
            yield slice(first + begin, first + min(begin + step, count))


@dataclass(frozen=True, slots=True)
class Stacked:
    """Matrices of the same inputs as one, the outputs of each after those of the one before."""

    name: str
    parts: tuple[Weight, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    def quantized(self, fmt: Format) -> Iterator[Quantized]:
        return (chunk for part in self.parts for chunk in part.quantized(fmt))


Matrix = Weight | Stacked
