"""The products of one transformer layer as a graph in each form that a CPU may store them in, with weights of random codes.

A form's operators are those that `export` writes for it (tests compare them), so that what is measured here holds for a bundle;
attention and norms, which no form changes, are left out. Nothing here opens a session.
"""

from collections.abc import Mapping
from itertools import count

import numpy as np
from numpy.typing import NDArray

from mmada_lite.errors import Error
from mmada_lite.ort.onnx_bytes import CONTRIB, FLOAT, constant, model, node, value
from mmada_lite.ort.session import NARROW_CODES

NARROW = "int8-7bit"  # codes within 63, which pays where sums of pairs of products could overflow
FORMS = ("fp32", "int8", NARROW, "int8-b128", "int4-b128")
BLOCK = 128
_ACCURACY = 4  # of MatMulNBits: it may round activations to int8


def layer_graph(form: str, width: int, inner: int) -> bytes:
    """x [M, width] -> y [M, width] through seven matrices, four of width x width and three of width x inner. Both are multiples
    of 128. Raises Error for an unknown form."""
    layer = _Layer(form)
    gathered = layer.add(*(layer.linear("x", width, width) for _ in range(3)))
    mixed = layer.linear(gathered, width, width)
    gate, up = (layer.linear(mixed, width, inner) for _ in range(2))
    return layer.graph(layer.linear(layer.op("Mul", gate, up), inner, width))


def product_graph(form: str, inputs: int, outputs: int) -> bytes:
    """x [M, inputs] -> y [M, outputs] through one matrix. Raises Error for an unknown form."""
    layer = _Layer(form)
    return layer.graph(layer.linear("x", inputs, outputs))


class _Layer:
    """A graph under construction; what several matrices read is rounded once for all of them."""

    def __init__(self, form: str) -> None:
        if form not in FORMS:
            raise Error(f"no form is called {form!r}; use one of {', '.join(FORMS)}")
        self._form, self._random, self._numbers = form, np.random.default_rng(0), count()
        self._metadata = {NARROW_CODES: "63"} if form == NARROW else {}
        self._nodes, self._constants = list[bytes](), list[bytes]()
        self._rounded: dict[str, tuple[str, str]] = {}
        self._nothing: dict[str, str] = {}
        self._middle = ""  # the code that stands for 0, of each token [M, 1]

    def graph(self, result: str) -> bytes:
        self._nodes.append(node("Identity", [result], "y"))
        x, y = value("x", FLOAT, 2), value("y", FLOAT, 2)
        return model(self._nodes, [x], [y], self._constants, ("", CONTRIB), self._metadata)

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        """x [M, inputs] times a matrix of its own -> [M, outputs], numbers of the size of x."""
        unit = np.float32(1 / np.sqrt(inputs))
        if self._form == "fp32":
            codes = self._random.integers(-127, 128, (inputs, outputs), np.int8)
            return self.op("MatMul", x, self._constant(codes.astype(np.float32) * (unit / 64)))
        if self._form in ("int8", NARROW):
            return self._integers(x, inputs, outputs, unit, 63 if self._form == NARROW else 127)
        bits = 4 if self._form.startswith("int4") else 8
        blocks = inputs // BLOCK
        packed = self._random.integers(0, 256, (outputs, blocks, BLOCK * bits // 8), np.uint8)
        scales = np.full((outputs, blocks), unit / 2 ** (bits - 2), np.float32)
        about = {"K": inputs, "N": outputs, "bits": bits, "block_size": BLOCK, "accuracy_level": _ACCURACY}
        product = self.op("MatMulNBits", x, self._constant(packed), self._constant(scales), integers=about, domain=CONTRIB)
        return self.op("Add", product, self._nothing_of(x))

    def add(self, first: str, *others: str) -> str:
        for other in others:
            first = self.op("Add", first, other)
        return first

    def op(self, kind: str, *inputs: str, integers: Mapping[str, int] | None = None, domain: str = "") -> str:
        output = f"{kind}_{next(self._numbers)}"
        self._nodes.append(node(kind, inputs, output, integers, domain))
        return output

    def _integers(self, x: str, inputs: int, outputs: int, unit: np.float32, largest: int) -> str:
        if x not in self._rounded:
            self._rounded[x] = self._per_token(x, inputs)
        counted, scale = self._rounded[x]
        matrix = self._constant(self._random.integers(-largest, largest + 1, (inputs, outputs), np.int8))
        scales = self._constant(np.full(outputs, unit / 64, np.float32))
        middles = self._constant(np.array(128, np.uint8)), self._constant(np.array(0, np.int8))
        given = counted, matrix, self._number(1.0), scales, *middles
        return self.op("Mul", self.op("MatMulIntegerToFloat", *given, domain=CONTRIB), scale)

    def _per_token(self, x: str, inputs: int) -> tuple[str, str]:
        """x [M, inputs] -> codes uint8 about 128 [M, inputs], and the scale of each token [M, 1]."""
        highest, lowest = self.op("ReduceMax", x, self._last()), self.op("ReduceMin", x, self._last())
        largest = self.op("Max", highest, self.op("Neg", lowest), self._number(1e-30))
        unit = self.op("Mul", largest, self._number(1 / 127))
        if not self._middle:
            rows, one = self.op("Shape", "x", integers={"end": -1}), self._constant(np.array([1], np.int64))
            shape = self.op("Concat", rows, one, integers={"axis": 0})
            self._middle = self.op("Expand", self._constant(np.array(128, np.uint8)), shape)
        return self.op("QuantizeLinear", x, unit, self._middle, integers={"axis": -1, "block_size": inputs}), unit

    def _nothing_of(self, x: str) -> str:
        """0 of each token [M, 1], as exported graphs add it so that what is not finite shows."""
        if x not in self._nothing:
            self._nothing[x] = self.op("Mul", self.op("ReduceSum", x, self._last()), self._number(0.0))
        return self._nothing[x]

    def _last(self) -> str:
        return self._constant(np.array([-1], np.int64))

    def _number(self, number: float) -> str:
        return self._constant(np.array(number, np.float32))

    def _constant(self, values: NDArray[np.generic]) -> str:
        name = f"constant_{next(self._numbers)}"
        self._constants.append(constant(name, values))
        return name
