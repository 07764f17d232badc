"""How long threads without work stay awake, and what that costs: forwards of a random bundle, idle and beside busy processes.

    python -m mmada_lite.bench.speed.waiting --shape s --precision int8 --work .cache/bench --rounds 31

Sessions of one process that differ in nothing else take turns. A busy process is one thread that never
waits. A gain is the median of the ratios, within a turn, to a session that waits to the end of a run. Knows graphs, no models.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmada_lite.arguments import Parser, exit_code
from mmada_lite.bench.command import at_least_one, markdown, thread_count
from mmada_lite.bench.timed import turns
from mmada_lite.export.synthetic import SIZES, cached_bundle, size_named
from mmada_lite.ort.cores import usable_cores
from mmada_lite.ort.session import onnxruntime_package

if TYPE_CHECKING:
    import onnxruntime

TO_THE_END = "to the end of a run"
_STOP, _SPIN, _ALLOW = "session.force_spinning_stop", "session.intra_op.spin_duration_us", "session.intra_op.allow_spinning"
WAYS: Mapping[str, Mapping[str, str]] = {
    TO_THE_END: {_STOP: "1"},
    **{f"{span} microseconds": {_STOP: "1", _SPIN: str(span)} for span in (5, 20, 100)},
    "20, blocks of changing size": {_STOP: "1", _SPIN: "20", "session.dynamic_block_base": "4"},
    "not at all": {_ALLOW: "0"},
}
BUSY, MOST = "while True: pass", 64  # what a busy process does, and how many there may be
Run = Callable[[], object]


def session(graph: Path, threads: int, entries: Mapping[str, str]) -> "onnxruntime.InferenceSession":
    package = onnxruntime_package()
    options = package.SessionOptions()
    options.intra_op_num_threads = threads
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    opened: onnxruntime.InferenceSession = package.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return opened


def forward(opened: "onnxruntime.InferenceSession", tokens: int) -> Run:
    """A forward of so many tokens, with nothing before them."""
    feeds: dict[str, np.ndarray] = {}
    for given in opened.get_inputs():
        if given.name == "embeddings":
            states = np.random.default_rng(tokens).standard_normal((1, tokens, given.shape[-1]))
            feeds[given.name] = states.astype(np.float32)
        elif given.name in ("positions", "rows"):
            feeds[given.name] = np.arange(tokens if given.name == "positions" else 1)[None]
        else:  # a past of no tokens
            sizes = [1, *given.shape[1:]]
            feeds[given.name] = np.zeros([size if isinstance(size, int) else 0 for size in sizes], dtype=np.float32)
    return lambda: opened.run(None, feeds)


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes of one thread each, each in a session of its own, as another program would be."""
    started = [subprocess.Popen([sys.executable, "-c", BUSY], start_new_session=True) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def timed(runs: Mapping[str, Run], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Name -> seconds of the clock and of the processor, a turn each, behind one that does not count."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for name in turns(list(runs), rounds):
        clock, processor = time.perf_counter(), time.process_time()
        runs[name]()
        taken[name].append((time.perf_counter() - clock, time.process_time() - processor))
    return taken


def table(options: argparse.Namespace, graph: Path) -> str:
    sessions = {name: session(graph, options.threads, entries) for name, entries in WAYS.items()}
    lines = []
    for processes in options.busy:
        for tokens in options.windows:
            with busy(processes):
                taken = timed({name: forward(opened, tokens) for name, opened in sessions.items()}, options.rounds)
            first = np.array(taken[TO_THE_END])[:, 0]
            for name, each in taken.items():
                clock, processor = 1e3 * np.median(each, axis=0)
                gain = np.median(first / np.array(each)[:, 0])
                lines.append([processes, tokens, name, f"{clock:.3g}", f"{processor:.3g}", f"{gain:.2f}"])
    return markdown(["busy processes", "tokens", "threads wait", "ms", "processor ms", "gain"], lines)


def few(text: str) -> int:
    """A type of options: a whole number from 0 to `MOST`."""
    count = 0 if text == "0" else at_least_one(text)
    if count > MOST:
        raise argparse.ArgumentTypeError(f"{count} is too many; give {MOST} at most")
    return count


def build_parser() -> Parser:
    parser = Parser(prog="python -m mmada_lite.bench.speed.waiting", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--shape", choices=SIZES, default="s", help="of the random model (default: %(default)s)")
    add("--precision", default="int8", help="of the random model (default: %(default)s)")
    add("--work", type=Path, help="where random bundles are made once and kept (default: a temporary folder)")
    add("--busy", nargs="+", type=few, default=[0, 1], metavar="N", help=f"busy processes, {MOST} at most (default: 0 1)")
    add("--windows", nargs="+", type=at_least_one, default=[32, 128], help="tokens (default: 32 128)")
    add("--rounds", type=at_least_one, default=31, help="counted turns of each (default: %(default)s)")
    add("--threads", type=thread_count, default=usable_cores(), help="of each session (default: usable cores)")
    return parser


def measure(argv: Sequence[str] | None) -> int:
    options = build_parser().parse_args(argv)
    size_named(options.shape)
    with tempfile.TemporaryDirectory() as scratch:
        bundle = cached_bundle(options.shape, options.precision, options.work or Path(scratch))
        print(table(options, bundle.graph_path("backbone")))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return exit_code(lambda: measure(argv))


if __name__ == "__main__":
    sys.exit(main())
