"""What every benchmark leaves behind: one JSON file that says what was measured, by which command, with what, on what.

    {"schema": 1, "bench": NAME, "command": ..., "versions": {...}, "hardware": {...}, "when": "2026-01-31T12:00:00+00:00",
     "complete": true, "rows": [{...}]}

Beside `rows` a benchmark may keep what belongs to all of them; records of several commands on one subject are kept as one with
`runs`. `Run` keeps what it has after each task in a hidden file beside the record, `.NAME.json.unfinished`, with `complete`
false and the rows of each finished task in `tasks`, so that the same command goes on where it was stopped; a finished record
is replaced by a finished one alone. A file is written whole or not at all. It knows processors, packages and files; it knows
nothing of models, or of what a row means.
"""

import hashlib
import json
import platform
import re
import shlex
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mmada_lite import __version__
from mmada_lite.arguments import say as say  # a line of progress, off a terminal too
from mmada_lite.errors import Error
from mmada_lite.files import require_readable, write_whole
from mmada_lite.memory_plan import memory_total
from mmada_lite.ort import nvidia
from mmada_lite.ort.cores import usable_cores

SCHEMA = 1
PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "onnx",
    "tokenizers",
    "bitsandbytes",
    "optimum",
)
EXTENSIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16")
FRESH = "--force"  # of a command line: begin anew
_KEYS = ("schema", "bench", "command", "rows")
_SAME = ("bench", "command", "versions", "hardware", "about")  # what must agree for a run to be gone on with
_HERE = Path(__file__).resolve().parent
Row = dict[str, Any]


def record(
    bench: str, arguments: Sequence[str], rows: Sequence[Mapping[str, Any]], *, program: Sequence[str] = (), **more: Any
) -> dict[str, Any]:
    """The content of the file. arguments: what stood after `program`, else after `mmada-lite bench NAME`; more: what belongs to
    all rows."""
    called = program or ("mmada-lite", "bench", bench)
    return {
        "schema": SCHEMA,
        "bench": bench,
        "command": shlex.join([*called, *(each for each in map(str, arguments) if each != FRESH)]),
        "versions": versions(),
        "hardware": hardware(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "complete": True,
        **more,
        "rows": [dict(row) for row in rows],
    }


class Run:
    """A benchmark under way: task by task, each done once, its rows kept at once, a line of progress before each.

    about: what decides the rows beside the command, such as the fingerprint of a model. An unfinished run of the same command,
    versions, machine and `about` is gone on with, unless `force`. Raises Error where a record that this version cannot read
    lies at `output`.
    """

    def __init__(
        self,
        bench: str,
        arguments: Sequence[str],
        output: Path | None = None,
        *,
        force: bool = False,
        about: object = None,
        program: Sequence[str] = (),
    ) -> None:
        self.path = output or default_output(bench)
        self._record = partial(record, bench, list(arguments), program=program)
        self._tasks: dict[str, list[Row]] = {}
        self._about = json.loads(json.dumps(about))
        self._started, self._all, self._kept = time.monotonic(), 0, 0
        require_replaceable(self.path)
        if not force and self.path is not None and unfinished(self.path).is_file():
            self._go_on(self.path)

    def plan(self, tasks: int) -> None:
        """How many tasks there will be in all, for the lines of progress."""
        self._all = tasks

    def do(self, task: str, work: Callable[[], Iterable[Mapping[str, Any]]]) -> list[Row]:
        """The rows of a task: done now, or kept from the run that was stopped."""
        if task not in self._tasks:
            self._say(task)
            self._tasks[task] = json.loads(json.dumps([dict(row) for row in work()]))
            if self.path is not None:
                content = self._record([], complete=False, about=self._about, tasks=self._tasks)
                save(content, self.path, into=unfinished(self.path))
        return self._tasks[task]

    def finish(self, rows: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
        """Write the whole record and remove what was kept of the unfinished run; returns the record."""
        content = self._record(rows, **more)
        if self.path is not None:
            save(content, self.path)
            with suppress(OSError):
                unfinished(self.path).unlink()
        return content

    def _go_on(self, path: Path) -> None:
        try:
            left = load(unfinished(path))
            tasks = left.get("tasks")
            if not isinstance(tasks, dict) or not all(_are_rows(rows) for rows in tasks.values()):
                raise Error(f"{unfinished(path)}: does not say which rows each of its tasks gave")
        except Error as fault:
            say(f"begun anew, since what was left cannot be gone on with: {fault}")
            return
        mine = self._record([], about=self._about)
        differing = [key for key in _SAME if left.get(key) != mine[key]]
        if differing:
            say(f"{path}: what was left there is of another run ({', '.join(differing)} differ); begun anew")
            return
        self._tasks, self._kept = tasks, len(tasks)
        say(f"{path}: going on behind {', '.join(tasks) or 'nothing'}; {FRESH} begins anew")

    def _say(self, task: str) -> None:
        done, passed = len(self._tasks), time.monotonic() - self._started
        now = done - self._kept
        parts = [f"{passed:.0f} s so far"] if now else []
        if now and self._all > done:
            parts.append(f"about {passed / now * (self._all - done):.0f} s left")
        number = f"{done + 1} of {max(self._all, done + 1)}: " if self._all else ""
        say(f"{number}{task}" + (f" ({', '.join(parts)})" if parts else ""))


def default_output(bench: str) -> Path | None:
    """bench/results/NAME.json of the checkout that this file lies in; None where it is installed."""
    return _HERE / "results" / f"{bench}.json" if (_HERE.parent / "setup.cfg").is_file() else None


def unfinished(path: Path) -> Path:
    """Where a run keeps what it has until its record can be written at `path`."""
    return path.with_name(f".{path.name}.unfinished")


def require_replaceable(path: Path | None) -> None:
    """Raise Error where a record lies that this version cannot read; what is no record at all is written over."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return
    if isinstance(content, dict) and all(key in content for key in _KEYS):
        _require_schema(content, f"{path}")


def save(content: Mapping[str, Any], path: Path, *, into: Path | None = None) -> None:
    """Write JSON whole or not at all, to `path`, or to another file on its way there. Raises Error."""
    target = into or path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, (json.dumps(content, indent=1) + "\n").encode())
    except OSError as fault:
        raise Error(f"{path}: cannot be written ({fault.strerror or fault}); choose another --output") from fault


def load(path: Path) -> dict[str, Any]:
    """Read a record back. Raises Error when it is none, cannot be read, or is of a later version."""
    try:
        require_readable(path)
        content = json.loads(path.read_text(encoding="utf-8"))
    except Error:
        raise
    except (OSError, ValueError, RecursionError) as fault:
        raise Error(f"{path}: cannot be read ({fault}); give a file that a benchmark wrote") from fault
    missing = [key for key in _KEYS if not isinstance(content, dict) or key not in content]
    if missing:
        raise Error(f"{path}: holds no {missing[0]!r}, so it is no record of a benchmark; give a file that one wrote")
    _require_schema(content, f"{path}")
    if not _are_rows(content["rows"]):
        raise Error(f"{path}: its 'rows' are no list of rows, so it is no record of a benchmark; give a file that one wrote")
    checked: dict[str, Any] = content
    return checked


def runs_of(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A record that several commands made, as one record of each: `runs` has what each one's own is, and a row its number."""
    rows, runs = content["rows"], content.get("runs", [{}])
    return [{**content, **run, "rows": [row for row in rows if row.get("run", 0) == n]} for n, run in enumerate(runs)]


def _require_schema(content: Mapping[str, Any], path: str) -> None:
    schema = content["schema"]
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise Error(
            f"{path}: is of schema {json.dumps(schema)[:40]}, which no version writes; move it away, or give another file"
        )
    if schema > SCHEMA:
        raise Error(f"{path}: is of schema {schema}, and this version reads {SCHEMA}; use a later mmada-lite")


def _are_rows(rows: object) -> bool:
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)


def fingerprint(*folders: Path) -> str:
    """A word for what lies in these folders: it changes when a file is added, removed, or written anew."""
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    seen = [(str(path), status.st_size, status.st_mtime_ns) for path in files for status in [path.stat()]]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Package -> version, of those that are installed, with ours and Python's."""
    installed = {"mmada-lite": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed


def hardware() -> dict[str, Any]:
    """The processor by its own name, the cores that this process may use, memory in bytes, instructions that matter, cards."""
    cpuinfo = ""
    with suppress(OSError):
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    name = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    return {
        "processor": name[1].strip() if name else platform.processor() or platform.machine(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": usable_cores(),
        "memory_bytes": memory_total(),
        "extensions": [extension for extension in EXTENSIONS if extension in present],
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
