"""`mmada-lite bench latency --device cuda --shape 8b`: a card, once and whole, in six minutes. The published loop in torch bf16
and ours, in turns on the same card: an answer about a picture and a picture; of each the time, the steps that are slow, memory,
energy, what is launched, and the share of what the card can move and multiply.

Layers have equal random numbers, which are made in seconds. A contestant that has no room, or cannot run here, is told in the
record and the others go on. The same command goes on where it was stopped. It runs on a CPU too, to try it.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from operator import mul
from pathlib import Path
from typing import Any

from mmada_lite.bench.command import Measured, markdown
from mmada_lite.bench.record import Row, Run, default_output, require_replaceable, say, spread
from mmada_lite.bench.speed import traces
from mmada_lite.bench.speed.latency_cases import ON_HOST, TARGETS, Bench, Case
from mmada_lite.bench.speed.latency_runs import agreement
from mmada_lite.bench.speed.sensors import Watch, sensor_here
from mmada_lite.bench.timed import card_bytes, open_timed, peak, turns
from mmada_lite.bundle import Architecture
from mmada_lite.decoding.settings import ImageSettings, TextSettings, with_speed
from mmada_lite.errors import Error
from mmada_lite.export.precision import specs_for
from mmada_lite.export.synthetic import Size, cached_bundle, size_named
from mmada_lite.memory_plan import Shape, need
from mmada_lite.ort.devices import choose_device

TASK = "card"
LIMIT = 360.0  # seconds
PRECISIONS = ("fp16", "int4")
TORCH = "torch bf16"
ANSWER, PICTURE = "understanding", "drawing"
IMAGE_STEPS, GUIDANCE, SKIPPED, PROFILED = 15, 3.5, 2, 4
RESERVED = 30.0  # seconds of the limit for what is launched and for the record
Forward = tuple[int, int, int, int]  # batch, window, past, rows


@dataclass(frozen=True, slots=True)
class Way:
    """One way to do a task. begin: starts it anew, an item a step; forwards: what the model was asked for since it began;
    equal: how many steps there are, where each costs the same, so that some tell the time of all."""

    begin: Callable[[], Iterator[object]]
    forwards: Callable[[], Sequence[Forward]]
    equal: int | None = None


@dataclass(slots=True)
class Contestant:
    """Who takes part. ways: task -> name of the way -> it; weights: bytes that a forward reads, and by task those of its head;
    columns: of the heads; planned, held: bytes by the plan, and that it was seen to take; pace: seconds of a step of a way."""

    ways: Mapping[str, Mapping[str, Way]]
    weights: int
    heads: Mapping[str, int]
    columns: Mapping[str, int]
    floats: int  # bytes of a number of keys and values
    planned: Mapping[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    pace: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Taken:
    """Runs of one way: the seconds of each step, of each run the watts, and what its forwards were."""

    steps: list[list[float]] = field(default_factory=list)
    watts: list[float | None] = field(default_factory=list)
    forwards: list[list[Forward]] = field(default_factory=list)  # of each step of the last run

    def seconds(self, way: Way) -> list[float]:
        """Of the whole task, by the steps that were taken."""
        return [sum(each) * ((way.equal or len(each)) / len(each)) for each in self.steps]


def settings_of(size: Size, options: argparse.Namespace) -> tuple[TextSettings, ImageSettings]:
    answer, block = options.answer or size.answer, options.block or size.block
    text = TextSettings(answer_length=answer, block_length=block, steps=options.steps or answer // 2).replace(cache="dual")
    return text, ImageSettings(steps=min(options.image_steps or IMAGE_STEPS, size.grid**2), guidance=GUIDANCE)


def of_ours(name: str, precision: str, size: Size, options: argparse.Namespace) -> Contestant:
    """Ours in a precision: the answer with the dual cache; the picture exactly, and as --speed fast draws it. Thresholds tell
    nothing of random weights, which are never sure."""
    bundle = cached_bundle(options.shape, precision, options.work, target=TARGETS[options.device], alike=True)
    denoiser, _ = open_timed(bundle, options.threads, options.device)
    bench, (text, image) = Bench.of(bundle), settings_of(size, options)

    def way(case: Case) -> Way:
        return Way(lambda: iter(case.begin(denoiser).steps), lambda: denoiser.clock.forwards)

    fast = with_speed("fast", text, image)[1]
    ways = {
        ANSWER: {f"{name} dual": way(bench.understanding(text))},
        PICTURE: {f"{name} exact": way(bench.drawing(image)), f"{name} fast": way(bench.drawing(fast))},
    }
    stored = {group: about.bytes or 0 for group, about in bundle.quantization.items()}
    half = options.device not in ON_HOST and bundle.quantization["backbone"].format != "fp32"
    planned = partial(
        need, Shape.of(bundle), bundle.quantization, text, device=options.device, target=bundle.target, image=fast
    )
    counted = {ANSWER: planned(tasks=("answer",)), PICTURE: planned(tasks=("drawing",))}
    return Contestant(
        ways,
        stored["backbone"],
        {ANSWER: stored["text_head"], PICTURE: stored["image_head"]},
        {ANSWER: size.architecture.vocab_size, PICTURE: size.codes},
        2 if half else 4,
        {task: each.card_peak or each.peak for task, each in counted.items()},
    )


def of_torch(name: str, size: Size, options: argparse.Namespace) -> Contestant:
    """The published loop in torch: whole rows, and of a picture the guided pair as one batch."""
    try:
        import torch

        from mmada_lite.bench.reference import torch_logits
        from mmada_lite.bench.speed.contestants import Contest, Plan
    except ModuleNotFoundError:
        raise Error('torch is not installed; pip install "mmada-lite[bench]"') from None
    text, image = settings_of(size, options)
    plan = replace(
        Plan.of(size), answer=text.answer_length, block=text.block_length, steps=text.steps, drawing_steps=image.steps
    )
    contest = Contest(options.shape, size, plan, options.work, options.threads, options.device, alike=True)
    tasks = contest.reference(torch_logits(contest.torch_model(torch.bfloat16)))
    seen = size.grid**2 + 2 + text.answer_length
    drawn = plan.padded + 2 + size.grid**2 + 1
    rows = {ANSWER: (1, seen, 0, seen), PICTURE: (2, drawn, 0, drawn)}

    def inferred(begin: Callable[[], Iterator[object]]) -> Iterator[object]:
        with torch.inference_mode():
            yield from begin()

    ways = {
        task: {name: Way(partial(inferred, tasks[task].begin), partial(list, [rows[task]]), tasks[task].steps)}
        for task in (ANSWER, PICTURE)
    }
    a = size.architecture
    columns = dict.fromkeys((ANSWER, PICTURE), a.vocab_size)
    return Contestant(ways, 2 * weights_of(a), dict.fromkeys(columns, 2 * a.vocab_size * a.d_model), columns, 2)


def weights_of(a: Architecture) -> int:
    """Numbers in the matrices of all layers."""
    keys = a.n_kv_heads * a.head_dim
    return a.n_layers * (2 * a.d_model * (a.d_model + keys) + 3 * a.d_model * a.mlp_hidden_size)


def work_of(a: Architecture, forward: Forward, columns: int, weights: int, floats: int) -> tuple[float, float]:
    """Bytes that a forward with its head must read, weights once and the past, and operations: two for each weight and token,
    and of attention four for each query, key and number of a state. columns: of the head; floats: bytes of a number kept."""
    batch, window, past, rows = forward
    keys = a.n_kv_heads * a.head_dim
    read = weights + batch * 2 * a.n_layers * keys * past * floats
    products = 2 * batch * (window * weights_of(a) + rows * columns * a.d_model)
    return read, products + 4 * batch * a.n_layers * a.n_heads * a.head_dim * window * (window + past)


def run_once(way: Way, most: int | None = None) -> tuple[list[float], list[list[Forward]]]:
    """Seconds of each step, and its forwards; of equal steps so many at most."""
    seconds, forwards, steps = list[float](), list[list[Forward]](), way.begin()
    known, started = len(way.forwards()), time.perf_counter()
    for _ in steps if most is None or way.equal is None else islice(steps, most):
        now = time.perf_counter()
        asked = list(way.forwards())
        forwards.append(asked if way.equal is not None else asked[known:])
        seconds.append(now - started)
        known, started = len(asked), time.perf_counter()
    return seconds, forwards


def in_turns(
    ways: Mapping[str, Way], rounds: int, until: float, pace: Mapping[str, float], watch: Callable[[], Watch]
) -> tuple[dict[str, Taken], Row]:
    """Runs of all, each once a round, every second round backwards: at least one, then while the next is expected to end by
    `until` (of `time.perf_counter`). And why each that failed did. pace: seconds of a step, of ways of equal steps."""
    taken, failures = {name: Taken() for name in ways}, Row()
    for number in range(rounds):
        started = time.perf_counter()
        for name in tuple(turns(list(ways), number + 1))[-len(ways) :]:
            if name in failures:
                continue
            way, own = ways[name], taken[name]
            most = None if way.equal is None else _most(way.equal, until, (rounds - number) * len(ways), pace[name])
            try:
                with watch() as seen:
                    seconds, forwards = run_once(way, most)
            except Exception as fault:  # one that fails is told of, and the others go on
                failures[name] = reason_of(fault)
                continue
            own.steps.append(seconds)
            own.watts.append(seen.watts)
            own.forwards = forwards
        if time.perf_counter() + (time.perf_counter() - started) > until:
            break
    return {name: own for name, own in taken.items() if name not in failures}, failures


def _most(equal: int, until: float, runs: int, pace: float) -> int:
    """How many equal steps are taken: all, or those for which there is time, at least four. runs: that are still to come."""
    return min(equal, max(4, int(max(0.0, until - time.perf_counter()) / runs / pace)))


def reason_of(fault: Exception) -> str:
    return " ".join(str(fault).split())[:300] or type(fault).__name__


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share of all lies, straight between two of them."""
    ordered, place = sorted(values), share * (len(values) - 1)
    low = int(place)
    return ordered[low] + (ordered[min(low + 1, len(ordered) - 1)] - ordered[low]) * (place - low)


def steps_in_words(taken: Taken) -> Row:
    """Of steps that compute whole rows, and of those over a past: milliseconds by which half, and 99 of 100, are done."""
    kinds: dict[str, list[float]] = {}
    for run in taken.steps:
        for number, seconds in enumerate(run):
            asked = taken.forwards[number] if number < len(taken.forwards) else []
            kinds.setdefault("cached" if asked and all(past for _, _, past, _ in asked) else "whole", []).append(1e3 * seconds)
    return {kind: {"p50": quantile(ms, 0.5), "p99": quantile(ms, 0.99), "count": len(ms)} for kind, ms in kinds.items()}


def shares(who: Contestant, task: str, taken: Taken, size: Size, top: Row | None) -> Row:
    """The least bytes and operations of a run, over what the card moves and multiplies in the time that it took; and those of
    its cached steps."""
    kinds: dict[str, list[float]] = {}
    for seconds, asked in zip(taken.steps[-1], taken.forwards, strict=True):
        weights = who.weights + who.heads[task] // max(1, len(asked))  # the head runs once a step
        work = [work_of(size.architecture, each, who.columns[task], weights, who.floats) for each in asked]
        for kind in ("", "cached_") if asked and all(past for _, _, past, _ in asked) else ("",):
            total = kinds.setdefault(kind, [0.0, 0.0, 0.0])
            for number, more in enumerate((seconds, sum(read for read, _ in work), sum(flops for _, flops in work))):
                total[number] += more
    found: Row = {}
    if top is None:
        return found
    for kind, (passed, read, flops) in kinds.items():
        found[f"{kind}bandwidth_share"] = read / passed / top["bytes_per_s"]
        found[f"{kind}arithmetic_share"] = flops / passed / top["flops_per_s"]
    return found


@dataclass(slots=True)
class Session:
    """Everything that the tasks share: who takes part, opened when the first task asks."""

    size: Size
    options: argparse.Namespace
    until: float
    tasks_left: int
    opened: list[Contestant] = field(default_factory=list)
    missing: Row = field(default_factory=dict)
    sensor: Any = None

    def contestants(self) -> list[Contestant]:
        if self.opened or self.missing:
            return self.opened
        self.sensor = sensor_here()
        precisions = (self.options.precision,) if self.options.precision else PRECISIONS
        makers: dict[str, Callable[..., Contestant]] = {name: partial(of_ours, precision=name) for name in precisions}
        for name, make in {**makers, TORCH: of_torch}.items():  # torch last: what it has no room for is not ours
            say(f"opening {name}")
            traces.give_back()
            before = self._bytes()
            try:
                one = make(name, size=self.size, options=self.options)
                for task, ways in one.ways.items():
                    with self._watch() as watch:
                        one.pace |= {each: run_once(way, 2)[0][-1] for each, way in ways.items()}
                    if watch.held is not None and before is not None:
                        one.held[task] = watch.held - before
            except Exception as fault:  # no room, or it does not run here: the record says so
                self.missing[name] = reason_of(fault)
                continue
            self.opened.insert(0 if name == TORCH else len(self.opened), one)
        if not self.opened:
            told = "; ".join(f"{name}: {why}" for name, why in self.missing.items())
            raise Error(f"nothing can be measured here ({told}); `mmada-lite doctor` says what works")
        return self.opened

    def absent(self) -> list[Row]:
        """Who does not take part, and why."""
        self.contestants()
        return [{"name": name, "why": why} for name, why in self.missing.items()]

    def rows(self, task: str, top: Row | None) -> Iterator[Row]:
        """A row for each way of a task."""
        who = {name: one for one in self.contestants() for name in one.ways[task]}
        ways = {name: who[name].ways[task][name] for name in who}
        left = max(0.0, self.until - time.perf_counter())
        share = time.perf_counter() + left / max(1, self.tasks_left)
        self.tasks_left -= 1
        rounds, pace = 1 if self.options.quick else self.options.rounds, {name: one.pace[name] for name, one in who.items()}
        taken, failures = in_turns(ways, rounds, share, pace, self._watch)
        yield from ({"task": task, "contestant": name, "not_run": why} for name, why in failures.items())
        torch_seconds = taken[TORCH].seconds(ways[TORCH]) if TORCH in taken else []
        for name, own in taken.items():
            way, seconds = ways[name], own.seconds(ways[name])
            steps, watts = len(own.steps[-1]), [each for each in own.watts if each is not None]
            yield {
                "task": task,
                "contestant": name,
                "kind": "reference" if name == TORCH else "ours",
                "steps": way.equal or steps,
                "rounds": len(seconds),
                "scaled_from": None if way.equal in (None, steps) else {"steps": steps, "total_steps": way.equal},
                "seconds": spread(seconds),
                "step_ms": steps_in_words(own),
                "times": {} if name == TORCH else times(torch_seconds, seconds),
                "peak_bytes": who[name].held.get(task),
                "planned_bytes": who[name].planned.get(task),
                **shares(who[name], task, own, self.size, top),
                "joules": spread(map(mul, watts, seconds)) if watts else None,
                "watts": statistics.median(watts) if watts else None,
                "energy_from": self.sensor.name if self.sensor and watts else None,
            }

    def launched(self) -> Iterator[Row]:
        """What a cached step of an answer, and a step of torch's, launches."""
        for one in self.contestants():
            for name, way in one.ways[ANSWER].items():
                yield {"task": "launches", "contestant": name, "found": traces.profiled(way.begin(), SKIPPED, PROFILED)}

    def _bytes(self) -> int | None:
        return peak() if self.options.device in ON_HOST else card_bytes()

    def _watch(self) -> Watch:
        return Watch(self.sensor, self._bytes)


def times(theirs: Sequence[float], ours: Sequence[float]) -> Row:
    """How many times as fast, within each round."""
    ratios = [one / other for one, other in zip(theirs, ours, strict=False)]
    return {TORCH: spread(ratios)} if ratios else {}


def measure(options: argparse.Namespace, arguments: Sequence[str]) -> Measured:
    """The whole measurement. Raises Error for a device or a shape that is not there, before anything is made."""
    started = time.perf_counter()
    if options.tasks != [TASK] or options.shape is None:
        raise Error(f"{TASK} is a measurement of its own, of random weights: say --shape, and no other task")
    choose_device(options.device)
    size = size_named(options.shape)
    for precision in (options.precision,) if options.precision else PRECISIONS:
        specs_for(precision, TARGETS[options.device])
    output = options.output or default_output(f"gpu-{options.shape.lower()}")
    require_replaceable(output)
    run = Run("latency", arguments, output, force=options.force, about={"task": TASK})
    run.plan(6)
    torch_device = "cpu" if options.device in ON_HOST else "cuda"
    peaks = partial(traces.peaks, size=1 << 22, side=256, turn=0.02) if options.quick else traces.peaks
    with tempfile.TemporaryDirectory() as scratch:
        options.work = options.work or Path(scratch)
        session = Session(size, options, started + options.limit - min(RESERVED, options.limit / 4), 2)
        top = run.do("what the card can do", lambda: [peaks(torch_device) or {}])[0] or None
        missing = run.do("opening", session.absent)
        rows = [row for task in (ANSWER, PICTURE) for row in run.do(task, partial(session.rows, task, top))]
        launched = {row["contestant"]: row["found"] for row in run.do("launches", session.launched)}
        same = run.do("agreement", lambda: _agreement(options))
    for row in rows:
        row["launches"] = launched.get(row["contestant"])
    not_run = {row["name"]: row["why"] for row in missing}
    not_run |= {f"{row['contestant']}, {row['task']}": row["not_run"] for row in rows if "not_run" in row}
    timed = [row for row in rows if "not_run" not in row]
    about = {
        "shape": options.shape.lower(),
        "device": options.device,
        "rounds": options.rounds,
        "weights": "random, layers alike",
    }
    content = run.finish(timed, missing=not_run, **about, peak=top, agreement=same, limit_s=options.limit)
    return content, "\n".join([table(timed), *(f"not run: {name}: {why}" for name, why in not_run.items())]), run.path


def _agreement(options: argparse.Namespace) -> list[Row]:
    """Of a tiny model in each precision, tokens that the device writes as a CPU does."""
    if options.device in ON_HOST:
        return []
    precisions = (options.precision,) if options.precision else PRECISIONS
    return [agreement(precision, options.device, options.work) for precision in precisions]


def table(rows: Sequence[Row]) -> str:
    heads = ["task", "contestant", "seconds", "x torch", "step ms p50", "p99", "cached p50", "p99", "GB", "planned GB"]
    heads += ["% of bytes/s", "% of flops", "launches", "J", "W"]
    return markdown(heads, map(_cells, rows))


def _cells(row: Row) -> list[object]:
    def ms(kind: str) -> list[str]:
        step = row["step_ms"].get(kind)
        return [f"{step['p50']:.2f}", f"{step['p99']:.2f}"] if step else ["", ""]

    def gb(name: str) -> str:
        return f"{row[name] / 1e9:.1f}" if row[name] else ""

    ratio, joules, found = row["times"].get(TORCH), row["joules"], row.get("launches")
    percent = [f"{100 * row[name]:.0f}" if name in row else "" for name in ("bandwidth_share", "arithmetic_share")]
    return [
        *(row["task"], row["contestant"], f"{row['seconds']['median']:.3f}"),
        f"{ratio['median']:.2f}" if ratio else "",
        *(*ms("whole"), *ms("cached"), gb("peak_bytes"), gb("planned_bytes"), *percent),
        f"{found['launches']:.0f}" if found else "",
        *(f"{joules['median']:.1f}" if joules else "", f"{row['watts']:.0f}" if row["watts"] else ""),
    ]
