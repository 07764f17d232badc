"""`mmada-lite bench ceiling`: what this machine can do at all, before anything is said of a model on it.

Products of the shapes that a model has, in every stored form, at several numbers of tokens; attention; what a node moves;
memory bandwidth. All forms take turns within a round. Weights pass through the exporter's own lowerings, so that a form here
is the very graph that a bundle holds; `int8 alone` is its product without the rounding of activations and their scales. It
knows shapes and no model.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from mmada_lite.arguments import Parser
from mmada_lite.bench.command import add_output, execute, require_counts, require_seconds
from mmada_lite.bench.record import Row, Run, spread
from mmada_lite.bench.speed.cost import Rates
from mmada_lite.bundle import Architecture
from mmada_lite.export.formats import format_named
from mmada_lite.export.graph import CONTRIB, Graph, WeightFile
from mmada_lite.export.lowering import Weight, WeightSpec, linear, linear_bytes
from mmada_lite.export.synthetic import SIZES, RandomTensors, size_named
from mmada_lite.ort.devices import choose_device
from mmada_lite.ort.session import open_session, usable_cores

ALONE = "int8 alone"
FORMS = ("fp32", "int8", ALONE, "int8-b128", "int4-b32", "int4-b128")
TOKENS = (1, 32, 128, 512, 1056)
_NODES = 64  # in the chain that measures a node's own cost


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure: rounds after one that does not count, the seconds of a turn, bytes of the memory test's tensors, and
    the seconds of rest before a turn."""

    rounds: int = 5
    slice: float = 0.05
    buffer: int = 256 << 20
    rest: float = 0.2


QUICK = Effort(1, 0.002, 4 << 20, 0.0)
_WARM = 3  # runs of a turn that do not count


def matrices(architecture: Architecture) -> list[tuple[int, int, int]]:
    """(K, N, how many a layer) of a layer's products; a head's stands last, with as many columns as a picture has codes."""
    d, m, k = architecture.d_model, architecture.mlp_hidden_size, architecture.n_kv_heads * architecture.head_dim
    counted: dict[tuple[int, int], int] = {}
    for shape, count in (((d, d), 2), ((d, k), 2), ((d, m), 2), ((m, d), 1)):
        counted[shape] = counted.get(shape, 0) + count
    counted.setdefault((d, 8192 if d >= 1024 else 4 * d), 0)
    return [(k, n, count) for (k, n), count in counted.items()]


def measure(
    architecture: Architecture, forms: Sequence[str], tokens: Sequence[int], threads: int, effort: Effort
) -> Iterator[Row]:
    """Every row of one shape, as it is measured."""
    with tempfile.TemporaryDirectory() as scratch:
        for number, (inputs, columns, count) in enumerate(matrices(architecture)):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            yield from _products(folder, inputs, columns, count, forms, tokens, threads, effort)
        yield from _attention(Path(scratch), architecture, tokens, threads, effort)
        yield from _nodes(Path(scratch), architecture, tokens, threads, effort)
    yield from memory(threads, effort)


def rates(rows: Sequence[Row], threads: int) -> Rates:
    """The medians of `measure` as the cost model takes them: a form's rate is that of a whole layer's products."""
    mine = [row for row in rows if row["threads"] == threads]
    matrix: dict[str, dict[int, float]] = {}
    for form in dict.fromkeys(row["form"] for row in mine if row["what"] == "product"):
        cells = [row for row in mine if row["what"] == "product" and row["form"] == form and row["count"]]
        for tokens in dict.fromkeys(row["tokens"] for row in cells):
            layer = [row for row in cells if row["tokens"] == tokens]
            work = sum(row["count"] * row["k"] * row["n"] for row in layer)
            took = sum(row["count"] * row["k"] * row["n"] / row["giga_per_s"]["median"] for row in layer)
            matrix.setdefault(form, {})[tokens] = 1e9 * work / took
    by_tokens = {
        what: {row["tokens"]: 1e9 * row["giga_per_s"]["median"] for row in mine if row["what"] == what}
        for what in ("attention", "elementwise")
    }
    reading = [row["giga_per_s"]["median"] for row in mine if row["what"] == "memory" and row["form"].endswith("read")]
    node = next(row["seconds"]["median"] for row in mine if row["what"] == "node")
    return Rates(matrix, by_tokens["attention"], by_tokens["elementwise"], 1e9 * max(reading), node)


def _products(
    folder: Path,
    inputs: int,
    columns: int,
    count: int,
    forms: Sequence[str],
    tokens: Sequence[int],
    threads: int,
    effort: Effort,
) -> Iterator[Row]:
    source = RandomTensors({"w": (columns, inputs)})
    sessions = {form: _product(folder, source, form, threads) for form in forms}
    for token_count in tokens:
        x = np.random.default_rng(1).standard_normal((token_count, inputs), dtype=np.float32)
        fed = {form: (x * 40 + 128).clip(0, 255).astype(np.uint8) if form == ALONE else x for form in forms}
        timed = turns({form: _runner(session, {"x": fed[form]}) for form, session in sessions.items()}, effort)
        for form, seconds in timed.items():
            about = {"what": "product", "form": form, "k": inputs, "n": columns, "count": count, "tokens": token_count}
            stored = "int8" if form == ALONE else form
            about["bytes_a_weight"] = linear_bytes(source.shape("w"), WeightSpec(format_named(stored))) / (inputs * columns)
            yield about | {"threads": threads, "giga_per_s": spread(2e-9 * token_count * inputs * columns / s for s in seconds)}


def _product(folder: Path, source: RandomTensors, form: str, threads: int) -> onnxruntime.InferenceSession:
    """A session that multiplies by the source's matrix as an exported graph does; ALONE: by the int8 product alone."""
    columns, inputs = source.shape("w")

    def build(graph: Graph) -> None:
        if form != ALONE:
            x = graph.input("x", "float32", ("M", inputs))
            linear(graph, x, Weight(source, "w"), WeightSpec(format_named(form)), to="y")
        else:
            values = source.read("w")
            codes = np.round(values / np.abs(values).max() * 127).astype(np.int8)
            x = graph.input("x", "uint8", ("M", inputs))
            matrix = graph.weight("w", values.shape, "int8", [codes], transposed=True)
            scales = graph.constant(np.full(columns, 1e-4), "float32")
            given = x, matrix, graph.constant(1.0, "float32"), scales, graph.constant(128, "uint8")
            graph.op("MatMulIntegerToFloat", *given, to="y", domain=CONTRIB)
        graph.output("y", "float32", ("M", columns))

    return _session(folder, form.replace(" ", "-"), build, threads)


def _attention(folder: Path, a: Architecture, tokens: Sequence[int], threads: int, effort: Effort) -> Iterator[Row]:
    """Queries [1, H, tokens, Hd] over as many keys, 256 at the least: products and softmax as one node."""

    def build(graph: Graph) -> None:
        names = [graph.input(n, "float32", (1, h, n, a.head_dim)) for n, h in (("q", a.n_heads), ("k", a.n_kv_heads))]
        names.append(graph.input("v", "float32", (1, a.n_kv_heads, "k", a.head_dim)))
        graph.op("Attention", *names, attributes={"is_causal": 0}, to="y")
        graph.output("y", "float32", (1, a.n_heads, "q", a.head_dim))

    session = _session(folder, "attention", build, threads)
    for token_count in tokens:
        random, seen = np.random.default_rng(2), max(token_count, 256)
        shapes = {"q": (a.n_heads, token_count), "k": (a.n_kv_heads, seen), "v": (a.n_kv_heads, seen)}
        fed = {n: random.standard_normal((1, *shape, a.head_dim), dtype=np.float32) for n, shape in shapes.items()}
        seconds = turns({"attention": _runner(session, fed)}, effort)["attention"]
        work = 4e-9 * token_count * seen * a.n_heads * a.head_dim
        yield {"what": "attention", "form": "fp32", "tokens": token_count, "keys": seen, "threads": threads} | {
            "giga_per_s": spread(work / s for s in seconds)
        }


def _nodes(folder: Path, a: Architecture, tokens: Sequence[int], threads: int, effort: Effort) -> Iterator[Row]:
    """What a node that adds two tensors moves, and what the smallest node costs."""

    def build(graph: Graph) -> None:
        x = graph.input("x", "float32", ("M", "K"))
        for number in range(_NODES):
            x = graph.op("Mul" if number % 2 else "Add", x, "x", to="y" if number == _NODES - 1 else "")
        graph.output("y", "float32", ("M", "K"))

    session = _session(folder, "nodes", build, threads)
    smallest = turns({"node": _runner(session, {"x": np.ones((1, 1), np.float32)})}, effort)["node"]
    yield {"what": "node", "form": "fp32", "threads": threads, "seconds": spread(s / _NODES for s in smallest)}
    for token_count in tokens:
        x = np.full((token_count, a.mlp_hidden_size), 0.5, np.float32)
        seconds = turns({"moved": _runner(session, {"x": x})}, effort)["moved"]
        rate = spread(3e-9 * x.nbytes * _NODES / s for s in seconds)
        yield {"what": "elementwise", "form": "fp32", "tokens": token_count, "threads": threads, "giga_per_s": rate}


def memory(threads: int, effort: Effort) -> Iterator[Row]:
    """Bytes moved a second by tensors that no cache holds: by numpy on one thread, and by torch on all that were asked for."""
    count = effort.buffer // 4
    a, b, c = (np.full(count, value, np.float32) for value in (0.0, 1.0, 2.0))
    kinds: dict[str, tuple[float, Callable[[], object]]] = {
        "numpy read": (4.0 * count, lambda: b.sum()),
        "numpy copy": (8.0 * count, lambda: np.copyto(a, b)),
    }
    if find_spec("torch") is not None:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        x, y, z = (torch.from_numpy(each) for each in (a, b, c))
        kinds["torch read"] = (4.0 * count, lambda: y.sum())
        kinds["torch copy"] = (8.0 * count, lambda: x.copy_(y))
        kinds["torch triad"] = (12.0 * count, lambda: torch.add(y, z, alpha=3.0, out=x))
    timed = turns({name: run for name, (_, run) in kinds.items()}, effort)
    if find_spec("torch") is not None:
        torch.set_num_threads(before)
    for name, seconds in timed.items():
        rate = spread(1e-9 * kinds[name][0] / s for s in seconds)
        yield {"what": "memory", "form": name, "buffer_bytes": 4 * count, "threads": threads, "giga_per_s": rate}


def turns(runs: Mapping[str, Callable[[], object]], effort: Effort) -> dict[str, list[float]]:
    """Seconds of each run, round after round, every run once a round; the first round does not count.

    Before a turn all rest, and three runs do not count: without both, rates were half as high. Threads of the session before,
    which stay awake for a while, are the likely cause; it was not isolated.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(effort.rounds + 1):
        for name, run in runs.items():
            time.sleep(effort.rest)
            for _ in range(_WARM):
                run()
            started, count = time.perf_counter(), 0
            while (passed := time.perf_counter() - started) < effort.slice or not count:
                run()
                count += 1
            if number:
                seconds[name].append(passed / count)
    return seconds


def _runner(session: onnxruntime.InferenceSession, fed: Mapping[str, np.ndarray]) -> Callable[[], object]:
    return lambda: session.run(None, dict(fed))


def _session(folder: Path, name: str, build: Callable[[Graph], None], threads: int) -> onnxruntime.InferenceSession:
    with WeightFile(folder / f"{name}.bin", lambda tensor, size: None) as weights:
        graph = Graph(name, weights)
        build(graph)
        graph.save(folder / f"{name}.onnx")
    return open_session(folder / f"{name}.onnx", choose_device("cpu"), threads)


def table(rows: Sequence[Row]) -> str:
    """Rows as a person reads them: a line a form, a column a number of tokens."""
    lines, columns = [], sorted({row["tokens"] for row in rows if "tokens" in row})
    lines.append(f"{'giga a second, median':34}" + "".join(f"{f'M={tokens}':>10}" for tokens in columns))
    keyed: dict[str, dict[int, float]] = {}
    for row in rows:
        if "tokens" in row:
            shape = f" {row['k']} x {row['n']}" if row["what"] == "product" else f" {row['what']}"
            line = f"{row.get('shape', '')} {row['threads']} threads {row['form']}{shape}".strip()
            keyed.setdefault(line, {})[row["tokens"]] = row["giga_per_s"]["median"]
    for name, cells in keyed.items():
        lines.append(f"{name:34}" + "".join(f"{cells.get(tokens, float('nan')):>10.1f}" for tokens in columns))
    lines += [f"{row['form']:34}{row['giga_per_s']['median']:>10.1f} GB/s" for row in rows if row["what"] == "memory"]
    return "\n".join(lines)


def build_parser() -> Parser:
    parser = Parser(prog="mmada-lite bench ceiling", description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["s", "8b"], help=f"of {', '.join(SIZES)} (default: s 8b)")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help=f"default {' '.join(map(str, TOKENS))}")
    parser.add_argument("--forms", nargs="+", default=FORMS, help=f"default {' '.join(FORMS)}; any format of docs/bundle.md")
    parser.add_argument("--threads", type=int, nargs="+", default=[usable_cores()], help="default: the cores of this machine")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every form, after one that does not count (default 5)")
    parser.add_argument("--slice", type=float, default=0.05, help="seconds of one turn (default 0.05)")
    parser.add_argument("--quick", action="store_true", help="one short turn and small tensors: to try, not to quote")
    add_output(parser, "ceiling")
    return parser


def run_all(options: argparse.Namespace, arguments: Sequence[str]) -> tuple[dict[str, Any], str, Path | None]:
    """Every shape with every number of threads, each a task of its own."""
    require_counts(options, "threads", "tokens", "rounds")
    require_seconds(options, "slice")
    for form in options.forms:
        if form != ALONE:
            format_named(form)  # an unknown one is told before anything is measured
    effort = QUICK if options.quick else Effort(options.rounds, options.slice)
    shapes = {name.lower(): size_named(name).architecture for name in options.shapes}
    run, rows = Run("ceiling", arguments, options.output, force=options.force), list[Row]()
    run.plan(len(shapes) * len(options.threads))
    for name, threads in product(shapes, options.threads):
        work = partial(measure, shapes[name], options.forms, options.tokens, threads, effort)
        rows += [{"shape": name, **row} for row in run.do(f"shape {name}, {threads} threads", work)]
    return run.finish(rows, quick=options.quick), table(rows), run.path


def main(argv: Sequence[str] | None = None) -> int:
    return execute(build_parser(), run_all, argv)


if __name__ == "__main__":
    sys.exit(main())
