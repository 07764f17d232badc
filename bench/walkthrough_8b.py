"""The whole path of a model of the published size on this machine, as a script to run and to read.

    python -m mmada_lite.bench.walkthrough_8b --work FOLDER          # 35 GB of room; --layers 2 for a trial

Random weights are written, converted to int4 and int8, opened, asked about a picture, told to draw one, each by the command
that a user gives, as a process of its own; then two of its layers are rounded by GPTQ and by GPTAQ. A part is kept in
FOLDER/walkthrough_8b.json when it is done: a run that was stopped goes on. `int4-half` keeps keys and values in 16 bits.
`load` is the median of three: the first may find memory that the system has yet to provide. `answer` is asked in one step
without a cache: the least memory, and no step of a longer answer takes more. Beside peaks of answers and drawings stands what
`mmada-lite plan` counts. Where the seconds of an answer go, `mmada-lite bench latency --shape 8b` tells.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from mmada_lite import TextSettings, memory_plan
from mmada_lite.arguments import Parser
from mmada_lite.bench.command import Measured, add_output, at_least_one, execute, markdown, thread_count
from mmada_lite.bench.record import Row, Run
from mmada_lite.bench.timed import forget_peak, peak, run_module
from mmada_lite.bundle import Bundle
from mmada_lite.errors import Error
from mmada_lite.export.synthetic import SIZES
from mmada_lite.quant.convert import Request, quantize_model

NAME = "walkthrough_8b"
PROGRAM = ("python", "-m", f"mmada_lite.bench.{NAME}")  # what its arguments stand after
LAYERS = SIZES["8b"].architecture.n_layers
ROUNDED = 2  # layers on which GPTQ is tried
LOADS = 3  # times that loading is measured
QUESTION = "what is in this picture, and where does each one lie?"
ANSWER = 128
BLOCKS = 2  # of an answer in several steps: each block begins with a forward of the whole row
COLUMNS = ("part", "peak_gb", "minutes", "processor_minutes")


def parts(options: argparse.Namespace) -> dict[str, Callable[[], Row]]:
    """Name -> what does it. Each takes what those before it left in the work folder."""
    work, own = options.work, ("--threads", options.threads, "--json")

    def checkpoint(name: str, layers: int) -> Row:
        return run("mmada_lite.export.synthetic", work / name, "--layers", layers, "--force")

    def converted(source: str, bundle: str, form: str, *more: str) -> Row:
        words = ("--format", form, "--method", "rtn", *more, "--force", "--json")
        command = ("quantize", work / source, "-o", work / bundle, *words)
        row, files = run("mmada_lite", *command), [path for path in (work / bundle).rglob("*") if path.is_file()]
        return {**row, "bundle_gb": round(sum(path.stat().st_size for path in files) / 1e9, 3)}

    def loaded() -> Row:
        """A token in one step: a large bundle's weights come with the first call."""
        words = ("chat", "hello", "-m", work / "int4", "--answer-length", 1, "--steps", 1, "--block-length", 1, *own)
        rows = sorted(
            (run("mmada_lite", *words, seconds="load_seconds") for _ in range(LOADS)), key=lambda row: row["load_seconds"]
        )
        each = [row["load_seconds"] for row in rows]
        return {**rows[LOADS // 2], "peak_gb": max(row["peak_gb"] for row in rows), "each_load": each}

    def answered(bundle: str, steps: int, policy: str) -> Row:
        text = TextSettings(ANSWER, steps, ANSWER // min(steps, BLOCKS)).replace(cache=policy)  # type: ignore[arg-type]
        words = ("--answer-length", ANSWER, "--steps", steps, "--block-length", text.block_length, "--cache", policy)
        noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
        Image.fromarray(noise).save(work / "noise.png")
        asked = ("ask", work / "noise.png", QUESTION, "-m", work / bundle, *words, *own)
        row = run("mmada_lite", *asked, seconds="answer_seconds")
        return {**row, "cache": policy, "planned_gb": planned(work / bundle, "answer", text)}

    def drawn() -> Row:
        """One guided step, to the pixels: no later step takes more memory."""
        words = ("paint", "a cat left of a car", "-o", work / "drawn.png", "--steps", 1, "--force", "-m", work / "int4", *own)
        row = run("mmada_lite", *words, seconds="drawing_seconds")
        return {**row, "planned_gb": planned(work / "int4", "drawing", TextSettings())}

    return {
        "checkpoint": partial(checkpoint, "checkpoint", options.layers),
        "int4": partial(converted, "checkpoint", "int4", "int4"),
        "load": loaded,
        "answer": partial(answered, "int4", 1, "none"),
        "drawing": drawn,
        "int4-answer": partial(answered, "int4", options.steps, options.cache),
        "int4-half": partial(converted, "checkpoint", "int4-half", "int4", "--cache-precision", "fp16"),
        "int4-half-answer": partial(answered, "int4-half", options.steps, options.cache),
        "int8": partial(converted, "checkpoint", "int8", "int8"),
        "int8-answer": partial(answered, "int8", options.steps, options.cache),
        "layers": partial(checkpoint, "layers", ROUNDED),
        "layers-rtn": partial(converted, "layers", "layers-rtn", "int4"),
        "gptq": partial(calibrated, work, "gptq", options.prompts),
        "gptaq": partial(calibrated, work, "gptaq", options.prompts),
    }


def run(module: str, *arguments: object, seconds: str = "seconds") -> Row:
    """A command to its end: gigabytes at the highest, minutes of the clock and of processors, and of a decode its steps and
    `seconds`, opening what it needs included."""
    row = run_module(module, *arguments)
    told = {"command": row["command"], "peak_gb": round(row["peak_bytes"] / 1e9, 3), "minutes": round(row["seconds"] / 60, 2)}
    told["processor_minutes"] = round(row["processor_seconds"] / 60, 2)
    names = {"steps": "steps", "seconds": seconds}
    return told | {named: row["printed"][name] for name, named in names.items() if name in row["printed"]}


def planned(path: Path, task: memory_plan.Task, text: TextSettings) -> float:
    """Gigabytes that a plan counts for a task."""
    bundle = Bundle.open(path)
    shape = memory_plan.Shape.of(bundle)
    return round(memory_plan.need(shape, bundle.quantization, text, target=bundle.target, tasks=(task,)).peak / 1e9, 3)


def calibrated(work: Path, method: str, prompts: int) -> Row:
    """Seconds a layer and of the heads, from the lines of progress; the time of 32 layers follows from them."""
    lines: list[tuple[float, str]] = []
    request = Request("int4", method, prompts=prompts, record_with=work / "layers-rtn")
    forget_peak()
    started, before = time.perf_counter(), time.process_time()
    folders = work / "layers", work / f"layers-{method}"
    quantize_model(*folders, request, force=True, report=lambda line: lines.append((time.perf_counter(), line)))
    ended, processor = time.perf_counter(), time.process_time() - before
    took, layers = {"layers": 0.0, "heads": 0.0}, sum(line.startswith("layer ") for _, line in lines)
    for (moment, line), end in zip(lines, [*(moment for moment, _ in lines[1:]), ended], strict=True):
        if line.startswith("layer ") or line.endswith(" head"):
            took["layers" if line.startswith("layer ") else "heads"] += end - moment
    return {
        "peak_gb": round((peak() or 0) / 1e9, 3),
        "minutes": round((ended - started) / 60, 2),
        "processor_minutes": round(processor / 60, 2),
        "layers_rounded": layers,
        "seconds_a_layer": round(took["layers"] / layers, 4),
        "seconds_of_heads": round(took["heads"], 4),
        "hours_of_32_layers": round((LAYERS * took["layers"] / layers + took["heads"]) / 3600, 2),
    }


def measure(options: argparse.Namespace, arguments: Sequence[str]) -> Measured:
    """Part by part, each kept when it is done."""
    output = options.output or options.work / f"{NAME}.json"
    under_way, todo = Run(NAME, arguments, output, force=options.force, program=PROGRAM), parts(options)
    try:
        options.work.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise Error(f"{options.work} cannot be made ({fault.strerror}); give --work a folder that you may write") from fault
    under_way.plan(len(todo))
    rows = [row for name in todo for row in under_way.do(name, partial(_row, name, todo[name]))]
    lines = []
    for row in rows:
        further = ", ".join(f"{key} {value}" for key, value in row.items() if key not in (*COLUMNS, "command"))
        lines.append([*map(row.get, COLUMNS), further])
    shown = markdown(["part", "peak GB", "minutes", "processor minutes", "further"], lines)
    return under_way.finish(rows, shape="8b", layers=options.layers), shown, under_way.path


def _row(name: str, part: Callable[[], Row]) -> list[Row]:
    return [{"part": name, **part()}]


def build_parser() -> Parser:
    parser = Parser(prog=" ".join(PROGRAM), description=__doc__.splitlines()[0])
    add, number = parser.add_argument, at_least_one
    add("--work", type=Path, required=True, help="a folder with 35 GB of room; remove it when all is done")
    add("--layers", type=number, default=LAYERS, help="of 32: fewer for a trial (default: 32)")
    add("--steps", type=number, default=16, help="of the timed answers of 128 tokens (default: 16)")
    add("--cache", default="dual", choices=("none", "prefix", "dual"), help="of the timed answers (default: dual)")
    add("--prompts", type=number, default=1, help="of each task that GPTQ is calibrated on (default: 1)")
    add("--threads", type=thread_count, default=2, help="of loading and answering (default: 2)")
    add_output(parser, NAME, f"{NAME}.json in the folder of --work")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return execute(build_parser(), measure, argv)


if __name__ == "__main__":
    sys.exit(main())
