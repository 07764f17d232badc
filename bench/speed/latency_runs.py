"""Runs of decodes in turns, and the rows that come of them: time and its parts, tokens, memory, the share of the ceiling that
was reached, and what the cost model had said.

It gets cases and bundles; which ones, and how they are printed, is `mmada_lite.bench.speed.latency`'s.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import onnx

from mmada_lite.bench.record import spread
from mmada_lite.bench.speed import ceiling, cost
from mmada_lite.bench.speed.latency_cases import Bench, Case
from mmada_lite.bench.speed.operators import operator_seconds
from mmada_lite.bench.speed.timed import PARTS, PYTHON, Run, TimedDenoiser, open_timed, timed
from mmada_lite.bundle import Bundle
from mmada_lite.decoding.settings import ImageSettings, TextSettings

Row = dict[str, Any]
Measured = tuple[list[Row], list[Row]]
Window = tuple[int, int, int, int]  # batch, window, past, rows of a forward
RATED = tuple(sorted({8, *ceiling.TOKENS}))  # 8: a block's last steps ask a head for few rows, where rates change fastest
WARM_UP = 2  # steps of every variant before the first round: a block's whole forward, and one over its cache


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A bundle opened with so many threads, on a machine whose rates were just measured."""

    bundle: Bundle
    precision: str
    threads: int
    denoiser: TimedDenoiser
    load_seconds: float
    model: cost.Transformer
    rates: cost.Rates

    @classmethod
    def open(cls, bundle: Bundle, precision: str, threads: int, rows: Sequence[Row]) -> "OpenModel":
        """rows: of the ceiling, with this bundle's forms."""
        denoiser, seconds = open_timed(bundle, threads)
        names = ("backbone", "text_head", "image_head")
        nodes = {name: len(onnx.load(bundle.graph_path(name), load_external_data=False).graph.node) for name in names}
        return cls(
            *(bundle, precision, threads, denoiser, seconds),
            cost.Transformer.of(bundle, nodes),
            ceiling.rates(rows, threads),
        )


def ideal(model: cost.Transformer, rates: cost.Rates, windows: Sequence[Window]) -> float:
    """Seconds of the matrix part of these forwards at the ceiling: the fastest product of its kind at as many tokens."""
    form = model.forms["backbone"]
    kinds = [rates.matrix[name] for name in (form, *([ceiling.ALONE] if form == "int8" else []))]
    pieces = [piece for batch, w, past, rows in windows for piece in cost.forward(model, w, past, rows, batch)]
    return sum(p.flops / max(cost.at(rates, p.tokens) for rates in kinds) for p in pieces if p.kind == "matrix")


@dataclass(frozen=True, slots=True)
class Variant:
    """A case on a stand."""

    stand: OpenModel
    case: Case

    def run(self) -> Run:
        return timed(self.case.steps(self.stand.denoiser), self.stand.denoiser.clock, self.case.leave)


def forms_needed(bundle: Bundle) -> list[str]:
    """The ceiling's forms that a bundle's rates and its share are told by; float32 for the image tokenizer."""
    groups = (bundle.quantization[name] for name in ("backbone", "text_head", "image_head"))
    forms = list(dict.fromkeys(["fp32", *(cost.form_of(group) for group in groups)]))
    return [*forms, ceiling.ALONE] if "int8" in forms else forms


def in_turns(variants: Sequence[Variant], rounds: int) -> Iterator[tuple[int, int, Run]]:
    """(round, variant's number, run): a short warm-up of each, then every variant once a round, each round begun by another."""
    for variant in variants:
        for _ in islice(variant.case.steps(variant.stand.denoiser), WARM_UP):
            pass
    for turn in range(rounds):
        for number in range(len(variants)):
            which = (turn + number) % len(variants)
            yield turn, which, variants[which].run()


def measured(variants: Sequence[Variant], rounds: int) -> list[Row]:
    """A row a variant."""
    runs: list[list[Run]] = [[] for _ in variants]
    for _, number, run in in_turns(variants, rounds):
        runs[number].append(run)
    models = len({id(variant.stand) for variant in variants})
    return [row_of(variant, found) | {"models_open": models} for variant, found in zip(variants, runs, strict=True)]


def row_of(variant: Variant, runs: Sequence[Run]) -> Row:
    stand, case, scale = variant.stand, variant.case, variant.case.scale
    seconds = spread(scale * run.seconds for run in runs)
    parts = {part: scale * statistics.median(run.parts[part] for run in runs) for part in PARTS}
    backbone = statistics.median(run.parts["backbone"] for run in runs)
    python = statistics.median(sum(run.parts[part] for part in PYTHON) / run.seconds for run in runs)
    first, peaks = runs[0], [run.peak for run in runs if run.peak is not None]
    return {
        "task": case.task,
        **_labels(case.settings),
        "precision": stand.precision,
        "threads": stand.threads,
        "prompt": case.prompt,
        "tokens": case.size,
        "steps": first.steps,
        "forwards": first.forwards,
        "calls": len(first.windows),
        "tokens_per_forward": first.written / first.forwards,
        "scaled_from": None if scale == 1 else "{} of {} blocks".format(*case.blocks),
        "rounds": len(runs),
        "seconds": seconds,
        "tokens_per_second": case.size / seconds["median"],
        "first_step_seconds": spread(run.first for run in runs),
        "step_seconds": seconds["median"] / scale / first.steps,
        "parts": parts,
        "python_share": python,
        "ceiling_share": ideal(stand.model, stand.rates, first.windows) / backbone,
        "peak_bytes": max(peaks, default=None),
        "load_seconds": stand.load_seconds,
        **_said(variant, seconds["median"]),
    }


def _labels(settings: TextSettings | ImageSettings) -> Row:
    if isinstance(settings, TextSettings):
        cache = settings.cache if settings.settle is None else f"{settings.cache}/{settings.settle}"
        return {"cache": cache, "threshold": settings.threshold, "settings": asdict(settings)}
    return {"cache": None, "threshold": None, "settings": asdict(settings)}


def _said(variant: Variant, seconds: float) -> Row:
    """What the model predicted, by part; nothing where the number of steps is found out by decoding."""
    if variant.case.pieces is None:
        return {"predicted_seconds": None}
    parts: dict[str, float] = {}
    for step in variant.case.pieces(variant.stand.model):
        for piece in step:
            parts[piece.part] = parts.get(piece.part, 0.0) + variant.case.scale * variant.stand.rates.seconds(piece)
    whole = sum(parts.values())
    return {"predicted_seconds": whole, "predicted_parts": parts, "predicted_over_measured": whole / seconds}


def doublings(stand: OpenModel, bench: Bench, prompt: int, steps: int, rounds: int) -> list[Row]:
    """How much longer a decode takes when its prompt or its picture doubles, measured in turns and predicted.

    Text and understanding: one block, every step of which is a whole forward (cache none) or leans on one (dual).
    """
    longest = bench.bundle.architecture.max_sequence_length
    block = min(32, bench.bundle.text_defaults.block_length)
    pairs: list[tuple[str, Case, Case]] = []
    for cache in ("none", "dual"):
        text = TextSettings(answer_length=block, block_length=block, steps=min(steps, block), cache=cache)  # type: ignore[arg-type]
        if 2 * prompt + block <= longest:
            pairs.append((f"prompt, cache {cache}", bench.text(prompt, text), bench.text(2 * prompt, text)))
        if 2 * bench.grid**2 + 64 <= longest:
            seen = bench.understanding(1, text), bench.understanding(2, text)
            pairs.append((f"picture asked about, cache {cache}", *seen))
    if 2 * bench.grid**2 + 64 <= longest:
        drawn = ImageSettings(steps=2, guidance=0.0)
        pairs.append(("picture drawn", bench.drawing(1, drawn), bench.drawing(2, drawn)))
    return [_doubling(name, Variant(stand, once), Variant(stand, twice), rounds) for name, once, twice in pairs]


def _doubling(name: str, once: Variant, twice: Variant, rounds: int) -> Row:
    seconds: tuple[list[float], list[float]] = ([], [])
    for _, number, run in in_turns((once, twice), rounds):
        seconds[number].append(run.seconds)
    ratio = statistics.median(seconds[1]) / statistics.median(seconds[0])
    said = [_said(v, 1.0)["predicted_seconds"] for v in (once, twice)]
    return {
        "doubled": name,
        "precision": once.stand.precision,
        "threads": once.stand.threads,
        "from": once.case.prompt if "drawn" not in name else once.case.size,
        "to": twice.case.prompt if "drawn" not in name else twice.case.size,
        "seconds": [spread(each) for each in seconds],
        "measured_ratio": ratio,
        "predicted_seconds": said,
        "predicted_ratio": said[1] / said[0],
        "off": said[1] / said[0] / ratio - 1,
    }


def apart(path: Path, precision: str, threads: int, effort: ceiling.Effort, tokens: Sequence[int], runs: int) -> Measured:
    """The machine's ceiling for a bundle's forms, and its forwards by operator, in a process of its own: what they hold and
    import must not count to the memory of a decode."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_machine, path, precision, threads, effort, tuple(tokens), runs).result()


def _machine(path: Path, precision: str, threads: int, effort: ceiling.Effort, tokens: Sequence[int], runs: int) -> Measured:
    bundle = Bundle.open(path)
    top = list(ceiling.measure(bundle.architecture, forms_needed(bundle), RATED, threads, effort))
    return top, list(forwards(bundle, precision, threads, top, tokens, runs))


def forwards(
    bundle: Bundle, precision: str, threads: int, top: Sequence[Row], tokens: Sequence[int], runs: int
) -> Iterator[Row]:
    """One whole forward at each number of tokens, by what its operators do, and the share of the ceiling that its products
    reach. top: the ceiling's rows."""
    model, rates = cost.Transformer.of(bundle, {}), ceiling.rates(top, threads)
    for count in tokens:
        seconds, operators = operator_seconds(bundle, threads, count, runs)
        least = ideal(model, rates, [(1, count, 0, count)])
        yield {
            "task": "forward",
            "precision": precision,
            "threads": threads,
            "tokens": count,
            "seconds": spread(seconds),
            "operators": operators,
            "matrix_share": least / operators["matrix"],
            "ceiling_share": least / statistics.median(seconds),
        }


def shares(row: Mapping[str, Any]) -> str:
    """The parts of a row in hundredths of its time, or of a forward's operators."""
    parts = row.get("parts") or row["operators"]
    whole = sum(parts.values())
    return " ".join(f"{part} {100 * seconds / whole:.1f}" for part, seconds in parts.items())
