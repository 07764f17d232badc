"""A bundle of random weights in a known shape: as large and as slow as a real one, and meaning nothing.

Weights are drawn as they are written, some megabytes at a time, every tensor from its own seed, so that no two are equal (equal
ones would be stored once, and memory and speed would be fiction). It knows what a bundle holds; it measures nothing.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import mmada_lite
from mmada_lite.bundle import Architecture, Bundle, BundleWriter
from mmada_lite.export import heads, transformer
from mmada_lite.export.checkpoint import TransformerConfig
from mmada_lite.export.graph import Graph, WeightFile
from mmada_lite.export.lowering import Weight
from mmada_lite.export.recipe import described, recipe
from mmada_lite.planning import PUBLISHED
from mmada_lite.vocabulary import SpecialTokens, Vocabulary

_TABLE, _HEAD = "model.transformer.wte.weight", "model.transformer.ff_out.weight"
_LEAST = 12  # ids of the special tokens


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


SIZES: Mapping[str, Size] = {
    "8b": Size(PUBLISHED["8b"].architecture, codes=8192, grid=32, answer=128, block=32),
    "tiny": Size(Architecture(64, 2, 4, 4, 16, 192, 192, 10000.0, 1e-5, 256), codes=64, grid=4, answer=8, block=4),
}


@dataclass(frozen=True, slots=True)
class RandomTensors:
    """Normal numbers of deviation 0.02 in the shapes of a checkpoint; the same rows whenever they are asked for."""

    shapes: Mapping[str, tuple[int, ...]]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        shape = self.shapes[name]
        first, stop = (rows.start or 0, rows.stop) if rows else (0, shape[0])
        if len(shape) == 1:
            return np.ones(stop - first, dtype=np.float32)
        random = np.random.default_rng([*name.encode(), first])
        return random.standard_normal((stop - first, shape[1]), dtype=np.float32) * np.float32(0.02)


def write_bundle(size: Size, folder: Path, precision: str, target: str, formats: Mapping[str, str] | None = None) -> Bundle:
    """Embedder, backbone and heads of a size; no image tokenizer. Returns the bundle, opened."""
    config = config_of(size)
    source = RandomTensors(config.expected_tensors())
    forms = recipe(precision, target, formats)
    first = size.vocabulary.image_code_offset
    columns = {"text_head": Weight(source, _HEAD), "image_head": Weight(source, _HEAD, (first, first + size.codes))}
    sizes = dict.fromkeys(("embedder", "backbone", *columns), 0)
    graphs: dict[str, dict[str, Any]] = {}
    with BundleWriter(folder) as writer:
        group = ""

        def count(tensor: str, wrote: int) -> None:
            sizes[group] += wrote

        with WeightFile(writer.folder / "weights.bin", count) as weights:
            for group in sizes:
                graph, form = Graph(group, weights), forms[group]
                if group == "embedder":
                    transformer.build_embedder(graph, source, form, config.d_model)
                elif group == "backbone":
                    transformer.build_backbone(graph, source, form, config)
                else:
                    heads.build_head(graph, columns[group], form)
                inputs, outputs = graph.save(writer.folder / f"{group}.onnx")
                graphs[group] = {"file": f"{group}.onnx", "inputs": list(inputs), "outputs": list(outputs)}
        groups = {name: asdict(described(name, forms[name], taken)) for name, taken in sizes.items()}
        return Bundle.open(writer.finish(_description(size, groups, graphs, target)))


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
            "source": "random numbers",
            "exporter": f"mmada-lite {mmada_lite.__version__}",
            "versions": {"numpy": np.__version__},
            "created": "",
        },
    }
