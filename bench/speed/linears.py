"""How fast each stored form of a Linear multiplies here: billions of operations a second (two a weight and token) by tokens.

    python -m mmada_lite.bench.speed.linears --threads 2

Random weights pass through the exporter's own lowerings into one-node graphs on the CPU; all forms take turns within one
run, fp32 among them as the ceiling of what is not quantized. Prints medians with their spread, and a JSON line last. It
knows lowerings and no model.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from mmada_lite.bench.arguments import require_counts, require_seconds
from mmada_lite.export.formats import format_named
from mmada_lite.export.graph import Graph, WeightFile
from mmada_lite.export.lowering import Weight, WeightSpec, linear, linear_bytes
from mmada_lite.ort.session import choose_device, open_session

FORMATS = ("fp32", "int8", "int8-b128", "int4-b32", "int4-b128")


class Random:
    """A matrix (N, K) of distinct random weights, the same in every form."""

    def __init__(self, columns: int, inputs: int) -> None:
        self._values = np.random.default_rng(0).standard_normal((columns, inputs), dtype=np.float32) / np.float32(inputs**0.5)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._values.shape

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        return self._values if rows is None else self._values[rows]


def opened(folder: Path, source: Random, name: str, threads: int) -> onnxruntime.InferenceSession:
    """A session that multiplies by the source's matrix, stored in the format `name`."""
    with WeightFile(folder / f"{name}.bin", lambda tensor, size: None) as weights:
        graph = Graph("linear", weights)
        columns, inputs = source.shape("w")
        x = graph.input("x", "float32", ("M", inputs))
        linear(graph, x, Weight(source, "w"), WeightSpec(format_named(name)), to="y")
        graph.output("y", "float32", ("M", columns))
        graph.save(folder / f"{name}.onnx")
    return open_session(folder / f"{name}.onnx", choose_device("cpu"), threads)


def seconds(session: onnxruntime.InferenceSession, x: np.ndarray, at_least: float) -> float:
    """Seconds of one multiplication, over as many as fill `at_least`."""
    started, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < at_least or not count:
        session.run(None, {"x": x})
        count += 1
    return passed / count


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=2, default=(1024, 3072), metavar=("K", "N"), help="default 1024 3072")
    parser.add_argument("--tokens", type=int, nargs="+", default=(1, 32, 128, 512), help="default 1 32 128 512")
    parser.add_argument("--formats", nargs="+", default=FORMATS, help=f"default {' '.join(FORMATS)}")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every form, after one warm-up (default 5)")
    parser.add_argument("--slice", type=float, default=0.05, help="seconds of one turn (default 0.05)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    require_counts(options, "shape", "tokens", "rounds", "threads")
    require_seconds(options, "slice")
    inputs, columns = options.shape
    source, found = Random(columns, inputs), {}
    with tempfile.TemporaryDirectory() as scratch:
        sessions = {name: opened(Path(scratch), source, name, options.threads) for name in options.formats}
        print("GOPS (spread)" + "".join(f"{f'M={tokens}':>16}" for tokens in options.tokens), "bytes a weight")
        for tokens in options.tokens:
            x = np.random.default_rng(1).standard_normal((tokens, inputs), dtype=np.float32)
            turns = [{n: seconds(s, x, options.slice) for n, s in sessions.items()} for _ in range(options.rounds + 1)][1:]
            work = 2e-9 * tokens * inputs * columns
            found[tokens] = {name: sorted(work / turn[name] for turn in turns) for name in sessions}
    rows: dict[str, dict[str, object]] = {}
    for name in options.formats:
        size = linear_bytes((columns, inputs), WeightSpec(format_named(name))) / (columns * inputs)
        cells = {tokens: (statistics.median(found[tokens][name]), found[tokens][name]) for tokens in options.tokens}
        shown = "".join(f"{f'{middle:.0f} ({all_[-1] - all_[0]:.0f})':>16}" for middle, all_ in cells.values())
        print(f"{name:13}{shown} {size:.3f}")
        rows[name] = {"gops": {tokens: round(middle, 1) for tokens, (middle, _) in cells.items()}, "bytes_a_weight": size}
    print(json.dumps({"command": sys.argv, "onnxruntime": onnxruntime.__version__, "shape": options.shape, "forms": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
