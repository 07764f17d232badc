"""What `bench eight` runs in processes of their own: load a bundle, ask it about a picture, have it draw one, round layers by
a calibrated method. Each prints one line of JSON. It knows the public API and one clock; what a process took is seen from
outside.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

import mmada_lite
from mmada_lite import memory_plan
from mmada_lite.bench.speed.timed import open_timed, timed
from mmada_lite.decoding.canvas import picture_prompt
from mmada_lite.decoding.denoiser import Window
from mmada_lite.errors import Error
from mmada_lite.vocabulary import chat_ids

QUESTION = "what is in this picture, and where does each one lie?"
ANSWER = 128
BLOCKS = 2  # of an answer in several steps: each block begins with a forward of the whole row


def load(options: argparse.Namespace) -> dict[str, object]:
    """Seconds until one token has gone through: a large bundle's weights come with the first call."""
    started = time.perf_counter()
    model = mmada_lite.load(options.bundle, device="cpu", threads=options.threads)
    one = np.zeros((1, 1), np.int64)
    model.denoiser.forward(Window(one, np.arange(1), one), keep=False)
    return {"load_seconds": round(time.perf_counter() - started, 2)}


def answer(options: argparse.Namespace) -> dict[str, object]:
    """An answer of 128 tokens about a picture, from pixels on: its tokens, and its seconds by part. The first step sees the
    whole row."""
    model = mmada_lite.load(options.bundle, device="cpu", threads=options.threads)
    model.denoiser, _ = open_timed(model.bundle, options.threads)
    clock = model.denoiser.clock
    block = ANSWER // min(options.steps, BLOCKS)
    text = mmada_lite.TextSettings(answer_length=ANSWER, steps=options.steps, block_length=block, cache=options.cache)
    side = model.codec.resolution
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    started = time.perf_counter()
    steps = model.ask(Image.fromarray(noise), QUESTION, text)
    reading = time.perf_counter() - started
    model.denoiser.open()
    opening = time.perf_counter() - started - reading
    run = timed(steps, clock)
    codes = np.zeros((1, model.codec.grid, model.codec.grid), np.int64)
    question = chat_ids(model.tokenizer, model.vocabulary.special, [{"role": "user", "content": QUESTION}])
    return {
        "prompt_tokens": len(picture_prompt(codes, model.vocabulary)) + len(question),
        "answer_tokens": ANSWER,
        "steps": run.steps,
        "cache": options.cache,
        "planned_gb": planned(model, "answer", text),
        "answer_seconds": round(reading + opening + run.seconds, 1),
        "first_step_seconds": round(reading + opening + run.first, 1),
        "seconds_of": {"picture": round(reading, 3), "opening": round(opening, 3)}
        | {part: round(taken, 4) for part, taken in run.parts.items()},
    }


def draw(options: argparse.Namespace) -> dict[str, object]:
    """A picture in one guided step, to its pixels: no later step takes more memory."""
    model = mmada_lite.load(options.bundle, device="cpu", threads=options.threads)
    image = replace(model.image_defaults, steps=1, refresh=1)
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


def calibrated(options: argparse.Namespace) -> dict[str, object]:
    """Seconds a layer and of the heads, from the lines of progress; the time of 32 layers follows from them."""
    from mmada_lite.quant.convert import Request, quantize_model

    seen: list[tuple[float, str]] = []
    request = Request("int4", options.method, prompts=options.prompts, record_with=options.recorder)
    quantize_model(
        *(options.checkpoint, options.bundle, request), force=True, report=lambda line: seen.append((time.perf_counter(), line))
    )
    ends = [moment for moment, _ in seen[1:]] + [seen[-1][0]]
    took: dict[str, float] = {}
    for (moment, line), end in zip(seen, ends, strict=True):
        name = "layers" if line.startswith("layer ") else "heads" if line.endswith(" head") else ""
        if name:
            took[name] = took.get(name, 0.0) + end - moment
    layers = sum(line.startswith("layer ") for _, line in seen)
    each, heads = took["layers"] / layers, took.get("heads", 0.0)
    return {
        "layers_rounded": layers,
        "seconds_a_layer": round(each, 4),
        "seconds_of_heads": round(heads, 4),
        "hours_of_32_layers": round((32 * each + heads) / 3600, 2),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mmada_lite.bench.walkthrough_parts", description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="part", required=True)
    for name, does in (("load", load), ("answer", answer), ("draw", draw)):
        one = kinds.add_parser(name)
        one.set_defaults(does=does)
        one.add_argument("bundle", type=Path)
        one.add_argument("--threads", type=int, default=2)
        if name == "answer":
            one.add_argument("--steps", type=int, required=True)
            one.add_argument("--cache", required=True)
    one = kinds.add_parser("calibrated")
    one.set_defaults(does=calibrated)
    for argument in ("checkpoint", "recorder", "bundle"):
        one.add_argument(argument, type=Path)
    one.add_argument("--method", default="gptq")
    one.add_argument("--prompts", type=int, default=1)
    options = parser.parse_args(arguments)
    try:
        print(json.dumps(options.does(options)))
    except Error as fault:
        print(f"mmada-lite: {fault}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
