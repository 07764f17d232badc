"""Runs of decodes in turns, and the rows that come of them: time and its parts, tokens, memory, the share of the ceiling that
was reached, and what the cost model had said.

It gets cases and bundles; which ones, and how they are printed, is `mmada_lite.bench.speed.latency`'s.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import onnx

from mmada_lite.bench.record import Row, spread
from mmada_lite.bench.speed import ceiling, cost
from mmada_lite.bench.speed.latency_cases import TARGETS, Bench, Case
from mmada_lite.bench.speed.operators import operator_seconds
from mmada_lite.bench.timed import PARTS, PYTHON, Run, TimedDenoiser, card_bytes, open_timed, timed
from mmada_lite.bundle import Bundle
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.export.synthetic import cached_bundle
from mmada_lite.ort.devices import choose_device
from mmada_lite.ort.loader import open_denoiser

Window = tuple[int, int, int, int]  # batch, window, past, rows of a forward
RATED = tuple(sorted({8, *ceiling.TOKENS}))  # 8: a block's last steps ask a head for few rows, where rates change fastest
WARM_UP = 2  # steps of every variant before the first round: a block's whole forward, and one over its cache


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A bundle opened on a device; on a CPU with so many threads, on a machine whose rates were just measured. card_before:
    bytes that a device's memory held before."""

    bundle: Bundle
    precision: str
    threads: int
    denoiser: TimedDenoiser
    load_seconds: float
    transformer: cost.Transformer
    rates: cost.Rates | None
    card_before: int | None

    @classmethod
    def open(cls, bundle: Bundle, device: str, precision: str, threads: int, top: Sequence[Row] | None) -> "OpenModel":
        """top: rows of the ceiling, with this bundle's forms; None: not measured."""
        before = None if device == "cpu" else card_bytes()
        denoiser, seconds = open_timed(bundle, threads, device)
        names = ("backbone", "text_head", "image_head")
        nodes = {name: len(onnx.load(bundle.graph_path(name), load_external_data=False).graph.node) for name in names}
        rates = None if top is None else ceiling.rates([row for row in top if "what" in row], threads)
        return cls(bundle, precision, threads, denoiser, seconds, cost.Transformer.of(bundle, nodes), rates, before)


def ideal(model: cost.Transformer, rates: cost.Rates, windows: Sequence[Window]) -> float:
    """Seconds of the matrix part of these forwards at the ceiling: the fastest product of its kind at as many tokens."""
    form = model.forms["backbone"]
    kinds = [rates.matrix[name] for name in (form, *([ceiling.ALONE] if form == "int8" else []))]
    pieces = [piece for batch, w, past, rows in windows for piece in cost.forward(model, w, past, rows, batch)]
    return sum(p.flops / max(cost.at(rates, p.tokens) for rates in kinds) for p in pieces if p.kind == "matrix")


@dataclass(frozen=True, slots=True)
class Variant:
    """A case of an opened model."""

    model: OpenModel
    case: Case

    def run(self) -> Run:
        return timed(self.case.steps(self.model.denoiser), self.model.denoiser.clock, self.case.leave)


def in_turns(variants: Sequence[Variant], rounds: int) -> Iterator[tuple[int, int, Run]]:
    """(round, variant's number, run): a short warm-up of each, then every variant once a round, each round begun by another."""
    for variant in variants:
        for _ in islice(variant.case.steps(variant.model.denoiser), WARM_UP):
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
    models = len({id(variant.model) for variant in variants})
    return [_row(variant, variant_runs) | {"models_open": models} for variant, variant_runs in zip(variants, runs, strict=True)]


def _row(variant: Variant, runs: Sequence[Run]) -> Row:
    model, case, scale, first = variant.model, variant.case, variant.case.scale, runs[0]
    seconds = spread(scale * run.seconds for run in runs)
    backbone = statistics.median(run.parts["backbone"] for run in runs)
    return {
        "task": case.task,
        **_labels(case.settings),
        "precision": model.precision,
        "threads": model.threads,
        "prompt": case.prompt,
        "tokens": case.size,
        "steps": first.steps,
        "model_calls": first.model_calls,
        "calls": len(first.windows),
        "tokens_per_forward": first.written / first.model_calls,
        "scaled_from": None if scale == 1 else "{} of {} blocks".format(*case.blocks),
        "rounds": len(runs),
        "seconds": seconds,
        "tokens_per_second": case.size / seconds["median"],
        "first_step_seconds": spread(run.first for run in runs),
        "step_seconds": seconds["median"] / scale / first.steps,
        "parts": {part: scale * statistics.median(run.parts[part] for run in runs) for part in PARTS},
        "python_share": statistics.median(sum(run.parts[part] for part in PYTHON) / run.seconds for run in runs),
        "ceiling_share": ideal(model.transformer, model.rates, first.windows) / backbone if model.rates else None,
        "peak_bytes": _peak(model, runs),
        "load_seconds": model.load_seconds,
        **_predicted(variant, seconds["median"]),
    }


def _peak(model: OpenModel, runs: Sequence[Run]) -> int | None:
    """Of the process, or of a device's memory, which its provider keeps once it has taken it."""
    if model.card_before is not None:
        return (card_bytes() or model.card_before) - model.card_before
    return max((run.peak for run in runs if run.peak is not None), default=None)


def _labels(settings: TextSettings | ImageSettings) -> Row:
    if isinstance(settings, TextSettings):
        saving = settings.acceleration
        cache = saving.cache if saving.kv_commit_every is None else f"{saving.cache}/{saving.kv_commit_every}"
        return {"cache": cache, "threshold": saving.threshold, "settings": settings.flat()}
    return {"cache": None, "threshold": None, "settings": settings.flat()}


def _predicted(variant: Variant, seconds: float) -> Row:
    """What the cost model says, by part; nothing where decoding finds out how many steps there are, or no rate is known."""
    rates = variant.model.rates
    if variant.case.pieces is None or rates is None:
        return {"predicted_seconds": None}
    parts: dict[str, float] = {}
    for step in variant.case.pieces(variant.model.transformer):
        for piece in step:
            parts[piece.part] = parts.get(piece.part, 0.0) + variant.case.scale * rates.seconds(piece)
    total = sum(parts.values())
    return {"predicted_seconds": total, "predicted_parts": parts, "predicted_over_measured": total / seconds}


def agreement(precision: str, device: str, work: Path) -> Row:
    """The share of greedy tokens that a device writes as the CPU does, on a tiny bundle: 1 but for ties in half precision."""
    form = precision if precision in ("fp32", "fp16", "int8", "int4") else "fp16"
    bundle = cached_bundle("tiny", form, work, target=TARGETS[device])
    case = Bench.of(bundle).understanding(1, bundle.text_defaults)
    answers: list[dict[int, int]] = [{}, {}]
    for name, answer in zip((device, "cpu"), answers, strict=True):
        for step in case.steps(open_denoiser(bundle, choose_device(name), 1)):
            answer |= dict(zip(step.positions.tolist(), step.tokens.tolist(), strict=True))
    same = sum(answers[0][position] == token for position, token in answers[1].items())
    return {"task": "agreement", "precision": form, "device": device, "agreement": same / len(answers[1])}


def apart(path: Path, precision: str, threads: int, effort: ceiling.Effort, tokens: Sequence[int], runs: int) -> list[Row]:
    """The machine's ceiling for a bundle's forms, and its forwards by operator, in a process of its own: what they hold and
    import must not count to the memory of a decode."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_machine, path, precision, threads, effort, tuple(tokens), runs).result()


def _machine(path: Path, precision: str, threads: int, effort: ceiling.Effort, tokens: Sequence[int], runs: int) -> list[Row]:
    bundle = Bundle.open(path)
    groups = (bundle.quantization[name] for name in ("backbone", "text_head", "image_head"))
    forms = list(dict.fromkeys(cost.form_of(group) for group in groups))
    forms += [ceiling.ALONE] if "int8" in forms else []
    top = list(ceiling.measure(bundle.architecture, forms, RATED, threads, effort))
    return [*top, *_forwards(bundle, precision, threads, top, tokens, runs)]


def _forwards(
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


def shares(row: Mapping[str, dict[str, float]]) -> str:
    """The parts of a row in hundredths of its time, or of a forward's operators."""
    parts = row.get("parts") or row["operators"]
    total = sum(parts.values())
    return " ".join(f"{part} {100 * seconds / total:.1f}" for part, seconds in parts.items())
