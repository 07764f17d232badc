"""The rearrangements that decoding makes of tensors, as graphs, so that they can be made where the tensors lie.

`join` puts two tensors after each other, `cut` takes a stretch of positions out of keys and values, `pick` takes positions by
their places. Nothing here opens a session.
"""

import numpy as np

from mmada_lite.ort.onnx_bytes import FLOAT, HALF, INT64, constant, model, node, value

__all__ = ["FLOAT", "HALF", "cut_graph", "join_graph", "pick_graph"]
_TO_THE_END = 2**63 - 1


def join_graph(kind: int) -> bytes:
    """a [A, ...], b [B, ...] of three axes -> joined [A + B, ...]. kind: FLOAT or HALF."""
    joined = node("Concat", ["a", "b"], "joined", {"axis": 0})
    return model([joined], [value(name, kind, 3) for name in ("a", "b")], [value("joined", kind, 3)], [])


def cut_graph(kind: int, count: int, behind: bool = False) -> bytes:
    """x_0 .. x_n [B, H, P, D], start [1], stop [1] -> y_0 .. y_n without the positions start..stop-1, in one run; `behind`
    a past each, p_0 .. p_n [B, H, R, D], which comes first."""
    nodes = []
    for n in range(count):
        nodes.append(node("Slice", [f"x_{n}", "zero", "start", "axis"], f"before_{n}"))
        nodes.append(node("Slice", [f"x_{n}", "stop", "end", "axis"], f"after_{n}"))
        first = [f"p_{n}"] if behind else []
        nodes.append(node("Concat", [*first, f"before_{n}", f"after_{n}"], f"y_{n}", {"axis": 2}))
    pasts = [value(f"p_{n}", kind, 4) for n in range(count)] if behind else []
    given = pasts + [value(f"x_{n}", kind, 4) for n in range(count)]
    given += [value(name, INT64, 1, fixed=1) for name in ("start", "stop")]
    constants = [_one("zero", 0), _one("end", _TO_THE_END), _one("axis", 2)]
    return model(nodes, given, [value(f"y_{n}", kind, 4) for n in range(count)], constants)


def pick_graph(kind: int, rank: int, count: int) -> bytes:
    """x_0 .. x_n [..., P, D] of `rank` axes, places [..., K, 1] -> y_0 .. y_n [..., K, D], in one run."""
    nodes = [node("GatherND", [f"x_{n}", "places"], f"y_{n}", {"batch_dims": rank - 2}) for n in range(count)]
    given = [value(f"x_{n}", kind, rank) for n in range(count)] + [value("places", INT64, rank)]
    return model(nodes, given, [value(f"y_{n}", kind, rank) for n in range(count)], [])


def _one(name: str, number: int) -> bytes:
    return constant(name, np.array([number], np.int64))
