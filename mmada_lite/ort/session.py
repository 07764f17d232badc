"""onnxruntime as this project uses it: which device, which options, and a plain word when something is not to be had.

It chooses among `providers` and opens sessions; it knows nothing of what the graphs mean.
"""

import logging
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from mmada_lite.errors import Error
from mmada_lite.ort import devices

if TYPE_CHECKING:
    import onnxruntime

_log = logging.getLogger("mmada_lite")
DEVICES = ("auto", *devices.PROVIDERS)
# What `auto` tries, best first, by what the graphs are lowered for. int8 with rounded activations is a form for CPUs alone.
_BEST: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"cpu": ("cuda", "cpu"), "cuda": ("cuda", "cpu"), "tensorrt": ("rtx", "tensorrt", "cpu"), "integers": ("cpu",)}
)
_MEMORY = re.compile(r"out of memory|failed to allocate|OUT_OF_MEMORY|cudaErrorMemoryAllocation|bad.?alloc", re.IGNORECASE)


class OutOfMemory(Error):
    """The device, or the machine, has no room for what was to be done."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device that was asked for and found. `reason` says why, in words for a person."""

    name: str
    reason: str

    @property
    def providers(self) -> list[str]:
        provider = devices.PROVIDERS[self.name]
        return [provider.name, *provider.beside]

    @property
    def memory(self) -> str:
        """Where its tensors lie, in the words of onnxruntime's io binding."""
        return devices.PROVIDERS[self.name].memory


Spinning = Literal["run", "always", "never"]


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a session works on the CPU. spinning: how long its threads stay awake without work, "run" to the end of a run (the
    next operation comes soon), "always" beyond it (onnxruntime's own way: they then take the cores from the session that runs
    next), or "never"; arena: memory is kept for the next run (docs/drawing.md has what they do)."""

    spinning: Spinning = "run"
    arena: bool = True


TUNED = Tuning()


def choose_device(name: str = "auto", lowered_for: str = "cpu") -> Device:
    """Find the device `name`. "auto" takes the best one that works for graphs lowered so, and says which and why.

    lowered_for: a bundle's target, or "integers" for int8 graphs that round activations. Raises Error for an unknown name,
    or for a device that is asked for and does not work here: never another one in silence.
    """
    if name not in DEVICES:
        raise Error(f"no device is called {name!r}; use one of {', '.join(DEVICES)}")
    devices.onnxruntime()
    if name != "auto":
        if (why := devices.fault(name)) is not None:
            raise Error(why)
        return Device(name, "asked for")
    passed_over: list[str] = []
    for candidate in _BEST[lowered_for]:
        if (why := devices.fault(candidate)) is None:
            return Device(candidate, _reason(candidate, lowered_for, passed_over))
        passed_over.append(why)
    raise AssertionError("the CPU always works")


def _reason(chosen: str, lowered_for: str, passed_over: list[str]) -> str:
    what = devices.PROVIDERS[chosen].what
    if lowered_for == "integers":
        return "int8 with rounded activations is a form for CPUs"
    if not passed_over:
        return f"{what} works here, and is the fastest for graphs lowered for {lowered_for}"
    return f"{what} is the best that works: " + "; ".join(why.split(";")[0] for why in passed_over)


def open_session(
    graph: Path | bytes,
    device: Device,
    threads: int | None = None,
    settings: Mapping[str, str] = MappingProxyType({}),
    tuning: Tuning = TUNED,
    *,
    profile: Path | None = None,
) -> "onnxruntime.InferenceSession":
    """Open one graph, a file or its bytes. `threads` None means one per core that this process may use; settings: the
    provider's own; profile: how the file begins that onnxruntime's `end_profiling` writes. Raises Error when it does not load,
    OutOfMemory when there is no room."""
    options = devices.onnxruntime().SessionOptions()
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = tuning.arena
    if tuning.spinning == "never":
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    elif tuning.spinning == "run":
        options.add_session_config_entry("session.force_spinning_stop", "1")
    name = graph.name if isinstance(graph, Path) else "a graph of our own"
    if not exact_int8() and isinstance(graph, Path) and _multiplies_integers(graph):
        options.add_session_config_entry("session.x64quantprecision", "1")  # slower kernels whose sums do not overflow
    try:
        session = devices.open_session(str(graph) if isinstance(graph, Path) else graph, device.name, options, settings)
    except Exception as error:  # onnxruntime's own errors share no base class
        kind = OutOfMemory if is_out_of_memory(error) else Error
        where = graph if isinstance(graph, Path) else name
        raise kind(f"onnxruntime cannot load {where}: {devices.first_line(error)}") from error
    got = session.get_providers()[0]
    if got != device.providers[0]:
        raise Error(f"{name} was to run on {device.name} but onnxruntime chose {got}; check driver and CUDA libraries")
    _log.debug("%s opened on %s", name, device.name)
    opened: onnxruntime.InferenceSession = session
    return opened


def giving_back() -> "onnxruntime.RunOptions":
    """Options of a run on a CPU behind which its session keeps none of the memory that it took beside the weights."""
    options = devices.onnxruntime().RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of onnxruntime, CUDA or the system means that memory ran out."""
    return isinstance(error, MemoryError) or _MEMORY.search(str(error)) is not None


def _multiplies_integers(path: Path) -> bool:
    """Only such a graph is opened for exact sums: onnxruntime 1.32 then fails at a DequantizeLinear without zero points."""
    try:
        return b"MatMulInteger" in path.read_bytes()
    except OSError:
        return False  # the session says what is wrong with the file


def exact_int8() -> bool:
    """Whether onnxruntime's fast kernels add up products of int8 exactly on this processor.

    On x86 without VNNI they add pairs of them in 16 bits, which can overflow. Where the system does not say: yes.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    try:
        flags = re.findall(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return True
    return not flags or bool({"avx512_vnni", "avx_vnni"} & set(flags[0].split()))


def usable_cores() -> int:
    """Cores that this process may run on, which in a container is fewer than the machine has."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
