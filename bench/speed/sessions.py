"""`mmada-lite bench sessions`: how onnxruntime's sessions are best opened on this machine. Threads, spinning and the memory
arena take turns at steps of one model, embedder, backbone and text head after one another as in decoding; time, processor time
and memory of each. Knows windows of random tokens and no decoding.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mmada_lite import __version__
from mmada_lite.bundle import Bundle
from mmada_lite.decoding.denoiser import Window
from mmada_lite.decoding.forward import mix_of
from mmada_lite.errors import Error
from mmada_lite.model import embedded_bundle
from mmada_lite.ort.denoiser import OnnxDenoiser
from mmada_lite.ort.loader import threads_of
from mmada_lite.ort.session import Spinning, Tuning, choose_device, open_session, usable_cores

REST = 0.1  # seconds before a turn, in which the threads of the turn before it go to sleep
STEPS = 3  # of a turn that are counted, after one that is not
GUESSED = 32  # positions that a step reads, at most
SPINNING: tuple[Spinning, ...] = ("run", "always", "never")


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to open the sessions; bytes: what opening it and its first forwards took of memory that is no file's."""

    threads: int
    tuning: Tuning
    denoiser: OnnxDenoiser
    bytes: int


def opened(bundle: Bundle, threads: int, tuning: Tuning, windows: Sequence[Window]) -> Variant:
    """Embedder, backbone and text head, warm."""
    before, shape, device = _anonymous(), bundle.architecture, choose_device("cpu")
    names = ("embedder", "backbone", "text_head")
    sessions = {name: open_session(bundle.graph_path(name), device, threads_of(name, threads), tuning=tuning) for name in names}
    denoiser = OnnxDenoiser(sessions, shape.n_layers, shape.n_kv_heads, shape.head_dim)
    for window in windows:
        step(denoiser, window, keep=False)
    return Variant(threads, tuning, denoiser, max(0, _anonymous() - before))


def window_of(bundle: Bundle, tokens: int) -> Window:
    """A whole row of random tokens, the last of whose states are wanted."""
    ids = np.random.default_rng(tokens).integers(bundle.architecture.vocab_size, size=(1, tokens))
    return Window(ids, np.arange(tokens), np.arange(tokens)[None, -GUESSED:])


def step(denoiser: OnnxDenoiser, window: Window, *, keep: bool) -> None:
    """One step of a text: the window's states, and a guess for each of those that are wanted."""
    hidden, _ = denoiser.forward(window, keep=keep)
    denoiser.predict("text", hidden, mix_of(1, 0.0, 1), 0.0, None)


def measure(variants: Sequence[Variant], windows: Sequence[Window], rounds: int) -> list[dict[str, Any]]:
    """A row for each variant and window, without and with its keys and values: milliseconds and processor milliseconds of a
    step. All take turns, a rest before each."""
    turns = list(product(variants, windows, (False, True)))
    wall: list[list[float]] = [[] for _ in turns]
    busy: list[list[float]] = [[] for _ in turns]
    for _ in range(rounds):
        for turn, (variant, window, keep) in enumerate(turns):
            time.sleep(REST)
            step(variant.denoiser, window, keep=keep)
            started, began = time.perf_counter(), time.process_time()
            for _ in range(STEPS):
                step(variant.denoiser, window, keep=keep)
            wall[turn].append(1e3 * (time.perf_counter() - started) / STEPS)
            busy[turn].append(1e3 * (time.process_time() - began) / STEPS)
    return [
        {
            "threads": variant.threads,
            **asdict(variant.tuning),
            "tokens": window.tokens.shape[1],
            "keys": keep,
            "ms": _spread(wall[turn]),
            "processor_ms": _spread(busy[turn]),
            "bytes": variant.bytes,
        }
        for turn, (variant, window, keep) in enumerate(turns)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 0, or 2 after a fault of the user."""
    parser = argparse.ArgumentParser(prog="mmada-lite bench sessions", description=__doc__)
    parser.add_argument("bundle", nargs="?", type=Path, help="a bundle's folder (default: the small model in the package)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 128, 512], help="of the row (default: 32 128 512)")
    parser.add_argument("--threads", type=int, nargs="+", default=[usable_cores()], help="default: every usable core")
    parser.add_argument("--rounds", type=int, default=9, help="turns of every variant (default: 9)")
    parser.add_argument("-o", "--output", type=Path, help="write the JSON here too")
    arguments = parser.parse_args(argv)
    try:
        rows = _measured(arguments)
    except Error as error:
        print(f"mmada-lite: {error}", file=sys.stderr)
        return 2
    print("threads spinning arena  tokens  keys        ms (low to high)  processor ms  MB")
    for row in rows:
        wall, busy = row["ms"], row["processor_ms"]
        arena, keys = ("on" if row[name] else "off" for name in ("arena", "keys"))
        print(
            f"{row['threads']:7} {row['spinning']:>8} {arena:>5} {row['tokens']:7} {keys:>5} "
            f"{wall['median']:9.2f} ({wall['low']:.2f} to {wall['high']:.2f}) {busy['median']:10.2f} {row['bytes'] / 1e6:6.0f}"
        )
    content = {
        "bench": "sessions",
        "command": "mmada-lite bench sessions " + " ".join(sys.argv[2:] if argv is None else argv),
        "versions": {"mmada-lite": __version__, "python": platform.python_version(), "numpy": np.__version__},
        "rows": rows,
    }
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        partial = arguments.output.with_name(arguments.output.name + ".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        partial.replace(arguments.output)
    print(json.dumps(content))
    return 0


def _measured(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    bundle = Bundle.open(arguments.bundle or embedded_bundle())
    longest = bundle.architecture.max_sequence_length
    if min(arguments.rounds, *arguments.threads, *arguments.tokens) < 1:
        raise Error("--rounds, --threads and --tokens count from 1")
    if max(arguments.tokens) > longest:
        raise Error(f"--tokens {max(arguments.tokens)}: {bundle.path.name} reads {longest}; use at most that many")
    windows = [window_of(bundle, tokens) for tokens in arguments.tokens]
    ways = product(arguments.threads, SPINNING, (True, False))
    variants = [opened(bundle, threads, Tuning(spinning, arena), windows) for threads, spinning, arena in ways]
    return measure(variants, windows, arguments.rounds)


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    quarters = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return {"median": round(statistics.median(values), 4), "low": round(quarters[0], 4), "high": round(quarters[2], 4)}


def _anonymous() -> int:
    """Bytes of memory of this process that are no file's; 0 where the system does not say."""
    try:
        found = re.search(r"^RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    sys.exit(main())
