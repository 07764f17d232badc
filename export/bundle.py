"""From a checkpoint folder to a bundle: checks everything first, then streams each graph's weights, then describes
the result.

It decides what goes into a bundle and under which name. How a graph is built is `transformer`, `heads` and `codec`;
how a folder appears on disk whole or not at all is `mmada_lite.bundle`.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mmada_lite
from mmada_lite.bundle import Architecture, BundleWriter, read_settings
from mmada_lite.decoding.settings import ImageSettings, TextSettings, plain
from mmada_lite.errors import Error
from mmada_lite.export.checkpoint import Tensors, TensorSource, TransformerConfig, VQConfig, read_json
from mmada_lite.vocabulary import Tokenizer, Vocabulary

if TYPE_CHECKING:
    from mmada_lite.export.graph import Graph
    from mmada_lite.export.lowering import Target, WeightSpec
    from mmada_lite.export.precision import Precision

Progress = Callable[[int, int, str], None]  # bytes written, bytes in all, the tensor just written
WEIGHTS = "weights.bin"
SIDECAR = "mmada_lite.json"
_CARRIED = ("tokenizer.json", "LICENSE", "NOTICE", "README.md", "model_card.md")
_ROOM = 8 << 20  # bytes, for graph files, the tokenizer and alignment
_ROOT, _TABLE, _OUTPUT = "model.transformer.", "wte.weight", "ff_out.weight"


@dataclass(frozen=True, slots=True)
class Part:
    """One graph to be written: the group its weights count to, the tensors it stores by their name in the graph, and
    what builds it."""

    name: str
    group: str
    shapes: Mapping[str, tuple[int, ...]]
    build: "Callable[[Graph, WeightSpec], None]"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model whose every tensor was found where it belongs; nothing of it is read yet.

    origin: the name of what it came from, with the sha256 of its config.json. codec: the graphs of the image tokenizer
    and, in `image`, what bundle.json says of it. image_tensors: where the image head finds its matrix, if elsewhere.
    """

    folder: Path
    config: TransformerConfig
    tensors: Tensors
    vocabulary: Vocabulary
    codec: tuple[Part, ...]
    image: Mapping[str, int] | None
    sidecar: Mapping[str, Any]
    origin: tuple[str, str | None]
    image_tensors: Tensors | None = None


def export_checkpoint(
    source: str | Path,
    output: str | Path,
    *,
    precision: "Precision" = "fp16",
    target: "Target" = "cpu",
    formats: Mapping[str, str] | None = None,
    force: bool = False,
    vocabulary: Vocabulary | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the checkpoint folder `source` as the bundle `output`; returns the bundle's path.

    precision: fp32, fp16, or int8 and int4 rounded to nearest; `formats` (group -> format) changes it for the embedder,
    backbone, text_head, image_head or codec. target: the kind of device that graphs are written for.
    Weights pass through memory some megabytes at a time. `vocabulary` stands in for a tokenizer.json that the
    checkpoint lacks (the bundle then cannot read text). An mmada_lite.json beside the weights may hold {"name",
    "defaults": {"text", "image"}}. Raises Error when the checkpoint is incomplete or not supported, when a group cannot be
    stored as asked, when `output` exists and `force` is not set, or the disk is full.
    """
    forms = forms_for(precision, target, formats)
    return write_bundle(open_checkpoint(Path(source), vocabulary), forms, output, force=force, progress=progress)


def write_bundle(
    checkpoint: Checkpoint,
    forms: "Mapping[str, WeightSpec]",
    output: str | Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
    method: str | None = None,
) -> Path:
    """Write an opened checkpoint as the bundle `output`, each group as `forms` says; `method`: how codes were found, for
    the record. Raises Error as `export_checkpoint` does."""
    parts = parts_of(checkpoint)
    sizes = group_sizes(parts, forms)
    description = _describe(checkpoint, parts, sizes, forms, method)
    with BundleWriter(Path(output), force=force, needed=sum(sizes.values()) + _ROOM) as writer:
        graphs = _write_graphs(parts, forms, writer.folder, progress)
        for name in _CARRIED:
            if (checkpoint.folder / name).is_file():
                shutil.copyfile(checkpoint.folder / name, writer.folder / name)
        return writer.finish(description | {"graphs": graphs})


def export_codec(source: str | Path, output: str | Path, *, precision: "Precision" = "fp32") -> dict[str, Path]:
    """Write only the image tokenizer in the folder `source` as graphs in the folder `output`; returns graph name ->
    file."""
    forms = forms_for(precision, "cpu", None)
    parts = list(_codec_parts(VQConfig.load(source), TensorSource.open(source)))
    Path(output).mkdir(parents=True, exist_ok=True)
    return {name: Path(output) / graph["file"] for name, graph in _write_graphs(parts, forms, Path(output), None).items()}


def forms_for(precision: str, target: str = "cpu", formats: Mapping[str, str] | None = None) -> "dict[str, WeightSpec]":
    """Group -> form, see `recipe`. Raises Error also when onnx is not there."""
    if find_spec("onnx") is None:
        raise Error('exporting needs onnx; pip install "mmada-lite[export]"')
    from mmada_lite.export.precision import recipe

    return recipe(precision, target, formats)


def open_checkpoint(folder: Path, vocabulary: Vocabulary | None = None) -> Checkpoint:
    """Check a checkpoint folder from end to end without reading its weights. Raises Error that names what is wrong."""
    if not folder.is_dir():
        raise Error(f"{folder}: no such checkpoint folder; give one that holds config.json and model.safetensors")
    config = TransformerConfig.load(folder)
    tensors = TensorSource.open(folder)
    tensors.verify(config.expected_tensors())
    vq = None
    if (folder / "vq").is_dir():
        vq = VQConfig.load(folder / "vq"), TensorSource.open(folder / "vq")
        vq[1].verify(vq[0].expected_tensors())
    found = vocabulary or _vocabulary(folder, config)
    sizes = {"the vocabulary": found.codebook_size, "config.json": config.codebook_size}
    if vq:
        sizes["vq"] = vq[0].codebook_size
    if len(set(sizes.values())) > 1:
        raise Error(f"{folder}: different codebook_size in " + ", ".join(f"{name} ({size})" for name, size in sizes.items()))
    if found.size != config.vocab_size:
        raise Error(
            f"{folder}: the vocabulary has {found.size} ids and the embedding {config.vocab_size} rows; they must agree"
        )
    codec: tuple[Part, ...] = ()
    image = None
    if vq:
        codec = tuple(_codec_parts(*vq))
        image = {"resolution": vq[0].resolution, "downsample": vq[0].downsample_factor}
    origin = folder.resolve().name, hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    return Checkpoint(folder, config, tensors, found, codec, image, _sidecar(folder), origin)


def _vocabulary(folder: Path, config: TransformerConfig) -> Vocabulary:
    if not (folder / "tokenizer.json").is_file():
        raise Error(f"{folder} holds no tokenizer.json; put the one that was published with the weights beside them")
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    return Vocabulary.from_tokenizer(
        tokenizer, codebook_size=config.codebook_size, size=config.vocab_size, mask_id=config.mask_token_id
    )


def _sidecar(folder: Path) -> dict[str, Any]:
    if not (folder / SIDECAR).is_file():
        return {}
    content = read_json(folder / SIDECAR)
    for place, keys in ((content, ("name", "defaults")), (content.get("defaults", {}), ("text", "image"))):
        if unknown := sorted(set(place) - set(keys)):
            raise Error(f"{folder / SIDECAR}: unknown key {unknown[0]!r}; the keys are {', '.join(keys)}")
    return content


def parts_of(checkpoint: Checkpoint) -> list[Part]:
    """Every graph that the bundle of a checkpoint holds."""
    return [*_transformer_parts(checkpoint), *checkpoint.codec]


def _transformer_parts(checkpoint: Checkpoint) -> Iterator[Part]:
    from mmada_lite.export import heads, transformer
    from mmada_lite.export.lowering import Weight

    config, source, vocabulary = checkpoint.config, checkpoint.tensors, checkpoint.vocabulary
    shapes = {name.removeprefix(_ROOT): shape for name, shape in config.expected_tensors().items()}
    table, whole = {_TABLE: shapes.pop(_TABLE)}, {_OUTPUT: shapes.pop(_OUTPUT)}
    first = vocabulary.image_code_offset
    codes = Weight(checkpoint.image_tensors or source, _ROOT + _OUTPUT, (first, first + vocabulary.codebook_size))
    yield Part("embedder", "embedder", table, lambda g, f: transformer.build_embedder(g, source, f, config.d_model))
    yield Part("backbone", "backbone", shapes, lambda g, f: transformer.build_backbone(g, source, f, config))
    yield Part("text_head", "text_head", whole, lambda g, f: heads.build_head(g, Weight(source, _ROOT + _OUTPUT), f))
    yield Part("image_head", "image_head", {_OUTPUT: codes.shape}, lambda g, f: heads.build_head(g, codes, f))


def _codec_parts(config: VQConfig, source: TensorSource) -> Iterator[Part]:
    from mmada_lite.export import codec

    builders = {"encoder": codec.build_image_encoder, "decoder": codec.build_image_decoder}
    for tower, build in builders.items():
        shapes = {name: shape for name, shape in config.expected_tensors().items() if name.startswith(f"{tower}.")}
        yield Part(f"image_{tower}", "codec", shapes, lambda g, f, build=build: build(g, source, f, config))  # type: ignore[misc]


def group_sizes(parts: Sequence[Part], forms: "Mapping[str, WeightSpec]") -> dict[str, int]:
    """Group -> bytes of its tensors in the bundle. Raises Error when a matrix cannot be stored as its group asks."""
    from mmada_lite.export.lowering import check_linear, linear_bytes, table_bytes

    sizes = dict.fromkeys(sorted({part.group for part in parts}), 0)
    for part in parts:
        form, lookup = forms[part.group], part.group == "embedder"
        for shape in part.shapes.values():
            if len(shape) == 2 and not lookup:
                check_linear(shape, form)
            sizes[part.group] += table_bytes(shape, form) if lookup else linear_bytes(shape, form)
    return sizes


def _write_graphs(
    parts: Sequence[Part], forms: "Mapping[str, WeightSpec]", folder: Path, progress: Progress | None
) -> dict[str, dict[str, Any]]:
    """Write every graph and the one weight file; returns what bundle.json says of the graphs."""
    from mmada_lite.export.graph import Graph, WeightFile

    done, total = 0, sum(group_sizes(parts, forms).values())

    def wrote(name: str, size: int) -> None:
        nonlocal done
        done += size
        if progress:
            progress(done, total, name)

    described = {}
    with WeightFile(folder / WEIGHTS, wrote) as weights:
        for part in parts:
            graph = Graph(part.name, weights)
            part.build(graph, forms[part.group])
            file = f"{part.name}.onnx"
            inputs, outputs = graph.save(folder / file)
            described[part.name] = {"file": file, "inputs": list(inputs), "outputs": list(outputs)}
    assert done == total, f"{done} bytes written, {total} expected"
    return described


def _describe(
    checkpoint: Checkpoint,
    parts: Sequence[Part],
    sizes: Mapping[str, int],
    forms: "Mapping[str, WeightSpec]",
    method: str | None,
) -> dict[str, Any]:
    """What bundle.json says, without graphs and files. sizes: bytes of each group that the checkpoint has."""
    from mmada_lite.export.precision import described

    config = checkpoint.config
    architecture = {name: getattr(config, name) for name in (field.name for field in fields(Architecture))}
    provenance = {
        "source": checkpoint.origin[0],
        "source_sha256": checkpoint.origin[1],
        "exporter": f"mmada-lite {mmada_lite.__version__}",
        "versions": {package: version(package) for package in ("onnx", "numpy")},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return {
        "name": checkpoint.sidecar.get("name", checkpoint.folder.resolve().name),
        "architecture": architecture,
        "vocabulary": checkpoint.vocabulary.to_json(),
        "image": checkpoint.image,
        "quantization": {group: asdict(described(group, forms[group], size)) for group, size in sizes.items()},
        "tensors": {part.name: _stored(part, forms[part.group]) for part in parts},
        "defaults": defaults_of(checkpoint),
        "provenance": provenance | ({"method": method} if method else {}),
        "target": forms["backbone"].target,
    }


def _stored(part: Part, form: "WeightSpec") -> dict[str, str]:
    """Tensor -> the name of the format that it is stored in; norms and biases are always fp32."""
    return {name: form.format.name if len(shape) > 1 else "fp32" for name, shape in part.shapes.items()}


def defaults_of(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """The reference's settings, shortened where the model reads fewer tokens, under what the sidecar says. Checked
    here, once."""
    answer = max(1, min(512, checkpoint.config.max_sequence_length // 2))
    text = {"answer_length": answer, "steps": -(-answer // 2), "block_length": -(-answer // 4)}
    image = {"steps": 15, "guidance": 3.5, "temperature": 1.0, "schedule": "cosine"}
    given = checkpoint.sidecar.get("defaults", {})
    where = str(checkpoint.folder / SIDECAR)
    chosen = {"text": text | given.get("text", {}), "image": image | given.get("image", {})}
    said = {
        "text": plain(read_settings(TextSettings, chosen["text"], f"{where}: defaults.text")),
        "image": plain(read_settings(ImageSettings, chosen["image"], f"{where}: defaults.image")),
    }
    return {kind: {key: value for key, value in chosen[kind].items() if key in said[kind]} for kind in chosen}
