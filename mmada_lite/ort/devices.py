"""Which of onnxruntime's providers work here: packages, driver, card, and a trial that really runs on it.

Every reason why one does not names what mends it. It knows providers and their options; it knows nothing of bundles, and it
never chooses: that is `sessions`.
"""

import logging
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from mmada_lite.errors import Error
from mmada_lite.ort import nvidia
from mmada_lite.ort.device_graphs import FLOAT, join_graph

_log = logging.getLogger("mmada_lite")
DRIVER = "install NVIDIA's driver for this card (and in a container, pass the card into it)"
_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"


@dataclass(frozen=True, slots=True)
class Provider:
    """A device as onnxruntime knows it.

    name: of the provider; what: in words; extra: of ours, that installs it; memory: where its tensors lie, as onnxruntime's io
    binding says it; beside: providers that take what this one does not.
    """

    name: str
    what: str
    extra: str
    memory: str
    beside: tuple[str, ...] = ()

    @property
    def install(self) -> str:
        """onnxruntime and onnxruntime-gpu overwrite each other, so that what brings the second needs a place of its own."""
        line = f'pip install "mmada-lite[{self.extra}]"'
        return line if self.extra in ("cpu", "rtx") else f"in an environment of its own: {line}"


_CPU = "CPUExecutionProvider"
PROVIDERS: Mapping[str, Provider] = MappingProxyType(
    {
        "cpu": Provider(_CPU, "CPU", "cpu", "cpu"),
        "cuda": Provider("CUDAExecutionProvider", "CUDA", "cuda", "cuda", (_CPU,)),
        "rtx": Provider("NvTensorRTRTXExecutionProvider", "TensorRT-RTX", "rtx", "cuda", (_CPU,)),
        "tensorrt": Provider("TensorrtExecutionProvider", "TensorRT", "tensorrt", "cuda", ("CUDAExecutionProvider", _CPU)),
    }
)
_CUDA_OPTIONS = {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}  # no memory put aside


def onnxruntime() -> Any:
    """The package. Raises Error with the install line when it is absent."""
    if find_spec("onnxruntime") is None:
        raise Error('onnxruntime is not installed; pip install "mmada-lite[cpu]" (or [cuda] for an NVIDIA GPU)')
    import onnxruntime

    return onnxruntime


def fault(device: str) -> str | None:
    """Why a device cannot be used here and what mends it; None when a small graph really ran on it."""
    provider = PROVIDERS[device]
    if device == "cpu":
        return None
    if (lacking := not_installed(device)) is not None:
        return lacking
    if nvidia.version() is None:
        return f"there is no NVIDIA driver here ({nvidia.LIBRARY}), which {provider.what} needs; {DRIVER}"
    if not nvidia.cards():
        return f"the NVIDIA driver finds no card; {DRIVER}"
    try:
        trial(device)
    except Exception as error:  # onnxruntime's own errors share no base class
        return f"{provider.what} does not run here: {first_line(error)}; try `mmada-lite doctor`"
    return None


def not_installed(device: str) -> str | None:
    """What must be installed for a device, with the line; None when its package is there."""
    provider = PROVIDERS[device]
    if device == "rtx":
        there = find_spec(_PLUGIN) is not None
    else:
        there = provider.name in onnxruntime().get_available_providers()
    return None if there else f"onnxruntime here has no {provider.what} provider; {provider.install}"


def open_session(graph: str | bytes, device: str, options: Any, settings: Mapping[str, str] = MappingProxyType({})) -> Any:
    """A session on a device with the provider's own settings. Raises whatever onnxruntime raises: never another provider."""
    runtime, provider = onnxruntime(), PROVIDERS[device]
    if device == "rtx":
        options.add_provider_for_devices(_plugin_devices(), dict(settings))
        return runtime.InferenceSession(graph, options)
    if device != "cpu":
        _preload(runtime)
    own = {"cuda": _CUDA_OPTIONS, "tensorrt": dict(settings)}
    wanted = [(name, own.get(device if name == provider.name else "cuda", {})) for name in (provider.name, *provider.beside)]
    asked = [name if name == _CPU else (name, chosen) for name, chosen in wanted]
    return runtime.InferenceSession(graph, options, providers=asked, enable_fallback=False)


def first_line(error: BaseException) -> str:
    """What an error says, short enough for a line."""
    said = str(error).strip().splitlines()
    return (said[0] if said else type(error).__name__)[:240]


def rtx_version() -> str:
    """The version of TensorRT-RTX in its wheel, "1.7.1", by the name of its library; "" where there is none."""
    spec = find_spec(_PLUGIN)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    found = [path.name for folder in folders for path in Path(folder).glob("libtensorrt_rtx.so.*.*")]
    return found[0].partition(".so.")[2] if found else ""


def _preload(runtime: Any) -> None:
    """Let onnxruntime find CUDA and cuDNN in NVIDIA's wheels. It prints what it misses, which belongs into a log."""
    with redirect_stdout(StringIO()) as said:
        runtime.preload_dlls()
    if said.getvalue():
        _log.debug("onnxruntime: %s", said.getvalue().strip())


def _plugin_devices() -> list[Any]:
    """The cards that the TensorRT-RTX plugin offers; it is registered with onnxruntime at the first call."""
    runtime, name = onnxruntime(), PROVIDERS["rtx"].name
    found = [device for device in runtime.get_ep_devices() if device.ep_name == name]
    if not found:
        runtime.register_execution_provider_library(name, import_module(_PLUGIN).get_library_path())
        found = [device for device in runtime.get_ep_devices() if device.ep_name == name]
    if not found:
        raise RuntimeError("its plugin finds no card that it supports")
    return found[:1]


def trial(device: str) -> None:
    """Open the smallest graph on the device and run it. Raises whatever goes wrong."""
    runtime = onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    session = open_session(join_graph(FLOAT), device, options)
    one = np.ones((1, 1, 1), dtype=np.float32)
    (found,) = session.run(None, {"a": one, "b": one})
    if session.get_providers()[0] != PROVIDERS[device].name or found.shape != (2, 1, 1):
        raise RuntimeError(f"onnxruntime chose {session.get_providers()[0]} in its place")
