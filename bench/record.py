"""What every benchmark leaves behind: one JSON file that says what was measured, by which command, with what, on what.

    {"bench": NAME, "command": ..., "versions": {...}, "hardware": {...}, "when": "2026-01-31T12:00:00+00:00", "rows": [{...}]}

Beside `rows` a benchmark may keep what belongs to all of them. A file is written whole or not at all. It knows processors,
packages and files; it knows nothing of models, or of what a row means.
"""

import json
import os
import platform
import re
import shlex
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mmada_lite import __version__
from mmada_lite.errors import Error
from mmada_lite.ort import nvidia
from mmada_lite.ort.session import usable_cores

PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "onnx",
    "tokenizers",
    "bitsandbytes",
    "optimum",
    "llama-cpp-python",
)
EXTENSIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16")
_KEYS = ("bench", "command", "versions", "hardware", "when", "rows")
_HERE = Path(__file__).resolve().parent


def record(bench: str, arguments: Sequence[str], rows: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    """The content of the file. arguments: what stood after `mmada-lite bench NAME`; more: what belongs to all rows."""
    return {
        "bench": bench,
        "command": command_line(bench, arguments),
        "versions": versions(),
        "hardware": hardware(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        **more,
        "rows": [dict(row) for row in rows],
    }


def command_line(bench: str, arguments: Sequence[str]) -> str:
    """What a person types to measure this again."""
    return shlex.join(["mmada-lite", "bench", bench, *map(str, arguments)])


def say(line: str) -> None:
    """A line of progress, off a terminal too."""
    print(line, file=sys.stderr, flush=True)


def default_output(bench: str) -> Path | None:
    """bench/results/NAME.json of the checkout that this file lies in; None where it is installed."""
    return _HERE / "results" / f"{bench}.json" if (_HERE.parent / "setup.cfg").is_file() else None


def save(content: Mapping[str, Any], output: Path | None) -> Path | None:
    """Write a record to a file (None: the default of its benchmark, if there is one); returns where. Raises Error."""
    path = output or default_output(content["bench"])
    if path is None:
        return None
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as fault:
        with suppress(OSError):
            partial.unlink()
        raise Error(f"{path}: cannot be written ({fault.strerror or fault}); choose another --output") from fault
    return path


class NoRecord(Error):
    """A file of JSON that no benchmark of speed wrote."""


def load(path: Path) -> dict[str, Any]:
    """Read a record back. Raises NoRecord when it is none, Error when it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as fault:
        raise Error(f"{path}: cannot be read ({fault}); give a file that a benchmark wrote") from fault
    missing = [key for key in _KEYS if not isinstance(content, dict) or key not in content]
    if missing:
        raise NoRecord(f"{path}: holds no {missing[0]!r}, so it is no record of a benchmark; give a file that one wrote")
    found: dict[str, Any] = content
    return found


def versions() -> dict[str, str]:
    """Package -> version, of those that are installed, with ours and Python's."""
    found = {"mmada-lite": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """The processor by its own name, the cores that this process may use, memory in bytes, instructions that matter, cards."""
    cpuinfo = _read("/proc/cpuinfo")
    name = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    return {
        "processor": name[1].strip() if name else platform.processor() or platform.machine(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": usable_cores(),
        "memory_bytes": int(memory[1]) * 1024 if memory else None,
        "extensions": [word for word in EXTENSIONS if word in present],
        "cards": [card.name for card in nvidia.cards()],
    }


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, quartiles and extremes of some measurements, at least one."""
    ordered = sorted(values)
    quarters = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else ordered * 3
    return {
        "median": statistics.median(ordered),
        "low": quarters[0],
        "high": quarters[2],
        "min": ordered[0],
        "max": ordered[-1],
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
