"""A small ONNX graph under construction, and the one file of weights that all graphs of a bundle point into.

Weights go to disk chunk by chunk, each tensor at a multiple of 4096 bytes, so that a model is never held in memory
and can be mapped. It knows ONNX's node, tensor and external-data records; it knows nothing of transformers, codecs or
number formats.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from mmada_lite.errors import Error

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ModuleNotFoundError as absent:
    raise Error('exporting needs onnx; pip install "mmada-lite[export]"') from absent

OPSET = 23
CONTRIB = "com.microsoft"  # the domain of onnxruntime's own operators
CONTRIB_OPSET = 1
IR_VERSION = 11  # the first that carries opset 23
ALIGNMENT = 4096
INLINE_BELOW = 4096  # bytes; a smaller tensor stays in the graph file, where it wastes no page

_ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float8e4m3fn": TensorProto.FLOAT8E4M3FN,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "int4": TensorProto.INT4,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
}

Axes = Sequence[int | str]
Wrote = Callable[[str, int], None]  # a tensor's name and its bytes, after it was written


class WeightFile:
    """The external data file of a bundle. Tensors are appended; each begins at a multiple of 4096. same: the name of the tensor
    whose bytes a tensor has, by its own; one that is there already is not written again."""

    def __init__(self, path: Path, wrote: Wrote, same: Callable[[str], str] = lambda name: name) -> None:
        self.name = path.name
        self._stream = path.open("wb", buffering=0)
        self._wrote, self._same = wrote, same
        self._places: dict[tuple[str, int], int] = {}  # of a tensor, by its name and length

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.close()

    def append(
        self, name: str, shape: Sequence[int], dtype: np.dtype, chunks: Iterable[np.ndarray], *, transposed: bool
    ) -> tuple[int, int]:
        """Write the chunks of one tensor, split along its first axis, as `dtype`; returns its offset and length in
        bytes.

        With `transposed`, `shape` [rows, columns] is that of the chunks and the file holds [columns, rows]: each
        column of a chunk is written to its place, so that no more than a chunk is ever held.
        """
        length = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        place = self._same(name), length
        if place[0] != name and place in self._places:
            for _ in chunks if dtype.kind in "iu" else ():  # what is made beside codes, such as scales, is wanted
                pass
            self._wrote(name, length)
            return self._places[place], length
        offset = -(-self._stream.seek(0, os.SEEK_END) // ALIGNMENT) * ALIGNMENT
        self._stream.truncate(offset + length)
        self._places[place] = offset
        done = 0
        for chunk in chunks:
            values = np.ascontiguousarray(chunk.T if transposed else chunk, dtype)
            if transposed:
                self._write_columns(offset, values, int(shape[0]), done)
            else:
                self._write_at(offset + done * (length // int(shape[0])), values)
            done += chunk.shape[0]
        assert done == shape[0], f"{name}: the chunks hold {done} rows of {shape[0]}"
        self._wrote(name, length)
        return offset, length

    def _write_columns(self, offset: int, values: np.ndarray, row_length: int, begin: int) -> None:
        if values.shape[1] == row_length:
            return self._write_at(offset, values)
        for index, column in enumerate(values):
            self._write_at(offset + (index * row_length + begin) * values.itemsize, column)
        return None

    def _write_at(self, offset: int, values: np.ndarray) -> None:
        left = values.reshape(-1).view(np.uint8).data
        while left:
            count = os.pwrite(self._stream.fileno(), left, offset)
            left, offset = left[count:], offset + count


class Graph:
    """Nodes, initializers and interface of one graph; values are named by strings. `branch` opens a subgraph for If."""

    def __init__(self, name: str, weights: WeightFile) -> None:
        self.name = name
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._made: dict[tuple[str, str], tuple[str, ...]] = {}
        self._domains = {""}
        self._count = [0]
        self.rows = ""  # a value with as many rows as all that are made now, for what depends on them alone
        self.metadata: dict[str, str] = {}  # what a host reads of the whole graph before it opens it

    def input(self, name: str, dtype: str, axes: Axes) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, _ONNX_TYPES[dtype], list(axes)))
        return name

    def output(self, name: str, dtype: str, axes: Axes) -> None:
        """Declare a value, made by `op(..., to=name)`, as an output."""
        self._outputs.append(helper.make_tensor_value_info(name, _ONNX_TYPES[dtype], list(axes)))

    def op(
        self,
        kind: str,
        *inputs: str,
        attributes: Mapping[str, Any] | None = None,
        to: str = "",
        domain: str = "",
        unused: int = 0,
    ) -> str:
        """Add a node and return the name of its output, `to` or a fresh one. `unused` further outputs, which kernels of the
        operator insist on, are made and read by nothing."""
        to = to or self._fresh(kind)
        outputs = [to, *(f"{to}_unused_{number}" for number in range(unused))]
        self._nodes.append(helper.make_node(kind, list(inputs), outputs, name=to, domain=domain, **(attributes or {})))
        self._domains.add(domain)
        return to

    def several(
        self,
        kind: str,
        *inputs: str,
        outputs: int | Sequence[bool],
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
    ) -> tuple[str, ...]:
        """As `op`, of a kind with several outputs: so many, or those that are True of as many; the names of these."""
        wanted = [True] * outputs if isinstance(outputs, int) else list(outputs)
        name = self._fresh(kind)
        names = [f"{name}_{number}" if each else "" for number, each in enumerate(wanted)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, name=name, domain=domain, **(attributes or {})))
        self._domains.add(domain)
        return tuple(each for each in names if each)

    def once(self, what: str, x: str, make: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
        """The values that `make` derives from x, made at the first call for this `what` and x and shared afterwards."""
        if (what, x) not in self._made:
            self._made[what, x] = make()
        return self._made[what, x]

    def constant(self, values: Any, dtype: str) -> str:
        """A small constant kept in the graph file; equal ones are kept once."""
        array = np.asarray(values, dtype)
        key = (dtype, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._fresh("constant")
            self._initializers[name] = numpy_helper.from_array(array, name)
            self._constants[key] = name
        return self._constants[key]

    def own_constant(self, name: str, values: Any, dtype: str) -> str:
        """A constant under a name of its own, though another may be equal."""
        self._initializers[name] = numpy_helper.from_array(np.asarray(values, dtype), name)
        return name

    def ints(self, *values: int) -> str:
        return self.constant(values, "int64")

    def weight(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str,
        chunks: Iterable[np.ndarray],
        *,
        transposed: bool = False,
        seen: tuple[str, Sequence[int]] | None = None,
    ) -> str:
        """An initializer streamed to the weight file, or kept in the graph when it is tiny. See `WeightFile.append`.

        seen: the type and the dims that the graph gives it, where they are not those of the bytes (two int4 in one).
        """
        assert name not in self._initializers, f"{name} is written twice"
        kind = np.dtype(dtype)
        declared, dims = seen or (dtype, list(reversed(shape)) if transposed else list(shape))
        tensor = TensorProto(name=name, data_type=_ONNX_TYPES[declared], dims=dims)
        self._initializers[name] = tensor
        if int(np.prod(shape, dtype=np.int64)) * kind.itemsize < INLINE_BELOW:
            values = np.concatenate([np.asarray(chunk, kind) for chunk in chunks])
            tensor.raw_data = np.ascontiguousarray(values.T if transposed else values).tobytes()
            self._weights._wrote(name, values.nbytes)
            return name
        tensor.data_location = TensorProto.EXTERNAL
        offset, length = self._weights.append(name, shape, kind, chunks, transposed=transposed)
        for key, value in (("location", self._weights.name), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        return name

    @staticmethod
    def is_constant(name: str) -> bool:
        """Whether an initializer is one of the small constants that graphs keep in their file, and no weight."""
        return name.startswith("constant_")

    def adopt(self, model: onnx.ModelProto, read: Callable[[TensorProto], np.ndarray]) -> None:
        """Take over all of another graph that was made here; `read` gives the numbers of its weights."""
        for tensor in model.graph.initializer:
            if self.is_constant(tensor.name):
                self._initializers[tensor.name] = tensor
            else:
                values = read(tensor)
                self.weight(tensor.name, values.shape, values.dtype.name, [values])
        self._nodes.extend(model.graph.node)
        self._inputs.extend(model.graph.input)
        self._outputs.extend(model.graph.output)
        self._domains |= {opset.domain for opset in model.opset_import}

    def branch(self) -> "Graph":
        """A subgraph that sees every value of this graph; its constants live in this graph."""
        inner = Graph(self._fresh("branch"), self._weights)
        inner._initializers, inner._constants, inner._count = self._initializers, self._constants, self._count
        inner._domains, inner.metadata = self._domains, self.metadata
        return inner

    def choose(self, condition: str, then: "Graph", otherwise: "Graph", *, to: str) -> str:
        """An If over two branches with one declared output each."""
        graphs = [helper.make_graph(inner._nodes, inner.name, [], inner._outputs) for inner in (then, otherwise)]
        return self.op("If", condition, attributes={"then_branch": graphs[0], "else_branch": graphs[1]}, to=to)

    def save(self, path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Write the graph file beside the weight file; returns the names of its inputs and outputs."""
        graph = helper.make_graph(self._nodes, self.name, self._inputs, self._outputs, list(self._initializers.values()))
        opsets = [helper.make_opsetid(domain, CONTRIB_OPSET if domain else OPSET) for domain in sorted(self._domains)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="mmada-lite")
        helper.set_model_props(model, self.metadata)
        onnx.save(model, str(path))
        return tuple(value.name for value in self._inputs), tuple(value.name for value in self._outputs)

    def _fresh(self, kind: str) -> str:
        self._count[0] += 1
        return f"{kind}_{self._count[0]}"
