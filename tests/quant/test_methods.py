"""Methods: a clipping search and GPTQ are never worse than rounding to nearest at what each of them minimizes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmada_lite.errors import Error
from mmada_lite.export.formats import FORMATS, dequantize, quantize
from mmada_lite.quant import gptq as gptq_module
from mmada_lite.quant.gptq import factor_hessian, gptq, match_outputs
from mmada_lite.quant.methods import ROUNDINGS, TRANSFORMS, Method, block_errors, method_named, quantize_clipped

INTEGERS = sorted(name for name, fmt in FORMATS.items() if fmt.whole)


def correlated(tokens: int, inputs: int, seed: int, rank: int = 8) -> np.ndarray:
    """Activations [tokens, K] of which a few directions carry most, and some channels are large."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((tokens, rank)) @ rng.standard_normal((rank, inputs))
    return ((mixed + 0.3 * rng.standard_normal((tokens, inputs))) * rng.lognormal(0, 0.7, inputs)).astype(np.float32)


def output_error(values: np.ndarray, rounded: np.ndarray, x: np.ndarray) -> float:
    return float(np.square(x.astype(np.float64) @ (rounded - values).T).mean())


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("inputs", [96, 160])
def test_gptq_beats_rounding_on_correlated_inputs(name: str, inputs: int) -> None:
    fmt = FORMATS[name]
    values = np.random.default_rng(1).standard_normal((64, inputs), dtype=np.float32)
    x, unseen = np.split(correlated(1250, inputs, 2), [1000])
    hessian = factor_hessian(torch.from_numpy(x.T @ x), "w")
    quantized = gptq(torch.from_numpy(values), hessian, fmt, "w")
    assert quantized.codes.min() >= fmt.range[0]
    assert quantized.codes.max() <= fmt.range[1]
    np.testing.assert_array_equal(quantized.scales, quantized.scales.astype(fmt.scale_dtype).astype(np.float32))
    nearest = output_error(values, dequantize(quantize(values, fmt, "w")), unseen)
    assert output_error(values, dequantize(quantized), unseen) < 0.6 * nearest


@given(st.integers(0, 2**32 - 1), st.sampled_from(INTEGERS), st.integers(1, 200), st.booleans())
@settings(max_examples=40, deadline=None)
def test_clipping_is_never_worse_than_rounding(seed: int, name: str, inputs: int, weighted: bool) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, (5, inputs)).astype(np.float32)
    importance = rng.random(inputs, dtype=np.float32) if weighted else np.ones(inputs, np.float32)
    fmt = FORMATS[name]
    better = block_errors(values, quantize_clipped(values, fmt, "w", importance), importance)
    assert (better <= block_errors(values, quantize(values, fmt, "w"), importance) * (1 + 1e-6)).all()


@pytest.mark.parametrize("name", ["int4-b32", "int4-b32-asym"])
def test_the_error_of_a_block_is_its_squares_by_their_importance(name: str) -> None:
    rng = np.random.default_rng(0)
    values, importance = rng.standard_normal((3, 80), dtype=np.float32), rng.random(80, dtype=np.float32) + 0.1
    quantized = quantize(values, FORMATS[name], "w")
    weighted = np.square(dequantize(quantized) - values) * importance
    by_hand = np.stack([weighted[:, start : start + 32].sum(axis=1) for start in (0, 32, 64)], axis=1)
    np.testing.assert_allclose(block_errors(values, quantized, importance), by_hand, rtol=1e-5)


def test_clipping_pays_on_long_tails() -> None:
    values, ones = np.random.default_rng(0).standard_t(4, (64, 256)).astype(np.float32), np.ones(256, np.float32)
    fmt = FORMATS["int4-b128"]
    errors = [block_errors(values, rounding(values, fmt, "w"), ones).sum() for rounding in (quantize_clipped, quantize)]
    assert errors[0] < 0.95 * errors[1]


@pytest.mark.parametrize("name", ["int4-b32", "int4-b32-asym", "int8"])
def test_columns_without_weights_or_inputs_are_harmless(name: str) -> None:
    values = np.random.default_rng(0).standard_normal((6, 70), dtype=np.float32)
    values[2] = 0
    x = correlated(200, 70, 1)
    x[:, 5] = 0
    quantized = gptq(torch.from_numpy(values), factor_hessian(torch.from_numpy(x.T @ x), "w"), FORMATS[name], "w")
    assert (dequantize(quantized)[2] == 0).all()
    assert np.isfinite(dequantize(quantized)).all()
    nothing = gptq(torch.from_numpy(values), factor_hessian(torch.zeros(70, 70), "w"), FORMATS[name], "w")
    np.testing.assert_array_equal(nothing.codes, quantize_clipped(values, FORMATS[name], "w").codes)


def test_a_moved_matrix_gives_from_what_is_read_what_was_wanted() -> None:
    """Errors of 10% in what is read, which a matrix can undo where they are linear in it; and what no token shows is kept."""
    rng = np.random.default_rng(4)
    read = torch.from_numpy(correlated(600, 40, 3)).double()
    turned = read @ (torch.eye(40) + 0.1 * torch.from_numpy(rng.standard_normal((40, 40)))).double()
    weight = torch.from_numpy(rng.standard_normal((7, 40)))
    given = turned @ weight.T  # of the model that is not rounded
    moved = match_outputs(weight, given.T @ read, read.T @ read, "w", damping=1e-6)
    assert float((read @ moved.T - given).square().mean()) < 1e-6 * float((read @ weight.T - given).square().mean())
    torch.testing.assert_close(match_outputs(weight, weight @ (read.T @ read), read.T @ read, "w"), weight)
    read[:, 5] = 0
    moved = match_outputs(weight, given.T @ read, read.T @ read, "w")
    torch.testing.assert_close(moved[:, 5], weight[:, 5])
    assert float((read @ moved.T - given).square().mean()) < 0.2 * float((read @ weight.T - given).square().mean())
    moved = [match_outputs(weight, given.T @ read, read.T @ read, "w", damping) for damping in (0.01, 1.0, 100.0)]
    distances = [float((each - weight).norm()) for each in moved]
    assert distances == sorted(distances, reverse=True)
    torch.testing.assert_close(match_outputs(weight, torch.zeros(7, 40), torch.zeros(40, 40), "w"), weight)


def test_moments_are_factored_in_double_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it in single precision, for the memory's sake."""
    seen, factored = [], torch.linalg.cholesky_ex

    def watched(system: torch.Tensor, **how: bool) -> object:
        seen.append((len(system), system.dtype))
        return factored(system, **how)

    monkeypatch.setattr(gptq_module, "_DOUBLE_UP_TO", 3)
    monkeypatch.setattr(torch.linalg, "cholesky_ex", watched)
    for size in (3, 4):
        moments = torch.eye(size)
        factor_hessian(moments, "w")
        match_outputs(torch.ones(2, size), torch.ones(2, size), moments, "w")
    assert seen == [(3, torch.float64)] * 3 + [(4, torch.float32)] * 3


def test_fewer_tokens_than_inputs_can_be_factored() -> None:
    x = torch.ones(1, 300)
    hessian = factor_hessian(x.T @ x, "w")
    assert torch.isfinite(hessian.upper).all()


def test_what_is_no_number_is_named() -> None:
    values = torch.ones(4, 40)
    values[1, 1] = torch.nan
    with pytest.raises(Error, match=r"blocks\.0\.q_proj\.weight holds NaN"):
        gptq(values, factor_hessian(torch.eye(40), "w"), FORMATS["int4-b32"], "blocks.0.q_proj.weight")
    with pytest.raises(Error, match="w holds NaN"):
        quantize_clipped(values.numpy(), FORMATS["int4-b32"], "w")
    with pytest.raises(Error, match="w: what it multiplies is not finite"):
        factor_hessian(torch.full((3, 3), torch.inf), "w")


def test_names_of_methods() -> None:
    for rounding in ROUNDINGS:
        assert method_named(rounding) == Method(rounding)
    assert method_named("smooth") == Method("rtn", smooth=True)
    assert method_named("gptq+rotate") == Method("gptq", rotate=True)
    assert all(method_named(Method(r, s, t).name) == Method(r, s, t) for r in ROUNDINGS for s in (0, 1) for t in (0, 1))
    assert set(TRANSFORMS) == {"smooth", "rotate"}
    with pytest.raises(Error, match=r"no method is called 'gtpq'; did you mean 'gptq'\?"):
        method_named("gtpq")
    with pytest.raises(Error, match="no method is called 'awq'"):
        method_named("awq")
    with pytest.raises(Error, match="says one thing twice"):
        method_named("rtn+gptq")
