"""Copies of a bundle in which one tensor after another has a block of numbers that are not finite, with hashes that fit."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.model import embedded_bundle

FLOATS = {TensorProto.FLOAT: np.dtype("float32"), TensorProto.FLOAT16: np.dtype("float16")}
BLOCK = 64  # numbers
# Graph -> what reads it.
READ_BY = {
    **{"embedder": ("chat", "paint"), "backbone": ("chat", "paint"), "text_head": ("chat",), "image_head": ("paint",)},
    **{"image_encoder": ("ask",), "image_decoder": ("paint",)},
}
SHIPPED = Path(__file__).parents[1] / "train" / "shipped" / "emoji"
_BLOCKS = dict.fromkeys(("backbone", "text_head", "image_head"), "int8-b128")
# Precision of the packaged model -> what `export_checkpoint` is told; nothing, it is packaged so.
PRECISIONS: Mapping[str, Mapping[str, Any]] = {
    "fp16": {},
    "fp32": {"precision": "fp32"},
    "int8": {"precision": "int8"},
    "int8-b128": {"precision": "int8", "formats": _BLOCKS},
    "int4": {"precision": "int4"},
}


def packaged_in(precision: str, folder: Path) -> Path:
    """The packaged model in one of `PRECISIONS`, or as an export calls it."""
    told = PRECISIONS.get(precision, {"precision": precision})
    return export_checkpoint(SHIPPED, folder, **told) if told else embedded_bundle()


def with_block(values: bytes, offset: int, kind: np.dtype, count: int, value: float) -> bytes:
    block = np.full(min(count, BLOCK), value, kind).tobytes()
    return values[:offset] + block + values[offset + len(block) :]


def damaged(bundle: Path, folder: Path, *, every: int) -> Iterator[tuple[str, str]]:
    """(graph, tensor) of every so many tensors of floats, while `folder` is a bundle in which that one is damaged. Beside
    integers the image tokenizer is the one of fp16, and left out."""
    shutil.copytree(bundle, folder)
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    weights, number = (bundle / "weights.bin").read_bytes(), 0
    integers = manifest["quantization"]["backbone"]["bits"] <= 8
    for graph, about in manifest["graphs"].items():
        if integers and graph.startswith("image_") and graph != "image_head":
            continue
        model = onnx.load(str(bundle / about["file"]), load_external_data=False)
        for tensor in model.graph.initializer:
            if tensor.data_type not in FLOATS or tensor.name.startswith("constant_"):
                continue
            number += 1
            if number % every:
                continue
            about_it = FLOATS[tensor.data_type], int(np.prod(tensor.dims)), (np.inf, np.nan)[number // every % 2]
            if tensor.data_location == TensorProto.EXTERNAL:
                place = {entry.key: entry.value for entry in tensor.external_data}
                name, content = "weights.bin", with_block(weights, int(place["offset"]), *about_it)
            else:
                kept, name = tensor.raw_data, about["file"]
                tensor.raw_data = with_block(kept, 0, *about_it)
                content, tensor.raw_data = model.SerializeToString(), kept
            written = {name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
            (folder / name).write_bytes(content)
            (folder / "bundle.json").write_text(json.dumps(manifest | {"files": manifest["files"] | written}))
            yield graph, tensor.name
            shutil.copyfile(bundle / name, folder / name)
