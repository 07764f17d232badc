"""Runs of decodes in turns, and the rows that come of them: time and its parts, tokens, memory, and the share of the ceiling
that was reached.

It gets cases and a bundle; which ones, and how they are printed, is `mmada_lite.bench.speed.latency`'s.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from mmada_lite.bench.record import Row, spread
from mmada_lite.bench.speed import ceiling
from mmada_lite.bench.speed.latency_cases import ON_HOST, TARGETS, Bench, Case
from mmada_lite.bench.timed import PARTS, Run, TimedDenoiser, card_bytes, open_timed, timed, turns
from mmada_lite.bundle import Bundle
from mmada_lite.decoding.kv_cache import KeyValues
from mmada_lite.decoding.settings import TextSettings
from mmada_lite.export.synthetic import cached_bundle
from mmada_lite.ort.devices import choose_device
from mmada_lite.ort.loader import open_denoiser
from mmada_lite.ort.session import open_session

RATED = tuple(sorted({8, *ceiling.TOKENS}))  # 8: a block's last steps ask for few rows, where rates change fastest
KINDS = ("matrix", "rounding", "attention", "elementwise")  # of operators
_ROUNDING = ("ReduceMax", "ReduceMin", "Max", "Neg", "Expand", "QuantizeLinear", "DynamicQuantizeLinear")
WARM_UP = 2  # steps of every case before the first round: a block's whole forward, and one over its cache


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A bundle opened on a device; on a CPU with so many threads, on a machine whose rates were just measured. card_before:
    bytes that a device's memory held before."""

    bundle: Bundle
    precision: str
    threads: int
    denoiser: TimedDenoiser
    load_seconds: float
    rates: ceiling.Rates | None
    card_before: int | None

    @classmethod
    def open(cls, bundle: Bundle, device: str, precision: str, threads: int, rates: ceiling.Rates | None) -> "OpenModel":
        before = None if device in ON_HOST else card_bytes()
        denoiser, seconds = open_timed(bundle, threads, device)
        return cls(bundle, precision, threads, denoiser, seconds, rates, before)

    def measured(self, cases: Sequence[Case], rounds: int) -> list[Row]:
        """A row a case: a short warm-up of each, then every case once a round."""
        runs: list[list[Run]] = [[] for _ in cases]
        for case in cases:
            for _ in islice(case.begin(self.denoiser).steps, WARM_UP):
                pass
        for number in turns(range(len(cases)), rounds):
            case = cases[number]
            runs[number].append(timed(case.begin(self.denoiser).steps, self.denoiser.clock, case.leave))
        return [self._row(case, case_runs) for case, case_runs in zip(cases, runs, strict=True)]

    def _row(self, case: Case, runs: Sequence[Run]) -> Row:
        scale, first = case.scale, runs[0]
        text = case.settings.acceleration if isinstance(case.settings, TextSettings) else None
        seconds = spread(scale * run.seconds for run in runs)
        share = None
        if self.rates is not None:
            least = ceiling.least_seconds(self.bundle.architecture, form_of(self.bundle, "backbone"), self.rates, first.windows)
            share = least / statistics.median(run.parts["backbone"] for run in runs)
        return {
            "task": case.task,
            "cache": text and text.cache,
            "threshold": text and text.threshold,
            "settings": case.settings.flat(),
            "precision": self.precision,
            "threads": self.threads,
            "prompt": case.prompt,
            "tokens": case.size,
            "steps": first.steps,
            "model_calls": first.model_calls,
            "tokens_per_forward": first.written / first.model_calls,
            "scaled_from": None if scale == 1 else "{} of {} blocks".format(*case.blocks),
            "rounds": len(runs),
            "seconds": seconds,
            "tokens_per_second": case.size / seconds["median"],
            "first_step_seconds": spread(run.first for run in runs),
            "parts": {part: scale * statistics.median(run.parts[part] for run in runs) for part in PARTS},
            "python_share": statistics.median(run.parts["python"] / run.seconds for run in runs),
            "ceiling_share": share,
            "peak_bytes": self._peak(runs),
            "load_seconds": self.load_seconds,
        }

    def _peak(self, runs: Sequence[Run]) -> int | None:
        """Of the process, or of a device's memory, which its provider keeps once it has taken it."""
        if self.card_before is not None:
            return (card_bytes() or self.card_before) - self.card_before
        return max((run.peak for run in runs if run.peak is not None), default=None)


def form_of(bundle: Bundle, name: str) -> str:
    """The ceiling's form of a graph's matrices: half precision is computed in float32 on a CPU."""
    group = bundle.quantization[name]
    if group.format in ("fp32", "fp16"):
        return "fp32"
    if group.bits == 7:
        return "int8-7bit"
    return group.format if group.block is None else f"{group.format}-b{group.block}"


def agreement(precision: str, device: str, work: Path) -> Row:
    """The share of greedy tokens that a device writes as the CPU does, on a tiny bundle: 1 but for ties in half precision."""
    form = precision if precision in ("fp32", "fp16", "int8", "int4") else "fp16"
    bundle = cached_bundle("tiny", form, work, target=TARGETS[device])
    case = Bench.of(bundle).understanding(bundle.text_defaults)
    answers: list[dict[int, int]] = [{}, {}]
    for name, answer in zip((device, "cpu"), answers, strict=True):
        for step in case.begin(open_denoiser(bundle, choose_device(name), 1)).steps:
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
    form = form_of(bundle, "backbone")
    top = list(
        ceiling.measure(bundle.architecture, [form, ceiling.ALONE] if form == "int8" else [form], RATED, threads, effort)
    )
    return [*top, *_forwards(bundle, precision, threads, ceiling.rates(top), tokens, runs)]


def _forwards(
    bundle: Bundle, precision: str, threads: int, rates: ceiling.Rates, tokens: Sequence[int], runs: int
) -> Iterator[Row]:
    """One whole forward at each number of tokens, by what its operators do, and the share of the ceiling that its products
    reach."""
    for count in tokens:
        seconds, operators = operator_seconds(bundle, threads, count, runs)
        least = ceiling.least_seconds(bundle.architecture, form_of(bundle, "backbone"), rates, [(1, count, 0, count)])
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


def operator_seconds(bundle: Bundle, threads: int, tokens: int, runs: int) -> tuple[list[float], dict[str, float]]:
    """Seconds of each of some whole forwards of so many tokens, after one that does not count, and a forward's by kind."""
    a = bundle.architecture
    empty = KeyValues.empty(a.n_layers, 1, a.n_kv_heads, a.head_dim)
    places = np.arange(tokens, dtype=np.int64)[None]
    embeddings = np.random.default_rng(0).standard_normal((1, tokens, a.d_model), dtype=np.float32)
    feeds = {"embeddings": embeddings, "positions": places, "rows": places}
    for layer in range(a.n_layers):
        feeds |= {f"past_key_{layer}": empty.keys[layer], f"past_value_{layer}": empty.values[layer]}
    durations = []
    with tempfile.TemporaryDirectory() as scratch:
        session = open_session(bundle.graph_path("backbone"), choose_device("cpu"), threads, profile=Path(scratch) / "profile")
        for _ in range(runs + 1):
            started = time.perf_counter()
            session.run(["hidden"], feeds)
            durations.append(time.perf_counter() - started)
        events = json.loads(Path(session.end_profiling()).read_text())
    return durations[1:], {kind: seconds / runs for kind, seconds in by_kind(events).items()}


def by_kind(events: list[dict]) -> dict[str, float]:
    """Seconds by kind of operator, of every run but the first."""
    begun = sorted(event["ts"] for event in events if event["name"] == "model_run")
    seconds = dict.fromkeys(KINDS, 0.0)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= begun[1]:
            seconds[kind_of(event["args"]["op_name"])] += 1e-6 * event["dur"]
    return seconds


def kind_of(operator: str) -> str:
    """The kind of an operator, fused ones too."""
    if "MatMul" in operator or "Gemm" in operator:
        return "matrix"
    if "Attention" in operator or operator in ("Softmax", "Concat"):
        return "attention"
    return "rounding" if operator in _ROUNDING else "elementwise"
