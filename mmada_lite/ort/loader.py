"""From a folder to a model that runs, told from top to bottom: the bundle, its device, the graphs' sessions, the denoiser.

It decides what is opened, when, and from which file; every other module of `ort` does one of these steps and calls nothing
here. It says aloud where a bundle will be slow, and turns running out of memory into a line with the plan's numbers. What the
graphs mean is `denoiser`'s and `device_denoiser`'s.
"""

import logging
import platform
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mmada_lite.bundle import FP8_WEIGHTS, LARGE, LOGITS, MANIFEST, PACKED_FOR_CUDA, Bundle
from mmada_lite.decoding.denoiser import Denoiser
from mmada_lite.decoding.settings import ImageSettings, TextSettings, with_speed
from mmada_lite.errors import Error
from mmada_lite.files import size_in_words
from mmada_lite.hashing import Fingerprints, hash_in_background
from mmada_lite.images import Codec
from mmada_lite.ort import devices
from mmada_lite.ort.denoiser import OnnxDenoiser
from mmada_lite.ort.interface import CodecSession, check_interface
from mmada_lite.ort.lazy import LazyDenoiser, SideDenoiser, Sides, SideSession, TransientSession
from mmada_lite.ort.packed import open_packed
from mmada_lite.ort.session import (
    CAPTURES_SINCE,
    CAPTURING,
    OPENVINO,
    Device,
    OutOfMemory,
    Tuning,
    bf16_products,
    captures_here,
    first_line,
    holds,
    is_out_of_memory,
    open_session,
    run_without_arena,
)
from mmada_lite.vocabulary import Tokenizer

if TYPE_CHECKING:
    import onnxruntime

FUSED = "SkipSimplifiedLayerNormalization"  # an operator of backbones that are written for CUDA, in whose steps nothing waits
_CODEC = ("image_encoder", "image_decoder")
# What CUDA says behind which nothing of this process can use the card any more.
_GONE = re.compile(
    r"illegal memory access|IllegalAddress|CUDA failure 7\d\d|launch failure|device-side assert|ContextIsDestroyed", re.I
)
_CPU = Device("cpu", "its table is mapped from disk")  # where the embedder runs, whatever the device
_log = logging.getLogger("mmada_lite")

Result = TypeVar("Result")
Wrap = Callable[[str, Any], Any]  # a graph's name and its session -> what is used in the session's place


@dataclass(slots=True)
class OpenBundle:
    """A bundle on a device, ready to run. `fingerprints` tells whether its files are still those that were opened;
    `await_hashes` raises Error where their bytes are not those that bundle.json says."""

    bundle: Bundle
    text_defaults: TextSettings
    image_defaults: ImageSettings
    device: Device
    threads: int | None
    fingerprints: Fingerprints
    await_hashes: Callable[[], None]
    tokenizer: Tokenizer | None
    denoiser: Denoiser
    open_codec: Callable[[], Codec]


def open_bundle(path: Path, *, device: str, threads: int | None, verify: str, speed: str) -> OpenBundle:
    """Open the folder `path` as `mmada_lite.load` documents it. The image tokenizer is not opened: its `open_codec` does it."""
    bundle = Bundle.open(path, verify=verify)
    text_defaults, image_defaults = with_speed(speed, bundle.text_defaults, bundle.image_defaults)
    chosen = device_for(bundle, device)
    fingerprints = Fingerprints.of(bundle)
    await_hashes = hash_in_background(bundle) if verify == "auto" else lambda: None
    warn_where_slow(bundle, chosen)
    tokenizer = open_tokenizer(bundle)
    if tokenizer:
        vocabulary = bundle.vocabulary
        bundle = replace(bundle, vocabulary=replace(vocabulary, rows=vocabulary.rows.encoded(tokenizer.encode)))
    sides = Sides() if takes_turns(bundle, chosen, text_defaults, image_defaults) else None
    denoiser, codec = open_denoiser(bundle, chosen, threads, sides=sides), partial(open_codec, bundle, chosen, threads, sides)
    defaults = text_defaults, image_defaults
    return OpenBundle(bundle, *defaults, chosen, threads, fingerprints, await_hashes, tokenizer, denoiser, codec)


def open_tokenizer(bundle: Bundle) -> Tokenizer | None:
    """The tokenizer of a bundle that has one. Raises Error where bundle.json says other ids."""
    if bundle.tokenizer_path is None:
        return None
    tokenizer = Tokenizer.from_file(bundle.tokenizer_path, lower_case=bundle.knowledge.case == "lower")
    try:
        bundle.vocabulary.check_tokenizer(tokenizer)
    except Error as fault:
        raise Error(f"{bundle.path / MANIFEST}: {fault}; fetch the bundle again") from None
    return tokenizer


def check_contracts(bundle: Bundle, device: Device) -> None:
    """Raise Error where the tokenizer or a graph is not what bundle.json says, or cannot be opened. A CPU opens graphs quickly,
    in less memory than to run them."""
    open_tokenizer(bundle)
    for graph in bundle.graphs:
        if device.name == "cpu":
            check_interface(bundle, graph, open_session(bundle.graph_path(graph), device, 1, tuning=Tuning(raw=True)))
        else:
            open_graph(bundle, graph, device)


def device_for(bundle: Bundle, name: str) -> Device:
    """`choose_device` for what the bundle is lowered for. Raises Error where it is not for the device that is asked for."""
    rounds = _rounds_activations(bundle) and bundle.target != OPENVINO
    device = devices.choose_device(name, "integers" if rounds else bundle.target)
    if PACKED_FOR_CUDA in bundle.needs and device.name != "cuda":
        made = f"{bundle.path.name} is packed for cuda, and this would run on {device.name} ({device.reason.split(';')[0]})"
        raise Error(f"{made}; export it without --packed, or see `mmada-lite doctor` for cuda")
    if (bundle.target == OPENVINO and device.memory != "cpu") or (
        bundle.target == "cuda" and device.name in ("rtx", "tensorrt")
    ):
        made = f"{bundle.path.name} is made for {bundle.target}, and not for {device.name}"
        raise Error(f"{made}; export it with --target {_target_of(device)}")
    if FP8_WEIGHTS in bundle.needs and device.memory == "cuda":
        _require_fp8(bundle.path.name, device)
    if device.by_openvino:
        from mmada_lite.ort.openvino_graphs import precision_of, refusal

        why = refusal(bundle, device)
        if why is not None and name != "auto":
            raise Error(why)
        if name == "auto" and why is None:
            why = _faster_elsewhere(bundle)
        computed = precision_of(bundle, "backbone", device)
        device = Device("cpu", why.split(";")[0]) if why else Device(device.name, f"{device.reason}; computed in {computed}")
    _log.info("%s runs on %s: %s", bundle.name, device.name, device.reason)
    return device


def _require_fp8(name: str, device: Device) -> None:
    """Raise Error where weights in fp8 are not multiplied by."""
    from mmada_lite.ort import nvidia

    mend = f"export it with --precision int8 --target {_target_of(device)}"
    if device.name != "rtx":
        raise Error(f"{name} has weights in fp8, which TensorRT-RTX alone multiplies by, and not {device.name}; {mend}")
    card = nvidia.cards()[0]
    if not card.reads_fp8:
        raise Error(
            f"{name} has weights in fp8, which cards of compute capability {nvidia.FP8_SINCE} and newer read, and {card.name} "
            f"has {card.compute_capability}; {mend}"
        )


def warn_where_slow(bundle: Bundle, device: Device) -> None:
    """Say aloud where a bundle will be slow on this device, by what was measured here before; nothing is measured now."""
    rounds = _rounds_activations(bundle)
    made_for = {"tensorrt": ("rtx", "tensorrt"), "cuda": ("cuda",)}.get(bundle.target)
    fits = device.name in made_for if made_for else not rounds or device.memory == "cpu"
    if (instead := _in_place_of_bf16(bundle, device)) is not None:
        _log.warning("%s", instead)
    if device.name == "cuda" and bundle.target == "cuda":
        _warn_where_attention_is_slow(bundle)
    group = bundle.quantization.get("backbone")
    if fits and (device.name != "cpu" or group is None or group.format not in ("int8", "int4")):
        return
    from mmada_lite.ort import measured  # other bundles load sooner without

    if not fits:
        target = _target_of(device)
        speeds = measured.kept() if target == "cpu" else None
        form = measured.EXPORTS[speeds.best] if speeds else ""
        _log.warning(
            "%s is made for %s and will be slow on %s; export it with %s",
            *(bundle.path.name, bundle.target, device.name),
            form if "--target" in form else f"--target {target} {form}".rstrip(),
        )
    else:
        speeds = measured.kept()
        if speeds is not None and (slow := measured.slowness(bundle, speeds)) is not None:
            _log.warning("%s", slow)


def _warn_where_attention_is_slow(bundle: Bundle) -> None:
    from mmada_lite.ort import attention_forms

    graph, times = bundle.graph_path("backbone"), attention_forms.kept()
    if times is not None and holds(graph, FUSED) and (slow := attention_forms.slowness(graph.read_bytes(), times)) is not None:
        _log.warning("%s %s", bundle.path.name, slow)


def _faster_elsewhere(bundle: Bundle) -> str | None:
    """Why onnxruntime computes a bundle for OpenVINO, as it was measured here before."""
    from mmada_lite.ort import measured

    speeds = measured.kept()
    return None if speeds is None else measured.cpu_instead(bundle, speeds)


def _target_of(device: Device) -> str:
    """What graphs for a device are lowered for."""
    return "tensorrt" if device.name == "rtx" else OPENVINO if device.by_openvino else device.name


def _in_place_of_bf16(bundle: Bundle, device: Device) -> str | None:
    """A line where weights are stored in bf16 and computed in another precision."""
    if not any(group.format == "bf16" for name, group in bundle.quantization.items() if name != "embedder"):
        return None
    if device.by_openvino:
        from mmada_lite.ort.openvino_graphs import precision_of

        if precision_of(bundle, "backbone", device) == "bf16":
            return None
        return (
            f"{bundle.path.name} is stored in bf16, which {device.name} lacks here: it is computed in fp32, in the time of fp32"
        )
    if device.name != "cpu" or (platform.machine() == "aarch64" and bf16_products()):
        return None
    mend = "; --device openvino computes it in bf16" if bf16_products() else ""
    return f"{bundle.path.name} is stored in bf16, and onnxruntime computes it in fp32, in the time of fp32{mend}"


def open_denoiser(
    bundle: Bundle,
    device: Device,
    threads: int | None = None,
    wrap: Wrap = lambda graph, session: session,
    sides: Sides | None = None,
) -> Denoiser:
    """The transformer of a bundle; a large one on a CPU, and one that takes turns, when it is first asked. wrap: puts something
    around a graph's session, such as a clock. Raises Error, then, when a graph does not load or memory does not suffice."""
    if sides is not None:
        return SideDenoiser(sides, partial(_open_denoiser, bundle, device, threads, wrap, lean=True))
    if is_large(bundle, device):
        return LazyDenoiser(partial(_open_denoiser, bundle, device, threads, wrap))
    return _open_denoiser(bundle, device, threads, wrap)


def _open_denoiser(bundle: Bundle, device: Device, threads: int | None, wrap: Wrap, *, lean: bool = False) -> Denoiser:
    opened = _open_graphs(bundle, device, threads, lean)
    return tied(bundle, device, {name: wrap(name, session) for name, session in opened.items()}, threads, lean=lean)


def tied(
    bundle: Bundle, device: Device, sessions: dict[str, Any], threads: int | None = None, *, lean: bool = False
) -> Denoiser:
    """The sessions of a bundle's transformer as a denoiser. lean: they take turns with others, and nothing is captured, which
    would hold keys and values twice."""
    shape, guard, large = bundle.architecture, _guard(bundle, device), is_large(bundle, device)
    sizes = (shape.n_layers, shape.n_kv_heads, shape.head_dim)
    if device.memory == "cpu":
        return OnnxDenoiser(sessions, *sizes, guard, *((LOGITS, run_without_arena()) if large else ()))
    warn_where_not_captured(bundle, device)
    if not lean and captures(bundle, device):
        from mmada_lite.ort.captured import CapturedDenoiser as OnDevice  # most machines do without, and load sooner
    else:
        from mmada_lite.ort.device_denoiser import DeviceDenoiser as OnDevice  # type: ignore[assignment]

    made: Denoiser = guard(
        lambda: OnDevice(sessions, sizes, device.memory, lambda graph: open_session(graph, device, threads), guard), "backbone"
    )
    return made


def captures(bundle: Bundle, device: Device) -> bool:
    """Whether steps are captured as CUDA graphs: those of a form that can be, on CUDA or TensorRT-RTX, by an onnxruntime that
    does it right."""
    return _capturable(bundle, device) and captures_here()


def _capturable(bundle: Bundle, device: Device) -> bool:
    if device.name == "rtx":
        return bundle.target == "tensorrt"
    return device.name == "cuda" and holds(bundle.graph_path("backbone"), FUSED)


def warn_where_not_captured(bundle: Bundle, device: Device) -> None:
    """Say aloud that an onnxruntime is too old to capture what could be."""
    if _capturable(bundle, device) and not captures_here():
        since, package = ".".join(map(str, CAPTURES_SINCE)), "onnxruntime-gpu" if device.name == "cuda" else "onnxruntime"
        _log.warning(
            "steps on %s are launched node by node, which is slower: onnxruntime captures them rightly from %s on; "
            'pip install -U "%s>=%s"', device.name, since, package, since)  # fmt: skip


def _open_graphs(bundle: Bundle, device: Device, threads: int | None, lean: bool) -> dict[str, Any]:
    """The transformer's graphs, by name."""
    names = [name for name in ("embedder", "backbone", "text_head", "image_head") if name in bundle.graphs]
    placed = {name: _CPU if name == "embedder" else device for name in names}
    if not is_large(bundle, device):
        return {name: open_graph(bundle, name, where, threads, lean=lean) for name, where in placed.items()}
    with ThreadPoolExecutor(len(names)) as pool:  # to pack a graph's weights is one thread's work, and others may run meanwhile
        sessions = pool.map(lambda name: open_graph(bundle, name, placed[name], threads), names)
        return dict(zip(names, sessions, strict=True))


def open_codec(bundle: Bundle, device: Device, threads: int | None = None, sides: Sides | None = None) -> Codec:
    """The image tokenizer of a bundle. The graphs of a large model are open only while they run, on a CPU, or in their turn: at
    8B they would hold 2 GB beside the transformer. Raises Error when the bundle has none."""
    image = bundle.image
    if image is None or "image_decoder" not in bundle.graphs:
        raise Error(f"{bundle.path} has no image tokenizer and cannot see or draw; export it with its vq folder")
    opens = {name: partial(open_graph, bundle, name, device, threads) for name in _CODEC}
    sessions: list[Any]
    if sides is not None:
        sessions = [SideSession(sides, name, each) for name, each in opens.items()]
    else:
        sessions = [TransientSession(each) if is_large(bundle, device) else each() for each in opens.values()]
    encoder, decoder = (CodecSession(bundle, *each, _guard(bundle, device)) for each in zip(_CODEC, sessions, strict=True))
    return Codec(encoder, decoder, image.resolution, image.downsample)  # type: ignore[arg-type]


def takes_turns(bundle: Bundle, device: Device, text: TextSettings, image: ImageSettings) -> bool:
    """Whether a card has no room for the transformer, its steps captured, and the image tokenizer at once, by the plan of these
    settings. Both stay where there is: at 8B it takes seconds to open the transformer again."""
    if device.memory == "cpu" or bundle.image is None or _stored(bundle) < LARGE:
        return False
    from mmada_lite import memory_plan
    from mmada_lite.ort import nvidia

    free = next((card.free for card in nvidia.cards()), None)
    planned = partial(memory_plan.need, memory_plan.Shape.of(bundle), bundle.quantization, text, image=image, at_once=True)
    return free is not None and planned(device=device.name, target=bundle.target).card_peak > free


def is_large(bundle: Bundle, device: Device) -> bool:
    """Whether memory decides what is open at a time."""
    return device.memory == "cpu" and _stored(bundle) >= LARGE


def _stored(bundle: Bundle) -> int:
    """Bytes of a bundle's weights."""
    return sum(group.bytes or 0 for group in bundle.quantization.values())


def open_graph(
    bundle: Bundle,
    graph: str,
    device: Device,
    threads: int | None = None,
    profile: Path | None = None,
    lean: bool = False,
) -> "onnxruntime.InferenceSession":
    """One graph of a bundle on a device, by its engine where one fits. profile: as `open_session`'s; lean: as `tied`'s."""
    path, threads = bundle.graph_path(graph), threads_of(graph, threads)
    session: onnxruntime.InferenceSession
    if device.by_openvino:
        from mmada_lite.ort.openvino_graphs import open_compiled

        session = _guard(bundle, device)(lambda: open_compiled(bundle, graph, device, threads), graph)
        check_interface(bundle, graph, session)
        return session
    if device.name in ("rtx", "tensorrt") and graph not in ("embedder", *_CODEC):
        from mmada_lite.ort.engine_sessions import open_engine

        captured = not lean and captures(bundle, device)
        session = _guard(bundle, device)(lambda: open_engine(bundle, graph, device, threads, captured=captured), graph)
        return session
    if graph not in _CODEC and not lean and captures(bundle, device):
        session = _guard(bundle, device)(lambda: _capturing(path, device, threads, profile), graph)
    else:
        session = _guard(bundle, device)(
            lambda: (
                (None if profile else open_packed(bundle, graph, device, threads))
                or open_session(path, device, threads, profile=profile)
            ),
            graph,
        )
    check_interface(bundle, graph, session)
    return session


def _capturing(path: Path, device: Device, threads: int | None, profile: Path | None) -> "onnxruntime.InferenceSession":
    """A session whose steps onnxruntime captures; where a node of it has no kernel on the card it refuses to, which is said."""
    try:
        return open_session(path, device, threads, CAPTURING, profile=profile)
    except Error as error:
        if "capture feature" not in str(error.__cause__):
            raise
        _log.warning("%s is launched node by node, which is slower: %s", path.name, first_line(error.__cause__ or error))
        return open_session(path, device, threads, profile=profile)


def threads_of(graph: str, threads: int | None) -> int | None:
    """The threads of one graph's session: the embedder looks a table up, and other threads would only be woken for it."""
    return 1 if graph == "embedder" else threads


def _guard(bundle: Bundle, device: Device) -> Callable[[Callable[[], Any], str], Any]:
    """Runs something of a graph; what fails is one line, and when memory runs out it has what the plan counts."""

    def run(call: Callable[[], Result], graph: str) -> Result:
        try:
            return call()
        except Exception as error:  # onnxruntime's own errors share no base class
            if not is_out_of_memory(error):
                if isinstance(error, Error):
                    raise
                if device.memory == "cuda" and _GONE.search(str(error)):
                    raise Error(
                        f"{bundle.path.name}: the graph {graph} met memory of the card that is gone ({first_line(error)}); "
                        f"start the program again, and if it comes back run `mmada-lite doctor`"
                    ) from error
                runtime = "OpenVINO" if device.by_openvino else "onnxruntime"
                raise Error(f"{bundle.path}: the graph {graph} fails in {runtime}: {first_line(error)}") from error
            raise OutOfMemory(f"{bundle.path.name} ran out of memory on {device.name}: {_plan(bundle, device)}") from error

    return run


def _plan(bundle: Bundle, device: Device) -> str:
    """What the plan counts, what there is, and what to do."""
    from mmada_lite import memory_plan
    from mmada_lite.ort import nvidia

    counted = memory_plan.need(
        memory_plan.Shape.of(bundle),
        bundle.quantization,
        bundle.text_defaults,
        device=device.name,
        target=bundle.target,
        image=bundle.image_defaults,
    )
    parts, peak = (counted.host, counted.peak) if device.memory == "cpu" else (counted.card, counted.card_peak)
    listed = ", ".join(f"{name} {size_in_words(size)}" for name, size in parts.items() if size)
    cards = nvidia.cards() if device.memory != "cpu" else ()
    has = f", and {cards[0].name} has {size_in_words(cards[0].memory)}" if cards else ""
    return (
        f"the plan counts {size_in_words(peak)} ({listed}){has}; use a smaller --precision, a shorter answer, or another "
        f"device (`mmada-lite plan -m {bundle.path}` compares)"
    )


def _rounds_activations(bundle: Bundle) -> bool:
    return any(group.activation for group in bundle.quantization.values())
