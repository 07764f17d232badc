"""The text head and the image head as ONNX graphs: hidden states in, a token with its log-probability out, chosen on
the device.

Guidance is linear, so it is applied (`mix`) before the head, which then runs once. Drawing a token stands in an If,
so that greedy decoding does not pay for it. For cards both ways are computed and one is taken: a step with an If cannot
be captured as a CUDA graph, and what drawing adds reads the logits again, which is little beside the matrix. Columns are
searched and summed in runs, first the run and then the column in it: onnxruntime's reductions over a row are two to three
times as fast as its ArgMax and sixteen times as fast as its CumSum, and the rounding error of a sum does not grow with the
vocabulary. Which rows of the output matrix a head holds is the caller's choice.
"""

import math

import numpy as np

from mmada_lite.contracts import IN_FLOAT32
from mmada_lite.export import lowering
from mmada_lite.export.graph import Graph
from mmada_lite.export.lowering import WeightSpec
from mmada_lite.export.weights import Weight

_COLDEST = 1e-4  # the lowest temperature above 0 that settings have
_BELOW_ONE = 1 - 2.0**-23  # times any float32 total this stays below the total


def build_head(graph: Graph, weight: Weight, spec: WeightSpec) -> None:
    """hidden [R, Q, D], mix [N, R], temperature [], uniform [N, Q] -> token, log_probability, entropy [N, Q], logits
    [N, Q, V]."""
    columns, d_model = weight.shape
    hidden = graph.input("hidden", "float32", ("R", "Q", d_model))
    mix = graph.input("mix", "float32", ("N", "R"))
    temperature = graph.input("temperature", "float32", ())
    uniform = graph.input("uniform", "float32", ("N", "Q"))
    states = lowering.narrow(graph, _mixed(graph, hidden, mix, d_model), spec)
    if spec.computed == "float32":
        logits = lowering.linear(graph, states, weight, spec, to="logits")
    else:
        logits = lowering.widen(graph, lowering.linear(graph, states, weight, spec), spec, to="logits")
    captured = spec.target not in IN_FLOAT32
    best, largest = _search(graph, logits, columns, captured)
    chosen = (_one_of_both if captured else _one_way)(graph, logits, temperature, uniform, best, columns)
    _measure(graph, logits, chosen, best, largest, columns)
    graph.op("Squeeze", chosen, graph.ints(-1), to="token")
    for name, dtype in (("token", "int64"), ("log_probability", "float32"), ("entropy", "float32")):
        graph.output(name, dtype, ("N", "Q"))
    graph.output("logits", "float32", ("N", "Q", columns))


def _one_way(graph: Graph, logits: str, temperature: str, uniform: str, best: str, columns: int) -> str:
    """The index [N, Q, 1] drawn at a temperature above 0, `best` at 0; of the two only that one is computed."""
    drawn, greedy = graph.branch(), graph.branch()
    drawn.op("Identity", _draw(drawn, logits, temperature, uniform, columns), to="drawn")
    drawn.output("drawn", "int64", ("N", "Q", 1))
    greedy.op("Identity", best, to="most_probable")
    greedy.output("most_probable", "int64", ("N", "Q", 1))
    return graph.choose(_warm(graph, temperature), drawn, greedy, to="chosen")


def _one_of_both(graph: Graph, logits: str, temperature: str, uniform: str, best: str, columns: int) -> str:
    """The same, both computed."""
    drawn = _draw(
        graph, logits, graph.op("Max", temperature, graph.constant(_COLDEST, "float32")), uniform, columns, captured=True
    )
    return graph.op("Where", _warm(graph, temperature), drawn, best)


def _warm(graph: Graph, temperature: str) -> str:
    return graph.op("Greater", temperature, graph.constant(0.0, "float32"))


def _mixed(graph: Graph, hidden: str, mix: str, d_model: int) -> str:
    """mix [N, R] times hidden [R, Q, D] -> [N, Q, D]."""
    flat = graph.op("Reshape", hidden, graph.ints(0, -1))
    return graph.op("Reshape", graph.op("MatMul", mix, flat), graph.ints(0, -1, d_model))


def _search(graph: Graph, logits: str, columns: int, captured: bool) -> tuple[str, str]:
    """The lowest index of the largest logit, int64, and that logit, both [N, Q, 1]."""
    runs = _runs(graph, logits, columns)
    maxima = graph.op("ReduceMax", runs, graph.ints(-1), attributes={"keepdims": 0})  # [N, Q, runs]
    place = _arg_max(graph, maxima)
    best = _index(graph, place, _arg_max(graph, _run_at(graph, runs, place, columns, captured)), columns)
    return best, graph.op("ReduceMax", maxima, graph.ints(-1))


def _measure(graph: Graph, logits: str, chosen: str, best: str, largest: str, columns: int) -> None:
    """log p(chosen) and the entropy of softmax(logits), in nats.

    With m the largest logit, log p(m) = log softmax(m) keeps its precision near p = 1, where m - logsumexp would
    cancel; the softmax is divided by its own sum, since onnxruntime normalizes a long row to some 1e-5 only. log p(t)
    = (l_t - m) + log p(m) and H = m - log p(m) - sum p l.
    """
    probabilities = graph.op("Softmax", logits, attributes={"axis": -1})
    total = _sum(graph, probabilities, columns)  # [N, Q, 1], nearly 1
    sure = graph.op("Log", graph.op("Div", _column(graph, probabilities, best), total))
    kept = graph.op("Add", graph.op("Sub", _column(graph, logits, chosen), largest), sure)
    graph.op("Squeeze", kept, graph.ints(-1), to="log_probability")
    mean = graph.op("Div", _sum(graph, graph.op("Mul", probabilities, logits), columns), total)
    graph.op("Squeeze", graph.op("Sub", graph.op("Sub", largest, sure), mean), graph.ints(-1), to="entropy")


def _draw(graph: Graph, logits: str, temperature: str, uniform: str, columns: int, *, captured: bool = False) -> str:
    """[N, Q, 1]: the first column whose cumulative probability at `temperature` exceeds uniform times the total."""
    runs = _runs(graph, graph.op("Softmax", graph.op("Div", logits, temperature), attributes={"axis": -1}), columns)
    sums = graph.op("ReduceSum", runs, graph.ints(-1), attributes={"keepdims": 0})  # [N, Q, runs]
    ends = _running_sum(graph, sums)
    share = graph.op("Min", graph.op("Unsqueeze", uniform, graph.ints(-1)), graph.constant(_BELOW_ONE, "float32"))
    goal = graph.op("Mul", share, _last(graph, ends))  # [N, Q, 1]
    place = _first_above(graph, ends, goal)
    begin = _column(graph, _running_sum(graph, sums, exclusive=True), place)
    inside = _running_sum(graph, _run_at(graph, runs, place, columns, captured))  # [N, Q, run]
    # Rounding may leave the remaining goal a hair above the run's own sum: it is kept below, so that a column is always found.
    reachable = graph.op("Mul", _last(graph, inside), graph.constant(_BELOW_ONE, "float32"))
    offset = _first_above(graph, inside, graph.op("Min", graph.op("Sub", goal, begin), reachable))
    return _index(graph, place, offset, columns)


def _run_length(columns: int) -> int:
    """The divisor that makes run length plus number of runs smallest; a prime number of columns is one run."""
    return columns // max(n for n in range(1, math.isqrt(columns) + 1) if columns % n == 0)


def _runs(graph: Graph, x: str, columns: int) -> str:
    """x [N, Q, V] -> [N, Q, runs, run]."""
    run = _run_length(columns)
    return graph.op("Reshape", x, graph.ints(0, 0, columns // run, run))


def _run_at(graph: Graph, runs: str, place: str, columns: int, captured: bool) -> str:
    """runs [N, Q, runs, run] at place [N, Q, 1] -> [N, Q, run]. GatherND cannot be captured by every onnxruntime (`fused`)."""
    if not captured:
        return graph.op("GatherND", runs, place, attributes={"batch_dims": 2})
    every = graph.constant(np.ones(_run_length(columns)), "int64")
    index = graph.op("Mul", graph.op("Unsqueeze", place, graph.ints(-1)), every)  # [N, Q, 1, run]
    return graph.op("Squeeze", graph.op("GatherElements", runs, index, attributes={"axis": 2}), graph.ints(2))


def _index(graph: Graph, place: str, offset: str, columns: int) -> str:
    return graph.op("Add", graph.op("Mul", place, graph.constant(_run_length(columns), "int64")), offset)


def _column(graph: Graph, x: str, index: str) -> str:
    """x [N, Q, any] at index [N, Q, 1] -> [N, Q, 1]."""
    return graph.op("GatherElements", x, index, attributes={"axis": -1})


def _sum(graph: Graph, x: str, columns: int) -> str:
    """x [N, Q, V] -> [N, Q, 1]."""
    sums = graph.op("ReduceSum", _runs(graph, x, columns), graph.ints(-1), attributes={"keepdims": 0})
    return graph.op("ReduceSum", sums, graph.ints(-1))


def _running_sum(graph: Graph, x: str, *, exclusive: bool = False) -> str:
    return graph.op("CumSum", x, graph.constant(-1, "int64"), attributes={"exclusive": int(exclusive)})


def _last(graph: Graph, x: str) -> str:
    """x [N, Q, any] -> its last column [N, Q, 1]."""
    return graph.op("Slice", x, graph.ints(-1), graph.ints(2**62), graph.ints(-1))


def _first_above(graph: Graph, rising: str, goal: str) -> str:
    """Index of the first entry above `goal` [N, Q, 1], along the last axis -> int64 [N, Q, 1]."""
    return _arg_max(graph, graph.op("Cast", graph.op("Greater", rising, goal), attributes={"to": 1}))


def _arg_max(graph: Graph, x: str) -> str:
    """Lowest index of the largest entry along the last axis -> int64 [N, Q, 1]."""
    return graph.op("ArgMax", x, attributes={"axis": -1, "keepdims": 1})
