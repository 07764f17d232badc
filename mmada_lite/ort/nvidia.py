"""The NVIDIA driver, asked through its own library: which cards there are and what they have. No package is needed, nor a GPU.

It knows libcuda, and what the system says of the driver and of TensorRT; which programs can use a card is `devices`' business.
"""

import ctypes
import re
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

LIBRARY = "libcuda.so.1"
_DRIVER = Path("/proc/driver/nvidia/version")
_BOARD = Path("/etc/nv_tegra_release")  # of a Jetson, whose driver comes with its system
_TENSORRT = ("libnvinfer.so.10", "libnvinfer.so.11")  # onnxruntime's provider is linked with one of them
_TENSORRT_WHEELS = "tensorrt_libs"
FP8_SINCE = "8.9"  # the compute capability of the first cards that read floats of eight bits
_MAJOR, _MINOR = 75, 76  # numbers of the attributes "compute capability major, minor" in cuda.h


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU. memory and free are bytes; compute_capability is "8.9" and so on."""

    name: str
    compute_capability: str
    memory: int
    free: int | None = None

    @property
    def reads_fp8(self) -> bool:
        return at_least(self.compute_capability, FP8_SINCE)


def at_least(capability: str, since: str) -> bool:
    """Whether a compute capability is another, or a later one."""
    one, other = (tuple(map(int, each.split("."))) for each in (capability, since))
    return one >= other


def version() -> str | None:
    """The newest CUDA that the driver runs, "13.0"; None without a driver."""
    cuda = _library()
    if cuda is None:
        return None
    number = ctypes.c_int()
    return f"{number.value // 1000}.{number.value % 1000 // 10}" if cuda.cuDriverGetVersion(ctypes.byref(number)) == 0 else None


def driver() -> str:
    """The driver's own version, "580.95.05" or, of a Jetson, "R36.4.3"; else the newest CUDA that it runs, and "unknown" where
    nothing says so."""
    with suppress(OSError):
        said = re.search(r"Kernel Module\D*?(?:x86_64|aarch64)?\s+(\d+(?:\.\d+)+)", _DRIVER.read_text())
        if said:
            return said[1]
    with suppress(OSError):
        said = re.search(r"R(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)", _BOARD.read_text())
        if said:
            return f"R{said[1]}.{said[2]}"
    return f"cuda{found}" if (found := version()) else "unknown"


def tensorrt_version() -> str:
    """Of TensorRT as its library says it, "101306" for 10.13.6; "" where it is not found."""
    spec = find_spec(_TENSORRT_WHEELS)
    wheels = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    for name in _TENSORRT:
        for path in (name, *(str(folder / name) for folder in wheels)):
            with suppress(OSError, AttributeError):
                return str(ctypes.CDLL(path).getInferLibVersion())
    return ""


def cards() -> tuple[Card, ...]:
    """Every card that this process may use; none without a driver."""
    cuda = _library()
    count = ctypes.c_int()
    if cuda is None or cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    return tuple(_card(cuda, number) for number in range(count.value))


def _card(cuda: Any, number: int) -> Card:
    device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), number)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    parts = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        parts.append(str(value.value))
    return Card(name.value.decode(errors="replace"), ".".join(parts), memory.value, _free(cuda, device))


def _free(cuda: Any, device: ctypes.c_int) -> int | None:
    """Bytes that are free on a card. Makes its primary context for a moment, as the driver answers only within one."""
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    if cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) != 0:
        return None
    try:
        cuda.cuCtxPushCurrent_v2(context)
        known = cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0
        cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        return free.value if known else None
    finally:
        cuda.cuDevicePrimaryCtxRelease_v2(device)


def _library() -> Any:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError:
        return None
