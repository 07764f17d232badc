"""The synthetic model: the published names and shapes, distinct numbers that do not depend on how they are asked for, a
checkpoint in shards that is exported like any other, and a bundle that is made once."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from mmada_lite.bundle import Bundle
from mmada_lite.errors import Error
from mmada_lite.export import synthetic
from mmada_lite.export.checkpoint import TensorSource, TransformerConfig
from mmada_lite.export.synthetic import SIZES, RandomTensors, cached_bundle, config_of, exporter, write_bundle, write_checkpoint
from mmada_lite.memory_plan import Shape
from mmada_lite.quant.convert import Request, quantize_model
from mmada_lite.vocabulary import Tokenizer, Vocabulary

BODY = {"d_model": 32, "n_heads": 4, "n_kv_heads": 4, "head_dim": 8, "mlp_hidden_size": 48, "vocab_size": 316}
SMALL = replace(SIZES["8b"], architecture=replace(SIZES["8b"].architecture, **BODY), codes=16)


def test_names_shapes_and_ids_are_the_published_ones(golden: Path, tmp_path: Path) -> None:
    manifest = json.loads((golden / "llm" / "real_8b_manifest.json").read_text())
    known = synthetic._stand_in(SIZES["8b"])
    config = config_of(SIZES["8b"], known)
    assert config.expected_tensors() == {name: tuple(tensor["shape"]) for name, tensor in manifest["tensors"].items()}
    assert TransformerConfig.from_json(manifest["config"]) == config
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({f"<{n}>": n for n in range(known.image_code_offset - 3)}, []))
    tokenizer.save(str(tmp_path / "tokenizer.json"))  # a file without special tokens has the published ids
    vocabulary = Vocabulary.from_tokenizer(
        Tokenizer.from_file(tmp_path / "tokenizer.json"), codebook_size=8192, size=config.vocab_size
    )
    assert (vocabulary.special.mask, vocabulary.special.eot) == (126336, 126348)
    assert vocabulary == known


def test_numbers_are_distinct_and_the_same_however_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "_PIECE", 40)
    source = RandomTensors({"a.weight": (23, 7), "b.weight": (23, 7), "c.weight": (4, 3, 2, 2), "c.bias": (4,), "n": (4,)})
    values = source.read("a.weight")
    np.testing.assert_array_equal(np.concatenate(list(source.pieces("a.weight"))), values)
    for rows in (slice(0, 1), slice(3, 17), slice(5, 10), slice(22, 23), slice(10, None)):
        np.testing.assert_array_equal(source.read("a.weight", rows), values[rows])
    assert len({source.read(name).tobytes() for name in ("a.weight", "b.weight")}) == 2
    assert len(np.unique(values)) == values.size
    assert (source.read("c.bias").sum(), source.read("n").sum()) == (0, 4)
    assert not np.array_equal(RandomTensors(source.shapes, 1).read("a.weight"), values)


def test_a_checkpoint_is_read_and_quantized(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", SMALL, layers=2, pictures=False, shard=30_000)
    source = TensorSource.open(folder)
    source.verify(TransformerConfig.load(folder).expected_tensors())
    assert len(source.files) > 2
    values = [source.read(name) for name in source.names if len(source.shape(name)) == 2]
    assert len({value.tobytes() for value in values}) == len(values)
    drawn = RandomTensors(TransformerConfig.load(folder).expected_tensors()).read("model.transformer.wte.weight")
    stored = source.read("model.transformer.wte.weight")
    assert 0.015 < float(np.std(stored)) < 0.025
    np.testing.assert_allclose(stored, drawn, rtol=2**-7)  # bfloat16 of the very numbers that a bundle is made of
    bundle = Bundle.open(quantize_model(folder, tmp_path / "b", Request("int4", "rtn")))
    assert (bundle.image, bundle.architecture.n_layers, bundle.vocabulary.special.mask) == (None, 2, 296)


def test_the_same_seed_writes_the_same_and_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    first, again, other = (
        write_checkpoint(tmp_path / str(n), SMALL, layers=1, pictures=False, seed=seed) for n, seed in enumerate((0, 0, 1))
    )
    bytes_of = [(folder / "model.safetensors").read_bytes() for folder in (first, again, other)]
    assert bytes_of[0] == bytes_of[1] != bytes_of[2]
    with pytest.raises(Error, match="exists already"):
        write_checkpoint(first, SMALL, layers=1, pictures=False)
    with pytest.raises(Error, match="0 layers make no model"):
        write_checkpoint(tmp_path / "none", layers=0)


def test_the_command_writes_a_small_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(tmp_path / "c"), "--shape", "tiny", "--layers", "1"]
    assert synthetic.main(words) == 0
    assert TransformerConfig.load(tmp_path / "c").n_layers == 1
    assert not (tmp_path / "c" / "vq").exists()  # the published image tokenizer has other codes
    assert synthetic.main(words) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_bundle_of_a_named_size_is_made_once_and_never_mistaken(tmp_path: Path) -> None:
    bundle = cached_bundle("tiny", "int8", tmp_path)
    stamp = (bundle.path / "weights.bin").stat().st_mtime_ns
    again = cached_bundle("TINY", "int8", tmp_path)
    assert (again.path / "weights.bin").stat().st_mtime_ns == stamp
    assert (again.architecture, again.image) == (SIZES["tiny"].architecture, bundle.image)
    manifest = bundle.path / "bundle.json"
    manifest.write_text(manifest.read_text().replace(exporter(), "an older one"))
    assert cached_bundle("tiny", "int8", tmp_path).provenance.source_sha256 == exporter()
    (tmp_path / "s-int8").mkdir()
    for name in ("bundle.json", "weights.bin"):
        shutil.copy(bundle.path / name, tmp_path / "s-int8" / name)
    for file in bundle.path.glob("*.onnx"):
        shutil.copy(file, tmp_path / "s-int8" / file.name)
    with pytest.raises(Error, match="another model"):
        cached_bundle("s", "int8", tmp_path)
    with pytest.raises(Error, match="no shape is called '9b'"):
        cached_bundle("9b", "int8", tmp_path)


def test_bundles_are_made_for_a_device(tmp_path: Path) -> None:
    bundle = write_bundle(SIZES["tiny"], tmp_path / "b", "int8", "cuda")
    assert Shape.of(bundle).architecture == SIZES["tiny"].architecture
    assert bundle.target == "cuda"
    assert {group.format for group in bundle.quantization.values()} == {"int8", "fp16"}


def test_the_sizes_are_those_that_are_compared() -> None:
    s = SIZES["s"].architecture
    layer = 4 * s.d_model**2 + 3 * s.d_model * s.mlp_hidden_size
    assert round((s.n_layers * layer + 2 * s.d_model * s.vocab_size) / 1e6) == 494
    assert len({(size.codes, size.grid) for name, size in SIZES.items() if name != "tiny"}) == 1
