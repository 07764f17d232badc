"""What a conversion reads: the weights of a checkpoint, or of a bundle that is not quantized; the model that decodes its
prompts; and codes, those that a work folder holds and, of the others, what the method finds alone, piece by piece.

Weights and codes are pure numpy, and the exporter reads them like any other source; torch is imported only where a checkpoint
decodes prompts.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from mmada_lite.bundle import MANIFEST, Architecture, Bundle, read_settings
from mmada_lite.decoding.denoiser import Denoiser
from mmada_lite.decoding.settings import ImageSettings, TextSettings, plain
from mmada_lite.errors import Error
from mmada_lite.export.bundle import Checkpoint, GraphPlan, defaults_of, open_checkpoint
from mmada_lite.export.checkpoint import Tensors, TransformerConfig
from mmada_lite.export.formats import (
    LARGEST_WHOLE,
    Format,
    Quantized,
    pack_blocks,
    quantize,
    require_finite,
    unpack_blocks,
)
from mmada_lite.export.fused import STACKS
from mmada_lite.export.graph import Graph
from mmada_lite.export.lowering import WeightSpec
from mmada_lite.export.weights import Weight
from mmada_lite.files import size_in_words
from mmada_lite.memory_plan import memory_available
from mmada_lite.model import load
from mmada_lite.quant.calibration import CalibrationModel
from mmada_lite.quant.methods import Method, quantize_clipped
from mmada_lite.quant.transforms import ROOT, layer_and_part
from mmada_lite.quant.work_folder import WorkFolder
from mmada_lite.vocabulary import Tokenizer

_DTYPES: dict[int, np.dtype] = {TensorProto.FLOAT: np.dtype("float32"), TensorProto.FLOAT16: np.dtype("float16")}
_CODEC = ("image_encoder", "image_decoder")
_PACKED_TOGETHER = 128  # codes of a column that are packed together, whatever their blocks


def open_source(source: Path) -> Checkpoint:
    """A checkpoint folder, or a bundle that is not quantized. Raises Error that names what is wrong with it."""
    return _open_bundle(source) if is_bundle(source) else open_checkpoint(source)


def is_bundle(source: Path) -> bool:
    return (source / MANIFEST).is_file()


def check_weights(checkpoint: Checkpoint, report: Callable[[str], None]) -> None:
    """Read everything once, so that a bad weight of the last layer is not found at the end of a long conversion."""
    for name in checkpoint.config.expected_tensors():
        report(f"checking {name}")
        for chunk in Weight(checkpoint.tensors, name).chunks():
            require_finite(chunk, name)


def open_calibration_model(checkpoint: Checkpoint, record_with: Path | None) -> CalibrationModel:
    """A denoiser with what it takes to give it prompts. Raises Error when the checkpoint lacks its tokenizer, or is too
    large for the memory and no bundle stands in."""
    config, defaults = checkpoint.config, defaults_of(checkpoint)
    return CalibrationModel(
        denoiser=_bundle_denoiser(checkpoint, record_with) if record_with else _torch_denoiser(checkpoint),
        tokenizer=Tokenizer.from_file(checkpoint.folder / "tokenizer.json"),
        vocabulary=checkpoint.vocabulary,
        codes=config.num_vq_tokens if checkpoint.image else 0,
        longest=config.max_sequence_length,
        text=read_settings(TextSettings, defaults["text"], "defaults.text"),
        image=read_settings(ImageSettings, defaults["image"], "defaults.image"),
    )


def _torch_denoiser(checkpoint: Checkpoint) -> Denoiser:
    import torch

    from mmada_lite.train.denoiser import TorchDenoiser
    from mmada_lite.train.model import MMaDA, load_state

    needed = 4 * sum(int(np.prod(shape)) for shape in checkpoint.config.expected_tensors().values())
    available = memory_available()
    if available is not None and needed > 0.8 * available:
        raise Error(
            f"to decode the prompts the checkpoint takes {size_in_words(needed)} of memory and {size_in_words(available)} "
            "are free; first quantize it with --method rtn, then add --record-with and that bundle"
        )
    with torch.device("meta"):
        model = MMaDA(checkpoint.config)
    load_state(model, checkpoint.tensors, torch.float32)
    return TorchDenoiser(model.eval(), checkpoint.image_rows)


def _bundle_denoiser(checkpoint: Checkpoint, path: Path) -> Denoiser:
    model = load(path)
    shape, config = model.bundle.architecture, checkpoint.config
    names = ("d_model", "n_layers", "n_heads", "n_kv_heads", "mlp_hidden_size", "vocab_size")
    for name in names:
        if getattr(shape, name) != getattr(config, name):
            raise Error(f"{path} is of another model: its {name} is {getattr(shape, name)}, not {getattr(config, name)}")
    return model.denoiser


class QuantizedTensors:
    """Tensors whose matrices have codes in a work folder; those without are rounded as the method does alone.

    `head`: which of the heads' codes the output matrix stands for, and the first row that they cover.
    """

    def __init__(self, source: Tensors, method: Method, work: WorkFolder | None, head: str, first: int) -> None:
        self.source, self.method, self.work, self.head, self.first = source, method, work, head, first
        self._loaded: tuple[str, dict[str, np.ndarray]] = "", {}  # the unit that was read last

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(name)

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        return self.source.read(name, rows)

    def quantized(self, name: str, fmt: Format, rows: slice) -> Quantized:
        layer, part = layer_and_part(name)
        unit = self.head if layer is None else f"layer-{layer}"
        if self.work is None or part == "wte" or not self.work.has(unit):
            chunk = np.asarray(self.source.read(name, rows), np.float32)
            return (quantize_clipped if self.method.rounding != "rtn" else quantize)(chunk, fmt, name)
        if self._loaded[0] != unit:
            self._loaded = unit, self.work.load(unit)
        first = self.first if layer is None else 0
        stored_rows = slice(rows.start - first, rows.stop - first)
        return codes_from_arrays(self._loaded[1], part, fmt, stored_rows, self.shape(name)[1])


def codes_to_arrays(matrix: str, quantized: Quantized) -> dict[str, np.ndarray]:
    """A matrix as the arrays of a unit of the work folder."""
    codes = pack_blocks(quantized.codes, quantized.format, _PACKED_TOGETHER)
    arrays: dict[str, np.ndarray] = {f"{matrix}.codes": codes, f"{matrix}.scales": quantized.scales}
    return arrays if quantized.zeros is None else arrays | {f"{matrix}.zeros": quantized.zeros}


def codes_from_arrays(arrays: dict[str, np.ndarray], matrix: str, fmt: Format, rows: slice, inputs: int) -> Quantized:
    """Rows of a matrix out of the arrays of a unit. inputs: of the matrix."""
    codes = unpack_blocks(np.asarray(arrays[f"{matrix}.codes"][rows]), fmt, inputs)
    zeros = arrays.get(f"{matrix}.zeros")
    scales = np.asarray(arrays[f"{matrix}.scales"][rows])
    return Quantized(fmt, codes, scales, None if zeros is None else np.asarray(zeros[rows]))


def _open_bundle(folder: Path) -> Checkpoint:
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
    return Checkpoint(
        folder=folder,
        config=config,
        tensors=tensors,
        vocabulary=bundle.vocabulary,
        codec=tuple(_codec_plans(bundle)) if bundle.image else (),
        image=None if bundle.image is None else asdict(bundle.image),
        sidecar={
            "name": bundle.name,
            "knows": dict(bundle.knows),
            "defaults": {"text": plain(bundle.text_defaults), "image": plain(bundle.image_defaults)},
        },
        origin=(bundle.provenance.source, bundle.provenance.source_sha256),
    )


class BundleTensors:
    """The tensors of the transformer in a bundle, under the checkpoint's names and in its layout."""

    def __init__(self, bundle: Bundle) -> None:
        self._folder = bundle.path
        self._tensors: dict[str, _Stored] = {}
        shapes = _config(bundle).expected_tensors()
        for graph in ("embedder", "backbone", "text_head"):
            for tensor in _initializers(bundle.graph_path(graph)):
                transposed, first = graph != "embedder" and len(tensor.dims) == 2, 0
                names = _names(f"{ROOT}.{tensor.name}")
                for name in names:
                    stop = first + (shapes[name][0] if len(names) > 1 else 0)
                    self._tensors[name] = _Stored(tensor, transposed, (first, stop) if len(names) > 1 else None)
                    first = stop

    def shape(self, name: str) -> tuple[int, ...]:
        stored = self._tensor(name)
        shape = tuple(reversed(stored.tensor.dims)) if stored.transposed else tuple(stored.tensor.dims)
        return shape if stored.rows is None else (stored.rows[1] - stored.rows[0], *shape[1:])

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        stored, values = self._tensor(name), _values(self._tensor(name).tensor, self._folder)
        matrix = values.T if stored.transposed else values
        if stored.rows is not None:
            matrix = matrix[slice(*stored.rows)]
        return np.array(matrix[rows or slice(None)], np.float32, order="C")

    def _tensor(self, name: str) -> "_Stored":
        if name not in self._tensors:
            raise Error(f"{self._folder}: no tensor named {name} in its graphs; export it again")
        return self._tensors[name]


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where a tensor of a checkpoint lies in a bundle: an initializer, whether it lies transposed, and which rows of it, where
    others are stacked with it."""

    tensor: TensorProto
    transposed: bool
    rows: tuple[int, int] | None


def _names(name: str) -> list[str]:
    """The tensors of a checkpoint that an initializer holds."""
    before, _, part = name.removesuffix(".weight").rpartition(".")
    return [f"{before}.{each}.weight" for each in STACKS[part]] if part in STACKS else [name]


def _initializers(graph: Path) -> list[TensorProto]:
    """Of a graph file, without the weights outside it."""
    return list(onnx.load(str(graph), load_external_data=False).graph.initializer)


def _values(tensor: TensorProto, folder: Path) -> np.ndarray:
    """An initializer's numbers: mapped from the file of weights, or out of the graph itself."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return np.asarray(numpy_helper.to_array(tensor))
    place = {entry.key: entry.value for entry in tensor.external_data}
    dtype, offset = _DTYPES[int(tensor.data_type)], int(place["offset"])
    return np.memmap(folder / place["location"], dtype, "r", offset, tuple(tensor.dims))


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


def _codec_plans(bundle: Bundle) -> Iterator[GraphPlan]:
    """The image tokenizer of a bundle, taken over as it is."""

    def adopt(graph: Graph, spec: WeightSpec, path: Path) -> None:
        graph.adopt(onnx.load(str(path), load_external_data=False), lambda tensor: read(tensor, path.parent))

    def read(tensor: TensorProto, folder: Path) -> np.ndarray:
        values = _values(tensor, folder)
        require_finite(values, tensor.name, LARGEST_WHOLE)
        return values

    for name in _CODEC:
        path = bundle.graph_path(name)
        shapes = {tensor.name: tuple(tensor.dims) for tensor in _initializers(path) if not Graph.is_constant(tensor.name)}
        yield GraphPlan(name, "codec", shapes, lambda graph, spec, path=path: adopt(graph, spec, path))  # type: ignore[misc]
