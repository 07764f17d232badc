"""From a bundle to its denoiser on a device: engines where they fit, io binding where the device has memory of its own.

It decides which file a session opens, when, and with which of the provider's settings, and turns running out of memory into a
line with the plan's numbers. What the graphs mean is `denoiser`'s and `bound`'s.
"""

import ctypes
import logging
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from numpy.typing import NDArray

from mmada_lite import memory_plan
from mmada_lite.bundle import Bundle
from mmada_lite.decoding.denoiser import Denoiser, Floats, Head, Prediction, Window
from mmada_lite.decoding.kv_cache import KeyValues
from mmada_lite.errors import Error
from mmada_lite.files import size_in_words
from mmada_lite.ort import devices, engines, nvidia
from mmada_lite.ort.denoiser import OnnxDenoiser
from mmada_lite.ort.device_denoiser import DeviceDenoiser
from mmada_lite.ort.engines import ENGINES_OF, Profile, input_dims, profiles_for, profiles_of
from mmada_lite.ort.session import Device, OutOfMemory, choose_device, giving_back, is_out_of_memory, open_session

if TYPE_CHECKING:
    import onnxruntime
from mmada_lite.ort.session import exact_int8

_log = logging.getLogger("mmada_lite")
Result = TypeVar("Result")


def device_for(bundle: Bundle, name: str) -> Device:
    """`choose_device` for what the bundle is lowered for."""
    rounds = any(group.activation for group in bundle.quantization.values())
    device = choose_device(name, "integers" if rounds else bundle.target)
    _log.info("%s runs on %s: %s", bundle.name, device.name, device.reason)
    return device


class LazyDenoiser:
    """A denoiser that is opened when it is first asked: a picture is read, its tokenizer closed, before the weights come."""

    def __init__(self, open_it: Callable[[], Denoiser]) -> None:
        self._open = open_it
        self._opened: Denoiser | None = None

    def forward(self, window: Window, *, keep: bool) -> tuple[Floats, KeyValues | None]:
        return self.opened.forward(window, keep=keep)

    def predict(self, head: Head, hidden: Floats, mix: Floats, temperature: float, uniform: Floats | None) -> Prediction:
        return self.opened.predict(head, hidden, mix, temperature, uniform)

    def logits(self, head: Head, hidden: Floats, mix: Floats) -> Floats:
        return self.opened.logits(head, hidden, mix)

    @property
    def opened(self) -> Denoiser:
        if self._opened is None:
            self._opened = self._open()
        return self._opened


class TransientSession:
    """A graph that is opened for each run and closed behind it, in the place of a session."""

    def __init__(self, open_it: "Callable[[], onnxruntime.InferenceSession]") -> None:
        self._open = open_it

    def run(self, outputs: Sequence[str] | None, feeds: Mapping[str, NDArray]) -> list[NDArray]:
        found = self._run_once(outputs, feeds)
        give_back_freed_memory()
        return found

    def _run_once(self, outputs: Sequence[str] | None, feeds: Mapping[str, NDArray]) -> list[NDArray]:
        found: list[NDArray] = self._open().run(outputs, feeds)
        return found


def give_back_freed_memory() -> None:
    """Ask the C library to return what was freed to the system; does nothing where it cannot (glibc's malloc_trim)."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def is_large(bundle: Bundle, device: Device) -> bool:
    return device.name == "cpu" and sum(group.bytes or 0 for group in bundle.quantization.values()) >= memory_plan.LARGE


def open_codec(bundle: Bundle, device: Device, threads: int | None = None) -> tuple[Any, Any]:
    """Encoder and decoder of the image tokenizer. Those of a large model are open only while they run, on a CPU: at 8B they
    would hold 2 GB beside the transformer."""
    names = ("image_encoder", "image_decoder")
    if is_large(bundle, device):
        encoder, decoder = (TransientSession(partial(open_graph, bundle, name, device, threads)) for name in names)
        return encoder, decoder
    return open_graph(bundle, names[0], device, threads), open_graph(bundle, names[1], device, threads)


def open_denoiser(
    bundle: Bundle, device: Device, threads: int | None = None, wrap: Callable[[str, Any], Any] = lambda graph, session: session
) -> Denoiser:
    """The transformer of a bundle; a large one on a CPU when it is first asked. wrap: puts something around a graph's session,
    such as a clock. Raises Error, then, when a graph does not load or memory does not suffice."""
    if is_large(bundle, device):
        return LazyDenoiser(partial(_open_denoiser, bundle, device, threads, wrap))
    return _open_denoiser(bundle, device, threads, wrap)


def _open_denoiser(bundle: Bundle, device: Device, threads: int | None, wrap: Callable[[str, Any], Any]) -> Denoiser:
    shape, cpu = bundle.architecture, Device("cpu", "its table is mapped from disk")
    names = [name for name in ("embedder", "backbone", "text_head", "image_head") if name in bundle.graphs]
    places = {name: cpu if name == "embedder" else device for name in names}
    if is_large(bundle, device):  # to pack a graph's weights is one thread's work, and others may run meanwhile
        with ThreadPoolExecutor(len(names)) as pool:
            found = pool.map(lambda name: open_graph(bundle, name, places[name], threads), names)
            opened = dict(zip(names, found, strict=True))
    else:
        opened = {name: open_graph(bundle, name, place, threads) for name, place in places.items()}
    sessions = {name: wrap(name, session) for name, session in opened.items()}
    guard = _guard(bundle, device)
    if device.name == "cpu":
        sparing = (memory_plan.LOGITS, giving_back()) if is_large(bundle, device) else ()
        return OnnxDenoiser(sessions, shape.n_layers, shape.n_kv_heads, shape.head_dim, guard, *sparing)
    sizes = (shape.n_layers, shape.n_kv_heads, shape.head_dim)
    return DeviceDenoiser(sessions, sizes, device.memory, lambda graph: open_session(graph, device, threads), guard)


def threads_of(graph: str, threads: int | None) -> int | None:
    """The threads of one graph's session: the embedder looks a table up, and other threads would only be woken for it."""
    return 1 if graph == "embedder" else threads


def open_graph(bundle: Bundle, graph: str, device: Device, threads: int | None = None) -> "onnxruntime.InferenceSession":
    """One graph of a bundle on a device, by its engine where one fits."""
    path = bundle.graph_path(graph)
    with_plan = _guard(bundle, device)
    threads = threads_of(graph, threads)
    if device.name in ("rtx", "tensorrt") and graph in ENGINES_OF:
        return with_plan(lambda: _ENGINES[device.name](bundle, graph, device, threads))
    return with_plan(lambda: open_session(path, device, threads))


def _open_rtx(bundle: Bundle, graph: str, device: Device, threads: int | None) -> "onnxruntime.InferenceSession":
    """The engine that was built ahead of time; without one the provider builds its own, which is said."""
    key, said = engines.find(bundle, graph, nvidia.cards()[0].compute_capability, version=devices.rtx_version())
    if key is not None:
        several = {"nv_multi_profile_enable": "1"} if "+" in key.profile else {}
        return open_session(engines.host_graph_path(bundle, key), device, threads, several)
    _log.warning("%s: it is built now, which takes a while; `mmada-lite export %s --engine rtx` keeps it", said, bundle.path)
    return open_session(bundle.graph_path(graph), device, threads, _shapes(bundle, graph, "nv_profile_{}_shapes"))


def _open_tensorrt(bundle: Bundle, graph: str, device: Device, threads: int | None) -> "onnxruntime.InferenceSession":
    """TensorRT's provider keeps its engines in a folder of the card; what it cannot read there is built anew, which is said."""
    capability = nvidia.cards()[0].compute_capability
    key, _ = engines.find(bundle, graph, capability, "tensorrt")
    if key is not None:
        return open_session(engines.host_graph_path(bundle, key), device, threads)
    cache = bundle.path / engines.FOLDER / f"tensorrt-sm{capability.replace('.', '')}" / graph
    settings = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(cache), "trt_timing_cache_enable": "1"}
    settings |= {"trt_timing_cache_path": str(cache), "trt_fp16_enable": "1"} | _shapes(bundle, graph, "trt_profile_{}_shapes")
    fresh = not _make_room(cache)
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
        _make_room(cache)
        return open_session(bundle.graph_path(graph), device, threads, settings)


_ENGINES: dict[str, Callable[[Bundle, str, Device, int | None], Any]] = {"rtx": _open_rtx, "tensorrt": _open_tensorrt}


def _make_room(cache: Path) -> bool:
    """Make the folder; returns whether engines are in it."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Error(f"engines cannot be kept in {cache} ({error.strerror}); copy the bundle where you may write") from error
    return any(cache.iterdir())


def _shapes(bundle: Bundle, graph: str, option: str) -> dict[str, str]:
    """The profile that spans everything, as the providers' options want it: `embeddings:1x1x4096,positions:1x1,...`."""
    profiles = profiles_of(graph, profiles_for(bundle))
    return {option.format(word): _joined(bundle, graph, profiles, which) for which, word in enumerate(("min", "opt", "max"))}


def _joined(bundle: Bundle, graph: str, profiles: Sequence[Profile], which: int) -> str:
    shapes = {name: profiles[0].shape(dims, which) for name, dims in input_dims(bundle, graph).items()}
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


def _guard(bundle: Bundle, device: Device) -> Callable[[Callable[[], Any]], Any]:
    """Runs something; when memory runs out, one line says so with what the plan counts."""

    def run(call: Callable[[], Result]) -> Result:
        try:
            return call()
        except Exception as error:  # onnxruntime's own errors share no base class
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(f"{bundle.path.name} ran out of memory on {device.name}: {_plan(bundle, device)}") from error

    return run


def _plan(bundle: Bundle, device: Device) -> str:
    """What the plan counts, what there is, and what to do."""
    counted = memory_plan.need(
        memory_plan.Shape.of(bundle),
        bundle.quantization,
        bundle.text_defaults,
        device=device.name,
        target=bundle.target,
        image=bundle.image_defaults,
    )
    parts, peak = (counted.host, counted.peak) if device.name == "cpu" else (counted.card, counted.card_peak)
    listed = ", ".join(f"{name} {size_in_words(size)}" for name, size in parts.items() if size)
    cards = nvidia.cards() if device.name != "cpu" else ()
    has = f", and {cards[0].name} has {size_in_words(cards[0].memory)}" if cards else ""
    return (
        f"the plan counts {size_in_words(peak)} ({listed}){has}; use a smaller --precision, a shorter answer, or another "
        f"device (`mmada-lite plan -m {bundle.path}` compares)"
    )


def warn_where_slow(bundle: Bundle, device: Device) -> None:
    """Say aloud where a bundle will be slow on this device."""
    dynamic = any(group.activation for group in bundle.quantization.values())
    fits = device.name in ("rtx", "tensorrt") if bundle.target == "tensorrt" else not dynamic or device.name == "cpu"
    if not fits:
        _log.warning(
            "%s is made for %s and will be slow on %s; export it with --target %s",
            *(bundle.path.name, bundle.target, device.name, "tensorrt" if device.name == "rtx" else device.name),
        )
    elif dynamic and not exact_int8():
        _log.warning(
            "%s multiplies in int8, for which this processor (it has no VNNI) needs kernels of half the speed; "
            "--precision int4, or --store backbone=int8-b128 and the same for the heads, may be faster here",
            bundle.path.name,
        )
