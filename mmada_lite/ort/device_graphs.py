"""The rearrangements that decoding makes of tensors, as graphs, so that they can be made where the tensors lie.

`join` puts two tensors after each other, `cut` takes a stretch of positions out of keys and values, `pick` takes positions by
their places. The graphs are written here as the few bytes of ONNX that they are, since the runtime has no package that writes
ONNX. Nothing here opens a session.
"""

from collections.abc import Sequence

OPSET, IR_VERSION = 23, 11  # what the graphs of a bundle carry
FLOAT, INT64, HALF = 1, 7, 10  # ONNX's numbers of types
_INT = 2  # ONNX's number of an attribute that is one integer
_TO_THE_END = 2**63 - 1


def join_graph(kind: int) -> bytes:
    """a [A, ...], b [B, ...] of three axes -> joined [A + B, ...]. kind: FLOAT or HALF."""
    node = _node("Concat", ["a", "b"], "joined", ("axis", 0))
    return _model([node], [_value(name, kind, 3) for name in ("a", "b")], [_value("joined", kind, 3)], [])


def cut_graph(kind: int, count: int, behind: bool = False) -> bytes:
    """x_0 .. x_n [B, H, P, D], start [1], stop [1] -> y_0 .. y_n without the positions start..stop-1, in one run; `behind`
    a past each, p_0 .. p_n [B, H, R, D], which comes first."""
    nodes = []
    for n in range(count):
        nodes.append(_node("Slice", [f"x_{n}", "zero", "start", "axis"], f"before_{n}"))
        nodes.append(_node("Slice", [f"x_{n}", "stop", "end", "axis"], f"after_{n}"))
        first = [f"p_{n}"] if behind else []
        nodes.append(_node("Concat", [*first, f"before_{n}", f"after_{n}"], f"y_{n}", ("axis", 2)))
    pasts = [_value(f"p_{n}", kind, 4) for n in range(count)] if behind else []
    given = pasts + [_value(f"x_{n}", kind, 4) for n in range(count)]
    given += [_value(name, INT64, 1, fixed=1) for name in ("start", "stop")]
    constants = [_constant("zero", 0), _constant("end", _TO_THE_END), _constant("axis", 2)]
    return _model(nodes, given, [_value(f"y_{n}", kind, 4) for n in range(count)], constants)


def pick_graph(kind: int, rank: int, count: int) -> bytes:
    """x_0 .. x_n [..., P, D] of `rank` axes, places [..., K, 1] -> y_0 .. y_n [..., K, D], in one run."""
    nodes = [_node("GatherND", [f"x_{n}", "places"], f"y_{n}", ("batch_dims", rank - 2)) for n in range(count)]
    given = [_value(f"x_{n}", kind, rank) for n in range(count)] + [_value("places", INT64, rank)]
    return _model(nodes, given, [_value(f"y_{n}", kind, rank) for n in range(count)], [])


def _model(nodes: Sequence[bytes], inputs: Sequence[bytes], outputs: Sequence[bytes], constants: Sequence[bytes]) -> bytes:
    """ModelProto: ir_version 1, graph 7, opset_import 8. GraphProto: node 1, name 2, initializer 5, input 11, output 12."""
    parts = [_message(1, node) for node in nodes] + [_message(2, b"ops")] + [_message(5, value) for value in constants]
    parts += [_message(11, value) for value in inputs] + [_message(12, value) for value in outputs]
    return _number(1, IR_VERSION) + _message(7, b"".join(parts)) + _message(8, _number(2, OPSET))


def _node(operator: str, inputs: Sequence[str], output: str, integer: tuple[str, int] | None = None) -> bytes:
    """NodeProto: input 1, output 2, op_type 4, attribute 5. AttributeProto: name 1, i 3, type 20.

    integer: the name and the value of its one attribute."""
    node = b"".join(_message(1, name.encode()) for name in inputs) + _message(2, output.encode())
    node += _message(4, operator.encode())
    if integer is not None:
        name, value = integer
        node += _message(5, _message(1, name.encode()) + _number(3, value) + _number(20, _INT))
    return node


def _value(name: str, kind: int, rank: int, fixed: int | None = None) -> bytes:
    """ValueInfoProto: name 1, type 2 { tensor_type 1 { elem_type 1, shape 2 { dim 1 { dim_value 1 } } } }.

    Axes are free, or all of the length `fixed`."""
    shape = b"".join(_message(1, b"" if fixed is None else _number(1, fixed)) for _ in range(rank))
    return _message(1, name.encode()) + _message(2, _message(1, _number(1, kind) + _message(2, shape)))


def _constant(name: str, value: int) -> bytes:
    """TensorProto of one int64: dims 1, data_type 2, int64_data 7, name 8."""
    return _number(1, 1) + _number(2, INT64) + _number(7, value) + _message(8, name.encode())


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth bit says that more follow."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])
