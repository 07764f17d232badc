"""`mmada-lite bench latency`: how long text, answers about pictures, drawing and inpainting take here, and where the time goes.

    mmada-lite bench latency                           # the small model
    mmada-lite bench latency --shape s --precision int8

The ceiling of the machine is measured first; then all variants take turns in one process. docs/benchmarks.md explains every
column and the cost model. It knows options and tables; `latency_cases` knows the decodes and `latency_runs` the rounds.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mmada_lite.bench.arguments import require_counts
from mmada_lite.bench.record import default_output, record, save, spread
from mmada_lite.bench.speed import ceiling
from mmada_lite.bench.speed.latency_cases import TASKS, Bench, Case
from mmada_lite.bench.speed.latency_runs import OpenModel, Row, Variant, apart, doublings, measured, shares
from mmada_lite.bench.speed.timed import forget_peak, peak
from mmada_lite.bench.synthetic import SIZES, cached_bundle
from mmada_lite.bundle import Bundle
from mmada_lite.decoding.kv_cache import POLICIES
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.model import embedded_bundle
from mmada_lite.ort.loader import open_graph
from mmada_lite.ort.session import choose_device, usable_cores

AS_STORED = "as stored"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="mmada-lite bench latency", description=__doc__.splitlines()[0])
    what = made.add_mutually_exclusive_group()
    what.add_argument("--shape", help=f"random weights of this size: {', '.join(SIZES)} (default: the small model)")
    what.add_argument("-m", "--model", type=Path, help="a bundle (default: the small model)")
    made.add_argument(
        "--precision", nargs="+", default=["int8"], help="of random weights: fp32, fp16, int8, int4 (default int8)"
    )
    made.add_argument("--work", type=Path, default=Path(".cache/bench"), help="where random bundles are kept (%(default)s)")
    made.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="default: all")
    made.add_argument("--caches", nargs="+", choices=POLICIES, default=POLICIES, help="default: all")
    made.add_argument(
        "--settle",
        type=int,
        nargs="*",
        default=[],
        metavar="N",
        help="dual and prompt also with tokens leaving N at a time",
    )
    made.add_argument(
        "--thresholds", type=float, nargs="*", default=[0.9], help="of a trained model, beside steps (default 0.9)"
    )
    made.add_argument("--threads", type=int, nargs="+", default=[usable_cores()], help="default: the cores of this machine")
    made.add_argument(
        "--prompt", type=int, help="tokens of a text's prompt (default 64; a question where there is a tokenizer)"
    )
    made.add_argument("--answer", type=int, help="tokens of an answer (default: the bundle's own)")
    made.add_argument("--block", type=int, help="tokens of a block (default: the bundle's own)")
    made.add_argument("--steps", type=int, help="of an answer (default: one a token)")
    made.add_argument("--image-steps", type=int, default=12, help="of a picture (default 12)")
    made.add_argument("--blocks", type=int, help="run so many blocks of an answer and scale, which is said (default: all)")
    made.add_argument("--forwards", type=int, nargs="*", default=[32, 128, 512, 1056], help="tokens (default 32 128 512 1056)")
    made.add_argument("--rounds", type=int, default=3, help="counted runs of every variant (default 3)")
    made.add_argument("--no-doubling", action="store_true", help="leave out how time grows with prompt and picture")
    made.add_argument("--quick", action="store_true", help="one round of short decodes: to try, not to quote")
    made.add_argument("-o", "--output", type=Path, help="the JSON file (default: bench/results/latency[-SHAPE].json)")
    return made


def bundles(options: argparse.Namespace) -> dict[str, Bundle]:
    """Precision -> bundle; random ones are made where they are not there yet."""
    if options.shape is None:
        return {AS_STORED: Bundle.open(options.model or embedded_bundle())}
    found = {}
    for precision in options.precision:
        print(f"random weights of size {options.shape} in {precision}", file=sys.stderr, flush=True)
        found[precision] = cached_bundle(options.shape, precision, options.work)
    return found


def text_settings(bundle: Bundle, options: argparse.Namespace) -> TextSettings:
    base = bundle.text_defaults
    block = options.block or base.block_length
    answer = options.answer or base.answer_length
    if options.quick:
        answer, block = min(answer, 2 * block), min(block, 8)
    count = -(-answer // block)
    steps = options.steps or answer
    steps = max(count, min(steps, 2 * count)) if options.quick else steps
    return TextSettings(answer_length=answer, block_length=block, steps=steps)


def cases(bench: Bench, options: argparse.Namespace) -> Iterator[Case]:
    """Every decode that was asked for, of one bundle."""
    text, blocks = text_settings(bench.bundle, options), 1 if options.quick else options.blocks
    trained = bench.bundle.provenance.source != "random numbers"
    images = ImageSettings(steps=2 if options.quick else options.image_steps, guidance=bench.bundle.image_defaults.guidance)
    for cache in options.caches:
        settles = (None, *(options.settle if cache in ("dual", "prompt") else ()))
        for settle, threshold in product(settles, (None, *(options.thresholds if trained else ()))):
            chosen = replace(text, cache=cache, threshold=threshold, settle=settle)
            if "text" in options.tasks:
                yield bench.text(options.prompt, chosen, blocks)
            if "understanding" in options.tasks:
                yield bench.understanding(1, chosen, blocks)
    if "drawing" in options.tasks:
        yield bench.drawing(1, images)
    if "inpainting" in options.tasks:
        yield bench.drawing(1, images, part=0.5)


def lengths(bundle: Bundle, options: argparse.Namespace) -> list[int]:
    """Tokens of the forwards that are taken apart."""
    asked = options.forwards[:1] if options.quick else options.forwards
    return [count for count in asked if count <= bundle.architecture.max_sequence_length]


def codec_rows(bundle: Bundle, precision: str, threads: int, rounds: int) -> Iterator[Row]:
    """Seconds of a picture to codes and back, where the bundle has an image tokenizer."""
    if bundle.image is None or "image_encoder" not in bundle.graphs:
        return
    side, grid = bundle.image.resolution, bundle.image.resolution // bundle.image.downsample
    random, device = np.random.default_rng(0), choose_device("cpu")
    pixels = random.uniform(-1, 1, (1, 3, side, side)).astype(np.float32)
    codes = random.integers(0, bundle.vocabulary.codebook_size, (1, grid, grid))
    for name, fed in (("image_encoder", {"pixels": pixels}), ("image_decoder", {"codes": codes})):
        session, found = open_graph(bundle, name, device, threads), []
        for turn in range(rounds + 1):
            started = time.perf_counter()
            session.run(None, fed)
            found += [time.perf_counter() - started] if turn else []
        yield {"task": name, "precision": precision, "threads": threads, "pixels": side, "seconds": spread(found)}


def table(rows: Sequence[Row]) -> str:
    heads = f"{'task':15}{'cache':8}{'sure':6}{'form':10}{'thr':>4}{'s':>10}{'+-':>8}{'tok/s':>9}{'tok/fwd':>8}{'first':>8}"
    lines = [heads + f"{'python':>8}{'ceiling':>9}{'peak MB':>9}{'model':>7}"]
    for row in rows:
        if "parts" not in row:
            name = f"{row['task']}, {row['tokens']} tokens" if "tokens" in row else row["task"]
            lines.append(f"{name:29}{row['precision']:10}{row['threads']:>4}{row['seconds']['median']:>10.3f}")
            if "operators" in row:
                share = f"its products at {100 * row['matrix_share']:.0f}% of the ceiling"
                lines.append(f"{'':15}% of its time: {shares(row)}; {share}")
            continue
        seconds, said = row["seconds"], row.get("predicted_over_measured")
        lines.append(
            f"{row['task']:15}{row['cache'] or '-':8}{row['threshold'] or '-':<6}{row['precision']:10}{row['threads']:>4}"
            f"{seconds['median']:>10.3f}{(seconds['high'] - seconds['low']) / 2:>8.3f}{row['tokens_per_second']:>9.1f}"
            f"{row['tokens_per_forward']:>8.2f}{row['first_step_seconds']['median']:>8.3f}{100 * row['python_share']:>7.1f}%"
            f"{100 * row['ceiling_share']:>8.0f}%{(row['peak_bytes'] or 0) / 1e6:>9.0f}{f'{said:.2f}' if said else '-':>7}"
        )
        lines.append(f"{'':15}% of its time: {shares(row)}" + (f"; scaled from {s}" if (s := row["scaled_from"]) else ""))
    return "\n".join(lines)


def doubling_table(rows: Sequence[Row]) -> str:
    lines = [f"{'doubled':36}{'from':>7}{'to':>7}{'measured':>10}{'predicted':>11}{'off':>7}"]
    for row in rows:
        cells = f"{row['measured_ratio']:>10.2f}{row['predicted_ratio']:>11.2f}{100 * row['off']:>6.0f}%"
        lines.append(f"{row['doubled']:36}{row['from']:>7}{row['to']:>7}{cells}")
    return "\n".join(lines)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Rows of the decodes, of the ceiling and of the doublings; idle_bytes: what this process held before it opened a model."""
    effort = ceiling.QUICK if options.quick else ceiling.Effort(rounds=3)
    rounds = 1 if options.quick else options.rounds
    found = bundles(options)
    for bundle in found.values():
        list(cases(Bench.of(bundle), options))  # what cannot be decoded is told before the ceiling is measured
    rows: list[Row] = []
    opening: list[tuple[Bundle, str, int, list[Row]]] = []
    tops: list[Row] = []
    for precision, bundle in found.items():
        for threads in options.threads:
            print(f"the ceiling with {threads} threads, {precision}", file=sys.stderr, flush=True)
            top, taken = apart(bundle.path, precision, threads, effort, lengths(bundle, options), rounds)
            tops += [{"precision": precision, **row} for row in top]
            rows += taken
            opening.append((bundle, precision, threads, top))
    forget_peak()
    idle = peak()
    stands = [OpenModel.open(*each) for each in opening]
    benches = {id(stand): Bench.of(stand.bundle) for stand in stands}
    variants = [Variant(stand, case) for stand in stands for case in cases(benches[id(stand)], options)]
    print(f"{len(variants)} variants in {rounds} rounds", file=sys.stderr, flush=True)
    rows += measured(variants, rounds)
    doubled: list[Row] = []
    for stand in stands if not options.no_doubling else ():
        print(f"doublings, {stand.precision}, {stand.threads} threads", file=sys.stderr, flush=True)
        bench = benches[id(stand)]
        prompt = min(256, bench.bundle.architecture.max_sequence_length // 4)
        doubled += doublings(stand, bench, prompt, 2 if options.quick else 8, rounds)
    for stand in stands:
        rows += codec_rows(stand.bundle, stand.precision, stand.threads, rounds)
    name = options.shape.lower() if options.shape else next(iter(found.values())).name
    unsure = "random weights are never sure, so thresholds are left out" if options.shape and options.thresholds else None
    return {"shape": name, "idle_bytes": idle, "rows": rows, "ceiling": tops, "doubling": doubled, "left_out": unsure}


def main(words: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    options = parser().parse_args(words)
    lengths_of = ("prompt", "answer", "block", "blocks", "forwards")
    require_counts(options, "threads", "rounds", "steps", "settle", "image-steps", *lengths_of)
    found = measure(options)
    rows = found.pop("rows")
    content = record("latency", words, rows, quick=options.quick, **found)
    print(table(rows))
    if found["doubling"]:
        print("\n" + doubling_table(found["doubling"]))
    if found["left_out"]:
        print(found["left_out"])
    output = options.output or _default(options.shape)
    if (path := save(content, output)) is not None:
        print(f"written to {path}", file=sys.stderr)
    print(json.dumps(content))
    return 0


def _default(shape: str | None) -> Path | None:
    return default_output(f"latency-{shape.lower()}" if shape else "latency")


if __name__ == "__main__":
    sys.exit(main())
