"""Small graphs as the bytes of ONNX that they are, since the runtime has no package that writes ONNX.

It writes the few records of ONNX's protobuf that its callers need, by their field numbers. It knows no operator.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

OPSET, IR_VERSION = 23, 11  # what the graphs of a bundle carry
CONTRIB = "com.microsoft"  # the domain of onnxruntime's own operators
FLOAT, INT64, HALF = 1, 7, 10  # ONNX's numbers of types
_TYPES: Mapping[str, int] = {"float32": FLOAT, "uint8": 2, "int8": 3, "int64": INT64, "float16": HALF}
_INT, _INTS = 2, 7  # ONNX's numbers of attributes that are one integer and several


def model(
    nodes: Sequence[bytes],
    inputs: Sequence[bytes],
    outputs: Sequence[bytes],
    constants: Sequence[bytes],
    domains: Sequence[str] = ("",),
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """ModelProto: ir_version 1, graph 7, opset_import 8 { domain 1, version 2 }, metadata_props 14 { key 1, value 2 }.
    GraphProto: node 1, name 2, initializer 5, input 11, output 12."""
    parts = [_message(1, each) for each in nodes] + [_message(2, b"ops")] + [_message(5, each) for each in constants]
    parts += [_message(11, each) for each in inputs] + [_message(12, each) for each in outputs]
    opsets = [_message(1, name.encode()) + _number(2, 1) if name else _number(2, OPSET) for name in domains]
    parts = [_number(1, IR_VERSION), _message(7, b"".join(parts)), *(_message(8, each) for each in opsets)]
    return b"".join(parts) + b"".join(
        _message(14, _message(1, key.encode()) + _message(2, text.encode())) for key, text in (metadata or {}).items()
    )


def node(
    operator: str,
    inputs: Sequence[str],
    output: str,
    integers: Mapping[str, int | Sequence[int]] | None = None,
    domain: str = "",
    unused: int = 0,
) -> bytes:
    """NodeProto: input 1, output 2, op_type 4, attribute 5, domain 7. AttributeProto: name 1, i 3, ints 8, type 20.

    integers: the names and values of its attributes; unused: outputs behind the first that nothing reads."""
    outputs = [output, *(f"{output}_unused_{number}" for number in range(unused))]
    written = b"".join(_message(1, name.encode()) for name in inputs) + b"".join(_message(2, name.encode()) for name in outputs)
    written += _message(4, operator.encode())
    for name, given in (integers or {}).items():
        if isinstance(given, int):
            about = _number(3, given) + _number(20, _INT)
        else:
            about = b"".join(_number(8, number) for number in given) + _number(20, _INTS)
        written += _message(5, _message(1, name.encode()) + about)
    return written + (_message(7, domain.encode()) if domain else b"")


def value(name: str, kind: int, rank: int, fixed: int | None = None) -> bytes:
    """ValueInfoProto: name 1, type 2 { tensor_type 1 { elem_type 1, shape 2 { dim 1 { dim_value 1 } } } }.

    Axes are free, or all of the length `fixed`."""
    shape = b"".join(_message(1, b"" if fixed is None else _number(1, fixed)) for _ in range(rank))
    return _message(1, name.encode()) + _message(2, _message(1, _number(1, kind) + _message(2, shape)))


def constant(name: str, values: NDArray[np.generic]) -> bytes:
    """TensorProto: dims 1, data_type 2, name 8, raw_data 9 (little-endian)."""
    dims = b"".join(_number(1, size) for size in values.shape)
    kind = _number(2, _TYPES[values.dtype.name])
    return dims + kind + _message(8, name.encode()) + _message(9, values.astype(values.dtype.newbyteorder("<")).tobytes())


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number % 2**64)  # below zero as its two's complement


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth bit says that more follow."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])
