"""A picture and an answer at full size on this machine's GPU, by every provider that works, against the torch reference.

    python -m mmada_lite.bench.speed.gpu
    python -m mmada_lite.bench.speed.gpu --shape tiny --device cpu    # the same path, anywhere, in seconds

Picture: all codes (1,024), 15 steps, guidance. Answer: 128 tokens about a picture. Weights are random. Every side runs in a
process of its own, the reference first: torch in bfloat16, as the published code computes (prompts padded to 512 tokens, the
pair of guidance as one batch, the head over all columns of all rows at every step, no cache). Writes JSON into bench/results.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from mmada_lite import __version__
from mmada_lite.bench.synthetic import SIZES, Size, cached_bundle
from mmada_lite.bundle import Bundle
from mmada_lite.decoding.canvas import Canvas, image_canvas, picture_prompt, text_canvas
from mmada_lite.decoding.denoiser import Denoiser
from mmada_lite.decoding.image import decode_image
from mmada_lite.decoding.sampling import PhiloxSampler
from mmada_lite.decoding.text import decode_text
from mmada_lite.errors import Error
from mmada_lite.ort import devices as ort_devices
from mmada_lite.ort import nvidia
from mmada_lite.ort.loader import open_denoiser
from mmada_lite.ort.session import choose_device

TARGETS = {"cpu": "cpu", "cuda": "cuda", "rtx": "tensorrt", "tensorrt": "tensorrt"}
PRECISIONS = ("fp16", "int4")
WORDS = 30  # tokens of a caption or a question
PADDED = 512  # to which the published code pads a prompt
WANTED = {"picture": 4.0, "answer": 15.0}  # times the reference's speed
RESULTS = Path(__file__).parent / "results"


class Peak:
    """The most memory taken while this is open: of the card, sampled, or of the process on a CPU. Bytes."""

    def __init__(self, card: bool) -> None:
        self.bytes = 0
        self._card, self._stop = card, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._before = _free() if self._card else 0
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.bytes = max(self.bytes, self._before - _free() if self._card else _resident())


def _free() -> int:
    cards = nvidia.cards()
    return (cards[0].free or 0) if cards else 0


def _resident() -> int:
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def picture_of(size: Size) -> Canvas:
    """The canvas of a picture whose every code is still to be drawn, with guidance."""
    words = np.arange(WORDS) % 40 + 20
    special = size.vocabulary.special
    prompt = [special.t2i, special.bos, *words.tolist(), special.eos]
    nothing = [special.t2i, special.bos, special.eos]
    codes = np.zeros((size.grid, size.grid), dtype=np.int64)
    return image_canvas(prompt, codes, np.ones(codes.shape, dtype=bool), size.vocabulary, unconditional_prompt=nothing)


def answer_about(size: Size) -> Canvas:
    """The canvas of an answer after a picture and a question."""
    codes = np.random.default_rng(0).integers(0, size.codes, (1, size.grid, size.grid))
    prompt = [*picture_prompt(codes, size.vocabulary), *(np.arange(WORDS) % 40 + 20).tolist()]
    return text_canvas(prompt, size.answer, size.vocabulary.special)


def tasks(denoiser: Denoiser, bundle: Bundle, size: Size) -> Mapping[str, Callable[[], int]]:
    """Name -> the whole task, which returns the steps that it took."""
    text = replace(bundle.text_defaults, cache="dual")
    return {
        "picture": lambda: len(list(decode_image(denoiser, picture_of(size), bundle.image_defaults, PhiloxSampler(0, 1.0, 0)))),
        "answer": lambda: len(list(decode_text(denoiser, answer_about(size), text, PhiloxSampler(0, 0.0, 0)))),
    }


def ours(size: Size, folder: Path, device: str, rounds: int) -> dict[str, Any]:
    """Seconds of both tasks on a device, and what its memory held at most."""
    bundle = Bundle.open(folder)
    with Peak(card=device != "cpu") as peak:
        started = time.perf_counter()
        denoiser = open_denoiser(bundle, choose_device(device), 1 if device == "cpu" else None)
        loaded = time.perf_counter() - started
        found = {name: _timed(task, rounds) for name, task in tasks(denoiser, bundle, size).items()}
    return {"load_s": round(loaded, 2), **found, "peak_bytes": peak.bytes}


def agreement(size: Size, folder: Path, device: str) -> dict[str, Any]:
    """The share of greedy answer tokens on a device that are those of the CPU provider: 1 but for ties in half precision."""
    bundle = Bundle.open(folder)
    found = []
    for place in (device, "cpu"):
        denoiser, canvas = open_denoiser(bundle, choose_device(place), 1), answer_about(size)
        for _ in decode_text(denoiser, canvas, bundle.text_defaults, PhiloxSampler(0, 0.0, 0)):
            pass
        found.append(canvas.tokens[0, canvas.region])
    return {"agreement": float((found[0] == found[1]).mean())}


def reference(size: Size, device: str, rounds: int) -> dict[str, Any]:
    """Seconds of the same tasks as the published code does them: its forward passes, in torch and bfloat16."""
    import torch

    from mmada_lite.bench.synthetic import config_of
    from mmada_lite.train.model import MMaDA

    with Peak(card=device != "cpu") as peak, torch.inference_mode():
        with torch.device("cpu" if device == "cpu" else "cuda"):
            torch.set_default_dtype(torch.bfloat16)
            model = MMaDA(config_of(size)).eval()
        place = next(model.parameters()).device
        longest = size.architecture.max_sequence_length
        rows = {"picture": (2, PADDED + size.grid**2 + 2), "answer": (1, picture_prompt_length(size) + size.answer)}
        steps = {"picture": 15 if size.grid > 4 else 5, "answer": size.answer // 2}

        def step(batch: int, length: int) -> None:
            tokens = torch.randint(0, 20, (batch, min(length, longest)), device=place)
            model.logits(model(tokens).hidden).float().softmax(-1).argmax(-1)

        def task(name: str) -> int:
            for _ in range(steps[name]):
                step(*rows[name])
            if place.type == "cuda":
                torch.cuda.synchronize()
            return steps[name]

        found = {name: _timed(lambda name=name: task(name), rounds) for name in rows}  # type: ignore[misc]
    return {"torch": torch.__version__, **found, "peak_bytes": peak.bytes}


def picture_prompt_length(size: Size) -> int:
    """`mmu`, the codes between their brackets, and the question."""
    return size.grid**2 + 3 + WORDS


def _timed(task: Callable[[], int], rounds: int) -> dict[str, Any]:
    """The median of some runs after one that does not count."""
    steps, seconds = task(), []
    for _ in range(rounds):
        started = time.perf_counter()
        task()
        seconds.append(time.perf_counter() - started)
    return {"median_s": round(statistics.median(seconds), 4), "min_s": min(seconds), "max_s": max(seconds), "steps": steps}


def side(arguments: Sequence[str]) -> dict[str, Any]:
    """One side in a process of its own, so that memory is its own; its failure is data too."""
    command = [sys.executable, "-m", "mmada_lite.bench.speed.gpu", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:400]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(shape: str, devices: Sequence[str], precisions: Sequence[str], rounds: int, work: Path) -> dict[str, Any]:
    """Every side, and how many times as fast as the reference each is."""
    common = ["--shape", shape, "--rounds", str(rounds)]
    print("torch reference", flush=True)
    sides: dict[str, Any] = {"reference": side([*common, "--one", "reference", "--device", devices[0]])}
    for target in dict.fromkeys(TARGETS[device] for device in devices):
        for precision in precisions:
            folder = cached_bundle(shape, precision, work, target=target).path
            for device in (device for device in devices if TARGETS[device] == target):
                print(f"{device}, {precision}", flush=True)
                found = side([*common, "--one", str(folder), "--device", device])
                sides[f"{device} {precision}"] = found | validated(device, precision, work)
    against = sides["reference"]
    for name, found in sides.items():
        if name != "reference" and "failed" not in found and "failed" not in against:
            found["times_reference"] = {
                task: round(against[task]["median_s"] / max(found[task]["median_s"], 1e-9), 2) for task in WANTED
            }
    return sides


def validated(device: str, precision: str, work: Path) -> dict[str, Any]:
    """Whether a provider computes what the CPU's does, on a tiny bundle: a failure is data too."""
    folder = cached_bundle("tiny", precision, work, target=TARGETS[device]).path
    return side(["--shape", "tiny", "--agree", str(folder), "--device", device])


def usable(asked: str) -> list[str]:
    """The devices to measure: the one asked for, or every kind of GPU that works. Raises Error when there is none."""
    if asked != "auto":
        return [choose_device(asked).name]
    faults = {name: ort_devices.fault(name) for name in ("cuda", "rtx", "tensorrt")}
    found = [name for name, why in faults.items() if why is None]
    if not found:
        raise Error(f"no GPU works here ({faults['cuda']}); try the path with --shape tiny --device cpu")
    return found


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SIZES, default="8b", help="of the model (default 8b)")
    parser.add_argument("--device", default="auto", help="cuda, rtx, tensorrt or cpu (default: every GPU provider that works)")
    parser.add_argument("--rounds", type=int, default=3, help="counted runs, after one warm-up (default 3)")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="of ours (default: both)")
    parser.add_argument(
        "--work", type=Path, help="where bundles are made and found again: 21 GB a target at 8b (default: temporary)"
    )
    parser.add_argument("-o", "--output", type=Path, help="the JSON file (default: bench/results/gpu-SHAPE.json)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--agree", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    size = SIZES[options.shape]
    if options.agree:
        print(json.dumps(agreement(size, options.agree, options.device)))
        return 0
    if options.one:
        one = reference(size, options.device, options.rounds) if options.one == "reference" else None
        print(json.dumps(one or ours(size, Path(options.one), options.device, options.rounds)))
        return 0
    try:
        if options.rounds < 1:
            raise Error(f"--rounds {options.rounds} cannot be; give a whole number from 1 on")
        devices = usable(options.device)
    except Error as error:
        print(f"mmada-lite: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        sides = compare(options.shape, devices, options.precisions, options.rounds, options.work or Path(scratch))
    result = {
        "benchmark": "gpu",
        "command": " ".join(["python -m mmada_lite.bench.speed.gpu", *(sys.argv[1:] if words is None else words)]),
        "version": __version__,
        "onnxruntime": ort_devices.onnxruntime().__version__,
        "environment": {name: value for name, value in os.environ.items() if name.startswith("ORT_")},  # its kernels' switches
        "cards": [asdict(card) for card in nvidia.cards()],
        "shape": options.shape,
        "wanted_times_reference": WANTED,
        "sides": sides,
    }
    output = options.output or RESULTS / f"gpu-{options.shape}.json"
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    return 1 if any("failed" in found for found in sides.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
