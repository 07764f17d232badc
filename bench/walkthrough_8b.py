"""The whole path of a model of the published size on this machine, as a script to run and to read.

    python -m mmada_lite.bench.walkthrough_8b --work FOLDER          # 35 GB of room; --layers 2 for a trial

Random weights are written, converted to int4 and int8, loaded, asked about a picture, told to draw one; two of its layers are
rounded by GPTQ and by GPTAQ. Every part is a process of its own, so that its memory and time are its own, and is kept in
FOLDER/walkthrough_8b.json when it is done: a run that was stopped goes on. `load` is the median of three, each in a process of
its own: the first may find memory that the system has yet to provide. `answer` is asked in one step without a cache: the least
memory, and no step of a longer answer takes more. Beside peaks of answers and drawings stands what `mmada-lite plan` counts.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

import mmada_lite
from mmada_lite import memory_plan
from mmada_lite.arguments import Parser, exit_code
from mmada_lite.bench.command import Measured, add_output, at_least_one, execute, markdown
from mmada_lite.bench.record import Row, Run
from mmada_lite.bench.timed import open_timed, run_module, timed
from mmada_lite.decoding.denoiser import Window
from mmada_lite.decoding.rows import picture_prompt
from mmada_lite.errors import Error
from mmada_lite.export.synthetic import SIZES
from mmada_lite.quant.convert import Request, quantize_model
from mmada_lite.vocabulary import chat_ids

NAME = "walkthrough_8b"
PROGRAM = ("python", "-m", f"mmada_lite.bench.{NAME}")  # what its arguments stand after
LAYERS = SIZES["8b"].architecture.n_layers
ROUNDED = 2  # layers on which GPTQ is tried
LOADS = 3  # times that loading is measured
QUESTION = "what is in this picture, and where does each one lie?"
ANSWER = 128
BLOCKS = 2  # of an answer in several steps: each block begins with a forward of the whole row


def parts(options: argparse.Namespace) -> dict[str, Callable[[], Row]]:
    """Name -> what does it. Each takes what those before it left in the work folder."""
    work, threads = options.work, ("--threads", options.threads)

    def checkpoint(name: str, layers: int) -> Row:
        return run("mmada_lite.export.synthetic", work / name, "--layers", layers, "--force")

    def converted(source: str, bundle: str, form: str) -> Row:
        command = ("quantize", work / source, "-o", work / bundle, "--format", form, "--method", "rtn", "--force", "--json")
        row = run("mmada_lite", *command)
        size = sum(path.stat().st_size for path in (work / bundle).rglob("*") if path.is_file())
        return {**row, "bundle_gb": round(size / 1e9, 3)}

    def answered(bundle: str, steps: int, policy: str) -> Row:
        return inner("answer", work / bundle, "--steps", steps, "--cache", policy, *threads)

    def loaded() -> Row:
        runs = [inner("load", work / "int4", *threads) for _ in range(LOADS)]
        each = [row["load_seconds"] for row in runs]
        middle = sorted(runs, key=lambda row: row["load_seconds"])[LOADS // 2]
        return {**middle, "peak_gb": max(row["peak_gb"] for row in runs), "each_load": each}

    def calibrated(method: str) -> Row:
        source = "layers" if options.layers != ROUNDED else "checkpoint"
        if not (work / "layers-rtn").is_dir():
            if source == "layers":
                checkpoint(source, ROUNDED)
            converted(source, "layers-rtn", "int4")
        folders = ("--checkpoint", work / source, "--recorder", work / "layers-rtn")
        return inner("calibrate", work / f"layers-{method}", *folders, "--method", method, "--prompts", options.prompts)

    return {
        "checkpoint": partial(checkpoint, "checkpoint", options.layers),
        "int4": partial(converted, "checkpoint", "int4", "int4"),
        "load": loaded,
        "answer": partial(answered, "int4", 1, "none"),
        "drawing": partial(inner, "draw", work / "int4", *threads),
        "int4-answer": partial(answered, "int4", options.steps, options.cache),
        "int8": partial(converted, "checkpoint", "int8", "int8"),
        "int8-answer": partial(answered, "int8", options.steps, options.cache),
        "gptq": partial(calibrated, "gptq"),
        "gptaq": partial(calibrated, "gptaq"),
    }


def run(module: str, *arguments: object) -> Row:
    """A command to its end: gigabytes at the highest, minutes of the clock and of processors, and what it prints as JSON."""
    row = run_module(module, *arguments)
    told = {"command": row["command"], "peak_gb": round(row["peak_bytes"] / 1e9, 3), "minutes": round(row["seconds"] / 60, 2)}
    return {**told, "processor_minutes": round(row["processor_seconds"] / 60, 2), **row["printed"]}


def inner(part: str, bundle: Path, *arguments: object) -> Row:
    """A part of this very file, in a process of its own."""
    return run("mmada_lite.bench.walkthrough_8b", "--part", part, "--bundle", bundle, *arguments)


def load(options: argparse.Namespace) -> Row:
    """Seconds until one token has gone through: a large bundle's weights come with the first call."""
    started = time.perf_counter()
    model = mmada_lite.load(options.bundle, device="cpu", threads=options.threads)
    one = np.zeros((1, 1), np.int64)
    model.denoiser.forward(Window(one, np.arange(1), one), keep=False)
    return {"load_seconds": round(time.perf_counter() - started, 2)}


def answer(options: argparse.Namespace) -> Row:
    """An answer of 128 tokens about a picture, from pixels on: its tokens, and its seconds by part. The first step sees the
    whole row."""
    model = mmada_lite.load(options.bundle, device="cpu", threads=options.threads)
    model.denoiser, _ = open_timed(model.bundle, options.threads)
    block = ANSWER // min(options.steps, BLOCKS)
    text = mmada_lite.TextSettings(ANSWER, options.steps, block).replace(cache=options.cache)
    side = model.codec.resolution
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    started = time.perf_counter()
    steps = model.ask(Image.fromarray(noise), QUESTION, text)
    reading = time.perf_counter() - started
    model.denoiser.opened  # noqa: B018
    opening = time.perf_counter() - started - reading
    decoded = timed(steps, model.denoiser.clock)
    codes = np.zeros((1, model.codec.grid, model.codec.grid), np.int64)
    question = chat_ids(model.tokenizer, model.vocabulary.special, [{"role": "user", "content": QUESTION}])
    return {
        "prompt_tokens": len(picture_prompt(codes, model.vocabulary)) + len(question),
        "answer_tokens": ANSWER,
        "steps": decoded.steps,
        "cache": options.cache,
        "planned_gb": planned(model, "answer", text),
        "answer_seconds": round(reading + opening + decoded.seconds, 1),
        "first_step_seconds": round(reading + opening + decoded.first, 1),
        "seconds_of": {"picture": round(reading, 3), "opening": round(opening, 3)}
        | {part: round(taken, 4) for part, taken in decoded.parts.items()},
    }


def draw(options: argparse.Namespace) -> Row:
    """A picture in one guided step, to its pixels: no later step takes more memory."""
    model = mmada_lite.load(options.bundle, device="cpu", threads=options.threads)
    image = model.image_defaults.replace(steps=1, refresh=1)
    started = time.perf_counter()
    model.paint("a cat left of a car", image).picture  # noqa: B018
    return {
        "steps": 1,
        "guidance": image.guidance,
        "planned_gb": planned(model, "drawing", model.text_defaults),
        "drawing_seconds": round(time.perf_counter() - started, 1),
    }


def planned(model: mmada_lite.Model, task: memory_plan.Task, text: mmada_lite.TextSettings) -> float:
    """Gigabytes that a plan counts for a task."""
    shape, bundle = memory_plan.Shape.of(model.bundle), model.bundle
    return round(memory_plan.need(shape, bundle.quantization, text, target=bundle.target, tasks=(task,)).peak / 1e9, 3)


def calibrate(options: argparse.Namespace) -> Row:
    """Seconds a layer and of the heads, from the lines of progress; the time of 32 layers follows from them."""
    lines: list[tuple[float, str]] = []
    request = Request("int4", options.method, prompts=options.prompts, record_with=options.recorder)
    folders = options.checkpoint, options.bundle
    quantize_model(*folders, request, force=True, report=lambda line: lines.append((time.perf_counter(), line)))
    ends = [moment for moment, _ in lines[1:]] + [lines[-1][0]]
    took = {"layers": 0.0, "heads": 0.0}
    for (moment, line), end in zip(lines, ends, strict=True):
        if line.startswith("layer ") or line.endswith(" head"):
            took["layers" if line.startswith("layer ") else "heads"] += end - moment
    layers = sum(line.startswith("layer ") for _, line in lines)
    each = took["layers"] / layers
    return {
        "layers_rounded": layers,
        "seconds_a_layer": round(each, 4),
        "seconds_of_heads": round(took["heads"], 4),
        "hours_of_32_layers": round((LAYERS * each + took["heads"]) / 3600, 2),
    }


PARTS = {"load": load, "answer": answer, "draw": draw, "calibrate": calibrate}  # what this file does in a process of its own


def measure(options: argparse.Namespace, arguments: Sequence[str]) -> Measured:
    """Part by part, each kept when it is done."""
    if options.work is None:
        raise Error("name a folder with 35 GB of room: --work FOLDER")
    output = options.output or options.work / f"{NAME}.json"
    under_way, todo = Run(NAME, arguments, output, force=options.force, program=PROGRAM), parts(options)
    try:
        options.work.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise Error(f"{options.work} cannot be made ({fault.strerror}); give --work a folder that you may write") from fault
    under_way.plan(len(todo))
    rows = [row for name in todo for row in under_way.do(name, partial(_row, name, todo[name]))]
    return under_way.finish(rows, shape="8b", layers=options.layers), table(rows), under_way.path


def _row(name: str, part: Callable[[], Row]) -> list[Row]:
    return [{"part": name, **part()}]


def table(rows: Sequence[Row]) -> str:
    """A line a part."""
    known = ("part", "peak_gb", "minutes", "processor_minutes")
    hidden = (*known, "command", "result", "bytes", "format", "method", "target")
    further = [", ".join(f"{key} {value}" for key, value in row.items() if key not in hidden) for row in rows]
    lines = [[*(row[key] for key in known), more] for row, more in zip(rows, further, strict=True)]
    return markdown(["part", "peak GB", "minutes", "processor minutes", "further"], lines)


def build_parser() -> Parser:
    parser = Parser(prog=" ".join(PROGRAM), description=__doc__.splitlines()[0])
    add, number = parser.add_argument, at_least_one
    add("--work", type=Path, help="a folder with 35 GB of room; remove it when all is done")
    add("--layers", type=number, default=LAYERS, help="of 32: fewer for a trial (default: 32)")
    add("--steps", type=number, default=16, help="of the timed answers of 128 tokens (default: 16)")
    add("--cache", default="dual", choices=("none", "prefix", "dual"), help="of the timed answers (default: dual)")
    add("--prompts", type=number, default=1, help="of each task that GPTQ is calibrated on (default: 1)")
    add("--threads", type=number, default=2, help="of loading and answering (default: 2)")
    add("--part", choices=PARTS, help=argparse.SUPPRESS)
    for name in ("--bundle", "--checkpoint", "--recorder"):
        add(name, type=Path, help=argparse.SUPPRESS)
    add("--method", help=argparse.SUPPRESS)
    add_output(parser, NAME, f"{NAME}.json in the folder of --work")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)

    def command() -> int:
        options = build_parser().parse_args(words)
        if options.part is None:
            return execute(build_parser(), measure, words)
        print(json.dumps(PARTS[options.part](options)))
        return 0

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
