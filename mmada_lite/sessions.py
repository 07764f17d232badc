"""onnxruntime as this project uses it: which device, which options, and a plain word when something is not to be had.

It knows providers and session options; it knows nothing of what the graphs mean.
"""

import logging
import os
import platform
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmada_lite.errors import Error

if TYPE_CHECKING:
    import onnxruntime

_log = logging.getLogger("mmada_lite")
DEVICES = ("auto", "cpu", "cuda")
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True, slots=True)
class Device:
    """A device that was asked for and found. `reason` says why, in words for a person."""

    name: str
    reason: str

    @property
    def providers(self) -> list[str]:
        wanted = _PROVIDERS[self.name]
        return [wanted] if wanted == "CPUExecutionProvider" else [wanted, "CPUExecutionProvider"]


def choose_device(name: str = "auto") -> Device:
    """Find the device `name`. "auto" takes CUDA where onnxruntime has it, else the CPU, and says which and why.

    Raises Error for an unknown name, or for a device that is asked for and missing: never another one in silence.
    """
    if name not in DEVICES:
        raise Error(f"no device is called {name!r}; use one of {', '.join(DEVICES)}")
    available = _onnxruntime().get_available_providers()
    if name == "cuda" and _PROVIDERS["cuda"] not in available:
        raise Error('onnxruntime here has no CUDA provider; in an environment of its own: pip install "mmada-lite[cuda]"')
    if name == "auto":
        if _PROVIDERS["cuda"] in available:
            return Device("cuda", "onnxruntime has its CUDA provider")
        return Device("cpu", "onnxruntime has no CUDA provider")
    return Device(name, "asked for")


def open_session(path: Path, device: Device, threads: int | None = None) -> "onnxruntime.InferenceSession":
    """Open one graph. `threads` None means one per core that this process may use. Raises Error when it does not load."""
    runtime = _onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not exact_int8() and _multiplies_integers(path):
        options.add_session_config_entry("session.x64quantprecision", "1")  # slower kernels whose sums do not overflow
    try:
        session = runtime.InferenceSession(str(path), options, providers=device.providers)
    except Exception as error:  # onnxruntime's own errors share no base class
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Error(f"onnxruntime cannot load {path}: {first[:240]}") from error
    got = session.get_providers()[0]
    if got != device.providers[0]:
        raise Error(f"{path.name} was to run on {device.name} but onnxruntime chose {got}; check driver and CUDA libraries")
    _log.debug("%s opened on %s", path.name, device.name)
    return session


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


def _onnxruntime() -> Any:
    if find_spec("onnxruntime") is None:
        raise Error('onnxruntime is not installed; pip install "mmada-lite[cpu]" (or [cuda] for an NVIDIA GPU)')
    import onnxruntime

    return onnxruntime
