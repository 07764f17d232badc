"""What quantization costs, told against fp32: every format and method on the same trajectories, others' quantizers beside.

    mmada-lite bench quantization train/shipped/emoji --peers
    mmada-lite bench quantization train/shipped/emoji --bits 4 8 10

The checkpoint is exported in fp32 as the reference; prompts that calibration does not use are decoded by it, and one candidate
after another is made and reads its states, in turns with it. With --bits the candidates are the torch model with its matrices
at the nearest of 2^bits numbers, a scale for 32 weights: what no format of fewer bits can be asked for. It knows bundles and
prompts; how states are compared is `trajectories`.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mmada_lite
from mmada_lite.arguments import Parser
from mmada_lite.bench import third_party
from mmada_lite.bench.command import Measured, add_output, at_least_one, execute, markdown, new_figure, thread_count
from mmada_lite.bench.quality.trajectories import Answers, State, compare, thinks, trajectories
from mmada_lite.bench.record import Row, Run, fingerprint
from mmada_lite.bundle import Bundle
from mmada_lite.decoding.denoiser import Denoiser
from mmada_lite.errors import Error
from mmada_lite.export.formats import format_named
from mmada_lite.model import Model
from mmada_lite.quant.convert import Request, quantize_model, specs_named
from mmada_lite.quant.prompts import NEEDED, TASKS, Prompt, Task, built_in

FORMATS = ("fp16", "int8", "int8-b64", "int4-b32", "int4-b64", "int4-b128", "int4-b32-asym", "int4-b64-asym", "int4-b128-asym")
METHODS = ("rtn", "clip", "gptq", "rotate+rtn", "smooth+rtn", "rotate+gptq", "smooth+gptq", "rotate+gptaq")
BLOCK = 32  # weights of --bits that have a scale
_ONCE = ("int8-b64",)  # formats whose rtn alone is of interest, beside those that have nothing to round
_DRAWS = 1000  # of a bootstrap
Share = tuple[float, float, float]  # a mean, and its 95% interval over prompts


@dataclass(frozen=True, slots=True)
class Reference:
    """A bundle of a model, fp32 or the finest there is, with the states of its decodings that all candidates read."""

    model: Model
    asked: Sequence[Prompt]
    states: Sequence[State]
    threads: int

    @classmethod
    def cached(cls, path: Path | Callable[[], Path], prompts: int, states: int, threads: int) -> "Callable[[], Reference]":
        """Opened when it is first asked for: a run of which all is done opens nothing. path: the bundle's, or what makes it."""

        @cache
        def opened() -> Reference:
            model = mmada_lite.load(path() if callable(path) else path, device="cpu", threads=threads)
            asked = fresh_prompts(prompts, tasks_of(model))
            return cls(model, asked, trajectories(model, asked, states), threads)

        return opened

    def answers(self, candidate: Denoiser) -> Answers:
        return compare(self.model.denoiser, candidate, self.states, len(self.asked))

    def told_of_bundle(self, path: Path, name: str | None = None) -> Row:
        """The row of another bundle. Raises Error where it is of another model."""
        other = mmada_lite.load(path, device="cpu", threads=self.threads)
        if other.bundle.architecture != self.model.bundle.architecture or other.vocabulary != self.model.vocabulary:
            raise Error(
                f"{path} has another shape or vocabulary than {self.model.bundle.path}, and its steps cannot be followed; "
                "name other tasks with --only, or give bundles of one checkpoint"
            )
        return self.told(name or str(path), self.answers(other.denoiser), stored_bytes(other.bundle))

    def told(self, name: str, answers: Answers, size: int | None, bits: float | None = None) -> Row:
        """One line of the table. bytes: of backbone and heads as stored; bits: of one of their weights, scales counted; shares
        and means over positions, and those of each task alone; seconds: medians of a step, and of the reference's."""
        tasks = np.array([prompt.task for prompt in self.asked])
        return {
            "name": name,
            "bytes": size,
            "bits": round(8 * size / weights_of(self.model.bundle), 3) if size else bits,
            **loss_of(answers, np.ones(len(tasks), bool)),
            "seconds": round(float(np.median(answers.seconds)), 5),
            "reference_seconds": round(float(np.median(answers.reference_seconds)), 5),
            "tasks": {task: loss_of(answers, tasks == task) for task in dict.fromkeys(tasks.tolist())},
        }


def require_bundles(*paths: Path) -> None:
    for path in paths:
        if not (path / "bundle.json").is_file():
            raise Error(f"{path} is no bundle; make one with mmada-lite export CHECKPOINT -o BUNDLE --precision fp32")


def tasks_of(model: Model) -> tuple[Task, ...]:
    """What a model can be asked."""
    if model.bundle.image is None:
        return ("chat",)
    return TASKS if thinks(model) else NEEDED


def fresh_prompts(count: int, tasks: Sequence[Task] = NEEDED, seeds: int = 8) -> list[Prompt]:
    """`count` of each task; what is painted and said, calibration with any seed below `seeds` never sees."""
    fresh: list[Prompt] = []
    for task in tasks:
        known = {prompt.text for seed in range(seeds) for prompt in built_in(task, 64, seed)} if task != "ask" else set()
        fresh += [prompt for prompt in built_in(task, 20 * count, 0x7E57) if prompt.text not in known][:count]
    return fresh


def stored_bytes(bundle: Bundle) -> int:
    return sum(bundle.quantization[group].bytes or 0 for group in ("backbone", "text_head", "image_head"))


def weights_of(bundle: Bundle) -> int:
    """Numbers in the matrices of backbone and heads."""
    shape = bundle.architecture
    heads = shape.vocab_size + bundle.vocabulary.codebook_size
    kv = shape.n_kv_heads * shape.head_dim
    block = 2 * shape.d_model + 2 * kv + 3 * shape.mlp_hidden_size
    return shape.d_model * (shape.n_layers * block + heads)


def loss_of(answers: Answers, prompts: NDArray[np.bool_]) -> dict[str, Share]:
    """What was lost on some of the prompts."""
    positions, writes = answers.positions[prompts], answers.writes[prompts]
    return {
        "agreement": interval(answers.agreed[prompts], positions),
        "divergence": interval(answers.divergence[prompts], positions),
        "flips": interval(answers.flips[prompts], writes),
    }


def interval(sums: NDArray, counts: NDArray, seed: int = 0) -> Share:
    """sums / counts over all prompts, and the 95% interval when prompts are drawn anew (bootstrap)."""
    drawn = np.random.default_rng(seed).integers(len(counts), size=(_DRAWS, len(counts)))
    ratios = sums[drawn].sum(1) / np.maximum(counts[drawn].sum(1), 1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(sums.sum() / max(counts.sum(), 1)), float(low), float(high)


def requests(formats: Sequence[str], methods: Sequence[str], prompts: int) -> dict[str, Request]:
    """What to make of the checkpoint, by name. All matrices are stored alike, so that bits a weight can be compared; the
    presets, which are not, come last."""
    made = {}
    for form in formats:
        for method in ("rtn",) if form in _ONCE or format_named(form).floating else METHODS:
            if method in methods:
                made[f"{form} {method}"] = Request(form, method, store=_even(form), prompts=prompts)
    presets = [(preset, method) for preset in ("int8", "int4") for method in ("rtn", "gptq") if method in methods]
    return made | {f"--format {preset} {method}": Request(preset, method, prompts=prompts) for preset, method in presets}


def _even(form: str) -> tuple[tuple[str, str], ...]:
    return (("image_head", form), ("text_head", form), ("embedder", "fp16"))


def rounded(weight: Any, bits: int) -> Any:
    """A torch weight [N, K] at the nearest of 2^bits evenly spaced numbers, zero among them, a scale for BLOCK inputs of a
    column (the last ones may be fewer)."""
    import torch

    parts = []
    for part in weight.split(BLOCK, dim=1):
        scale = part.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 0.5)
        codes = (part / scale.clamp_min(torch.finfo(part.dtype).tiny)).round()
        parts.append(codes.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale)
    return torch.cat(parts, dim=1)


def rounded_model(checkpoint: Path, bits: int) -> Denoiser:
    """The torch model of a checkpoint with its matrices rounded; activations, norms and embedding stay in float32."""
    from torch import nn

    from mmada_lite.bench.quality.models import open_model
    from mmada_lite.train.denoiser import TorchDenoiser

    denoiser = open_model(checkpoint).denoiser
    assert isinstance(denoiser, TorchDenoiser), "a checkpoint is a torch model"
    transformer = denoiser.model.transformer
    matrices = [part for each in transformer.blocks for part in each.children() if isinstance(part, nn.Linear)]
    for matrix in (*matrices, transformer.ff_out):
        matrix.weight = nn.Parameter(rounded(matrix.weight.data, bits), requires_grad=False)
    return denoiser


def candidates(options: argparse.Namespace, scratch: Path) -> dict[str, Callable[[], Iterator[Row]]]:
    """Name -> what makes a candidate of the checkpoint, one at a time, and tells it against the reference."""
    fp32 = cache(partial(quantize_model, options.checkpoint, scratch / "fp32", Request("fp32", "rtn")))
    reference = Reference.cached(fp32, options.prompts, options.states, options.threads)

    def quantized(name: str, request: Request) -> Iterator[Row]:
        made = quantize_model(options.checkpoint, scratch / "made", replace(request, record_with=fp32()), force=True)
        yield reference().told_of_bundle(made, name)

    def with_bits(name: str, bits: int) -> Iterator[Row]:
        yield reference().told(name, reference().answers(rounded_model(options.checkpoint, bits)), None, bits)

    def others(name: str) -> Iterator[Row]:
        try:
            made = third_party.candidates(options.checkpoint, fp32(), scratch, options.threads)[name]()
            yield reference().told(name, reference().answers(made.denoiser), made.bytes)
        except Exception as fault:  # others' code; the table says which of them did not work here, and why
            yield {"name": name, "not_run": " ".join(f"{type(fault).__name__}: {fault}".split())[:200]}

    if options.bits:
        return {f"{bits} bits": partial(with_bits, f"{bits} bits", bits) for bits in sorted(set(options.bits))}
    asked = requests(options.formats, options.methods, options.calibrate_on)
    for request in asked.values():
        specs_named(request.format, request.target, dict(request.store))  # an unknown one is told before any work
    if not asked and not options.peers:
        formats, methods = " ".join(options.formats), " ".join(options.methods)
        raise Error(f"nothing of {formats} is made by {methods}; give --methods rtn, or another of --formats")
    names = third_party.candidates(options.checkpoint, scratch, scratch, options.threads) if options.peers else ()
    made = {name: partial(quantized, name, request) for name, request in asked.items()}
    return {**made, **{name: partial(others, name) for name in names}}


def measure(options: argparse.Namespace, arguments: Sequence[str]) -> Measured:
    """One candidate after another, each kept when it is told."""
    if not all(2 <= bits <= 16 for bits in options.bits):
        raise Error(f"--bits {' '.join(map(str, options.bits))}: each is from 2 to 16")
    with tempfile.TemporaryDirectory() as scratch:
        tasks = candidates(options, Path(scratch))
        if not (options.checkpoint / "config.json").is_file():
            raise Error(f"{options.checkpoint} is no checkpoint (config.json), whose matrices are not rounded yet; name one")
        run = Run("quantization", arguments, options.output, force=options.force, about=fingerprint(options.checkpoint))
        run.plan(len(tasks))
        results = [row for name, work in tasks.items() for row in run.do(name, work)]
    rows = [row for row in results if "agreement" in row]
    not_run = {row["name"]: row["not_run"] for row in results if "not_run" in row}
    content = run.finish(rows, not_run=not_run, prompts=options.prompts, states=options.states)
    if options.plot:
        plot(rows, options.plot)
    return content, "\n".join([table(rows), *(f"not run: {name}: {why}" for name, why in not_run.items())]), run.path


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The least divergence first; the agreement of each task in the last columns."""
    tasks, lines = list(rows[0]["tasks"]) if rows else [], []
    for row in sorted(rows, key=lambda one: one["divergence"][0]):
        megabytes = f"{row['bytes'] / 1e6:.2f}" if row["bytes"] else ""
        divergence = "{:.5f} ({:.5f} to {:.5f})".format(*row["divergence"])
        agreement, flips = (
            "{:.2f} ({:.2f} to {:.2f})".format(*(100 * v for v in row[name])) for name in ("agreement", "flips")
        )
        each = [f"{100 * row['tasks'][task]['agreement'][0]:.2f}" for task in tasks]
        lines.append([row["name"], megabytes, row["bits"], agreement, divergence, flips, f"{1000 * row['seconds']:.1f}", *each])
    heads = ["", "MB", "bits a weight", "agreement %", "KL, nats", "flips %", "ms a step"]
    return markdown([*heads, *(f"{task} %" for task in tasks)], lines)


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Divergence against megabytes. Raises Error where matplotlib is not installed."""
    figure = new_figure(9, 6)
    axes = figure.subplots()
    for row in (row for row in rows if row["bytes"]):
        others = row["name"].split()[0] in ("bitsandbytes", "onnxruntime", "optimum")
        point = row["bytes"] / 1e6, row["divergence"][0]
        axes.plot(*point, "s" if others else "o", color="tab:red" if others else "tab:blue")
        axes.annotate(row["name"], point, fontsize=6, xytext=(3, 2), textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlabel="backbone and heads, MB", ylabel="KL from fp32, nats a masked position")
    figure.savefig(path, dpi=150)


def build_parser() -> Parser:
    parser = Parser(prog="mmada-lite bench quantization", description=__doc__.splitlines()[0])
    add, number = parser.add_argument, at_least_one
    add("checkpoint", type=Path)
    add("--formats", nargs="+", default=FORMATS, help=f"default {' '.join(FORMATS)}")
    add("--methods", nargs="+", default=METHODS, choices=METHODS, metavar="METHOD", help=f"default {' '.join(METHODS)}")
    add("--bits", type=int, nargs="+", default=[], help="instead of formats: the torch model at 2 to 16 bits")
    add("--prompts", type=number, default=100, help="of each task, to compare on (default 100)")
    add("--states", type=number, default=4, help="of each decoding (default 4)")
    add("--calibrate-on", type=number, default=32, help="prompts of each task (default 32)")
    add("--peers", action="store_true", help="run others' quantizers too")
    add("--threads", type=thread_count, default=1)
    add("--plot", type=Path, metavar="PNG", help="draw it with matplotlib")
    add_output(parser, "quantization")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return execute(build_parser(), measure, argv)


if __name__ == "__main__":
    sys.exit(main())
