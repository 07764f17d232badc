"""How much memory a model will take, by arithmetic alone: from shapes and a precision, before anything is downloaded.

The formulas, in bytes; numbers with a star were fitted to what processes on a CPU took at their highest
(tests/runtime/test_memory_plan.py measures three bundles again, within 7%). W is the longest window, P its cached
context, L layers, d the width, H heads, k the width of all keys of a position, Q queried positions of a head, V its columns,
f bytes of a float: 4, or 2 where a GPU computes in half precision (`_floats`: graphs for a CPU, and weights stored in fp32, are
computed in float32 on a card too; OpenVINO's GPU has what it keeps in float32); c bytes of one in keys and values between runs:
f, or 2 where a bundle keeps them so.

    runtime      79 MB* of Python, numpy, onnxruntime and its sessions; on a card, 350 MB for its context and kernels
    weights      as stored, times what a CPU makes of them: fp16, bf16 2.2* (it computes in float32; 2 where a card does),
                 int4 blocks (bytes + 12) / bytes; OpenVINO maps the file beside what it packs: fp32 2.1*, fp16, bf16 4.3*,
                 integers 2.5*
    embedding    0: its table is mapped, and rows are read from disk
    activations  2.0* f (H W (W + P) + 5 W d + 2 (W + P) k) + 2 W k c, the last term for the keys and values of a layer, written
                 over those of the one before (on a card 1.5* in place of 2.0*, and of every layer, held to the end);
                 where a CPU keeps them in half precision 2 (W + P) k c more, joined before they are widened;
                 times 1.2* where a CPU rounds activations to integers; and 3.4* 4 Q V for each head, of which a CPU makes
                 `LOGITS` at a time for a model of `LARGE` or more
    caches       2 L W k c as they came out and once more as they are cut for later steps; of a guided pair twice as much
                 (on a card an eighth, as they are cut piece by piece, or all where it captures steps, and of a guided pair the
                 other row's too); of a text, or of a picture whose partial steps use kept keys and values, whichever is more
    codec        weights times 1 (fp32), 3* (fp16 on a CPU), 2 (on a card); 6.5 MB* of session; and 11* * 4 c pixels for its
                 widest layers, where c = sqrt(parameters / 5000)* channels at full size (a bundle does not state them)

A model of `LARGE` or more gives memory back behind every run on a CPU, and holds nothing of the image tokenizer while it
computes: of an answer, which needs no codec, and of a drawing, behind which the decoder runs alone (half of the weights, a
fifth* of its layers' term), the one that takes more is counted (measured at 8B: docs/checkpoint.md). On a card that has no room
for all of it no step is captured, the transformer and the graphs of the image tokenizer take turns, and the one that takes most
is counted.

It also says what memory there is here, and reads an amount that a person wrote. It knows no session and opens no graph.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from mmada_lite.bundle import HALF_CACHES, LARGE, LOGITS, Architecture, Bundle, ImageInfo, WeightGroup
from mmada_lite.contracts import BITS, IN_FLOAT32
from mmada_lite.decoding.settings import ImageSettings, TextSettings
from mmada_lite.errors import Error

Task = Literal["answer", "drawing"]
TASKS: tuple[Task, ...] = get_args(Task)
MB = 10**6
RUNTIME, CONTEXT, SESSION = 79 * MB, 350 * MB, 6_500_000
_PROMPT = 32  # tokens of a question or a caption with its special tokens, when nothing is said
_BESIDE_A_BLOCK = 12  # bytes in memory beside a block's codes on a CPU, where its scale takes `_SCALE` on disk
_SCALE = {"fp16": 2, "fp32": 4}
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_ON_THE_WAY = 1.1
_CUT_AT_ONCE = 1 / 8  # of the keys and values of all layers, on a card
_FULL_STEPS = ImageSettings()  # every step of a drawing computes everything
# What OpenVINO holds of a byte on disk, of size S on a CPU without bf16 (docs/lab/benchmarks.md): the file, mapped, and a copy
# that is packed, of 16 bits in float32, beside what compiling leaves.
_BY_OPENVINO = {"fp32": 2.1, "fp16": 4.3, "bf16": 4.3}
_INTEGERS_BY_OPENVINO = 2.5
_FOR_TENSORRT = {"int4": 2.3, "int8": 3.0, "fp8": 3.0}  # what is written for TensorRT is taken apart by a CPU
PRECISIONS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "fp32": dict.fromkeys(("embedder", "backbone", "text_head", "image_head", "codec"), "fp32"),
        "fp16": dict.fromkeys(("embedder", "backbone", "text_head", "image_head", "codec"), "fp16"),
        "bf16": {**dict.fromkeys(("embedder", "backbone", "text_head", "image_head"), "bf16"), "codec": "fp16"},
        "int8": {"embedder": "int8", "backbone": "int8", "text_head": "int8", "image_head": "fp16", "codec": "fp16"},
        "int8-7bit": {
            **{"embedder": "int8", "backbone": "int8-7bit", "text_head": "int8-7bit"},
            **{"image_head": "fp16", "codec": "fp16"},
        },
        "fp8": {"embedder": "int8", "backbone": "fp8", "text_head": "fp8", "image_head": "fp16", "codec": "fp16"},
        "int4": {"embedder": "int8", "backbone": "int4-b128", "text_head": "int4-b64", "image_head": "int8", "codec": "fp16"},
    }
)  # precision -> group -> format, as `mmada-lite export --precision` stores them, largest first
# What differs for a target: CUDA's fused kernels take int4 in blocks of 32 alone.
_FOR_TARGET: Mapping[tuple[str, str], Mapping[str, str]] = MappingProxyType(
    {("int4", "cuda"): {"backbone": "int4-b32", "text_head": "int4-b32"}}
)
_FUSED_BLOCK = 32  # inputs that share a scale in half precision in all that is quantized for CUDA


@dataclass(frozen=True, slots=True)
class Shape:
    """What memory depends on. codec_parameters is 0 for a model without pictures; half_caches: keys and values are float16 on
    a CPU too."""

    name: str
    architecture: Architecture
    codes: int  # size of the codebook
    image: ImageInfo | None
    codec_parameters: int
    half_caches: bool = False

    @classmethod
    def of(cls, bundle: Bundle) -> "Shape":
        codec = bundle.quantization.get("codec")
        each = {"fp32": 4, "fp16": 2}.get(codec.format, 2) if codec else 2
        parameters = (codec.bytes or 0) // each if codec else 0
        codes, half = bundle.vocabulary.codebook_size, HALF_CACHES in bundle.needs
        return cls(bundle.name, bundle.architecture, codes, bundle.image, parameters, half)


# The published 8B model (arXiv 2505.15809): config.json of Gen-Verse/MMaDA-8B-Base, its MAGVIT-v2 as constructed by default.
PUBLISHED: Mapping[str, Shape] = MappingProxyType(
    {
        "8b": Shape(
            "MMaDA-8B",
            Architecture(
                d_model=4096,
                n_layers=32,
                n_heads=32,
                n_kv_heads=32,
                head_dim=128,
                mlp_hidden_size=12288,
                vocab_size=134656,
                rope_theta=500000.0,
                rms_norm_eps=1e-5,
                max_sequence_length=4096,
            ),
            codes=8192,
            image=ImageInfo(resolution=512, downsample=16),
            codec_parameters=95_387_004,
        )
    }
)


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes at the highest, where they lie, and on disk. host and card: part -> bytes; card is empty on a CPU."""

    host: Mapping[str, int]
    card: Mapping[str, int]
    disk: Mapping[str, int]

    @property
    def peak(self) -> int:
        return sum(self.host.values())

    @property
    def card_peak(self) -> int:
        return sum(self.card.values())


def formats_of(precision: str, target: str = "cpu") -> dict[str, str]:
    """Group -> the name of the format that `export --precision --target` stores it in."""
    return {**PRECISIONS[precision], **_FOR_TARGET.get((precision, target), {})}


def stored(shape: Shape, precision: str, target: str = "cpu") -> dict[str, WeightGroup]:
    """Group -> how `export --precision --target` stores it and the bytes that it takes."""
    formats = formats_of(precision, target)
    matrices = {group: matrices_of(shape, group) for group in formats if group != "codec"}
    groups = {}
    for group, each in matrices.items():
        kept = "cpu" if group == "embedder" else target  # the table of a lookup is the same for all
        groups[group] = _group(formats[group], sum(_bytes(*m, formats[group], kept) for m in each))
    half = target == "cuda" and precision != "fp32"
    vectors = (2 if half else 4) * shape.architecture.d_model * (2 * shape.architecture.n_layers + 1)
    groups["backbone"] = _group(formats["backbone"], (groups["backbone"].bytes or 0) + vectors)
    if shape.codec_parameters:
        groups["codec"] = _group(formats["codec"], shape.codec_parameters * (4 if precision == "fp32" else 2))
    return groups


def matrices_of(shape: Shape, group: str) -> list[tuple[int, int]]:
    """(outputs, inputs) of every matrix of a group, as docs/bundle.md lists them."""
    a = shape.architecture
    keys = a.n_kv_heads * a.head_dim
    if group == "backbone":
        layer = [(a.d_model, a.d_model)] * 2 + [(keys, a.d_model)] * 2
        return (layer + [(a.mlp_hidden_size, a.d_model)] * 2 + [(a.d_model, a.mlp_hidden_size)]) * a.n_layers
    return [(shape.codes if group == "image_head" else a.vocab_size, a.d_model)]


def need(
    shape: Shape,
    groups: Mapping[str, WeightGroup],
    text: TextSettings,
    *,
    device: str = "cpu",
    target: str = "",
    prompt: int = _PROMPT,
    image: ImageSettings = _FULL_STEPS,
    tasks: Sequence[Task] = TASKS,
    at_once: bool = False,
) -> Need:
    """What answering about a picture and drawing one, or one of the two, take at the highest, with these settings. target: what
    graphs are lowered for, "" where it is the device; at_once: a card holds all of the model, however large, and captures its
    steps."""
    by_openvino = device.startswith("openvino")  # whose devices share the machine's memory
    on_card = device != "cpu" and not by_openvino
    target = target or {"rtx": "tensorrt"}.get(device, device.partition(":")[0])
    in_graphs, kept = _floats(groups["backbone"].format, device, target)
    sizes = {name: group.bytes or 0 for name, group in groups.items()}
    disk = {"weights": sum(sizes.values()) - sizes.get("embedder", 0), "embedding": sizes.get("embedder", 0)}
    heavy = sum(sizes.values()) >= LARGE
    large, apart = heavy and not on_card, heavy and on_card and not at_once
    rounded = not on_card and _rounds(groups, target)

    def in_memory(name: str, group: WeightGroup) -> int:
        if by_openvino:
            return round((group.bytes or 0) * _BY_OPENVINO.get(group.format, _INTEGERS_BY_OPENVINO))
        if on_card:
            return (group.bytes or 0) * (2 if target in IN_FLOAT32 and group.format in ("fp16", "bf16") else 1)
        return _in_memory(name, group, target)

    def work(tasks: Sequence[Task]) -> dict[str, int]:
        weights = {n: g for n, g in groups.items() if n not in ("embedder", "codec")}
        few = LOGITS if large else None
        return {
            "weights": sum(in_memory(name, group) for name, group in weights.items()),
            "activations": activations(
                shape, text, prompt, half=in_graphs == 2, on_card=on_card, rounded=rounded, most_logits=few, tasks=tasks
            ),
            "caches": caches(shape, text, image, prompt, half=kept == 2, on_card=on_card, lean=not at_once, tasks=tasks),
            "codec": 0 if apart else _codec(shape, groups, on_card, large, tasks),
        }

    turns = [work([task]) for task in tasks] if large or apart else [work(tasks)]
    if apart:
        turns.append(dict.fromkeys(turns[0], 0) | {"codec": _codec(shape, groups, on_card, False, tasks, graphs=1)})
    counted = max(turns, key=lambda parts: sum(parts.values()))
    if not on_card:
        return Need({"runtime": RUNTIME, **counted}, {}, disk)
    return Need({"runtime": RUNTIME}, {"runtime": CONTEXT, **counted}, disk)


def memory_available() -> int | None:
    """Bytes that this process may still take, within its container too; None where the system does not say."""
    limits = [limit for limit in (_of_system("MemAvailable"), _container_available()) if limit is not None]
    return min(limits, default=None)


def memory_total() -> int | None:
    """Bytes that the machine has; None where the system does not say."""
    return _of_system("MemTotal")


def bytes_of(text: str) -> int:
    """`8GB`, `7.5 GiB`, `900MB`, or a million and more plain bytes. Raises Error when it is none of them."""
    amount = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if amount is None or amount[2].lower() not in _UNITS or not 0 < float(amount[1]) < 1e18:
        raise Error(f"--memory {text} is no amount of memory; write it like 8GB or 7.5GiB")
    if not amount[2] and float(amount[1]) < 1e6:
        raise Error(f"--memory {text} would be {text} bytes; say the unit, as in {text}GB")
    return round(float(amount[1]) * _UNITS[amount[2].lower()])


def _floats(backbone: str, device: str, target: str) -> tuple[int, int]:
    """Bytes of a float in graphs, and of what they keep between runs, as `WeightSpec.computed` of the export has it and
    `openvino_graphs.precision_of`. A CPU without bf16, and what an NPU chooses, count as float32."""
    if device == "openvino:gpu":
        return (2 if backbone in ("fp16", "int8", "int4") else 4), 4
    half = device in ("cuda", "rtx", "tensorrt") and target not in IN_FLOAT32 and backbone != "fp32"
    return (2, 2) if half else (4, 4)


def _codec(
    shape: Shape, groups: Mapping[str, WeightGroup], on_card: bool, large: bool, tasks: Sequence[Task], graphs: int = 2
) -> int:
    """Its graphs, both open from beginning to end, or one; of a large model on a CPU the decoder alone, behind a drawing."""
    codec = groups.get("codec")
    if codec is None or not codec.bytes:
        return 0
    weights = codec.bytes * (1 if codec.format == "fp32" else 2 if on_card else 3)
    if large:
        return weights // 2 + SESSION + round(0.2 * _codec_activations(shape)) if "drawing" in tasks else 0
    return weights * graphs // 2 + (0 if on_card else SESSION) + _codec_activations(shape)


def activations(
    shape: Shape,
    text: TextSettings,
    prompt: int,
    *,
    half: bool,
    rounded: bool,
    on_card: bool = False,
    most_logits: int | None = None,
    tasks: Sequence[Task] = TASKS,
) -> int:
    a, codes = shape.architecture, _grid(shape)
    answer = codes + prompt + text.answer_length
    short = text.acceleration.cache != "none" and text.block_length  # later steps are short; the first of a block computes all
    context = answer - text.block_length if short else 0
    windows, logits = [], []
    if "answer" in tasks:
        windows += [(answer, 0)] + ([(text.block_length, context)] if short else [])
        logits.append(4 * min(text.block_length, text.answer_length) * a.vocab_size)
    if "drawing" in tasks:
        windows.append((codes + prompt, 0))
        logits.append(4 * codes * shape.codes)
    sizes = 2 if half else 4, 2 if half or shape.half_caches else 4
    most = max(_backbone(a, window, past, *sizes, on_card) for window, past in windows)
    heads = sum(each if most_logits is None else min(each, most_logits) for each in logits)
    return round(most * (1.2 if rounded else 1.0) + 3.4 * heads)


def caches(
    shape: Shape,
    text: TextSettings,
    image: ImageSettings,
    prompt: int,
    *,
    half: bool,
    on_card: bool = False,
    lean: bool = True,
    tasks: Sequence[Task] = TASKS,
) -> int:
    a = shape.architecture
    position = 2 * a.n_layers * a.n_kv_heads * a.head_dim * (2 if half or shape.half_caches else 4)
    seen = _grid(shape) + prompt
    cached = text.acceleration.cache != "none" and "answer" in tasks
    partial = image.acceleration.refresh > 1 and _grid(shape) and "drawing" in tasks
    written = position * (seen + text.answer_length) * _copies(text.guidance, on_card, lean) if cached else 0
    drawn = position * seen * _copies(image.guidance, on_card, lean) if partial else 0
    return round(max(written, drawn))


def _copies(guidance: float, on_card: bool, lean: bool) -> float:
    """Of the keys and values of a row: as they came out (on a card one row's count to activations) and as they are cut, which
    is a whole copy where steps are captured."""
    guided = guidance > 0
    return guided + (_CUT_AT_ONCE if lean else 1) if on_card else (4 if guided else 2)


def expansion(name: str, group: WeightGroup, target: str) -> float:
    """Bytes that a CPU holds for a byte of a group on disk."""
    if name == "embedder" or group.format == "fp32":
        return 1.0  # a table is read row by row, as it lies
    if group.format in ("fp16", "bf16"):
        return 2.0
    if target == "tensorrt":
        return _FOR_TENSORRT.get(group.format, 1.0)
    if group.block is None or group.bits is None:
        return 1.0
    weights = group.block * group.bits / 8
    return (weights + _BESIDE_A_BLOCK) / (weights + _SCALE.get(group.scale or "fp32", 4))


def _in_memory(name: str, group: WeightGroup, target: str) -> int:
    """Bytes that a CPU holds of a group at the highest: half precision passes through memory on its way to float32."""
    return round((group.bytes or 0) * expansion(name, group, target) * (_ON_THE_WAY if group.format in ("fp16", "bf16") else 1))


def _backbone(a: Architecture, window: int, past: int, size: int, cached: int, on_card: bool) -> float:
    keys, seen = a.n_kv_heads * a.head_dim, window + past
    scores = a.n_heads * window * seen
    passing = size * (scores + 5 * window * a.d_model + 2 * seen * keys)
    kept = 2 * window * keys * cached
    joined = 2 * seen * keys * cached if cached < size else 0
    return 1.5 * (passing + a.n_layers * kept) if on_card else 2.0 * passing + kept + joined


def _codec_activations(shape: Shape) -> int:
    pixels = shape.image.resolution**2 if shape.image else 0
    return round(11 * 4 * math.sqrt(shape.codec_parameters / 5000) * pixels)


def _grid(shape: Shape) -> int:
    return (shape.image.resolution // shape.image.downsample) ** 2 if shape.image else 0


def _rounds(groups: Mapping[str, WeightGroup], target: str) -> bool:
    return target in IN_FLOAT32 and groups["backbone"].format in ("int8", "int4")


def _group(name: str, size: int) -> WeightGroup:
    family, _, block = name.removesuffix("-7bit").partition("-b")
    bits = 7 if name.endswith("-7bit") else BITS[family]
    scale = {"int4": "fp16", "int8": "fp32", "fp8": "fp16"}.get(family)
    return WeightGroup(family, bits, int(block) if block else None, True if scale else None, scale, bytes=size)


def _bytes(outputs: int, inputs: int, name: str, target: str) -> int:
    """What a matrix takes in a bundle: int8 and fp8 with one scale a column, of fp8 in half precision, int4 with a
    half-precision scale a block; for CUDA integers have a scale a block."""
    family, _, block = name.partition("-b")
    if family.removesuffix("-7bit") == "int8" and target == "cuda":
        blocks = -(-inputs // _FUSED_BLOCK)
        return outputs * blocks * (_FUSED_BLOCK + 2)
    if family in ("fp32", "fp16", "bf16"):
        return outputs * inputs * (4 if family == "fp32" else 2)
    if not block:
        return outputs * (inputs + (2 if family == "fp8" else 4))
    blocks = -(-inputs // int(block))
    return outputs * blocks * (int(block) // 2 + 2)


def _of_system(key: str) -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    numbers = [int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")]
    return numbers[0] if numbers else None


def _container_available() -> int | None:
    folder = Path("/sys/fs/cgroup")
    try:
        return int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None
