"""A checkpoint whose matrices know their codes: those that a work folder holds, and of the others what the method finds
alone, piece by piece. Pure numpy; the exporter reads it like any other source.
"""

from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from mmada_lite.bundle import Architecture, Bundle
from mmada_lite.decoding.settings import plain
from mmada_lite.errors import Error
from mmada_lite.export.bundle import Checkpoint, GraphPlan
from mmada_lite.export.checkpoint import Tensors, TransformerConfig
from mmada_lite.export.formats import Format, Quantized, pack_blocks, quantize, unpack_blocks
from mmada_lite.export.graph import Graph
from mmada_lite.quant.methods import Method, clipped
from mmada_lite.quant.transforms import ROOT, parsed
from mmada_lite.quant.work_folder import WorkFolder

_TOGETHER = 128  # codes of a column that are packed together, whatever their blocks


def packed(matrix: str, held: Quantized) -> dict[str, np.ndarray]:
    """A matrix as the arrays of a unit of the work folder."""
    arrays: dict[str, np.ndarray] = {
        f"{matrix}.codes": pack_blocks(held.codes, held.format, _TOGETHER),
        f"{matrix}.scales": held.scales,
    }
    return arrays if held.zeros is None else arrays | {f"{matrix}.zeros": held.zeros}


class Prepared:
    """A checkpoint whose matrices have codes in a work folder; tensors without are rounded as the method does alone.

    `head`: which of the heads' codes the output matrix stands for, and the first row that they cover.
    """

    def __init__(
        self, source: Tensors, method: Method, work: WorkFolder | None, head: str = "text_head", first: int = 0
    ) -> None:
        self.source, self.method, self.work, self.head, self.first = source, method, work, head, first
        self._unit: tuple[str, dict[str, np.ndarray]] = "", {}

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(name)

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        return self.source.read(name, rows)

    def quantized(self, name: str, form: Format, rows: slice) -> Quantized:
        layer, part = parsed(name)
        unit = self.head if layer is None else f"layer-{layer}"
        if self.work is None or part == "wte" or not self.work.has(unit):
            chunk = np.asarray(self.source.read(name, rows), np.float32)
            return (clipped if self.method.rounding != "rtn" else quantize)(chunk, form, name)
        if self._unit[0] != unit:
            self._unit = unit, self.work.load(unit)
        arrays = self._unit[1]
        first = self.first if layer is None else 0
        held = slice(rows.start - first, rows.stop - first)
        codes = unpack_blocks(np.asarray(arrays[f"{part}.codes"][held]), form, self.shape(name)[1])
        zeros = arrays.get(f"{part}.zeros")
        return Quantized(
            form, codes, np.asarray(arrays[f"{part}.scales"][held]), None if zeros is None else np.asarray(zeros[held])
        )


_TYPES: dict[int, np.dtype] = {TensorProto.FLOAT: np.dtype("float32"), TensorProto.FLOAT16: np.dtype("float16")}
_CODEC = ("image_encoder", "image_decoder")


def open_bundle(folder: Path) -> Checkpoint:
    """Raises Error when the bundle is damaged, or when it is quantized already: what was rounded away is not in it."""
    bundle = Bundle.open(folder)
    for group in ("embedder", "backbone", "text_head"):
        if (stored := bundle.quantization[group].format) not in ("fp32", "fp16"):
            raise Error(
                f"{folder}: its {group} is quantized already ({stored}); "
                "give the checkpoint, or a bundle exported with --precision fp16"
            )
    tensors = BundleTensors(bundle)
    config = _config(bundle)
    for name, shape in config.expected_tensors().items():
        if tensors.shape(name) != shape:
            raise Error(f"{folder}: {name} is {list(tensors.shape(name))} and should be {list(shape)}; fetch the bundle again")
    sidecar = {
        "name": bundle.name,
        "defaults": {"text": plain(bundle.text_defaults), "image": plain(bundle.image_defaults)},
    }
    image = None if bundle.image is None else asdict(bundle.image)
    origin = bundle.provenance.source, bundle.provenance.source_sha256
    codec = tuple(_codec_parts(bundle)) if bundle.image else ()
    return Checkpoint(folder, config, tensors, bundle.vocabulary, codec, image, sidecar, origin)


class BundleTensors:
    """The tensors of the transformer in a bundle, under the checkpoint's names and in its layout."""

    def __init__(self, bundle: Bundle) -> None:
        self._folder = bundle.path
        self._found: dict[str, tuple[TensorProto, bool]] = {}  # name -> initializer, and whether it lies transposed
        for graph in ("embedder", "backbone", "text_head"):
            for tensor in _initializers(bundle.graph_path(graph)):
                self._found[f"{ROOT}.{tensor.name}"] = tensor, graph != "embedder" and len(tensor.dims) == 2

    def shape(self, name: str) -> tuple[int, ...]:
        tensor, transposed = self._entry(name)
        return tuple(reversed(tensor.dims)) if transposed else tuple(tensor.dims)

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        tensor, transposed = self._entry(name)
        whole = _values(tensor, self._folder)
        part = whole[:, rows or slice(None)].T if transposed else whole[rows or slice(None)]
        return np.array(part, np.float32, order="C")

    def _entry(self, name: str) -> tuple[TensorProto, bool]:
        if name not in self._found:
            raise Error(f"{self._folder}: no tensor named {name} in its graphs; export it again")
        return self._found[name]


def _initializers(graph: Path) -> list[TensorProto]:
    """Of a graph file, without the weights outside it."""
    return list(onnx.load(str(graph), load_external_data=False).graph.initializer)


def _values(tensor: TensorProto, folder: Path) -> np.ndarray:
    """An initializer's numbers: mapped from the file of weights, or out of the graph itself."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return np.asarray(numpy_helper.to_array(tensor))
    place = {entry.key: entry.value for entry in tensor.external_data}
    kind, offset = _TYPES[int(tensor.data_type)], int(place["offset"])
    return np.memmap(folder / place["location"], kind, "r", offset, tuple(tensor.dims))


def _config(bundle: Bundle) -> TransformerConfig:
    shape, vocabulary, image = bundle.architecture, bundle.vocabulary, bundle.image
    known = {field.name for field in fields(TransformerConfig)}
    return TransformerConfig(
        **{field.name: getattr(shape, field.name) for field in fields(Architecture) if field.name in known},
        mask_token_id=vocabulary.special.mask,
        eos_token_id=vocabulary.special.eos,
        codebook_size=vocabulary.codebook_size,
        llm_vocab_size=vocabulary.image_code_offset,
        num_vq_tokens=(image.resolution // image.downsample) ** 2 if image else 1,
    )


def _codec_parts(bundle: Bundle) -> Iterator[GraphPlan]:
    for name in _CODEC:
        path = bundle.graph_path(name)
        shapes = {tensor.name: tuple(tensor.dims) for tensor in _initializers(path) if not Graph.is_constant(tensor.name)}
        yield GraphPlan(name, "codec", shapes, lambda graph, form, path=path: _adopt(graph, path))  # type: ignore[misc]


def _adopt(graph: Graph, path: Path) -> None:
    graph.adopt(onnx.load(str(path), load_external_data=False), lambda tensor: _values(tensor, path.parent))
