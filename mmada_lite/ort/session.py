"""One onnxruntime session: a graph opened on a device, with the options that this project runs with.

`open_session` is the one place where a session is made. It knows onnxruntime's providers and their options, and says in one
line what keeps a graph from loading; which devices work here is `devices`' business, which graphs a model has is `loader`'s.
"""

import logging
import os
import platform
import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mmada_lite.errors import Error
from mmada_lite.ort.cores import usable_cores

if TYPE_CHECKING:
    import onnxruntime

OPENVINO = "openvino"  # how the devices of its own runtime begin
RTX_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
_CPU = "CPUExecutionProvider"
_CUDA_OPTIONS = {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}  # no memory put aside
# Products of half precision and int4 or int8 by one kernel, which onnxruntime has to be asked for. Weights are laid out for it
# in the place of what was read, and not beside it.
_CUDA_SESSION = {"ep.cuda.fpa_intb_gemm": "1", "session.use_device_allocator_for_initializers": "1"}
_TRIED_ROWS = "ep.cuda.fpa_intb_profile_m"  # rows for which that kernel's fastest form is looked for when a graph is opened
CAPTURING = {"enable_cuda_graph": "1"}  # a setting of CUDA's provider
# Of onnxruntime: copies within a captured step outlive it (its pull requests 32120 and 32121), and memory of ours is that of a
# plugin's device.
CAPTURES_SINCE = (1, 31)
_OPENS_EARLIER = (1, 30)  # of onnxruntime: int8 graphs of before `MIDDLE`, on x86 without VNNI
_FATAL = 4  # onnxruntime's number of what it logs at least: its errors are raised, and said by us
_OUT_OF_MEMORY = re.compile(
    r"out of memory|failed to allocate|OUT_OF_MEMORY|cudaErrorMemoryAllocation|bad.?alloc", re.IGNORECASE
)
IN_BF16 = "weights_in_bf16"  # a graph's metadata, where it has such weights
MIDDLE = ".middle"  # ends the names of constants that every product of integers has in graphs as they are written now
NARROW_CODES = "codes_within"  # a graph's metadata: the largest code of its integer weights, where sums of pairs fit 16 bits
PACKED = "weight_prepacked"  # an attribute of products whose weights are laid out for CUDA's kernels alone
_TELEMETRY = "ORT_DISABLE_TELEMETRY"  # onnxruntime reads it while it loads, and never again
# How long threads without work stay awake: for the next operation of a run, which comes at once, but not while a process that
# took their core is waited for, nor when the run has ended. onnxruntime before 1.26 knows the second alone.
_SPINNING = {"session.intra_op.spin_duration_us": "20", "session.force_spinning_stop": "1"}
_log = logging.getLogger("mmada_lite")


class OutOfMemory(Error):
    """The device, or the machine, has no room for what was to be done."""


@dataclass(frozen=True, slots=True)
class Provider:
    """A device as onnxruntime knows it, or as OpenVINO's own runtime does.

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
        return line if self.extra in ("cpu", "rtx", "openvino") else f"in an environment of its own: {line}"


PROVIDERS: Mapping[str, Provider] = MappingProxyType(
    {
        "cpu": Provider(_CPU, "CPU", "cpu", "cpu"),
        "cuda": Provider("CUDAExecutionProvider", "CUDA", "cuda", "cuda", (_CPU,)),
        "rtx": Provider("NvTensorRTRTXExecutionProvider", "TensorRT-RTX", "rtx", "cuda", (_CPU,)),
        "tensorrt": Provider("TensorrtExecutionProvider", "TensorRT", "tensorrt", "cuda", ("CUDAExecutionProvider", _CPU)),
        "openvino": Provider("OpenVINO CPU", "OpenVINO", "openvino", "cpu"),
        "openvino:gpu": Provider("OpenVINO GPU", "OpenVINO on Intel's GPU", "openvino", "cpu"),
        "openvino:npu": Provider("OpenVINO NPU", "OpenVINO on Intel's NPU", "openvino", "cpu"),
    }
)


@dataclass(frozen=True, slots=True)
class Device:
    """A device that was asked for and found. `reason` says why, in words for a person."""

    name: str
    reason: str

    @property
    def providers(self) -> list[str]:
        provider = PROVIDERS[self.name]
        return [provider.name, *provider.beside]

    @property
    def memory(self) -> str:
        """Where its tensors lie, in the words of onnxruntime's io binding."""
        return PROVIDERS[self.name].memory

    @property
    def by_openvino(self) -> bool:
        return self.name.startswith(OPENVINO)


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a session works on the CPU. arena: memory is kept for the next run; raw: neither optimized nor packed, since it is
    only looked at; keep: where the graph is written as it is run here, optimized and packed; packed: it was written so."""

    arena: bool = True
    raw: bool = False
    keep: Path | None = None
    packed: bool = False


TUNED = Tuning()


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
    options = _options(graph, device.name, threads, tuning, profile)
    name = graph.name if isinstance(graph, Path) else "a graph of our own"
    try:
        session = _create(str(graph) if isinstance(graph, Path) else graph, device.name, options, settings)
    except Exception as error:  # onnxruntime's own errors share no base class
        kind = OutOfMemory if is_out_of_memory(error) else Error
        where = graph if isinstance(graph, Path) else name
        raise kind(f"onnxruntime cannot load {where}: {first_line(error)}") from error
    got = session.get_providers()[0]
    if got != device.providers[0]:
        raise Error(f"{name} was to run on {device.name} but onnxruntime chose {got}; check driver and CUDA libraries")
    _log.debug("%s opened on %s", name, device.name)
    opened: onnxruntime.InferenceSession = session
    return opened


def onnxruntime_package() -> Any:
    """The package, with its telemetry off: nothing else of ours imports it. Raises Error with the install line when it is
    absent."""
    if find_spec("onnxruntime") is None:
        raise Error('onnxruntime is not installed; pip install "mmada-lite[cpu]" (or [cuda] for an NVIDIA GPU)')
    _switch_telemetry_off()
    import onnxruntime

    return onnxruntime


def _switch_telemetry_off() -> None:
    """For this process and those that it starts, unless the user chose. Where a host program has loaded onnxruntime before, a
    warning is all that is left; the variable keeps it from being said again."""
    if _TELEMETRY in os.environ:
        return
    version = re.match(r"(\d+)\.(\d+)", str(getattr(sys.modules.get("onnxruntime"), "__version__", "")))
    if version and sys.platform == "linux" and tuple(map(int, version.groups())) >= (1, 29):
        _log.warning(
            "onnxruntime was imported with its telemetry on, which cannot be changed in this process; to switch it off, "
            "set %s=1 before the program starts, or import onnxruntime after mmada_lite.load",
            _TELEMETRY,
        )
    os.environ[_TELEMETRY] = "1"


def captures_here() -> bool:
    """Whether the onnxruntime here captures a step of a card so that it can be replayed after others."""
    return _version() >= CAPTURES_SINCE


def _version() -> tuple[int, ...]:
    """Of onnxruntime: major and minor, or nothing where it is written in another way."""
    found = re.match(r"(\d+)\.(\d+)", str(onnxruntime_package().__version__))
    return () if found is None else tuple(map(int, found.groups()))


def run_without_arena() -> "onnxruntime.RunOptions":
    """Options of a run on a CPU behind which its session keeps none of the memory that it took beside the weights."""
    options = onnxruntime_package().RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of onnxruntime, CUDA or the system means that memory ran out."""
    return isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)) is not None


def first_line(error: BaseException) -> str:
    """What an error says, short enough for a line."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:240]


def exact_int8() -> bool:
    """Whether onnxruntime's fast kernels, and OpenVINO's, add up products of int8 exactly on this processor.

    On x86 without VNNI they add pairs of them in 16 bits, which can overflow. Where the system does not say: yes.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    flags = processor_flags()
    return not flags or bool({"avx512_vnni", "avx_vnni"} & flags)


def bf16_products() -> bool:
    """Whether this processor multiplies numbers in bf16. Where the system does not say: no."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & processor_flags())


def processor_flags() -> set[str]:
    """What the system says that the processor can, as Linux spells it; empty where it says nothing."""
    try:
        said = re.findall(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return set()
    return set(said[0].split()) if said else set()


def _options(graph: Path | bytes, device: str, threads: int | None, tuning: Tuning, profile: Path | None) -> Any:
    options = onnxruntime_package().SessionOptions()
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    options.enable_cpu_mem_arena = tuning.arena
    if tuning.raw or tuning.packed:
        options.graph_optimization_level = onnxruntime_package().GraphOptimizationLevel.ORT_DISABLE_ALL
    if tuning.keep is not None:
        options.optimized_model_filepath = str(tuning.keep)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{tuning.keep.stem}.bin")
        options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    if tuning.raw:
        options.add_session_config_entry("session.disable_prepacking", "1")
    for name, value in (_SPINNING | (_cuda_keys(graph) if device == "cuda" else {})).items():
        options.add_session_config_entry(name, value)
    if platform.machine() == "aarch64" and bf16_products() and holds(graph, IN_BF16):
        options.add_session_config_entry("mlas.enable_gemm_fastmath_arm64_bfloat16", "1")  # products in bf16, as was asked for
    if _can_overflow(graph) and not exact_int8():
        if isinstance(graph, Path) and not holds(graph, MIDDLE) and _version() < _OPENS_EARLIER:
            raise Error(
                f"{graph} was exported by an earlier version, and onnxruntime {onnxruntime_package().__version__} ends the "
                'program when it opens that on this processor; export the model again, or pip install -U "onnxruntime>=1.30"'
            )
        options.add_session_config_entry("session.x64quantprecision", "1")  # slower kernels whose sums do not overflow
    return options


def _cuda_keys(graph: Path | bytes) -> dict[str, str]:
    """A text's head has the rows of a block alone: to try whole rows would take a whole row of logits."""
    block_alone = isinstance(graph, Path) and graph.name.startswith("text_head")
    return _CUDA_SESSION | {_TRIED_ROWS: "32" if block_alone else "32,1024"}


def _create(graph: str | bytes, device: str, options: Any, settings: Mapping[str, str]) -> Any:
    """A session on a device with the provider's own settings. Raises whatever onnxruntime raises: never another provider."""
    runtime, provider = onnxruntime_package(), PROVIDERS[device]
    if device == "rtx":
        options.add_provider_for_devices(_plugin_devices(runtime), dict(settings))
        return runtime.InferenceSession(graph, options)
    if device != "cpu":
        _preload(runtime)
    own = {"cuda": _CUDA_OPTIONS | (dict(settings) if device == "cuda" else {}), "tensorrt": dict(settings)}
    chosen = [(name, own.get(device if name == provider.name else "cuda", {})) for name in (provider.name, *provider.beside)]
    providers = [name if name == _CPU else (name, provider_options) for name, provider_options in chosen]
    return runtime.InferenceSession(graph, options, providers=providers, enable_fallback=False)


def _preload(runtime: Any) -> None:
    """Let onnxruntime find CUDA and cuDNN in NVIDIA's wheels. It prints what it misses, which belongs into a log."""
    with redirect_stdout(StringIO()) as printed:
        runtime.preload_dlls()
    if printed.getvalue():
        _log.debug("onnxruntime: %s", printed.getvalue().strip())


def _plugin_devices(runtime: Any) -> list[Any]:
    """The cards that the TensorRT-RTX plugin offers; it is registered with onnxruntime at the first call."""
    name = PROVIDERS["rtx"].name
    cards = [device for device in runtime.get_ep_devices() if device.ep_name == name]
    if not cards:
        runtime.register_execution_provider_library(name, import_module(RTX_PLUGIN).get_library_path())
        cards = [device for device in runtime.get_ep_devices() if device.ep_name == name]
    if not cards:
        raise RuntimeError("its plugin finds no card that it supports")
    return cards[:1]


def _can_overflow(graph: Path | bytes) -> bool:
    """Whether a graph multiplies integers, and not by narrow codes alone. Only such a one is opened for exact sums: onnxruntime
    1.32 then fails at a DequantizeLinear without zero points."""
    return holds(graph, "MatMulInteger") and not holds(graph, NARROW_CODES)


def holds(graph: Path | bytes, word: str) -> bool:
    """Whether a word stands in a graph. Of a file that cannot be read the session says what is wrong."""
    try:
        return word.encode() in (graph.read_bytes() if isinstance(graph, Path) else graph)
    except OSError:
        return False
