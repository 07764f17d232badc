"""How a matrix of a checkpoint becomes ONNX: the one place that knows number formats.

A format is a value; quantized forms (MatMulInteger, MatMulNBits, DequantizeLinear) are further entries of the table.
Nothing here knows which layer it lowers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mmada_lite.errors import Error
from mmada_lite.export.graph import Graph

_CHUNK = 12 << 20  # bytes of a tensor held at once, as float32


class Tensors(Protocol):
    """What is needed of a checkpoint: shapes, and rows of a tensor."""

    def shape(self, name: str) -> tuple[int, ...]: ...

    def read(self, name: str, rows: slice | None = None) -> np.ndarray: ...


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of a checkpoint, or `rows` of its first axis, under the name that it gets in a graph."""

    source: Tensors
    tensor: str
    rows: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        whole = self.source.shape(self.tensor)
        return whole if self.rows is None else (self.rows[1] - self.rows[0], *whole[1:])

    @property
    def name(self) -> str:
        return self.tensor.removeprefix("model.transformer.")

    def chunks(self) -> Iterator[np.ndarray]:
        """The tensor in pieces of some 12 MB along its first axis."""
        count = self.shape[0]
        step = max(1, _CHUNK // max(1, 4 * int(np.prod(self.shape[1:], dtype=np.int64))))
        first = self.rows[0] if self.rows else 0
        for begin in range(0, count, step):
            yield self.source.read(self.tensor, slice(first + begin, first + min(begin + step, count)))


@dataclass(frozen=True, slots=True)
class Format:
    """How matrices are stored: `name` is what bundle.json says, `dtype` what the file holds."""

    name: str
    dtype: str

    @property
    def itemsize(self) -> int:
        return np.dtype(self.dtype).itemsize


FORMATS = {"fp32": Format("fp32", "float32"), "fp16": Format("fp16", "float16")}


def linear(graph: Graph, x: str, weight: Weight, form: Format, *, to: str = "") -> str:
    """x [..., K] times the transpose of `weight` (N, K) -> [..., N], in float32."""
    return _LINEARS[form.name](graph, x, weight, form, to)


def stored_bytes(shape: tuple[int, ...], form: Format) -> int:
    """Bytes that a tensor takes in the bundle; vectors (norms, biases) are always float32."""
    return int(np.prod(shape, dtype=np.int64)) * (4 if len(shape) == 1 else form.itemsize)


def plain(graph: Graph, weight: Weight, form: Format, *, transposed: bool = False) -> str:
    """A weight as it is, for what is no Linear (convolutions). Half precision is cast where it is used; hosts fold
    that at load."""
    name = graph.weight(weight.name, weight.shape, form.dtype, _converted(weight, form), transposed=transposed)
    return _as_float(graph, name, form)


def vector(graph: Graph, weight: Weight) -> str:
    """A norm's scale or a bias: float32 in every format."""
    return graph.weight(weight.name, weight.shape, "float32", weight.chunks())


def lookup(graph: Graph, tokens: str, weight: Weight, form: Format, *, to: str) -> str:
    """Rows of a table. The cast comes after the lookup, so that the table stays as it is on disk and can be mapped."""
    table = graph.weight(weight.name, weight.shape, form.dtype, _converted(weight, form))
    if form.dtype == "float32":
        return graph.op("Gather", table, tokens, to=to)
    return graph.op("Cast", graph.op("Gather", table, tokens), attributes={"to": 1}, to=to)


def _floating(graph: Graph, x: str, weight: Weight, form: Format, to: str) -> str:
    return graph.op("MatMul", x, plain(graph, weight, form, transposed=True), to=to)


def _converted(weight: Weight, form: Format) -> Iterator[np.ndarray]:
    """The chunks as they are stored. Raises Error where a value does not fit."""
    for chunk in weight.chunks():
        with np.errstate(over="ignore"):
            stored = chunk.astype(form.dtype, copy=False)
        if form.dtype == "float16" and not np.isfinite(stored).all():
            raise Error(f"{weight.tensor} holds numbers beyond half precision; export it with --precision fp32")
        yield stored


def _as_float(graph: Graph, name: str, form: Format) -> str:
    return name if form.dtype == "float32" else graph.op("Cast", name, attributes={"to": 1})


_LINEARS: dict[str, Callable[[Graph, str, Weight, Format, str], str]] = {"fp32": _floating, "fp16": _floating}
