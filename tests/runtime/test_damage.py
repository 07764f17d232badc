"""A damaged weight never passes in silence: each tensor of the packaged model in turn, with a block that is not finite and
hashes that fit, ends the first answer or drawing that reads it in an Error. So do the scales of int8 and int4."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from PIL import Image

from mmada_lite import Error, ImageSettings, Model, TextSettings, load
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.model import embedded_bundle

SHIPPED = Path(__file__).parents[2] / "train" / "shipped"
FLOATS = {TensorProto.FLOAT: np.dtype("float32"), TensorProto.FLOAT16: np.dtype("float16")}
BLOCK = 64  # numbers
TEXT, IMAGE = TextSettings(answer_length=4, steps=2, block_length=4), ImageSettings(steps=2)
USES: dict[str, Callable[[Model], Any]] = {
    "chat": lambda model: model.chat("what is 3 + 4?", TEXT).result(),
    "paint": lambda model: model.paint("a red apple", IMAGE).result(),
    "ask": lambda model: model.ask(Image.new("RGB", (64, 64), "red"), "what is this?", TEXT).result(),
}
READ_BY = {
    **{"embedder": ("chat", "paint"), "backbone": ("chat", "paint"), "text_head": ("chat",), "image_head": ("paint",)},
    **{"image_encoder": ("ask",), "image_decoder": ("paint",)},
}


def with_block(values: bytes, offset: int, kind: np.dtype, count: int, value: float) -> bytes:
    block = np.full(min(count, BLOCK), value, kind).tobytes()
    return values[:offset] + block + values[offset + len(block) :]


def damaged(bundle: Path, folder: Path, *, every: int) -> Iterator[tuple[str, str]]:
    """(graph, tensor) of every so many tensors of floats, while `folder` is a bundle in which that one is damaged."""
    shutil.copytree(bundle, folder)
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    weights, number = (bundle / "weights.bin").read_bytes(), 0
    for graph, about in manifest["graphs"].items():
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


def silent_uses(bundle: Path, folder: Path, *, every: int) -> list[tuple[str, str, str]]:
    """Graph, tensor and use of whatever gave a result."""
    silent, number = [], 0
    for graph, tensor in damaged(bundle, folder, every=every):
        model, number = load(folder, device="cpu", threads=1), number + 1
        for use in READ_BY[graph]:
            try:
                USES[use](model)
            except Error:
                continue
            silent.append((graph, tensor, use))
    assert number > 10  # it did look
    return silent


def test_no_damage_of_the_packaged_model_is_silent(tmp_path: Path) -> None:
    assert silent_uses(embedded_bundle(), tmp_path / "damaged", every=1) == []


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_no_damage_of_codes_scales_is_silent(precision: Any, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    bundle = export_checkpoint(SHIPPED / "emoji", tmp_path / "bundle", precision=precision)
    every = 1 if pytestconfig.getoption("fuzz") else 8
    assert silent_uses(bundle, tmp_path / "damaged", every=every) == []
