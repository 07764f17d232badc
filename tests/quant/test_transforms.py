"""Transforms: names, shapes and what the model computes stay; how hard its channels are to round does not."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mmada_lite.export.checkpoint import TensorSource, TransformerConfig
from mmada_lite.quant.transforms import ROOT, SITES, TransformedTensors, Transforms, layer_and_part, rotation, smoothing
from mmada_lite.train.model import MMaDA, load_state

CASES = ("mha", "gqa")


def model_of(source: object, config: TransformerConfig) -> MMaDA:
    with torch.device("meta"):
        model = MMaDA(config)
    load_state(model, source, torch.float32)  # type: ignore[arg-type]
    return model.eval()


def random_transforms(kind: str, source: TensorSource, config: TransformerConfig) -> Transforms:
    transforms, rng = Transforms(), np.random.default_rng(0)
    if kind != "smooth":
        transforms.residual, transforms.heads = rotation(config.d_model, 1), rotation(config.head_dim, 1)
    if kind != "rotate":
        for layer in range(config.n_layers):
            for site, matrices in SITES.items():
                width = source.shape(f"{ROOT}.blocks.{layer}.{matrices[0]}.weight")[1]
                factors = rng.lognormal(0, 1, width).astype(np.float32)
                if site == "value":  # heads that share a key head share its factors
                    shared = factors.reshape(config.n_kv_heads, -1, config.head_dim)
                    shared[:] = shared[:, :1]
                transforms.factors[layer, site] = factors
    return transforms


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["rotate", "smooth", "both"])
def test_the_function_stays(golden: Path, case: str, kind: str) -> None:
    folder = golden / "llm" / case
    source, config = TensorSource.open(folder), TransformerConfig.load(folder)
    view = TransformedTensors(source, config, random_transforms(kind, source, config))
    tokens = torch.from_numpy(np.random.default_rng(2).integers(0, config.vocab_size, (3, 17)))
    with torch.inference_mode():
        plain, changed = model_of(source, config), model_of(view, config)
        before, after = (model.logits(model(tokens).hidden) for model in (plain, changed))
    assert (before - after).abs().max() < 1e-5 * before.abs().max()
    first = f"{ROOT}.blocks.0.q_proj.weight"
    assert np.abs(view.read(first) - source.read(first)).max() > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_any_rows_are_those_of_the_whole(golden: Path, case: str) -> None:
    folder = golden / "llm" / case
    source, config = TensorSource.open(folder), TransformerConfig.load(folder)
    view = TransformedTensors(source, config, random_transforms("both", source, config))
    for name in source.names:
        assert view.shape(name) == source.shape(name)
        values = view.read(name)
        np.testing.assert_allclose(view.read(name, slice(3, 9)), values[3:9], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 12, 32, 64, 96, 192])
def test_rotations_are_orthogonal_and_spread_an_outlier(size: int) -> None:
    turn = rotation(size, 0).astype(np.float64)
    np.testing.assert_allclose(turn @ turn.T, np.eye(size), atol=1e-6)
    np.testing.assert_array_equal(rotation(size, 0), rotation(size, 0))
    if size in (32, 64):
        np.testing.assert_allclose(np.abs(turn), size**-0.5, atol=1e-6)
    if size >= 32:
        assert np.abs(turn[0]).max() < 0.5
        assert np.abs(rotation(size, 1) - turn).max() > 0.1


def test_smoothing_takes_from_what_is_large() -> None:
    x, w = np.array([100, 1, 1, 0], np.float32), np.array([1, 1, 4, 0], np.float32)
    factors = smoothing(x, w, 0.5)
    assert (factors[0] > factors[1] > factors[2], factors[3]) == (True, 1)
    np.testing.assert_allclose(np.log(factors[:3]).mean(), 0, atol=1e-6)
    np.testing.assert_allclose((x / factors)[:2] / (w * factors)[:2], (x / factors)[0] / (w * factors)[0], rtol=1e-5)
    assert (smoothing(x * 0, w, 0.5) == 1).all()
    for alpha in (0.25, 0.75):
        wanted = x[:3] ** alpha / w[:3] ** (1 - alpha)
        np.testing.assert_allclose(smoothing(x, w, alpha)[:3], wanted / np.prod(wanted) ** (1 / 3), rtol=1e-5)


def test_smoothing_is_by_logarithms_in_double_precision() -> None:
    """The very factors that they give, in float32."""
    x, w = np.random.default_rng(0).lognormal(0, 3, (2, 999)).astype(np.float32)
    logs = 0.3 * np.log(x.astype(np.float64)) - (1 - 0.3) * np.log(w.astype(np.float64))
    assert (smoothing(x, w, 0.3) == np.exp(logs - logs.mean()).astype(np.float32)).all()


def test_names_are_read() -> None:
    assert layer_and_part(f"{ROOT}.blocks.12.ff_out.weight") == (12, "ff_out")
    assert layer_and_part(f"{ROOT}.ff_out.weight") == (None, "ff_out")
    assert layer_and_part(f"{ROOT}.ln_f.weight") == (None, "ln_f")
