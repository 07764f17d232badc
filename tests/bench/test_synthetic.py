"""The synthetic checkpoint: the published names and shapes, distinct numbers, in shards, exported like any other."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import mmada_lite
from mmada_lite.bench.synthetic import SIZES, cached_bundle, exporter
from mmada_lite.bundle import Bundle
from mmada_lite.errors import Error
from mmada_lite.export.checkpoint import TensorSource, TransformerConfig
from mmada_lite.quant.convert import Request, quantize_model
from mmada_lite.quant.synthetic import PUBLISHED, WORDS, write_checkpoint

SMALL = replace(
    PUBLISHED,
    d_model=32,
    n_heads=4,
    n_kv_heads=4,
    mlp_hidden_size=48,
    vocab_size=316,
    codebook_size=16,
    llm_vocab_size=300,
    mask_token_id=296,
    eos_token_id=289,
)


def test_names_and_shapes_are_the_published_ones(golden: Path) -> None:
    manifest = json.loads((golden / "llm" / "real_8b_manifest.json").read_text())
    published = {name: tuple(tensor["shape"]) for name, tensor in manifest["tensors"].items()}
    assert PUBLISHED.expected_tensors() == published
    assert TransformerConfig.from_json(manifest["config"]) == PUBLISHED
    assert WORDS + PUBLISHED.codebook_size <= PUBLISHED.vocab_size


def test_a_smaller_one_is_read_and_quantized(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", layers=2, pictures=False, config=SMALL, shard=30_000)
    source = TensorSource.open(folder)
    source.verify(replace(SMALL, n_layers=2).expected_tensors())
    assert len(source.files) > 2
    values = [source.read(name) for name in source.names if len(source.shape(name)) == 2]
    assert len({value.tobytes() for value in values}) == len(values)
    assert 0.015 < float(np.std(source.read("model.transformer.wte.weight"))) < 0.025
    bundle = Bundle.open(quantize_model(folder, tmp_path / "b", Request("int4", "rtn")))
    assert (bundle.image, bundle.architecture.n_layers, bundle.vocabulary.special.mask) == (None, 2, 296)


def test_the_same_seed_writes_the_same_and_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    first, again, other = (
        write_checkpoint(tmp_path / str(n), layers=1, pictures=False, config=SMALL, seed=seed)
        for n, seed in enumerate((0, 0, 1))
    )
    bytes_of = [(folder / "model.safetensors").read_bytes() for folder in (first, again, other)]
    assert bytes_of[0] == bytes_of[1] != bytes_of[2]
    with pytest.raises(Error, match="exists already"):
        write_checkpoint(first, layers=1, pictures=False, config=SMALL)
    with pytest.raises(Error, match="0 layers make no model"):
        write_checkpoint(tmp_path / "none", layers=0)


def test_a_bundle_of_a_named_size_is_made_once_and_never_mistaken(tmp_path: Path) -> None:
    made = cached_bundle("tiny", "int8", tmp_path, pictures=True)
    stamp = (made.path / "weights.bin").stat().st_mtime_ns
    again = cached_bundle("TINY", "int8", tmp_path, pictures=True)
    assert (again.path / "weights.bin").stat().st_mtime_ns == stamp
    assert (again.architecture, again.image) == (SIZES["tiny"].architecture, made.image)
    codec = mmada_lite.load(made.path, device="cpu", threads=1).codec
    codes = codec.encode(np.random.default_rng(0).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32))
    assert codes.shape == (1, 4, 4)
    assert codec.decode(codes[0]).size == (64, 64)
    manifest = made.path / "bundle.json"
    manifest.write_text(manifest.read_text().replace(exporter(), "an older one"))
    assert cached_bundle("tiny", "int8", tmp_path, pictures=True).provenance.versions["exporter"] == exporter()
    (tmp_path / "s-int8").mkdir()
    for name in ("bundle.json", "weights.bin"):
        shutil.copy(made.path / name, tmp_path / "s-int8" / name)
    for file in made.path.glob("*.onnx"):
        shutil.copy(file, tmp_path / "s-int8" / file.name)
    with pytest.raises(Error, match="another model"):
        cached_bundle("s", "int8", tmp_path)
    with pytest.raises(Error, match="no shape is called '9b'"):
        cached_bundle("9b", "int8", tmp_path)


def test_the_sizes_are_those_that_are_compared() -> None:
    s = SIZES["s"].architecture
    layer = 4 * s.d_model**2 + 3 * s.d_model * s.mlp_hidden_size
    assert round((s.n_layers * layer + 2 * s.d_model * s.vocab_size) / 1e6) == 494
    assert len({(size.codes, size.grid) for name, size in SIZES.items() if name != "tiny"}) == 1
