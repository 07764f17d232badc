"""The verb plan: which precision of a model fits a memory, counted before anything is downloaded or converted.

It finds out what the model's shape is and prints; the arithmetic is `mmada_lite.memory_plan`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmada_lite.cli import PAGES, options, terminal
from mmada_lite.errors import Error
from mmada_lite.files import size_in_words
from mmada_lite.ort import nvidia

if TYPE_CHECKING:  # a verb's module imports no numpy before it runs
    from mmada_lite.bundle import WeightGroup
    from mmada_lite.decoding.settings import ImageSettings, TextSettings
    from mmada_lite.memory_plan import Need, Shape

_ON_CARD = ("cuda", "rtx", "tensorrt")
_BY_OPENVINO = ("openvino", "openvino:gpu", "openvino:npu")  # which take the machine's memory
_LEFT_OUT = {  # which no export writes, gain nothing, or are not run there
    *((device, name) for device in _ON_CARD for name in ("bf16", "int8-7bit")),
    *((device, "fp8") for device in ("cpu", "cuda", "tensorrt", *_BY_OPENVINO)),
}
_PARTS = ("runtime", "weights", "activations", "caches", "codec")


@dataclass(frozen=True, slots=True)
class Row:
    """One precision: what it needs, and whether that fits."""

    precision: str
    need: Need
    fits: bool
    spare: int  # bytes left, or missing where negative


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m", "--model", metavar="SOURCE", help="a bundle, a checkpoint folder, a config.json, or 8b, the published model"
    )
    parser.add_argument("--memory", metavar="SIZE", help="8GB, 7.5GiB (default: what is free here, or the card's)")
    parser.add_argument("--shared", action="store_true", help="the card shares the machine's memory, as on a Jetson")
    options.add_planned_answer(parser)
    options.add_cache_precision(parser, "how a CPU keeps keys and values, as of an export")
    options.add_speed(parser)
    options.add_device(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what each precision needs. Returns 1 when none fits."""
    from mmada_lite.cli.model_options import text_settings
    from mmada_lite.decoding.settings import with_speed
    from mmada_lite.memory_plan import PRECISIONS

    device = arguments.device if arguments.device != "auto" else "cpu"
    if device not in ("cpu", *_ON_CARD, *_BY_OPENVINO):
        raise Error(f"no device is called {device!r}; use one of auto, cpu, {', '.join((*_ON_CARD, *_BY_OPENVINO))}")
    if arguments.cache_precision and device in _ON_CARD:
        raise Error(f"--cache-precision is for processors, and {device} keeps keys and values in its own form; leave it out")
    memory = _memory(arguments.memory, device)
    shape, defaults, groups, target = _source(arguments.model, device)
    half = shape.half_caches if arguments.cache_precision is None else arguments.cache_precision == "fp16"
    text, image = with_speed(arguments.speed, *defaults)
    text = text_settings(text, arguments)
    spare = _Spare(shape, text, image, device, memory, arguments.shared, target)
    exported = replace(spare, shape=replace(shape, half_caches=half))
    precisions = [(exported if name in PRECISIONS else spare).row(name, each) for name, each in groups.items()]
    content = {
        "model": shape.name,
        "memory": memory,
        "device": device,
        "shared": arguments.shared,
        "speed": arguments.speed,
        "cache_precision": "fp16" if half else "fp32",
        "image": {"steps": image.steps, "refresh": image.acceleration.refresh},
        "text": {"answer_length": text.answer_length, "block_length": text.block_length, "cache": text.acceleration.cache},
        "precisions": [_row_json(row, arguments.shared) for row in precisions],
        "best": next((row.precision for row in precisions if row.fits), None),
    }
    print(terminal.json_line(content) if arguments.json else _as_text(content, precisions, arguments.shared))
    return 0 if content["best"] else 1


def _memory(given: str | None, device: str) -> int:
    from mmada_lite.memory_plan import bytes_of, memory_available

    if given is not None:
        return bytes_of(given)
    if device in _ON_CARD:
        cards = nvidia.cards()
        if not cards:
            raise Error("there is no NVIDIA card here to ask; say --memory, for example --memory 8GB")
        return cards[0].memory
    free = memory_available()
    if free is None:
        raise Error("this system does not say how much memory is free; say --memory, for example --memory 8GB")
    return free


def _source(
    name: str | None, device: str
) -> tuple[Shape, tuple[TextSettings, ImageSettings], Mapping[str, Mapping[str, WeightGroup]], str]:
    """A model's shape, its default settings, precision -> groups as an export for the device stores them, largest first (a
    bundle as it is comes first), and what the graphs of such a bundle are lowered for."""
    from mmada_lite.bundle import MANIFEST, Bundle
    from mmada_lite.decoding.settings import ImageSettings
    from mmada_lite.memory_plan import PRECISIONS, PUBLISHED, Shape, stored
    from mmada_lite.model import embedded_bundle

    asked, names = "cuda" if device == "cuda" else "cpu", [name for name in PRECISIONS if (device, name) not in _LEFT_OUT]
    if name is not None and name.lower() in PUBLISHED and not Path(name).exists():
        shape = PUBLISHED[name.lower()]
        return (
            shape,
            (_planned_answer(), ImageSettings()),
            {precision: stored(shape, precision, asked) for precision in names},
            "",
        )
    path = Path(name) if name is not None else embedded_bundle()
    if path.is_dir() and (path / MANIFEST).is_file():
        bundle = Bundle.open(path)
        shape = Shape.of(bundle)
        as_it_is = {f"this bundle ({bundle.target})": bundle.quantization}
        return (
            shape,
            (bundle.text_defaults, bundle.image_defaults),
            as_it_is | {precision: stored(shape, precision, asked) for precision in names},
            bundle.target,
        )
    shape = _checkpoint_shape(path)
    text = _planned_answer()
    longest = min(text.answer_length, max(1, shape.architecture.max_sequence_length // 2))
    text = text.replace(answer_length=longest, steps=longest, block_length=min(32, longest))
    return shape, (text, ImageSettings()), {precision: stored(shape, precision, asked) for precision in names}, ""


def _planned_answer() -> TextSettings:
    """What is planned for a model without defaults."""
    from mmada_lite.decoding.settings import TextSettings

    return TextSettings(answer_length=128, steps=64, block_length=32).replace(cache="dual")


def _checkpoint_shape(path: Path) -> Shape:
    """From config.json alone, in its folder or by its own name; weights need not be there."""
    from mmada_lite.bundle import Architecture, ImageInfo
    from mmada_lite.export.checkpoint import TransformerConfig, VQConfig, read_json
    from mmada_lite.memory_plan import PUBLISHED, Shape

    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        known = ", ".join(PUBLISHED)
        raise Error(f"{path} is no bundle, checkpoint folder or config.json; name one, or a published model: {known}")
    config = TransformerConfig.from_json(read_json(file))
    beside = file.parent / "vq" / "config.json"
    codec = VQConfig.load(beside.parent) if beside.is_file() else VQConfig()
    if codec.codebook_size != config.codebook_size:
        raise Error(f"{file}: codebook_size {config.codebook_size}, but the image tokenizer has {codec.codebook_size}")
    shapes = codec.expected_tensors().values()
    architecture = Architecture(**{name: getattr(config, name) for name in Architecture.__slots__})
    return Shape(
        file.parent.resolve().name,
        architecture,
        config.codebook_size,
        ImageInfo(codec.resolution, codec.downsample_factor),
        sum(_product(shape) for shape in shapes),
    )


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


@dataclass(frozen=True, slots=True)
class _Spare:
    """What is asked of a memory, whatever the precision."""

    shape: Shape
    text: TextSettings
    image: ImageSettings
    device: str
    memory: int
    shared: bool
    target: str  # of a bundle as it is; any other is exported for the device

    def row(self, precision: str, groups: Mapping[str, WeightGroup]) -> Row:
        from mmada_lite.memory_plan import PRECISIONS, need

        target = "" if precision in PRECISIONS else self.target
        counted = need(self.shape, groups, self.text, device=self.device, target=target, image=self.image)
        spare = self.memory - _asked(counted, self.device, self.shared)
        return Row(precision, counted, spare >= 0, spare)


def _asked(counted: Need, device: str, shared: bool) -> int:
    """What is compared with the memory: the process on a CPU, the card's part on a card, both where they share it."""
    if device not in _ON_CARD:
        return counted.peak
    return counted.card_peak + (counted.peak if shared else 0)


def _row_json(row: Row, shared: bool) -> dict[str, Any]:
    parts = row.need.card or row.need.host
    return {
        "precision": row.precision,
        "fits": row.fits,
        "spare": row.spare,
        "peak": sum(parts.values()) + (row.need.peak if shared and row.need.card else 0),
        **{name: parts.get(name, 0) for name in _PARTS},
        "host": row.need.peak,
        "embedding_on_disk": row.need.disk["embedding"],
        "disk": sum(row.need.disk.values()),
    }


def _as_text(content: Mapping[str, Any], precisions: list[Row], shared: bool) -> str:
    text = content["text"]
    title = (
        f"{content['model']} in {size_in_words(content['memory'])} of memory, on {content['device']}"
        f"{' (shared with the CPU)' if shared else ''}: an answer of {text['answer_length']} tokens about a picture "
        f"(cache {text['cache']}), and a picture drawn with guidance"
    )
    heads = ["precision", "fits", "peak", *_PARTS, "embedding on disk", "bundle"]
    lines = [heads]
    for row, plain in zip(precisions, content["precisions"], strict=True):
        sizes = [plain[key] for key in ("peak", *_PARTS, "embedding_on_disk", "disk")]
        lines.append([row.precision, "yes" if row.fits else "no", *(size_in_words(size) if size else "-" for size in sizes)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    table = "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
    return f"{title}\n\n{table}\n\n{_verdict(content, precisions)}\nmanual: {PAGES['plan']}"


def _verdict(content: Mapping[str, Any], precisions: list[Row]) -> str:
    from mmada_lite.memory_plan import PRECISIONS

    best = content["best"]
    if best is None:
        least = max(precisions, key=lambda row: row.spare)
        less = "a shorter --answer-length takes less"
        if content["speed"] != "exact" and content["image"]["refresh"] > 1:
            less = "--speed exact keeps less of drawings"
        elif least.need.host.get("caches") and content["cache_precision"] == "fp32":
            less = "--cache-precision fp16 keeps the same in half of the caches' memory"
        elif content["text"]["cache"] != "none":
            less = "--cache none keeps nothing between steps, and takes longer"
        return f"nothing fits: {least.precision} lacks {size_in_words(-least.spare)}; {less}"
    row = next(row for row in precisions if row.precision == best)
    device = content["device"]
    target = {"cpu": "", "cuda": " --target cuda"}.get(
        device, " --target openvino" if device in _BY_OPENVINO else " --target tensorrt"
    )
    target += " --cache-precision fp16" if content["cache_precision"] == "fp16" else ""
    how = "it runs as it is" if best not in PRECISIONS else f"mmada-lite export CHECKPOINT -o BUNDLE --precision {best}{target}"
    return f"the finest that fits: {best}, with {size_in_words(row.spare)} to spare; {how}"
