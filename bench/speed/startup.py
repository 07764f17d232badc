"""How long a user waits: from the command to the first step and to the finished picture, as a whole process.

    python -m mmada_lite.bench.speed.startup

It starts `mmada-lite paint` again and again, reads its stream of JSON lines, and prints medians with a JSON line last. It
knows the command line alone.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mmada_lite import __version__
from mmada_lite.bench.arguments import require_counts


def once(folder: Path, seed: int) -> dict[str, float]:
    """Seconds of one run: to the first step, to the file, and inside the decoding loop."""
    target = folder / f"{seed}.png"
    command = [sys.executable, "-m", "mmada_lite", "paint", "a red apple", "-o", str(target), "--seed", str(seed), "--json"]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}) as process:
        assert process.stdout is not None
        lines = [(time.perf_counter() - started, json.loads(line)) for line in process.stdout]
    if process.returncode or not target.is_file():
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
    return {"first_step_s": lines[0][0], "picture_s": time.perf_counter() - started, "decoding_s": lines[-2][1]["seconds"]}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="counted runs, after one warm-up (default 7)")
    parser.add_argument("-o", "--output", type=Path, help="also write the JSON here")
    options = parser.parse_args(argv)
    require_counts(options, "runs")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)  # what cannot be made is told before the runs
    with tempfile.TemporaryDirectory() as folder:
        runs = [once(Path(folder), seed) for seed in range(options.runs + 1)][1:]
    result: dict[str, object] = {
        "benchmark": "startup",
        "command": "python -m mmada_lite.bench.speed.startup",
        "version": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "runs": options.runs,
    }
    for key in runs[0]:
        values = sorted(run[key] for run in runs)
        result[key] = {"median": round(statistics.median(values), 3), "min": round(values[0], 3), "max": round(values[-1], 3)}
        print(f"{key:14} median {statistics.median(values):6.2f}   min {values[0]:6.2f}   max {values[-1]:6.2f}")
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
