"""`mmada-lite bench serve`: a server of ours under load, on this machine alone.

    mmada-lite bench serve                       # ready, first step, batches, load: about twenty minutes on two cores
    mmada-lite bench serve --quick               # a tenth of it, to try and not to quote
    mmada-lite bench serve --tasks load          # 2,000 mixed requests over 64 connections

`ready` is the wait from the command to the line that says so. `first` is the time to the first step through HTTP, in turns with
the library's. `batching` asks alike requests of servers that do 1, 2, 4 and 8 at once, in turns. `load` asks mixed requests,
compares every answer with the library's, and looks at the memory of both processes. It knows options and tables;
`serving_load` has the clients.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache, partial
from itertools import cycle, islice
from pathlib import Path

from mmada_lite.arguments import Parser
from mmada_lite.bench.command import Measured, add_output, at_least_one, execute, markdown, thread_count
from mmada_lite.bench.record import Row, Run, default_output, fingerprint, require_replaceable, say, spread
from mmada_lite.bench.speed.serving_load import CHAT, Outcome, Serving, alike, ask_all, mixture
from mmada_lite.bench.timed import turns
from mmada_lite.decoding.settings import with_changes
from mmada_lite.errors import Error, shown
from mmada_lite.model import Model, embedded_bundle, load
from mmada_lite.ort.cores import usable_cores

TASKS = ("ready", "first", "batching", "load")
BATCHES = (1, 2, 4, 8)
LIMIT = 3600.0  # seconds of one task's load
MOST = {"requests": 100_000, "connections": 1024, "batch": 64, "queue": 10_000, "starts": 1000, "rounds": 1000}
NEAR = 10e6  # bytes that memory may grow by, or 3%


def build_parser() -> Parser:
    made = Parser(prog="mmada-lite bench serve", description=__doc__.splitlines()[0])
    add, number = made.add_argument, at_least_one
    add("-m", "--model", help="a bundle (default: the small model)")
    add("--tasks", nargs="+", choices=TASKS, default=TASKS, help="default: all")
    add("--threads", type=thread_count, default=usable_cores(), help="of the model (default: the cores of this machine)")
    add("--requests", type=number, default=2000, help="of the load (default 2000); memory is looked at after a quarter of them")
    add("--connections", type=number, default=64, help="of the load (default 64)")
    add("--batch", type=number, default=1, help="requests that the loaded server does at once (default 1)")
    add(
        "--queue",
        type=number,
        default=32,
        help="requests that may wait there (default 32); beyond, clients are told to come again",
    )
    add("--starts", type=number, default=10, help="of a server, and first steps each way (default 10)")
    add("--rounds", type=number, default=3, help="of alike requests (default 3)")
    add("--quick", action="store_true", help="a tenth of everything: to try, not to quote")
    add_output(made, "serve")
    return made


def measure(options: argparse.Namespace, arguments: Sequence[str]) -> Measured:
    """All tasks."""
    for name, most in MOST.items():
        if (value := getattr(options, name)) > most:
            raise Error(f"--{name} is {shown(value)}; use at most {most}")
    output = options.output or default_output("serve")
    require_replaceable(output)
    path = Path(options.model) if options.model else embedded_bundle()
    if options.quick:
        options.requests, options.starts, options.rounds = max(40, options.requests // 10), min(options.starts, 2), 1

    @cache
    def model() -> Model:
        return load(path, device="cpu", threads=options.threads)

    if "load" in options.tasks or "batching" in options.tasks or "first" in options.tasks:
        model()  # for its errors
    run = Run("serve", arguments, output, force=options.force, about=fingerprint(path))
    run.plan(len(options.tasks))
    works: dict[str, Callable[[], Iterable[Row]]] = {
        "ready": partial(ready, options),
        "first": lambda: first(options, model()),
        "batching": lambda: batching(options, model()),
        "load": lambda: loaded(options, model()),
    }
    rows = [row for task in options.tasks for row in run.do(task, works[task])]
    content = run.finish(
        rows, model=model().bundle.name if rows and options.tasks != ["ready"] else path.name, quick=options.quick
    )
    return content, table(rows), run.path


def _server(options: argparse.Namespace, folder: str, name: str, *more: object) -> Serving:
    chosen = ["-m", options.model] if options.model else []
    return Serving(Path(folder) / f"{name}.jsonl", "--device", "cpu", "--threads", options.threads, *chosen, *more)


def ready(options: argparse.Namespace) -> Iterator[Row]:
    """Seconds from the command to the line that says that the server is ready; the first start does not count."""
    taken = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.starts + 1):
            with _server(options, folder, f"{number}") as serving:
                taken.append(serving.ready)
    yield {"task": "ready", "starts": options.starts, "seconds": spread(taken[1:])}


def first(options: argparse.Namespace, model: Model) -> Iterator[Row]:
    """Seconds to the first step, through HTTP on a connection that stays open, and in the library, in turns."""
    text = "what is 47 + 85?"
    asked = {"messages": [{"role": "user", "content": text}], "seed": 1, "max_tokens": 16, "steps": 16}
    asked |= {"stream": True, "stream_mode": "denoise"}
    settings = with_changes(model.text_defaults, {"answer_length": 16, "steps": 16})
    taken: dict[str, list[float]] = {"library": [], "http": []}
    with tempfile.TemporaryDirectory() as folder, _server(options, folder, "first") as serving:
        connection = serving.connect()
        for way in turns(("library", "http"), options.starts + 1):
            begun = time.perf_counter()
            if way == "library":
                steps = model.chat(text, settings, seed=1)
                next(steps)
            else:
                connection.request("POST", CHAT, json.dumps(asked), {"content-type": "application/json"})
                response = connection.getresponse()
                while b'"denoise"' not in response.readline():
                    pass
            taken[way].append(time.perf_counter() - begun)
            if way == "http":
                response.read()
    seconds = {way: spread(each[1:]) for way, each in taken.items()}
    later = seconds["http"]["median"] - seconds["library"]["median"]
    yield {"task": "first", "rounds": options.starts, "library": seconds["library"], "http": seconds["http"], "later": later}


def batching(options: argparse.Namespace, model: Model) -> Iterator[Row]:
    """Requests a second of alike requests, of servers that do more and more of them at once, in turns."""
    count = 4 if options.quick else 16
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers = {
            batch: stack.enter_context(_server(options, folder, f"batch {batch}", "--batch", batch)) for batch in BATCHES
        }
        for work in ("text", "picture"):
            asks = alike(model, work, count, options.quick)
            taken: dict[int, list[float]] = {batch: [] for batch in BATCHES}
            for batch in turns(BATCHES, options.rounds + 1):
                outcome = ask_all(servers[batch], asks, count, LIMIT, lambda done: None)
                _require_right(outcome, f"batches of {batch}")
                taken[batch].append(outcome.took)
            alone = statistics.median(taken[1][1:])
            for batch in BATCHES:
                seconds = spread(taken[batch][1:])
                ratio = alone / seconds["median"]
                rates = {"per_second": count / seconds["median"], "times_alone": ratio}
                yield {"task": "batching", "work": work, "batch": batch, "requests": count, "seconds": seconds, **rates}


def loaded(options: argparse.Namespace, model: Model) -> Iterator[Row]:
    """Mixed requests from many connections at once: first a quarter of them, then the others."""
    say("what the library answers")
    asks = list(islice(cycle(mixture(model)), options.requests))
    waves = (asks[: len(asks) // 4], asks[len(asks) // 4 :])
    outcomes, memory = list[Outcome](), list[dict[str, int]]()
    with (
        tempfile.TemporaryDirectory() as folder,
        _server(options, folder, "load", "--batch", options.batch, "--queue", options.queue) as serving,
    ):
        before = serving.processes()
        for wave in waves:
            done, begun = sum(len(each.seconds) for each in outcomes), time.monotonic()

            def tell(answered: int, done: int = done, begun: float = begun) -> None:
                say(f"{done + answered} of {len(asks)} answered ({time.monotonic() - begun:.0f} s)")

            outcomes.append(ask_all(serving, wave, options.connections, LIMIT, tell))
            memory.append(serving.resident())
        restarts = len(serving.log("worker ended"))
        same = before == serving.processes()
        queued = [each["queued"] for each in serving.log("request") if each["status"] == 200 and "queued" in each]
    total = {name: sum(getattr(each, name) for each in outcomes) for name in ("right", "wrong", "lost", "refused", "took")}
    row: Row = {"task": "load", "requests": len(asks), "connections": options.connections, "batch": options.batch, **total}
    row |= {"queue": options.queue, "restarts": restarts, "same_processes": same}
    row |= {"queued": percentiles(queued), "answered": percentiles([s for each in outcomes for s in each.seconds])}
    for name in before:
        early, late = (each[name] for each in memory)
        grown = late - early
        row[name] = {"after_a_quarter": early, "after_all": late, "grown": grown, "near": grown <= max(0.03 * early, NEAR)}
    row["faults"] = [fault for each in outcomes for fault in each.faults]
    yield row


def _require_right(outcome: Outcome, what: str) -> None:
    if outcome.wrong or outcome.lost:
        raise Error(f"{what}: {outcome.wrong} answers are wrong and {outcome.lost} lost: {outcome.faults[0]}")


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Seconds that half of them take at most, and 99 of a hundred, and the longest."""
    ordered = sorted(values) or [0.0]
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in at.items()}


def table(rows: Sequence[Row]) -> str:
    """A line a row."""
    return markdown(("task", "what", "result"), ((row["task"], *_cells(row)) for row in rows))


def _cells(row: Row) -> tuple[str, str]:
    if row["task"] == "ready":
        return f"{row['starts']} starts", f"{row['seconds']['median']:.2f} s (most {row['seconds']['max']:.2f})"
    if row["task"] == "first":
        library, http = (1e3 * row[way]["median"] for way in ("library", "http"))
        return "library, HTTP", f"{library:.1f} ms, {http:.1f} ms: {1e3 * row['later']:.1f} ms later"
    if row["task"] == "batching":
        return f"{row['work']}, {row['batch']} at once", f"{row['per_second']:.2f} a second ({row['times_alone']:.2f}x)"
    memory = ", ".join(f"{name} {row[name]['grown'] / 1e6:+.1f} MB" for name in ("server", "worker"))
    counts = f"{row['right']} right, {row['wrong']} wrong, {row['lost']} lost, {row['refused']} times told to come again"
    waits = f"queued p99 {row['queued']['p99']:.2f} s, {row['right'] / row['took']:.1f} a second"
    return (
        f"{row['requests']} over {row['connections']} connections",
        f"{counts}; {waits}; {memory}; {row['restarts']} restarts",
    )


def main(argv: Sequence[str] | None = None) -> int:
    return execute(build_parser(), measure, argv)


if __name__ == "__main__":
    sys.exit(main())
