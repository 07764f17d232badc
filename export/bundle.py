"""From a checkpoint folder to a bundle: the folder is checked from end to end, its graphs are planned, their weights are
streamed into one file, and bundle.json describes the result.

It decides what goes into a bundle and under which name. How a graph is built is `transformer`, `heads` and `codec`, how a
group of tensors is stored `precision`; how a folder appears on disk whole or not at all is `mmada_lite.bundle`.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mmada_lite
from mmada_lite.bundle import FP8_WEIGHTS, HALF_CACHES, PACKED_FOR_CUDA, Architecture, BundleWriter, read_settings
from mmada_lite.decoding.settings import ImageSettings, TextSettings, plain
from mmada_lite.errors import Error
from mmada_lite.export import codec, fused, heads, lowering, transformer
from mmada_lite.export.checkpoint import SIDECAR, Tensors, TensorSource, TransformerConfig, VQConfig, read_json
from mmada_lite.export.graph import Graph, WeightFile
from mmada_lite.export.lowering import Target, WeightSpec, check_linear, linear_bytes, table_bytes
from mmada_lite.export.precision import Precision, specs_for, weight_group, with_caches
from mmada_lite.export.weights import Weight
from mmada_lite.files import require_readable
from mmada_lite.knowledge import Knowledge
from mmada_lite.ort.attention_forms import JOINED
from mmada_lite.vocabulary import Tokenizer, Vocabulary

Progress = Callable[[int, int, str], None]  # bytes written, bytes in all, the tensor just written
WEIGHTS = "weights.bin"
_COPIED = ("tokenizer.json", "LICENSE", "NOTICE", "README.md", "model_card.md")
_MARGIN = 8 << 20  # bytes of disk for graph files, the tokenizer and alignment
_ROOT, _TABLE, _OUTPUT = "model.transformer.", "wte.weight", "ff_out.weight"


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """One graph to be written: the group its weights count to, the shapes of the tensors that it stores by their name in the
    graph, and what builds it."""

    name: str
    group: str
    shapes: Mapping[str, tuple[int, ...]]
    build: Callable[[Graph, WeightSpec], None]


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
    codec: tuple[GraphPlan, ...]
    image: Mapping[str, int] | None
    sidecar: Mapping[str, Any]
    origin: tuple[str, str | None]
    image_tensors: Tensors | None = None

    @property
    def image_rows(self) -> slice:
        """The rows of the output matrix that are codes of pictures."""
        first = self.vocabulary.image_code_offset
        return slice(first, first + self.vocabulary.codebook_size)


def export_checkpoint(
    source: str | Path,
    output: str | Path,
    *,
    precision: Precision = "fp16",
    target: Target = "cpu",
    formats: Mapping[str, str] | None = None,
    cache_precision: str | None = None,
    attention: str = JOINED,
    packed: bool = False,
    force: bool = False,
    vocabulary: Vocabulary | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write the checkpoint folder `source` as the bundle `output`; returns the bundle's path.

    precision: fp32, fp16, bf16, or int8, fp8 and int4 rounded to nearest; `formats` (group -> format) changes it for the
    embedder, backbone, text_head, image_head or codec. target: the kind of device that graphs are written for.
    cache_precision: fp32 or fp16, in which graphs for processors keep keys and values (None: fp32). attention: for cuda, by
    which operators the backbone attends (`mmada_lite.ort.attention_forms`); packed: its codes are laid out for CUDA's kernels
    now and not whenever it is opened, and nothing else can run it.
    Weights pass through memory some megabytes at a time. `vocabulary` stands in for a tokenizer.json that the
    checkpoint lacks (the bundle then cannot read text). An mmada_lite.json beside the weights may hold {"name",
    "knows", "defaults": {"text", "image"}}. Raises Error when the checkpoint is incomplete or not supported, when a
    group cannot be stored as asked, when `output` exists and `force` is not set, or the disk is full.
    """
    specs = with_caches(specs_for(precision, target, formats, attention, packed), cache_precision)
    checkpoint = open_checkpoint(Path(source), vocabulary)
    return write_bundle(checkpoint, specs, output, force=force, progress=progress)


def write_bundle(
    checkpoint: Checkpoint,
    specs: Mapping[str, WeightSpec],
    output: str | Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
    method: str | None = None,
    same: Callable[[str], str] = lambda name: name,
) -> Path:
    """Write an opened checkpoint as the bundle `output`, each group as `specs` says; `method`: how codes were found, for
    the record; `same`: as of `WeightFile`. Raises Error as `export_checkpoint` does."""
    plans = graph_plans(checkpoint)
    sizes = group_sizes(plans, specs)
    description = _describe(checkpoint, plans, sizes, specs, method)
    with BundleWriter(Path(output), force=force, needed=sum(sizes.values()) + _MARGIN) as writer:
        graphs = _write_graphs(plans, specs, writer.folder, progress, same)
        for name in _COPIED:
            if (checkpoint.folder / name).is_file():
                require_readable(checkpoint.folder / name)
                shutil.copyfile(checkpoint.folder / name, writer.folder / name)
        _undo_training(writer.folder / "tokenizer.json")
        return writer.finish(description | {"graphs": graphs})


def _undo_training(tokenizer: Path) -> None:
    """Take out of a tokenizer.json what training cut, padded and dropped, which some readers obey and some do not."""
    if not tokenizer.is_file():
        return
    content = read_json(tokenizer)
    model = content.get("model") or {}
    if any((content.get("truncation"), content.get("padding"), model.get("dropout"))):
        changed = content | {"truncation": None, "padding": None, "model": model | {"dropout": None}}
        tokenizer.write_text(json.dumps(changed, ensure_ascii=False), encoding="utf-8")


def export_codec(source: str | Path, output: str | Path, *, precision: Precision = "fp32") -> dict[str, Path]:
    """Write only the image tokenizer in the folder `source` as graphs in the folder `output`; returns graph name ->
    file."""
    plans = list(_codec_plans(VQConfig.load(source), TensorSource.open(source)))
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    graphs = _write_graphs(plans, specs_for(precision), folder, None)
    return {name: folder / graph["file"] for name, graph in graphs.items()}


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
    vocabulary = vocabulary or _vocabulary(folder, config)
    _check_sizes(folder, config, vocabulary, vq[0] if vq else None)
    return Checkpoint(
        folder=folder,
        config=config,
        tensors=tensors,
        vocabulary=vocabulary,
        codec=tuple(_codec_plans(*vq)) if vq else (),
        image={"resolution": vq[0].resolution, "downsample": vq[0].downsample_factor} if vq else None,
        sidecar=_sidecar(folder),
        origin=(folder.resolve().name, hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()),
    )


def _vocabulary(folder: Path, config: TransformerConfig) -> Vocabulary:
    if not (folder / "tokenizer.json").exists():
        raise Error(f"{folder} holds no tokenizer.json; put the one that was published with the weights beside them")
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    vocabulary = Vocabulary.from_tokenizer(
        tokenizer, codebook_size=config.codebook_size, size=config.vocab_size, mask_id=config.mask_token_id
    )
    vocabulary.check_tokenizer(tokenizer)
    return vocabulary


def _check_sizes(folder: Path, config: TransformerConfig, vocabulary: Vocabulary, vq: VQConfig | None) -> None:
    """Vocabulary, embedding and image tokenizer must agree on how many ids and codes there are."""
    sizes = {"the vocabulary": vocabulary.codebook_size, "config.json": config.codebook_size}
    if vq:
        sizes["vq"] = vq.codebook_size
    if len(set(sizes.values())) > 1:
        raise Error(f"{folder}: different codebook_size in " + ", ".join(f"{name} ({size})" for name, size in sizes.items()))
    if vocabulary.size != config.vocab_size:
        raise Error(
            f"{folder}: the vocabulary has {vocabulary.size} ids and the embedding {config.vocab_size} rows; they must agree"
        )


def _sidecar(folder: Path) -> dict[str, Any]:
    if not (folder / SIDECAR).is_file():
        return {}
    content = read_json(folder / SIDECAR)
    for place, keys in ((content, ("name", "defaults", "knows")), (content.get("defaults", {}), ("text", "image"))):
        if unknown := sorted(set(place) - set(keys)):
            raise Error(f"{folder / SIDECAR}: unknown key {unknown[0]!r}; the keys are {', '.join(keys)}")
    try:
        Knowledge.from_json(content.get("knows", {}))
    except Error as fault:
        raise Error(f"{folder / SIDECAR}: {fault}") from None
    return content


def graph_plans(checkpoint: Checkpoint) -> list[GraphPlan]:
    """Every graph that the bundle of a checkpoint holds."""
    return [*_transformer_plans(checkpoint), *checkpoint.codec]


def _transformer_plans(checkpoint: Checkpoint) -> Iterator[GraphPlan]:
    config, source, image_rows = checkpoint.config, checkpoint.tensors, checkpoint.image_rows
    shapes = {name.removeprefix(_ROOT): shape for name, shape in config.expected_tensors().items()}
    table, output = {_TABLE: shapes.pop(_TABLE)}, {_OUTPUT: shapes.pop(_OUTPUT)}
    text = Weight(source, _ROOT + _OUTPUT)
    image = Weight(checkpoint.image_tensors or source, _ROOT + _OUTPUT, (image_rows.start, image_rows.stop))
    yield GraphPlan("embedder", "embedder", table, lambda g, s: transformer.build_embedder(g, source, s, config.d_model))
    yield GraphPlan("backbone", "backbone", shapes, lambda g, s: _build_backbone(g, source, s, config))
    yield GraphPlan("text_head", "text_head", output, lambda g, s: heads.build_head(g, text, s))
    yield GraphPlan("image_head", "image_head", {_OUTPUT: image.shape}, lambda g, s: heads.build_head(g, image, s))


def _build_backbone(graph: Graph, source: Tensors, spec: WeightSpec, config: TransformerConfig) -> None:
    build = fused.build_fused_backbone if spec.target == "cuda" else transformer.build_backbone
    build(graph, source, spec, config)


def _codec_plans(config: VQConfig, source: TensorSource) -> Iterator[GraphPlan]:
    builders = {"encoder": codec.build_image_encoder, "decoder": codec.build_image_decoder}
    for tower, build in builders.items():
        shapes = {name: shape for name, shape in config.expected_tensors().items() if name.startswith(f"{tower}.")}
        yield GraphPlan(f"image_{tower}", "codec", shapes, lambda g, s, build=build: build(g, source, s, config))  # type: ignore[misc]


def group_sizes(plans: Sequence[GraphPlan], specs: Mapping[str, WeightSpec]) -> dict[str, int]:
    """Group -> bytes of its tensors in the bundle. Raises Error when a matrix cannot be stored as its group asks."""
    sizes = dict.fromkeys(sorted({plan.group for plan in plans}), 0)
    for plan in plans:
        spec, lookup = specs[plan.group], plan.group == "embedder"
        for shape in plan.shapes.values():
            if len(shape) == 2 and not lookup:
                check_linear(shape, spec)
            norm = lowering.vector_dtype(spec) if plan.group == "backbone" else "float32"
            sizes[plan.group] += table_bytes(shape, spec) if lookup else linear_bytes(shape, spec, norm)
    return sizes


def _write_graphs(
    plans: Sequence[GraphPlan],
    specs: Mapping[str, WeightSpec],
    folder: Path,
    progress: Progress | None,
    same: Callable[[str], str] = lambda name: name,
) -> dict[str, dict[str, Any]]:
    """Write every graph and the one weight file; returns what bundle.json says of the graphs."""
    done, total = 0, sum(group_sizes(plans, specs).values())

    def wrote(name: str, size: int) -> None:
        nonlocal done
        done += size
        if progress:
            progress(done, total, name)

    records = {}
    with WeightFile(folder / WEIGHTS, wrote, same) as weights:
        for plan in plans:
            graph = Graph(plan.name, weights)
            plan.build(graph, specs[plan.group])
            file = f"{plan.name}.onnx"
            inputs, outputs = graph.save(folder / file)
            records[plan.name] = {"file": file, "inputs": list(inputs), "outputs": list(outputs)}
    assert done == total, f"{done} bytes written, {total} expected"
    return records


def _describe(
    checkpoint: Checkpoint,
    plans: Sequence[GraphPlan],
    sizes: Mapping[str, int],
    specs: Mapping[str, WeightSpec],
    method: str | None,
) -> dict[str, Any]:
    """What bundle.json says, without graphs and files. sizes: bytes of each group that the checkpoint has."""
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
        "family": "mmada",
        "needs": [
            need
            for need, asked in (
                (HALF_CACHES, specs["backbone"].half_caches),
                (PACKED_FOR_CUDA, specs["backbone"].packed),
                (FP8_WEIGHTS, any(specs[group].format.family == "fp8" for group in sizes)),
            )
            if asked
        ],
        "knows": checkpoint.sidecar.get("knows", {}),
        "architecture": architecture,
        "vocabulary": checkpoint.vocabulary.to_json(),
        "rows": checkpoint.vocabulary.rows.to_json(),
        "image": checkpoint.image,
        "quantization": {group: asdict(weight_group(group, specs[group], size)) for group, size in sizes.items()},
        "tensors": {plan.name: _stored_formats(plan, specs[plan.group]) for plan in plans},
        "defaults": defaults_of(checkpoint),
        "provenance": provenance | ({"method": method} if method else {}),
        "target": specs["backbone"].target,
    }


def _stored_formats(plan: GraphPlan, spec: WeightSpec) -> dict[str, str]:
    """Tensor -> the name of the format that it is stored in; norms and biases are fp32, or as what they scale."""
    norm = "fp16" if plan.group == "backbone" and lowering.vector_dtype(spec) == "float16" else "fp32"
    return {name: spec.format.name if len(shape) > 1 else norm for name, shape in plan.shapes.items()}


def defaults_of(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """The reference's settings, shortened where the model reads fewer tokens, under what the sidecar says. Checked
    here, once."""
    answer = max(1, min(512, checkpoint.config.max_sequence_length // 2))
    text = {"answer_length": answer, "steps": -(-answer // 2), "block_length": -(-answer // 4)}
    image = {"steps": 15, "guidance": 3.5, "temperature": 1.0, "schedule": "cosine"}
    given = checkpoint.sidecar.get("defaults", {})
    where = str(checkpoint.folder / SIDECAR)
    return {
        "text": plain(read_settings(TextSettings, text | given.get("text", {}), f"{where}: defaults.text")),
        "image": plain(read_settings(ImageSettings, image | given.get("image", {}), f"{where}: defaults.image")),
    }
