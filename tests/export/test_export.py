"""A checkpoint becomes a bundle: complete, valid, in little memory. A broken one becomes one line; a crash leaves nothing."""

import json
import math
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import load_file, save_file
from tiny_checkpoint import write_checkpoint

from mmada_lite.bundle import Bundle
from mmada_lite.errors import Error
from mmada_lite.export.bundle import export_checkpoint
from mmada_lite.export.checkpoint import TransformerConfig
from mmada_lite.export.graph import ALIGNMENT
from mmada_lite.vocabulary import SpecialTokens, Vocabulary


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


def test_a_whole_checkpoint_becomes_a_whole_bundle(tiny: Path, tmp_path: Path) -> None:
    source = copied(tiny, tmp_path / "source")
    (source / "NOTICE").write_text("thanks")
    (source / "mmada_lite.json").write_text(
        json.dumps({"name": "tiny", "defaults": {"text": {"steps": 7}, "image": {"steps": 4}}})
    )
    reports: list[tuple[int, int, str]] = []
    written = export_checkpoint(source, tmp_path / "bundle", precision="fp16", progress=lambda *report: reports.append(report))
    bundle = Bundle.open(written, verify="full")
    assert bundle.name == "tiny"
    assert (bundle.text_defaults.steps, bundle.image_defaults.steps, bundle.image_defaults.guidance) == (7, 4, 3.5)
    assert bundle.image is not None
    assert (bundle.image.resolution, bundle.image.downsample) == (16, 4)
    assert set(bundle.graphs) == {"embedder", "backbone", "text_head", "image_head", "image_encoder", "image_decoder"}
    assert {"NOTICE", "tokenizer.json", "weights.bin"} <= set(bundle.files)
    assert bundle.tokenizer_path == written / "tokenizer.json"
    assert bundle.provenance.source == "source"
    done = [report[0] for report in reports]
    assert done == sorted(done)
    assert done[-1] == reports[-1][1]
    assert list(tmp_path.glob(".*")) == []


def test_every_graph_is_valid_onnx_with_aligned_weights(tiny: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(export_checkpoint(tiny, tmp_path / "bundle", precision="fp16"))
    for name, info in bundle.graphs.items():
        onnx.checker.check_model(str(bundle.graph_path(name)), full_check=True)
        model = onnx.load(str(bundle.graph_path(name)), load_external_data=False)
        assert [opset.version for opset in model.opset_import] == [23]
        assert tuple(value.name for value in model.graph.input) == info.inputs
        assert tuple(value.name for value in model.graph.output) == info.outputs
        for tensor in model.graph.initializer:
            places = {entry.key: entry.value for entry in tensor.external_data}
            assert int(places.get("offset", 0)) % ALIGNMENT == 0


def test_no_dependence_on_the_checkpoint_afterwards(tiny: Path, tmp_path: Path) -> None:
    moved = export_checkpoint(tiny, tmp_path / "bundle", precision="fp32").rename(tmp_path / "elsewhere")
    session = onnxruntime.InferenceSession(str(Bundle.open(moved).graph_path("embedder")))
    table = load_file(tiny / "model.safetensors")["model.transformer.wte.weight"]
    tokens = np.array([[0, 7, 7, 260]])
    np.testing.assert_array_equal(session.run(None, {"tokens": tokens})[0], table[tokens])


def test_the_model_is_never_held(tmp_path: Path) -> None:
    """160 MB of bfloat16 pass through a third of that, and 16 GB would pass through as little."""
    source = big_checkpoint(tmp_path / "big")
    stored = (source / "model.safetensors").stat().st_size
    tracemalloc.start()
    try:
        export_checkpoint(source, tmp_path / "bundle", precision="fp16", vocabulary=big_vocabulary())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert stored > 150e6
    assert peak < 50e6


BIG = TransformerConfig(
    d_model=1024,
    n_layers=1,
    n_heads=16,
    n_kv_heads=16,
    mlp_hidden_size=4096,
    vocab_size=32768,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
    mask_token_id=9,
    eos_token_id=1,
    max_sequence_length=1024,
    codebook_size=8192,
    llm_vocab_size=20000,
    num_vq_tokens=1024,
)


def big_vocabulary() -> Vocabulary:
    return Vocabulary(SpecialTokens(*range(12)), image_code_offset=20000, codebook_size=8192, size=32768)


def big_checkpoint(folder: Path) -> Path:
    """Only the header is written: the data is a hole in the file, which reads as zeros."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(BIG.to_json()))
    header: dict[str, Any] = {}
    end = 0
    for name, shape in BIG.expected_tensors().items():
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end := end + 2 * math.prod(shape)]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    return folder


def copied(source: Path, target: Path) -> Path:
    target.mkdir()
    for path in source.rglob("*"):
        place = target / path.relative_to(source)
        place.mkdir() if path.is_dir() else place.write_bytes(path.read_bytes())
    return target


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def break_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.transformer.wte.weight"][3, 3] = 1e6
    save_file(tensors, folder / "model.safetensors")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer.json"),
    "another codebook": (lambda f: edit(f / "config.json", codebook_size=8), "different codebook_size"),
    "unknown sidecar key": (lambda f: (f / "mmada_lite.json").write_text('{"defalts": {}}'), "unknown key 'defalts'"),
    "wrong default": (
        lambda f: (f / "mmada_lite.json").write_text('{"defaults": {"text": {"step": 1}}}'),
        "unknown setting 'step'",
    ),
    "impossible default": (
        lambda f: (f / "mmada_lite.json").write_text('{"defaults": {"image": {"steps": 0}}}'),
        r"mmada_lite\.json: defaults\.image: steps is 0",
    ),
    "unreadable knowledge": (
        lambda f: (f / "mmada_lite.json").write_text('{"knows": {"turns": "one"}}'),
        r"mmada_lite\.json: knows\.turns is",
    ),
    "no image tokenizer weights": (lambda f: (f / "vq" / "model.safetensors").unlink(), "vq"),
    "truncated weights": (lambda f: os.truncate(f / "model.safetensors", 5000), "fetch the file again"),
    "no half precision": (break_weights, "is the most that can be stored"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_checkpoint_is_one_line_and_leaves_nothing(tiny: Path, tmp_path: Path, fault: str) -> None:
    spoil, message = BROKEN[fault]
    source = copied(tiny, tmp_path / "source")
    spoil(source)
    with pytest.raises(Error, match=message) as caught:
        export_checkpoint(source, tmp_path / "out" / "bundle", precision="fp16")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_unknown_precision_and_missing_folder(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(Error, match="no precision is called 'fp6'; use one of fp32, fp16"):
        export_checkpoint(tiny, tmp_path / "bundle", precision="fp6")  # type: ignore[arg-type]
    with pytest.raises(Error, match="no such checkpoint folder"):
        export_checkpoint(tmp_path / "nowhere", tmp_path / "bundle")


KILLED = """
import os, signal, sys
from mmada_lite.export.bundle import export_checkpoint
def die(done, total, name):
    if done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)
export_checkpoint(sys.argv[1], sys.argv[2], force=True, progress=die)
"""


def test_killed_in_the_middle_the_old_bundle_stays(tiny: Path, tmp_path: Path) -> None:
    def run() -> int:
        return subprocess.run(
            [sys.executable, "-c", KILLED, tiny, tmp_path / "bundle"], check=False, cwd=Path(__file__).parents[2]
        ).returncode

    assert run() == -signal.SIGKILL
    with pytest.raises(Error, match="no such bundle folder"):
        Bundle.open(tmp_path / "bundle")
    export_checkpoint(tiny, tmp_path / "bundle", precision="fp32")
    before = (tmp_path / "bundle" / "bundle.json").read_bytes()
    assert run() == -signal.SIGKILL
    assert Bundle.open(tmp_path / "bundle", verify="full")
    assert (tmp_path / "bundle" / "bundle.json").read_bytes() == before
    assert len(list(tmp_path.glob(".bundle.partial-*"))) == 1  # the first one's was removed by the export between
    assert Bundle.open(export_checkpoint(tiny, tmp_path / "bundle", force=True)).quantization["backbone"].format == "fp16"
    assert list(tmp_path.glob(".*")) == []
