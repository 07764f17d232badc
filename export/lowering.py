"""How a matrix of a checkpoint becomes ONNX: the one place that knows which operators a number format turns into.

One quantization, three lowerings, chosen by target: integers times integers with activations quantized per token
(MatMulIntegerToFloat), blocks (MatMulNBits), and what TensorRT reads (DequantizeLinear). OpenVINO reads what is written for
CPUs. CUDA's fused kernels take blocks of 32 with a scale in half precision, no zero points and an even number of columns in
64 (int4) or 32 (int8). Nothing here knows which layer it lowers, and nothing how codes are found: that is
`mmada_lite.export.formats`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from mmada_lite.contracts import IN_FLOAT32
from mmada_lite.errors import Error
from mmada_lite.export.formats import (
    BLOCKS,
    Format,
    Quantized,
    pack_blocks,
    pack_pairs,
    pack_zeros,
    require_finite,
    rounded,
)
from mmada_lite.export.graph import CONTRIB, Graph
from mmada_lite.export.packed import can_be_packed, pack_fused
from mmada_lite.export.weights import Matrix, Weight
from mmada_lite.ort.attention_forms import JOINED
from mmada_lite.ort.session import IN_BF16, MIDDLE, NARROW_CODES, PACKED

Target = Literal["cpu", "cuda", "tensorrt", "openvino"]
TARGETS: tuple[Target, ...] = get_args(Target)
_ACCURACY = 4  # MatMulNBits may quantize activations to int8 block by block: the fast way on a CPU
_PER_TOKEN = "per token"  # what `Graph.once` knows codes and scales of activations by
_FLOAT, _HALF = 1, 10  # ONNX's numbers of float32 and float16


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """How the matrices of a group are stored, and for which kind of device they are lowered; on a card by which operators it
    attends (`mmada_lite.ort.attention_forms`), and whether codes are laid out for its kernels already (`packed`)."""

    format: Format
    target: Target = "cpu"
    half_caches: bool = False  # of a backbone that computes in float32: keys and values leave and come back in half precision
    attention: str = JOINED
    packed: bool = False

    @property
    def activation(self) -> str | None:
        """How the graph itself rounds what is multiplied: "int8 per token", or not at all."""
        return "int8 per token" if _kind(self) == "integer" else None

    @property
    def computed(self) -> str:
        """The type that products have: half precision on a GPU, but for a group that is stored in fp32."""
        return "float32" if self.target in IN_FLOAT32 or self.format.family == "fp32" else "float16"

    @property
    def kept(self) -> str:
        """The type that keys and values have between two runs."""
        return "float16" if self.half_caches else self.computed


def linear(graph: Graph, x: str, weight: Matrix, spec: WeightSpec, *, to: str = "") -> str:
    """x [..., K] times the transpose of `weight` (N, K) -> [..., N], both in the spec's computed type."""
    return _LOWERINGS[_kind(spec)](graph, x, weight, spec, to)


def gated(graph: Graph, gate: str, x: str, weight: Weight, spec: WeightSpec) -> str:
    """gate [..., N] times `linear` of x, for a matrix to multiply and nothing else: where that rounds its activations, the
    scales of tokens are left to theirs, which spares a pass over N numbers a token."""
    if _kind(spec) != "integer":
        return graph.op("Mul", gate, linear(graph, x, weight, spec))
    product, unit = _integer_product(graph, x, weight, spec)
    gated_product = graph.op("Mul", gate, product)
    counted, own_unit = _per_token(graph, gated_product, weight.shape[0])
    graph.once(_PER_TOKEN, gated_product, lambda: (counted, graph.op("Mul", own_unit, unit)))
    return gated_product


def turned(
    graph: Graph, x: str, weight: Weight, spec: WeightSpec, heads: int, angles: tuple[str, str], *, query: bool, to: str = ""
) -> str:
    """`linear` of x in heads, each turned by angles: x [B, W, K], cosines and sines [B, W, Hd / 2] -> [B, heads, W, Hd].

    Where that rounds its activations, the angles have the scales of tokens, made once for all that read x, and the columns of
    a query the factor of `attention`: both spare a pass over the product.
    """
    size = weight.shape[0] // heads
    if _kind(spec) != "integer":
        return _rotated(graph, in_heads(graph, linear(graph, x, weight, spec), heads, size), angles, size, spec, to=to)
    product, unit = _integer_product(graph, x, weight, spec, size**-0.5 if query else 1.0)
    scaled = [graph.once(unit, angle, lambda angle=angle: (graph.op("Mul", angle, unit),))[0] for angle in angles]  # type: ignore[misc]
    return _rotated(graph, in_heads(graph, product, heads, size), (scaled[0], scaled[1]), size, spec, to=to)


def in_heads(graph: Graph, x: str, heads: int, size: int, *, to: str = "") -> str:
    """x [B, W, heads Hd] -> [B, heads, W, Hd]."""
    split = graph.op("Reshape", x, graph.ints(0, 0, heads, size))
    return graph.op("Transpose", split, attributes={"perm": [0, 2, 1, 3]}, to=to)


def narrow(graph: Graph, x: str, spec: WeightSpec) -> str:
    """A float32 value in the spec's computed type."""
    return x if spec.computed == "float32" else graph.op("Cast", x, attributes={"to": _HALF})


def widen(graph: Graph, x: str, spec: WeightSpec, *, to: str = "") -> str:
    """A value of the spec's computed type in float32."""
    if spec.computed == "float32":
        assert not to, "nothing is made, so nothing can be named"
        return x
    return graph.op("Cast", x, attributes={"to": _FLOAT}, to=to)


def plain(graph: Graph, weight: Matrix, spec: WeightSpec, *, transposed: bool = False) -> str:
    """A weight as it is, for what is no Linear (convolutions). Half precision is cast where it is used; hosts fold
    that at load."""
    return _as_float(graph, _floats(graph, weight, spec, transposed=transposed), spec.format.dtype)


def vector(graph: Graph, weight: Weight, dtype: str = "float32") -> str:
    """A norm's scale or a bias: float32 in every format, half precision where what it is added to or multiplies is."""
    return graph.weight(weight.name, weight.shape, dtype, _finite(weight))


def lookup(graph: Graph, tokens: str, weight: Weight, spec: WeightSpec, *, to: str) -> str:
    """Rows of a table. The cast, and in int8 the multiplication by the row's scale, come after the lookup, so that the
    table stays as it is on disk and can be mapped."""
    if spec.format.floating:
        table = _floats(graph, weight, spec)
        if spec.format.dtype == "float32":
            return graph.op("Gather", table, tokens, to=to)
        return graph.op("Cast", graph.op("Gather", table, tokens), attributes={"to": _FLOAT}, to=to)
    scales: list[np.ndarray] = []
    table = graph.weight(weight.name, weight.shape, "int8", (chunk.codes for chunk in _quantized(weight, spec, scales)))
    units = graph.weight(f"{weight.name}.scale", (weight.shape[0], 1), "float32", scales)
    looked_up = graph.op("Cast", graph.op("Gather", table, tokens), attributes={"to": _FLOAT})
    return graph.op("Mul", looked_up, graph.op("Gather", units, tokens), to=to)


def _rotated(graph: Graph, x: str, angles: tuple[str, str], size: int, spec: WeightSpec, *, to: str) -> str:
    """x [B, H, W, Hd] turned by cosines and sines [B, W, Hd / 2], its halves paired -> [B, H, W, Hd].

    For OpenVINO in plain operators over tables of all Hd columns: it fuses them to the same kernel and the same numbers, whose
    settings then come back from its cache as they were. Those of the operator do not (2026.4.1).
    """
    if spec.target != "openvino":
        return graph.op("RotaryEmbedding", x, *angles, to=to)

    def whole(table: str) -> tuple[str]:
        return (graph.op("Unsqueeze", graph.op("Concat", table, table, attributes={"axis": -1}), graph.ints(1)),)

    (cosines,), (sines,) = (graph.once("whole", table, lambda table=table: whole(table)) for table in angles)  # type: ignore[misc]
    first, second = (
        graph.op("Slice", x, graph.ints(start), graph.ints(stop), graph.ints(3))
        for start, stop in ((0, size // 2), (size // 2, size))
    )
    turned = graph.op("Concat", graph.op("Mul", second, graph.constant(-1.0, "float32")), first, attributes={"axis": -1})
    return graph.op("Add", graph.op("Mul", x, cosines), graph.op("Mul", turned, sines), to=to)


def kept(graph: Graph, make: Callable[[str], str], spec: WeightSpec, *, to: str) -> str:
    """Keys or values under the name `to`, in the type that they leave in. make: computes them under a name, "" for any."""
    if spec.kept == spec.computed:
        return make(to)
    return graph.op("Cast", make(""), attributes={"to": _HALF}, to=to)


def attention(graph: Graph, query: str, key: str, value: str, past: tuple[str, str], spec: WeightSpec) -> str:
    """query [B, H, Q, Hd]; key and value [B, Hkv, W, Hd] and those of the past, [B, Hkv, P, Hd], as `kept` -> [B, H, Q, Hd],
    every query seeing every key, in the spec's computed type. Products of integers have the factor 1 / sqrt(Hd) in the query
    (`turned`).

    For CPUs alone the operator joins past and window itself, on all cores: 8% of a forward of 32 tokens over a past of 1,122
    at size S. Elsewhere they are joined before it; TensorRT has kernels for half precision alone.
    """
    integers = _kind(spec) == "integer"
    how: dict[str, float] = {"is_causal": 0, "scale": 1.0} if integers else {"is_causal": 0}
    if spec.kept != spec.computed:
        return graph.op("Attention", query, *_widened(graph, (key, value), past), attributes=how)
    if integers:
        return graph.op("Attention", query, key, value, "", *past, attributes=how, unused=2)
    joined = (graph.op("Concat", kept, own, attributes={"axis": 2}) for kept, own in zip(past, (key, value), strict=True))
    given = [query, *joined]
    if spec.target != "tensorrt" or spec.computed == "float16":
        return graph.op("Attention", *given, attributes={"is_causal": 0})
    halves = [graph.op("Cast", value, attributes={"to": _HALF}) for value in given]
    return graph.op("Cast", graph.op("Attention", *halves, attributes={"is_causal": 0}), attributes={"to": _FLOAT})


def _widened(graph: Graph, own: tuple[str, str], past: tuple[str, str]) -> Iterator[str]:
    """Keys, then values, in float32, of a past and a window that are in half precision. What the window keeps is read here too:
    if nothing did, onnxruntime would make it at the end, of every layer, and hold all layers in float32 until then."""
    for kept, new in zip(past, own, strict=True):
        yield graph.op("Cast", graph.op("Concat", kept, new, attributes={"axis": 2}), attributes={"to": _FLOAT})


def check_linear(shape: tuple[int, ...], spec: WeightSpec) -> None:
    """Raise an Error when a matrix (N, K) cannot be stored so for this target."""
    stored = spec.format
    if stored.family == "bf16" and spec.target not in IN_FLOAT32:
        raise Error(f"bf16 cannot be written for {spec.target}, whose kernels take half precision; use --precision fp16")
    if stored.family == "fp8" and spec.target != "tensorrt":
        raise Error(
            f"fp8 cannot be written for {spec.target}: TensorRT-RTX alone multiplies by it, on cards of compute capability "
            f"8.9 and newer; use --target tensorrt, or --precision int8"
        )
    if spec.target != "tensorrt" or stored.block is None:
        return
    if not stored.symmetric:
        raise Error(
            f"{stored.name} cannot be written for tensorrt, which reads symmetric formats; use {stored.family}-b{stored.block}"
        )


def linear_bytes(shape: tuple[int, ...], spec: WeightSpec, vector_type: str = "float32") -> int:
    """Bytes that the tensor of a Linear, a convolution or a norm takes in the bundle, whose vectors are of a type."""
    size = math.prod(shape)
    if len(shape) == 1 or spec.format.floating:
        return size * (np.dtype(vector_type).itemsize if len(shape) == 1 else spec.format.bits // 8)
    kind, bits, (columns, inputs) = _kind(spec), spec.format.bits, shape
    scale = np.dtype(_scale_dtype(spec)).itemsize
    if spec.format.block is None and kind != "blocks":
        return size * bits // 8 + columns * scale
    block = _block(spec, inputs)
    count = -(-inputs // block)
    zeros = 0 if spec.format.symmetric else -(-count * bits // 8)
    return columns * (count * block * bits // 8 + count * scale + zeros)


def vector_dtype(spec: WeightSpec) -> str:
    """The type of the norms of a backbone: that of the sum that they scale."""
    return spec.computed if spec.target == "cuda" else "float32"


def table_bytes(shape: tuple[int, ...], spec: WeightSpec) -> int:
    """Bytes that the table of a lookup takes in the bundle."""
    return math.prod(shape) * spec.format.bits // 8 + (0 if spec.format.floating else 4 * shape[0])


def _kind(spec: WeightSpec) -> str:
    stored = spec.format
    if stored.floating:
        return "floating"
    if spec.target == "tensorrt":
        return "dequantized"
    return "integer" if stored.block is None and spec.target in IN_FLOAT32 else "blocks"


def _block(spec: WeightSpec, inputs: int) -> int:
    """The block that MatMulNBits is told. Where a column has one scale, that scale is repeated for the smallest blocks, which
    CUDA's fused kernels take."""
    return spec.format.block or BLOCKS[0]


def _scale_dtype(spec: WeightSpec) -> str:
    """The type that scales are stored in: the one they are multiplied in, where CUDA's fused kernels read them as they lie."""
    return spec.computed if _kind(spec) == "blocks" and spec.target == "cuda" else spec.format.scale_dtype


def _floating(graph: Graph, x: str, weight: Matrix, spec: WeightSpec, to: str) -> str:
    if spec.computed == "float32":
        return graph.op("MatMul", x, plain(graph, weight, spec, transposed=True), to=to)
    return graph.op("MatMul", x, _floats(graph, weight, spec, transposed=True), to=to)


def _floats(graph: Graph, weight: Matrix, spec: WeightSpec, *, transposed: bool = False) -> str:
    """A weight in its floating format."""
    shape, fmt = weight.shape, spec.format
    if fmt.family == "bf16":
        graph.metadata[IN_BF16] = "1"
    seen = (fmt.onnx_type, shape[::-1] if transposed else shape) if fmt.onnx_type != fmt.dtype else None
    return graph.weight(weight.name, shape, fmt.dtype, _rounded(weight, spec), transposed=transposed, seen=seen)


def _integer(graph: Graph, x: str, weight: Matrix, spec: WeightSpec, to: str) -> str:
    """Activations become uint8 with zero point 128, one scale a token; the sums are exact in int32, and leave the product
    multiplied by their columns' scales: as a Cast and a Mul of their own these passes took a tenth of a head's time."""
    return graph.op("Mul", *_integer_product(graph, x, weight, spec), to=to)


def _integer_product(graph: Graph, x: str, weight: Matrix, spec: WeightSpec, factor: float = 1.0) -> tuple[str, str]:
    """The product [..., N], times `factor`, without the scales of tokens, and these [..., 1]."""
    scales: list[np.ndarray] = []
    codes = (chunk.codes for chunk in _quantized(weight, spec, scales))
    matrix = graph.weight(weight.name, weight.shape, "int8", codes, transposed=True)
    scale = graph.weight(
        f"{weight.name}.scale", (weight.shape[0],), "float32", [np.concatenate(scales)[:, 0] * np.float32(factor)]
    )
    counted, unit = graph.once(_PER_TOKEN, x, lambda: _per_token(graph, x, weight.shape[1]))
    if spec.format.narrow:
        graph.metadata[NARROW_CODES] = str(spec.format.range[1])
    # Each has a constant of its own, for onnxruntime before 1.30 on x86 without VNNI (`session._options`).
    middles = graph.constant(128, "uint8"), graph.own_constant(f"constant_{weight.name}{MIDDLE}", 0, "int8")
    of_product = counted, matrix, graph.constant(1.0, "float32"), scale, *middles
    return graph.op("MatMulIntegerToFloat", *of_product, domain=CONTRIB), unit


def _per_token(graph: Graph, x: str, inputs: int) -> tuple[str, str]:
    """x [..., inputs] -> codes uint8 about 128 [..., inputs], and the scale of each token [..., 1]. A token is one block of
    QuantizeLinear, which divides and rounds in one pass."""
    highest, lowest = graph.op("ReduceMax", x, graph.ints(-1)), graph.op("ReduceMin", x, graph.ints(-1))
    largest = graph.op("Max", highest, graph.op("Neg", lowest), graph.constant(1e-30, "float32"))  # [..., 1], above zero
    unit = graph.op("Mul", largest, graph.constant(1 / 127, "float32"))
    (middle,) = graph.once("middle", graph.rows or x, lambda: (_middle(graph, graph.rows or x),))
    return graph.op("QuantizeLinear", x, unit, middle, attributes={"axis": -1, "block_size": inputs}), unit


def _middle(graph: Graph, x: str) -> str:
    """x [..., any] -> the code that stands for 0, of each token [..., 1]."""
    rows = graph.op("Shape", x, attributes={"end": -1})
    shape = graph.op("Concat", rows, graph.ints(1), attributes={"axis": 0})
    return graph.op("Expand", graph.constant(128, "uint8"), shape)


def _blocks(graph: Graph, x: str, weight: Matrix, spec: WeightSpec, to: str) -> str:
    """onnxruntime's own operator for weights in blocks, four or eight bits each."""
    stored, (columns, inputs) = spec.format, weight.shape
    block = _block(spec, inputs)
    count = -(-inputs // block)
    scales: list[np.ndarray] = []
    zeros: list[np.ndarray] = []
    packed = spec.packed and stored.symmetric and block == BLOCKS[0] and can_be_packed(columns, inputs, stored.bits)
    chunks = _quantized(weight, spec, scales, zeros)
    codes = (pack_fused(chunk.codes, stored.bits) if packed else pack_blocks(chunk.codes, stored, block) for chunk in chunks)
    matrix = graph.weight(weight.name, (columns, count, block * stored.bits // 8), "uint8", codes)
    repeated = (np.broadcast_to(part, (part.shape[0], count)) for part in scales)
    scale = graph.weight(f"{weight.name}.scale", (columns, count), _scale_dtype(spec), repeated)
    inputs_of = [x, matrix, scale if spec.target == "cuda" else _as_computed(graph, scale, spec)]
    if not stored.symmetric:
        points = [pack_zeros(part, stored) for part in zeros]
        inputs_of.append(graph.weight(f"{weight.name}.zero", (columns, points[0].shape[1]), "uint8", points))
    attributes = {"K": inputs, "N": columns, "bits": stored.bits, "block_size": block, "accuracy_level": _ACCURACY}
    attributes |= {PACKED: 1} if packed else {}
    if spec.target not in IN_FLOAT32:
        return graph.op("MatMulNBits", *inputs_of, attributes=attributes, to=to, domain=CONTRIB)
    product = graph.op("MatMulNBits", *inputs_of, attributes=attributes, domain=CONTRIB)
    return graph.op("Add", product, *graph.once("nothing", x, lambda: (_nothing(graph, x),)), to=to)


def _nothing(graph: Graph, x: str) -> str:
    """x [..., K] -> 0 of each token [..., 1], or NaN where x is not finite, which kernels that round x would hide."""
    return graph.op("Mul", graph.op("ReduceSum", x, graph.ints(-1)), graph.constant(0.0, "float32"))


def _dequantized(graph: Graph, x: str, weight: Matrix, spec: WeightSpec, to: str) -> str:
    """Weights [K, N] and their scales, as TensorRT fuses them into its own kernels: one a column, or one a block, of which its
    parser takes whole ones alone, so that zeros stand behind a short last one, and behind the inputs."""
    stored, (columns, inputs) = spec.format, weight.shape
    check_linear(weight.shape, spec)
    scales: list[np.ndarray] = []
    chunks = _quantized(weight, spec, scales)
    if stored.block is None:
        codes = (chunk.codes for chunk in chunks)
        seen = stored.onnx_type, weight.shape[::-1]
        matrix = graph.weight(weight.name, weight.shape, "int8", codes, transposed=True, seen=seen)
        scales_of = graph.weight(f"{weight.name}.scale", (columns,), stored.scale_dtype, (part[:, 0] for part in scales))
        scale = _as_computed(graph, scales_of, spec)
        return graph.op("MatMul", x, graph.op("DequantizeLinear", matrix, scale, attributes={"axis": 1}), to=to)
    whole = stored.blocks(inputs) * stored.block
    if whole > inputs:
        (x,) = graph.once(f"up to {whole}", x, lambda: (_lengthened(graph, x, whole - inputs, spec),))
    codes = (np.pad(chunk.codes, ((0, 0), (0, whole - inputs))) for chunk in chunks)
    shape, transposed = (columns, whole), stored.family == "int8" or columns % 2 == 0
    if stored.family == "int8":
        matrix = graph.weight(weight.name, shape, "int8", codes, transposed=True)
    elif transposed:
        pairs = (pack_pairs(each) for each in codes)
        matrix = graph.weight(weight.name, (columns // 2, whole), "uint8", pairs, transposed=True, seen=("int4", shape[::-1]))
    else:  # an odd number of columns, of which no pairs can be made: pairs are of inputs
        pairs = (pack_pairs(np.ascontiguousarray(each.T)).T for each in codes)
        matrix = graph.weight(weight.name, (columns, whole // 2), "uint8", pairs, seen=("int4", shape))
    counted = (columns, stored.blocks(inputs))
    scales_of = graph.weight(f"{weight.name}.scale", counted, stored.scale_dtype, scales, transposed=transposed)
    attributes = {"axis": 0 if transposed else 1, "block_size": stored.block}
    floats = graph.op("DequantizeLinear", matrix, _as_computed(graph, scales_of, spec), attributes=attributes)
    if not transposed:
        floats = graph.op("Transpose", floats, attributes={"perm": [1, 0]})
    return graph.op("MatMul", x, floats, to=to)


def _lengthened(graph: Graph, x: str, missing: int, spec: WeightSpec) -> str:
    """x [..., K] with so many zeros behind its last axis."""
    nothing = graph.constant(0, spec.computed)
    return graph.op("Pad", x, graph.ints(0, missing), nothing, graph.ints(-1))


def _quantized(
    weight: Matrix, spec: WeightSpec, scales: list[np.ndarray], zeros: list[np.ndarray] | None = None
) -> Iterator[Quantized]:
    """The chunks as codes; their scales and zero points, which are small, are put aside for later tensors."""
    for chunk in weight.quantized(spec.format):
        scales.append(chunk.scales)
        if chunk.zeros is not None and zeros is not None:
            zeros.append(chunk.zeros)
        yield chunk


def _rounded(weight: Matrix, spec: WeightSpec) -> Iterator[np.ndarray]:
    return (rounded(chunk, spec.format, part.tensor) for part in weight.parts for chunk in part.chunks())


def _finite(weight: Weight) -> Iterator[np.ndarray]:
    for chunk in weight.chunks():
        require_finite(chunk, weight.tensor)
        yield chunk


def _as_computed(graph: Graph, scale: str, spec: WeightSpec) -> str:
    """Scales in the type that they are multiplied in."""
    if spec.format.scale_dtype == spec.computed:
        return scale
    return graph.op("Cast", scale, attributes={"to": _HALF if spec.computed == "float16" else _FLOAT})


def _as_float(graph: Graph, name: str, dtype: str) -> str:
    return name if dtype == "float32" else graph.op("Cast", name, attributes={"to": _FLOAT})


_LOWERINGS: dict[str, Callable[[Graph, str, Matrix, WeightSpec, str], str]] = {
    "floating": _floating,
    "integer": _integer,
    "blocks": _blocks,
    "dequantized": _dequantized,
}
