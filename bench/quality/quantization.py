"""What quantization costs, told against fp32: every format and method on the same trajectories, others' quantizers beside.

    python -m mmada_lite.bench.quality.quantization train/shipped/emoji -o runs/truth --peers

The checkpoint is exported in fp32 as the reference and quantized in every wanted way; prompts that calibration does not use
are decoded by the reference, and all candidates read its states. Prints a table, then a JSON line; with -o also truth.json,
truth.md and, with matplotlib, truth.png. It knows bundles and prompts; how states are compared is `trajectories`.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import mmada_lite
from mmada_lite.bench import record
from mmada_lite.bench.quality.trajectories import Answers, compare, thinks, trajectories
from mmada_lite.bench.speed.third_party import rivals
from mmada_lite.bundle import Bundle
from mmada_lite.decoding.denoiser import Denoiser
from mmada_lite.errors import Error
from mmada_lite.model import Model
from mmada_lite.quant.convert import Request, quantize_model
from mmada_lite.quant.prompts import NEEDED, TASKS, Prompt, Task, built_in

FORMATS = ("fp16", "int8", "int8-b64", "int4-b32", "int4-b64", "int4-b128", "int4-b32-asym", "int4-b64-asym", "int4-b128-asym")
METHODS = ("rtn", "clip", "gptq", "rotate+rtn", "smooth+rtn", "rotate+gptq", "smooth+gptq", "rotate+gptaq")
_ONCE = ("fp16", "int8-b64")  # formats whose rtn alone is of interest
_DRAWS = 1000  # of a bootstrap


@dataclass(frozen=True, slots=True)
class Loss:
    """Shares and means over positions, each with its 95% interval over prompts."""

    agreement: tuple[float, float, float]
    divergence: tuple[float, float, float]
    flips: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. bytes: of backbone and heads as stored; bits: of one of their weights, scales counted. Shares
    and means over positions, each with its 95% interval over prompts, and those of each task alone; seconds: median of a
    step."""

    name: str
    bytes: int
    bits: float
    agreement: tuple[float, float, float]
    divergence: tuple[float, float, float]
    flips: tuple[float, float, float]
    seconds: float
    tasks: Mapping[str, Loss] = field(default_factory=dict)


def against(reference: Path, bundles: Sequence[Path], prompts: int = 100, states: int = 4, threads: int = 1) -> list[Row]:
    """The rows of bundles of one model, told against the bundle `reference` (fp32, or the finest there is)."""
    model = mmada_lite.load(reference, device="cpu", threads=threads)
    asked = fresh_prompts(prompts, tasks_of(model))
    followed = trajectories(model, asked, states)
    loaded = {str(path): mmada_lite.load(path, device="cpu", threads=threads) for path in bundles}
    for path, other in loaded.items():
        if other.bundle.architecture != model.bundle.architecture or other.vocabulary != model.vocabulary:
            raise Error(f"{path} is of another model than {reference}; give bundles of one checkpoint")
    found = compare(model.denoiser, {name: other.denoiser for name, other in loaded.items()}, followed, len(asked))
    sizes, weights = {name: stored_bytes(other.bundle) for name, other in loaded.items()}, weights_of(model.bundle)
    return [row(name, found[name], sizes[name], weights, asked) for name in loaded]


def tasks_of(model: Model) -> tuple[Task, ...]:
    """What a model can be asked."""
    if model.bundle.image is None:
        return ("chat",)
    return TASKS if thinks(model) else NEEDED


def fresh_prompts(count: int, tasks: Sequence[Task] = NEEDED, seeds: int = 8) -> list[Prompt]:
    """`count` of each task; what is painted and said, calibration with any seed below `seeds` never sees."""
    found: list[Prompt] = []
    for task in tasks:
        known = {prompt.text for seed in range(seeds) for prompt in built_in(task, 64, seed)} if task != "ask" else set()
        found += [prompt for prompt in built_in(task, 20 * count, 0x7E57) if prompt.text not in known][:count]
    return found


def stored_bytes(bundle: Bundle) -> int:
    return sum(bundle.quantization[group].bytes or 0 for group in ("backbone", "text_head", "image_head"))


def weights_of(bundle: Bundle) -> int:
    """Numbers in the matrices of backbone and heads."""
    shape = bundle.architecture
    heads = shape.vocab_size + bundle.vocabulary.codebook_size
    kv = shape.n_kv_heads * shape.head_dim
    block = 2 * shape.d_model + 2 * kv + 3 * shape.mlp_hidden_size
    return shape.d_model * (shape.n_layers * block + heads)


def row(name: str, found: Answers, size: int, weights: int, asked: Sequence[Prompt]) -> Row:
    tasks = np.array([prompt.task for prompt in asked])
    all_of = loss_of(found, np.ones(len(tasks), bool))
    return Row(
        name=name,
        bytes=size,
        bits=round(8 * size / weights, 3),
        agreement=all_of.agreement,
        divergence=all_of.divergence,
        flips=all_of.flips,
        seconds=round(float(np.median(found.seconds)), 5),
        tasks={task: loss_of(found, tasks == task) for task in dict.fromkeys(tasks.tolist())},
    )


def loss_of(found: Answers, prompts: NDArray[np.bool_]) -> Loss:
    """What was lost on some of the prompts."""
    positions, writes = found.positions[prompts], found.writes[prompts]
    return Loss(
        agreement=interval(found.agreed[prompts], positions),
        divergence=interval(found.divergence[prompts], positions),
        flips=interval(found.flips[prompts], writes),
    )


def interval(sums: NDArray, counts: NDArray, seed: int = 0) -> tuple[float, float, float]:
    """sums / counts over all prompts, and the 95% interval when prompts are drawn anew (bootstrap)."""
    drawn = np.random.default_rng(seed).integers(len(counts), size=(_DRAWS, len(counts)))
    ratios = sums[drawn].sum(1) / np.maximum(counts[drawn].sum(1), 1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(sums.sum() / max(counts.sum(), 1)), float(low), float(high)


def difference(ours: Sequence[Answers], theirs: Sequence[Answers], seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """Theirs minus ours, paired over prompts and over seeds of calibration: mean and 95% interval when both are drawn anew.
    Above zero: ours has the smaller divergence, or the fewer flips."""
    rng = np.random.default_rng(seed)
    fields = {"divergence": ("divergence", "positions"), "flips": ("flips", "writes")}
    found = {}
    for name, (sums, counts) in fields.items():
        gain = np.stack([getattr(t, sums) - getattr(o, sums) for o, t in zip(ours, theirs, strict=True)])  # [seeds, prompts]
        total = getattr(ours[0], counts)
        seeds = rng.integers(len(gain), size=(_DRAWS, len(gain)))
        drawn = rng.integers(gain.shape[1], size=(_DRAWS, gain.shape[1]))
        ratios = [gain[s][:, d].mean(0).sum() / total[d].sum() for s, d in zip(seeds, drawn, strict=True)]
        low, high = np.quantile(ratios, (0.025, 0.975))
        found[name] = float(gain.mean(0).sum() / total.sum()), float(low), float(high)
    return found


def requests(formats: Sequence[str], methods: Sequence[str], prompts: int, seeds: int) -> dict[str, Request]:
    """What to make of the checkpoint, by name. All matrices are stored alike, so that bits a weight can be compared; the
    presets, which are not, come last; for each int4 format gptq is calibrated on finished rows too, `seeds` times each."""
    made = {}
    for form in formats:
        even = (("image_head", form), ("text_head", form), ("embedder", "fp16"))
        for method in METHODS if form not in _ONCE else ("rtn",):
            if method in methods:
                made[f"{form} {method}"] = Request(form, method, store=even, prompts=prompts)
        if form.startswith("int4") and "gptq" in methods:
            for seed in range(seeds):
                for seen in ("masked", "unmasked"):
                    made[f"{form} gptq {seen} {seed}"] = Request(
                        form, "gptq", store=even, prompts=prompts, seen=seen, seed=seed
                    )
    presets = [(preset, method) for preset in ("int8", "int4") for method in ("rtn", "gptq") if method in methods]
    return made | {f"--format {preset} {method}": Request(preset, method, prompts=prompts) for preset, method in presets}


def table(rows: Sequence[Row]) -> str:
    lines = ["| | MB | bits a weight | agreement % | KL, nats | flips % | ms a step |", "|---|---|---|---|---|---|---|"]
    for each in sorted(rows, key=lambda one: one.divergence[0]):
        agreement, flips = (percent(values) for values in (each.agreement, each.flips))
        divergence = "{:.5f} ({:.5f} to {:.5f})".format(*each.divergence)
        cells = (each.name, f"{each.bytes / 1e6:.2f}", each.bits, agreement, divergence, flips, f"{1000 * each.seconds:.1f}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def percent(values: tuple[float, float, float]) -> str:
    """A share and its interval in percent."""
    return "{:.2f} ({:.2f} to {:.2f})".format(*(100 * value for value in values))


def plot(rows: Sequence[Row], path: Path) -> None:
    """Divergence against megabytes. Raises Error where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise Error('the plot needs matplotlib; pip install "mmada-lite[bench]"') from None
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for each in rows:
        others = each.name.split()[0] in ("bitsandbytes", "onnxruntime", "optimum")
        axes.plot(each.bytes / 1e6, each.divergence[0], "s" if others else "o", color="tab:red" if others else "tab:blue")
        axes.annotate(each.name, (each.bytes / 1e6, each.divergence[0]), fontsize=6, xytext=(3, 2), textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlabel="backbone and heads, MB", ylabel="KL from fp32, nats a masked position")
    figure.savefig(path, dpi=150)


def measure(options: argparse.Namespace, scratch: Path) -> tuple[list[Row], dict[str, object]]:
    """Make all candidates, compare them, and say what was compared."""
    reference = quantize_model(options.checkpoint, scratch / "fp32", Request("fp32", "rtn"))
    model = mmada_lite.load(reference, device="cpu", threads=options.threads)
    wanted = requests(options.formats, options.methods, options.calibrate_on, options.seeds)
    wanted = {name: replace(request, record_with=reference) for name, request in wanted.items()}
    candidates: dict[str, Denoiser] = {}
    sizes: dict[str, int] = {}
    for number, (name, request) in enumerate(wanted.items(), 1):
        _say(f"{number} of {len(wanted)}: {name}")
        other = mmada_lite.load(
            quantize_model(options.checkpoint, scratch / f"b{number}", request), device="cpu", threads=options.threads
        )
        candidates[name], sizes[name] = other.denoiser, stored_bytes(other.bundle)
    missing = {}
    for name, make in rivals(options.checkpoint, reference, scratch, options.threads) if options.peers else ():
        try:
            rival = make()
        except Exception as fault:  # others' code; the table says which of them did not work here, and why
            missing[name] = " ".join(f"{type(fault).__name__}: {fault}".split())[:200]
            continue
        candidates[name], sizes[name] = rival.denoiser, rival.bytes
    asked = fresh_prompts(options.prompts, tasks_of(model))
    states = trajectories(model, asked, options.states)
    _say(f"{len(candidates)} candidates on {len(states)} states of {len(asked)} prompts")
    found = compare(model.denoiser, candidates, states, len(asked))
    rows = [row(name, found[name], sizes[name], weights_of(model.bundle), asked) for name in candidates]
    return rows, {
        "not run": missing,
        "masked against unmasked": _calibrations(found),
        "states": len(states),
        "prompts": len(asked),
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _calibrations(found: Mapping[str, Answers]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Format -> how much calibration on masked rows gains over finished ones."""
    pairs: dict[str, tuple[list[Answers], list[Answers]]] = {}
    for name in found:
        form, _, rest = name.partition(" gptq masked ")
        if rest:
            ours, theirs = pairs.setdefault(form, ([], []))
            ours.append(found[name])
            theirs.append(found[f"{form} gptq unmasked {rest}"])
    return {form: difference(*both) for form, both in pairs.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m mmada_lite.bench.quality.quantization", description=__doc__.splitlines()[0]
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-o", "--output", type=Path, help="a folder for truth.json, truth.md and truth.png")
    parser.add_argument("--formats", nargs="+", default=FORMATS, help=f"default {' '.join(FORMATS)}")
    parser.add_argument("--methods", nargs="+", default=METHODS, help=f"default {' '.join(METHODS)}")
    parser.add_argument("--prompts", type=int, default=100, help="of each task, to compare on (default 100)")
    parser.add_argument("--states", type=int, default=4, help="of each decoding (default 4)")
    parser.add_argument("--calibrate-on", type=int, default=32, help="prompts of each task (default 32)")
    parser.add_argument(
        "--seeds", type=int, default=3, help="of masked against unmasked calibration; 0: leave it out (default 3)"
    )
    parser.add_argument("--peers", action="store_true", help="run others' quantizers too")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    try:
        if min(options.prompts, options.states, options.calibrate_on, options.threads) < 1 or options.seeds < 0:
            raise Error("--prompts, --states, --calibrate-on and --threads are at least 1, --seeds at least 0")
        with tempfile.TemporaryDirectory() as scratch:
            rows, about = measure(options, Path(scratch))
    except Error as fault:
        print(f"mmada-lite: {fault}", file=sys.stderr)
        return 2
    shown = table(rows)
    print(shown)
    for name, reason in dict(about["not run"]).items():  # type: ignore[call-overload]
        print(f"not run: {name}: {reason}")
    for form, gains in dict(about["masked against unmasked"]).items():  # type: ignore[call-overload]
        for what, values in gains.items():
            print("{}: {} of unmasked less masked calibration {:+.5f} ({:+.5f} to {:+.5f})".format(form, what, *values))
    content = {
        "command": record.command_line("truth", sys.argv[1:] if arguments is None else arguments),
        "versions": record.versions(),
        "hardware": record.hardware(),
        **about,
        "rows": [asdict(each) for each in rows],
    }
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "truth.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (options.output / "truth.md").write_text(shown + "\n", encoding="utf-8")
        try:
            plot(rows, options.output / "truth.png")
        except Error as fault:
            print(f"mmada-lite: {fault}", file=sys.stderr)
    print(json.dumps(content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
