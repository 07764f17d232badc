"""How fast each stored form and each number of threads is on this machine, and each form that OpenVINO computes where it is
installed: measured once, kept in the user's cache, read when a model is loaded.

Measured are the products of a layer of size S (1,024 wide), all forms in turns. `measure` takes some seconds; `kept` reads a
small file and measures nothing. What is kept counts for one processor, one number of cores and one version of onnxruntime; a
file that is damaged, or a folder that cannot be written, is as if nothing had been kept.
"""

import hashlib
import json
import math
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmada_lite import files
from mmada_lite.bundle import Bundle
from mmada_lite.contracts import IN_FLOAT32, read_json
from mmada_lite.ort.cores import usable_cores
from mmada_lite.ort.session import OPENVINO, Device, exact_int8, onnxruntime_package, open_session
from mmada_lite.ort.trial_layer import FORMS, NARROW, layer_graph

WIDTH, INNER = 1024, 3072  # of size S
ROWS = (8, 32, 128)  # tokens of a step: few of a block, a block, a whole row
ROUNDS, TURN, LIMIT = 5, 0.02, 3.0  # turns of every form; seconds of a turn, and after which no other round begins
# Seconds for each second of processor time that say that other programs were at work: of one thread, and of one on every core,
# some of which wait now and then.
BUSY_ONE, BUSY_ALL = 1.15, 1.5
SLOW = 1.5  # times as long as another form that takes no more memory: worth a warning
# Form -> what an export is told.
EXPORTS: Mapping[str, str] = {
    "int4-b128": "--precision int4",
    "int8": "--precision int8",
    NARROW: f"--precision {NARROW}",
    "int8-b128": "--precision int8 --store backbone=int8-b128 --store text_head=int8-b128",
    "fp32": "--precision fp16",
    "openvino-int8": "--precision int8 --target openvino",
    "openvino-int8-7bit": f"--precision {NARROW} --target openvino",
    "openvino-bf16": "--precision bf16 --target openvino",
    "openvino-fp32": "--precision fp16 --target openvino",
}
NAMES: Mapping[str, str] = {
    "int4-b128": "int4",
    "fp32": "fp16 and fp32",
    "openvino-fp32": "openvino-fp16",
}  # of forms, where a user knows another
_BITS: Mapping[str, int] = {
    **{"int4-b128": 4, "int8": 8, NARROW: 8, "int8-b128": 8, "fp32": 16},
    **{"openvino-int8": 8, "openvino-int8-7bit": 8, "openvino-bf16": 16, "openvino-fp32": 16},
}
# OpenVINO's forms -> the form of the graph, and the precision beside its products of integers.
_BY_OPENVINO: Mapping[str, tuple[str, Literal["f32", "bf16"]]] = {
    **{"openvino-int8": ("int8", "bf16"), "openvino-int8-7bit": (NARROW, "f32")},
    **{"openvino-bf16": ("fp32", "bf16"), "openvino-fp32": ("fp32", "f32")},
}
_KEPT = "speed"
Times = dict[int, float]


@dataclass(frozen=True, slots=True)
class Speeds:
    """What was measured. forms: form -> tokens of a step -> milliseconds, on all cores. threads: number of threads -> tokens of
    a step -> milliseconds of the fastest form. quiet: no other programs took processor time meanwhile."""

    forms: dict[str, Times]
    threads: dict[int, Times]
    quiet: bool = True

    @property
    def order(self) -> list[str]:
        """The forms, fastest first, by their time relative to the fastest at each number of tokens."""
        return _ordered(self.forms)

    @property
    def best(self) -> str:
        return self.order[0]

    @property
    def thread_order(self) -> list[int]:
        """Numbers of threads, fastest first."""
        return _ordered(self.threads)

    def at(self, tokens: int) -> list[str]:
        """The forms, fastest first, in steps of so many tokens."""
        return sorted(self.forms, key=lambda form: self.forms[form][tokens])

    def ratio(self, form: str, other: str) -> float:
        """How many times as long as `other` a form takes: the geometric mean over all steps. Narrow codes that were not
        measured count as int8."""
        times = self.forms.get(form, self.forms["int8"])
        logs = [math.log(times[tokens] / self.forms[other][tokens]) for tokens in ROWS]
        return math.exp(sum(logs) / len(logs))

    def faster(self, form: str) -> str | None:
        """The fastest form that takes no more memory than this one and is clearly faster; None where there is none."""
        others = [other for other in self.order if _BITS[other] <= _BITS[form]]
        return others[0] if self.ratio(form, others[0]) >= SLOW else None


def _ordered(times: Mapping[Any, Times]) -> list[Any]:
    def behind(name: Any) -> float:
        return sum(math.log(times[name][tokens] / min(each[tokens] for each in times.values())) for tokens in ROWS)

    return sorted(times, key=behind)


def form_of(bundle: Bundle) -> str | None:
    """The measured form that stands for a bundle's backbone on a CPU; None where none does."""
    group = bundle.quantization.get("backbone")
    if group is None or bundle.target not in IN_FLOAT32:
        return None
    if group.format in ("fp16", "bf16", "fp32"):
        return "fp32"
    if group.format == "int4":
        return "int4-b128"
    if group.block is not None:
        return "int8-b128"
    return NARROW if group.bits == 7 else "int8"


def forms_here() -> tuple[str, ...]:
    """The forms worth a measurement: narrow codes are as fast as others where no sum can overflow."""
    return tuple(form for form in FORMS if form != NARROW or not exact_int8())


def openvino_forms_here() -> tuple[str, ...]:
    """OpenVINO's forms that are computed as they are called on this processor; none where it is not installed."""
    from mmada_lite.ort import openvino

    if openvino.lacking() is not None or openvino.absent(OPENVINO) is not None:
        return ()
    int8 = "openvino-int8" if exact_int8() else "openvino-int8-7bit"
    return (int8, *(("openvino-bf16",) if openvino.computes(OPENVINO, "bf16") else ()), "openvino-fp32")


def on_openvino(form: str) -> bool:
    return form in _BY_OPENVINO


def cpu_instead(bundle: Bundle, speeds: Speeds) -> str | None:
    """Why onnxruntime computes a bundle for OpenVINO on this machine: it was measured to be faster in the same precision. None
    where it was not, or computes in another."""
    form = form_of(bundle)
    theirs = f"openvino-{form}"
    if form not in speeds.forms or theirs not in speeds.forms or bundle.quantization["backbone"].format == "bf16":
        return None
    if speeds.ratio(theirs, form) <= 1:
        return None
    return f"OpenVINO takes {speeds.ratio(theirs, form):.1f} times as long for {form_in_words(form)} (measured on this machine)"


def form_in_words(form: str) -> str:
    return NAMES.get(form, form)


def slowness(bundle: Bundle, speeds: Speeds) -> str | None:
    """A line about a quantized bundle that is clearly slower here than another form of no more memory, which it names. None
    where nothing is, and for fp16, bf16 and fp32, which are taken for what they lose and not for their speed."""
    form = form_of(bundle)
    if form is None or form == "fp32" or (better := speeds.faster(form)) is None:
        return None
    if bundle.target == OPENVINO and on_openvino(better):
        return None  # it is, and was asked for on another device
    return (
        f"{bundle.path.name} is stored as {form_in_words(form)}, which takes {speeds.ratio(form, better):.1f} times as long as "
        f"{form_in_words(better)} on this machine (measured in steps of {_listed(ROWS)} tokens); "
        f"export it with {EXPORTS[better]}"
    )


def measure(rounds: int = ROUNDS, turn: float = TURN, limit: float = LIMIT) -> Speeds:
    """Every form on all cores, then the fastest on fewer threads. Raises Error where onnxruntime is absent."""
    cores = usable_cores()
    sessions = {form: _opened(form, cores) for form in (*forms_here(), *openvino_forms_here())}
    forms, _ = _in_turns(sessions, rounds, turn, limit)
    best = Speeds(forms, {}).best
    by_threads = {threads: _opened(best, threads) for threads in thread_counts(cores)}
    threads, taken = _in_turns(by_threads, rounds, turn, limit)
    return Speeds(forms, threads, taken[1] <= BUSY_ONE and taken[cores] * cores <= BUSY_ALL)


def _opened(form: str, threads: int) -> Any:
    """A session over a layer in a form."""
    if not on_openvino(form):
        return open_session(layer_graph(form, WIDTH, INNER), Device("cpu", "a measurement"), threads)
    from mmada_lite.ort import openvino

    graph, precision = _BY_OPENVINO[form]
    return openvino.Session(layer_graph(graph, WIDTH, INNER), openvino.Compiling(OPENVINO, threads, precision))


def thread_counts(cores: int) -> list[int]:
    """1, 2, 4 and so on, and all cores."""
    return sorted({*(2**power for power in range(cores.bit_length()) if 2**power < cores), cores})


def _in_turns(sessions: Mapping[Any, Any], rounds: int, turn: float, limit: float) -> tuple[dict[Any, Times], dict[Any, float]]:
    """Milliseconds of each session at each number of tokens, and its seconds for each second of processor time in the longest
    steps. All take turns, and the first round does not count. The shortest run counts, since other programs only ever make one
    longer."""
    inputs = {tokens: np.random.default_rng(1).standard_normal((tokens, WIDTH), np.float32) for tokens in ROWS}
    turns: dict[tuple[Any, int], list[float]] = {(name, tokens): [] for name in sessions for tokens in ROWS}
    passed, worked = dict.fromkeys(sessions, 0.0), dict.fromkeys(sessions, 1e-9)
    end = time.perf_counter() + limit
    for number in range(rounds + 1):
        if number > 1 and time.perf_counter() > end:
            break
        for (name, tokens), runs in turns.items():
            started, processor = time.perf_counter(), time.process_time()
            fastest = _fastest(partial(sessions[name].run, None, {"x": inputs[tokens]}), turn)
            if number:
                runs.append(1e3 * fastest)
            if number and tokens == max(ROWS):
                passed[name] += time.perf_counter() - started
                worked[name] += time.process_time() - processor
    times = {name: {tokens: min(turns[name, tokens]) for tokens in ROWS} for name in sessions}
    return times, {name: passed[name] / worked[name] for name in sessions}


def _fastest(run: Callable[[], object], turn: float) -> float:
    """Seconds of the fastest run of a turn."""
    fastest, end = math.inf, time.perf_counter() + turn
    while True:
        started = time.perf_counter()
        run()
        now = time.perf_counter()
        fastest = min(fastest, now - started)
        if now >= end:
            return fastest


def kept() -> Speeds | None:
    """What was measured on this machine before; None where nothing is kept that can be read."""
    try:
        content = read_json(_file())
        forms, threads = content["forms"], content["threads"]
        counts = thread_counts(usable_cores())
        there = [form for form in (*FORMS, *_BY_OPENVINO) if form in forms or (form in FORMS and form != NARROW)]
        return Speeds({form: _times(forms[form]) for form in there}, {count: _times(threads[str(count)]) for count in counts})
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
        return None


def keep(speeds: Speeds) -> str | None:
    """Write what was measured into the user's cache, whole or not at all. Returns why it is not kept, or None."""
    if not speeds.quiet:
        return "other programs were at work, so this is not kept: measure again once they are done"
    return files.keep(_file(), {"machine": machine(), **asdict(speeds)})


def machine() -> dict[str, Any]:
    """What a measurement depends on."""
    return {
        "processor": platform.machine(),
        "cpu": _cpu(),
        "cores": usable_cores(),
        "onnxruntime": str(onnxruntime_package().__version__),
        "openvino": _openvino_version(),
    }


def _openvino_version() -> str | None:
    try:
        return version("openvino")
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    """The processor's name and flags as Linux says them, or what Python knows."""
    try:
        said = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    names = (re.search(rf"^{key}\s*:(.*)$", said, re.MULTILINE) for key in ("model name", "flags", "Features"))
    return " | ".join(found[1].strip() for found in names if found)


def _file() -> Path:
    facts = json.dumps([machine(), WIDTH, INNER, ROWS, FORMS])
    return files.cache_folder() / f"{_KEPT}-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.json"


def _times(content: Mapping[str, Any]) -> Times:
    """Raises ValueError, LookupError or TypeError where they are not times of every step."""
    times = {tokens: float(content[str(tokens)]) for tokens in ROWS}
    if not all(0 < each < math.inf for each in times.values()):
        raise ValueError("a time is no time")
    return times


def _listed(numbers: Sequence[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}" if most else last
