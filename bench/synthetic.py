"""A bundle of random weights in a known shape: as large and as slow as a real one, and meaning nothing.

Weights are drawn as they are written, some megabytes at a time, every tensor from its own seed, so that no two are equal (equal
ones would be stored once, and memory and speed would be fiction). `cached_bundle` makes one of a named size once and finds it
again. It knows what a bundle holds; it measures nothing.
"""

import hashlib
import math
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mmada_lite
from mmada_lite.bundle import MANIFEST, Architecture, Bundle, BundleWriter, ImageInfo
from mmada_lite.errors import Error
from mmada_lite.export import codec, formats, graph, heads, lowering, transformer
from mmada_lite.export import precision as precision_module
from mmada_lite.export.checkpoint import Tower, TransformerConfig, VQConfig
from mmada_lite.export.graph import Graph, WeightFile
from mmada_lite.export.lowering import Weight, WeightSpec
from mmada_lite.export.precision import specs_for, weight_group
from mmada_lite.memory_plan import PUBLISHED, Shape, stored
from mmada_lite.vocabulary import SpecialTokens, Vocabulary

_HEAD = "model.transformer.ff_out.weight"
_LEAST = 12  # ids of the special tokens
_RANDOM = "random numbers"  # where such a bundle says it comes from
_ROOM = 8 << 20  # bytes, for graph files and alignment


@dataclass(frozen=True, slots=True)
class Size:
    """A transformer and its task: codes of a picture, tokens of an answer."""

    architecture: Architecture
    codes: int  # of the codebook
    grid: int  # codes along a side of a picture
    answer: int
    block: int

    @property
    def vocabulary(self) -> Vocabulary:
        special = SpecialTokens(*range(_LEAST))
        return Vocabulary(special, self.architecture.vocab_size - self.codes, self.codes, self.architecture.vocab_size)


def _published_like(d_model: int, layers: int, heads: int, mlp: int) -> Architecture:
    """The published model's vocabulary, positions and constants in a smaller body."""
    constants = {"vocab_size": 134656, "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "max_sequence_length": 4096}
    return Architecture(d_model, layers, heads, heads, d_model // heads, mlp, **constants)  # type: ignore[arg-type]


SIZES: Mapping[str, Size] = {
    "s": Size(_published_like(1024, 16, 16, 3072), codes=8192, grid=32, answer=128, block=32),
    "1b": Size(_published_like(2048, 16, 16, 5632), codes=8192, grid=32, answer=128, block=32),
    "8b": Size(PUBLISHED["8b"].architecture, codes=8192, grid=32, answer=128, block=32),
    "tiny": Size(Architecture(64, 2, 4, 4, 16, 192, 192, 10000.0, 1e-5, 256), codes=64, grid=4, answer=8, block=4),
}
_TINY_TOWER = Tower(8, (1, 1, 1, 1, 1), (1, 1, 1, 1, 1))


@dataclass(frozen=True, slots=True)
class RandomTensors:
    """Normal numbers in the shapes of a checkpoint, of deviation 0.02 (a convolution's by its inputs); ones for scales and
    zeros for biases. The same rows whenever they are asked for."""

    shapes: Mapping[str, tuple[int, ...]]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        shape = self.shapes[name]
        first, stop = (rows.start or 0, rows.stop) if rows else (0, shape[0])
        if len(shape) == 1:
            return np.full(stop - first, 0.0 if name.endswith(".bias") else 1.0, dtype=np.float32)
        random = np.random.default_rng([*name.encode(), first])
        deviation = 0.02 if len(shape) == 2 else 1 / math.sqrt(math.prod(shape[1:]))
        return random.standard_normal((stop - first, *shape[1:]), dtype=np.float32) * np.float32(deviation)


def cached_bundle(name: str, precision: str, work: Path, *, target: str = "cpu", pictures: bool = False) -> Bundle:
    """The bundle of a size of SIZES in the folder `work`: opened where it is there, else made, whole or not at all; one that
    another version of the exporter made is made anew, since it would be measured in place of this one.

    target: what it is lowered for; pictures: with an image tokenizer of the published shape.
    Raises Error for an unknown size or precision, when the disk is too small, and when something else lies in its place.
    """
    size = size_named(name)
    own = [] if target == "cpu" else [target]
    folder = work / "-".join([name.lower(), precision, *own, *(["pictures"] if pictures else [])])
    if not (folder / MANIFEST).is_file():
        chosen = {"backbone": "int4-b64", "text_head": "int4-b64"} if precision == "int4" and name == "tiny" else None
        return write_bundle(size, folder, precision, target, chosen, pictures=pictures)
    bundle = Bundle.open(folder)
    if (bundle.provenance.source, bundle.architecture) != (_RANDOM, size.architecture):
        raise Error(f"{folder} holds another model than the random one of size {name}; choose another folder for --work")
    if bundle.provenance.versions.get("exporter") != exporter():
        print(f"{folder} is of another exporter: it is made anew", file=sys.stderr, flush=True)
        shutil.rmtree(folder)
        return cached_bundle(name, precision, work, target=target, pictures=pictures)
    return bundle


def exporter() -> str:
    """A word for the code that makes graphs and weights of a bundle: it changes whenever that does."""
    files = (codec.__file__, graph.__file__, heads.__file__, lowering.__file__, precision_module.__file__, transformer.__file__)
    code = [Path(file).read_bytes() for file in (*files, formats.__file__) if file]
    return hashlib.sha256(b"".join(code)).hexdigest()[:16]


def size_named(name: str) -> Size:
    """A size of SIZES, in capitals or not. Raises Error for an unknown one."""
    if name.lower() not in SIZES:
        raise Error(f"no shape is called {name!r}; use one of {', '.join(SIZES)}")
    return SIZES[name.lower()]


def write_bundle(
    size: Size,
    folder: Path,
    precision: str,
    target: str,
    chosen: Mapping[str, str] | None = None,
    *,
    pictures: bool = False,
) -> Bundle:
    """Embedder, backbone and heads of a size, and with `pictures` an image tokenizer. Returns the bundle, opened."""
    forms = specs_for(precision, target, chosen)
    sizes = dict.fromkeys(("embedder", "backbone", "text_head", "image_head", *(["codec"] if pictures else [])), 0)
    graphs: dict[str, dict[str, Any]] = {}
    with BundleWriter(folder, needed=_needed(size, precision)) as writer:
        group = ""

        def count(tensor: str, wrote: int) -> None:
            sizes[group] += wrote

        with WeightFile(writer.folder / "weights.bin", count) as weights:
            for group in sizes:
                for name in ("image_encoder", "image_decoder") if group == "codec" else (group,):
                    made = Graph(name, weights)
                    _build(made, name, size, forms[group])
                    inputs, outputs = made.save(writer.folder / f"{name}.onnx")
                    graphs[name] = {"file": f"{name}.onnx", "inputs": list(inputs), "outputs": list(outputs)}
        groups = {name: asdict(weight_group(name, forms[name], taken)) for name, taken in sizes.items()}
        return Bundle.open(writer.finish(_description(size, groups, graphs, target)))


def _build(made: Graph, name: str, size: Size, form: WeightSpec) -> None:
    config, vq = config_of(size), vq_of(size)
    source, pixels = RandomTensors(config.expected_tensors()), RandomTensors(vq.expected_tensors())
    first = size.vocabulary.image_code_offset
    if name == "embedder":
        transformer.build_embedder(made, source, form, config.d_model)
    elif name == "backbone":
        transformer.build_backbone(made, source, form, config)
    elif name == "image_encoder":
        codec.build_image_encoder(made, pixels, form, vq)
    elif name == "image_decoder":
        codec.build_image_decoder(made, pixels, form, vq)
    else:
        columns = (first, first + size.codes) if name == "image_head" else None
        heads.build_head(made, Weight(source, _HEAD, columns), form)


def _needed(size: Size, precision: str) -> int:
    """Bytes on disk, for the check before anything is written; the image tokenizer's are few."""
    image = ImageInfo(size.grid * 16, 16)
    return _ROOM + sum(g.bytes or 0 for g in stored(Shape("", size.architecture, size.codes, image, 0), precision).values())


def vq_of(size: Size) -> VQConfig:
    """The published image tokenizer; a small one where the codebook is another."""
    bits = size.codes.bit_length() - 1
    if bits == VQConfig().z_channels:
        return VQConfig()
    return VQConfig(_TINY_TOWER, _TINY_TOWER, z_channels=bits, resolution=size.grid * 16, group_norm_groups=4)


def config_of(size: Size) -> TransformerConfig:
    a = size.architecture
    shared = {name: getattr(a, name) for name in Architecture.__slots__ if name != "head_dim"}
    special = size.vocabulary.special
    return TransformerConfig(
        **shared,
        mask_token_id=special.mask,
        eos_token_id=special.eos,
        codebook_size=size.codes,
        llm_vocab_size=a.vocab_size - size.codes,
        num_vq_tokens=size.grid**2,
    )


def _description(size: Size, groups: Mapping[str, Any], graphs: Mapping[str, Any], target: str) -> dict[str, Any]:
    text = {"answer_length": size.answer, "steps": size.answer // 2, "block_length": size.block, "cache": "dual"}
    return {
        "name": "synthetic",
        "architecture": asdict(size.architecture),
        "vocabulary": size.vocabulary.to_json(),
        "image": {"resolution": size.grid * 16, "downsample": 16},
        "quantization": groups,
        "target": target,
        "defaults": {"text": text, "image": {"steps": 15 if size.grid > 4 else 5, "guidance": 3.5}},
        "graphs": graphs,
        "provenance": {
            "source": _RANDOM,
            "exporter": f"mmada-lite {mmada_lite.__version__}",
            "versions": {"numpy": np.__version__, "exporter": exporter()},
            "created": "",
        },
    }
