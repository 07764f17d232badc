"""`mmada-lite bench latency`: how long texts, holes, answers about pictures, drawing and inpainting take, and where time goes.

    mmada-lite bench latency                                     # the small model
    mmada-lite bench latency --shape s --precision int8          # random weights
    mmada-lite bench latency --shape 8b --device cuda            # a GPU against torch on it, in six minutes (bench.speed.card)
    mmada-lite bench latency --tasks overhead startup            # what decoding costs beside the model; the wait of a user
    mmada-lite bench latency --tasks advice                      # whether doctor's advice is what decodes measure here
    mmada-lite bench latency --against ../other --pairs 15       # this tree against another checkout, in turns
    mmada-lite bench latency --against ../other --tasks load     # the same of loading the small model

On a CPU the ceiling of the machine is measured first. Within a task all decodes take turns in one process. docs/benchmarks.md
explains every column. It knows options and tables; `latency_cases` knows the decodes, `latency_runs` the rounds.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path

import mmada_lite
from mmada_lite.arguments import Parser
from mmada_lite.bench.command import Measured, above_zero, add_output, at_least_one, execute, markdown, thread_count
from mmada_lite.bench.record import Row, Run, default_output, fingerprint, require_replaceable, say, spread
from mmada_lite.bench.speed import advice, card, ceiling, launches, overhead, pairs
from mmada_lite.bench.speed.latency_cases import ON_HOST, TARGETS, TASKS, Bench, Case
from mmada_lite.bench.speed.latency_runs import OpenModel, agreement, apart
from mmada_lite.bench.timed import forget_peak, peak, run_module
from mmada_lite.bundle import Bundle
from mmada_lite.decoding.settings import CACHE_POLICIES, ImageSettings, TextSettings
from mmada_lite.export.precision import specs_for
from mmada_lite.export.synthetic import SIZES, cached_bundle, size_named
from mmada_lite.model import embedded_bundle
from mmada_lite.ort.cores import usable_cores
from mmada_lite.ort.devices import choose_device

AS_STORED = "as stored"
STARTS = 3  # counted runs of `startup` and `load` a round


def build_parser() -> Parser:
    made = Parser(prog="mmada-lite bench latency", description=__doc__.splitlines()[0])
    add, number = made.add_argument, at_least_one
    what = made.add_mutually_exclusive_group()
    what.add_argument("--shape", help=f"random weights of this size: {', '.join(SIZES)} (default: the small model)")
    what.add_argument("-m", "--model", type=Path, help="a bundle (default: the small model)")
    add("--precision", help="of random weights: fp32, fp16, bf16, int8, int4 (default int8; on openvino bf16, on a GPU fp16)")
    add("--device", choices=TARGETS, default="cpu", help="where the model runs (default: %(default)s)")
    add(
        "--tasks",
        nargs="+",
        choices=(*TASKS, *BESIDE, card.TASK),
        help="default: all that need a model; a shape on a GPU: card",
    )
    add("--caches", nargs="+", choices=CACHE_POLICIES, default=CACHE_POLICIES, help="default: all")
    add("--thresholds", type=float, nargs="*", default=[0.9], help="of a trained model, beside steps (default 0.9)")
    add("--threads", type=thread_count, default=usable_cores(), help="default: the cores of this machine")
    add("--prompt", type=number, help="tokens of a text's prompt (default 64; a question where it can be told)")
    add("--answer", type=number, help="tokens of an answer (default: the bundle's own)")
    add("--block", type=number, help="tokens of a block (default: the bundle's own)")
    add("--steps", type=number, help="of an answer (default: one a token)")
    add("--image-steps", type=number, help="of a picture (default 12; of card 15)")
    add("--blocks", type=number, help="run so many blocks of an answer and scale, which is said (default: all)")
    add("--forwards", type=number, nargs="*", default=[32, 128, 512, 1056], help="tokens (default 32 128 512 1056)")
    add("--rounds", type=number, default=3, help="counted runs of every decode (default 3)")
    add("--limit", type=above_zero, default=card.LIMIT, help=f"seconds that card takes at most (default {card.LIMIT:g})")
    add("--quick", action="store_true", help="one round of short decodes: to try, not to quote")
    add("--no-ceiling", action="store_true", help="leave out what the machine can do, and forwards by operator")
    add("--profile", action="store_true", help="also count what each step launches, in the first cache of a task")
    pairs.add_options(made)
    add_output(made, "latency[-SHAPE], latency-against, or gpu-SHAPE")
    return made


def opened_bundle(options: argparse.Namespace) -> tuple[str, Bundle]:
    """Precision and bundle; a random one is made where it is not there yet."""
    if options.shape is None:
        return AS_STORED, Bundle.open(options.model or embedded_bundle())
    precision = options.precision or {"cpu": "int8", "openvino": "bf16"}.get(options.device, "fp16")
    say(f"random weights of size {options.shape} in {options.work}: made where they are not there yet")
    return precision, cached_bundle(options.shape, precision, options.work, target=TARGETS[options.device])


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
    """Every decode of a task that was asked for."""
    text, blocks = text_settings(bench.bundle, options), 1 if options.quick else options.blocks
    trained = bench.bundle.provenance.source != "random numbers"
    images = ImageSettings(steps=2 if options.quick else options.image_steps, guidance=bench.bundle.image_defaults.guidance)
    if task in ("drawing", "inpainting"):
        yield bench.drawing(images, part=1.0 if task == "drawing" else 0.5)
        return
    for policy, threshold in product(options.caches, (None, *(options.thresholds if trained else ()))):
        chosen = text.replace(cache=policy, threshold=threshold)
        if task == "understanding":
            yield bench.understanding(chosen, blocks)
        else:
            yield (bench.text if task == "text" else bench.filling)(options.prompt, chosen, blocks)


def startup(rounds: int) -> Iterator[Row]:
    """How long a user waits for a picture, from the command on, as a whole process; the first start does not count."""
    with tempfile.TemporaryDirectory() as folder:
        words = ("paint", "a red apple", "-o", Path(folder) / "apple.png", "--force", "--json")
        runs = [run_module("mmada_lite", *words) for _ in range(rounds * STARTS + 1)][1:]
    yield {
        "task": "startup",
        "seconds": spread(run["seconds"] for run in runs),
        "peak_bytes": max(run["peak_bytes"] for run in runs),
    }


def load(rounds: int) -> Iterator[Row]:
    """How long the package takes to import and its small model to load; the first time does not count."""
    root = Path(mmada_lite.__file__).parents[1]
    yield {"task": pairs.LOAD, "seconds": spread([pairs.load_seconds(root) for _ in range(rounds * STARTS + 1)][1:])}


BESIDE: dict[str, Callable[[int], Iterable[Row]]] = {  # without a model of choice
    "overhead": overhead.rows,
    "startup": startup,
    pairs.LOAD: load,
    "advice": advice.rows,
}


def measure(options: argparse.Namespace, arguments: Sequence[str]) -> Measured:
    """All tasks; idle_bytes: what this process held before it opened a model."""
    if options.against:
        return pairs.measure(options, arguments)
    if options.tasks is None:
        options.tasks = [card.TASK] if options.shape and options.device not in ON_HOST else list(TASKS)
    if card.TASK in options.tasks:
        return card.measure(options, arguments)
    options.image_steps = options.image_steps or 12
    choose_device(options.device)  # one that does not work here is told before anything is made, and so is an unknown name
    if options.shape:
        size_named(options.shape)
    if options.precision:
        specs_for(options.precision, TARGETS[options.device])
    output = options.output or default_output(f"latency-{options.shape.lower()}" if options.shape else "latency")
    require_replaceable(output)
    rounds = 1 if options.quick else options.rounds
    decodes = [task for task in options.tasks if task in TASKS]
    works: dict[str, Callable[[], Iterable[Row]]] = {}
    about: Row = {"shape": None, "device": options.device, "quick": options.quick, "left_out": None}
    fingerprints, top = None, list[Row]()
    if decodes:
        precision, bundle = opened_bundle(options)
        planned = {task: list(cases(Bench.of(bundle), task, options)) for task in decodes}  # what is too long is told here
        about["shape"], fingerprints = options.shape.lower() if options.shape else bundle.name, fingerprint(bundle.path)
        if options.shape and options.thresholds:
            about["left_out"] = "random weights are never sure, so thresholds are left out"
        if options.device == "cpu" and not options.no_ceiling:
            works["ceiling"] = partial(_machine, bundle, precision, options, rounds)

        @cache
        def model() -> OpenModel:
            return OpenModel.open(bundle, options.device, precision, options.threads, ceiling.rates(top) if top else None)

        works |= {task: lambda task=task: model().measured(planned[task], rounds) for task in decodes}  # type: ignore[misc]
        if options.profile:
            first = [planned[task][0] for task in decodes]
            works["launches"] = lambda: launches.rows(bundle, choose_device(options.device), options.threads, first)
        if options.device != "cpu":
            works["agreement"] = lambda: [agreement(precision, options.device, options.work)]
    works |= {task: partial(BESIDE[task], rounds) for task in options.tasks if task in BESIDE}
    run = Run("latency", arguments, output, force=options.force, about=fingerprints)
    run.plan(len(works))
    forget_peak()
    about["idle_bytes"], rows = peak(), list[Row]()
    for task, work in works.items():
        for row in run.do(task, work):
            (top if "what" in row else rows).append(row)
    about["environment"] = {name: value for name, value in os.environ.items() if name.startswith("ORT_")}  # kernels' switches
    content = run.finish(rows, **about, ceiling=top)
    return content, "\n".join([table(rows), *([about["left_out"]] if about["left_out"] else [])]), run.path


def _machine(bundle: Bundle, precision: str, options: argparse.Namespace, rounds: int) -> list[Row]:
    """The ceiling's rows, and those of forwards that are taken apart."""
    effort = ceiling.QUICK if options.quick else ceiling.Effort(rounds=3)
    asked = options.forwards[:1] if options.quick else options.forwards
    counts = [count for count in asked if count <= bundle.architecture.max_sequence_length]
    return apart(bundle.path, precision, options.threads, effort, counts, rounds)


def table(rows: Sequence[Row]) -> str:
    """A line a row: what a decode has, others leave out."""
    heads = ["task", "cache", "sure", "form", "threads", "seconds", "+-", "tokens/s", "tokens/call", "first", "ceiling"]
    of_models, beside = ([row for row in rows if ("policy" in row) == planted] for planted in (False, True))
    tables = [markdown([*heads, "peak MB", "% of its time"], map(_cells, of_models))] if of_models else []
    return "\n\n".join([*tables, *([overhead.table(beside)] if beside else [])])


def _cells(row: Row) -> list[object]:
    if row["task"] == "advice":
        return [row["task"], *[""] * 11, advice.in_words(row)]
    if row["task"] == "launches":
        on = ", ".join(
            f"{count} on {provider.removesuffix('ExecutionProvider')}" for provider, count in row["uncaptured"].items()
        )
        told = f"{row['launches']:g} launches a run ({on} uncaptured), {row['replays']} of {row['runs']} runs replayed"
        return [f"{row['of']}: {row['graph']}", *[""] * 11, told]
    if "agreement" in row:
        return [row["task"], *[""] * 11, f"{100 * row['agreement']:.1f}% of the tokens that a CPU writes"]
    seconds, top, held = row["seconds"], row.get("matrix_share") or row.get("ceiling_share"), row.get("peak_bytes")
    parts = row.get("parts") or row.get("operators") or {}
    shares = ", ".join(f"{name} {100 * taken / sum(parts.values()):.1f}" for name, taken in parts.items())
    return [
        f"{row['task']} of {row['tokens']}" if row["task"] == "forward" else row["task"],
        *(row.get(name) or "" for name in ("cache", "threshold", "precision", "threads")),
        f"{seconds['median']:.3f}",
        f"{(seconds['high'] - seconds['low']) / 2:.3f}",
        f"{row['tokens_per_second']:.1f}" if "tokens_per_second" in row else "",
        f"{row['tokens_per_forward']:.2f}" if "tokens_per_forward" in row else "",
        f"{row['first_step_seconds']['median']:.3f}" if "first_step_seconds" in row else "",
        f"{100 * top:.0f}%" if top else "",
        f"{held / 1e6:.0f}" if held else "",
        shares + (f"; scaled from {row['scaled_from']}" if row.get("scaled_from") else ""),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    return execute(build_parser(), measure, argv)


if __name__ == "__main__":
    sys.exit(main())
