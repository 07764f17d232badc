"""onnxruntime and OpenVINO over the same weights: forwards of several windows, with and without a past, and the text head.

    python -m mmada_lite.bench.speed.runtimes --shape s --work .cache/bench --rounds 7
    python -m mmada_lite.bench.speed.runtimes --shape s --work .cache/bench --beside ../old/.cache/bench/s-int8

One process, random weights. All take turns; a ratio is taken within a round, and the error is that of the hidden states, or of
a head's log probabilities, against onnxruntime in fp32. "openvino's own" is our fp32 graph for CPUs as OpenVINO computes it in
bf16. `--beside` names bundles of the same weights that another tree exported, such as `bench latency --shape` keeps in its work
folder: they run on the device that they were made for.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmada_lite.arguments import Parser
from mmada_lite.bench import third_party
from mmada_lite.bench.command import Measured, add_output, at_least_one, execute, markdown, thread_count
from mmada_lite.bench.record import Row, Run, say, spread
from mmada_lite.bench.timed import turns
from mmada_lite.bundle import Bundle
from mmada_lite.decoding.denoiser import Denoiser, Window
from mmada_lite.errors import Error
from mmada_lite.export.synthetic import SIZES, cached_bundle, size_named
from mmada_lite.ort.cores import usable_cores
from mmada_lite.ort.loader import device_for, open_denoiser
from mmada_lite.ort.session import exact_int8

EXACT, THEIRS = "fp32 on cpu", "openvino's own"
Work = Callable[[], np.ndarray]  # what is timed, and the numbers that it gives


def sides(precisions: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Name -> precision and device: onnxruntime in fp32 and int8, OpenVINO in what is asked for."""
    int8 = "int8" if exact_int8() else "int8-7bit"
    asked = [("fp32", "cpu"), (int8, "cpu")]
    asked += [(int8 if precision == "int8" else precision, "openvino") for precision in precisions]
    return {f"{precision} on {device}": (precision, device) for precision, device in asked}


def opened(options: argparse.Namespace, work: Path, others: Mapping[str, Bundle]) -> dict[str, Denoiser]:
    """Every side; others: what stands beside."""
    ready: dict[str, Denoiser] = {}
    for name, (precision, device) in sides(options.precisions).items():
        say(f"opening {name}")
        bundle = cached_bundle(options.shape, precision, work, target=device)
        ready[name] = open_denoiser(bundle, device_for(bundle, device), options.threads)
    for name, bundle in others.items():
        made_for = device_for(bundle, "openvino" if bundle.target == "openvino" else "cpu")
        ready[name] = open_denoiser(bundle, made_for, options.threads)
    plain = cached_bundle(options.shape, "fp32", work)
    return ready | {THEIRS: third_party.openvino(plain.path, options.threads, int8=False)}


def beside(options: argparse.Namespace) -> dict[str, Bundle]:
    """Name -> a bundle of another tree. Raises Error for one of another model, whose numbers are no others' to compare."""
    found = {f"beside: {path.name}": Bundle.open(path) for path in options.beside}
    for bundle in found.values():
        if bundle.architecture != size_named(options.shape).architecture:
            raise Error(
                f"{bundle.path} is no bundle of --shape {options.shape}, so nothing stands beside it; name its own shape"
            )
    return found


def _past(text: str) -> int:
    """A type of options: tokens before others, of which there may be none."""
    return 0 if text == "0" else at_least_one(text)


def forwards(denoisers: Mapping[str, Denoiser], size: Any, window: int, past: int) -> dict[str, Work]:
    """A forward of so many tokens behind so many others, whose keys and values are each side's own."""
    tokens = np.random.default_rng(window).integers(12, size.architecture.vocab_size - size.codes, (1, past + window))
    places = np.arange(window)

    def work(denoiser: Denoiser) -> Work:
        kept = denoiser.forward(Window(tokens[:, :past], np.arange(past), np.array([[0]])), keep=True)[1] if past else None
        return lambda: denoiser.forward(Window(tokens[:, past:], past + places, places[None], kept), keep=False)[0]

    return {name: work(denoiser) for name, denoiser in denoisers.items()}


def heads(denoisers: Mapping[str, Denoiser], size: Any, queried: int) -> dict[str, Work]:
    """The text head over so many positions."""
    hidden = np.random.default_rng(queried).standard_normal((1, queried, size.architecture.d_model), dtype=np.float32)
    one = np.eye(1, dtype=np.float32)

    def work(denoiser: Denoiser) -> Work:
        return lambda: np.asarray(denoiser.predict("text", hidden, one, 0.0, None).log_probability)

    return {name: work(denoiser) for name, denoiser in denoisers.items()}


def rows(task: str, works: Mapping[str, Work], rounds: int, others: Sequence[str]) -> Iterator[Row]:
    """A row a side, with how many times as fast as each of the others it is."""
    given = {name: work() for name, work in works.items()}  # and each is warm
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for name in turns(list(works), rounds):
        begun = time.perf_counter()
        works[name]()
        seconds[name].append(time.perf_counter() - begun)
    scale = float(np.sqrt(np.mean(np.square(given[EXACT]), dtype=np.float64)))
    for name, taken in seconds.items():
        off = float(np.sqrt(np.mean(np.square(given[name] - given[EXACT]), dtype=np.float64)))
        times = {other: spread(a / b for a, b in zip(seconds[other], taken, strict=True)) for other in others}
        yield {"task": task, "side": name, "seconds": spread(taken), "rms_error": off / scale, "times": times}


def table(rows: Sequence[Row]) -> str:
    """Milliseconds, error, and how many times as fast as onnxruntime in fp32, as OpenVINO's own, and as what stands beside."""
    others = list(rows[0]["times"]) if rows else []
    cells = [
        [row["task"], row["side"], f"{1e3 * row['seconds']['median']:.1f}", f"{row['rms_error']:.4f}"]
        + [f"{row['times'][other]['median']:.2f}" for other in others]
        for row in rows
    ]
    return markdown(["task", "side", "ms", "rms error", *(f"x {other}" for other in others)], cells)


def measure(options: argparse.Namespace, arguments: Sequence[str]) -> Measured:
    size, run = size_named(options.shape), Run("runtimes", arguments, options.output, force=options.force)
    shapes = [(window, past) for past in options.pasts for window in options.windows]
    run.plan(len(shapes) + len(options.heads))
    stand_by = beside(options)
    others = [EXACT, THEIRS, *stand_by]
    with tempfile.TemporaryDirectory() as scratch:
        denoisers, results = opened(options, options.work or Path(scratch), stand_by), list[Row]()
        for window, past in shapes:
            task = f"{window} tokens" + (f" behind {past}" if past else "")
            works = partial(forwards, denoisers, size, window, past)
            results += run.do(task, lambda task=task, works=works: rows(task, works(), options.rounds, others))  # type: ignore[misc]
        for queried in options.heads:
            task, works = f"text head, {queried} rows", partial(heads, denoisers, size, queried)
            results += run.do(task, lambda task=task, works=works: rows(task, works(), options.rounds, others))  # type: ignore[misc]
    content = run.finish(results, weights="random", shape=options.shape, threads=options.threads, rounds=options.rounds)
    return content, table(results), run.path


def build_parser() -> Parser:
    parser = Parser(prog="mmada_lite.bench.speed.runtimes", description=__doc__.splitlines()[0])
    add, number = parser.add_argument, at_least_one
    add("--shape", choices=SIZES, default="s", help="of the random model (default: %(default)s)")
    add("--work", type=Path, help="where random bundles are made once and kept (default: a temporary folder)")
    add("--precisions", nargs="+", default=["fp32", "bf16", "int8"], help="on OpenVINO (default: fp32 bf16 int8)")
    add("--beside", nargs="+", type=Path, default=[], metavar="BUNDLE", help="of another tree, from the same weights")
    add("--windows", nargs="+", type=number, default=[8, 32, 128, 512, 1056], help="tokens (default: 8 to 1056)")
    add("--pasts", nargs="+", type=_past, default=[0, 1122], help="tokens before them (default: 0 1122)")
    add("--heads", nargs="+", type=number, default=[8, 128], help="rows of the text head (default: 8 128)")
    add("--rounds", type=number, default=7, help="counted turns of each (default 7)")
    add("--threads", type=thread_count, default=usable_cores(), help="of each (default: usable cores)")
    add_output(parser, "runtimes")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return execute(build_parser(), measure, argv)


if __name__ == "__main__":
    sys.exit(main())
