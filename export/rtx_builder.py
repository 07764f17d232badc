"""TensorRT-RTX as a function: an ONNX graph, profiles and compute capabilities in, the bytes of an engine out. Needs no GPU.

The libraries come in the wheel of onnxruntime's plugin provider and must be loaded before the bindings. It knows TensorRT's
builder and nothing of bundles or of where engines are kept.
"""

import ctypes
import logging
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmada_lite.errors import Error
from mmada_lite.ort.engines import TOGETHER, Profile
from mmada_lite.ort.nvidia import FP8_SINCE, at_least
from mmada_lite.ort.session import RTX_PLUGIN

Progress = Callable[[float], None]  # share done, 0..1
INSTALL = 'pip install "mmada-lite[rtx-build]"'
_BINDINGS = "tensorrt_rtx_bindings"
_LIBRARIES = ("libcudart.so.13*", "libtensorrt_rtx.so.1*", "libtensorrt_onnxparser_rtx.so.1*")
_LEAST = "8.6"  # compute capability of the oldest cards that onnxruntime's provider runs on
_log = logging.getLogger("mmada_lite")
_NO_DRIVER = "CUDA driver version is insufficient"  # said where there is no GPU, which building does not need


def missing() -> str | None:
    """What building engines lacks here, with the line that installs it; None when it lacks nothing."""
    absent = [name for name in (RTX_PLUGIN, _BINDINGS) if find_spec(name) is None]
    return f"building engines needs {' and '.join(absent)}; {INSTALL}" if absent else None


def version() -> str:
    """Program and version, as an engine's key says it."""
    return f"tensorrt-rtx {_bindings().__version__}"


def capabilities() -> list[str]:
    """Compute capabilities that engines can be built for without their card, "8.9" and so on."""
    names = [name for name in _bindings().ComputeCapability.__members__ if name.startswith("SM")]
    return [f"{name[2:-1]}.{name[-1]}" for name in names]


def every_card(*, fp8: bool = False) -> str:
    """The compute capabilities of all cards that onnxruntime's provider runs on, as `build` takes them: an engine for all of
    them is no larger than one for one (docs/lab/benchmarks.md). fp8: of those that read such weights."""
    return TOGETHER.join(each for each in capabilities() if at_least(each, FP8_SINCE if fp8 else _LEAST))


def build(graph: Path, profiles: Sequence[Profile], capability: str, progress: Progress) -> Any:
    """The engine of a graph as a buffer, for one compute capability or for several, joined by "+". Raises Error when TensorRT
    cannot read or build it, saying what it said."""
    trt = _bindings()
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        reasons = "; ".join(str(parser.get_error(number).desc()) for number in range(parser.num_errors))
        raise Error(f"TensorRT-RTX cannot read {graph}: {reasons[:300]}; export it with --target tensorrt")
    config = builder.create_builder_config()
    wanted = [_capability(trt, each) for each in capability.split(TOGETHER)]
    config.num_compute_capabilities = len(wanted)
    for number, each in enumerate(wanted):
        config.set_compute_capability(each, number)
    for profile in profiles:
        _add_profile(builder, network, config, profile)
    config.progress_monitor = monitor = _monitor(trt, progress)
    engine = builder.build_serialized_network(network, config)
    monitor.raise_if_interrupted()
    if engine is None:
        raise Error(f"TensorRT-RTX cannot build {graph} for {capability}: {logger.last or 'it gave no reason'}")
    return engine


def _add_profile(builder: Any, network: Any, config: Any, profile: Profile) -> None:
    shapes = builder.create_optimization_profile()
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        dims = [tensor.get_dimension_name(axis) if size == -1 else size for axis, size in enumerate(tensor.shape)]
        if dims:
            shapes.set_shape(tensor.name, *(profile.shape(dims, which) for which in range(3)))
    config.add_optimization_profile(shapes)


def require_known(capability: str, *, fp8: bool = False) -> None:
    """Raise Error where one of the compute capabilities, joined by "+", is none that engines are built for, of cards that
    onnxruntime's provider does not run on, or, with fp8, of cards that do not read such weights."""
    known, able = every_card().split(TOGETHER), every_card(fp8=True)
    for each in capability.split(TOGETHER):
        if fp8 and each in known and each not in able.split(TOGETHER):
            raise Error(
                f"weights in fp8 are for compute capability {able.replace(TOGETHER, ', ')}, and not for {each}; leave "
                f"--compute-capability {each} out, or export with --precision int8"
            )
        if each not in known:
            raise Error(f"TensorRT-RTX builds nothing for compute capability {each}; use one of {', '.join(known)}")


def _capability(trt: Any, capability: str) -> Any:
    member = trt.ComputeCapability.__members__.get(f"SM{capability.replace('.', '')}")
    if member is None or "." not in capability:
        raise Error(f"TensorRT-RTX builds nothing for compute capability {capability}; use one of {', '.join(capabilities())}")
    return member


def _bindings() -> Any:
    if (lacking := missing()) is not None:
        raise Error(lacking)
    spec = find_spec(RTX_PLUGIN)
    assert spec is not None, "looked for above"
    assert spec.submodule_search_locations is not None, "it is a package"
    folder = Path(next(iter(spec.submodule_search_locations)))
    for pattern in _LIBRARIES:
        libraries = sorted(folder.glob(pattern))
        if not libraries:
            raise Error(f"{folder} holds no {pattern}; install it again: {INSTALL}")
        ctypes.CDLL(str(libraries[-1]), mode=ctypes.RTLD_GLOBAL)
    import tensorrt_rtx_bindings

    return tensorrt_rtx_bindings


def _logger(trt: Any) -> Any:
    """TensorRT's messages in our log; `last` is the last that was an error."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR and _NO_DRIVER not in message:
                self.last = message[:300]
            _log.debug("TensorRT-RTX: %s", message)

    return Logger()


def _monitor(trt: Any, progress: Progress) -> Any:
    """Share of the outermost phase that is done. What the caller raises there (Ctrl-C) ends the build and is raised again."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.outermost, self.steps = "", 1
            self.interruption: BaseException | None = None

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if not parent:
                self.outermost, self.steps = phase, max(1, steps)

        def phase_finish(self, phase: str) -> None:
            self._tell(1.0 if phase == self.outermost else None)

        def step_complete(self, phase: str, step: int) -> bool:
            self._tell((step + 1) / self.steps if phase == self.outermost else None)
            return self.interruption is None

        def _tell(self, share: float | None) -> None:
            try:
                if share is not None:
                    progress(min(1.0, share))
            except BaseException as error:  # it may not pass through TensorRT's own frames
                self.interruption = error

        def raise_if_interrupted(self) -> None:
            if self.interruption is not None:
                raise self.interruption

    return Monitor()
