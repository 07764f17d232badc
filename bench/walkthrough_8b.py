"""The whole path of a model of the published size on this machine: written, converted to int4 and int8, loaded, asked about a
picture, told to draw one, two of its layers rounded by GPTQ and by GPTAQ; what each part took of memory, time and disk,
beside its target.

`load` is the median of three, each in a process of its own: the first may find memory that the system has yet to provide.
`answer` is asked in one step without a cache: the least memory, and no step of a longer answer takes more. `int4-answer` and
`int8-answer` are asked as `--cache` and `--steps` say, and tell where their time goes. `drawing` takes one guided step. Beside
their peaks stand what `mmada-lite plan` counts for them.

Weights are random (`synthetic`). Every part is a process of its own, whose highest resident size the system keeps. A part
that is done is kept in FOLDER/eight.json and not done again, so that a run that was cut off goes on. It knows commands and
files alone; what runs inside one that is no command of ours yet is `eight_parts`.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmada_lite.bench import record
from mmada_lite.errors import Error

LAYERS = 32  # of the published model
ROUNDED = 2  # layers on which GPTQ is tried
LOADS = 3  # times that loading is measured
TARGETS: Mapping[str, Mapping[str, float]] = {  # part -> measure -> at most, of the whole model
    "checkpoint": {"peak_gb": 1.0},
    "int4": {"peak_gb": 3.0, "minutes": 25.0, "bundle_gb": 4.7},
    "load": {"load_seconds": 10.0},
    "answer": {"peak_gb": 5.6},
    "int8": {"bundle_gb": 8.6},
}
PARTS = ("checkpoint", "int4", "load", "answer", "drawing", "int4-answer", "int8", "int8-answer", "gptq", "gptaq")
Found = dict[str, Any]


def run(module: str, *words: str | Path) -> Found:
    """`python -m module words` to its end: gigabytes at the highest, minutes of the clock and of processors, and what its last
    line says if that is JSON. Raises Error with its last words when it fails."""
    command = [sys.executable, "-m", module, *map(str, words)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = time.perf_counter()
        redirected = [(os.POSIX_SPAWN_DUP2, out.fileno(), 1), (os.POSIX_SPAWN_DUP2, err.fileno(), 2)]
        process = os.posix_spawn(sys.executable, command, os.environ, file_actions=redirected)
        _, status, usage = os.wait4(process, 0)
        seconds = time.perf_counter() - started
        said, complained = (_last_line(stream) for stream in (out, err))
    if os.waitstatus_to_exitcode(status):
        raise Error(f"python {' '.join(command[1:])} failed: {complained or 'it says nothing'}")
    unit = 1 if sys.platform == "darwin" else 1024  # in which the system counts
    found = {
        "command": " ".join(["python", *command[1:]]),
        "peak_gb": round(usage.ru_maxrss * unit / 1e9, 3),
        "minutes": round(seconds / 60, 2),
        "processor_minutes": round((usage.ru_utime + usage.ru_stime) / 60, 2),
    }
    return found | (json.loads(said) if said.startswith("{") else {})


def _last_line(stream: Any) -> str:
    stream.seek(0)
    lines = stream.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def parts(options: argparse.Namespace) -> dict[str, Callable[[], Found]]:
    """Name -> what does it. Each takes what those before it left in the work folder."""
    work: Path = options.work
    inner = "mmada_lite.bench.walkthrough_parts"

    def checkpoint(name: str, layers: int) -> Found:
        return run("mmada_lite.bench.synthetic", work / name, "--layers", str(layers), "--force")

    def converted(source: str, bundle: str, form: str) -> Found:
        words = ("quantize", work / source, "-o", work / bundle, "--format", form, "--method", "rtn", "--force", "--json")
        found = run("mmada_lite", *words)
        return {**found, "bundle_gb": round(_size(work / bundle) / 1e9, 3)}

    def answered(bundle: str, steps: int, cache: str) -> Found:
        words = ("--steps", str(steps), "--threads", str(options.threads), "--cache", cache)
        return run(inner, "answer", work / bundle, *words)

    def loaded() -> Found:
        runs = [run(inner, "load", work / "int4", "--threads", str(options.threads)) for _ in range(LOADS)]
        each = [one["load_seconds"] for one in runs]
        middle = sorted(runs, key=lambda one: one["load_seconds"])[LOADS // 2]
        return {**middle, "peak_gb": max(one["peak_gb"] for one in runs), "each_load": each}

    def calibrated(method: str) -> Found:
        source = "layers" if options.layers != ROUNDED else "checkpoint"
        if not (work / "layers-rtn").is_dir():
            if source == "layers":
                checkpoint(source, ROUNDED)
            converted(source, "layers-rtn", "int4")
        words = ("--method", method, "--prompts", str(options.prompts))
        return run(inner, "calibrated", work / source, work / "layers-rtn", work / f"layers-{method}", *words)

    return {
        "checkpoint": lambda: checkpoint("checkpoint", options.layers),
        "int4": lambda: converted("checkpoint", "int4", "int4"),
        "load": loaded,
        "answer": lambda: answered("int4", 1, "none"),
        "drawing": lambda: run(inner, "draw", work / "int4", "--threads", str(options.threads)),
        "int4-answer": lambda: answered("int4", options.steps, options.cache),
        "int8": lambda: converted("checkpoint", "int8", "int8"),
        "int8-answer": lambda: answered("int8", options.steps, options.cache),
        "gptq": lambda: calibrated("gptq"),
        "gptaq": lambda: calibrated("gptaq"),
    }


def measure(options: argparse.Namespace) -> Found:
    """Do what is not done yet; returns part -> what it took, with the targets and whether they are met."""
    state, made = options.work / "eight.json", parts(options)
    try:
        options.work.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise Error(f"{options.work} cannot be made ({fault.strerror}); give --work a folder that you may write") from fault
    asked = {name: value for name, value in vars(options).items() if name in ("layers", "steps", "cache", "prompts")}
    done = _done(state) if state.is_file() else {"asked": asked}
    if done.pop("asked") != asked:
        raise Error(f"{state} is of a run with other options; give another --work, or remove it")
    for name in options.only or made:
        if name not in done:
            if not os.access(options.work, os.W_OK):
                raise Error(f"{options.work} cannot be written; give --work a folder that you may write")
            print(f"{name} ...", file=sys.stderr, flush=True)
            done[name] = made[name]()
            _write(state, {"asked": asked, **done})
    whole = options.layers == LAYERS
    return {name: judged(name, done[name], whole) for name in made if name in done}


def _done(state: Path) -> Found:
    """What an earlier run kept."""
    try:
        done = json.loads(state.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise Error(f"{state} cannot be read ({fault}); remove it, or give another --work") from fault
    if not isinstance(done, dict) or "asked" not in done:
        raise Error(f"{state} is not what `bench eight` keeps; remove it, or give another --work")
    return done


def judged(part: str, found: Found, whole: bool) -> Found:
    """What a part took, beside its targets; of fewer layers than the whole model the numbers stand alone."""
    limits = TARGETS.get(part, {}) if whole else {}
    return found | {"targets": {name: {"at_most": most, "met": found[name] < most} for name, most in limits.items()}}


def table(found: Mapping[str, Found]) -> str:
    """A line a part."""
    lines = ["| part | peak GB | minutes | processor minutes | further | targets |", "|---|---|---|---|---|---|"]
    known = ("command", "peak_gb", "minutes", "processor_minutes", "targets", "result", "bytes", "format", "method", "target")
    for name, part in found.items():
        further = ", ".join(f"{key} {value}" for key, value in part.items() if key not in known)
        told = [f"{key} < {one['at_most']:g}: {'met' if one['met'] else 'missed'}" for key, one in part["targets"].items()]
        cells = (name, part["peak_gb"], part["minutes"], part["processor_minutes"], further, ", ".join(told))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mmada-lite bench eight", description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder with 35 GB of room; remove it when all is done")
    parser.add_argument("--layers", type=int, default=LAYERS, help="of 32: fewer for a trial (default: 32)")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts alone, in this order")
    parser.add_argument("--steps", type=int, default=16, help="of the timed answers of 128 tokens (default: 16)")
    parser.add_argument(
        "--cache",
        default="dual",
        choices=("none", "prefix", "dual"),
        help="of the timed answers: none, prefix or dual (default: dual)",
    )
    parser.add_argument("--prompts", type=int, default=1, help="of each task that GPTQ is calibrated on (default: 1)")
    parser.add_argument("--threads", type=int, default=2, help="of loading and answering (default: 2)")
    parser.add_argument("-o", "--output", type=Path, help="write JSON here too")
    options = parser.parse_args(arguments)
    try:
        if min(options.layers, options.steps, options.prompts, options.threads) < 1:
            raise Error("--layers, --steps, --prompts and --threads are at least 1")
        found = measure(options)
    except Error as fault:
        print(f"mmada-lite: {fault}", file=sys.stderr)
        return 2
    words = list(sys.argv[1:] if arguments is None else arguments)
    rows = [{"part": name, **part} for name, part in found.items()]
    content = record.record("eight", words, rows, shape="8b", layers=options.layers)
    print(table(found))
    try:
        if options.output:
            record.save(content, options.output)
    except Error as fault:
        print(f"mmada-lite: {fault}", file=sys.stderr)
        return 2
    print(json.dumps(content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
