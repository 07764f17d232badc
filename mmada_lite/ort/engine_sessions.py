"""A transformer's graph on a card by its TensorRT engine: built ahead of time where one fits, else by the provider, aloud.

It knows the providers' options for it; which engines a bundle has is `engines`' business.
"""

import logging
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mmada_lite.bundle import Bundle
from mmada_lite.errors import Error
from mmada_lite.ort import devices, engines, nvidia
from mmada_lite.ort.session import Device, OutOfMemory, open_session

if TYPE_CHECKING:
    import onnxruntime

# TensorRT-RTX then captures what it runs, and again where a shape or an address is another, that of its own memory too: so that
# is kept between runs. Ids of runs, and profiles other than the first, its plugin 0.5 does not read (docs/lab/benchmarks.md).
_CAPTURED = {"enable_cuda_graph": "1", "nv_persistent_context_memory": "1"}
_log = logging.getLogger("mmada_lite")


def open_engine(
    bundle: Bundle, graph: str, device: Device, threads: int | None, *, captured: bool = False
) -> "onnxruntime.InferenceSession":
    """The session of a graph in `engines.ENGINES_OF` on rtx or tensorrt. captured: its steps are to be, as `loader.captures`
    says. Raises Error when it does not load, OutOfMemory when there is no room."""
    engine: onnxruntime.InferenceSession = _OPENERS[device.name](bundle, graph, device, threads, captured)
    return engine


def _open_rtx(
    bundle: Bundle, graph: str, device: Device, threads: int | None, captured: bool
) -> "onnxruntime.InferenceSession":
    """The engine that was built ahead of time; without one the provider builds its own, which is said. The kernels that it
    compiles for the card are kept."""
    capability, here = nvidia.cards()[0].compute_capability, devices.rtx_version()
    key, why = engines.find(bundle, graph, capability, version=here)
    kept = engines.kernel_folder(bundle, graph, capability, f"tensorrt-rtx {here}", nvidia.driver())
    settings = ({"nv_runtime_cache_path": str(kept)} if kept else {}) | (_CAPTURED if captured else {})
    if key is not None:
        settings |= {"nv_multi_profile_enable": "1"} if "+" in key.profile else {}
        return _open_built(bundle, key, device, threads, settings, f"mmada-lite export {bundle.path} --engine rtx")
    _log.warning("%s: it is built now, which takes a while; `mmada-lite export %s --engine rtx` keeps it", why, bundle.path)
    settings |= engines.shape_options(bundle, graph, "nv_profile_{}_shapes")
    return open_session(bundle.graph_path(graph), device, threads, settings)


def _open_tensorrt(
    bundle: Bundle, graph: str, device: Device, threads: int | None, captured: bool
) -> "onnxruntime.InferenceSession":
    """TensorRT's provider keeps its engines in a folder of the card; what it cannot read there is built anew, which is said. It
    captures nothing: it would take what a session runs second, for good."""
    assert not captured, "TensorRT's provider has one graph a session"
    capability, here = nvidia.cards()[0].compute_capability, nvidia.tensorrt_version()
    key, why = engines.find(bundle, graph, capability, "tensorrt", here)
    if key is not None:
        return _open_built(bundle, key, device, threads, {}, f"python -m mmada_lite.export.jetson {bundle.path}")
    if why != engines.none_built(graph):
        _log.warning("%s: `python -m mmada_lite.export.jetson %s` builds one for this TensorRT and card", why, bundle.path)
    built_with = here, nvidia.driver()
    cache = engines.provider_folder(bundle, graph, capability, *built_with)
    settings = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(cache), "trt_timing_cache_enable": "1"}
    settings |= {"trt_timing_cache_path": str(cache), "trt_fp16_enable": "1"}
    settings |= engines.shape_options(bundle, graph, "trt_profile_{}_shapes")
    fresh = not any(cache.iterdir())
    if fresh:
        _log.warning("%s: TensorRT builds its engine for compute capability %s now, which takes a while", graph, capability)
    try:
        return open_session(bundle.graph_path(graph), device, threads, settings)
    except OutOfMemory:
        raise
    except Error as error:
        if fresh:
            raise
        _log.warning("the engines in %s are corrupt or of another TensorRT (%s): building them anew", cache, error)
        shutil.rmtree(cache)
        engines.provider_folder(bundle, graph, capability, *built_with)
        return open_session(bundle.graph_path(graph), device, threads, settings)


def _open_built(
    bundle: Bundle, key: engines.EngineKey, device: Device, threads: int | None, settings: dict[str, str], mend: str
) -> "onnxruntime.InferenceSession":
    """An engine that was built ahead of time. mend: the command that builds it anew. Raises Error that names it where the
    provider refuses the engine: it never runs another one, or on another device, in its place."""
    try:
        return open_session(engines.host_graph_path(bundle, key), device, threads, settings)
    except OutOfMemory:
        raise
    except Error as error:
        path = engines.engine_path(bundle, key)
        raise Error(f"{path.name} is refused on {device.name} ({error}); remove {path} and run `{mend}`") from error


_OPENERS: dict[str, Callable[[Bundle, str, Device, int | None, bool], Any]] = {"rtx": _open_rtx, "tensorrt": _open_tensorrt}
