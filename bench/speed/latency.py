"""`mmada-lite bench latency`: how long text, answers about pictures, drawing and inpainting take here, and where the time goes.

    mmada-lite bench latency                                     # the small model
    mmada-lite bench latency --shape s --precision int8          # random weights
    mmada-lite bench latency --shape 8b --device cuda            # a GPU
    mmada-lite bench latency --tasks overhead startup            # what decoding costs beside the model; the wait of a user

On a CPU the ceiling of the machine is measured first. Within a task all variants take turns in one process. docs/benchmarks.md
explains every column and the cost model. It knows options and tables; `latency_cases` knows the decodes, `latency_runs` the
rounds.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mmada_lite.arguments import Parser
from mmada_lite.bench.command import add_output, execute, require_counts
from mmada_lite.bench.record import Row, Run, default_output, fingerprint, require_replaceable, say, spread
from mmada_lite.bench.speed import ceiling, overhead
from mmada_lite.bench.speed.latency_cases import TARGETS, TASKS, Bench, Case
from mmada_lite.bench.speed.latency_runs import OpenModel, Variant, agreement, apart, measured, shares
from mmada_lite.bench.timed import forget_peak, peak
from mmada_lite.bundle import Bundle
from mmada_lite.decoding.settings import CACHE_POLICIES, ImageSettings, TextSettings
from mmada_lite.errors import Error
from mmada_lite.export.precision import specs_for
from mmada_lite.export.synthetic import SIZES, cached_bundle, size_named
from mmada_lite.model import embedded_bundle
from mmada_lite.ort.devices import choose_device
from mmada_lite.ort.loader import open_graph
from mmada_lite.ort.session import usable_cores

AS_STORED = "as stored"
BESIDE = ("overhead", "startup")  # tasks without a model of its own choice
STARTS = 3  # counted runs of `startup` a round


def build_parser() -> Parser:
    made = Parser(prog="mmada-lite bench latency", description=__doc__.splitlines()[0])
    what = made.add_mutually_exclusive_group()
    what.add_argument("--shape", help=f"random weights of this size: {', '.join(SIZES)} (default: the small model)")
    what.add_argument("-m", "--model", type=Path, help="a bundle (default: the small model)")
    made.add_argument("--precision", nargs="+", help="of random weights: fp32, fp16, int8, int4 (default int8; on a GPU fp16)")
    made.add_argument("--work", type=Path, default=Path(".cache/bench"), help="where random bundles are kept (%(default)s)")
    made.add_argument("--device", choices=TARGETS, default="cpu", help="where the model runs (default: %(default)s)")
    made.add_argument("--tasks", nargs="+", choices=(*TASKS, *BESIDE), default=TASKS, help="default: all that need a model")
    made.add_argument("--caches", nargs="+", choices=CACHE_POLICIES, default=CACHE_POLICIES, help="default: all")
    made.add_argument(
        "--kv-commit-every",
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
    made.add_argument("--prompt", type=int, help="tokens of a text's prompt (default 64; a question where it can be told)")
    made.add_argument("--answer", type=int, help="tokens of an answer (default: the bundle's own)")
    made.add_argument("--block", type=int, help="tokens of a block (default: the bundle's own)")
    made.add_argument("--steps", type=int, help="of an answer (default: one a token)")
    made.add_argument("--image-steps", type=int, default=12, help="of a picture (default 12)")
    made.add_argument("--blocks", type=int, help="run so many blocks of an answer and scale, which is said (default: all)")
    made.add_argument("--forwards", type=int, nargs="*", default=[32, 128, 512, 1056], help="tokens (default 32 128 512 1056)")
    made.add_argument("--rounds", type=int, default=3, help="counted runs of every variant (default 3)")
    made.add_argument("--quick", action="store_true", help="one round of short decodes: to try, not to quote")
    add_output(made, "latency[-SHAPE]")
    return made


def bundles(options: argparse.Namespace) -> dict[str, Bundle]:
    """Precision -> bundle; random ones are made where they are not there yet."""
    if options.shape is None:
        return {AS_STORED: Bundle.open(options.model or embedded_bundle())}
    precisions = options.precision or (["int8"] if options.device == "cpu" else ["fp16"])
    target = TARGETS[options.device]
    return {precision: cached_bundle(options.shape, precision, options.work, target=target) for precision in precisions}


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


def cases(bench: Bench, task: str, options: argparse.Namespace) -> Iterator[Case]:
    """Every decode of a task that was asked for, of one bundle."""
    text, blocks = text_settings(bench.bundle, options), 1 if options.quick else options.blocks
    trained = bench.bundle.provenance.source != "random numbers"
    images = ImageSettings(steps=2 if options.quick else options.image_steps, guidance=bench.bundle.image_defaults.guidance)
    if task in ("drawing", "inpainting"):
        yield bench.drawing(1, images, part=1.0 if task == "drawing" else 0.5)
        return
    for policy in options.caches:
        commits = (None, *(options.kv_commit_every if policy in ("dual", "prompt") else ()))
        for every, threshold in product(commits, (None, *(options.thresholds if trained else ()))):
            chosen = text.replace(cache=policy, threshold=threshold, kv_commit_every=every)
            yield bench.text(options.prompt, chosen, blocks) if task == "text" else bench.understanding(1, chosen, blocks)


def codec_rows(bundle: Bundle, device: str, precision: str, threads: int, rounds: int) -> Iterator[Row]:
    """Seconds of a picture to codes and back, where the bundle has an image tokenizer."""
    if bundle.image is None or "image_encoder" not in bundle.graphs:
        return
    side, grid = bundle.image.resolution, bundle.image.resolution // bundle.image.downsample
    random = np.random.default_rng(0)
    pixels = random.uniform(-1, 1, (1, 3, side, side)).astype(np.float32)
    codes = random.integers(0, bundle.vocabulary.codebook_size, (1, grid, grid))
    for name, fed in (("image_encoder", {"pixels": pixels}), ("image_decoder", {"codes": codes})):
        session, seconds = open_graph(bundle, name, choose_device(device), threads), []
        for turn in range(rounds + 1):
            started = time.perf_counter()
            session.run(None, fed)
            seconds += [time.perf_counter() - started] if turn else []
        yield {"task": name, "precision": precision, "threads": threads, "pixels": side, "seconds": spread(seconds)}


def startup(rounds: int) -> Iterator[Row]:
    """How long a user waits for a picture, from the command on, as a whole process: to the first step, to the file."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [_start(Path(folder), seed) for seed in range(rounds * STARTS + 1)][1:]
    first, total = ([run[number] for run in runs] for number in range(2))
    yield {"task": "startup", "rounds": len(runs), "seconds": spread(total), "first_step_seconds": spread(first)}


def _start(folder: Path, seed: int) -> tuple[float, float]:
    target = folder / f"{seed}.png"
    command = [sys.executable, "-m", "mmada_lite", "paint", "a red apple", "-o", str(target), "--seed", str(seed), "--json"]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": "1"}) as process:
        assert process.stdout is not None
        moments = [time.perf_counter() - started for _ in process.stdout]
    if process.returncode or not target.is_file():
        raise Error(f"{' '.join(command)} failed with exit code {process.returncode}")
    return moments[0], time.perf_counter() - started


def measure(options: argparse.Namespace, arguments: Sequence[str]) -> tuple[dict[str, Any], str, Path | None]:
    """All tasks; idle_bytes: what this process held before it opened a model."""
    lengths = ("prompt", "answer", "block", "blocks", "forwards")
    require_counts(options, "threads", "rounds", "steps", "kv-commit-every", "image-steps", *lengths)
    choose_device(options.device)  # one that does not work here is told before anything is made, and so is an unknown name
    if options.shape:
        size_named(options.shape)
    for precision in options.precision or ():
        specs_for(precision, TARGETS[options.device])
    rounds, beside = 1 if options.quick else options.rounds, [task for task in options.tasks if task in BESIDE]
    decodes = [task for task in options.tasks if task not in BESIDE]
    output = options.output or default_output(f"latency-{options.shape.lower()}" if options.shape else "latency")
    require_replaceable(output)
    if decodes and options.shape:
        say(f"random weights of size {options.shape} in {options.work}: made where they are not there yet")
    models = bundles(options) if decodes else {}
    for bundle, task in product(models.values(), decodes):
        list(cases(Bench.of(bundle), task, options))  # what cannot be decoded is told before the ceiling is measured
    paths = [bundle.path for bundle in models.values()]
    run = Run("latency", arguments, output, force=options.force, about=fingerprint(*paths))
    run.plan(len(models) * len(options.threads) + len(decodes) + bool(decodes) + len(beside) + (options.device != "cpu"))
    tops: dict[tuple[str, int], list[Row]] = {}
    for key in product(models, options.threads) if options.device == "cpu" else ():
        tops[key] = run.do("ceiling, {}, {} threads".format(*key), partial(_machine, models, key, options, rounds))
    forget_peak()
    idle = peak()

    @cache
    def opened() -> list[OpenModel]:
        return [
            OpenModel.open(models[precision], options.device, precision, threads, tops.get((precision, threads)))
            for precision, threads in product(models, options.threads)
        ]

    def decoded(task: str) -> list[Row]:
        return measured([Variant(m, case) for m in opened() for case in cases(Bench.of(m.bundle), task, options)], rounds)

    def codecs() -> Iterator[Row]:
        for (precision, bundle), threads in product(models.items(), options.threads):
            yield from codec_rows(bundle, options.device, precision, threads, rounds)

    rows = [row for top in tops.values() for row in top if "task" in row]
    for task in decodes:
        rows += run.do(task, partial(decoded, task))
    rows += run.do("image tokenizer", codecs) if decodes else []
    if options.device != "cpu":
        rows += run.do("agreement", lambda: [agreement(precision, options.device, options.work) for precision in models])
    works = {"overhead": partial(overhead.rows, rounds), "startup": partial(startup, rounds)}
    for task in beside:
        rows += run.do(task, works[task])
    name = options.shape.lower() if options.shape else next((bundle.name for bundle in models.values()), None)
    unsure = "random weights are never sure, so thresholds are left out" if options.shape and options.thresholds else None
    about = {"shape": name, "device": options.device, "idle_bytes": idle, "left_out": unsure, "quick": options.quick}
    about["environment"] = {
        name: value for name, value in os.environ.items() if name.startswith("ORT_")
    }  # its kernels' switches
    measured_tops = [{"precision": key[0], **row} for key, top in tops.items() for row in top if "what" in row]
    content = run.finish(rows, **about, ceiling=measured_tops)
    return content, "\n".join([table(rows), *([unsure] if unsure else [])]), run.path


def _machine(models: dict[str, Bundle], key: tuple[str, int], options: argparse.Namespace, rounds: int) -> list[Row]:
    """The ceiling's rows, and those of forwards that are taken apart."""
    effort = ceiling.QUICK if options.quick else ceiling.Effort(rounds=3)
    bundle = models[key[0]]
    asked = options.forwards[:1] if options.quick else options.forwards
    counts = [count for count in asked if count <= bundle.architecture.max_sequence_length]
    return apart(bundle.path, *key, effort, counts, rounds)


def table(rows: Sequence[Row]) -> str:
    heads = f"{'task':15}{'cache':8}{'sure':6}{'form':10}{'thr':>4}{'s':>10}{'+-':>8}{'tok/s':>9}{'tok/fwd':>8}{'first':>8}"
    lines = [heads + f"{'python':>8}{'ceiling':>9}{'peak MB':>9}{'model':>7}"]
    for row in rows:
        if "policy" in row:
            lines.append(overhead.line(row))
        elif "agreement" in row:
            lines.append(f"{row['task']:29}{row['precision']:10}{100 * row['agreement']:.1f}% of the tokens that a CPU writes")
        elif "parts" in row:
            lines += _decode_lines(row)
        else:
            name = f"{row['task']}, {row['tokens']} tokens" if "tokens" in row else row["task"]
            lines.append(f"{name:29}{row.get('precision', ''):10}{row.get('threads', ''):>4}{row['seconds']['median']:>10.3f}")
            if "operators" in row:
                share = f"its products at {100 * row['matrix_share']:.0f}% of the ceiling"
                lines.append(f"{'':15}% of its time: {shares(row)}; {share}")
    return "\n".join(lines)


def _decode_lines(row: Row) -> list[str]:
    seconds, predicted, top = row["seconds"], row.get("predicted_over_measured"), row["ceiling_share"]
    first = (
        f"{row['task']:15}{row['cache'] or '-':8}{row['threshold'] or '-':<6}{row['precision']:10}{row['threads']:>4}"
        f"{seconds['median']:>10.3f}{(seconds['high'] - seconds['low']) / 2:>8.3f}{row['tokens_per_second']:>9.1f}"
        f"{row['tokens_per_forward']:>8.2f}{row['first_step_seconds']['median']:>8.3f}{100 * row['python_share']:>7.1f}%"
        f"{f'{100 * top:.0f}%' if top else '-':>9}{(row['peak_bytes'] or 0) / 1e6:>9.0f}"
        f"{f'{predicted:.2f}' if predicted else '-':>7}"
    )
    return [first, f"{'':15}% of its time: {shares(row)}" + (f"; scaled from {s}" if (s := row["scaled_from"]) else "")]


def main(argv: Sequence[str] | None = None) -> int:
    return execute(build_parser(), measure, argv)


if __name__ == "__main__":
    sys.exit(main())
