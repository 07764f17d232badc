"""The NVIDIA driver, asked through its own library: which cards there are and what they have. No package is needed, nor a GPU.

It knows libcuda alone; which programs can use a card is `devices`' business.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # numbers of the attributes "compute capability major, minor" in cuda.h


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU. memory and free are bytes; compute_capability is "8.9" and so on."""

    name: str
    compute_capability: str
    memory: int
    free: int | None = None


def version() -> str | None:
    """The newest CUDA that the driver runs, "13.0"; None without a driver."""
    cuda = _library()
    if cuda is None:
        return None
    number = ctypes.c_int()
    return f"{number.value // 1000}.{number.value % 1000 // 10}" if cuda.cuDriverGetVersion(ctypes.byref(number)) == 0 else None


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
