"""Which devices work here, and which one to take: packages, driver, card, and a trial that really runs on it.

Every reason why one does not names what mends it. It knows nothing of bundles, but what graphs are lowered for; how a graph is
opened on a device is `session`'s.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from mmada_lite.errors import Error
from mmada_lite.ort.session import (
    OPENVINO,
    PROVIDERS,
    RTX_PLUGIN,
    Device,
    first_line,
    onnxruntime_package,
    open_session,
)

DEVICES = ("auto", *PROVIDERS)
_OLD_DRIVER = "driver version is insufficient"  # what CUDA says
DRIVER = "install NVIDIA's driver for this card (and in a container, pass the card into it)"
# What `auto` tries, best first, by what the graphs are lowered for. int8 with rounded activations is a form for CPUs alone.
_BEST: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **{"cpu": ("cuda", "cpu"), "cuda": ("cuda", "cpu"), "tensorrt": ("rtx", "tensorrt", "cpu")},
        **{"openvino": ("openvino", "cpu"), "integers": ("cpu",)},
    }
)


def choose_device(name: str = "auto", lowered_for: str = "cpu") -> Device:
    """Find the device `name`. "auto" takes the best one that works for graphs lowered so, and says which and why.

    lowered_for: a bundle's target, or "integers" for int8 graphs that round activations. Raises Error for an unknown name,
    or for a device that is asked for and does not work here: never another one in silence.
    """
    if name not in DEVICES:
        raise Error(f"no device is called {name!r}; use one of {', '.join(DEVICES)}")
    onnxruntime_package()
    if name != "auto":
        if (why := fault(name)) is not None:
            raise Error(why)
        return Device(name, "asked for")
    passed_over: list[str] = []
    for candidate in _BEST[lowered_for]:
        if (why := fault(candidate)) is None:
            return Device(candidate, _reason(candidate, lowered_for, passed_over))
        passed_over.append(why)
    raise AssertionError("the CPU always works")


def fault(device: str) -> str | None:
    """Why a device cannot be used here and what mends it; None when a small graph really ran on it."""
    provider = PROVIDERS[device]
    if device == "cpu":
        return None
    if (lacking := not_installed(device)) is not None:
        return lacking
    if device.startswith(OPENVINO):
        from mmada_lite.ort import openvino

        if (no_device := openvino.absent(device)) is not None:
            return no_device
        return _tried(device)
    from mmada_lite.ort import nvidia  # a CPU does without, and is found sooner

    if nvidia.version() is None:
        return f"there is no NVIDIA driver here ({nvidia.LIBRARY}), which {provider.what} needs; {DRIVER}"
    if not nvidia.cards():
        return f"the NVIDIA driver finds no card; {DRIVER}"
    return _tried(device)


def _tried(device: str) -> str | None:
    try:
        trial(device)
    except Exception as error:  # onnxruntime's own errors share no base class
        what = PROVIDERS[device].what
        if _OLD_DRIVER in str(error.__cause__ or error).lower():
            from mmada_lite.ort import nvidia

            has = nvidia.version()
            return (
                f"{what} here is built for a newer CUDA than the {has} that this NVIDIA driver runs; install a newer driver, "
                f"or an onnxruntime-gpu for CUDA {(has or '12').split('.')[0]}"
            )
        return f"{what} does not run here: {first_line(error.__cause__ or error)}; try `mmada-lite doctor`"
    return None


def not_installed(device: str) -> str | None:
    """What must be installed for a device, with the line; None when its package is there."""
    provider = PROVIDERS[device]
    if device.startswith(OPENVINO):
        from mmada_lite.ort import openvino

        return openvino.lacking()
    if device == "rtx":
        there = find_spec(RTX_PLUGIN) is not None
    else:
        there = provider.name in onnxruntime_package().get_available_providers()
    return None if there else f"onnxruntime here has no {provider.what} provider; {provider.install}"


def trial(device: str) -> None:
    """Open the smallest graph on the device and run it. Raises whatever goes wrong."""
    from mmada_lite.ort.device_graphs import FLOAT, join_graph

    session: Any
    if device.startswith(OPENVINO):
        from mmada_lite.ort import openvino

        session = openvino.Session(join_graph(FLOAT), openvino.Compiling(device, 1))
    else:
        session = open_session(join_graph(FLOAT), Device(device, "a trial"), 1)
    one = np.ones((1, 1, 1), dtype=np.float32)
    (joined,) = session.run(None, {"a": one, "b": one})
    if joined.shape != (2, 1, 1):
        raise RuntimeError(f"it joined two numbers to an array of shape {joined.shape}")


def rtx_version() -> str:
    """The version of TensorRT-RTX in its wheel, "1.7.1", by the name of its library; "" where there is none."""
    spec = find_spec(RTX_PLUGIN)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    libraries = [path.name for folder in folders for path in Path(folder).glob("libtensorrt_rtx.so.*.*")]
    return libraries[0].partition(".so.")[2] if libraries else ""


def _reason(chosen: str, lowered_for: str, passed_over: list[str]) -> str:
    what = PROVIDERS[chosen].what
    if lowered_for == "integers":
        return "int8 with rounded activations is a form for CPUs"
    if not passed_over:
        return f"{what} works here, and is the fastest for graphs lowered for {lowered_for}"
    return f"{what} is the best that works: " + "; ".join(why.split(";")[0] for why in passed_over)
