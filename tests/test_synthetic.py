"""The synthetic checkpoint: the published names and shapes, distinct numbers, in shards, exported like any other."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

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
