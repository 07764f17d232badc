"""`mmada-lite bench ceiling`: what this machine can do at all, before anything is said of a model on it.

Products of the shapes that a model has, in every stored form, at several numbers of tokens, and memory bandwidth. All forms
take turns within a round. Weights pass through the exporter's own lowerings, so that a form here is the very graph that a
bundle holds; `int8 alone` is its product without the rounding of activations and their scales. It knows shapes and no model.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmada_lite.arguments import Parser
from mmada_lite.bench.command import Measured, above_zero, add_output, at_least_one, execute, markdown, thread_count
from mmada_lite.bench.record import Row, Run, spread
from mmada_lite.bundle import Architecture
from mmada_lite.export.formats import format_named
from mmada_lite.export.graph import CONTRIB, Graph, WeightFile
from mmada_lite.export.lowering import WeightSpec, linear
from mmada_lite.export.synthetic import SIZES, RandomTensors, size_named
from mmada_lite.export.weights import Weight
from mmada_lite.ort.cores import usable_cores
from mmada_lite.ort.devices import choose_device
from mmada_lite.ort.session import open_session

if TYPE_CHECKING:
    import onnxruntime

ALONE = "int8 alone"
FORMS = ("fp32", "int8", ALONE, "int8-b128", "int4-b32", "int4-b128")
TOKENS = (1, 32, 128, 512, 1056)
Rates = dict[str, dict[int, float]]  # form -> tokens -> FLOP/s


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
        for number, matrix in enumerate(matrices(architecture)):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            yield from _products(folder, matrix, forms, tokens, threads, effort)
    yield from memory(threads, effort)


def rates(rows: Sequence[Row]) -> Rates:
    """The medians of `measure`: a form's rate is that of a whole layer's products."""
    found: dict[str, dict[int, float]] = {}
    layers: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if row["what"] == "product" and row["count"]:
            layers.setdefault((row["form"], row["tokens"]), []).append(row)
    for (form, tokens), layer in layers.items():
        work = sum(row["count"] * row["k"] * row["n"] for row in layer)
        took = sum(row["count"] * row["k"] * row["n"] / row["giga_per_s"]["median"] for row in layer)
        found.setdefault(form, {})[tokens] = 1e9 * work / took
    return found


def at(rates: Mapping[int, float], tokens: int) -> float:
    """The rate at a number of tokens, between those measured by straight lines in logarithms, beyond them the nearest."""
    known = sorted(rates)
    return math.exp(float(np.interp(math.log(tokens), np.log(known), [math.log(rates[count]) for count in known])))


def backbone_products(a: Architecture, windows: Iterable[tuple[int, int, int, int]]) -> Iterator[tuple[int, int]]:
    """(rows of a product, floating-point operations) of forwards (batch, window, past, rows): in the last layer keys and values
    are computed for the whole window, everything else for the rows that leave it."""
    d, k = a.d_model, a.n_kv_heads * a.head_dim
    for batch, window, _, rows in windows:
        for layers, asked in ((a.n_layers - 1, window), (1, rows)):
            each = 4 * window * d * k + asked * (4 * d * d + 6 * d * a.mlp_hidden_size)
            yield batch * asked, layers * batch * each


def least_seconds(a: Architecture, form: str, rates: Rates, windows: Iterable[tuple[int, int, int, int]]) -> float:
    """Of the products of these forwards at the ceiling: the fastest of their kind at as many tokens."""
    kinds = [rates[name] for name in (form, *([ALONE] if form == "int8" else []))]
    return sum(flops / max(at(kind, tokens) for kind in kinds) for tokens, flops in backbone_products(a, windows))


def _products(
    folder: Path,
    matrix: tuple[int, int, int],
    forms: Sequence[str],
    tokens: Sequence[int],
    threads: int,
    effort: Effort,
) -> Iterator[Row]:
    inputs, columns, count = matrix
    source = RandomTensors({"w": (columns, inputs)})
    sessions = {form: _product(folder, source, form, threads) for form in forms}
    for token_count in tokens:
        x = np.random.default_rng(1).standard_normal((token_count, inputs), dtype=np.float32)
        rounded, work = (x * 40 + 128).clip(0, 255).astype(np.uint8), 2e-9 * token_count * inputs * columns
        runs = {form: partial(each.run, None, {"x": rounded if form == ALONE else x}) for form, each in sessions.items()}
        for form, seconds in turns(runs, effort).items():
            about = {"what": "product", "form": form, "k": inputs, "n": columns, "count": count, "tokens": token_count}
            yield about | {"threads": threads, "giga_per_s": spread(work / s for s in seconds)}


def _product(folder: Path, source: RandomTensors, form: str, threads: int) -> "onnxruntime.InferenceSession":
    """A session that multiplies by the source's matrix as an exported graph does; ALONE: by the int8 product alone."""
    columns, inputs = source.shape("w")
    name = form.replace(" ", "-")
    with WeightFile(folder / f"{name}.bin", lambda tensor, size: None) as weights:
        graph = Graph(name, weights)
        x = graph.input("x", "uint8" if form == ALONE else "float32", ("M", inputs))
        if form != ALONE:
            linear(graph, x, Weight(source, "w"), WeightSpec(format_named(form)), to="y")
        else:
            values = source.read("w")
            codes = np.round(values / np.abs(values).max() * 127).astype(np.int8)
            matrix = graph.weight("w", values.shape, "int8", [codes], transposed=True)
            scales = graph.constant(np.full(columns, 1e-4), "float32")
            middles = graph.constant(128, "uint8"), graph.constant(0, "int8")
            given = x, matrix, graph.constant(1.0, "float32"), scales, *middles
            graph.op("MatMulIntegerToFloat", *given, to="y", domain=CONTRIB)
        graph.output("y", "float32", ("M", columns))
        graph.save(folder / f"{name}.onnx")
    return open_session(folder / f"{name}.onnx", choose_device("cpu"), threads)


def memory(threads: int, effort: Effort) -> Iterator[Row]:
    """Bytes moved a second by tensors that no cache holds."""
    import torch  # here alone: it must not count to the memory of a decode

    size, before = effort.buffer // 4, torch.get_num_threads()
    a, b, c = (torch.full((size,), value) for value in (0.0, 1.0, 2.0))
    kinds: dict[str, tuple[int, Callable[[], object]]] = {  # bytes a number, and what moves them
        "read": (4, lambda: b.sum()),
        "copy": (8, lambda: a.copy_(b)),
        "triad": (12, lambda: torch.add(b, c, alpha=3.0, out=a)),
    }
    torch.set_num_threads(threads)
    timed = turns({name: run for name, (_, run) in kinds.items()}, effort)
    torch.set_num_threads(before)
    for name, seconds in timed.items():
        rate = spread(1e-9 * kinds[name][0] * size / s for s in seconds)
        yield {"what": "memory", "form": name, "threads": threads, "giga_per_s": rate}


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


def table(rows: Sequence[Row]) -> str:
    """Rows as a person reads them: a line a form, a column a number of tokens."""
    columns = sorted({row["tokens"] for row in rows if row["what"] == "product"})
    lines: dict[tuple[object, ...], dict[int, float]] = {}
    for row in rows:
        about = f"{row['k']} x {row['n']}" if row["what"] == "product" else "memory"
        line = lines.setdefault((row["shape"], row["threads"], row["form"], about), {})
        line[row.get("tokens", columns[0])] = row["giga_per_s"]["median"]
    cells = [[*line, *(f"{rates[count]:.1f}" if count in rates else "" for count in columns)] for line, rates in lines.items()]
    heads = ["shape", "threads", "form", "giga a second of"]
    return markdown([*heads, *(f"M={count}" for count in columns)], cells)


def build_parser() -> Parser:
    parser = Parser(prog="mmada-lite bench ceiling", description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["s", "8b"], help=f"of {', '.join(SIZES)} (default: s 8b)")
    parser.add_argument("--tokens", type=at_least_one, nargs="+", default=TOKENS, help=f"default {' '.join(map(str, TOKENS))}")
    parser.add_argument("--forms", nargs="+", default=FORMS, help=f"default {' '.join(FORMS)}; any format of docs/bundle.md")
    parser.add_argument(
        "--threads", type=thread_count, nargs="+", default=[usable_cores()], help="default: the cores of this machine"
    )
    parser.add_argument(
        "--rounds", type=at_least_one, default=5, help="turns of every form, after one that does not count (default 5)"
    )
    parser.add_argument("--slice", type=above_zero, default=0.05, help="seconds of one turn (default 0.05)")
    parser.add_argument("--quick", action="store_true", help="one short turn and small tensors: to try, not to quote")
    add_output(parser, "ceiling")
    return parser


def run_all(options: argparse.Namespace, arguments: Sequence[str]) -> Measured:
    """Every shape with every number of threads, each a task of its own."""
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
